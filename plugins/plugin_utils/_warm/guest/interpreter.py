# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: the server's side of warm interpreters (zygote.py), and the requests that it hands them.

An interpreter may belong to another user, and be under that user's control. So nothing that it sends is trusted: size
and content are checked, and malformed data ends that interpreter and nothing else.
"""

from __future__ import annotations

import _socket
import fcntl
import itertools
import json
import os
import signal
import sys
import time
from contextlib import suppress

from .frames import LARGEST_STATUS, NOT_RUN, READY, RECORD, STALE, STAYS, frame, records, rights
from .payload_cache import MOST_ARCHIVES
from .task_output import LOST, Task

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from .fingerprint import LoginFiles
    from .launch import Spawned
    from .wire import ClientRequest

# A request waits this long for an interpreter to start; after that, the plain path is as quick.
START_SECONDS = 10.0
END_SECONDS = 5.0  # how long an interpreter may take to end when it is told to
# How long an interpreter that does not stay may be idle: its user cannot be removed meanwhile, nor its filesystem
# unmounted.
UNKEPT_IDLE_SECONDS = 5.0
STUCK_SECONDS = 10.0
# How many of an interpreter's processes are looked at: its shells, what becomes another user, itself, its children.
MOST_PROCESSES = 16
MOST_FILES = 64  # how many of a process's open files are looked at
SIGNAL_SECONDS = 1.0  # how long processes may take to stop, or to end, by a signal
MOST_STARTUP_OUTPUT = 64 << 10  # bytes that an interpreter may write at its start, to each of its streams


class Outgoing:
    """A request on its way to an interpreter: its unsent bytes, and the descriptors that go with it."""

    def __init__(self, serial: int, data: bytes, streams: list[int]) -> None:
        self.serial = serial
        self.data: Any = memoryview(data)
        self.streams = streams

    def close(self) -> None:
        for stream in self.streams:
            os.close(stream)
        self.streams = []


class Interpreter:
    """A warm interpreter, from its start until it is dropped. Without ``marker``, it was started without become.

    ``path`` is PATH before its command ran; ``login_files`` were taken before that, too. It may leave its requests
    unread for ``stuck_seconds``.
    """

    def __init__(
        self,
        spawned: Spawned,
        login_files: LoginFiles,
        marker: str,
        path: str,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        self.socket, self.errors, self.process = spawned
        self.socket.setblocking(False)
        # Out-of-band data arrives in line, with everything attached to it.
        self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_OOBINLINE, 1)
        os.set_blocking(self.errors, False)
        self.login_files = login_files
        self.ready = False
        self.stays = False  # even without work
        self.dead = False
        self.failed = False  # it was never ready, and is not to be tried again
        # By a serial number: a task's status arrives before the end of its process is noticed.
        self.tasks: dict[int, Task] = {}
        self.serials = itertools.count(1)
        self.queue: list[Outgoing] = []
        # Serial number of the request that was sent last, until it is known to have been read; and when it was sent.
        self.unread = 0
        self.unread_since = 0.0
        self.known: list[str] = []  # archives that it has
        self.marker = marker
        self.path = path
        self.stuck_seconds = stuck_seconds
        self.told_to_end_at = 0.0
        self.began = self.used = self.last_sent = time.monotonic()
        self.received = self.startup_output = self.startup_errors = b""

    @property
    def starts(self) -> bool:
        """Whether it is still starting, and worth waiting for."""
        return not self.ready and not self.dead and time.monotonic() - self.began < START_SECONDS

    @property
    def is_overdue(self) -> bool:
        """Whether it is to end, because it is idle and does not stay without work."""
        idle = not self.tasks and time.monotonic() - self.used > UNKEPT_IDLE_SECONDS
        return idle and self.ready and not self.stays

    @property
    def ends_soon(self) -> bool:
        """Whether it will end soon once it is told to. A user can stop it (SIGSTOP): it is not waited for then."""
        return not self.tasks and not self.dead and not is_stopped(self.process)

    def leave(self) -> bool:
        """Tell it to end, if it has no tasks; return whether it has ended or taken too long."""
        if self.tasks:
            return False
        if not self.told_to_end_at:
            self.told_to_end_at = time.monotonic()
            with suppress(OSError):
                self.socket.shutdown(_socket.SHUT_WR)
        return self.dead or time.monotonic() - self.told_to_end_at > END_SECONDS

    def close(self) -> None:
        """Close the connection to it, whatever it does."""
        self.end()
        os.close(self.errors)

    # Receiving

    def listen(self) -> None:
        """Read what the interpreter has sent. Data with descriptors is left in the socket: see close_slowly."""
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
        self.received += data
        if not self.ready:
            self.take_startup_output()
        if self.ready:
            self.take_records()

    def take_startup_output(self) -> None:
        """Look for the end of what its command line writes before it is ready."""
        before, mark, rest = self.received.partition(READY)
        if len(before) > MOST_STARTUP_OUTPUT:
            self.end()
        elif mark and rest:
            self.startup_output, self.received = before, rest[1:]
            self.stays = rest[0] == STAYS
            self.startup_errors += self.read_errors()
            # A file that changed during its start may have been read before or after the change.
            self.ready = self.login_files.same()
            if not self.ready:
                self.end()

    def take_records(self) -> None:
        size = len(self.received) // RECORD * RECORD
        told, self.received = records(self.received[:size]), self.received[size:]
        for serial, status in told:
            if status > LARGEST_STATUS or serial not in self.tasks:
                self.end()
                return
            self.tasks[serial].rc = status

    def read_errors(self) -> bytes:
        """Return what it has written to its error stream, MOST_STARTUP_OUTPUT bytes at most."""
        try:
            return os.read(self.errors, MOST_STARTUP_OUTPUT)
        except OSError:
            return b""

    def last_words(self) -> bytes:
        """Return the last line that it wrote to its error stream."""
        return self.read_errors().strip().rpartition(b"\n")[2][:200]

    def end(self) -> None:
        """Mark it as dead and close its socket: it has ended, or has sent malformed data."""
        if self.dead:
            return
        self.dead = True
        self.failed = not self.ready
        if self.marker:
            close_slowly(self.socket)
        else:
            self.socket.close()
        unsent = {one.serial for one in self.queue}
        for serial, task in self.tasks.items():
            if task.rc is None:
                task.rc = NOT_RUN if serial in unsent else LOST
        for one in self.queue:
            one.close()
        self.queue = []
        self.unread = 0

    # Sending

    def hand_over(self, number: int, request: ClientRequest, path: str) -> None:
        """Send it a request; the names of the task's files begin with ``path``.

        :raise OSError: if there is no room for the task; nothing was sent then.
        """
        was, now = self.marker.encode("ascii"), request.marker.encode("ascii")
        preamble, errors = (
            text.replace(was, now) if was else text for text in (self.startup_output, self.startup_errors)
        )
        serial = next(self.serials)
        task = Task(number, request, path, preamble, errors)
        streams, task.theirs = task.theirs, []
        self.tasks[serial] = task
        self.used = time.monotonic()
        if not self.queue:
            self.last_sent = self.used
        self.queue.append(Outgoing(serial, self.packed(serial, request), streams))
        self.send()

    def packed(self, serial: int, request: ClientRequest) -> bytes:
        """Return a request as the interpreter reads it, with its archive if the interpreter lacks that."""
        forget: list[str] = []
        content = b""
        if request.archive and request.archive not in self.known:
            self.known.append(request.archive)
            self.known, forget = self.known[-MOST_ARCHIVES:], self.known[:-MOST_ARCHIVES]
            content = request.content
        header = {
            "serial": serial,
            "archive": request.archive,
            "split_at": request.split_at,
            "forget": forget,
            "call": request.call,
            "in_time": request.in_time,
        }
        return frame(json.dumps(header).encode("ascii"), content, request.program)

    def send(self) -> None:
        """Send as much of the queue as the interpreter takes now; see ``is_held_up``."""
        while self.queue and not self.is_held_up:
            first = self.queue[0]
            try:
                sent = self.socket.sendmsg([first.data], rights(first.streams))
            except BlockingIOError:
                if time.monotonic() - self.last_sent > self.stuck_seconds:
                    self.end()
                return
            except OSError:
                self.end()
                return
            self.last_sent = time.monotonic()
            first.close()
            first.data = first.data[sent:]
            if not first.data:
                self.unread, self.unread_since = self.queue.pop(0).serial, self.last_sent

    @property
    def is_held_up(self) -> bool:
        """Whether the next request waits until the last one is read: so only that one's fate can ever be in doubt."""
        return bool(self.queue and self.queue[0].streams and not self.has_read())

    def has_read(self) -> bool:
        """Return whether it has read all that it was sent."""
        if self.unread and not unread_bytes(self.socket):
            self.unread = 0
        return not self.unread

    def give_up_unread(self) -> None:
        """End an interpreter that has not read a request for long: its user can stop it (SIGSTOP), and never go on.

        It is stopped, looked at again, and killed. So a request that it has not read was not run, and never will be.
        One that merely takes long may go on with what it has at work.
        """
        if self.dead or self.has_read() or time.monotonic() - self.unread_since < self.stuck_seconds:
            return
        if len(self.tasks) > 1 + len(self.queue) and not is_stopped(self.process):
            return
        family, readers = list(family_of(self.process)), readers_of(self.process)
        stopped = told(readers, signal.SIGSTOP, "TZX")
        if self.has_read():
            told(readers, signal.SIGCONT)
            return
        if told(readers, signal.SIGKILL, "ZX") and stopped:
            self.tasks[self.unread].rc = NOT_RUN
        told(family, signal.SIGCONT)  # sudo stops itself when what it runs is stopped, and would never end
        self.end()

    def pop_refused(self) -> list[Task]:
        """Remove and return the tasks that it refused because it is stale; another interpreter gets them."""
        stale = [serial for serial, task in self.tasks.items() if task.rc == STALE]
        return [self.tasks.pop(serial) for serial in stale]


def is_stopped(process: int) -> bool:
    """Return whether a process, or one that it has started, is stopped by a signal."""
    return any(state_of(pid) in ("T", "t") for pid in family_of(process))


def family_of(process: int) -> Iterator[int]:
    """Yield a process, and those that it and they have started, MOST_PROCESSES of them."""
    look = [process]
    for _number in range(MOST_PROCESSES):
        if not look:
            return
        pid = look.pop(0)
        yield pid
        with suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:  # unless it has ended
            look += map(int, file.read().split())


def unread_bytes(connection: _socket.socket) -> int:
    """Return how much memory that takes which the other end of a UNIX socket has not read yet."""
    try:
        import termios  # only here: a task does not wait for it

        left = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except (ImportError, OSError):  # it cannot be told
        return 0
    return int.from_bytes(left, sys.byteorder)


def readers_of(process: int) -> list[int]:
    """Return the processes that can read what an interpreter is sent, and belong to its user.

    ``process`` was started for it, and has its socket as standard output. What became starts the interpreter with is
    root's, keeps that, and reads nothing; a program of a user's that runs as root is none of these either.
    """
    owners: dict[int, int] = {}
    with suppress(OSError):
        link = os.readlink(f"/proc/{process}/fd/1")
        for pid in family_of(process) if link.startswith("socket:") else ():
            with suppress(OSError):  # it has ended
                if pid != os.getpid() and has_open(pid, link):
                    owners[pid] = os.stat(f"/proc/{pid}").st_uid
    users = [pid for pid, owner in owners.items() if owner]
    return users or list(owners)


def has_open(pid: int, link: str) -> bool:
    """Return whether one of the first open files of a process is that which ``link`` names."""
    for file in itertools.islice(os.scandir(f"/proc/{pid}/fd"), MOST_FILES):
        with suppress(OSError):  # it was closed
            if os.readlink(file.path) == link:
                return True
    return False


def told(processes: Sequence[int], number: int, states: str = "") -> bool:
    """Send processes a signal; return whether all of them are gone, or in one of these states, soon after."""
    for pid in processes:
        with suppress(OSError):
            os.kill(pid, number)
    end = time.monotonic() + SIGNAL_SECONDS
    while states and not all(state_of(pid) in states.lower() + states for pid in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return bool(processes)


def state_of(pid: int) -> str:
    """Return the letter for a process's state; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode("ascii")
    except OSError:
        return ""


def close_slowly(theirs: _socket.socket) -> None:
    """Close a socket that may hold descriptors sent by another user, with a child as its last owner.

    Closing these can take as long as that user likes (SO_LINGER), but takes no time in a process that exits. So a child
    closes the socket last.
    """
    waits, goes = os.pipe()
    try:
        if not os.fork():
            try:
                os.close(goes)
                os.read(waits, 1)  # until the parent has closed the socket
            finally:
                os._exit(0)
        theirs.close()
    except OSError:  # there is no room for a process; the socket stays open
        theirs.detach()
    os.close(waits)
    os.close(goes)
