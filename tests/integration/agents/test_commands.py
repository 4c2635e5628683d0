# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of commands has all that a real agent has."""

from __future__ import annotations

from ansible_collections.qemu.guest.plugins.module_utils._agent import schema
from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.modules import qga_info
from ansible_collections.qemu.guest.tests.integration.commands import TABLE, seed_commands, targets_of_modules
from lab import image
from lab.agent import LooseAgent

NEWEST = list(image.RELEASES)[-1]


def commands_of(agent: LooseAgent) -> dict[str, bool]:
    with open_agent(str(agent.agent_socket)) as opened:
        return dict(opened.info.commands)


def test_table_has_every_command_of_the_oldest_schema_and_the_newest_agent(agents: dict[str, LooseAgent]) -> None:
    assert set(TABLE) == seed_commands() | set(commands_of(agents[NEWEST]))


def test_what_needs_no_guest_is_not_blocked(agents: dict[str, LooseAgent]) -> None:
    """Otherwise no target could exercise it here, and none would be asked to."""
    enabled = {name for name, allowed in commands_of(agents[NEWEST]).items() if allowed}
    here = targets_of_modules(in_guests=False)
    assert {name for name, covered in TABLE.items() if covered.target in here} <= enabled


def test_every_command_of_an_agent_is_known(agent: LooseAgent) -> None:
    commands = set(commands_of(agent))
    assert commands <= set(schema.COMMANDS)
    about_the_guest = {name for name in commands if name.startswith(("guest-get-", "guest-network-get-"))}
    assert about_the_guest <= set(qga_info.COMMANDS.values())
