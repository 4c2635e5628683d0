# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: tasks at work, their output and their exit status (server.py)."""

from __future__ import annotations

import os

from .frames import NOT_RUN
from .wire import LARGEST_OUTPUT, MOST_OUTPUT, PLAIN

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from typing import BinaryIO

    from .wire import ClientRequest

# In place of an exit status: the interpreter has ended.
LOST = -1


class Room:
    """The bytes that one task's output may take in the spool: three quarters of what is free. Others need the rest.

    Each stream has at most ``largest``.
    """

    def __init__(self, spool: str, largest: int) -> None:
        self.largest = largest
        there = os.statvfs(spool)
        self.left = there.f_bavail * there.f_frsize * 3 // 4

    def take(self, size: int) -> bool:
        """Count ``size`` more bytes; return whether there is room for them."""
        self.left -= size
        return self.left >= 0


class Output:
    """A task's output to one stream: kept here as long as it is short, else in the file ``path``."""

    def __init__(self, path: str, letter: str, text: bytes, room: Room) -> None:
        self.path = path
        self.letter = letter
        self.kept = text
        self.room = room
        self.file: BinaryIO | None = None
        self.lost = False  # a part of it: there was no room

    def write(self, data: bytes) -> None:
        if self.file is None and len(self.kept) + len(data) <= MOST_OUTPUT:
            self.kept += data
            return
        if self.lost:
            return
        try:
            if self.file is None:
                data, self.kept = self.kept + data, b""
                self.file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - it is open while the task is at work
            fits = self.room.take(len(data)) and self.file.tell() + len(data) <= self.room.largest
            self.lost = not fits or self.file.write(data) != len(data)
        except OSError:
            self.lost = True
        if self.lost and self.file:
            self.file.truncate(0)  # a part is never read, and others need the room

    def close(self) -> None:
        if self.file:
            self.file.close()

    def where(self) -> str:
        return self.letter if self.file else f"={len(self.kept)}" if self.kept else "-"


class Task:
    """A task at work, and its output. ``rc`` is None until its end was reported.

    ``request`` is the request, and ``number`` that of its client. ``largest`` is how much of each stream is kept.
    """

    def __init__(
        self,
        number: int,
        request: ClientRequest,
        path: str,
        preamble: bytes,
        errors: bytes,
        largest: int = LARGEST_OUTPUT,
    ) -> None:
        self.number = number
        self.request = request
        self.rc: int | None = None
        room = Room(os.path.dirname(path), largest)
        self.outputs = (Output(f"{path}.out", "o", preamble, room), Output(f"{path}.err", "e", errors, room))
        self.streams: dict[int, Output] = {}  # read end of a pipe: output
        self.theirs: list[int] = []
        for output in self.outputs:
            source, sink = os.pipe()
            self.streams[source] = output
            self.theirs.append(sink)

    def copy(self, source: int) -> None:
        """Read from one of the pipes."""
        data = os.read(source, 1 << 16)
        if data:
            self.streams[source].write(data)
        else:
            self.streams.pop(source).close()
            os.close(source)

    @property
    def ended(self) -> bool:
        return self.rc is not None and (not self.streams or not 0 <= self.rc < NOT_RUN)

    def drop(self) -> None:
        """Close the pipes and files that are still open."""
        for descriptor in (*self.streams, *self.theirs):
            os.close(descriptor)
        self.streams, self.theirs = {}, []
        for output in self.outputs:
            output.close()

    def result(self) -> bytes:
        """Return the answer; nothing if the interpreter has ended while the task was at work."""
        if self.rc == NOT_RUN:
            return PLAIN
        if self.rc is None or self.rc == LOST:
            return b""
        out, err = self.outputs
        whole = "lost" if out.lost or err.lost else "."
        return f"{self.rc} {out.where()} {err.where()} {whole}\n".encode("ascii") + out.kept + err.kept
