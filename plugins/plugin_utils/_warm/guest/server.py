# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: keep warm interpreters (zygote.py), one per command line, and hand requests to them.

It has a spool, which only root can enter. For what clients write there and read, see wire.py.

Shell commands have an interpreter of their own that has imported nothing: it forks in no time, and its
children have the environment of a login already.

The first task for an interpreter waits for the start of this server (see start.py), so it imports only what it cannot
do without: on a slow guest, importing was half of its start.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import sys
import time
from contextlib import suppress

from .fingerprint import (
    WATCHED,
    LoginFiles,
    changed_since,
)
from .interpreter import (
    START_SECONDS,
    UNKEPT_IDLE_SECONDS,
    Interpreter,
)
from .launch import LEAST_FREE, MODULE_RUNNER, SHELL_COMMANDS, free_memory
from .payload_cache import Archives
from .wire import ANSWER, BEGUN, FULL, LOST, PARTS_SUFFIX, PLAIN, QUIT, TAKEN, ClientRequest, read_ring_line

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .launch import Launcher, Spawned

IDLE_SECONDS = 600  # how long the server stays without work
SWEEP_SECONDS = 600  # how often it looks for what clients have left
CLIENT_SECONDS = 600  # how long a client may take that brings a request or fetches output
TICK_SECONDS = 60
KEPT_SECONDS = 60  # how long an answer can be fetched
HELD_UP_SECONDS = 0.01  # how soon to look whether an interpreter has read its last request
MOST_INTERPRETERS = 6
MOST_TRIES = 3  # for a request whose interpreters are stale at once
LEAST_SECONDS = 60  # an interpreter that was used so lately is not ended for another
SUFFIXES = ("in", PARTS_SUFFIX, "out", "err", "rc")  # of a request's files
COMMANDS = ""  # key of the interpreter for shell commands


def without_site() -> str:
    """Return the command line of the interpreter of shell commands: as all that stay, it runs no code of a site."""
    return f"'{sys.executable}' -S"


class Server:
    """The ``spool``, with its ``ring`` open, the interpreters, and the requests between them.

    Unless it ``stays`` without work, it ends soon after the last task. When a file of ``watched`` has changed,
    interpreters are started anew.
    """

    def __init__(
        self, spool: str, ring: int, launcher: Launcher, stays: bool = True, watched: Sequence[str] = WATCHED
    ) -> None:
        self.spool = spool
        self.ring = ring
        self.launcher = launcher
        self.stays = stays
        self.watched = watched
        self.was_asked = False
        self.began = time.monotonic()
        # When this started. A fork stands in for a login only while they are the same.
        self.login: LoginFiles | None = None
        self.interpreters: dict[str, Interpreter] = {}
        self.leaving: list[Interpreter] = []  # those without a key: still at work, or ending
        self.archives = Archives()
        self.rung = b""
        self.ending = False
        self.waiting: list[tuple[int, ClientRequest]] = []  # for an interpreter that starts
        self.taken: dict[int, float] = {}  # requests by number, and when they were answered; 0: not yet
        self.strangers: set[str] = set()  # files of unknown requests

    def path(self, number: int, suffix: str) -> str:
        return f"{self.spool}/{number}.{suffix}"

    def early_archive(self, number: int) -> str:
        """Return the path of an archive that a client wrote before the spool was there."""
        return f"{self.spool}.{number}.{PARTS_SUFFIX}"

    def adopt(self, header: str, first: Spawned, began: float) -> None:
        """Take the interpreter that this server was started for, unless files that a login reads have changed since."""
        request = ClientRequest.unpacked(header.encode("ascii"))
        one = Interpreter(first, LoginFiles(self.watched), request.marker, request.path)
        login = LoginFiles(self.watched)
        if changed_since(began, self.watched):
            self.leaving.append(one)
        else:
            self.interpreters[request.key] = one
            self.login = login

    def serve(self) -> None:
        """Serve until told to end, or idle for long."""
        longest = IDLE_SECONDS if self.stays else UNKEPT_IDLE_SECONDS
        last = swept = time.monotonic()
        while True:
            everyone = [*self.interpreters.values(), *self.leaving]
            acted = self.poll(everyone)
            self.settle(everyone)
            now = time.monotonic()
            if acted:
                last = now
            if now - swept > SWEEP_SECONDS:
                swept = now
                self.sweep()
            over = self.ending or now - last > longest
            busy = self.waiting or any(one.tasks for one in everyone)
            if over and not busy and (self.stays or self.ending or not self.has_clients()) and self.vanish():
                return

    def has_clients(self) -> bool:
        """Return whether a client seems to bring a request or to fetch output, which takes long on a slow line."""
        if not self.was_asked:  # this server was started for one, which may have been killed
            return time.monotonic() - self.began < CLIENT_SECONDS
        place, name = os.path.split(self.spool)
        files = [
            file
            for file in os.scandir(place)
            if file.name.startswith(f"{name}.") and file.name.endswith(f".{PARTS_SUFFIX}")
        ]
        for file in os.scandir(self.spool):
            number, _dot, suffix = file.name.partition(".")
            if number.isdecimal() and (int(number) not in self.taken or suffix in ("out", "err")):
                files.append(file)
        return any(map(is_recent, files))  # others are of killed clients

    def poll(self, everyone: Sequence[Interpreter]) -> bool:
        """Wait until there is something to do, and do that; return whether it was for a client."""
        readers: dict[int, Callable[[], None]] = {self.ring: self.read_ring}
        writers: dict[int, Callable[[], None]] = {}
        for one in everyone:
            if not one.dead:
                readers[one.socket.fileno()] = functools.partial(self.guarded, one, one.listen)
                if one.queue and not one.is_held_up:
                    writers[one.socket.fileno()] = functools.partial(self.guarded, one, one.send)
            for task in one.tasks.values():
                readers.update({stream: functools.partial(task.copy, stream) for stream in task.streams})
        readable = select.select(list(readers), list(writers), [], self.select_seconds(everyone))[0]
        for send in writers.values():  # all of them, to notice one that reads nothing
            send()
        for source in readable:
            readers[source]()
        return bool(readable)

    def guarded(self, one: Interpreter, action: Callable[[], None]) -> None:
        """Run an action of an interpreter; if it fails, end that interpreter only."""
        if one.dead:
            return
        try:
            action()
        except Exception:  # pylint: disable=broad-except  # another user's interpreter may send anything
            one.end()

    def select_seconds(self, everyone: Sequence[Interpreter]) -> float:
        """Return after how many seconds there is something to do, even if nothing arrives."""
        if self.waiting or any(one.told_to_end_at or one.queue for one in everyone):
            return HELD_UP_SECONDS if any(one.is_held_up for one in everyone) else START_SECONDS / 10
        if any(one.unread for one in everyone):
            return START_SECONDS / 10
        if not self.stays or any(one.ready and not one.stays for one in everyone):
            return UNKEPT_IDLE_SECONDS / 5
        return KEPT_SECONDS / 6 if self.taken else TICK_SECONDS

    def vanish(self) -> bool:
        """Remove the spool, all at once, unless a client has rung meanwhile; return whether it is gone.

        A client that has still to read an answer has its file open.
        """
        gone = f"{self.spool}.gone.{os.getpid()}"
        os.rename(self.spool, gone)
        if select.select([self.ring], [], [], 0)[0] and not os.path.exists(self.spool):
            os.rename(gone, self.spool)
            return False
        os.close(self.ring)  # at once: a client that has it open sees that the server is gone
        for name in os.listdir(gone):
            os.unlink(f"{gone}/{name}")
        os.rmdir(gone)
        return True

    def settle(self, everyone: Sequence[Interpreter]) -> None:
        """Do what is due, in this order.

        Dispatch what waited; end interpreters that do not read; give another interpreter what a stale one refused;
        answer ended tasks; retire idle interpreters that do not stay; drop those that have gone; remove old answers.
        """
        waiting, self.waiting = self.waiting, []
        for number, request in waiting:
            self.take(number, request)
        for one in everyone:
            self.guarded(one, one.give_up_unread)
            for task in one.pop_refused():
                task.drop()
                self.retire(one)
                self.retry(task.number, task.request)
            for serial in [serial for serial, task in one.tasks.items() if task.ended]:
                task = one.tasks.pop(serial)
                self.answer(task.number, task.result() or LOST + one.last_words())
                task.drop()
                self.expect_commands(one.path)
            if one.is_overdue:
                self.retire(one)
        for one in [one for one in self.leaving if one.leave()]:
            self.leaving.remove(one)
            one.close()
        self.forget_answered()

    def expect_commands(self, path: str) -> None:
        """Start the interpreter for shell commands in advance: most plays come to need it."""
        if COMMANDS not in self.interpreters and not self.ending:
            with suppress(OSError):  # there is no room
                self.start(COMMANDS, without_site(), "", path)

    def retire(self, one: Interpreter) -> None:
        """Give an interpreter no more requests, and let it end when it has none."""
        for key in [key for key, other in self.interpreters.items() if other is one]:
            self.leaving.append(self.interpreters.pop(key))

    def read_ring(self) -> None:
        """Read the ring and act on each line."""
        self.rung += os.read(self.ring, 1 << 16)
        *lines, self.rung = self.rung.split(b"\n")
        for line in lines:
            with suppress(ValueError, TypeError):  # half of a line, of a client that was killed
                self.act_on(line)

    def act_on(self, line: bytes) -> None:
        """Do what a line of the ring says: end, forget a request, or take one."""
        if line == QUIT:
            self.ending = True
        elif line.startswith(b"-"):
            self.forget(int(line[1:]))
        elif line:
            self.receive(*read_ring_line(line))

    def receive(self, number: int, packed: bytes) -> None:
        """Take a request; if it is empty, it is in a file. It is taken once, however often its client rings."""
        if number in self.taken:
            return
        try:
            packed = packed or self.pop_request(number)
            if not self.append_line(number, TAKEN):
                return  # its client waits no more
        except OSError:  # there is nothing to read, or no room
            return
        self.taken[number] = 0.0
        self.was_asked = True
        self.take(number, ClientRequest.unpacked(packed))

    def pop_request(self, number: int) -> bytes:
        """Return a request that its client has written to a file, and remove that."""
        path = self.path(number, "in")
        with open(path, "rb") as file:
            content = file.read()
        os.unlink(path)
        return content

    def forget(self, number: int) -> None:
        for path in (self.early_archive(number), *(self.path(number, suffix) for suffix in SUFFIXES)):
            with suppress(OSError):
                os.unlink(path)

    def forget_answered(self) -> None:
        """Remove answers that clients have had time to fetch."""
        now = time.monotonic()
        for number in [number for number, when in self.taken.items() if when and now - when > KEPT_SECONDS]:
            del self.taken[number]
            self.forget(number)

    def sweep(self) -> None:
        """Remove files of clients that went away before they asked: those seen by the last sweep, too.

        On a slow line, a client may still be writing one of its files.
        """
        files = [file for file in os.scandir(self.spool) if file.name.partition(".")[0].isdecimal()]
        known = {file.name.partition(".")[0] for file in files if is_recent(file)} | set(map(str, self.taken))
        strangers = {file.name for file in files if file.name.partition(".")[0] not in known}
        for name in strangers & self.strangers:
            with suppress(OSError):
                os.unlink(f"{self.spool}/{name}")
        self.strangers = strangers

    def retry(self, number: int, request: ClientRequest) -> None:
        """Take a request again that a stale interpreter refused, MOST_TRIES times at most."""
        request.tries += 1
        if request.tries < MOST_TRIES:
            self.take(number, request)
        else:
            self.answer(number, PLAIN)

    def take(self, number: int, request: ClientRequest) -> None:
        """Hand a request to its interpreter, have it wait for one, or answer why not."""
        try:
            answer = self.dispatch(number, request)
        except OSError:  # there is no room for it
            answer = PLAIN
        if answer:
            self.answer(number, answer)

    def dispatch(self, number: int, request: ClientRequest) -> bytes:
        """Do as ``take``; return an answer that says why the request was not run, empty if it was handed over or waits.

        :raise OSError: if there is no room for it.
        """
        brought = self.path(number, PARTS_SUFFIX), self.early_archive(number)
        request.content, missing = self.archives.found(request.archive, *brought)
        if missing:
            return missing
        if request.users and self.others_leave(request):  # the user that it may remove may have one of them
            return self.postpone(number, request)
        one = None if self.ending else self.interpreter_for(request)
        if one and one.starts:
            return self.postpone(number, request)
        if not one or one.dead or not one.ready:
            return PLAIN
        self.append_line(number, BEGUN)
        one.hand_over(number, request, f"{self.spool}/{number}")
        return b""

    def postpone(self, number: int, request: ClientRequest) -> bytes:
        """Dispatch a request again soon."""
        self.waiting.append((number, request))
        return b""

    def others_leave(self, request: ClientRequest) -> bool:
        """End the interpreters of become, except the request's own; return whether one is about to end."""
        for key in [key for key, one in self.interpreters.items() if one.marker and key != request.key]:
            self.leaving.append(self.interpreters.pop(key))
        return any(one.marker and one.ends_soon for one in self.leaving)

    def interpreter_for(self, request: ClientRequest) -> Interpreter | None:
        """Return the interpreter for a request, started if there is none; None if there is no room for one.

        One that failed stays listed, so that its requests are answered at once, until the files of a login change.
        """
        key = request.key
        one = self.interpreters.get(key)
        if one is not None and ((one.dead and not one.failed) or not one.login_files.same()):
            self.retire(one)
            one = None
        return one or self.start(key, request.command or without_site(), request.marker, request.path)

    def start(self, key: str, command: str, marker: str, path: str) -> Interpreter | None:
        """Start an interpreter; return None if there is no room for one."""
        if free_memory() < LEAST_FREE:
            return None
        if len(self.interpreters) >= MOST_INTERPRETERS:
            oldest = min(self.interpreters, key=lambda other: self.interpreters[other].used)
            if time.monotonic() - self.interpreters[oldest].used < LEAST_SECONDS:
                return None
            self.leaving.append(self.interpreters.pop(oldest))
        login_files = LoginFiles(self.watched)
        spawned = None
        if key == COMMANDS and self.login and self.login.same():  # otherwise a fork differs from a new login
            spawned = self.launcher.fork(SHELL_COMMANDS)
        program = SHELL_COMMANDS if key == COMMANDS else MODULE_RUNNER
        spawned = spawned or self.launcher.spawn(program, command, path)
        one = self.interpreters[key] = Interpreter(spawned, login_files, marker, path)
        return one

    # Answers

    def append_line(self, number: int, word: bytes, content: bytes = b"") -> bool:
        """Append a line, and its ``content``, to the client's file; return False if there is no such file.

        :raise OSError: if there is no room for it; the file is as it was.
        """
        try:
            file = open(self.path(number, "rc"), "r+b", buffering=0)  # noqa: SIM115 - it is closed below
        except FileNotFoundError:
            return False
        with file:
            start = file.seek(0, os.SEEK_END)
            said = b"%d %b\n%b" % (number, word, content)
            try:
                if file.write(said) != len(said):
                    raise OSError("no room")
            except OSError:
                file.truncate(start)
                raise
        return True

    def answer(self, number: int, content: bytes) -> None:
        """Answer a request, if its client is still there.

        Without room for ``content``, it is told that there is none.
        """
        for answer in (content, FULL):
            with suppress(OSError):
                self.append_line(number, b"%b %d" % (ANSWER, len(answer)), answer)
                break
        else:
            self.give_up(number)
        self.taken[number] = time.monotonic()

    def give_up(self, number: int) -> None:
        """Have a client report an unknown outcome: it waits only as long as there is its file and a server."""
        try:
            os.unlink(self.path(number, "rc"))
        except OSError as exc:
            raise SystemExit(1) from exc


def is_recent(file: os.DirEntry[str]) -> bool:
    """Return whether a file was written to lately, if it is there."""
    try:
        return abs(time.time() - file.stat().st_mtime) < CLIENT_SECONDS
    except FileNotFoundError:
        return False


def serve_spool(spool: str, ring: int, launcher: Launcher, header: str, first: Spawned | None, began: float) -> None:
    """Serve in the ``spool``, which is the working directory, until told to end or idle for long.

    ``first`` is the interpreter that this was started for, at the time ``began``; ``header`` is of its request.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is waited for
    sys.path[:] = filter(None, sys.path)  # import nothing from the spool
    # Without work, it keeps no filesystem busy that may be unmounted, as that of a virtual environment.
    server = Server(spool, ring, launcher, launcher.fingerprint.is_at_home())
    if first:
        server.adopt(header, first, began)
    server.serve()
