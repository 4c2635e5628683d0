# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: what the server and its interpreters send each other. Each interpreter has a stream socket of its own.

An interpreter may belong to another user than the server. So it is given bytes, and the write ends of two pipes for
each request, and no other descriptor. It sends READY once, and then records of fixed size.

A request is three sizes, of four bytes each, and three parts of these sizes: a header (JSON), the content of a module's
archive if the interpreter lacks that, and the program. The pipes come with the first byte.
"""

from __future__ import annotations

import _socket
import array
import json
import os
import signal
from contextlib import suppress

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

READY = b"\0qemu.guest ready\n"
"""Comes before the first record. The byte after it is STAYS, or the interpreter is to end soon without work."""
STAYS = 1

RECORD = 6
"""Bytes of a record: a request's serial number (4) and its status (2): an exit status or one of the values below."""
NOT_RUN = 256  # there was no room for a child
STALE = 257  # nothing was run, because files that the interpreter was started from have changed
LARGEST_STATUS = STALE

_SIZE = 4
_SIZES = 3 * _SIZE
_PIPE = 1 << 16  # bytes that a pipe holds, on Linux


def record(serial: int, status: int) -> bytes:
    """Return the record that tells the ``status`` of a request."""
    return serial.to_bytes(4, "little") + status.to_bytes(2, "little")


def records(data: bytes) -> list[tuple[int, int]]:
    """Return ``(serial, status)`` of each whole record in ``data``."""
    starts = range(0, len(data) - RECORD + 1, RECORD)
    return [(int.from_bytes(data[n : n + 4], "little"), int.from_bytes(data[n + 4 : n + 6], "little")) for n in starts]


class InterpreterRequest:
    """A request to an interpreter: to run a module or a shell command.

    A module's ``archive`` is a digest, and ``content`` is that of the archive, if it is new. In the ``program``
    around it, its place is ``split_at`` bytes from the start. Without one, the first ``split_at`` bytes are a command
    and the rest is its input; ``call`` is a function of shell_runner.py that does the same, and its arguments.
    ``streams`` are the write ends of the pipes for output and errors.
    """

    def __init__(self, header: bytes, content: bytes, program: bytes, streams: Sequence[int] = ()) -> None:
        said = json.loads(header.decode("ascii"))
        self.header = header
        self.content = content
        self.program = program
        self.streams = list(streams)
        self.serial: int = said["serial"]
        self.archive: str = said["archive"]
        self.split_at: int = said["split_at"]
        self.forget: list[str] = said["forget"]
        self.call: list[str | int] = said["call"]
        self.in_time: bool = said["in_time"]

    def frame(self) -> bytes:
        """Return the bytes of the request; the streams go with the first one."""
        return frame(self.header, self.content, self.program)

    def close(self) -> None:
        for stream in self.streams:
            os.close(stream)


def frame(*pieces: bytes) -> bytes:
    """Return the bytes of a request: header, content and program."""
    return b"".join([len(piece).to_bytes(_SIZE, "little") for piece in pieces]) + b"".join(pieces)


def rights(streams: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data by which sendmsg() sends descriptors."""
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", streams).tobytes())] if streams else []


def receive(connection: _socket.socket) -> InterpreterRequest | None:
    """Wait for the next request and return it; None if there will be none."""
    streams: array.array[int] = array.array("i")
    sizes = b""
    while len(sizes) < _SIZES:
        data, ancillary, _flags, _address = connection.recvmsg(
            _SIZES - len(sizes), _socket.CMSG_LEN(2 * streams.itemsize), _socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, handed in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                streams.frombytes(handed[: len(handed) - len(handed) % streams.itemsize])
        if not data:
            return None
        sizes += data
    pieces = []
    for start in range(0, _SIZES, _SIZE):
        piece = _received(connection, int.from_bytes(sizes[start : start + _SIZE], "little"))
        if piece is None:
            return None
        pieces.append(piece)
    return InterpreterRequest(pieces[0], pieces[1], pieces[2], streams)


def _received(connection: _socket.socket, size: int) -> bytes | None:
    content = bytearray(size)
    view: Any = memoryview(content)
    while view:
        got = connection.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return bytes(content)


def input_pipe(data: bytes) -> int:
    """Return the read end of a pipe that ends after ``data``: it cannot be read twice, or written to."""
    source, sink = os.pipe()
    try:
        if len(data) > _PIPE:
            _feed(source, sink, data)
        else:
            os.write(sink, data)
    except OSError:  # there is no room for a process
        os.close(source)
        raise
    finally:
        os.close(sink)
    return source


def _feed(source: int, sink: int, data: bytes) -> None:
    """Write to a pipe from a process that is not a child of this one."""
    child = os.fork()
    if not child:
        try:
            if not os.fork():
                os.dup2(sink, 0)
                os.closerange(1, 1 << 12)  # otherwise readers of these would wait for this process to end
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                view: Any = memoryview(data)
                while view:
                    view = view[os.write(0, view) :]
        finally:
            os._exit(0)
    with suppress(ChildProcessError):  # where the system reaps them
        os.waitpid(child, 0)
