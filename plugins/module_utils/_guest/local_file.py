# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of this machine that get what comes from the guest."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from typing import Iterator

__all__ = ("free_space", "replacing")


def free_space(where: int | str) -> int | None:
    """Return the free bytes of the filesystem of a path, or of an open file; None if it has no use for space."""
    try:
        about = os.fstatvfs(where) if isinstance(where, int) else os.statvfs(where)
    except OSError:
        return None
    return about.f_bavail * about.f_frsize if about.f_blocks else None


@contextmanager
def replacing(path: bytes) -> Iterator[bytes]:
    """Yield the path of a new file beside ``path``, whose place it takes at the end, if it has been written."""
    descriptor, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix=b".qga.")
    os.close(descriptor)
    try:
        yield new
        os.replace(new, path)
    except BaseException:  # KeyboardInterrupt included: leave no partial file
        os.unlink(new)
        raise
