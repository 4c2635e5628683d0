# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: make a spool, start an interpreter, and serve there (server.py).

Of all that a guest has to do until the first task runs, starting Python is most, so it is started once. If the command
line of the interpreter that is wanted is nothing but one, this was started by that, and is copied then. The interpreter
goes first: a task waits for that.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import signal
import sys
import time
import zlib
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.bytecode import unpacked
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.file_ops import Commands
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.fresh import Fingerprint, reset_signals
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.module_runner import Modules
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.wire import input_pipe
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.zygote import main

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    import types
    from collections.abc import Sequence
    from typing import BinaryIO, NoReturn

    Spawned = tuple[_socket.socket, int]
    """The other ends of an interpreter's standard output, a stream socket, and of its standard error, a pipe."""

NO_ROOM = 75  # exit status: the next one may come to another end
LEAST_FREE = 96 << 20  # bytes: below, no further interpreter is started
OURS = 3  # where descriptors begin that are no standard ones
# How long what a client brings is waited for: it is about as long under way as Python takes to start.
LATE_SECONDS = 1.0
PAUSE = 0.01


def start(home: str, parts: str, beside: str, copies: str, packed: bytes) -> None:
    """Make the spool ``home``, serve there, and remove it at the end.

    ``packed`` is what came behind this program, and ``parts`` are the names and sizes of what is in it. Names of files
    for this begin with ``beside``. ``copies`` are the programs that a copy of this process may run, as if it was just
    started for that.
    """
    began = os.fstat(2).st_mtime  # when the shell made that file, to start this
    with suppress(OSError):  # it has one already
        os.setsid()
    itself, copy = os.getpid(), Copy(copies.split())
    try:
        lock = begun(home)
        if lock < 0:
            return
        unpack(parts, zlib.decompress(packed))
        command, path = taken("command"), taken("path")
        copy.take(*brought(f"{beside}.archive"))
        first = None
        if free_memory() > LEAST_FREE:
            # What is said at the start is to be said by each task.
            said = os.fstat(2).st_size
            first = (None if said else copy.start("modules.py")) or spawn(".", "modules.py", command, path)
        copy.recipe = copy.code = b""  # which nobody else needs
        ring = made(home)
        os.close(lock)
        learn_to_serve(copy)
        os.unlink(f"{beside}.err")  # for who looks whether this has served
        globals()["serve_spool"](home, ring, first, began, copy)
    except OSError:  # whatever else it is
        sys.excepthook(*sys.exc_info())
        sys.exit(NO_ROOM)
    finally:
        for path in (home, home + ".new") if os.getpid() == itself else ():
            if os.path.exists(path) and os.path.samefile(path, "."):  # not what another has put there
                remove(path)


def begun(home: str) -> int:
    """Make a directory for the spool, and enter it; return -1 if there is a server, or another starts.

    Else it is the descriptor of a lock, which who starts holds until the spool has its name, or it ends.
    """
    lock = os.open(home + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if serves(home):
            raise BlockingIOError
    except BlockingIOError:
        os.close(lock)
        return -1
    for left in (home, home + ".new"):  # of one that was killed
        if os.path.exists(left):
            remove(left)
    os.mkdir(home + ".new")
    os.chdir(home + ".new")
    return lock


def made(home: str) -> int:
    """Give the spool its name, now that there is all that it needs; return its ring."""
    os.mkfifo("ring")
    with open("pid", "w") as file:
        file.write(f"{os.getpid()}\n")
    ring = os.open("ring", os.O_RDWR)
    os.rename(home + ".new", home)
    return ring


def serves(home: str) -> bool:
    """Return whether somebody waits at the ring."""
    try:
        os.close(os.open(home + "/ring", os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def remove(directory: str) -> None:
    """Remove a directory of files, all at once."""
    gone = f"{directory}.gone.{os.getpid()}"
    os.rename(directory, gone)
    for name in os.listdir(gone):
        os.unlink(f"{gone}/{name}")
    os.rmdir(gone)


def unpack(parts: str, content: bytes) -> None:
    """Write the files that were brought with this."""
    for part in parts.split(","):
        name, size = part.split(":")
        with open(name, "wb") as target:
            target.write(content[: int(size)])
        content = content[int(size) :]


def brought(path: str) -> list[bytes]:
    """Wait for what a client brings, and return what comes first of that: see ``brought`` in _warm/payload.py."""
    end = time.monotonic() + LATE_SECONDS
    while time.monotonic() < end:
        with suppress(OSError), open(path, "rb") as file:
            pieces = [piece(file) for _number in range(3)]
            if None not in pieces:
                return [content or b"" for content in pieces]
        time.sleep(PAUSE)
    return [b""] * 3


def piece(file: BinaryIO) -> bytes | None:
    """Return the next piece of what a client brings; None if it is not there, all of it."""
    header = file.read(4)
    size = int.from_bytes(header, "little")
    content = file.read(size)
    return content if len(header) == 4 and len(content) == size else None


def taken(name: str) -> str:
    """Return what is in a file that was brought, and remove that."""
    with open(name, "rb") as file:
        text = file.read().decode("utf-8", "surrogateescape")
    os.unlink(name)
    return text


def free_memory() -> int:
    with open("/proc/meminfo") as table:
        for line in table:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def spawn(home: str, program: str, command: str, path: str) -> Spawned:
    """Start an interpreter by a shell command, to run a program that is in ``home``; ``path`` is PATH before that.

    It has nothing of this process but a socket and two pipes: it may be another user's.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    errors, theirs_too = os.pipe()
    with open(f"{home}/{program}") as file, open(f"{home}/prologue") as prologue:
        text = f"{command.count(chr(10)) + 1}\n{command}\n{file.read()}"
        stdin = input_pipe(text.encode("utf-8", "surrogateescape"))
        environment = {"PATH": path, "QEMU_GUEST": prologue.read()}
    try:
        start_shell(environment, [stdin, theirs.fileno(), theirs_too])
    except OSError:
        os.close(errors)
        raise
    finally:
        theirs.close()
        os.close(theirs_too)
        os.close(stdin)
    return ours, errors


class Copy:
    """Makes interpreters of this process, as if they were just started, for the programs for which that is so."""

    def __init__(self, programs: Sequence[str]) -> None:
        self.directory, self.umask = os.getcwd(), os.umask(0o077)
        self.programs = programs
        self.recipe = self.code = b""
        self.codes: dict[str, types.CodeType] = {}  # of programs, as far as it was brought
        self.fingerprint = Fingerprint()

    def take(self, recipe: bytes, code: bytes, programs: bytes) -> None:
        """Keep what a client has brought."""
        self.recipe, self.code, self.codes = recipe, code, unpacked(programs)

    def start(self, program: str) -> Spawned | None:
        """Start an interpreter; return None if that is not to be done in this way."""
        if program not in self.programs or self.fingerprint.changed():
            return None
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        errors, theirs_too = os.pipe()
        try:
            process = os.fork()
        except OSError:
            for end in (errors, theirs_too):
                os.close(end)
            raise
        if not process:
            try:
                ours.close()
                self.be(program, theirs, theirs_too)
            except SystemExit:  # of a task: its process ends as any
                raise
            except BaseException:  # whatever it is: a copy does not go on as what serves
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        theirs.close()
        os.close(theirs_too)
        return ours, errors

    def be(self, program: str, output: _socket.socket, errors: int) -> NoReturn:
        """Be an interpreter. Who has called this stays where it is: what that has open is closed here by number."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        with open(program, "rb") as file:
            text = file.read()
        be_apart(self.directory, self.umask, [nothing, output.fileno(), errors])
        output.close()
        os.closerange(OURS, 1 << 10)  # soon: as long as the ring is open, clients believe that somebody serves
        code = self.codes.get(program) or compile(text, "<stdin>", "exec", dont_inherit=True)
        reset_signals()
        exec(code, globals())
        work = Modules() if program == "modules.py" else Commands()
        work.expect(self.recipe, self.code)
        main(work, self.fingerprint)


def start_shell(environment: dict[str, str], descriptors: Sequence[int]) -> None:
    """Start what _guest/login_shell.py has in its program, with these as its standard descriptors."""
    if not os.fork():
        try:
            be_apart("/", 0o022, descriptors)
            reset_signals()
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
                signal.signal(ignored, signal.SIG_DFL)
            os.execve("/bin/sh", ["/bin/sh", "-c", 'eval "$QEMU_GUEST"'], environment)
        finally:
            os._exit(127)


def be_apart(directory: str, umask: int, descriptors: Sequence[int]) -> None:
    """In a new process: have a session of its own, and these as its standard descriptors."""
    os.setsid()
    os.umask(umask)
    os.chdir(directory)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)


def learn_to_serve(copy: Copy) -> None:
    with open("server.py", "rb") as file:
        program = copy.codes.pop("server.py", None) or compile(file.read(), "server.py", "exec")
    os.unlink("server.py")
    exec(program, globals())
