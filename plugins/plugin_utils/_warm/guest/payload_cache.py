# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: keep the archives of modules, and the parts that make them (_warm/payload.py)."""

from __future__ import annotations

import binascii
import functools
import json
import os

from .wire import MISSING, REMEMBERED, checksum, is_recipe_of, piece, read_recipe

MOST_ARCHIVES = 32
MOST_PARTS = 8 << 20  # bytes


class Archives:
    """The archives of modules, as module_runner.Modules takes them, and parts for further ones.

    They are in this process's memory; each interpreter is sent a copy of the archives that it needs.
    """

    def __init__(self, most_archives: int = MOST_ARCHIVES, most_parts: int = MOST_PARTS) -> None:
        self.most_archives, self.most_parts = most_archives, most_parts
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
            recipe, code = next(filter(any, map(self.brought, paths)), ((), b""))
            if not recipe or not is_recipe_of(digest, *recipe):  # nothing was brought, or for another archive
                return b"", self.wanted()
            _seal, places, table, between = recipe
            parts = json.loads(places.decode("ascii"))
            if any(name not in self.parts for name, _place in parts):
                return b"", self.wanted()
            self.keep(digest, b"\n".join([table, self.made(parts, between), code]))
        return self.contents[digest], b""

    def wanted(self) -> bytes:
        """Return the answer that says that an archive is missing, and which parts are here."""
        return b" ".join([MISSING, *(name[:REMEMBERED].encode("ascii") for name in self.parts)]) + b"\n"

    def brought(self, path: str) -> tuple[tuple[bytes, ...], bytes]:
        """Take a client's file: keep the parts, and return the recipe and the code of these parts.

        The recipe is empty without a whole file; the code is empty if an interpreter here is to compile it.
        """
        try:
            with open(path, "rb") as file:
                pieces: list[bytes] = list(iter(functools.partial(piece, file), None))
            os.unlink(path)
            packed, code, _programs, *parts = pieces
            recipe = read_recipe(packed)
        except (FileNotFoundError, ValueError):  # missing, or not whole
            return (), b""
        self.parts.update({checksum(part): part for part in parts})
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
        while len(self.contents) > self.most_archives:
            self.contents.pop(next(iter(self.contents)))
        size = sum(map(len, self.parts.values()))
        while size > self.most_parts:
            size -= len(self.parts.pop(next(iter(self.parts))))
