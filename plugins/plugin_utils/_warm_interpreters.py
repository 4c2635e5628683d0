# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: warm interpreters (_warm_zygote.py) as their server sees them, and the requests that it hands them."""

from __future__ import annotations

import _socket
import array
import itertools
import json
import os
import time
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.plugin_utils._warm_archives import MOST_ARCHIVES
from ansible_collections.qemu.guest.plugins.plugin_utils._warm_tasks import LOST, Task

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from typing import BinaryIO

    from ansible_collections.qemu.guest.plugins.plugin_utils._warm_start import Spawned
    from ansible_collections.qemu.guest.plugins.plugin_utils._warm_surroundings import Surroundings

READY = b"\0qemu.guest ready\n"
LARGEST = 1 << 16
# How long a request waits for an interpreter, from its start: that takes about as long as the task would without.
START_SECONDS = 10.0
END_SECONDS = 5.0  # how long results are kept for those who wait, when it is told to end


class Request:
    """A request: its header, the open file whose offset ``start`` is where the rest is, and that of the archive."""

    def __init__(self, line: bytes, file: BinaryIO, start: int) -> None:
        os.lseek(file.fileno(), start, os.SEEK_SET)  # for who takes it as standard input
        header = json.loads(line.decode("ascii"))
        self.file = file
        self.start = start
        self.key: str = header["key"]
        self.command: str = header["command"]  # of the interpreter; empty for a shell command
        self.marker: str = header["marker"]
        self.path: str = header["path"]
        self.archive: str = header["archive"]
        self.before: int = header["before"]
        self.users: bool = header["users"]  # whether it may remove a user, who must not have processes then
        self.content: BinaryIO | None = None


class Interpreter:
    """A warm interpreter: from its start until it is dropped. Without ``marker`` it has not come by become.

    ``path`` is PATH as it was before its command, and ``surroundings`` are from before that, too.
    """

    def __init__(self, spawned: Spawned, surroundings: Surroundings, marker: str, path: str) -> None:
        self.socket, self.errors = spawned
        self.surroundings = surroundings
        self.ready = False
        self.dead = False
        self.failed = False  # it has never been ready, and is not to be tried again
        # By a number of each one's own: of one that has told its status, the end of the process is heard of later.
        self.tasks: dict[int, Task] = {}
        self.serials = itertools.count(1)
        self.known: list[str] = []  # archives that it has
        self.marker = marker
        self.path = path
        self.leaves = 0.0  # since when it is to end
        self.began = self.used = time.monotonic()
        self.preamble = b""

    @property
    def starts(self) -> bool:
        """Whether it is worth while to wait for it."""
        return not self.ready and not self.dead and time.monotonic() - self.began < START_SECONDS

    def leave(self) -> bool:
        """Have it end, if it is not at work; return whether it has, or has taken too long for that."""
        if self.tasks:
            return False
        if not self.leaves:
            self.leaves = time.monotonic()
            with suppress(OSError):
                self.socket.shutdown(_socket.SHUT_WR)
        return self.dead or time.monotonic() - self.leaves > END_SECONDS

    def listen(self) -> None:
        """Take a message from the interpreter."""
        try:
            message = self.socket.recv(LARGEST)
        except OSError:
            message = b""
        if not message:
            self.dead = True
            self.failed = not self.ready
            for task in self.tasks.values():
                task.rc = LOST
        elif self.ready:
            ended = json.loads(message.decode("ascii"))
            if ended["number"] in self.tasks:
                self.tasks[ended["number"]].rc = ended["rc"]
        else:
            before, mark, paths = message.partition(READY)
            self.preamble += before
            if mark:
                # What changed while it started may have been seen before or after.
                self.ready = self.surroundings.same()
                self.dead = not self.ready
                self.surroundings.watch(json.loads(paths.decode("ascii")))

    def last_words(self) -> bytes:
        """Return the last line of what it has said as it ended."""
        self.errors.seek(0)
        return self.errors.read().strip().rpartition(b"\n")[2][:200]

    def hand_over(self, number: int, request: Request, path: str) -> bool:
        """Give a request to the interpreter; return False if it has ended, unheard of yet: then nothing was run."""
        self.errors.seek(0)
        was, now = self.marker.encode("ascii"), request.marker.encode("ascii")
        preamble, errors = (text.replace(was, now) if was else text for text in (self.preamble, self.errors.read()))
        serial = next(self.serials)
        task = Task(number, path, preamble, errors, os.dup(request.file.fileno()))
        out, err = task.theirs
        given = self.say(serial, request, {"in": request.file.fileno(), "out": out, "err": err})
        os.close(out)
        os.close(err)
        self.used = time.monotonic()
        if given:
            self.tasks[serial] = task
        else:
            task.drop()
        return given

    def say(self, serial: int, request: Request, files: dict[str, int]) -> bool:
        """Hand a request over; return False if nobody is there: then ``listen`` will hear of its end."""
        forget: list[str] = []
        if request.content and request.archive not in self.known:
            self.known.append(request.archive)
            self.known, forget = self.known[-MOST_ARCHIVES:], self.known[:-MOST_ARCHIVES]
            files["content"] = request.content.fileno()
        message = {
            "number": serial,
            "archive": request.archive,
            "start": request.start,
            "before": request.before,
            "forget": forget,
            "files": list(files),
        }
        rights = array.array("i", files.values()).tobytes()
        try:
            self.socket.sendmsg(
                [json.dumps(message).encode("ascii")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)]
            )
        except OSError:
            return False
        return True
