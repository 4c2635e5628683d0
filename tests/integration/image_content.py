# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a guest's images, looked at without the guest and without mounting anything."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

from lab import host


class Filesystem:
    """The ext4 filesystem that an image of the chain has, taken out of it and never mounted."""

    def __init__(self, image: str, directory: Path) -> None:
        self._raw = directory / "raw"
        self._directory = directory
        argv = ["qemu-img", "convert", "--force-share", "-O", "raw", image, str(self._raw)]
        subprocess.run(argv, check=True)

    @property
    def needs_recovery(self) -> bool:
        return "needs_recovery" in self._said("dumpe2fs", "-h")

    def check(self) -> None:
        self._said("e2fsck", "-f", "-n")

    def database(self) -> sqlite3.Connection:
        """Return the database, with its log, as SQLite finds them there."""
        for name in ("database", "database-wal"):
            self._said("debugfs", "-R", f"dump /{name} {self._directory / name}")
        return sqlite3.connect(self._directory / "database")

    def _said(self, program: str, *options: str) -> str:
        argv = [host.find(program) or program, *options, str(self._raw)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout
