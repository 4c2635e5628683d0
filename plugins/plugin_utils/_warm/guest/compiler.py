# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For both ends: the code of modules, compiled here or there.

A controller compiles ten times as fast as an emulated guest, and has nothing else to do while an interpreter starts
there. What it has compiled is of use to an interpreter of the same KIND.
"""

from __future__ import annotations

import re
import warnings
from contextlib import suppress

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    import types

    Sources = dict[str, tuple[bytes, str]]
    """By their digests: a module's source, and its path."""
    Codes = dict[str, tuple[types.CodeType, list[str]]]
    """By the digests of their sources: a module's code, and what it imports of others than Ansible."""

# What is not indented is imported in any case.
IMPORT = re.compile(rb"^(?:import|from) +(?!ansible\b|_)([\w.]+)", re.MULTILINE)


def compiled(sources: Sources) -> Codes:
    """Return the code of sources, without those that do not compile, or not silently: their task will say so."""
    codes = {}
    for digest, (source, path) in sources.items():
        with suppress(SyntaxError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("error")
            code = compile(source, path, "exec", dont_inherit=True)
            codes[digest] = code, sorted({name.decode("utf-8") for name in IMPORT.findall(source)})
    return codes
