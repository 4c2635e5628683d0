# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An inventory that lets no group do harm whose name or parent a guest may have chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ("GuardedInventory",)

_OURS = ("all", "ungrouped")
_HERE = "localhost"


class GuardedInventory:
    """Stands in for ansible-core's inventory where groups are made from expressions.

    A group with the name of a host is called NAME_group: ansible-core would set the host's variables on the group. So
    is one called localhost, which plays for this machine would be played on.
    Nobody joins ``all`` or ``ungrouped`` by name, and a group is not made an ancestor of itself, which would end all.
    """

    def __init__(self, inventory: Any, warn: Callable[[str], None]) -> None:
        self._inventory = inventory
        self._warn = warn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inventory, name)

    def _safe(self, name: str) -> str:
        return f"{name}_group" if name == _HERE or name in self._inventory.hosts else name

    def add_group(self, group: str) -> str:
        if group in _OURS:
            return group
        safe = self._safe(group)
        if safe != group:
            why = "plays for this machine are for" if group == _HERE else "there is a host"
            self._warn(f"the group {group} is called {safe}, because {why} {group}")
        return str(self._inventory.add_group(safe))

    def add_host(self, host: str, group: str | None = None, port: int | None = None) -> str:
        if group in _OURS:
            self._warn(f"nobody is put into the group {group} by an expression")
            group = None
        return str(self._inventory.add_host(host, group, port))

    def add_child(self, group: str, child: str) -> bool:
        is_group = child not in self._inventory.hosts
        group = group if group in _OURS else self._safe(group)
        if group in _OURS or child in _OURS:
            return False
        if is_group and self._is_ancestor(child, group):
            self._warn(f"the group {child} is not put below {group}, which is below it or the same")
            return False
        return bool(self._inventory.add_child(group, child))

    def _is_ancestor(self, upper: str, lower: str) -> bool:
        group = self._inventory.groups[lower]
        return upper == lower or upper in {each.name for each in group.get_ancestors()}
