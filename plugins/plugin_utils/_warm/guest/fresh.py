# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: make a fork of a resident interpreter equal to a new one (zygote.py).

A resident interpreter is started without site (python -S), so it has run no code of users or sites, and holds only the
interpreter, the standard library and modules of payloads. ``renew`` reads everything else that Python reads at start,
in the fork. ``Fingerprint`` covers files that cannot be read again: when one has changed, the resident process is
replaced.
"""

from __future__ import annotations

import os
import signal
import site
import sys
import time
from contextlib import suppress
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from typing import Any

# The C library reads these once. They may appear and disappear.
LOCALES = ("/usr/lib/locale", "/usr/lib/locale/locale-archive")
# OpenSSL reads these when it is loaded.
CRYPTO = (
    "/etc/ssl/openssl.cnf",
    "/usr/local/ssl/openssl.cnf",
    "/usr/lib/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/tls/openssl.d",
    "/etc/crypto-policies/back-ends/opensslcnf.config",
)
# With one of these set, Python may import other modules than its own while it starts.
UNSAFE = ("PYTHONPATH", "PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONWARNINGS")
NO_SITE = 6  # index of no_site in sys.flags, since Python 3.2


def reset_signals() -> None:
    """Set signal handlers as in a Python that a login shell has just started."""
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):  # some cannot be set
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)


def leave_directory() -> str:
    """Change to the root directory, so that no other filesystem stays busy; return the path of the previous one.

    Stay, and return an empty path, if there is no way back: children then inherit the directory.
    """
    try:
        directory = os.getcwd()
    except OSError:
        return "/"
    if not os.access(f"{directory}/.", os.X_OK):
        return ""
    os.chdir("/")
    return directory


class Fingerprint:
    """The files that this process was started from, and their state at that time."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, ...] | None] = {}
        self.lost = False  # a file was replaced before its signature was taken
        self.descriptors: list[int] = []  # that libraries work with
        self.update()

    def update(self) -> None:
        """Add the files that were loaded since the last call."""
        mapped = set(mapped_files())
        beside = os.path.dirname(sys.executable)
        paths = {*mapped, *sys.path, *LOCALES, sys.executable, f"{beside}/pyvenv.cfg", f"{beside}/../pyvenv.cfg"}
        if any("libcrypto" in path for path in mapped):
            paths.update(CRYPTO, filter(None, [os.environ.get("OPENSSL_CONF")]))
        self.lost = self.lost or any(path.endswith(" (deleted)") for path in mapped)
        for path in paths.difference(self.seen):
            self.seen[path] = signature(path)
        self.descriptors = descriptors_of(mapped)

    def changed(self) -> bool:
        """Return whether a new process would be started from other files."""
        return self.lost or any(signature(path) != seen for path, seen in self.seen.items())

    def is_at_home(self) -> bool:
        """Return whether no file is on a filesystem that may be unmounted."""
        paths = [f"{os.path.realpath(path)}/" for path, seen in self.seen.items() if seen]
        return not any(path.startswith(place) for place in mount_points() for path in paths)


def signature(path: str) -> tuple[int, ...] | None:
    """Return a value that differs when a file was replaced or changed; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def mount_points() -> Iterator[str]:
    """Yield the places where filesystems are mounted, each with a slash, but for / and what is in /usr: those stay."""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            # Some characters are escaped, as in Python's strings.
            place = os.fsdecode(line.split(b" ", 5)[4].decode("unicode_escape").encode("latin-1"))
            if place != "/" and not f"{place}/".startswith("/usr/"):
                yield f"{place}/"


def mapped_files() -> Iterator[str]:
    """Yield the paths of the files that this process has mapped: its executable and the libraries."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path and not path.startswith(("dev/", "memfd:", "SYSV")):  # shared memory
                yield f"/{path}"


def descriptors_of(paths: Container[str]) -> list[int]:
    """Return this process's descriptors of these files, in order.

    A library that has its own file open may map more of it later, as libffi does for the callbacks of ctypes.
    """
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{name}") in paths:
                found.append(int(name))
    return sorted(found)


def close_others(kept: Iterable[int]) -> None:
    """Close all descriptors but the standard ones and those ``kept``, which are in order."""
    start = 3
    for descriptor in kept:
        os.closerange(start, descriptor)
        start = max(start, descriptor + 1)
    os.closerange(start, 1 << 10)


class Flags(tuple):  # type: ignore[type-arg]
    """sys.flags as in a Python that was started with site."""

    no_site = 0
    real: Any = sys.flags

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __repr__(self) -> str:
        return repr(self.real).replace("no_site=1", "no_site=0")


def renew(asked: Iterable[str]) -> list[str]:
    """In a fork: read what a new Python reads at start: site directories, .pth files, sitecustomize, time zone.

    Return those modules, of the ones ``asked`` for in vain before, that can be imported now.
    """
    sys.flags = Flags([*Flags.real[:NO_SITE], 0, *Flags.real[NO_SITE + 1 :]])  # type: ignore[assignment]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = [word for word in sys.orig_argv if word != "-S"]
    paths, finders = [*filter(None, sys.path)], [*sys.meta_path]
    sys.path[:] = paths
    site.main()
    # The modules were not in the directories that this process has searched.
    places = [path for path in sys.path if path not in paths]
    others = [finder for finder in sys.meta_path if finder not in finders]
    found = [
        name
        for name in asked
        if PathFinder.find_spec(name, places) or any(has_module(finder, name) for finder in others)
    ]
    sys.path.insert(0, "")  # as for a program on standard input
    read_zone()
    platform: Any = sys.modules.get("platform")
    for name in ("_uname_cache", "_os_release_cache"):
        if getattr(platform, name, None) is not None:
            setattr(platform, name, None)
    getattr(platform, "_platform_cache", {}).clear()
    return found


def read_zone() -> None:
    """Make the C library read the time zone's file again, as it does after another zone was set."""
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "UTC0"
    time.tzset()
    if zone is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = zone
    time.tzset()


def has_module(finder: Any, name: str) -> bool:
    try:
        return finder.find_spec(name, None) is not None
    except (AttributeError, ImportError, ValueError):  # the finder is of an old kind, or fails
        return False
