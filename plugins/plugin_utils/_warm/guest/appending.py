# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: add a file to a payload's archive without reading and writing its whole directory (module_runner.py).

The program of a module writes its archive to a file and adds one file to that, each time. With zipfile, that takes a
seventh of the time of a small module. Nothing depends on this file: without ``expect``, modules work alike.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import struct
import zipfile

from .compiler import ARCHIVE

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from typing import Any

# The first steps of a payload with its archive, in ansible-core 2.16 to 2.21.
STEPS = (
    b"modlib.write(base64.b64decode(",
    b"z = zipfile.ZipFile(modlib_path, mode='a')\n",
    b"z.writestr(zinfo, sitecustomize)\n",
)
END = b"PK\5\6"  # begins the last record of an archive,
END_SIZE = 22  # which has so many bytes


class KnownArchive:
    """An archive, by its ``text`` in base64, and where its directory is."""

    proven: bool | None = None  # whether `appended` does what zipfile does in this Python

    def __init__(self, text: str) -> None:
        self.text = text
        self.content = base64.b64decode(text)
        end = self.content.rindex(END)
        self.count, size, self.offset = struct.unpack_from("<HLL", self.content, end + 10)
        self.directory = self.content[self.offset : self.offset + size]
        # Not for an archive with trailing data, or one too large for these numbers.
        plain = self.offset + size == end and len(self.content) == end + END_SIZE
        self.is_usable = plain and self.does_as_zipfile()

    def does_as_zipfile(self) -> bool:
        """Return whether `appended` does what zipfile does, as tried on the first archive."""
        if KnownArchive.proven is None:
            copy = io.BytesIO(self.content)
            by_zipfile, by_us = zipfile.ZipInfo(), zipfile.ZipInfo()
            with zipfile.ZipFile(copy, "a") as opened:
                opened.writestr(by_zipfile, b"-")
            KnownArchive.proven = self.content[: self.offset] + self.appended(by_us, b"-") == copy.getvalue()
        return KnownArchive.proven

    def appended(self, info: zipfile.ZipInfo, data: bytes) -> bytes:
        """Return the archive's bytes from ``offset`` on, with a file added."""
        info.file_size = info.compress_size = len(data)
        info.CRC = binascii.crc32(data)
        info.external_attr = info.external_attr or 0o600 << 16
        header = info.FileHeader()
        line = b"PK\1\2" + bytes([info.create_version, info.create_system]) + header[4:30]
        line += struct.pack("<3HLL", 0, 0, 0, info.external_attr, self.offset) + header[30:]
        size, start = len(self.directory) + len(line), self.offset + len(header) + len(data)
        end = struct.pack("<4s4HLLH", END, 0, 0, self.count + 1, self.count + 1, size, start, 0)
        return header + data + self.directory + line + end

    def expect(self, program: bytes) -> None:
        """In a child: have a module's program call faster ones in place of its first b64decode() and ZipFile()."""
        if not self.is_usable or not all(step in program for step in STEPS):
            return
        decode, open_it = base64.b64decode, zipfile.ZipFile

        def decoded(text: Any, *more: Any) -> bytes:
            base64.b64decode = decode
            return self.content if text == self.text else decode(text, *more)

        def opened(path: Any, mode: Any = "r", *more: Any) -> Appending | zipfile.ZipFile:
            zipfile.ZipFile = open_it  # type: ignore[misc]
            ours = (
                mode == "a"
                and isinstance(path, str)
                and path.endswith(ARCHIVE)
                and os.path.getsize(path) == len(self.content)
            )
            return Appending(path, self) if ours else open_it(path, mode, *more)

        base64.b64decode = decoded  # type: ignore[assignment]
        zipfile.ZipFile = opened  # type: ignore[assignment, misc]


class Appending:
    """A known archive at ``path``, open for one more file."""

    def __init__(self, path: str, archive: KnownArchive) -> None:
        self.path = path
        self.archive = archive

    def writestr(self, info: zipfile.ZipInfo, data: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(self.archive.offset)
            file.write(self.archive.appended(info, data))

    def close(self) -> None:
        pass
