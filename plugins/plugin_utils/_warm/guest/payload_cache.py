# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: keep the archives of modules, and the parts that make them (_warm/payload.py)."""

from __future__ import annotations

import binascii
import functools
import json
import os
import zlib

from .wire import piece

try:  # hashlib's own choice, without the time to import hashlib
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # until Python 3.11
    except ImportError:
        from hashlib import sha256

MOST_ARCHIVES = 32
MOST_PARTS = 8 << 20  # bytes
REMEMBERED = 12  # letters of a part's checksum that clients are told


class Archives:
    """The archives of modules, as module_runner.Modules takes them, and parts for further ones.

    They are in this process's memory; each interpreter is sent a copy of the archives that it needs.
    """

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}  # by the digest of their content
        self.parts: dict[str, bytes] = {}  # by their checksum

    def found(self, digest: str, *paths: str) -> tuple[bytes, bytes]:
        """Return the content of an archive; and if it is missing, the answer that names the parts that are here.

        Each client writes the missing parts to a file of its own, one of ``paths``: it may do so while another's file
        is in use already, and the archive of another run, with the same content, is another file.
        """
        if not digest:
            return b"", b""
        if digest not in self.contents:
            recipe, code = next(filter(any, map(self.brought, paths)), (b"", b""))
            if not recipe:
                return b"", self.wanted()
            checksum, _newline, lines = recipe.partition(b"\n")
            if sha256(digest.encode("ascii") + lines).hexdigest().encode("ascii") != checksum:
                return b"", self.wanted()  # it is another archive's
            line, names, between = lines.split(b"\n", 2)
            parts = json.loads(line.decode("ascii"))
            if any(name not in self.parts for name, _place in parts):
                return b"", self.wanted()
            self.keep(digest, b"\n".join([names, self.made(parts, between), code]))
        return self.contents[digest], b""

    def wanted(self) -> bytes:
        """Return the answer that says that an archive is missing, and which parts are here."""
        return " ".join(["archive", *(name[:REMEMBERED] for name in self.parts)]).encode("ascii") + b"\n"

    def brought(self, path: str) -> tuple[bytes, bytes]:
        """Take a client's file: keep the parts, and return the recipe and the code of these parts.

        The recipe is empty without a whole file; the code is empty if an interpreter here is to compile it.
        """
        try:
            with open(path, "rb") as file:
                pieces: list[bytes] = list(iter(functools.partial(piece, file), None))
            os.unlink(path)
            recipe, code, _programs, *parts = pieces
            recipe = zlib.decompress(recipe)
        except (FileNotFoundError, ValueError, zlib.error):  # missing, or not whole
            return b"", b""
        self.parts.update({sha256(part).hexdigest(): part for part in parts})
        return recipe, code

    def made(self, parts: list[tuple[str, int]], between: bytes) -> bytes:
        """Return the archive that the parts make, in base64."""
        pieces = []
        end = 0
        for name, place in parts:
            part = self.parts[name] = self.parts.pop(name)  # so that the least recently used come first
            pieces += [between[end:place], part]
            end = place
        pieces.append(between[end:])
        return binascii.b2a_base64(b"".join(pieces), newline=False)

    def keep(self, digest: str, content: bytes) -> None:
        """Keep an archive, and drop the oldest beyond the limits."""
        self.contents[digest] = content
        while len(self.contents) > MOST_ARCHIVES:
            self.contents.pop(next(iter(self.contents)))
        size = sum(map(len, self.parts.values()))
        while size > MOST_PARTS:
            size -= len(self.parts.pop(next(iter(self.parts))))
