# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive of a module and its libraries, as ansible-core packs it, in parts: a guest gets those that it lacks."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Container
from typing import NamedTuple

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.bytecode import packed
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.compiler import ARCHIVE, compiled
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.wire import REMEMBERED, checksum, joined, recipe

__all__ = ("Archive", "read_archive")

# Bytes of a file's header before its name, and the offset in it of the lengths of name and extra field.
_HEADER = 30
_LENGTHS = struct.Struct("<HH")
_AT = 26

Source = tuple[str, tuple[bytes, str]]
"""A module's source: its digest, and its text with its path."""


class Archive(NamedTuple):
    """An archive: the ``digest`` of its content, its ``parts`` by checksum, and how these make it (``recipe``).

    The digest does not depend on the time of packing: ansible-core packs the same files anew in each run. A part is the
    compressed data of one file. The ``sources`` are those of modules, by their parts.
    """

    digest: str
    recipe: bytes
    parts: dict[str, bytes]
    sources: dict[str, Source]

    def brought(self, missing: Container[str], *, code: bool = False, programs: bytes = b"") -> bytes:
        """Return the file for the server and its start, with the parts ``missing`` in the guest, and their ``code``."""
        parts = [part for name, part in self.parts.items() if name[:REMEMBERED] in missing]
        sources = dict(source for name, source in self.sources.items() if name[:REMEMBERED] in missing)
        return joined([self.recipe, packed(compiled(sources)) if code else b"", programs, *parts])

    def remembered(self) -> list[str]:
        """Return the short checksums of the parts."""
        return [name[:REMEMBERED] for name in self.parts]


@functools.lru_cache(maxsize=16)
def read_archive(encoded: bytes) -> Archive | None:
    """Return an archive, given in base64; None if it is malformed."""
    try:
        packed = base64.b64decode(encoded, validate=True)
        digest, table, places = _contents(packed)
    except (NotImplementedError, ValueError, struct.error, zipfile.BadZipFile, zlib.error):
        return None
    parts, sources, between, listed = {}, {}, [], []
    end = length = 0
    for start, size, source in sorted(places):
        if size:
            between.append(packed[end:start])
            length += start - end
            end = start + size
            part = packed[start:end]
            name = checksum(part)
            parts[name] = part
            if source:
                sources[name] = source
            listed.append((name, length))
    between.append(packed[end:])
    return Archive(digest, recipe(digest, listed, table, b"".join(between)), parts, sources)


def _contents(packed: bytes) -> tuple[str, dict[str, tuple[str, bool]], list[tuple[int, int, Source | None]]]:
    """Return an archive's digest; of its modules, digest and whether they are packages; and of each file, the offset
    and size of its compressed data, and its source.
    """
    content, table, places = hashlib.sha256(), {}, []
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for entry in archive.infolist():
            name, text = entry.filename, archive.read(entry)
            digest = hashlib.sha256(text).hexdigest()[:32]
            content.update(f"{digest} {name}\n".encode("utf-8", "surrogateescape"))
            if name.endswith(".py"):
                package = name.endswith("/__init__.py")
                table[name[: -len("/__init__.py" if package else ".py")].replace("/", ".")] = (digest, package)
            lengths = _LENGTHS.unpack_from(packed, entry.header_offset + _AT)
            source = (digest, (text, f"{ARCHIVE}/{name}")) if name.endswith(".py") else None
            places.append((entry.header_offset + _HEADER + sum(lengths), entry.compress_size, source))
    return content.hexdigest(), table, places
