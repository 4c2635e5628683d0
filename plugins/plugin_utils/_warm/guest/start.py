# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: make a spool, start an interpreter, and serve requests (server.py).

Until the first task runs, a guest spends most of the time starting Python, so it is started once. If the wanted command
line is nothing but an interpreter, it runs this program, and the wanted interpreter is a fork of that. The interpreter
is started before the server: a task waits for it.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from contextlib import suppress

from .bytecode import unpacked
from .launch import LEAST_FREE, MODULE_RUNNER, Launcher, free_memory
from .wire import NO_ROOM, PARTS_SUFFIX, RING, piece

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from .loader import Loader

# How long to wait for the client's archive, which takes about as long to arrive as Python to start.
LATE_SECONDS = 1.0
PAUSE = 0.01


def start(loader: Loader, given: dict[str, str], spool: str, prefix: str, forkable: str) -> None:
    """Make the ``spool``, serve there, and remove it at the end.

    ``given`` has the header of the request that this was started for (``first``), its ``command`` and ``path``, and the
    ``prologue`` of shells. The names of this start's files begin with ``prefix``. For ``forkable``, see Launcher.
    """
    began = os.fstat(2).st_mtime  # when the shell created that file, to start this
    with suppress(OSError):  # it leads a session already
        os.setsid()
    itself, launcher = os.getpid(), Launcher(loader, given["prologue"], forkable.split())
    try:
        lock = enter_new_spool(spool)
        if lock < 0:
            return
        launcher.recipe, launcher.code, programs = wait_for_archive(f"{prefix}.{PARTS_SUFFIX}")
        loader.codes.update(unpacked(programs))
        first = None
        if free_memory() > LEAST_FREE:
            # If the command line has printed something, each task must print it too: only an interpreter that it
            # starts has that recorded. Descriptor 2 is the file .err of this start.
            printed = os.fstat(2).st_size
            first = None if printed else launcher.fork(MODULE_RUNNER)
            first = first or launcher.spawn(MODULE_RUNNER, given["command"], given["path"])
        launcher.recipe = launcher.code = b""  # not needed any more
        ring = publish_spool(spool)
        os.close(lock)
        from .server import serve_spool  # imported after the interpreter has begun

        with suppress(FileNotFoundError):
            os.unlink(f"{prefix}.pid")
        os.unlink(f"{prefix}.err")  # without it, the shell knows that the start succeeded
        serve_spool(spool, ring, launcher, given["first"] if first else "", first, began)
    except OSError:  # whatever failed, it may work later
        sys.excepthook(*sys.exc_info())
        sys.exit(NO_ROOM)
    finally:
        for path in (spool, spool + ".new") if os.getpid() == itself else ():
            if os.path.exists(path) and os.path.samefile(path, "."):  # not another server's directory
                remove(path)


def enter_new_spool(spool: str) -> int:
    """Make a directory for the spool, and enter it; return -1 if a server is there, or starting.

    Otherwise return the descriptor of a lock, which this process holds until the spool has its name, or it ends.
    """
    lock = os.open(spool + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_served(spool):
            raise BlockingIOError
    except BlockingIOError:
        os.close(lock)
        return -1
    for left in (spool, spool + ".new"):  # by a server that was killed
        if os.path.exists(left):
            remove(left)
    os.mkdir(spool + ".new")
    os.chdir(spool + ".new")
    return lock


def publish_spool(spool: str) -> int:
    """Complete the spool and give it its name; return its ring."""
    os.mkfifo(RING)
    with open("pid", "w") as file:
        file.write(f"{os.getpid()}\n")
    ring = os.open(RING, os.O_RDWR)
    os.rename(spool + ".new", spool)
    return ring


def is_served(spool: str) -> bool:
    """Return whether a server reads the ring."""
    try:
        os.close(os.open(f"{spool}/{RING}", os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def remove(directory: str) -> None:
    """Remove a directory of files; a rename makes them vanish all at once."""
    gone = f"{directory}.gone.{os.getpid()}"
    os.rename(directory, gone)
    for name in os.listdir(gone):
        os.unlink(f"{gone}/{name}")
    os.rmdir(gone)


def wait_for_archive(path: str) -> list[bytes]:
    """Wait for the client's archive, and return its first three pieces."""
    end = time.monotonic() + LATE_SECONDS
    while time.monotonic() < end:
        with suppress(OSError), open(path, "rb") as file:
            pieces = [piece(file) for _number in range(3)]
            if None not in pieces:
                return [content or b"" for content in pieces]
        time.sleep(PAUSE)
    return [b""] * 3
