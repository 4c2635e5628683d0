# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole files to and from the guest: never open to others on the way, and the same at both ends.

Stands on _files (the bytes) and, where the agent may run programs, on _shell (who may read, compression) and _sums.
"""

from __future__ import annotations

import hashlib
import shlex
from contextlib import closing, suppress
from typing import IO, BinaryIO, Callable, Generator, Iterator, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent import Agent
from ansible_collections.qemu.guest.plugins.module_utils._beside import Beside
from ansible_collections.qemu.guest.plugins.module_utils._errors import (
    CommandError,
    OperationError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._exec import ExecResult, can_run_programs
from ansible_collections.qemu.guest.plugins.module_utils._files import (
    CHUNK,
    Encoded,
    GuestFile,
    Progress,
    chunks,
    copy_in,
    copy_out,
    no_progress,
)
from ansible_collections.qemu.guest.plugins.module_utils._packed import Packed
from ansible_collections.qemu.guest.plugins.module_utils._packers import GZIP, ZSTD, Packer, has_zstd, shrinks
from ansible_collections.qemu.guest.plugins.module_utils._patience import when_thawed
from ansible_collections.qemu.guest.plugins.module_utils._shell import (
    begin_shell,
    check_shell,
    new_spool,
    run_shell,
    sweep,
)
from ansible_collections.qemu.guest.plugins.module_utils._sums import (
    SUM,
    Sum,
    agrees,
    begin_sum,
    part_command,
    sha256,
    sha256_of,
    sum_in,
)

__all__ = ("create_private", "digest", "fetch", "put", "unpack_command", "write_command")

# Up to this, one program in the guest takes the content, and compares it, faster than files are opened and closed.
_SMALL = 64 * 1024
# Below this, further programs in the guest take longer than they save.
_LEAST = 256 * 1024
# Bytes per second. What comes more slowly than that, gzip compresses in the guest in less time than that saves.
_SLOW = 4 << 20
# What is unpacked and compared at once, while the next is on its way. Such a piece, and another one, are in the guest's
# memory, compressed, until they are unpacked. The first is waited for until it is prepared, so it is smaller.
_FIRST_PIECE = 2 * CHUNK
_PIECE = 4 * CHUNK


def put(agent: Agent, source: BinaryIO, path: str, progress: Progress = no_progress) -> int:
    """Write ``source``, which is seekable, to the guest's file ``path``; make sure that it arrived and return its size.

    A new file has mode 0600 where the agent may run programs; an existing one keeps its mode. What shrinks travels
    compressed, if the guest has zstd or gzip.

    :raise TransferError: if what is in the guest is not what was sent.
    :raise OperationError: if the file cannot be created; its text is the guest's own.
    """
    start = source.tell()

    def from_the_start() -> bool:
        source.seek(start)
        return _put(agent, source, path, progress)

    compared = when_thawed(agent, from_the_start)
    size = source.tell() - start
    if not compared and when_thawed(agent, lambda: digest(agent, path, size)) != sha256_of(_from(source, start)):
        raise TransferError(f"{path} is not what was written to it")
    return size


def _from(file: IO[bytes], start: int) -> Iterator[bytes]:
    """Yield what is in ``file`` from there."""
    file.seek(start)
    yield from chunks(file)


def _put(agent: Agent, source: BinaryIO, path: str, progress: Progress) -> bool:
    """Write ``source`` to its end; return whether what arrived was compared with it."""
    if not can_run_programs(agent):
        return copy_in(agent, source, path, progress=progress).checked
    start = source.tell()
    sample = source.read(_LEAST)
    source.seek(start)
    # What did not work the one way is tried the plain way, which can tell why.
    if len(sample) <= _SMALL and _put_small(agent, sample, path):
        source.seek(start + len(sample))
        progress(len(sample))
        return True
    create_private(agent, path)
    if len(sample) < _LEAST:
        return copy_in(agent, source, path, progress=progress).checked
    if shrinks(sample):
        try:
            return _put_packed(agent, source, path, progress)
        except (CommandError, OperationError, TransferError):
            source.seek(start)
    return _put_plain(agent, source, path, progress)


def _put_small(agent: Agent, content: bytes, path: str) -> bool:
    """Write ``content`` by one program; return whether it is there now."""
    result = run_shell(agent, write_command(path).encode("utf-8", "surrogateescape"), content, whole=False)
    return sum_in(result) == sha256_of([content])


def write_command(path: str) -> str:
    """Return the shell command that writes its input to ``path`` and prints the SHA-256 of what is there.

    _warm_commands.py does it without a shell.
    """
    name = shlex.quote(path)
    return f"{{ {create_command(path)}; }} && cat >{name} && sha256sum <{name}"


def _put_packed(agent: Agent, source: BinaryIO, path: str, progress: Progress) -> bool:
    """Write ``source`` piece by piece into files of root's alone, from where the guest unpacks them into ``path``.

    Returns True: what cannot be compared was not unpacked either.

    :raise QgaError: if that does not work; nothing is at work in the guest then.
    """
    spool = new_spool()
    there = check_shell(agent, spool_command(spool), "keep compressed pieces")
    packer = ZSTD if there and has_zstd() else GZIP
    pieces = _Pieces(agent, path, source, packer.packing())
    try:
        with closing(pieces.each()) as each:
            for number, piece in enumerate(each):
                # One is written while the guest unpacks the other.
                part = f"{spool}.{number % 2}"
                with GuestFile(agent, part, "w") as guest_file:
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
        with suppress(QgaError):
            sweep(agent, spool)


# _warm_commands.py does what these do without a shell.


def spool_command(spool: str) -> str:
    """Return the shell command that creates two files for pieces, and prints something if the guest has zstd."""
    return f"umask 077; set -C; : >{spool}.0; : >{spool}.1; command -v zstd || :"


def unpack_command(packer: Packer, part: str, path: str, size: int, *, append: bool) -> str:
    """Return the shell command that unpacks ``part`` into ``path`` and prints SUM of its last ``size`` bytes."""
    name = shlex.quote(path)
    return f"{packer.unpacks} <{part} {'>>' if append else '>'}{name} && tail -c {size} {name} | {{ {SUM}; }}"


def _put_plain(agent: Agent, source: BinaryIO, path: str, progress: Progress) -> bool:
    """Write ``source`` piece by piece, while the guest sums up what it has got; return whether it could."""
    pieces = _Pieces(agent, path, source)
    try:
        with GuestFile(agent, path, "w") as guest_file, closing(pieces.each()) as each:
            for piece in each:
                _send(guest_file, piece, lambda sent: progress(pieces.size + sent))
                guest_file.flush()
                pieces.compare(piece, part_command(path, pieces.size, piece.size))
    except (CommandError, TransferError):  # the agent is there, as is what compares
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
    """A part of what is copied: its content, its Sum in hex, and what is sent of it."""

    content: bytes
    checksum: str
    sent: Sequence[Encoded]

    @property
    def size(self) -> int:
        return len(self.content)


class _Pieces:
    """What is copied from ``source`` into the file ``path``, sent as ``pack`` returns it.

    While a piece is on its way, the guest compares the last and this machine prepares the next. ``size`` bytes are in
    the guest, and ``comparable`` is True as long as the guest can compare.
    """

    def __init__(
        self, agent: Agent, path: str, source: BinaryIO, pack: Callable[[bytes], bytes] = lambda content: content
    ) -> None:
        self.size = 0
        self.comparable = True
        self._agent = agent
        self._path = path
        self._source = source
        self._pack = pack
        self._comparing: tuple[_Piece, Callable[[], ExecResult]] | None = None

    def each(self) -> Generator[_Piece, None, None]:
        """Yield the pieces. Who is at the end, or closes this, has ``source`` alone again."""
        beside: Beside[_Piece] = Beside()
        with beside:
            beside.do(self._read, _FIRST_PIECE)
            while True:
                piece = beside.wait()
                if not piece or not piece.size:
                    return
                beside.do(self._read, _PIECE)
                yield piece

    def _read(self, size: int) -> _Piece:
        content = self._source.read(size)
        packed = self._pack(content)
        step = min(CHUNK, self._agent.largest_payload)
        sent = [Encoded.of(packed[start : start + step]) for start in range(0, len(packed), step)]
        return _Piece(content, Sum(content).hexdigest(), sent)

    def compare(self, piece: _Piece, command: str) -> None:
        """Note that ``piece`` is there; the shell ``command`` prints its SUM in the guest. See ``wait``."""
        self.wait()
        if self.comparable:
            self._comparing = piece, begin_shell(self._agent, command)
        self.size += piece.size

    def wait(self) -> None:
        """Wait for the comparison that is at work, if one is.

        :raise TransferError: if the piece is not what it was.
        """
        comparing, self._comparing = self._comparing, None
        if not comparing:
            return
        piece, ended = comparing
        there = sum_in(ended())
        self.comparable = bool(there)
        if there and not agrees(there, piece.checksum, [piece.content]):
            raise TransferError(f"{self._path} is not what was written to it")


def create_private(agent: Agent, path: str) -> None:
    """Create ``path`` empty with mode 0600, unless it exists: a file that guest-file-open creates is 0666.

    :raise OperationError: if it cannot be created.
    """
    check_shell(agent, create_command(path), f"create {path}")


def create_command(path: str) -> str:
    """Return the shell command that creates ``path``, see there.

    _warm_commands.py does it without a shell.
    """
    name = shlex.quote(path)
    return f"[ -e {name} ] || {{ umask 077; set -C; : >{name} && set +C; }}"


def fetch(agent: Agent, path: str, sink: IO[bytes], progress: Progress = no_progress) -> int:
    """Write the content of the guest's file ``path`` to ``sink``, make sure that it is what the guest has, and return
    its size.

    A file that grew meanwhile is right as far as it was read. ``sink`` is empty, and can be read.

    :raise TransferError: if it is not.
    """
    start = sink.tell()

    def from_the_start() -> int:
        sink.seek(start)
        sink.truncate()
        return _fetch(agent, path, sink, progress)

    return when_thawed(agent, from_the_start)


def _fetch(agent: Agent, path: str, sink: IO[bytes], progress: Progress) -> int:
    programs = can_run_programs(agent)
    summing: list[Callable[[], ExecResult]] = []
    here = Sum()

    def take(data: bytes) -> None:
        sink.write(data)
        here.update(data)

    packed = Packed(agent, path, take, progress)

    def instead(first: Encoded, seconds: float, size: int) -> int:
        gains = shrinks(first.decoded())
        # Without an interpreter in the guest, to start it there takes longer than it saves.
        if gains and has_zstd() and agent.shell and packed.fetch(ZSTD, size):
            return packed.size
        summing.append(begin_sum(agent, path))  # which the guest does while the agent reads
        is_slow = first.size < _SLOW * seconds
        return packed.fetch(GZIP, size) if gains and is_slow else 0

    try:
        copied = copy_out(agent, path, take, progress, instead if programs else None)
    except (CommandError, TransferError):  # the agent is there, as is what sums up
        with suppress(QgaError):
            for ended in summing:
                ended()
        raise
    if copied.checked or (packed.checked and copied.size == packed.size > 0):
        return copied.size
    if summing and agrees(sum_in(summing[0]()), here.hexdigest(), _from(sink, 0)):
        return copied.size
    _compare(agent, path, copied.size, sink)
    return copied.size


def _compare(agent: Agent, path: str, size: int, sink: IO[bytes]) -> None:
    """Compare what is in ``sink`` with the first ``size`` bytes that the guest has now."""
    # Nobody can tell what a file without a size (/proc) holds a moment later.
    there = sha256(agent, path, size) if can_run_programs(agent) else digest(agent, path)
    if there and there != sha256_of(_from(sink, 0)):
        raise TransferError(f"{path} changed while it was read, or was damaged on the way")


def digest(agent: Agent, path: str, size: int | None = None) -> str:
    """Return the SHA-256, in hex, of the guest's file, or of its first ``size`` bytes.

    Computed in the guest where that is possible, else by reading the whole file.
    """
    there = sha256(agent, path, size) if can_run_programs(agent) else ""
    if there:
        return there
    summed = hashlib.sha256()
    copy_out(agent, path, summed.update)
    return summed.hexdigest()
