# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For both ends: compile modules, in the controller or in the guest.

A controller compiles ten times as fast as an emulated guest, and has nothing else to do while an interpreter starts
there. An interpreter of the same KIND can use its code.
"""

from __future__ import annotations

import re
import warnings
from contextlib import suppress

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    import types

    Sources = dict[str, tuple[bytes, str]]
    """By digest: a module's source, and its path."""
    Codes = dict[str, tuple[types.CodeType, list[str]]]
    """By the source's digest: a module's code, and the modules other than Ansible's that it imports."""

ARCHIVE = "_payload.zip"
"""The name of a module's archive, in the paths of its modules and in the guest."""
# Imports that are not indented run in any case.
IMPORT = re.compile(rb"^(?:import|from) +(?!ansible\b|_)([\w.]+)", re.MULTILINE)


def compiled(sources: Sources) -> Codes:
    """Return the code of sources, without those that fail or warn: their task will report that."""
    codes = {}
    for digest, (source, path) in sources.items():
        with suppress(SyntaxError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("error")
            code = compile(source, path, "exec", dont_inherit=True)
            codes[digest] = code, sorted({name.decode("utf-8") for name in IMPORT.findall(source)})
    return codes
