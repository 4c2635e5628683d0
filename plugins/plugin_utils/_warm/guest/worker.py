# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: warm interpreters (zygote.py) as their server sees them, and the requests that it hands them.

An interpreter may be another user's, and under that user's control. So nothing that it sends is trusted: it is limited
in size and checked, and what is out of shape ends that interpreter and nothing else.
"""

from __future__ import annotations

import _socket
import itertools
import json
import os
import time
from contextlib import suppress

from .payload_cache import MOST_ARCHIVES
from .task_output import LOST, Task
from .wire import (
    LARGEST_STATUS,
    NOT_RUN,
    READY,
    RECORD,
    STALE,
    STAYS,
    Asked,
    frame,
    records,
    rights,
)

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from typing import Any

    from .fingerprint import Surroundings
    from .launch import Spawned

# How long a request waits for an interpreter, from its start: that takes about as long as the task would without.
START_SECONDS = 10.0
END_SECONDS = 5.0  # how long results are kept for those who wait, when it is told to end
# How long an interpreter stays without work that others want to be gone: its user cannot be removed meanwhile.
GUEST_SECONDS = 5.0
# How long an interpreter may leave unread what it is sent.
STUCK_SECONDS = 10.0
MOST_SAID = 64 << 10  # bytes that an interpreter may say at its start, on each of its streams


class Outgoing:
    """A request on its way to an interpreter: what is still to be sent of it, and the descriptors that go with it."""

    def __init__(self, serial: int, data: bytes, streams: list[int]) -> None:
        self.serial = serial
        self.data: Any = memoryview(data)
        self.streams = streams

    def close(self) -> None:
        for stream in self.streams:
            os.close(stream)
        self.streams = []


class Interpreter:
    """A warm interpreter: from its start until it is dropped. Without ``marker`` it has not come by become.

    ``path`` is PATH as it was before its command, and ``surroundings`` are from before that, too.
    """

    def __init__(self, spawned: Spawned, surroundings: Surroundings, marker: str, path: str) -> None:
        self.socket, self.errors = spawned
        self.socket.setblocking(False)
        # What is sent out of turn comes in turn, with all that belongs to it.
        self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_OOBINLINE, 1)
        os.set_blocking(self.errors, False)
        self.surroundings = surroundings
        self.ready = False
        self.stays = False  # without work, too
        self.dead = False
        self.failed = False  # it has never been ready, and is not to be tried again
        # By a number of each one's own: of one that has told its status, the end of the process is heard of later.
        self.tasks: dict[int, Task] = {}
        self.serials = itertools.count(1)
        self.queue: list[Outgoing] = []
        self.known: list[str] = []  # archives that it has
        self.marker = marker
        self.path = path
        self.leaves = 0.0  # since when it is to end
        self.began = self.used = self.moved = time.monotonic()
        self.heard = self.preamble = self.said = b""

    @property
    def starts(self) -> bool:
        """Whether it is worth while to wait for it."""
        return not self.ready and not self.dead and time.monotonic() - self.began < START_SECONDS

    @property
    def is_overdue(self) -> bool:
        """Whether it is to end, because nothing came for it and it is not one that stays."""
        idle = not self.tasks and time.monotonic() - self.used > GUEST_SECONDS
        return idle and self.ready and not self.stays

    def leave(self) -> bool:
        """Have it end, if it is not at work; return whether it has, or has taken too long for that."""
        if self.tasks:
            return False
        if not self.leaves:
            self.leaves = time.monotonic()
            with suppress(OSError):
                self.socket.shutdown(_socket.SHUT_WR)
        return self.dead or time.monotonic() - self.leaves > END_SECONDS

    def close(self) -> None:
        """Let go of it, whatever it does."""
        self.end()
        os.close(self.errors)

    # What it says

    def listen(self) -> None:
        """Take what the interpreter has sent. Where descriptors come with it, it is left where it is: see let_go."""
        try:
            data, _none, flags, _address = self.socket.recvmsg(1 << 12, 0, _socket.MSG_PEEK)
            data = b"" if flags & _socket.MSG_CTRUNC else self.socket.recv(len(data))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        self.heard += data
        if not self.ready:
            self.take_preamble()
        if self.ready:
            self.take_records()

    def take_preamble(self) -> None:
        """Look for the end of what its command line says before it is ready."""
        before, mark, rest = self.heard.partition(READY)
        if len(before) > MOST_SAID:
            self.end()
        elif mark and rest:
            self.preamble, self.heard = before, rest[1:]
            self.stays = rest[0] == STAYS
            self.said += self.read_errors()
            # What changed while it started may have been seen before or after.
            self.ready = self.surroundings.same()
            if not self.ready:
                self.end()

    def take_records(self) -> None:
        size = len(self.heard) // RECORD * RECORD
        told, self.heard = records(self.heard[:size]), self.heard[size:]
        for serial, status in told:
            if status > LARGEST_STATUS or serial not in self.tasks:
                self.end()
                return
            self.tasks[serial].rc = status

    def read_errors(self) -> bytes:
        """Return what it has written to its error stream, as much of it as is kept."""
        try:
            return os.read(self.errors, MOST_SAID)
        except OSError:
            return b""

    def last_words(self) -> bytes:
        """Return the last line of what it has said as it ended."""
        return self.read_errors().strip().rpartition(b"\n")[2][:200]

    def end(self) -> None:
        """Have nothing more to do with it: it has ended, or what it says makes no sense."""
        if self.dead:
            return
        self.dead = True
        self.failed = not self.ready
        if self.marker:
            let_go(self.socket)
        else:
            self.socket.close()
        unsent = {one.serial for one in self.queue}
        for serial, task in self.tasks.items():
            if task.rc is None:
                task.rc = NOT_RUN if serial in unsent else LOST
        for one in self.queue:
            one.close()
        self.queue = []

    # What it is told

    def hand_over(self, number: int, asked: Asked, path: str) -> None:
        """Give it a request; the task's files begin with ``path``.

        :raise OSError: if there is no room for what that takes; nothing was given to it then.
        """
        was, now = self.marker.encode("ascii"), asked.marker.encode("ascii")
        preamble, errors = (text.replace(was, now) if was else text for text in (self.preamble, self.said))
        serial = next(self.serials)
        task = Task(number, asked, path, preamble, errors)
        streams, task.theirs = task.theirs, []
        self.tasks[serial] = task
        self.queue.append(Outgoing(serial, self.packed(serial, asked), streams))
        self.used = self.moved = time.monotonic()
        self.send()

    def packed(self, serial: int, asked: Asked) -> bytes:
        """Return a request as the interpreter reads it, with its archive if that is new there."""
        forget: list[str] = []
        content = b""
        if asked.archive and asked.archive not in self.known:
            self.known.append(asked.archive)
            self.known, forget = self.known[-MOST_ARCHIVES:], self.known[:-MOST_ARCHIVES]
            content = asked.content
        header = {
            "number": serial,
            "archive": asked.archive,
            "before": asked.before,
            "forget": forget,
            "call": asked.call,
            "in_time": asked.in_time,
        }
        return frame(json.dumps(header).encode("ascii"), content, asked.program)

    def send(self) -> None:
        """Send as much of what is to be sent as it takes now."""
        while self.queue:
            first = self.queue[0]
            try:
                sent = self.socket.sendmsg([first.data], rights(first.streams))
            except BlockingIOError:
                if time.monotonic() - self.moved > STUCK_SECONDS:
                    self.end()
                return
            except OSError:
                self.end()
                return
            self.moved = time.monotonic()
            first.close()
            first.data = first.data[sent:]
            if not first.data:
                self.queue.pop(0)

    def retire_stale(self) -> list[Task]:
        """Return the tasks that it did not take because it is stale; they are another's now."""
        stale = [serial for serial, task in self.tasks.items() if task.rc == STALE]
        return [self.tasks.pop(serial) for serial in stale]


def let_go(theirs: _socket.socket) -> None:
    """Close a socket into which another user may have put descriptors, as the last one that has them.

    To close these can take as long as that user likes (SO_LINGER), but in a process that ends it takes no time. So that
    is what closes it last.
    """
    waits, goes = os.pipe()
    try:
        if not os.fork():
            try:
                os.close(goes)
                os.read(waits, 1)  # until this process has closed it
            finally:
                os._exit(0)
        theirs.close()
    except OSError:  # there is no room for a process; it stays open
        theirs.detach()
    os.close(waits)
    os.close(goes)
