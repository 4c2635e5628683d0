# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words of a guest's, as they may be shown and returned."""

from __future__ import annotations

import re
from typing import Any, Mapping

__all__ = ("last_line", "printable", "returnable")

# Characters of what one message, or one hint, says; and of a program's own words in it.
_LONGEST = 2000
_LONGEST_LINE = 300
_MAGIC = "__ansible_"
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str, limit: int = _LONGEST) -> str:
    """Return ``text``, which may be a guest's, as it may stand in a message, a warning or a log: one visible line.

    White space becomes a space. What else a terminal acts upon or does not show (escape sequences, the direction of
    text) becomes its number, such as C(\\x1b). Of more than ``limit`` characters, those in the middle are left out:
    the cause of an error stands at its end.
    """
    if len(text) > limit:
        text = f"{text[: limit // 2]} … {text[-(limit // 2) :]}"
    return "".join(map(_visible, text))


def last_line(text: bytes | str) -> str:
    """Return the last line that a program wrote, which says best why it failed, as it may stand in a message."""
    words = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return printable(words.strip().rpartition("\n")[2].strip(), _LONGEST_LINE)


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode("ascii")


def returnable(value: Any) -> Any:
    """Return ``value`` as a task can return it, at any depth.

    ansible-core takes a member such as C(__ansible_type) for an object of its own, and fails on it, and on text that is
    not Unicode. Neither is for a guest to choose.
    """
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_plain_name(k): returnable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [returnable(v) for v in value]
    return value


def _plain_name(name: Any) -> Any:
    name = returnable(name)
    return name.lstrip("_") if isinstance(name, str) and name.startswith(_MAGIC) else name
