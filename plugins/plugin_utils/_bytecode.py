# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compile imported modules of this collection once, and keep their bytecode in __pycache__.

ansible-core loads collections without __pycache__, and each task of a playbook has its own process, where compiling
took longer than all the rest of a quick task here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType

__all__ = ("kept_bytecode",)

_COLLECTION = __name__.partition(".plugins.")[0]
_PACKAGES = (f"{_COLLECTION}.plugins.module_utils.", f"{_COLLECTION}.plugins.plugin_utils.")


class _Finder:
    """Finds this collection's own libraries as Python finds modules elsewhere."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not path or not fullname.startswith(_PACKAGES):
            return None
        return _finder(next(iter(path))).find_spec(fullname)


@functools.lru_cache(maxsize=16)
def _finder(directory: str) -> FileFinder:
    """Return what finds modules in a directory; it reads the directory once."""
    return FileFinder(directory, (SourceFileLoader, [".py"]))


@contextmanager
def kept_bytecode() -> Iterator[None]:
    """Keep the bytecode of this collection's libraries that are imported within this context."""
    sys.meta_path.insert(0, _Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)
