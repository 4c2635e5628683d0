# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For both ends: bytecode to be sent, marked with the kind of interpreter that compiles it so."""

from __future__ import annotations

import marshal
import os
import sys
import zlib
from _frozen_importlib_external import MAGIC_NUMBER  # importlib.util takes long to import

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from typing import Any

_no_ranges = "no_debug_ranges" in sys._xoptions or bool(os.environ.get("PYTHONNODEBUGRANGES"))
KIND = f"{MAGIC_NUMBER.hex()} {sys.flags.optimize} {_no_ranges:d}\n".encode("ascii")


def packed(codes: dict[str, Any]) -> bytes:
    return KIND + zlib.compress(marshal.dumps(codes))


def unpacked(content: bytes) -> dict[str, Any]:
    """Return the packed code, or nothing if it is not of this interpreter's kind."""
    codes: dict[str, Any] = marshal.loads(zlib.decompress(content[len(KIND) :])) if content.startswith(KIND) else {}
    return codes
