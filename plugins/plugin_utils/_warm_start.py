# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: make a spool beside somebody's first task, and serve there (_warm_server.py) when that has ended.

Whatever is done here slows the task down, so it is only what cannot wait: there is a ring, at which others wait instead
of starting a second server; and what the task was given is taken from its own standard input, instead of being sent
once more.
"""

from __future__ import annotations

import os
import select
import sys
import time
import zlib

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable

# How long the task, and who rings, are waited for.
BESIDE_SECONDS = 5.0
LOOK_SECONDS = 0.05
# What was made by one that was killed meanwhile.
STALE_SECONDS = 120


def main(home: str, task: str, parts: str, stdin: str, before: str, archive: str) -> None:
    """Make the spool ``home``, serve there, and remove it at the end.

    ``parts`` are the names and sizes of what comes behind this program. The paths of the task, in the runner's spool,
    begin with ``task``. Its input has ``stdin`` bytes; ``archive`` of them, behind ``before`` others, are the module's.
    """
    os.umask(0o077)
    if not begun(home):
        return
    try:
        unpack(parts)
        ring = made(home)
        wait(ring, task, lambda: take_input(task, int(stdin), int(before), int(archive)))
        serve(home, ring)
    except OSError:  # there is no room; whatever else it is, the next one would come to the same end
        sys.excepthook(*sys.exc_info())
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
        write(name, content[: int(size)])
        content = content[int(size) :]


def write(name: str, content: bytes, mode: str = "wb") -> None:
    with open(name, mode) as file:
        file.write(content)


def take_input(task: str, size: int, before: int, archive: int) -> bool:
    """Complete the files with what the first interpreter gets ready for; return False if that is not there.

    The task's input has ``size`` bytes; ``archive`` of them, behind ``before`` others, are the module's. What was read
    is recognised by its checksum: others may have put another file in that place by now.
    """
    try:
        with open(task + ".pid") as file:
            path = f"/proc/{int(file.read())}/fd/0"
        if not os.path.isfile(path):
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            content = os.pread(descriptor, size, os.fstat(descriptor).st_size - size)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return False
    write("0.blob", content[before : before + archive], "ab")
    write("first", content[:before] + content[before + archive :], "ab")
    return True


def wait(ring: int, task: str, take: Callable[[], bool]) -> None:
    """Wait until the task has ended, or takes long, or somebody rings, and ``take`` its input while it is at work."""
    began = time.monotonic()
    taken = False
    while works(task) and time.monotonic() - began < BESIDE_SECONDS:
        taken = taken or take()
        if select.select([ring], [], [], LOOK_SECONDS)[0]:
            return


def works(task: str) -> bool:
    """Return whether the task waits to be run, or runs; see _runner.py for its files."""
    there = [os.path.exists(f"{task}.{suffix}") for suffix in ("in", "taken", "rc")]
    return any(there[:2]) and not there[2]


def serve(home: str, ring: int) -> None:
    with open("server.py", "rb") as file:
        program = compile(file.read(), "server.py", "exec")
    names = {"__name__": "server"}
    exec(program, names)
    names["main"](home, ring)  # type: ignore[operator]


if __name__ == "__main__":
    main(*sys.argv[1:])
