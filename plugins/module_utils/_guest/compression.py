# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compression on the way: what is done at either end, by this machine and by a shell command in the guest.

_warm/guest/file_ops.py does the guest's part without a shell.
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress
from typing import Callable, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._guest.zstd import Compressor, Decompressor, zstd

__all__ = ("GZIP", "ZSTD", "Packer", "has_zstd", "shrinks")

# The quickest: others save less of the channel's time than they take.
_GZIP_LEVEL = 1
# Of what is sent, which takes the channel longer than what is fetched. The guest is to take the quickest.
_ZSTD_LEVEL = 3
# What content must shrink to, and how much of it is looked at.
_GAIN = 0.7
_SAMPLE = 64 * 1024


Unpack = Callable[[bytes, int], bytes]
"""Undoes compression here: takes what has come, and returns what that completes, of which there must not be more bytes.
Raises ValueError for what is damaged, or more."""


class Packer(NamedTuple):
    """A way to compress."""

    packing: Callable[[], Callable[[bytes], bytes]]
    """Begins to do it here, piece by piece."""
    unpacking: Callable[[], Unpack]
    """Begins to undo it here."""
    name: str
    """The program that does it in the guest, and undoes it."""
    level: int
    """How hard that tries."""

    @property
    def packs(self) -> str:
        """The shell command that does it with its input."""
        return f"{self.name} -c{self.level}"

    @property
    def unpacks(self) -> str:
        """The shell command that undoes it with its input."""
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
"""Guests have it."""

ZSTD = Packer(
    packing=lambda: Compressor(_ZSTD_LEVEL).compress,
    unpacking=lambda: Decompressor().decompress,
    name="zstd",
    level=1,
)
"""Six times as quick, and smaller, where both ends have it: see `has_zstd`."""


def has_zstd() -> bool:
    """Return whether this end has it."""
    with suppress(ImportError):
        return bool(zstd())
    return False


def shrinks(content: bytes) -> bool:
    """Return whether what begins like ``content`` is worth compressing."""
    sample = content[:_SAMPLE]
    return len(zlib.compress(sample, _GZIP_LEVEL)) < _GAIN * len(sample)
