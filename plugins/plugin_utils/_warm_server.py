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

import _socket
import array
import binascii
import errno
import functools
import itertools
import json
import os
import select
import signal
import sys
import time
import zlib
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.plugin_utils._warm_start import (
    LEAST_FREE,
    free_memory,
    piece,
    scratch,
    spawn,
)

try:  # what hashlib would take, without the time that importing that takes
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # until Python 3.11
    except ImportError:
        from hashlib import sha256

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, BinaryIO

    from ansible_collections.qemu.guest.plugins.plugin_utils._warm_start import Copy, Spawned

READY = b"\0qemu.guest ready\n"
IDLE_SECONDS = 600
END_SECONDS = 5.0  # how long results are kept for those who wait, when it is told to end
TICK_SECONDS = 60
MOST_INTERPRETERS = 6
LEAST_SECONDS = 60  # an interpreter of which somebody has had use so lately is ended for no other
CLOCK_SECONDS = 0.1  # by which the time of files may be behind
SUFFIXES = ("in", "archive", "out", "err", "rc")  # of a client's files
MOST_ARCHIVES = 32
MOST_PARTS = 8 << 20  # bytes
REMEMBERED = 12  # letters of a part's checksum, for clients
# How long a request waits for an interpreter, from its start: that takes about as long as the task would without.
START_SECONDS = 10.0
LARGEST = 1 << 16
MOST_KEPT = 64 << 10  # bytes of output that are given out with the exit status
COMMANDS = ""  # key of the interpreter for shell commands
# In place of an exit status: the interpreter has ended, or had no room for a child.
LOST = -1
NOT_RUN = -2
# What a new process would look at, and one that runs has looked at already.
WATCHED = [
    "/etc/environment",
    "/etc/default/locale",
    "/etc/locale.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/pam.d",
    "/etc/security",
    "/etc/security/limits.d",
    "/etc/login.defs",
    "/etc/hostname",
]
# What is added to these, mostly, concerns no process that is there.
TABLES = ("/etc/passwd", "/etc/group")


def signature(paths: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return something that differs when one of the files has changed."""
    seen: list[tuple[Any, ...]] = []
    for path in paths:
        try:
            status = os.stat(path)
            seen.append((path, status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            seen.append((path, 0))
    return seen


def changed_since(when: float, paths: Sequence[str]) -> bool:
    """Return whether one of the files may have been changed since a time."""
    for path in paths:
        with suppress(OSError):
            if os.stat(path).st_ctime > when - CLOCK_SECONDS:
                return True
    return False


class Surroundings:
    """What a new process would look at, as it is now."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths: list[str] = []
        self.seen: list[tuple[Any, ...]] = []
        self.tables: dict[str, bytes] = {}
        self.watch(paths)

    def watch(self, paths: Sequence[str]) -> None:
        """Look at these too from now on."""
        new = [path for path in paths if path not in self.paths]
        while True:  # until nothing has changed between the two
            seen = signature(new)
            tables = {path: content(path) for path in new if path in TABLES}
            if signature(new) == seen:
                break
        self.paths += new
        self.seen += seen
        self.tables.update(tables)

    def same(self) -> bool:
        """Return whether all is for a process that is there already as it would be for a new one."""
        now = signature(self.paths)
        for path, before, after in zip(self.paths, self.seen, now):  # noqa: B905 - Python 3.10
            if before != after:
                there = content(path) if path in TABLES else b""
                if path not in TABLES or not adds_others(self.tables[path], there):
                    return False
                self.tables[path] = there
        self.seen = now
        return True


def content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def adds_others(before: bytes, now: bytes) -> bool:
    """Return whether users, or groups that have no members, are all that was added to a table, and nothing changed."""
    added = now[len(before) :].splitlines()
    joins_nobody = all(line.endswith(b":") for line in added if line.count(b":") == 3)
    return now.startswith(before) and before.endswith(b"\n") and joins_nobody


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


class Archives:
    """The archives of modules, in files as _warm_modules.Modules takes them, and parts for others."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.files: dict[str, BinaryIO] = {}  # by what is told of what is in them
        self.parts: dict[str, bytes] = {}  # by their checksum

    def found(self, digest: str, *paths: str) -> tuple[BinaryIO | None, bytes]:
        """Return the file of an archive; and if it is not here, the answer that says what is missing.

        What a client brings of it is in a file of its own, one of ``paths``: who found that it is missing may write it
        while another's is in use already, and the archive of another run, with the same in it, is another file.
        """
        if not digest:
            return None, b""
        if digest not in self.files:
            recipe, code = next(filter(any, map(self.brought, paths)), (b"", b""))
            if not recipe:
                return None, b"archive\n"
            checksum, _newline, lines = recipe.partition(b"\n")
            if sha256(digest.encode("ascii") + lines).hexdigest().encode("ascii") != checksum:
                return None, b"archive\n"  # it is that of another
            line, names, between = lines.split(b"\n", 2)
            parts = json.loads(line.decode("ascii"))
            missing = [name for name, _place in parts if name not in self.parts]
            if missing:
                named = " ".join(name[:REMEMBERED] for name in missing)
                return None, f"archive {named}\n".encode("ascii")
            self.keep(digest, b"\n".join([names, self.made(parts, between), code]))
        return self.files[digest], b""

    def brought(self, path: str) -> tuple[bytes, bytes]:
        """Take what a client has brought: keep the parts, and return the recipe, nothing if that is not there, and the
        code of these parts, if it is not left to an interpreter here.
        """
        try:
            with open(path, "rb") as file:
                pieces: list[bytes] = list(iter(functools.partial(piece, file), None))
            os.unlink(path)
            recipe, code, _programs, *parts = pieces
            recipe = zlib.decompress(recipe)
        except (FileNotFoundError, ValueError, zlib.error):  # or not whole
            return b"", b""
        self.parts.update({sha256(part).hexdigest(): part for part in parts})
        return recipe, code

    def made(self, parts: list[tuple[str, int]], between: bytes) -> bytes:
        """Return what the parts make, in base64."""
        pieces = []
        end = 0
        for name, place in parts:
            part = self.parts[name] = self.parts.pop(name)  # so that those which were not used for long come first
            pieces += [between[end:place], part]
            end = place
        pieces.append(between[end:])
        return binascii.b2a_base64(b"".join(pieces), newline=False)

    def keep(self, digest: str, content: bytes) -> None:
        """Put an archive into a file, and let go what is too much then."""
        file = scratch(self.home)
        file.write(content)
        file.flush()
        self.files[digest] = file
        while len(self.files) > MOST_ARCHIVES:
            self.files.pop(next(iter(self.files))).close()
        size = sum(map(len, self.parts.values()))
        while size > MOST_PARTS:
            size -= len(self.parts.pop(next(iter(self.parts))))


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
