# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text of guests, processes and configuration files: bounded, printable, and never a template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.utils.unsafe_proxy import wrap_var

from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import printable, returnable

__all__ = ("LONGEST_TEXT", "bounded", "line", "marked")

LONGEST_TEXT = 1024
_MOST_ITEMS = 512
_DEEPEST = 8


def line(text: str, limit: int = LONGEST_TEXT) -> str:
    """Return ``text`` as one visible line of at most about ``limit`` characters. It is a plain str, without tags."""
    return printable(str(returnable(text)), limit)


def bounded(value: Any, depth: int = 0) -> Any:
    """Return ``value``, which came as JSON, with a limit on its depth, its lengths and its texts."""
    if isinstance(value, str):
        return line(value)
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if depth >= _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {
            line(str(name), 128).lstrip("_") or "_": bounded(item, depth + 1)
            for name, item in list(value.items())[:_MOST_ITEMS]
        }
    if isinstance(value, (list, tuple)):
        return [bounded(item, depth + 1) for item in value[:_MOST_ITEMS]]
    return line(str(value))


def marked(value: Any) -> Any:
    """Return ``value`` marked as untrusted, so that ansible-core never takes it for a template.

    From ansible-core 2.19 on, text is untrusted unless it is tagged, and the tag is taken away here.
    """
    return wrap_var(value)
