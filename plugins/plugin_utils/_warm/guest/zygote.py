# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: an interpreter that forks for each request, what it forks for having been imported already.

It is started by the very command line that it stands in for, become included, but without its site (-S), and read from
standard input like a module, with what it is for behind it: modules (module_runner.py) or shell commands
(file_ops.py). Its standard output is a socket to server.py; of standard descriptors, that one survives sudo
and su. See wire.py for what is said there, and fresh.py for what a child of it is.

There is always a child that waits for the next request: forking a process of this size takes a while. What modules need
and commands do not is imported there: this is all that a guest's first command waits for.
"""

from __future__ import annotations

import _socket
import gc
import mmap
import os
import select
import signal
import stat
import sys
from contextlib import closing, suppress

from .fresh import (
    UNSAFE,
    Fingerprint,
    leave_directory,
    reset_signals,
)
from .wire import (
    NOT_RUN,
    READY,
    STALE,
    STAYS,
    Request,
    input_pipe,
    receive,
    record,
    rights,
)

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# Children that can be at work at once, and bytes by which each tells its status.
MOST_CHILDREN = 1024
SLOT = 2


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

    def input_of(self, request: Request) -> bytes:
        """Return what a child reads from its standard input."""
        return b""

    def run(self, request: Request, last_word: LastWord) -> NoReturn:
        """In a child: do what it was forked for, with its standard descriptors, and end."""
        raise NotImplementedError


class Board(mmap.mmap):
    """Memory that the parent shares with its children, where each has a slot for its exit status.

    A descriptor would do as well, but a new process has none besides its standard ones.
    """

    def write_status(self, slot: int, status: int) -> None:
        self[slot * SLOT : (slot + 1) * SLOT] = (status + 1).to_bytes(SLOT, "little")

    def read_status(self, slot: int) -> int | None:
        """Return the status; None if there is none."""
        said = int.from_bytes(self[slot * SLOT : (slot + 1) * SLOT], "little")
        return said - 1 if said else None

    def clear(self, slot: int) -> None:
        self[slot * SLOT : (slot + 1) * SLOT] = bytes(SLOT)


class LastWord:
    """How a task tells its exit status before its process ends, which takes a while."""

    def __init__(self, board: Board, slot: int) -> None:
        self.board = board
        self.slot = slot
        self.parent = os.getppid()

    def say(self, code: int) -> None:
        self.board.write_status(self.slot, code)
        with suppress(OSError):  # the task has closed them, or is another user by now: then its end will tell
            os.close(1)
            os.close(2)
            if os.getppid() == self.parent:
                os.kill(self.parent, signal.SIGCHLD)


class Child:
    """A child at work: the ``number`` of its request, None when its status was told; and its ``slot``."""

    def __init__(self, number: int | None, slot: int) -> None:
        self.number = number
        self.slot = slot


class Zygote:
    """The parent: it hands requests to children."""

    def __init__(self, server: _socket.socket, work: Work, fingerprint: Fingerprint) -> None:
        self.server = server
        self.work = work
        self.fingerprint = fingerprint
        self.directory = leave_directory()
        self.children: dict[int, Child] = {}  # by their processes
        self.board = Board(-1, MOST_CHILDREN * SLOT)
        self.free = list(range(MOST_CHILDREN))  # slots
        self.slot = 0  # of the child that was forked last; in a child, its own
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
        self.fingerprint.update()
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # What is another user's, or keeps a filesystem busy that may be unmounted, does not stay without work.
        stays = os.geteuid() == 0 and bool(self.directory) and self.fingerprint.is_at_home()
        self.server.sendall(READY + bytes([STAYS if stays else 0]))
        while True:
            patience, chore = self.chore()
            sources: list[_socket.socket | int] = [self.server, self.ended]
            busy = select.select(sources, [], [], patience)[0]
            if self.ended in busy:
                os.read(self.ended, 4096)
                self.collect()
                self.reap()
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
                return 0, self.take_lesson
            if not self.spare:
                return 0, self.fork_spare
        if self.children:
            child = max(self.children)
            return self.work.look_after(child), lambda: self.work.look(child)
        return None, lambda: None

    def prepare(self) -> None:
        self.prepared = True
        self.work.prepare()
        self.fingerprint.update()

    def take_lesson(self) -> None:
        self.work.take_lesson()
        self.fingerprint.update()

    def hand_over(self, request: Request) -> Request | None:
        """Give a request to a child; in one that is forked for it, return it."""
        if self.fingerprint.changed():
            self.tell(request.number, STALE)
            request.close()
            return None
        self.asked = True
        self.work.note(request)
        if self.work.learns(request):
            self.fingerprint.update()
            self.end_spare()  # which has not
        pid = self.give_spare(request) or self.fork()
        if pid == 0:
            self.leave()
            self.return_to_directory()
            return request
        if pid is None:
            self.tell(request.number, NOT_RUN)
        else:
            self.children[pid].number = request.number
        request.close()
        return None

    def fork(self) -> int | None:
        """Fork a child and return its process, 0 in there; None if there is no room for one."""
        self.crowded = True
        if not self.free:
            return None
        self.slot = self.free[-1]
        try:
            pid = os.fork()
        except OSError:
            return None
        self.crowded = False
        if pid:
            self.children[pid] = Child(None, self.free.pop())
        return pid

    def fork_spare(self) -> Request | None:
        """Fork the child that takes the next request, and return that there."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
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
        self.return_to_directory()  # only now: who waits there keeps its filesystem busy
        self.work.note(request)
        return request

    def give_spare(self, request: Request) -> int:
        """Give a request to the child that waits for one; return its process, 0 if there is none."""
        if not self.spare:
            return 0
        pid, its_socket = self.spare
        frame = request.frame()
        try:
            rest = frame[its_socket.sendmsg([frame], rights(request.streams)) :]
            if rest:  # not nothing: that fails where it has all of it, and has closed its end
                its_socket.sendall(rest)
        except OSError:  # somebody has killed it, and it has not got all
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

    def return_to_directory(self) -> None:
        """In a child that has work: go where the command line was started."""
        if self.directory:
            with suppress(OSError):  # it is gone: a login would be in the root directory, too
                os.chdir(self.directory)

    def collect(self) -> None:
        """Tell the server what children have told."""
        for child in self.children.values():
            status = self.board.read_status(child.slot)
            if child.number is not None and status is not None:
                self.tell(child.number, status)
                child.number = None

    def reap(self) -> None:
        """Tell the server of children that have ended without a word."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid not in self.children:
                continue
            self.collect()  # what it told just before its end
            child = self.children.pop(pid)
            if child.number is not None:
                self.tell(child.number, os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
            self.board.clear(child.slot)
            self.free.append(child.slot)

    def tell(self, number: int, status: int) -> None:
        self.server.sendall(record(number, status))


def main(work: Work, fingerprint: Fingerprint | None = None) -> NoReturn:
    """Serve, and in each child run what it was forked for."""
    if not stat.S_ISSOCK(os.fstat(1).st_mode) or any(name in os.environ for name in UNSAFE):
        os._exit(1)
    reset_signals()
    sys.path[:] = filter(None, sys.path)  # what is in the working directory is nobody's library here
    zygote = Zygote(_socket.socket(fileno=os.dup(1)), work, fingerprint or Fingerprint())
    request = zygote.serve()
    source = input_pipe(work.input_of(request))
    for number, descriptor in enumerate([source, *request.streams]):
        os.dup2(descriptor, number)
    os.closerange(3, 1 << 10)
    work.run(request, LastWord(zygote.board, zygote.slot))
