# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processors, memory blocks and clocks of booted guests, on the guests themselves and on their hypervisor."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_memory_blocks, qga_time, qga_vcpus
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import (
    ROOT,
    guest_variables,
    hypervisor_variables,
    look,
)
from lab.vm import Guest

PLACES = {"guest": guest_variables, "hypervisor": hypervisor_variables}


def test_example(hosts: Mapping[str, Mapping[str, Any]], make_ansible: MakeAnsible) -> None:
    run = make_ansible(hosts).playbook(ROOT / "playbooks" / "hardware.yml", variables={"hypervisor": "all"})
    assert run.message.count("of 128 MiB each") == len(hosts)


def test_processors_that_the_agent_did_not_get_to() -> None:
    """The agent stops in the middle; what it did stays, and its error is had by asking for the rest."""
    with Guest("bookworm", cpus=3) as guest:
        guest.wait_booted()
        guest.wait_agent()
        # Something in place of the switch that is not 0 and refuses to be.
        look(guest, "mount --bind /proc/sys/kernel/pid_max /sys/devices/system/cpu/cpu1/online")
        params = {"online": None, "offline": [2, 1], "count": None}
        with open_agent(str(guest.agent_socket)) as agent, pytest.raises(OperationError, match="Invalid arg") as caught:
            run_operation(qga_vcpus.OPERATION, agent, params)
        assert look(guest, "cat /sys/devices/system/cpu/online") == "0-1\n"
        assert "Processor 1 could not be taken offline" in str(caught.value)
        assert "Switched before that: 2; not tried: none." in str(caught.value)
        result = caught.value.as_result()
        assert result["changed"] is True
        assert (result["processed"], result["not_processed"]) == ([2], [1])
        assert result["after"] == {"online": [0, 1], "offline": [2]}


def test_guest_without_hwclock(guests: Mapping[str, Guest]) -> None:
    for guest in guests.values():
        look(guest, "mv /sbin/hwclock /sbin/hwclock.away && systemctl restart qemu-guest-agent")
        try:
            guest.wait_agent()
            look(guest, "date -s @$(( $(date +%s) - 500 ))")
            with open_agent(str(guest.agent_socket), 60) as agent:
                if agent.info.version_tuple < (8,):
                    refused(guest, agent)
                else:
                    warned(guest, agent)
                with pytest.raises(OperationError, match=r"from its RTC: .*needs /sbin/hwclock"):
                    run_operation(qga_time.OPERATION, agent, {**SYNCED, "state": "from_rtc"})
        finally:
            # Some agents look for it only once.
            look(guest, "mv /sbin/hwclock.away /sbin/hwclock && systemctl restart qemu-guest-agent")
            guest.wait_agent()
            with open_agent(str(guest.agent_socket), 60) as agent:
                run_operation(qga_time.OPERATION, agent, {**SYNCED, "tolerance": 0.1})
            assert abs(behind(guest)) < 30


SYNCED = {"state": "synced", "time": None, "tolerance": 1.0}


def behind(guest: Guest) -> float:
    """Return how many seconds the guest's clock is behind, as its console says, which takes its time."""
    return time.time() - int(look(guest, "date +%s"))


def warned(guest: Guest, agent: Any) -> None:
    result = run_operation(qga_time.OPERATION, agent, SYNCED)
    assert result["changed"] is True
    assert result["rtc_set"] is False
    assert "its RTC is not" in result["warnings"][0]
    assert abs(result["after"]["offset"]) < 1
    assert abs(behind(guest)) < 30
    assert "warnings" not in run_operation(qga_time.OPERATION, agent, SYNCED)


def refused(guest: Guest, agent: Any) -> None:
    """Agents 5.2 and 7.2 set nothing when they find no hwclock the first time."""
    with pytest.raises(OperationError, match=r"was not set: .*needs /sbin/hwclock") as caught:
        run_operation(qga_time.OPERATION, agent, SYNCED)
    assert caught.value.as_result()["changed"] is False
    assert behind(guest) > 400


def test_warning_reaches_the_user(guest: Guest, make_ansible: MakeAnsible) -> None:
    # Some agents look for it only once, when they set the clock first: there it is.
    look(guest, "date -s @$(( $(date +%s) - 500 ))")
    with open_agent(str(guest.agent_socket), 60) as agent:
        run_operation(qga_time.OPERATION, agent, SYNCED)
    look(guest, "mv /sbin/hwclock /sbin/hwclock.away && date -s @$(( $(date +%s) - 500 ))")
    try:
        for place, variables in PLACES.items():
            address = str(guest.agent_socket)
            arguments = {"address": address} if place == "hypervisor" else {}
            ansible = make_ansible({place: variables(guest)})
            run = ansible.adhoc("qemu.guest.qga_time", json.dumps({**arguments, "state": "set", "time": "1896091200"}))
            assert f"[WARNING]: unix:{address}: The guest's clock is set; its RTC is not" in run.message
    finally:
        look(guest, "mv /sbin/hwclock.away /sbin/hwclock")
        with open_agent(str(guest.agent_socket), 60) as agent:
            run_operation(qga_time.OPERATION, agent, {**SYNCED, "tolerance": 0.1})
    assert abs(behind(guest)) < 30


@pytest.mark.parametrize("hidden", ["/sys/devices/system/memory", "/sys/devices/system"])
def test_guest_whose_kernel_shows_no_memory_blocks(hidden: str, guest: Guest) -> None:
    look(guest, f"mount -t tmpfs none {hidden}")
    try:
        params = {"online": None, "offline": None, "count": 1}
        with open_agent(str(guest.agent_socket)) as agent, pytest.raises(OperationError, match="has no memory blocks"):
            run_operation(qga_memory_blocks.OPERATION, agent, params)
    finally:
        look(guest, f"umount {hidden}")
