# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in the guest through guest-file-*: stream bytes in and out, and detect differences on arrival.

One request is in flight at a time (virtio-serial loses replies otherwise), in chunks near 1 MiB: larger ones gain
nothing, and Windows guests cannot take 2 MiB. On a slow channel they are smaller: see `content_size`. A short count, a
full disk (reported at flush or close as often as at write) and a dead handle are errors. A handle is always closed,
because the agent keeps it until the agent ends.

A file that guest-file-open creates has mode 0666 whatever the umask; to avoid that, create it first (file_ops.stage),
and open it with C(r+), which creates none if the guest went back to a snapshot since.
"""

from __future__ import annotations

import base64
import errno
import time
from contextlib import suppress
from typing import IO, Any, BinaryIO, Callable, Iterator, NamedTuple, Sequence, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    ConnectError,
    GuestFileError,
    HandleLostError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.background import Beside
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import patiently, when_back, when_thawed

__all__ = (
    "CHUNK",
    "NO_LIMIT",
    "SIZES",
    "Copied",
    "Encoded",
    "GuestFile",
    "Limit",
    "Progress",
    "Sizes",
    "chunks",
    "content_size",
    "copy_in",
    "copy_out",
    "enforces_selinux",
    "exists",
    "no_progress",
)

T = TypeVar("T")

CHUNK = 1024 * 1024
"""Most bytes that one guest-file-read or guest-file-write carries, before base64."""

_READ = "guest-file-read"  # its content is decoded when another command may be the last one

_SHARE = 1 / 8  # the most of the timeout that one request should take


class Sizes:
    """How content is cut for its way, in bytes. Others are those of a subclass.

    ``chunk`` is what one request carries at most, and ``first`` the first read, which decides how to go on. Below
    ``small``, one program in the guest takes the content and compares it: more programs take longer than they save.

    A ``piece`` is unpacked and compared at once, while the next one is sent. Two are in the guest's memory, compressed,
    until they are unpacked. The transfer waits until the first is prepared: ``first_piece`` is smaller.

    A ``part`` is what one command packs. It stays in the guest's memory, compressed, until it has been read, by reads
    of ``packed``: the agent allocates that much each time, even if there is nothing to read.

    A file may grow by ``growth``, or by a quarter of it if that is more, while it is read. That is also the limit for
    one that reports no size (/proc).
    """

    chunk = CHUNK
    first = CHUNK // 4
    small = CHUNK // 4
    first_piece = 2 * CHUNK
    piece = 4 * CHUNK
    part = 16 * CHUNK
    packed = CHUNK // 4
    growth = 64 * CHUNK


SIZES = Sizes()
"""The usual sizes."""


class Copied(NamedTuple):
    """Result of a copy: its ``size`` in bytes.

    ``checked``: both ends were compared already. ``whole``: it is as long as the guest said that the file is; a copy
    that is shorter has to be compared with the whole file, because it would always agree with the beginning.
    """

    size: int
    checked: bool
    whole: bool = True


class Limit(NamedTuple):
    """How much may be read: ``asked`` bytes, if the user set a limit, and at most the ``room`` bytes free here.

    ``said`` is the size that the guest said before, if it was asked; what it says later does not count then.
    """

    asked: int | None = None
    room: int | None = None
    said: int | None = None

    @property
    def most(self) -> int | None:
        """The limit for a file of any size; None: there is none."""
        return min((limit for limit in (self.asked, self.room) if limit is not None), default=None)

    def for_file(self, path: str, size: int, growth: int) -> tuple[int, TransferError]:
        """Return the limit for a file that has ``size`` bytes according to the guest, and the error for exceeding it.

        ``growth`` is that of Sizes.
        """
        before = size if self.said is None else self.said
        usual = before + max(growth, before // 4)
        limit, why, advice = usual, f"it had {before} when it was opened", "If that is as it should be, allow it by"
        if self.asked is not None:
            limit, why, advice = self.asked, "that is the limit that was set", "Raise it by"
        advice = f"{advice} max_size of qga_fetch, or ansible_qga_max_fetch_size of the connection."
        if self.room is not None and self.room < limit:
            limit, why, advice = self.room, "no more space is free here", "Make room, or put it on another filesystem."
        return limit, TransferError(f"{path} has more than {limit} bytes: {why}.", hint=advice)


NO_LIMIT = Limit()
"""No limit that the user set: a file may have what it has when it is opened, and grow a little."""


class Encoded(NamedTuple):
    """Content in base64, ``size`` bytes before it. Separate, so that coding can overlap with a request."""

    size: int
    text: str

    @classmethod
    def of(cls, data: bytes) -> Encoded:
        return cls(len(data), protocol.Base64(base64.b64encode(data).decode("ascii")))

    def decoded(self) -> bytes:
        """Return the content.

        :raise ProtocolError: if it is not valid base64 or not ``size`` bytes.
        """
        try:
            data = base64.b64decode(self.text, validate=True)
        except ValueError as exc:  # binascii.Error, or text that is not ASCII
            raise ProtocolError(f"the agent sent invalid base64: {exc}", command=_READ) from exc
        if len(data) != self.size:
            raise ProtocolError("it returned a count that is not the size of its data", command=_READ)
        return data


class GuestFile:
    """An open file in the guest. A context manager: leaving it closes the handle and raises errors of closing.

    ``mode`` is that of fopen(): ``r``, ``w``, ``a``, each with ``+``. With a ``handle``, the file is open already.
    An agent that is away is waited for, for its ``timeout`` once more, unless it has answered nothing before. Once the
    file is open, a frozen guest is waited for, too. After a lost reply, the position in the file shows whether the
    request was carried out.

    :raise GuestFileError: with the errno of the cause where the agent names it.
    """

    def __init__(self, agent: Agent, path: str, mode: str = "r", *, handle: int | None = None) -> None:
        self.agent = agent
        self.path = path
        # Position of the next read or write; None if unknown, as in a pipe.
        self._position = 0 if handle is None and "a" not in mode else None
        if handle is None:
            handle = when_back(agent, lambda: agent.execute("guest-file-open", {"path": path, "mode": mode}))
        self.handle: int | None = handle
        """The agent's number for the file; None if it is closed."""

    def __enter__(self) -> GuestFile:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ProtocolError):  # of a value in the last reply, before that to closing
            error.command = error.command or self.agent.last_command
        if kind is None:
            self.close()
        elif self.handle is not None:
            # The error that ended the block is the one to report; an error of closing is its consequence.
            with suppress(QgaError):
                self._once("guest-file-close")
            self.handle = None

    def close(self) -> None:
        """Close the handle. A full disk may be reported only here."""
        if self.handle is not None:
            try:
                # Not repeated after a lost reply: the handle may be another file's by then.
                self._patiently(lambda: self._once("guest-file-close"), (OutcomeUnknownError,))
            finally:
                self.handle = None

    def read(self, count: int = CHUNK) -> bytes:
        """Return up to ``count`` bytes from the current position; empty at the end of the file."""
        return self.receive(count).decoded()

    def receive(self, count: int = CHUNK) -> Encoded:
        """Read like ``read``, but leave the decoding to the caller."""
        before = self._position or 0

        def step(was_lost: bool) -> Any:
            if was_lost:
                self._sought(before)
            return self._once("guest-file-read", count=count)

        reply = self._surely(step)
        size = protocol.expect(reply.get("count"), int, "count")
        if size > count:
            raise ProtocolError(f"it returned {size} bytes for {count}", command=_READ)
        self._moved(size)
        return Encoded(size, protocol.expect(reply.get("buf-b64"), str, "buf-b64"))

    def read_all(self, largest: int | None = None) -> bytes:
        """Return the rest of a file that is not being written to.

        :raise TransferError: if that is more than ``largest`` bytes.
        """
        pieces: list[bytes] = []
        size = 0
        while True:
            count = content_size(self.agent, CHUNK)
            pieces.append(self.read(count))
            size += len(pieces[-1])
            if largest is not None and size > largest:
                raise TransferError(f"{self.path} has more than {largest} bytes")
            if len(pieces[-1]) < count:
                return b"".join(pieces)

    def write_all(self, data: bytes) -> None:
        """Write all of ``data``, in as many requests as it takes."""
        start = 0
        while start < len(data):
            step = content_size(self.agent, min(CHUNK, self.agent.largest_content))
            self.write(data[start : start + step])
            start += step

    def write(self, data: bytes) -> None:
        """Write ``data`` in one request.

        :raise TransferError: if the agent took only a part.
        """
        self.send(Encoded.of(data))

    def send(self, piece: Encoded) -> None:
        """Write content that is encoded already, like ``write``."""
        before = self._position or 0

        def step(was_lost: bool) -> Any:
            arrived = self._sought(0, 1) - before if was_lost else 0
            return {"count": arrived} if arrived else self._once("guest-file-write", **{"buf-b64": piece.text})

        count = protocol.expect(self._surely(step).get("count"), int, "count")
        if count != piece.size:
            raise TransferError(f"the agent wrote {count} of {piece.size} bytes to {self.path}")
        self._moved(count)

    def flush(self) -> None:
        """Flush written data to the guest's kernel: only then do other programs see it."""
        self._patiently(lambda: self._once("guest-file-flush"))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to ``offset`` (``whence``: 0 from the start, 2 from the end); return the position.

        With 1 as ``whence`` and 0 as ``offset``, the position stays.
        """
        self._position = self._patiently(lambda: self._sought(offset, whence))
        return self._position

    def _sought(self, offset: int, whence: int = 0) -> int:
        reply = self._once("guest-file-seek", offset=offset, whence=whence)
        return int(protocol.expect(reply.get("position"), int, "position"))

    def _moved(self, count: int) -> None:
        if self._position is not None:
            self._position += count

    def _surely(self, step: Callable[[bool], Any]) -> Any:
        """Return the result of ``step``, called again after an outage; its argument says whether a reply was lost."""
        unknown: list[OutcomeUnknownError] = []

        def attempt() -> Any:
            try:
                return step(bool(unknown))
            except OutcomeUnknownError as exc:
                unknown.append(exc)
                raise
            except GuestFileError as exc:
                if not unknown or exc.command != "guest-file-seek":
                    raise
                self._position = None  # a pipe has none, so the fate of the request stays unknown
                raise unknown[0] from None

        try:
            return self._patiently(attempt)
        except ConnectError:  # "was not sent" is true of the last attempt alone
            if unknown and unknown[0].command == "guest-file-write":
                raise unknown[0] from None
            raise

    def _patiently(self, action: Callable[[], T], final: tuple[type[QgaError], ...] = ()) -> T:
        def is_final(exc: QgaError) -> bool:
            if self._position is None and isinstance(exc, OutcomeUnknownError):
                return True
            return isinstance(exc, (GuestFileError, HandleLostError, *final))

        return patiently(self.agent, action, final=is_final, grace=self.agent.timeout)

    def _once(self, command: str, **arguments: Any) -> Any:
        return self.agent.execute(command, {"handle": self.handle, **arguments})


def content_size(agent: Agent, largest: int) -> int:
    """Return how many bytes one request should carry, at most ``largest``, at the channel's measured pace."""
    return agent.pace.carries(agent.timeout * _SHARE, largest)


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the rest of a local file in chunks."""
    return iter(lambda: file.read(CHUNK), b"")


def exists(agent: Agent, path: str) -> bool:
    """Return whether ``path`` exists, of any kind. A path that cannot be opened for other reasons exists.

    :raise CommandError: if the agent cannot tell.
    """
    try:
        GuestFile(agent, path).close()
    except GuestFileError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        if exc.errno is None:
            raise
    return True


def enforces_selinux(agent: Agent) -> bool:
    """Return whether the guest's kernel enforces SELinux. If the guest is frozen meanwhile, wait for the thaw."""

    def said() -> bool:
        with GuestFile(agent, "/sys/fs/selinux/enforce") as state:
            return state.read(1) == b"1"

    try:
        return when_thawed(agent, said)
    except CommandError:
        return False


Progress = Callable[[int], None]
"""Called after each chunk with the bytes copied so far."""


def no_progress(copied: int) -> None:
    """Report nothing."""


def copy_out(
    agent: Agent,
    path: str,
    write: Callable[[bytes], object],
    progress: Progress = no_progress,
    instead: Callable[[Encoded, float, int], int] | None = None,
    limit: Limit = NO_LIMIT,
    sizes: Sizes = SIZES,
) -> Copied:
    """Hand the content of the guest's file ``path`` to ``write``, piece by piece.

    Reads until the end is reached, so files of unknown size (/proc, /sys) come whole. ``checked`` is True if the
    content was at most one chunk, and a second read found the same. ``write`` is called by another thread while the
    next piece is read.

    ``instead`` may fetch a file larger than a chunk in another way. It is called with the file's first bytes, the
    seconds that reading them took, and the file's size, and returns how many bytes it has fetched from the start; the
    rest is read here.

    :raise TransferError: if there is more than ``limit`` allows. No more than that was handed on then.
    """
    beside: Beside[object] = Beside()
    with beside, GuestFile(agent, path) as guest_file:
        out = _Out(guest_file, beside, write, progress, limit, sizes)
        cared_for = out.begin(instead)
        while out.size and out.take():
            pass
        beside.wait()
        whole = out.size >= (out.said if out.size else _size(guest_file) or 0)
        again = whole and out.size <= sizes.chunk and not cared_for
        checked = again and _reads_again(guest_file, 0, out.start, sizes)
    return Copied(out.size, checked, whole)


class _Out:
    """Reads an open file of the guest and hands it to ``write``: ``size`` bytes have arrived.

    ``said`` is the size of a file that is longer than the first read, as the guest said it; 0 if that is unknown.
    ``start`` holds the first pieces, which are compared if the file has no more.
    """

    def __init__(
        self,
        guest_file: GuestFile,
        beside: Beside[object],
        write: Callable[[bytes], object],
        progress: Progress,
        limit: Limit,
        sizes: Sizes,
    ) -> None:
        self.size = self.said = 0
        self.start: list[Encoded] = []
        self._file = guest_file
        self._beside = beside
        self._write = write
        self._progress = progress
        self._limit = limit
        self._sizes = sizes
        self._most, self._error = limit.for_file(guest_file.path, 0, sizes.growth)

    def begin(self, instead: Callable[[Encoded, float, int], int] | None) -> int:
        """Read the beginning, and return how many bytes ``instead`` fetched."""
        began = time.monotonic()
        count = content_size(self._file.agent, self._sizes.first)
        first = self._read(count)
        seconds = time.monotonic() - began
        if first.size == count:
            whole = _size(self._file)
            self.said = whole or 0
            self._most, self._error = self._limit.for_file(self._file.path, self.said, self._sizes.growth)
            if whole and whole > self._most:
                raise self._error
            self.size = instead(first, seconds, whole) if instead and whole and whole > self._sizes.chunk else 0
            if whole is not None:
                self._file.seek(self.size or first.size)
        if self.size:
            return self.size
        self._have(first)
        return 0

    def take(self) -> int:
        """Read the next piece and return its size: 0 at the end of the file."""
        piece = self._read(content_size(self._file.agent, self._sizes.chunk))
        self._have(piece)
        return piece.size

    def _read(self, count: int) -> Encoded:
        # One byte more than the limit shows that the file exceeds it.
        return self._file.receive(min(count, self._most - self.size + 1))

    def _have(self, piece: Encoded) -> None:
        if not piece.size:
            return
        if self.size + piece.size > self._most:
            raise self._error
        self._beside.do(lambda: self._write(piece.decoded()))
        if self.size < self._sizes.chunk:
            self.start.append(piece)
        self.size += piece.size
        self._progress(self.size)


def _size(guest_file: GuestFile) -> int | None:
    """Move to the end of the file and return its size; None if it has none, as in /proc."""
    try:
        return guest_file.seek(0, 2)
    except GuestFileError:
        return None


def _reads_again(guest_file: GuestFile, position: int, pieces: Sequence[Encoded], sizes: Sizes) -> bool:
    content = b"".join(piece.decoded() for piece in pieces)
    if not content:
        return True
    guest_file.seek(position)
    step = content_size(guest_file.agent, sizes.chunk)
    return all(guest_file.read(step) == content[at : at + step] for at in range(0, len(content), step))


def copy_in(
    agent: Agent,
    source: BinaryIO,
    path: str,
    mode: str = "w+",
    *,
    progress: Progress = no_progress,
    sizes: Sizes = SIZES,
) -> Copied:
    """Write ``source`` into the guest's file ``path``, opened with ``mode``, which ends with ``+``.

    The file is created if needed, with mode 0666, but not by C(r+). Before it is closed, its position is compared with
    the bytes sent. ``checked`` is True if the content was at most one chunk, and was read back.

    :raise TransferError: if the guest's file differs from what was sent.
    :raise GuestFileError: among others with errno ENOSPC; a part of the content may be in the file then.
    """
    sent = 0
    start = []  # the first pieces, which are compared if there are no more
    beside: Beside[Encoded] = Beside()

    def prepared() -> Encoded:
        return Encoded.of(source.read(content_size(agent, min(sizes.chunk, agent.largest_content))))

    with beside, GuestFile(agent, path, mode) as guest_file:
        position = guest_file.seek(0, 2) if mode == "a+" else 0
        piece: Encoded | None = prepared()
        while piece and piece.size:
            beside.do(prepared)
            guest_file.send(piece)
            if sent < sizes.chunk:
                start.append(piece)
            sent += piece.size
            progress(sent)
            piece = beside.wait()
        guest_file.flush()
        checked = _arrived(guest_file, position, sent, start, sizes)
    return Copied(sent, checked)


def _arrived(guest_file: GuestFile, start: int, sent: int, pieces: Sequence[Encoded], sizes: Sizes) -> bool:
    """Compare what was sent with what was written from ``start`` on; return whether all content was compared.

    :raise TransferError: if they differ.
    """
    arrived = guest_file.seek(0, 1) - start
    if arrived != sent:
        raise TransferError(f"{sent} bytes were sent to {guest_file.path}, and {arrived} are there")
    if sent > sizes.chunk:
        return False
    if not _reads_again(guest_file, start, pieces, sizes):
        raise TransferError(f"{guest_file.path} reads back differently from what was written")
    return True
