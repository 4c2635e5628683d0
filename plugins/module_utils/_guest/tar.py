# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read an archive that a guest has made.

The guest is not trusted, and the tarfile of some Pythons can be kept busy forever by what it reads. So this reads what
the guest's tar is asked to write, and nothing else: GNU's format, without extensions, without sparse files. It reads
names and sizes; it creates no files.
"""

from __future__ import annotations

import os
import re
from typing import IO, Iterator, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import TransferError

__all__ = ("Member", "members")

_BLOCK = 512
_LONGEST_NAME = 64 * 1024


class Member(NamedTuple):
    """A member of an archive. ``kind`` is C(file), C(hardlink) (to the member ``target``) or C(other)."""

    name: bytes
    kind: str
    size: int = 0
    mode: int = 0
    target: bytes = b""


def members(archive: IO[bytes]) -> Iterator[Member]:
    """Yield the members. After each, its content is the next ``size`` bytes of ``archive``, to be read or not.

    Several archives may be one after another.

    :raise TransferError: if it is damaged, or of another format.
    """
    end = archive.seek(0, os.SEEK_END)
    start = archive.seek(0)
    names = {b"L": b"", b"K": b""}  # of the next member, where they are too long for its header
    while start < end:
        header = archive.read(_BLOCK)
        start += _BLOCK
        if header == bytes(_BLOCK):
            continue
        member = _member(header)
        kind = header[156:157]
        after = start + (member.size + _BLOCK - 1) // _BLOCK * _BLOCK
        if after > end:
            raise TransferError("the archive that the guest made is not whole")
        if kind in names:
            if member.size > _LONGEST_NAME:
                raise _unreadable()
            names[kind] = archive.read(member.size).rstrip(b"\0")
        else:
            yield member._replace(name=names[b"L"] or member.name, target=names[b"K"] or member.target)
            names = {b"L": b"", b"K": b""}
        start = archive.seek(after)


def _member(header: bytes) -> Member:
    if len(header) != _BLOCK or header[257:262] != b"ustar":
        raise _unreadable()
    if _number(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise TransferError("the archive that the guest made is damaged")
    kind = header[156:157]
    if kind not in b"0123456LK\0":
        raise _unreadable()
    name, target = (field.partition(b"\0")[0] for field in (header[:100], header[157:257]))
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return Member(
        prefix + b"/" + name if prefix else name,
        {b"0": "file", b"\0": "file", b"1": "hardlink"}.get(kind, "other"),
        0 if kind in b"123456" else _number(header[124:136]),
        _number(header[100:108]) & 0o777,
        target,
    )


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,12}", digits):
        raise _unreadable()
    return int(digits, 8)


def _unreadable() -> TransferError:
    return TransferError("the guest's tar made an archive of a format that is not read here")
