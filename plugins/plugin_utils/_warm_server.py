# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: keep warm interpreters (_warm_zygote.py), one per command line, and hand tasks to them.

Like the runner (_runner.py) it has a spool with a ring that only root can enter, and leaves results the same way. A
result may also be a word: C(plain), the task was not run and is to be run the plain way; C(blob), the module's archive
is missing here.
"""

from __future__ import annotations

import array
import functools
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, BinaryIO

    Table = dict[str, tuple[str, bool]]
    """By module's name: the digest of its source, and whether it is a package."""

READY = b"\0qemu.guest ready\n"
IDLE_SECONDS = 600
TICK_SECONDS = 60
MOST_INTERPRETERS = 6
MOST_BLOBS = 24
LEAST_FREE = 96 << 20  # bytes: below, no further interpreter is started
LARGEST = 1 << 20
MOST_KEPT = 64 << 10  # bytes of output that are given out with the exit status
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


class Output:
    """What a task writes to one of its streams: kept here as long as it is short, else in the file ``path``."""

    def __init__(self, path: str, letter: str, text: bytes) -> None:
        self.path = path
        self.letter = letter
        self.kept = text
        self.file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        if self.file is None and len(self.kept) + len(data) <= MOST_KEPT:
            self.kept += data
            return
        if self.file is None:
            self.file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - it is open while the task is at work
            self.file.write(self.kept)
            self.kept = b""
        self.file.write(data)

    def close(self) -> None:
        if self.file:
            self.file.close()

    def where(self) -> str:
        return self.letter if self.file else f"={len(self.kept)}" if self.kept else "-"


class Task:
    """A task at work: where its output comes from and goes to. ``rc`` is None until its process has ended."""

    def __init__(self, path: str, preamble: bytes, errors: bytes) -> None:
        self.rc: int | None = None
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

    @property
    def ended(self) -> bool:
        return self.rc is not None and not self.streams

    def result(self) -> bytes:
        if self.rc is None or self.rc < 0:
            return b"lost\n"
        out, err = self.outputs
        return f"{self.rc} {out.where()} {err.where()} .\n".encode("ascii") + out.kept + err.kept


class Interpreter:
    """A warm interpreter: from its start until it is dropped."""

    def __init__(self, home: str, request: Mapping[str, Any], table: Table, archive: str) -> None:
        self.ready = False
        self.dead = False
        self.failed = False  # it has never been ready, and is not to be tried again
        self.tasks: dict[int, Task] = {}
        self.marker = request["marker"]
        self.used = time.monotonic()
        self.preamble = b""
        self.watched = WATCHED
        self.seen = signature(self.watched)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.errors = tempfile.TemporaryFile(dir=home)  # noqa: SIM115 - it is read as long as this lives
        with theirs, open(home + "/zygote.py") as program, open(home + "/prologue") as prologue:
            source = f"run(main({table!r}, {archive!r}))\n"
            command = request["command"]
            lines = command.count("\n") + 1
            text = f"{lines}\n{command}\n{program.read()}\n{source}"
            with tempfile.TemporaryFile(dir=home) as stdin:
                stdin.write(text.encode("utf-8", "surrogateescape"))
                stdin.seek(0)
                self.process = subprocess.Popen(
                    ["/bin/sh", "-c", 'eval "$QEMU_GUEST"'],
                    env={"PATH": request["path"], "QEMU_GUEST": prologue.read()},
                    cwd="/",
                    stdin=stdin,
                    stdout=theirs.fileno(),
                    stderr=self.errors,
                    start_new_session=True,
                )

    def fresh(self) -> bool:
        return signature(self.watched) == self.seen

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
                task.rc = -1
        elif self.ready:
            ended = json.loads(message.decode("ascii"))
            self.tasks[ended["number"]].rc = ended["rc"]
        else:
            before, mark, paths = message.partition(READY)
            self.preamble += before
            if mark:
                # What changed while it started may have been seen before or after.
                self.ready = signature(WATCHED) == self.seen
                self.dead = not self.ready
                paths = json.loads(paths.decode("ascii"))
                self.watched = WATCHED + [path for path in paths if path not in WATCHED]
                self.seen = signature(self.watched)

    def hand_over(self, number: int, request: Mapping[str, Any], table: Table, payload: int, path: str) -> None:
        self.errors.seek(0)
        was, now = self.marker.encode("ascii"), request["marker"].encode("ascii")
        preambles = [text.replace(was, now) if was else text for text in (self.preamble, self.errors.read())]
        task = Task(path, *preambles)
        message = json.dumps({"number": number, "modules": table}).encode("ascii")
        rights = array.array("i", [payload, *task.theirs]).tobytes()
        self.tasks[number] = task
        try:
            self.socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError:
            self.dead = True
            task.rc = -1
        for descriptor in task.theirs:
            os.close(descriptor)
        self.used = time.monotonic()


class Server:
    """The spool, the interpreters, and what goes on between them."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.interpreters: dict[str, Interpreter] = {}
        self.leaving: list[Interpreter] = []  # those that have no key any more, but tasks
        self.blobs: dict[str, tuple[Table, str]] = {}  # digest: (names, archive), checked
        self.ring = os.open(home + "/ring", os.O_RDWR)
        self.rung = b""

    def path(self, number: int, suffix: str) -> str:
        return f"{self.home}/{number}.{suffix}"

    def serve(self) -> None:
        """Serve until told to end, or idle for long."""
        last = swept = time.monotonic()
        while True:
            if time.monotonic() - swept > IDLE_SECONDS:
                swept = time.monotonic()
                self.sweep()
            everyone = [*self.interpreters.values(), *self.leaving]
            sources: dict[int, Callable[[], bool | None]] = {self.ring: self.answer_ring}
            for one in everyone:
                if not one.dead:
                    sources[one.socket.fileno()] = one.listen
                for task in one.tasks.values():
                    sources.update({stream: functools.partial(task.copy, stream) for stream in task.streams})
            ready = select.select(list(sources), [], [], TICK_SECONDS)[0]
            if ready:
                last = time.monotonic()
            elif time.monotonic() - last > IDLE_SECONDS and not any(one.tasks for one in everyone):
                return
            for source in ready:
                if sources[source]():
                    return
            self.settle(everyone)

    def settle(self, everyone: Sequence[Interpreter]) -> None:
        """Give results out, and let those go that nobody needs."""
        for one in everyone:
            for number in [number for number, task in one.tasks.items() if task.ended]:
                self.say(number, one.tasks.pop(number).result())
        for one in [one for one in self.leaving if one.dead or not one.tasks]:
            self.leaving.remove(one)
            one.socket.close()
            one.errors.close()
            one.process.poll()

    def answer_ring(self) -> bool:
        """Do what was rung for; return whether that was to end."""
        self.rung += os.read(self.ring, 1 << 16)
        *lines, self.rung = self.rung.split(b"\n")
        for line in lines:
            if line == b"quit":
                return True
            if line.startswith(b"-"):
                self.forget(int(line[1:]))
            elif line:
                self.take(int(line))
        return False

    def forget(self, number: int) -> None:
        for suffix in ("in", "out", "err", "rc"):
            with suppress(OSError):
                os.unlink(self.path(number, suffix))

    def sweep(self) -> None:
        """Remove results that nobody has fetched for long: their client is gone."""
        for name in os.listdir(self.home):
            with suppress(OSError):
                if name.endswith(".rc") and time.time() - os.stat(f"{self.home}/{name}").st_mtime > IDLE_SECONDS:
                    self.forget(int(name[: -len(".rc")]))

    def take(self, number: int) -> None:
        """Hand a request to its interpreter, or say why not."""
        try:
            with open(self.path(number, "in"), "rb") as file:
                request = json.loads(file.readline().decode("ascii"))
                before, after = file.read(request["before"]), file.read()
            content = self.blob(request["blob"])
            if content is None:
                self.say(number, b"blob\n")
                return
            os.unlink(self.path(number, "in"))
        except OSError:
            return  # it was rung for twice
        table, archive = content
        one = self.interpreter(request, table, archive)
        if one is None:
            self.say(number, b"plain\n")
            return
        with tempfile.TemporaryFile(dir=self.home) as payload:
            payload.write(before + archive.encode("ascii") + after)
            payload.seek(0)
            one.hand_over(number, request, table, payload.fileno(), f"{self.home}/{number}")

    def blob(self, digest: str) -> tuple[Table, str] | None:
        """Return the names and the archive (base64) of what a module brings; None if they are not here."""
        if digest not in self.blobs:
            path = f"{self.home}/{digest}.blob"
            try:
                with open(path, "rb") as file:
                    content = file.read()
            except FileNotFoundError:
                return None
            if hashlib.sha256(content).hexdigest() != digest:
                return None
            os.unlink(path)
            table, _newline, archive = content.decode("ascii").partition("\n")
            self.blobs[digest] = (json.loads(table), archive)
            while len(self.blobs) > MOST_BLOBS:
                del self.blobs[next(iter(self.blobs))]
        return self.blobs[digest]

    def interpreter(self, request: Mapping[str, Any], table: Table, archive: str) -> Interpreter | None:
        """Return the interpreter for a request; None if there is none yet, and then get one ready."""
        key = request["key"]
        one = self.interpreters.get(key)
        if one is not None and ((one.dead and not one.failed) or not one.fresh()):
            self.leaving.append(self.interpreters.pop(key))
            one = None
        if one is None:
            if free_memory() > LEAST_FREE:
                if len(self.interpreters) >= MOST_INTERPRETERS:
                    oldest = min(self.interpreters, key=lambda other: self.interpreters[other].used)
                    self.leaving.append(self.interpreters.pop(oldest))
                self.interpreters[key] = Interpreter(self.home, request, table, archive)
            return None
        return one if one.ready and not one.dead else None

    def say(self, number: int, content: bytes) -> None:
        with open(self.path(number, "new"), "wb") as file:
            file.write(content)
        os.rename(self.path(number, "new"), self.path(number, "rc"))


def free_memory() -> int:
    with open("/proc/meminfo") as table:
        for line in table:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def main(home: str) -> None:
    """Serve in the spool ``home``, and remove it at the end. The working directory is that, under another name."""
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with open("first", "rb") as file:
        first = json.loads(file.readline().decode("ascii"))
    os.unlink("first")
    os.mkfifo("ring")
    with open("pid", "w") as file:
        file.write(f"{os.getpid()}\n")
    os.rename(os.getcwd(), home)
    try:
        server = Server(home)
        os.umask(0o022)  # for interpreters; all files in the spool are in a directory that only root can enter
        known = server.blob(first["blob"])
        if known:
            server.interpreter(first, *known)
        server.serve()
    finally:
        # At once, and not what another has put there.
        with suppress(OSError):
            if os.path.samefile(home, "."):
                gone = f"{home}.gone.{os.getpid()}"
                os.rename(home, gone)
                shutil.rmtree(gone)


if __name__ == "__main__":
    main(sys.argv[1])
