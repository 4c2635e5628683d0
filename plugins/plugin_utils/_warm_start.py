# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: make a spool, and serve there (_warm_server.py)."""

from __future__ import annotations

import os
import sys
import time
import zlib

# What was made by one that was killed meanwhile.
STALE_SECONDS = 30
NO_ROOM = 75  # exit status: the next one may come to another end


def main(home: str, parts: str) -> None:
    """Make the spool ``home``, serve there, and remove it at the end.

    ``parts`` are the names and sizes of what comes behind this program.
    """
    os.umask(0o077)
    if not begun(home):
        return
    try:
        unpack(parts)
        serve(home, made(home))
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


def serve(home: str, ring: int) -> None:
    with open("server.py", "rb") as file:
        program = compile(file.read(), "server.py", "exec")
    os.unlink("server.py")
    names = {"__name__": "server"}
    exec(program, names)
    names["main"](home, ring)  # type: ignore[operator]


if __name__ == "__main__":
    main(*sys.argv[1:])
