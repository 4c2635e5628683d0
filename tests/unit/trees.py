# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories that are copied as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def tree(top: Path) -> dict[str, Any]:
    """Return what is in a directory: content and mode of files, targets of links, modes of directories."""
    found: dict[str, Any] = {}
    for path in top.rglob("*"):
        mode = f"{path.lstat().st_mode & 0o7777:o}"
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = mode if path.is_dir() else (path.read_text(), mode)
    return found
