# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: a module as ansible-core sends it, an archive and the program around it (module_runner.py)."""

from __future__ import annotations
import __future__

import base64
import binascii
import io
import json
import os
import struct
import sys
import types
import zipfile

from .compiler import ARCHIVE

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from typing import Any

    from .wire import Table

# The last statement of a payload. From ansible-core 2.19 on, all that differs from task to task is in there.
CALL = b"\nif __name__ == "
# The first steps of a payload with its archive, in ansible-core 2.16 to 2.21.
STEPS = (
    b"modlib.write(base64.b64decode(",
    b"z = zipfile.ZipFile(modlib_path, mode='a')\n",
    b"z.writestr(zinfo, sitecustomize)\n",
)
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

    proven: bool | None = None

    def __init__(self, table: Table, text: str, code: bytes = b"") -> None:
        self.table = table
        self.text = text
        self.code = code  # compiled by a client
        self.content = b""  # decoded, once it is learnt
        self.offset = 0  # of its directory
        self.directory = b""
        self.count = 0

    def open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(self.content or base64.b64decode(self.text)))

    def learn(self) -> None:
        """Find out what `appended` needs."""
        content = base64.b64decode(self.text)
        end = content.rindex(b"PK\5\6")
        self.count, size, self.offset = struct.unpack_from("<HLL", content, end + 10)
        self.directory = content[self.offset : self.offset + size]
        # Not for an archive with trailing data, or one too large for these numbers.
        if self.offset + size == end and len(content) == end + 22 and self.does_as_zipfile(content):
            self.content = content

    def does_as_zipfile(self, content: bytes) -> bool:
        """Return whether `appended` does what zipfile does in this Python, as tried on the first archive."""
        if Archive.proven is None:
            copy = io.BytesIO(content)
            by_zipfile, by_us = zipfile.ZipInfo(), zipfile.ZipInfo()
            with zipfile.ZipFile(copy, "a") as opened:
                opened.writestr(by_zipfile, b"-")
            Archive.proven = content[: self.offset] + self.appended(by_us, b"-") == copy.getvalue()
        return Archive.proven

    def appended(self, info: zipfile.ZipInfo, data: bytes) -> bytes:
        """Return the bytes from ``offset`` on with a file added, without rewriting each line of the directory."""
        info.file_size = info.compress_size = len(data)
        info.CRC = binascii.crc32(data)
        info.external_attr = info.external_attr or 0o600 << 16
        header = info.FileHeader()
        line = b"PK\1\2" + bytes([info.create_version, info.create_system]) + header[4:30]
        line += struct.pack("<3HLL", 0, 0, 0, info.external_attr, self.offset) + header[30:]
        size, start = len(self.directory) + len(line), self.offset + len(header) + len(data)
        end = struct.pack("<4s4HLLH", b"PK\5\6", 0, 0, self.count + 1, self.count + 1, size, start, 0)
        return header + data + self.directory + line + end

    def expect(self) -> None:
        """Replace the first b64decode() and ZipFile() of a module's program by faster ones for this archive."""
        decode, open_it = base64.b64decode, zipfile.ZipFile

        def decoded(text: Any, *more: Any) -> bytes:
            base64.b64decode = decode
            return self.content if text == self.text else decode(text, *more)

        def opened(path: Any, mode: Any = "r", *more: Any) -> Appending | zipfile.ZipFile:
            zipfile.ZipFile = open_it  # type: ignore[misc]
            ours = mode == "a" and path.endswith(ARCHIVE) and os.path.getsize(path) == len(self.content)
            return Appending(path, self) if ours else open_it(path, mode, *more)

        base64.b64decode = decoded  # type: ignore[assignment]
        zipfile.ZipFile = opened  # type: ignore[assignment, misc]


class Appending:
    """A known archive at ``path``, open for one more file."""

    def __init__(self, path: str, archive: Archive) -> None:
        self.path = path
        self.archive = archive

    def writestr(self, info: zipfile.ZipInfo, data: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(self.archive.offset)
            file.write(self.archive.appended(info, data))

    def close(self) -> None:
        pass


class Payload:
    """A module's program around its archive, in two parts: the functions, and the call of them."""

    def __init__(self, program: bytes, before: int, archive: str) -> None:
        self.archive = archive
        # The compiler takes long for the archive's text, so that is put in afterwards.
        self.mark = os.urandom(16).hex()
        self.whole = program[:before] + self.mark.encode("ascii") + program[before:]
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
