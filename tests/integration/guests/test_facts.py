# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a booted guest with a network: they are those of setup, and take a fraction of its time."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterator

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.facts import ALWAYS, both, differences
from ansible_collections.qemu.guest.tests.integration.guests.conftest import RELEASES, booted
from ansible_collections.qemu.guest.tests.integration.harness import HERE, guest_variables, look, until
from lab import accel
from lab.vm import Guest


@pytest.fixture(scope="module", params=RELEASES)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with booted(request.param, nic="user") as guest:
        # From QEMU's own server and router.
        for command in ("ip -4 address show scope global | grep 10.0.2.15", "ip -6 route | grep ^default.*dev"):
            until(functools.partial(look, guest, f"{command} || :"), 120, command)
        yield guest


# A disk with a partition, mounts that the agent's own list lacks, addresses with and without a label, a processor that
# is offline, and a name with a domain.
UNUSUAL = r"""
set -e
dd if=/dev/zero of=/root/disk bs=1M count=8 2>/dev/null
printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\020\0\0' | dd of=/root/disk bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of=/root/disk bs=1 seek=510 conv=notrunc 2>/dev/null
losetup -P /dev/loop0 /root/disk
mkdir -p '/mnt/with space' /mnt/bound
mount -t tmpfs none /mnt
mkdir -p '/mnt/with space' /mnt/bound
mount --bind /small '/mnt/with space'
mount --bind /usr /mnt/bound
ip link add br-1 type bridge
ip addr add 192.0.2.1/24 dev br-1
ip addr add 192.0.2.2/24 dev br-1
ip addr add 2001:db8::1/64 dev br-1
ip link set br-1 up
ip addr add 198.51.100.1/24 dev br-1 label br-1:7
ip tunnel add sit1 mode sit local 192.0.2.1 remote 192.0.2.9
echo 0 >/sys/devices/system/cpu/cpu1/online
hostname vm1.example.com
"""


def test_facts_are_those_of_setup(guest: Guest, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"vm1": guest_variables(guest)})
    for unusual in (False, True):
        if unusual:
            look(guest, UNUSUAL)
        for _host, by_agent, by_setup in both(ansible, {"vm1": guest}):
            assert list(differences(by_agent, by_setup)) == []
            assert set(by_agent) >= ALWAYS
            assert by_agent["default_ipv4"]["address"] == "10.0.2.15"
            assert by_agent["default_ipv4"]["gateway"] == "10.0.2.2"
            assert {mount["mount"] for mount in by_agent["mounts"]} >= {"/", "/small"}
            assert all("size_available" in mount for mount in by_agent["mounts"] if mount["mount"] in ("/", "/small"))
            if unusual:
                assert (by_agent["hostname"], by_agent["nodename"]) == ("vm1", "vm1.example.com")
                assert by_agent["devices"]["loop0"] == {"partitions": {"loop0p1": {}}}
                assert by_agent["br_1"]["ipv4"]["address"] == "192.0.2.1"
                assert "br-1_7" in by_agent["interfaces"]
                assert "macaddress" not in by_agent["sit1"]


TIMES = 3


def test_facts_take_a_fraction_of_setups_time(guest: Guest, make_ansible: MakeAnsible) -> None:
    """Whole tasks, as a user sees them, by turns. setup is timed as ansible-core runs it anywhere, in an interpreter of
    its own, and in one that is warm."""
    ansible = make_ansible({"vm1": guest_variables(guest)})
    tasks = [
        {"name": "agent", "qemu.guest.qga_facts": {}},
        {"name": "warm", "ansible.builtin.setup": {}},
        {"name": "plain", "ansible.builtin.setup": {}, "vars": {"ansible_qga_warm_python": False}},
    ]
    playbook = ansible.directory / "times.json"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks * (1 + TIMES)}]))
    seconds = ansible.directory / "seconds.json"
    environment = {
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "task_seconds",
        "TASK_SECONDS": str(seconds),
    }
    ansible.playbook(playbook, environment=environment)
    taken = json.loads(seconds.read_text())[len(tasks) :]
    medians = {name: statistics.median(s for task, s in taken if task == name) for name in ("agent", "warm", "plain")}
    print(guest.release, {name: f"{median:.2f} s" for name, median in medians.items()})
    assert medians["agent"] * 5 < medians["warm"]
    if accel.accelerator() == "tcg":
        assert medians["agent"] * 20 < medians["plain"]
