# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole files to and from the guest: never readable by other users in transit, and the same at both ends.

Uses files.py (the bytes) and, where the agent may run programs, login_shell.py (permissions, compression) and
checksum.py.
"""

from __future__ import annotations

import hashlib
import shlex
from contextlib import closing, contextmanager, suppress
from typing import IO, BinaryIO, Callable, Generator, Iterator, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    FileChangedError,
    OperationError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.background import Beside
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import (
    SUM,
    Sum,
    agrees,
    begin_sum,
    part_command,
    sha256,
    sha256_of,
    sum_in,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.compression import GZIP, ZSTD, Packer, has_zstd, shrinks
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ExecResult, Executor, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.fetch_packed import Packed
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import (
    AS_IT_IS,
    Attributes,
    Staged,
    replace_file,
    stage,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import (
    NO_LIMIT,
    Copied,
    Encoded,
    GuestFile,
    Limit,
    Progress,
    chunks,
    content_size,
    copy_in,
    copy_out,
    no_progress,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.local_file import free_space
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import (
    ABANDONED,
    begin_shell,
    check_shell,
    new_prefix,
    remove_rest,
    run_shell,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import when_thawed

__all__ = ("fetch", "file_sha256", "put", "room_command", "sent", "unpack_command")

# Bytes per second. On a channel slower than this, gzip in the guest takes less time than it saves.
_SLOW = 4 << 20


def put(
    executor: Executor,
    source: BinaryIO,
    path: str,
    progress: Progress = no_progress,
    attributes: Attributes = AS_IT_IS,
) -> int:
    """Write ``source``, which is seekable, to the guest's file ``path``; verify that it arrived and return its size.

    Where the agent may run programs, the file is written whole or not at all; a link is replaced; a new file has mode
    0600, and an existing one keeps its mode and owner, unless ``attributes`` say otherwise. Elsewhere the agent writes
    to the existing file. Compressible content is sent compressed, if the guest has zstd or gzip.

    :raise TransferError: if the guest's file differs from what was sent.
    :raise OperationError: if the file cannot be created; its text is the guest's own.
    """
    start = source.tell()

    def from_the_start() -> int:
        source.seek(start)
        return _put_whole(executor, source, path, progress, attributes)

    return when_thawed(executor.agent, from_the_start)


def _put_whole(executor: Executor, source: BinaryIO, path: str, progress: Progress, attributes: Attributes) -> int:
    start = source.tell()
    if not executor.is_available():
        copied = copy_in(executor.agent, source, path, progress=progress, sizes=executor.sizes)
        _make_sure(executor, source, start, path, copied.size, copied.checked)
        return copied.size
    sample = source.read(executor.sizes.small)
    if len(sample) < executor.sizes.small and _put_small(executor, sample, path, attributes):
        progress(len(sample))
        return len(sample)
    # If one program could not place it, the long way does, or reports why not.
    source.seek(start)
    with sent(executor, source, path, progress) as staged:
        sha256 = "" if staged.beside else sha256_of(_from(source, start))
        replace_file(executor, staged, path, attributes, sha256=sha256)
    return staged.size


@contextmanager
def sent(executor: Executor, source: BinaryIO, path: str, progress: Progress = no_progress) -> Iterator[Staged]:
    """Write ``source`` to a new file, see ``stage``, and verify that it arrived. The block does something with it.

    :raise TransferError: if the guest's file differs from what was sent.
    :raise OperationError: if it cannot be created.
    """
    start = source.tell()
    with stage(executor, path) as staged:
        compared = _put(executor, source, staged.path, progress)
        size = source.tell() - start
        _make_sure(executor, source, start, staged.path, size, compared)
        yield staged._replace(size=size)


def _make_sure(executor: Executor, source: BinaryIO, start: int, path: str, size: int, compared: bool) -> None:
    """Compare the file at ``path`` with ``source``, unless it was ``compared`` already."""
    if not compared and file_sha256(executor, path, size) != sha256_of(_from(source, start)):
        raise TransferError(f"{path} is not what was written to it")


def _from(file: IO[bytes], start: int) -> Iterator[bytes]:
    """Yield the content of ``file`` from ``start`` on."""
    file.seek(start)
    yield from chunks(file)


def _put_small(executor: Executor, content: bytes, path: str, attributes: Attributes) -> bool:
    """Write ``content`` with one program; return whether it arrived."""
    checksum = sha256_of([content])
    try:
        there = replace_file(executor, content, path, attributes, sha256=checksum)
    except OperationError:
        return False
    return (there or file_sha256(executor, path)) == checksum


def _put(executor: Executor, source: BinaryIO, path: str, progress: Progress) -> bool:
    """Write ``source`` to its end, to an existing file; return whether the two were compared."""
    start = source.tell()
    sample = source.read(executor.sizes.small)
    source.seek(start)
    if len(sample) < executor.sizes.small:
        return copy_in(executor.agent, source, path, "r+", progress=progress, sizes=executor.sizes).checked
    if shrinks(sample):
        try:
            return _put_packed(executor, source, path, progress)
        except (CommandError, OperationError, TransferError):
            source.seek(start)
    return _put_plain(executor, source, path, progress)


def _put_packed(executor: Executor, source: BinaryIO, path: str, progress: Progress) -> bool:
    """Write ``source`` piece by piece into files that root alone can access; the guest unpacks them into ``path``.

    Returns True: a piece that cannot be compared was not unpacked either.

    :raise QgaError: if that fails; nothing is running in the guest then.
    """
    prefix = new_prefix()
    try:
        there = check_shell(executor, room_command(prefix), "keep compressed pieces")
        packer = ZSTD if there and has_zstd() else GZIP
        return _put_pieces(executor, source, path, progress, prefix, packer)
    finally:
        with suppress(QgaError):
            remove_rest(executor, prefix)


def _put_pieces(
    executor: Executor, source: BinaryIO, path: str, progress: Progress, prefix: str, packer: Packer
) -> bool:
    """Write ``source`` by pieces that are compressed, as `_put_packed` does, which has made room for them."""
    pieces = _Pieces(executor, path, source, packer.packing())
    try:
        with closing(pieces.each()) as each:
            for number, piece in enumerate(each):
                # One file is written while the guest unpacks the other.
                part = f"{prefix}.{number % 2}"
                with GuestFile(executor.agent, part, "w") as guest_file:
                    _send(guest_file, piece)
                pieces.compare(piece, unpack_command(packer, part, path, piece.size, append=number > 0))
                progress(pieces.size)
                if not pieces.comparable:
                    break
        pieces.wait()
        if not pieces.comparable:
            raise OperationError("a piece cannot be unpacked and compared in the guest")
        return True
    finally:
        with suppress(QgaError):
            pieces.wait()


def room_command(prefix: str) -> ShellCommand:
    """Return the command that creates two files for pieces, and prints a path if the guest has zstd."""
    return ShellCommand.of(
        f"{ABANDONED}; umask 077; set -C; : >{prefix}.0; : >{prefix}.1; command -v zstd || :", "make_room", prefix
    )


def unpack_command(packer: Packer, part: str, path: str, size: int, *, append: bool) -> ShellCommand:
    """Return the command that unpacks ``part`` into ``path`` and prints SUM of its last ``size`` bytes."""
    name = shlex.quote(path)
    text = f"{packer.unpacks} <{part} {'>>' if append else '>'}{name} && tail -c {size} {name} | {{ {SUM}; }}"
    return ShellCommand.of(text, "unpack", packer.name, part, int(append), path, size)


def _put_plain(executor: Executor, source: BinaryIO, path: str, progress: Progress) -> bool:
    """Write ``source`` piece by piece, while the guest checksums them; return whether it could."""
    pieces = _Pieces(executor, path, source)
    try:
        # What is there is a part of the same, and is written over.
        with GuestFile(executor.agent, path, "r+") as guest_file, closing(pieces.each()) as each:
            for piece in each:
                _send(guest_file, piece, lambda sent: progress(pieces.size + sent))
                guest_file.flush()
                pieces.compare(piece, part_command(path, pieces.size, piece.size))
    except (CommandError, TransferError):  # the agent still answers, and the comparison still runs
        with suppress(QgaError):
            pieces.wait()
        raise
    pieces.wait()
    return pieces.comparable


def _send(guest_file: GuestFile, piece: _Piece, progress: Progress = no_progress) -> None:
    sent = 0
    for part in piece.sent:
        guest_file.send(part)
        sent += part.size
        progress(sent)


class _Piece(NamedTuple):
    """A piece of a copy: its content, its Sum in hex, and the encoded parts that are sent."""

    content: bytes
    checksum: str
    sent: Sequence[Encoded]

    @property
    def size(self) -> int:
        return len(self.content)


class _Pieces:
    """The pieces of ``source`` that are copied into the file ``path``, each sent as ``pack`` returns it.

    While a piece is sent, the guest compares the last and this machine prepares the next. ``size`` bytes are in the
    guest, and ``comparable`` is True as long as the guest can compare.
    """

    def __init__(
        self, executor: Executor, path: str, source: BinaryIO, pack: Callable[[bytes], bytes] = lambda content: content
    ) -> None:
        self.size = 0
        self.comparable = True
        self._executor = executor
        self._path = path
        self._source = source
        self._pack = pack
        self._comparing: tuple[_Piece, Callable[[], ExecResult]] | None = None

    def each(self) -> Generator[_Piece, None, None]:
        """Yield the pieces. After the end, or once this is closed, no thread reads ``source``."""
        sizes = self._executor.sizes
        beside: Beside[_Piece] = Beside()
        with beside:
            beside.do(self._read, sizes.first_piece)
            while True:
                piece = beside.wait()
                if not piece or not piece.size:
                    return
                beside.do(self._read, sizes.piece)
                yield piece

    def _read(self, size: int) -> _Piece:
        content = self._source.read(size)
        packed = self._pack(content)
        agent = self._executor.agent
        step = content_size(agent, min(self._executor.sizes.chunk, agent.largest_content))
        sent = [Encoded.of(packed[start : start + step]) for start in range(0, len(packed), step)]
        return _Piece(content, Sum(content).hexdigest(), sent)

    def compare(self, piece: _Piece, command: ShellCommand) -> None:
        """Start comparing ``piece``, which has arrived, by ``command``, which prints its SUM. See ``wait``."""
        self.wait()
        if self.comparable:
            self._comparing = piece, begin_shell(self._executor, command)
        self.size += piece.size

    def wait(self) -> None:
        """Wait for the running comparison, if any.

        :raise TransferError: if the piece arrived differently.
        """
        comparing, self._comparing = self._comparing, None
        if not comparing:
            return
        piece, ended = comparing
        there = sum_in(ended())
        self.comparable = bool(there)
        if there and not agrees(there, piece.checksum, [piece.content]):
            raise TransferError(f"{self._path} is not what was written to it")


def fetch(
    executor: Executor, path: str, sink: IO[bytes], progress: Progress = no_progress, largest: int | None = None
) -> int:
    """Write the content of the guest's file ``path`` to ``sink``, verify it against the guest, and return its size.

    If the file grew meanwhile, the part that was read counts; if it was written to, it is read once more. ``sink`` must
    be empty and readable. It gets at most ``largest`` bytes, by default the size that the guest first reports and some
    growth, and never more than there is room for.

    :raise FileChangedError: if it was written to again; ``sink`` has what was read.
    :raise TransferError: if what arrived differs from the guest's file, or exceeds the limit.
    """
    start = sink.tell()

    def from_the_start() -> int:
        sink.seek(start)
        sink.truncate()
        return _fetch_unchanged(executor, path, sink, progress, largest)

    return when_thawed(executor.agent, from_the_start)


def _fetch_unchanged(executor: Executor, path: str, sink: IO[bytes], progress: Progress, largest: int | None) -> int:
    limit = Limit(largest, _room(sink))
    try:
        return _fetch_once(executor, path, sink, progress, limit)
    except _Differs:
        sink.seek(0)
        sink.truncate()
    before = _status(executor, path)
    try:
        return _fetch_once(executor, path, sink, progress, limit)
    except _Differs as exc:
        if before and before != _status(executor, path):
            raise FileChangedError(
                f"{path} was written to each time that it was read. What arrived may be a part of one version and a "
                "part of another.",
                size=exc.size,
            ) from None
        raise TransferError(f"{path} changed while it was read, or was damaged on the way") from None


class _Differs(Exception):
    """The ``size`` bytes that arrived differ from the guest's file."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


def _room(sink: IO[bytes]) -> int | None:
    """Return the free bytes of the filesystem of ``sink``; None if it is in none."""
    try:
        return free_space(sink.fileno())
    except OSError:  # io.UnsupportedOperation is one
        return None


def _status(executor: Executor, path: str) -> bytes:
    """Return the file's identity, size and times, which change when it is written to; empty if unknown."""
    if not executor.is_available():
        return b""
    command = f"stat -L -c '%d %i %s %y %z' -- {shlex.quote(path)}"
    result = run_shell(executor, ShellCommand.of(command), whole=False)
    return b"" if result.shell_rc else result.stdout


def _fetch_once(executor: Executor, path: str, sink: IO[bytes], progress: Progress, limit: Limit) -> int:
    """Fetch like ``fetch``, once.

    :raise _Differs: if what arrived differs from the guest's file.
    """
    programs = executor.is_available()
    summing: list[Callable[[], ExecResult]] = []
    here = Sum()

    def take(data: bytes) -> None:
        sink.write(data)
        here.update(data)

    packed = Packed(executor, path, take, progress)

    def instead(first: Encoded, seconds: float, size: int) -> int:
        gains = shrinks(first.decoded())
        # Without an interpreter in the guest, starting zstd there takes longer than it saves.
        if gains and has_zstd() and executor.shell and packed.fetch(ZSTD, size):
            return packed.size
        summing.append(begin_sum(executor, path, size))  # the guest computes it while the agent reads
        is_slow = first.size < _SLOW * seconds
        return packed.fetch(GZIP, size) if gains and is_slow else 0

    try:
        copied = copy_out(executor.agent, path, take, progress, instead if programs else None, limit, executor.sizes)
    except (CommandError, TransferError):  # the agent still answers, and the checksum program still runs
        with suppress(QgaError):
            for ended in summing:
                ended()
        raise
    if copied.checked or (packed.checked and copied.size == packed.size > 0):
        return copied.size
    if summing and agrees(sum_in(summing[0]()), here.hexdigest(), _from(sink, 0)):
        return copied.size
    _compare(executor, path, copied, sink)
    return copied.size


def _compare(executor: Executor, path: str, copied: Copied, sink: IO[bytes]) -> None:
    """Compare the content of ``sink`` with as many bytes of the guest's file now, or all if less arrived than was said.

    :raise _Differs: if they differ.
    """
    # The content of a file without a size (/proc) may change at any moment, so it is not compared.
    size = copied.size if copied.whole else None
    there = sha256(executor, path, size) if executor.is_available() else file_sha256(executor, path)
    if there and there != sha256_of(_from(sink, 0)):
        raise _Differs(copied.size)


def file_sha256(executor: Executor, path: str, size: int | None = None, limit: Limit = NO_LIMIT) -> str:
    """Return the SHA-256, in hex, of the guest's file, or of its first ``size`` bytes.

    Computed in the guest where that is possible, else by reading the whole file.

    :raise TransferError: if it exceeds ``limit``.
    """
    there = sha256(executor, path, size, limit.most) if executor.is_available() else ""
    if there:
        return there
    summed = hashlib.sha256()
    copy_out(executor.agent, path, summed.update, limit=limit, sizes=executor.sizes)
    return summed.hexdigest()
