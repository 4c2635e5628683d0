# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was asked of a guest, and safe ways to look at it: a value of another type than the schema's is no value."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple

__all__ = ("Facts", "Replies", "entries", "number", "text")

Facts = Dict[str, Any]
"""By name, without the prefix C(ansible_)."""

_SYSTEMS = {"mswindows": "Windows", "freebsd": "FreeBSD"}
# Systems whose agents name them too, and whose facts nobody has compared.
_OTHERS = ("openbsd", "netbsd", "dragonfly", "macos", "darwin", "solaris", "illumos")


class Replies(NamedTuple):
    """The replies of an agent by command, and the content of the guest's files by path; what is missing is unknown."""

    commands: dict[str, Any]
    files: dict[str, str]

    @property
    def osinfo(self) -> Mapping[str, Any]:
        found = self.commands.get("guest-get-osinfo")
        return found if isinstance(found, dict) else {}

    @property
    def system(self) -> str:
        """C(Linux), C(FreeBSD) or C(Windows); empty if unknown. Linux has many ids, one for each distribution."""
        name = text(self.osinfo, "id")
        return "" if not name or name in _OTHERS else _SYSTEMS.get(name, "Linux")

    def listed(self, command: str) -> list[dict[str, Any]]:
        """Return a command's reply that is a list of objects."""
        return entries(self.commands.get(command))


def entries(value: Any) -> list[dict[str, Any]]:
    """Return the objects in a list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def text(entry: Mapping[str, Any], name: str) -> str:
    """Return a member that is text; empty if there is none."""
    value = entry.get(name)
    return value if isinstance(value, str) else ""


def number(entry: Any, name: str) -> int | None:
    """Return a member that is an integer of the schema's size; None if there is none."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if type(value) is int and abs(value) < 2**64 else None
