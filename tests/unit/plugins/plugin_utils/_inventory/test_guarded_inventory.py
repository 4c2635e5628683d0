# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups whose names and parents guests have chosen, in ansible-core's own inventory."""

from __future__ import annotations

import pytest
from ansible.inventory.data import InventoryData

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guarded_inventory import GuardedInventory


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def inventory(warnings: list[str]) -> GuardedInventory:
    data = InventoryData()
    data.add_host("web")
    return GuardedInventory(data, warnings.append)


def test_ordinary_groups(inventory: GuardedInventory, warnings: list[str]) -> None:
    assert inventory.add_group("os_debian") == "os_debian"
    inventory.add_host("web", "os_debian")
    inventory.add_group("os")
    assert inventory.add_child("os", "os_debian")
    assert {group.name for group in inventory.hosts["web"].get_groups()} == {"os", "os_debian"}
    assert not warnings


def test_group_with_the_name_of_a_host(inventory: GuardedInventory, warnings: list[str]) -> None:
    inventory.add_host("web", inventory.add_group("web"))
    assert "web" not in inventory.groups and inventory.hosts["web"] in inventory.groups["web_group"].hosts
    inventory.set_variable("web", "x", 1)
    assert inventory.hosts["web"].vars["x"] == 1
    assert warnings == ["the group web is called web_group, because there is a host web"]


def test_child_of_a_group_with_the_name_of_a_host(inventory: GuardedInventory) -> None:
    inventory.add_group("x")
    inventory.add_group("web")
    assert inventory.add_child("web", "x")
    assert [group.name for group in inventory.groups["x"].parent_groups] == ["web_group"]


def test_plays_for_this_machine_are_not_played_on_guests(inventory: GuardedInventory, warnings: list[str]) -> None:
    inventory.add_host("web", inventory.add_group("localhost"))
    inventory.add_group("x")
    inventory.add_child("localhost", "x")
    assert "localhost" not in inventory.groups
    assert [group.name for group in inventory.groups["x"].parent_groups] == ["localhost_group"]
    assert warnings[0].startswith("the group localhost is called localhost_group, because plays for this machine")


@pytest.mark.parametrize("name", ["all", "ungrouped"])
def test_nobody_joins_the_groups_of_core(name: str, inventory: GuardedInventory, warnings: list[str]) -> None:
    assert inventory.add_group(name) == name
    inventory.add_host("web", name)
    inventory.add_child(name, "web")
    inventory.add_group("x")
    inventory.add_child("x", name)
    inventory.reconcile_inventory()
    assert inventory.groups[name].hosts == ([inventory.hosts["web"]] if name == "ungrouped" else [])
    assert [group.name for group in inventory.groups["ungrouped"].parent_groups] == ["all"]
    assert warnings


def test_no_loops(inventory: GuardedInventory, warnings: list[str]) -> None:
    for name in ("a", "b", "c"):
        inventory.add_group(name)
    assert inventory.add_child("a", "b") and inventory.add_child("b", "c")
    for parent, child in (("a", "a"), ("b", "a"), ("c", "a")):
        assert not inventory.add_child(parent, child)
    assert len(warnings) == 3
    inventory.reconcile_inventory()
