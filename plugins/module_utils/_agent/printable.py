# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make text from a guest safe to show and to return."""

from __future__ import annotations

import re
from typing import Any, Mapping

__all__ = ("last_line", "printable", "returnable")

# Most characters of one message or hint, and of a program's own line in it.
_LONGEST = 2000
_LONGEST_LINE = 300
_MAGIC = "__ansible_"
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str, limit: int = _LONGEST) -> str:
    """Return ``text``, which may be a guest's, as one visible line for a message, a warning or a log.

    White space becomes a space. Other characters that a terminal acts upon or does not show (escape sequences, text
    direction) become their number, such as C(\\x1b). Beyond ``limit`` characters, the middle is left out: the cause of
    an error is at its end.
    """
    if len(text) > limit:
        text = f"{text[: limit // 2]} … {text[-(limit // 2) :]}"
    return "".join(map(_visible, text))


def last_line(text: bytes | str) -> str:
    """Return the last line of a program's output, which best says why it failed, made printable."""
    words = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return printable(words.strip().rpartition("\n")[2].strip(), _LONGEST_LINE)


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode("ascii")


def returnable(value: Any) -> Any:
    """Return ``value`` made safe, at any depth, for a task's result.

    ansible-core takes a member such as C(__ansible_type) for an object of its own and fails on it, and on text that is
    not Unicode. A guest must not be able to cause either.
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
