# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: an interpreter that forks a child for each request, with imports done in advance.

It is started by the same command line that it replaces, become included, but without site (-S). Like a module, its
program is read from standard input, for one kind of work: modules (module_runner.py) or shell commands
(shell_runner.py). Its standard output is a socket to server.py: sudo and su keep that descriptor. See frames.py for the
protocol, and fresh.py for the state of a child.

After the first request, a spare child is forked in advance, because forking a process of this size takes a while. This
file imports nothing that only modules need: a guest's first command waits for it.
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

from .fingerprint import Fingerprint
from .frames import (
    NOT_RUN,
    READY,
    STALE,
    STAYS,
    InterpreterRequest,
    input_pipe,
    receive,
    record,
    rights,
)
from .fresh import UNSAFE, close_others, leave_directory, reset_signals

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# Children that can be at work at once, and bytes of each one's exit status.
MOST_CHILDREN = 1024
SLOT = 2


class Work:
    """The work of an interpreter: modules or shell commands.

    In this order: ``expect``, in a fork of the server only; ``begin``; for each request ``note``,
    ``learn_before_fork``, and in a child ``run``; while idle ``prepare``, once, ``take_lesson``, and ``send_scout``.
    """

    lessons = 0  # number of lessons still to be taken while idle
    is_to_be_scouted = False  # whether a scout is to be sent while idle
    reports = -1  # the pipe from the scout that is under way

    def expect(self, recipe: bytes, code: bytes) -> None:
        """Get ready for an archive to come, from its recipe and its code, if these are there already."""

    def begin(self) -> None:
        """Get ready for the first request."""

    def prepare(self) -> None:
        """Get ready for later requests: while idle, after the first one."""

    def note(self, request: InterpreterRequest) -> None:
        """Keep what a request brings. A spare child does so too."""

    def learn_before_fork(self, request: InterpreterRequest) -> bool:
        """Learn from a request, before the fork, what all children need; return whether that is new."""
        return False

    def take_lesson(self) -> None:
        """Learn, while idle, what later requests may need."""

    def send_scout(self, begin: Callable[[], None]) -> None:
        """Start a child that finds out what spare children may do; it calls ``begin`` first."""

    def listen(self) -> bool:
        """Take what the scout reports; return whether spare children are to get ready in another way now."""
        return False

    def look_after(self, process: int) -> float | None:
        """Return after how many idle seconds to look at a child at work; None: never."""
        return None

    def look(self, process: int) -> None:
        """Look at a child at work."""

    def wait(self) -> None:
        """In a spare child: get ready for a request."""

    def is_spare_outdated(self) -> bool:
        """Return whether what a spare child has done to get ready is to be done again."""
        return False

    def note_end(self, process: int) -> None:
        """Note that a child which this class does not know has ended: its process number may be another's now."""

    def end(self) -> None:
        """End what works in the background, before this process ends."""

    def input_of(self, request: InterpreterRequest) -> bytes:
        """Return the standard input of a child."""
        return b""

    def run(self, request: InterpreterRequest, last_word: LastWord) -> NoReturn:
        """In a child: run the request, with its standard descriptors, and exit."""
        raise NotImplementedError


class Board(mmap.mmap):
    """Memory that the parent shares with its children, where each has a slot for its exit status.

    A descriptor would do as well, but a new process has only its standard ones.
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
    """Reports a task's exit status before its process ends, which takes a while."""

    def __init__(self, board: Board, slot: int) -> None:
        self.board = board
        self.slot = slot
        self.parent = os.getppid()

    def say(self, code: int) -> None:
        self.board.write_status(self.slot, code)
        with suppress(OSError):  # closed by the task, or it is another user by now: then the end of its process tells
            os.close(1)
            os.close(2)
            if os.getppid() == self.parent:
                os.kill(self.parent, signal.SIGCHLD)


class Child:
    """A child at work: the ``serial`` number of its request, None once its status is reported; and its ``slot``."""

    def __init__(self, serial: int | None, slot: int) -> None:
        self.serial = serial
        self.slot = slot


class Zygote:
    """The parent: it hands requests to children."""

    def __init__(self, server: _socket.socket, work: Work, fingerprint: Fingerprint) -> None:
        self.server = server
        self.work = work
        self.fingerprint = fingerprint
        self.directory = leave_directory()
        self.children: dict[int, Child] = {}  # by process number
        self.board = Board(-1, MOST_CHILDREN * SLOT)
        self.free = list(range(MOST_CHILDREN))  # slots
        self.slot = 0  # of the child that was forked last; in a child, its own
        self.spare: tuple[int, _socket.socket] | None = None  # a child that waits, and the socket to it
        self.ended, self.wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.has_spare_cpu = len(os.sched_getaffinity(0)) > 1  # whether to fork a child while another works
        self.crowded = False  # there was no room for a child
        self.had_request = False  # whether a request has come
        self.prepared = False

    def serve(self) -> InterpreterRequest:
        """Serve until the server has gone; return in a child only, with its request."""
        self.work.begin()
        gc.disable()  # it takes time, and finds little; children enable it
        self.fingerprint.update()
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # An interpreter of another user, or on a filesystem that may be unmounted, does not stay without work.
        stays = os.geteuid() == 0 and bool(self.directory) and self.fingerprint.is_at_home()
        self.server.sendall(READY + bytes([STAYS if stays else 0]))
        while True:
            patience, chore = self.chore()
            sources: list[_socket.socket | int] = [self.server, self.ended]
            if self.work.reports >= 0:
                sources.append(self.work.reports)
            busy = select.select(sources, [], [], patience)[0]
            if self.ended in busy:
                os.read(self.ended, 4096)
                self.collect()
                self.reap()
            if self.work.reports in busy and self.work.listen():
                self.end_spare()
            if self.server in busy:
                request = receive(self.server)
                if not request:
                    self.work.end()
                    os._exit(0)
                mine = self.hand_over(request)
            else:
                mine = None if busy else chore()
            if mine:
                return mine

    def chore(self) -> tuple[float | None, Callable[[], InterpreterRequest | None]]:
        """Return after how many idle seconds something is to be done (None: never), and what.

        A task that is at work, or comes, goes before chores for later ones.
        """
        if self.had_request and not self.crowded and (self.has_spare_cpu or not self.children):
            if not self.prepared:
                return 0, self.prepare
            if self.work.lessons:  # before the fork, so that the spare child has it
                return 0, self.take_lesson
            if self.work.is_to_be_scouted:
                return 0, self.send_scout
            if not self.spare:
                return 0, self.fork_spare
        at_work = [pid for pid, child in self.children.items() if child.serial is not None]
        if at_work:
            child = at_work[-1]
            return self.work.look_after(child), lambda: self.work.look(child)
        return None, lambda: None

    def prepare(self) -> None:
        self.prepared = True
        self.work.prepare()
        self.fingerprint.update()

    def take_lesson(self) -> None:
        self.work.take_lesson()
        self.fingerprint.update()

    def hand_over(self, request: InterpreterRequest) -> InterpreterRequest | None:
        """Give a request to a child; return it in a child that is forked for it."""
        if self.fingerprint.changed():
            self.tell(request.serial, STALE)
            request.close()
            return None
        self.had_request = True
        self.work.note(request)
        if self.work.learn_before_fork(request):
            self.fingerprint.update()
            self.end_spare()  # which has not learnt that
        if self.spare and self.work.is_spare_outdated():
            self.end_spare()
        pid = self.give_spare(request)
        if pid is None:
            pid = self.fork()
        if pid == 0:
            self.become_independent()
            self.return_to_directory()
            return request
        if pid is None:
            self.tell(request.serial, NOT_RUN)
        else:
            self.children[pid].serial = request.serial
        request.close()
        return None

    def fork(self) -> int | None:
        """Fork a child; return its process number, 0 in the child, None if there is no room for one."""
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

    def fork_spare(self) -> InterpreterRequest | None:
        """Fork the child that takes the next request; return that request in the child."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        pid = self.fork()
        if pid != 0:
            theirs.close()
            if pid:
                self.spare = pid, ours
            else:
                ours.close()
            return None
        self.become_independent()
        ours.close()
        self.close_standard_streams()
        self.work.wait()
        # Closed explicitly: garbage collection would close a descriptor number that is in other use by then.
        with closing(theirs):
            request = receive(theirs)
        if not request:
            os._exit(0)
        self.return_to_directory()  # only now: a process that waits there keeps its filesystem busy
        self.work.note(request)
        return request

    def send_scout(self) -> None:
        self.work.send_scout(self.become_scout)

    def become_scout(self) -> None:
        self.become_independent()
        self.close_standard_streams()
        self.end_spare()  # here only

    def give_spare(self, request: InterpreterRequest) -> int | None:
        """Give a request to the spare child; return its process number, None if there is none."""
        if not self.spare:
            return None
        pid: int | None
        pid, its_socket = self.spare
        frame = request.frame()
        try:
            rest = frame[its_socket.sendmsg([frame], rights(request.streams)) :]
            if rest:  # an empty send fails if the child has it all, and has closed its end
                its_socket.sendall(rest)
        except OSError:  # the child was killed before it had it all
            pid = None
        self.end_spare()
        return pid

    def end_spare(self) -> None:
        """Close the socket to the spare child, which ends unless it was given a request."""
        if self.spare:
            self.spare[1].close()
            self.spare = None

    def become_independent(self) -> None:
        """In a child: become like a process that has just been started."""
        self.server.close()
        os.close(self.ended)
        os.close(self.wake)
        gc.enable()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()

    def close_standard_streams(self) -> None:
        """In a child without a request yet: nothing that it prints goes to the server.

        It keeps the socket, so that the server sees the end of the interpreter only when such children have ended, too.
        """
        os.dup(1)  # closed with all others when there is a request
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.close(nothing)

    def return_to_directory(self) -> None:
        """In a child that has work: go where the command line was started."""
        if self.directory:
            with suppress(OSError):  # the directory is gone: a login would be in the root directory, too
                os.chdir(self.directory)

    def collect(self) -> None:
        """Report to the server the exit statuses that children have written."""
        for child in self.children.values():
            status = self.board.read_status(child.slot)
            if child.serial is not None and status is not None:
                self.tell(child.serial, status)
                child.serial = None

    def reap(self) -> None:
        """Report to the server the children that have ended without writing a status."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid not in self.children:
                self.work.note_end(pid)
                continue
            self.collect()  # a status written just before the end
            child = self.children.pop(pid)
            if child.serial is not None:
                self.tell(child.serial, os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
            self.board.clear(child.slot)
            self.free.append(child.slot)

    def tell(self, serial: int, status: int) -> None:
        self.server.sendall(record(serial, status))


def main(work: Work, fingerprint: Fingerprint | None = None) -> NoReturn:
    """Serve, and in each child run its request."""
    if not stat.S_ISSOCK(os.fstat(1).st_mode) or any(name in os.environ for name in UNSAFE):
        os._exit(1)
    reset_signals()
    sys.path[:] = filter(None, sys.path)  # import nothing from the working directory
    zygote = Zygote(_socket.socket(fileno=os.dup(1)), work, fingerprint or Fingerprint())
    request = zygote.serve()
    source = input_pipe(work.input_of(request))
    for number, descriptor in enumerate([source, *request.streams]):
        os.dup2(descriptor, number)
    close_others(zygote.fingerprint.descriptors)
    work.run(request, LastWord(zygote.board, zygote.slot))
