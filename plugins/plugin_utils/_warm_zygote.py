# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: an interpreter that forks for each request, what it forks for having been imported already.

It is started by the very command line that it stands in for, become included, and read from standard input like a
module, with what it is for behind it: modules (_warm_modules.py) or shell commands (_warm_commands.py). Its standard
output is a socket to _warm_server.py; of standard descriptors, that one survives sudo and su. A message there is a
request (see Request), with the descriptors of its input, output and errors. A child takes these as its own. There is
always a child that waits for the next request: forking a process of this size takes a while.

What modules need and commands do not is imported there: this is all that a guest's first command waits for.
"""

from __future__ import annotations

import _socket
import array
import gc
import json
import os
import select
import signal
import stat
import sys
from contextlib import closing, suppress

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

READY = b"\0qemu.guest ready\n"
NOT_RUN = -2  # in place of an exit status
LARGEST = 1 << 16


class Request:
    """What the server asks for: to run a module or a shell command.

    A module's ``archive`` is told by a digest; ``content`` is a file with that and its table, if they are new here. The
    program around it is in the first of the ``files``, from offset ``start`` on, the archive's place in it ``before``
    bytes further. Without an archive there is a command of ``before`` bytes, and what follows is its input.
    """

    def __init__(self, message: bytes, descriptors: list[int]) -> None:
        said = json.loads(message.decode("ascii"))
        self.message = message
        self.number: int = said["number"]
        self.archive: str = said["archive"]
        self.start: int = said["start"]
        self.before: int = said["before"]
        self.forget: list[str] = said["forget"]
        files = dict(zip(said["files"], descriptors))  # noqa: B905 - Python 3.10
        self.descriptors = list(files.values())
        self.content: int | None = files.pop("content", None)
        self.files = list(files.values())

    def program(self) -> bytes:
        """Return all that comes from ``start`` on, without reading it."""
        return os.pread(self.files[0], os.fstat(self.files[0]).st_size, self.start)

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Work:
    """What an interpreter is for."""

    lessons = 0  # what is still to be learnt of what came, as long as nobody asks for anything

    def expect(self, recipe: bytes, code: bytes) -> None:
        """Get ready for an archive that will come, by its recipe and its code, if that is there already."""

    def begin(self) -> None:
        """Get ready for what comes first."""

    def prepare(self) -> None:
        """Get ready for what comes later, when something has come: as long as nobody asks for anything."""

    def note(self, request: Request) -> None:
        """Keep what a request brings. A child that has waited does so too."""

    def learns(self, request: Request) -> bool:
        """Learn of a request, before a child is forked for it, what all need; return whether that is new."""
        return False

    def take_lesson(self) -> None:
        """Learn what else others may need."""

    def wait(self) -> None:
        """In a child that is to wait for a request: get ready for that."""

    def look_after(self, process: int) -> float | None:
        """Return after how many seconds without anything else to do a child at work is to be looked at, if at all."""
        return None

    def look(self, process: int) -> None:
        """Look at a child at work."""

    def run(self, request: Request, last_word: LastWord) -> NoReturn:
        """In a child: do what it was forked for, with its standard descriptors, and end."""
        raise NotImplementedError


class LastWord:
    """How a task tells its exit status before its process ends, which takes a while: behind its input, in that file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.file = os.fstat(descriptor)

    def say(self, code: int) -> None:
        with suppress(OSError):  # then the zygote will tell
            now = os.fstat(self.descriptor)
            if (now.st_dev, now.st_ino) == (self.file.st_dev, self.file.st_ino):
                os.pwrite(self.descriptor, b"%d\n" % code, self.file.st_size)
                os.close(1)
                os.close(2)


class Zygote:
    """The parent: it hands requests to children."""

    def __init__(self, server: _socket.socket, work: Work) -> None:
        self.server = server
        self.work = work
        self.children: dict[int, int] = {}  # process: number of its request
        self.spare: tuple[int, _socket.socket] | None = None  # a child that waits, and where it does
        self.ended, self.wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.beside = len(os.sched_getaffinity(0)) > 1  # whether a child is forked while another works
        self.crowded = False  # there was no room for a child
        self.asked = False  # for anything
        self.prepared = False

    def serve(self) -> Request:
        """Serve until the server has gone; return in a child only, with what it is to do."""
        self.work.begin()
        gc.disable()  # it takes time, and there is little to collect; not in children
        watched = [sys.executable, os.path.realpath(sys.executable), *sys.path[1:]]
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.server.sendall(READY + json.dumps(watched).encode("ascii"))
        while True:
            patience, chore = self.chore()
            sources: list[_socket.socket | int] = [self.server, self.ended]
            busy = select.select(sources, [], [], patience)[0]
            if self.ended in busy:
                os.read(self.ended, 4096)
                self.report()
            if self.server in busy:
                request = receive(self.server)
                if not request:
                    os._exit(0)
                mine = self.hand_over(request)
            else:
                mine = None if busy else chore()
            if mine:
                return mine

    def chore(self) -> tuple[float | None, Callable[[], Request | None]]:
        """Return what is to be done when nobody asks for anything, and after how many seconds (None: never).

        A task that is at work, or comes, goes before what is done for later ones.
        """
        if self.asked and not self.crowded and (self.beside or not self.children):
            if not self.prepared:
                return 0, self.prepare
            if self.work.lessons:  # first: a spare child would not have it
                return 0, self.work.take_lesson
            if not self.spare:
                return 0, self.fork_spare
        if self.children:
            child = max(self.children)
            return self.work.look_after(child), lambda: self.work.look(child)
        return None, lambda: None

    def prepare(self) -> None:
        self.prepared = True
        self.work.prepare()

    def hand_over(self, request: Request) -> Request | None:
        """Give a request to a child; in one that is forked for it, return it."""
        self.asked = True
        self.work.note(request)
        if self.work.learns(request):
            self.end_spare()  # which has not
        pid = self.give_spare(request) or self.fork()
        if pid == 0:
            self.leave()
            return request
        if pid is None:
            self.tell(request.number, NOT_RUN)
            request.close()
            return None
        self.children[pid] = request.number
        request.close()
        return None

    def fork(self) -> int | None:
        """Fork a child and return its process, 0 in there; None if there is no room for one."""
        try:
            pid = os.fork()
        except OSError:
            self.crowded = True
            return None
        self.crowded = False
        return pid

    def fork_spare(self) -> Request | None:
        """Fork the child that takes the next request, and return that there."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        pid = self.fork()
        if pid != 0:
            theirs.close()
            if pid:
                self.spare = pid, ours
            else:
                ours.close()
            return None
        self.leave()
        ours.close()
        self.work.wait()
        # Closed by its name: a socket that is forgotten later would close a number that is somebody else's by then.
        with closing(theirs):
            request = receive(theirs)
        if not request:
            os._exit(0)
        self.work.note(request)
        return request

    def give_spare(self, request: Request) -> int:
        """Give a request to the child that waits for one; return its process, 0 if there is none."""
        if not self.spare:
            return 0
        pid, its_socket = self.spare
        rights = array.array("i", request.descriptors).tobytes()
        try:
            its_socket.sendmsg([request.message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except OSError:  # somebody has killed it
            pid = 0
        self.end_spare()
        return pid

    def end_spare(self) -> None:
        """Let the child go that waits; it ends unless it was given something."""
        if self.spare:
            self.spare[1].close()
            self.spare = None

    def leave(self) -> None:
        """In a child: be a process that has just been started."""
        self.server.close()
        os.close(self.ended)
        os.close(self.wake)
        gc.enable()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()

    def report(self) -> None:
        """Tell the server of children that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.children:  # not a spare one
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                self.tell(self.children.pop(pid), code)

    def tell(self, number: int, code: int) -> None:
        self.server.sendall(json.dumps({"number": number, "rc": code}).encode("ascii"))


def receive(connection: _socket.socket) -> Request | None:
    """Return the next request; None if there will be none."""
    descriptors: array.array[int] = array.array("i")
    message, ancillary, _flags, _address = connection.recvmsg(
        LARGEST, _socket.CMSG_LEN(4 * descriptors.itemsize), _socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return Request(message, list(descriptors)) if message else None


def main(work: Work) -> NoReturn:
    """Serve, and in each child run what it was forked for."""
    if not stat.S_ISSOCK(os.fstat(1).st_mode):
        os._exit(1)
    request = Zygote(_socket.socket(fileno=os.dup(1)), work).serve()
    for number, descriptor in enumerate(request.files):
        os.dup2(descriptor, number)
    last_word = LastWord(0)
    os.closerange(3, 256)
    work.run(request, last_word)
