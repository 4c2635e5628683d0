# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compression of transfers: at this end in Python, in the guest by a shell command.

_warm/guest/shell_runner.py does the guest's part without a shell.
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress
from typing import Callable, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._guest.zstd import Compressor, Decompressor, zstd

__all__ = ("GZIP", "ZSTD", "Packer", "has_zstd", "shrinks")

# The fastest level: higher levels take longer than the channel time that they save.
_GZIP_LEVEL = 1
# For content that is sent, which takes the channel longer than content that is fetched. The guest uses level 1.
_ZSTD_LEVEL = 3
# The ratio that content must shrink to, and the bytes of it that are tested.
_GAIN = 0.7
_SAMPLE = 64 * 1024


Unpack = Callable[[bytes, int], bytes]
"""Decompresses here: takes the bytes that arrived and the largest size allowed, and returns the content they complete.
Raises ValueError if they are damaged or yield more."""


class Packer(NamedTuple):
    """A way to compress."""

    packing: Callable[[], Callable[[bytes], bytes]]
    """Returns a function that compresses here, piece by piece."""
    unpacking: Callable[[], Unpack]
    """Returns a function that decompresses here."""
    name: str
    """The guest's program that compresses and decompresses."""
    level: int
    """The compression level of that program."""

    @property
    def packs(self) -> str:
        """The shell command that compresses its input."""
        return f"{self.name} -c{self.level}"

    @property
    def unpacks(self) -> str:
        """The shell command that decompresses its input."""
        return f"{self.name} -dc"


def _gunzipping() -> Unpack:
    unpack = zlib.decompressobj(wbits=31)  # gzip's format

    def gunzip(packed: bytes, largest: int) -> bytes:
        try:
            content = unpack.decompress(packed, largest + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(content) > largest or unpack.unused_data:
            raise ValueError("more than there should be")
        return content

    return gunzip


GZIP = Packer(
    packing=lambda: lambda content: gzip.compress(content, _GZIP_LEVEL),
    unpacking=_gunzipping,
    name="gzip",
    level=_GZIP_LEVEL,
)
"""Guests have gzip."""

ZSTD = Packer(
    packing=lambda: Compressor(_ZSTD_LEVEL).compress,
    unpacking=lambda: Decompressor().decompress,
    name="zstd",
    level=1,
)
"""Six times as fast as gzip, and smaller, where both ends have it: see `has_zstd`."""


def has_zstd() -> bool:
    """Return whether this end has Zstandard."""
    with suppress(ImportError):
        return bool(zstd())
    return False


def shrinks(content: bytes) -> bool:
    """Return whether a file that begins with ``content`` is worth compressing."""
    sample = content[:_SAMPLE]
    return len(zlib.compress(sample, _GZIP_LEVEL)) < _GAIN * len(sample)
