# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: make a spool when somebody's first task has ended, and serve there (_warm_server.py).

What the task was given is taken from where the runner has left it, instead of being sent once more.
"""

from __future__ import annotations

import os
import sys
import time
import zlib

# What was made by one that was killed meanwhile.
STALE_SECONDS = 120


def main(home: str, task: str, parts: str, stdin: str, before: str, archive: str) -> None:
    """Make the spool ``home``, serve there, and remove it at the end.

    ``parts`` are the names and sizes of what comes behind this program. The paths of what the runner has left of the
    task begin with ``task``. Its input had ``stdin`` bytes; ``archive`` of them, behind ``before`` others, are the
    module's.
    """
    os.umask(0o077)
    content = taken(task, int(stdin))
    if not begun(home):
        return
    try:
        unpack(parts)
        if content:
            use(content, int(before), int(archive))
        serve(home, made(home))
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


def taken(task: str, size: int) -> bytes:
    """Return the input of the task, which had so many bytes, if it is there; remove all that is left of the task."""
    content = b""
    try:
        with open(task + ".was", "rb") as file:
            file.seek(-size, os.SEEK_END)
            content = file.read()
    except OSError:
        pass
    directory, _slash, name = task.rpartition("/")
    try:
        for left in [entry for entry in os.listdir(directory) if entry.startswith(name + ".")]:
            os.unlink(f"{directory}/{left}")
    except OSError:  # the runner may have swept it away just now
        pass
    return content


def use(content: bytes, before: int, archive: int) -> None:
    """Complete the files with what the first interpreter gets ready for.

    ``content`` is the task's input; ``archive`` bytes of that, behind ``before`` others, are the module's. It is
    recognised by its checksum: an older runner leaves nothing, but others may have put a file in that place by now.
    """
    write("0.blob", content[before : before + archive], "ab")
    write("first", content[:before] + content[before + archive :], "ab")


def serve(home: str, ring: int) -> None:
    with open("server.py", "rb") as file:
        program = compile(file.read(), "server.py", "exec")
    names = {"__name__": "server"}
    exec(program, names)
    names["main"](home, ring)  # type: ignore[operator]


if __name__ == "__main__":
    main(*sys.argv[1:])
