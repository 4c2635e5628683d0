# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: tasks at work, and what becomes of their output and their exit status (_warm_server.py)."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from typing import BinaryIO

MOST_KEPT = 64 << 10  # bytes of output that are given out with the exit status
# In place of an exit status: the interpreter has ended, or had no room for a child.
LOST = -1
NOT_RUN = -2


class Output:
    """What a task writes to one of its streams: kept here as long as it is short, else in the file ``path``."""

    def __init__(self, path: str, letter: str, text: bytes) -> None:
        self.path = path
        self.letter = letter
        self.kept = text
        self.file: BinaryIO | None = None
        self.lost = False  # a part of it: there was no room

    def write(self, data: bytes) -> None:
        if self.file is None and len(self.kept) + len(data) <= MOST_KEPT:
            self.kept += data
            return
        try:
            if self.file is None:
                data, self.kept = self.kept + data, b""
                self.file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - it is open while the task is at work
            self.lost = self.lost or self.file.write(data) != len(data)
        except OSError:
            self.lost = True

    def close(self) -> None:
        if self.file:
            self.file.close()

    def where(self) -> str:
        return self.letter if self.file else f"={len(self.kept)}" if self.kept else "-"


class Task:
    """A task at work: where its output comes from and goes to. ``rc`` is None until its process tells, or has ended.

    ``number`` is its client's, who has one for one task after another.

    It tells by writing to its ``input``, a descriptor of its own here, behind what was there.
    """

    def __init__(self, number: int, path: str, preamble: bytes, errors: bytes, input: int) -> None:
        self.number = number
        self.rc: int | None = None
        self.input = input
        self.size = os.fstat(input).st_size
        self.outputs = (Output(f"{path}.out", "o", preamble), Output(f"{path}.err", "e", errors))
        self.streams: dict[int, Output] = {}  # where it comes from: where it goes to
        self.theirs = []
        for output in self.outputs:
            source, sink = os.pipe()
            self.streams[source] = output
            self.theirs.append(sink)

    def copy(self, source: int) -> None:
        """Take what has come from one of the streams."""
        data = os.read(source, 1 << 16)
        if data:
            self.streams[source].write(data)
        else:
            self.streams.pop(source).close()
            os.close(source)
            if not self.streams and self.rc is None:
                self.rc = self.told()

    def told(self) -> int | None:
        word = os.pread(self.input, 5, self.size)
        return int(word) if word.endswith(b"\n") else None

    @property
    def ended(self) -> bool:
        return self.rc is not None and not self.streams

    def drop(self) -> None:
        """Forget a task that nobody has begun."""
        os.close(self.input)
        for source in self.streams:
            os.close(source)

    def result(self) -> bytes:
        """Return the answer; nothing if its interpreter has ended and it did not tell its status itself."""
        rc = self.told() if self.rc == LOST else self.rc
        os.close(self.input)
        if rc is None:
            return b""
        if rc == NOT_RUN:
            return b"plain\n"
        out, err = self.outputs
        whole = "lost" if out.lost or err.lost else "."
        return f"{rc} {out.where()} {err.where()} {whole}\n".encode("ascii") + out.kept + err.kept
