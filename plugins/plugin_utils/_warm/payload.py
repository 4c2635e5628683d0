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
from collections.abc import Container, Iterable
from typing import NamedTuple

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.bytecode import packed
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.compiler import ARCHIVE, compiled
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.wire import REMEMBERED, checksum, joined, recipe

__all__ = ("Archive", "MalformedArchive", "read_archive")

# Bytes of a file's header before its name, and the offset in it of the lengths of name and extra field.
_HEADER = 30
_LENGTHS = struct.Struct("<HH")
_AT = 26

Source = tuple[str, tuple[bytes, str]]
"""A module's source: its digest, and its text with its path."""


class MalformedArchive(Exception):
    """What ansible-core has packed cannot be unpacked."""


class Entry(NamedTuple):
    """A file in an archive: its ``name``, and where its compressed data begins and how long that is."""

    name: str
    start: int
    size: int
    info: zipfile.ZipInfo


class _Made(NamedTuple):
    """How parts make an archive, the parts by checksum, and the sources of modules, by their parts."""

    recipe: bytes
    parts: dict[str, bytes]
    sources: dict[str, Source]


class Archive:
    """An archive: the ``digest`` of its content, its ``parts`` by checksum, and how these make it (``recipe``).

    The digest does not depend on the time of packing: ansible-core packs the same files anew in each run. A part is the
    compressed data of one file. The ``sources`` are those of modules, by their parts. Most tasks need the digest only.

    :raise MalformedArchive: from all but the digest.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._entries = _entries(text)
        content = hashlib.sha256()
        for entry in self._entries:
            content.update(f"{checksum(self._part(entry))} {entry.name}\n".encode("utf-8", "surrogateescape"))
        self.digest = content.hexdigest()

    @property
    def recipe(self) -> bytes:
        return self._made.recipe

    @property
    def parts(self) -> dict[str, bytes]:
        return self._made.parts

    @property
    def sources(self) -> dict[str, Source]:
        return self._made.sources

    def brought(self, missing: Container[str], *, code: bool = False, programs: bytes = b"") -> bytes:
        """Return the file for the server and its start, with the parts ``missing`` in the guest, and their ``code``."""
        parts = [part for name, part in self.parts.items() if name[:REMEMBERED] in missing]
        sources = dict(source for name, source in self.sources.items() if name[:REMEMBERED] in missing)
        return joined([self.recipe, packed(compiled(sources)) if code else b"", programs, *parts])

    def remembered(self) -> list[str]:
        """Return the short checksums of the parts."""
        return [name[:REMEMBERED] for name in self.parts]

    def _part(self, entry: Entry) -> bytes:
        return self._text[entry.start : entry.start + entry.size]

    @functools.cached_property
    def _made(self) -> _Made:
        try:
            texts = _texts(self._text, self._entries)
        except _ERRORS as exc:
            raise MalformedArchive(f"{exc}") from exc
        parts, sources, between, listed = {}, {}, [], []
        table: dict[str, tuple[str, bool]] = {}
        end = length = 0
        for entry in sorted(self._entries, key=lambda entry: entry.start):
            digest = hashlib.sha256(texts[entry.name]).hexdigest()[:32]
            is_module = entry.name.endswith(".py")
            if is_module:
                is_package = entry.name.endswith("/__init__.py")
                table[entry.name[: -len("/__init__.py" if is_package else ".py")].replace("/", ".")] = (
                    digest,
                    is_package,
                )
            if entry.size:
                between.append(self._text[end : entry.start])
                length += entry.start - end
                end = entry.start + entry.size
                name = checksum(self._part(entry))
                parts[name] = self._part(entry)
                if is_module:
                    sources[name] = digest, (texts[entry.name], f"{ARCHIVE}/{entry.name}")
                listed.append((name, length))
        between.append(self._text[end:])
        return _Made(recipe(self.digest, listed, table, b"".join(between)), parts, sources)


@functools.lru_cache(maxsize=16)
def read_archive(encoded: bytes) -> Archive | None:
    """Return an archive, given in base64; None if it is malformed, as far as its directory tells."""
    try:
        return Archive(base64.b64decode(encoded, validate=True))
    except _ERRORS:
        return None


_ERRORS = (NotImplementedError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)


def _entries(text: bytes) -> list[Entry]:
    with zipfile.ZipFile(io.BytesIO(text)) as archive:
        entries = []
        for info in archive.infolist():
            lengths = _LENGTHS.unpack_from(text, info.header_offset + _AT)
            entries.append(Entry(info.filename, info.header_offset + _HEADER + sum(lengths), info.compress_size, info))
        return entries


def _texts(text: bytes, entries: Iterable[Entry]) -> dict[str, bytes]:
    """Return the content of each file, by its name."""
    with zipfile.ZipFile(io.BytesIO(text)) as archive:
        return {entry.name: archive.read(entry.info) for entry in entries}
