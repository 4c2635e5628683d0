# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: make a spool, start an interpreter, and serve there (_warm_server.py).

The interpreter starts first: a task waits for that, and what serves takes about as long to load. If its command
line is nothing but an interpreter, it was started beside this already, and comes when it is there (_warm_first.py).
"""

from __future__ import annotations

import _socket
import os
import signal
import sys
import time
import zlib

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    Spawned = tuple[_socket.socket, BinaryIO]
    """The other end of an interpreter's standard output, and the file to which its errors go."""

# What was made by one that was killed meanwhile.
STALE_SECONDS = 30
NO_ROOM = 75  # exit status: the next one may come to another end
LEAST_FREE = 96 << 20  # bytes: below, no further interpreter is started


def main(home: str, parts: str, beside: str) -> None:
    """Make the spool ``home``, serve there, and remove it at the end.

    ``parts`` are the names and sizes of what comes behind this program. If an interpreter was started, the
    names of its files begin with ``beside``.
    """
    os.umask(0o077)
    if not begun(home):
        return
    try:
        unpack(parts)
        began, command, path = time.time(), taken("command"), taken("path")
        first = None
        if free_memory() > LEAST_FREE:
            first = awaited(beside) or spawn(".", "modules.py", command, path)
        else:
            unwanted(beside)
        serve(home, made(home), first, began, beside)
    except OSError:  # whatever else it is
        sys.excepthook(*sys.exc_info())
        sys.exit(NO_ROOM)
    finally:
        for path in (home, home + ".new"):
            if os.path.exists(path) and os.path.samefile(path, "."):  # not what another has put there
                remove(path)


def begun(home: str) -> bool:
    """Make a directory for the spool, and enter it; return False if there is a server, or another starts."""
    new = home + ".new"
    try:
        if time.time() - os.stat(new).st_mtime > STALE_SECONDS:
            remove(new)
    except OSError:  # there is none
        pass
    try:
        os.mkdir(new)
    except OSError:  # another has, or there is no room
        return False
    if serves(home):
        os.rmdir(new)
        return False
    if os.path.exists(home):
        remove(home)
    os.chdir(new)
    return True


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


def unpack(parts: str) -> None:
    """Write the files that were brought with this."""
    with open(0, "rb", closefd=False) as file:
        content = zlib.decompress(file.read())
    for part in parts.split(","):
        name, size = part.split(":")
        with open(name, "wb") as target:
            target.write(content[: int(size)])
        content = content[int(size) :]


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
    """Start an interpreter by a shell command, to run a program that is in ``home``; ``path`` is PATH before that."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    errors = scratch(home)
    with open(f"{home}/{program}") as file, open(f"{home}/prologue") as prologue, scratch(home) as stdin:
        text = f"{command.count(chr(10)) + 1}\n{command}\n{file.read()}"
        stdin.write(text.encode("utf-8", "surrogateescape"))
        stdin.seek(0)
        environment = {"PATH": path, "QEMU_GUEST": prologue.read()}
        start_shell(environment, [stdin.fileno(), theirs.fileno(), errors.fileno()])
    theirs.close()
    return ours, errors


def awaited(beside: str) -> Spawned | None:
    """Return where an interpreter will come to, and the file to which its errors go; None if none will."""
    try:
        errors = open(f"{beside}.err", "r+b")  # noqa: SIM115 - it is for whoever asks
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        listener.bind(f"{beside}.socket")
        listener.listen(1)
    except OSError:  # there is none, or it could not come here
        unwanted(beside)
        return None
    return listener, errors


def unwanted(beside: str) -> None:
    """Have no interpreter come."""
    if os.path.exists(f"{beside}.err"):
        os.unlink(f"{beside}.err")


def scratch(home: str) -> BinaryIO:
    """Return a file that nobody finds, open for reading and writing."""
    path = f"{home}/scratch"
    file = open(path, "x+b")  # noqa: SIM115 - it is for whoever asks
    os.unlink(path)
    return file


def start_shell(environment: dict[str, str], descriptors: Sequence[int]) -> None:
    """Start what _shell.py has in its program, with these as its standard descriptors."""
    if not os.fork():
        try:
            os.setsid()
            os.umask(0o022)
            os.chdir("/")
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):  # by Python and by us
                signal.signal(ignored, signal.SIG_DFL)
            os.execve("/bin/sh", ["/bin/sh", "-c", 'eval "$QEMU_GUEST"'], environment)
        finally:
            os._exit(127)


def serve(home: str, ring: int, first: Spawned | None, began: float, beside: str) -> None:
    with open("server.py", "rb") as file:
        program = compile(file.read(), "server.py", "exec")
    os.unlink("server.py")
    exec(program, globals())
    globals()["serve_spool"](home, ring, first, began, beside)


if __name__ == "__main__":
    main(*sys.argv[1:])
