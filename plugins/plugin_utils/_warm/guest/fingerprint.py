# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: detect what makes an interpreter stale.

``LoginFiles`` are files that a login and become read before they start an interpreter (passwd, PAM). ``Fingerprint``
covers the files that an interpreter itself was started from (its executable, libraries, locales).
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
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
LINKS = "/etc/ld.so.cache"  # where the dynamic linker finds libraries
CLOCK_SECONDS = 0.1  # by which the timestamps of files may lag
# Files that a login and become read before they start an interpreter; of a directory, all files.
WATCHED = (
    "/etc/environment",
    "/etc/default/locale",
    "/etc/locale.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/sudoers-rs",
    "/etc/sudo.conf",
    "/etc/doas.conf",
    "/etc/doas.d",
    "/etc/pam.conf",
    "/etc/pam.d",
    "/etc/security",
    "/etc/security/limits.d",
    "/etc/login.defs",
    "/etc/ld.so.preload",
)
MOST_FILES = 200  # checked per directory
# Most additions to these do not concern running processes.
TABLES = ("/etc/passwd", "/etc/group")


def statuses(paths: Sequence[str]) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield each path with its status, a directory followed by its entries. The status is None if nothing is there."""
    for path in paths:
        status = status_of(path)
        yield path, status
        if status and stat.S_ISDIR(status.st_mode):
            with suppress(OSError):  # it vanished
                for name in sorted(os.listdir(path))[:MOST_FILES]:
                    yield f"{path}/{name}", status_of(f"{path}/{name}")


def status_of(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def signature_of(paths: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return a value that differs when one of the files has changed: its content, its mode or its owner."""
    return [
        (path, status.st_ino, status.st_ctime_ns, status.st_size) if status else (path,)
        for path, status in statuses(paths)
    ]


def changed_since(when: float, paths: Sequence[str]) -> bool:
    """Return whether one of the files may have changed since ``when``."""
    return any(status and status.st_ctime > when - CLOCK_SECONDS for _path, status in statuses(paths))


class LoginFiles:
    """The present state of the files that a new login would read; see TABLES for ``tables``."""

    def __init__(self, paths: Sequence[str], tables: Sequence[str] = TABLES) -> None:
        self.paths = paths
        while True:  # until nothing has changed between two looks
            self.seen = signature_of(paths)
            self.tables = {path: content(path) for path in paths if path in tables}
            if signature_of(paths) == self.seen:
                break

    def same(self) -> bool:
        """Return whether a running process has read what a new one would read."""
        now = signature_of(self.paths)
        if len(now) != len(self.seen):
            return False
        for before, after in zip(self.seen, now):
            path = after[0]
            if before != after:
                there = content(path) if path in self.tables else b""
                if path not in self.tables or not adds_others(self.tables[path], there):
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
    """Return whether a table only gained users, or groups without members, and nothing else changed."""
    added = now[len(before) :].splitlines()
    joins_nobody = all(line.endswith(b":") for line in added if line.count(b":") == 3)
    return now.startswith(before) and before.endswith(b"\n") and joins_nobody


class Fingerprint:
    """The files that this process was started from, and their state at that time."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, ...] | None] = {}
        self.lost = False  # a file was replaced before its signature was taken
        self.descriptors: list[int] = []  # that libraries work with
        self.links_seen, self.links = signature(LINKS), content(LINKS)
        self.update()

    def update(self) -> None:
        """Add the files that were loaded since the last call."""
        mapped = set(mapped_files())
        beside = os.path.dirname(sys.executable)
        paths = {*mapped, *sys.path, *LOCALES, sys.executable, f"{beside}/pyvenv.cfg", f"{beside}/../pyvenv.cfg"}
        paths.update(packages())
        if any("libcrypto" in path for path in mapped):
            paths.update(CRYPTO, filter(None, [os.environ.get("OPENSSL_CONF")]))
        self.lost = self.lost or any(path.endswith(" (deleted)") for path in mapped)
        for path in paths.difference(self.seen):
            self.seen[path] = signature(path)
        self.descriptors = descriptors_of(mapped)

    def changed(self) -> bool:
        """Return whether a new process would be started from other files."""
        return self.lost or any(signature(path) != seen for path, seen in self.seen.items()) or self.finds_others()

    def finds_others(self) -> bool:
        """Return whether the dynamic linker may find other libraries of the names that this process has loaded.

        Most that are installed have other names.
        """
        seen = signature(LINKS)
        if seen == self.links_seen:
            return False
        links, names = content(LINKS), set(map(library_name, map(os.fsencode, mapped_files())))
        if libraries(links, names) != libraries(self.links, names):
            return True
        self.links_seen, self.links = seen, links
        return False

    def is_at_home(self) -> bool:
        return are_at_home(path for path, seen in self.seen.items() if seen)


def are_at_home(paths: Iterable[str]) -> bool:
    """Return whether no file is on a filesystem that may be unmounted."""
    real = [f"{os.path.realpath(path)}/" for path in paths]
    return not any(path.startswith(place) for place in mount_points() for path in real)


def library_name(path: bytes) -> bytes:
    """Return the name of a library without its version; empty if it is none."""
    name, dot, _version = path[path.rfind(b"/") + 1 :].partition(b".so")
    return name if dot else b""


def libraries(links: bytes, names: Container[bytes]) -> list[bytes]:
    """Return the paths of libraries of these names in the dynamic linker's table."""
    return [path for path in links.split(b"\0") if path.startswith(b"/") and library_name(path) in names]


def signature(path: str) -> tuple[int, ...] | None:
    """Return a value that differs when a file was replaced or changed; None if there is no file."""
    status = status_of(path)
    return (status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size) if status else None


def mount_points() -> Iterator[str]:
    """Yield the places where filesystems are mounted, each with a slash, but for / and what is in /usr: those stay."""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            # Some characters are escaped, as in Python's strings.
            place = os.fsdecode(line.split(b" ", 5)[4].decode("unicode_escape").encode("latin-1"))
            if place != "/" and not f"{place}/".startswith("/usr/"):
                yield f"{place}/"


def packages() -> Iterator[str]:
    """Yield the directories of the standard library's packages of which something was imported."""
    library = os.path.dirname(os.__file__)
    for module in [*sys.modules.values()]:
        directory = os.path.dirname(getattr(module, "__file__", None) or "")
        if directory.startswith(f"{library}/"):
            yield directory


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
