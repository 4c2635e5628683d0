# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts that say where a guest's agent is: a guest, or a user in it, must not choose where its next task goes.

What a module returns as facts goes before the inventory. ansible-core takes variables of its own connections out of it,
and knows nothing of those of collections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible import constants as C

__all__ = ("told_by_facts",)


def told_by_facts(variables: Mapping[str, Any]) -> str:
    """Return why a task with these variables is refused: facts are options of the connection. Empty if none are."""
    if not C.INJECT_FACTS_AS_VARS:
        return ""
    hosts = [variables, *variables.get("ansible_delegated_vars", {}).values()]
    facts = {f"ansible_{fact}" for host in hosts for fact in host.get("ansible_facts", {}) if fact.startswith("qga_")}
    told = sorted(name for name in facts if any(name in host for host in hosts))
    if not told:
        return ""
    return (
        f"{', '.join(told)} came from the guest, among facts that a task has returned. Only the controller may say "
        "where an agent is, so nothing was sent. Find out who returns that, and drop the facts with meta: clear_facts."
    )
