# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: keep warm interpreters (_warm_zygote.py), one per command line, and hand requests to them.

Like the runner (_runner.py) it has a spool with a ring that only root can enter; it answers in the files of its clients
(see Line in _spool.py). An answer is a result as the runner leaves it, and its output behind that; or a word: C(plain),
the request was not run and is to be run the plain way; C(archive), the module's archive is missing here, and so are the
parts of it that are named behind that; C(full), there was no room for the result; C(lost), its interpreter ended, and
on the next line may be why. Nothing comes before that when the request is handed to an interpreter: should this end,
whoever waits knows whether it may have been run.

A request is a line of JSON and what an interpreter takes as its standard input: the program around a module's archive,
or a shell command and its input. Shell commands have an interpreter of their own that has imported nothing: it is
forked in no time, and what it becomes then has the environment of a login already.

The first task that is to have an interpreter waits for the start of this (see _warm_start.py), so it imports what it
cannot do without: of all that a start of this takes from a slow guest, half was importing.
"""

from __future__ import annotations

import binascii
import errno
import functools
import os
import select
import signal
import sys
import time
import zlib
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.plugin_utils._warm_archives import Archives
from ansible_collections.qemu.guest.plugins.plugin_utils._warm_interpreters import (
    END_SECONDS,
    LARGEST,
    START_SECONDS,
    Interpreter,
    Request,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._warm_start import LEAST_FREE, free_memory, spawn
from ansible_collections.qemu.guest.plugins.plugin_utils._warm_surroundings import WATCHED, Surroundings, changed_since

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ansible_collections.qemu.guest.plugins.plugin_utils._warm_start import Copy, Spawned

IDLE_SECONDS = 600
TICK_SECONDS = 60
MOST_INTERPRETERS = 6
LEAST_SECONDS = 60  # an interpreter of which somebody has had use so lately is ended for no other
SUFFIXES = ("in", "archive", "out", "err", "rc")  # of a client's files
COMMANDS = ""  # key of the interpreter for shell commands


class Server:
    """The spool ``home``, with its ``ring`` open, the interpreters, and what goes on between them."""

    def __init__(self, home: str, ring: int, copy: Copy) -> None:
        self.home = home
        self.ring = ring
        self.copy = copy
        self.login: Surroundings | None = None  # of which the copied process is
        self.interpreters: dict[str, Interpreter] = {}
        self.leaving: list[Interpreter] = []  # those that have no key any more: at work still, or ending
        self.archives = Archives(home)
        self.rung = b""
        self.ending = 0.0  # since when it is to end
        self.waiting: list[tuple[int, Request]] = []  # for an interpreter that starts

    def path(self, number: int, suffix: str) -> str:
        return f"{self.home}/{number}.{suffix}"

    def archive_beside(self, number: int) -> str:
        """Return where a client has put an archive that it brought before there was a place for it here."""
        return f"{self.home}.{number}.archive"

    def adopt(self, first: Spawned, began: float) -> None:
        """Take the interpreter that this was started for, unless what it would look at has changed since."""
        with open("first", "rb") as file:
            request = Request(file.readline(), file, 0)
        os.unlink("first")
        one = Interpreter(first, Surroundings(WATCHED), request.marker, request.path)
        login = Surroundings(WATCHED)
        if changed_since(began, WATCHED):
            self.leaving.append(one)
        else:
            self.interpreters[request.key] = one
            self.login = login

    def serve(self) -> None:
        """Serve until told to end, or idle for long."""
        last = swept = time.monotonic()
        while True:
            if time.monotonic() - swept > IDLE_SECONDS:
                swept = time.monotonic()
                self.sweep()
            everyone = [*self.interpreters.values(), *self.leaving]
            sources: dict[int, Callable[[], None]] = {self.ring: self.answer_ring}
            for one in everyone:
                if not one.dead:
                    sources[one.socket.fileno()] = one.listen
                for task in one.tasks.values():
                    sources.update({stream: functools.partial(task.copy, stream) for stream in task.streams})
            ready = select.select(list(sources), [], [], self.patience())[0]
            for source in ready:
                sources[source]()
            self.settle(everyone)
            if ready:
                last = time.monotonic()
            over = self.fetched() if self.ending else not ready and time.monotonic() - last > IDLE_SECONDS
            busy = self.waiting or any(one.tasks for one in everyone)
            if over and not busy and self.vanish():
                return

    def patience(self) -> float:
        """Return after how many seconds there is something to do, whoever comes."""
        if self.ending:
            return END_SECONDS / 50
        soon = self.waiting or any(one.leaves for one in self.leaving)
        return START_SECONDS / 10 if soon else TICK_SECONDS

    def fetched(self) -> bool:
        """Return whether all results were fetched, or are not waited for any longer."""
        late = time.monotonic() - self.ending > END_SECONDS
        return late or not any(name.endswith(".rc") for name in os.listdir(self.home))

    def vanish(self) -> bool:
        """Remove the spool, all at once, unless somebody has rung meanwhile; return whether it is gone."""
        gone = f"{self.home}.gone.{os.getpid()}"
        os.rename(self.home, gone)
        if select.select([self.ring], [], [], 0)[0] and not os.path.exists(self.home):
            os.rename(gone, self.home)
            return False
        os.close(self.ring)  # at once: who holds it open is told that nobody is there
        for name in os.listdir(gone):
            os.unlink(f"{gone}/{name}")
        os.rmdir(gone)
        return True

    def settle(self, everyone: Sequence[Interpreter]) -> None:
        """Give requests that have waited to who is ready, give results out, and let those go that nobody needs."""
        waiting, self.waiting = self.waiting, []
        for number, request in waiting:
            self.take(number, request)
        for one in everyone:
            for serial in [serial for serial, task in one.tasks.items() if task.ended]:
                task = one.tasks.pop(serial)
                self.say(task.number, task.result() or b"lost\n" + one.last_words())
                if COMMANDS not in self.interpreters and not self.ending:
                    # What most plays come to: it is there when they do.
                    with suppress(OSError):  # there is no room
                        self.start(COMMANDS, f"'{sys.executable}'", "", one.path)
        for one in [one for one in self.leaving if one.leave()]:
            self.leaving.remove(one)
            one.socket.close()
            one.errors.close()

    def answer_ring(self) -> None:
        """Do what was rung for."""
        self.rung += os.read(self.ring, 1 << 16)
        *lines, self.rung = self.rung.split(b"\n")
        for line in lines:
            if line == b"quit":
                self.ending = time.monotonic()
            elif line.startswith(b"-"):
                self.forget(int(line[1:]))
            elif line:
                number, _space, packed = line.lstrip(b"=").partition(b" ")
                self.receive(int(number), packed)

    def receive(self, number: int, packed: bytes) -> None:
        """Take a request, which is ``packed`` or in a file."""
        path = self.path(number, "in")
        try:
            # Not buffered: what is read ahead would be given back, and the offset is the interpreter's by then.
            file = open(path, "w+b" if packed else "r+b", buffering=0)  # noqa: SIM115 - the request keeps it
            os.unlink(path)
            if packed:
                header, _newline, rest = zlib.decompress(binascii.a2b_base64(packed)).partition(b"\n")
                start = 0
                if file.write(rest) != len(rest):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            else:
                header = file.read(LARGEST).partition(b"\n")[0]
                start = len(header) + 1
        except FileNotFoundError:  # rung for twice: it is taken once
            return
        except OSError:  # there is no room for it
            self.say(number, b"plain\n")
            return
        self.take(number, Request(header, file, start))

    def forget(self, number: int) -> None:
        for path in (self.archive_beside(number), *(self.path(number, suffix) for suffix in SUFFIXES)):
            with suppress(OSError):
                os.unlink(path)

    def sweep(self) -> None:
        """Remove the files of clients that have not been heard of for long and wait for nothing."""
        everyone = [*self.interpreters.values(), *self.leaving]
        at_work = {task.number for one in everyone for task in one.tasks.values()}
        for name in os.listdir(self.home):
            stem, _dot, suffix = name.partition(".")
            with suppress(OSError):
                old = time.time() - os.stat(f"{self.home}/{name}").st_mtime > IDLE_SECONDS
                if suffix == "rc" and old and int(stem) not in at_work:
                    self.forget(int(stem))

    def take(self, number: int, request: Request) -> None:
        """Hand a request to its interpreter, or say why not, if somebody waits for the answer.

        It waits itself for an interpreter that starts. And what may remove a user waits for those interpreters to end
        that may be such a user's.
        """
        answer = b""
        if os.path.exists(self.path(number, "rc")):
            try:
                brought = self.path(number, "archive"), self.archive_beside(number)
                request.content, answer = self.archives.found(request.archive, *brought)
                waits = not answer and request.users and self.others_leave(request)
                one = None if answer or waits or self.ending else self.interpreter(request)
                if waits or (one and one.starts):
                    self.waiting.append((number, request))
                    return
                if not answer and not (one and self.handed_over(one, number, request)):
                    answer = b"plain\n"
            except OSError:  # there is no room for what it takes
                answer = b"plain\n"
        request.file.close()
        if answer:
            self.say(number, answer)

    def others_leave(self, request: Request) -> bool:
        """End what become has started, but for the request's own; return whether some of that is about to end."""
        for key in [key for key, one in self.interpreters.items() if one.marker and key != request.key]:
            self.leaving.append(self.interpreters.pop(key))
        return any(one.marker and not one.tasks and not one.dead for one in self.leaving)

    def handed_over(self, one: Interpreter, number: int, request: Request) -> bool:
        """Give a request to an interpreter; return False if that is not ready, or has ended."""
        if not one.ready or one.dead:
            return False
        self.say(number, b"")
        return one.hand_over(number, request, f"{self.home}/{number}")

    def interpreter(self, request: Request) -> Interpreter | None:
        """Return the interpreter for a request, which may be one that starts; None if there is no room for one."""
        key = request.key
        one = self.interpreters.get(key)
        if one is not None and ((one.dead and not one.failed) or not one.surroundings.same()):
            self.leaving.append(self.interpreters.pop(key))
            one = None
        return one or self.start(key, request.command or f"'{sys.executable}'", request.marker, request.path)

    def start(self, key: str, command: str, marker: str, path: str) -> Interpreter | None:
        """Start an interpreter; return None if there is no room for one."""
        if free_memory() < LEAST_FREE:
            return None
        if len(self.interpreters) >= MOST_INTERPRETERS:
            oldest = min(self.interpreters, key=lambda other: self.interpreters[other].used)
            if time.monotonic() - self.interpreters[oldest].used < LEAST_SECONDS:
                return None
            self.leaving.append(self.interpreters.pop(oldest))
        surroundings = Surroundings(WATCHED)
        spawned = None
        if key == COMMANDS and self.login and self.login.same():  # else a copy is not what a login would be by now
            spawned = self.copy.start("commands.py")
        program = "commands.py" if key == COMMANDS else "modules.py"
        spawned = spawned or spawn(self.home, program, command, path)
        one = self.interpreters[key] = Interpreter(spawned, surroundings, marker, path)
        return one

    def say(self, number: int, content: bytes) -> None:
        """Add an answer to what its client reads; there is none if the client has gone."""
        with suppress(FileNotFoundError), open(self.path(number, "rc"), "r+b", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            answer = b"%d\n" % len(content) + content
            try:
                whole = file.write(answer) == len(answer)
            except OSError:
                whole = False
            if not whole:
                file.truncate(start)
                file.seek(start)
                file.write(b"5\nfull\n")


def serve_spool(home: str, ring: int, first: Spawned | None, began: float, copy: Copy) -> None:
    """Serve in the spool ``home``, which is the working directory, until nobody needs it any more.

    ``first`` is the interpreter that this was started for, since ``began`` (time); ``copy`` makes others of this.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what was started
    sys.path[:] = filter(None, sys.path)  # not what is in the spool
    server = Server(home, ring, copy)
    if first:
        server.adopt(first, began)
    server.serve()
