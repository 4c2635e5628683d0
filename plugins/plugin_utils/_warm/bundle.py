# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of guest/, packed to be sent to a guest.

They are read, not imported: each task makes a new connection, and most find the modules in the guest already.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import bytecode, loader

__all__ = ("code", "digest", "sources", "start_input")


@functools.lru_cache(maxsize=1)
def sources() -> dict[str, str]:
    """Return the source of each module, by its name."""
    files = sorted(file for file in (Path(__file__).parent / "guest").iterdir() if file.suffix == ".py")
    return {file.stem: file.read_text(encoding="utf-8") for file in files if not file.stem.startswith("_")}


@functools.lru_cache(maxsize=1)
def digest() -> str:
    """Return a digest of this version of the modules, in 16 letters."""
    return hashlib.sha256("\0".join(itertools.chain(*sources().items())).encode("utf-8")).hexdigest()[:16]


def code() -> bytes:
    """Return the modules' code, for interpreters that compile as this one does."""
    return bytecode.packed({name: loader.compiled(name, source) for name, source in sources().items()})


def start_input(given: Mapping[str, str]) -> tuple[int, bytes]:
    """Return the size of the program in the input of start.py's interpreter, and that input; the rest is compressed.

    For ``given``, see ``start`` there.
    """
    program = sources()["loader"].encode("utf-8")
    packed = zlib.compress(json.dumps({"sources": sources(), **given}).encode("ascii"))
    return len(program), program + packed
