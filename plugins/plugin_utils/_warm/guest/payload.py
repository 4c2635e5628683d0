# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: a module as ansible-core sends it, an archive and the program around it (module_runner.py)."""

from __future__ import annotations
import __future__

import base64
import io
import json
import os
import sys
import types
import zipfile

from .compiler import ARCHIVE

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from .wire import Table

# The last statement of a payload. From ansible-core 2.19 on, all that differs from task to task is in there.
CALL = b"\nif __name__ == "
FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


def table_of(text: bytes) -> Table:
    """Return the table of an archive, as a client has written it."""
    return {name: tuple(known) for name, known in json.loads(text.decode("ascii")).items()}


def archive_name(name: str, package: bool) -> str:
    return name.replace(".", "/") + ("/__init__.py" if package else ".py")


def place(name: str, package: bool) -> str:
    """Return the path that a module has in the payload's archive."""
    archive = next((entry for entry in sys.path if entry.endswith(ARCHIVE)), ARCHIVE)
    return f"{archive}/{archive_name(name, package)}"


class Archive:
    """A payload's archive: the ``table`` of its modules, its ``text``, in base64, and the modules' ``code``."""

    def __init__(self, table: Table, text: str, code: bytes = b"") -> None:
        self.table = table
        self.text = text
        self.code = code  # compiled by a client

    def open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(base64.b64decode(self.text)))


class Payload:
    """A module's program around its archive, in two parts: the functions, and the call of them."""

    def __init__(self, program: bytes, split_at: int, archive: str) -> None:
        self.archive = archive
        # The compiler takes long for the archive's text, so that is put in afterwards.
        self.mark = os.urandom(16).hex()
        self.whole = program[:split_at] + self.mark.encode("ascii") + program[split_at:]
        self.head, call, rest = self.whole.rpartition(CALL)
        # Keep the line numbers, for tracebacks.
        self.call = b"\n" * self.head.count(b"\n") + call + rest

    def code(self, heads: dict[bytes, types.CodeType]) -> list[types.CodeType]:
        """Return the code of all parts; those in ``heads`` are compiled already."""
        known = heads.get(self.head)
        parts: list[types.CodeType]
        try:
            head = known or self.compiled_head()
            flags = head.co_flags & FUTURE
            parts = [head, compile(self.call, "<stdin>", "exec", flags=flags, dont_inherit=True)]
        except SyntaxError:  # the program cannot be split like this
            parts = [compile(self.whole, "<stdin>", "exec", dont_inherit=True)]
        # A known head has no mark.
        return [part if part is known else replaced(part, self.mark, self.archive) for part in parts]

    def compiled_head(self) -> types.CodeType:
        return compile(self.head + b"\n", "<stdin>", "exec", dont_inherit=True)


def replaced(code: types.CodeType, mark: str, text: str) -> types.CodeType:
    """Return ``code`` with the constant ``text`` where it has ``mark``."""
    constants = tuple(
        replaced(c, mark, text) if isinstance(c, types.CodeType) else text if c == mark else c for c in code.co_consts
    )
    return code.replace(co_consts=constants)
