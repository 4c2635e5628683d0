# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: detect changes to files that a process reads at start (passwd, PAM, locale)."""

from __future__ import annotations

import os
from contextlib import suppress

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

CLOCK_SECONDS = 0.1  # by which the timestamps of files may lag
# Files that a login and become read before they start an interpreter; of a directory, all files.
WATCHED = [
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
]
MOST_FILES = 200  # checked per directory
# Most additions to these do not concern running processes.
TABLES = ("/etc/passwd", "/etc/group")


def signature_of(paths: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return a value that differs when one of the files has changed."""
    seen: list[tuple[Any, ...]] = []
    for path in all_of(paths):
        try:
            status = os.stat(path)
            seen.append((path, status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            seen.append((path, 0))
    return seen


def all_of(paths: Sequence[str]) -> list[str]:
    """Return these paths, each directory followed by the paths of its entries."""
    found = []
    for path in paths:
        found.append(path)
        with suppress(OSError):  # not a directory
            found += [f"{path}/{name}" for name in sorted(os.listdir(path))[:MOST_FILES]]
    return found


def changed_since(when: float, paths: Sequence[str]) -> bool:
    """Return whether one of the files may have changed since ``when``."""
    for path in all_of(paths):
        with suppress(OSError):
            if os.stat(path).st_ctime > when - CLOCK_SECONDS:
                return True
    return False


class Surroundings:
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
