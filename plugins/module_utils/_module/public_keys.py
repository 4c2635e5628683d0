# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of authorized_keys: which are keys, and which key."""

from __future__ import annotations

import re
from typing import Sequence

__all__ = ("HIDDEN", "identity", "is_key", "listed", "shown")

HIDDEN = "(a line that is not a public key)"
"""Stands for a line that may be of a file that only root may read, since the agent follows a user's links."""

# sshd(8): options, type, base64, comment. The base64 of any type begins with the length of its name, a 32-bit number.
_KEY = re.compile(r"(?:^|\s)([a-z][a-z0-9@.-]+)[ \t]+(AAAA[0-9A-Za-z+/]+=*)(?:\s|$)")
# Quoted values in options. Quotes in a comment come after the key, so they do not matter.
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')


def identity(line: str) -> str:
    """Return the identity of a key: its type and base64, without options and comment."""
    match = _KEY.search(_QUOTED.sub('""', line))
    return " ".join(match.groups()) if match else line


def is_key(line: str) -> bool:
    """Return whether a line has a public key, not counting what its options quote."""
    return bool(_KEY.search(_QUOTED.sub('""', line)))


def listed(line: str) -> str:
    """Return a line of the file as agents list it: without blanks around it, U+FFFD for what is not UTF-8.

    Bytes that are not UTF-8 are surrogates in ``line``. Empty if agents do not list it: an empty line, or a comment.
    """
    line = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip(" \t\r\f\v")
    return "" if line.startswith("#") else line


def shown(lines: Sequence[str]) -> list[str]:
    """Return the lines, with ``HIDDEN`` in the place of those that are neither keys nor comments."""
    return [line if line.startswith("#") or is_key(line) else HIDDEN for line in lines]
