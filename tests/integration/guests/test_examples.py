# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation that act on a whole machine, in one guest, which ends with the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.examples import example_tasks, paste_tasks
from ansible_collections.qemu.guest.tests.integration.guests.conftest import RELEASES, booted
from ansible_collections.qemu.guest.tests.integration.harness import (
    Ansible,
    hypervisor_variables,
    look,
)
from lab.vm import KERNEL_LINE, Guest

# A machine of four processors and eight memory blocks of 128 MiB: 0 to 3, and 32 to 35, which are modules beside.
MEMORY = ["-m", "512M,slots=2,maxmem=1G", "-object", "memory-backend-ram,id=more,size=384M"]
MEMORY += ["-device", "pc-dimm,memdev=more"]
# Four that boot keep two emulating processors busy with waiting for each other.
PROCESSORS = ["-append", f"{KERNEL_LINE} maxcpus=2"]
# What the examples speak of.
IN_THE_GUEST = """
useradd -m alice
umount /small && mkdir -p /var/lib/postgresql && mount /dev/vdb /var/lib/postgresql
truncate -s 32M /srv/log && mke2fs -qFt ext4 /srv/log && mount -o loop /srv/log /var/log
date -s '1 hour ago'
"""
# What has to be so before the examples of a module, by its name.
BEFORE = {
    "memory_blocks": "cd /sys/devices/system/memory; for n in 32 33 34 35; do echo offline >memory$n/state; done",
    "vcpus": "cd /sys/devices/system/cpu; for n in 2 3; do echo 1 >cpu$n/online; done",
}
SECRETS = {"vault_root_password": "open sesame", "vault_alice_password": "open barley"}
CHANGES = {
    "user_password": 3,
    "fsfreeze": 3,
    "fstrim": 2,
    "snapshot": 1,
    "memory_blocks": 2,
    "time": 3,
    "suspend": 2,
    "vcpus": 2,
    "shutdown": 2,
}
"""How many tasks of each module's examples change the guest. In this order: an emulated guest hangs now and then after
its processors were exchanged, and is reset soon after."""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with booted(RELEASES[-1], cpus=4, extra_args=[*MEMORY, *PROCESSORS, "-no-shutdown"]) as guest:
        look(guest, IN_THE_GUEST)
        yield guest


@pytest.fixture
def ansible(guest: Guest, make_ansible: MakeAnsible) -> Ansible:
    return make_ansible({"hypervisor": hypervisor_variables(guest)})


@pytest.fixture
def replaced(guest: Guest) -> Mapping[str, object]:
    return {"/run/vm1.qga": guest.agent_socket, "/run/vm1.qmp": guest.qmp_socket}


@pytest.mark.parametrize("name", CHANGES)
def test_examples(name: str, guest: Guest, ansible: Ansible, replaced: Mapping[str, object]) -> None:
    tasks = example_tasks(f"qga_{name}")
    if name == "snapshot":
        tasks = tasks[:1]  # the other is of a domain of libvirt's: test_libvirt.py
    if name == "shutdown":
        tasks.reverse()  # a guest that is off cannot be rebooted
    look(guest, BEFORE.get(name, ":"))
    run = paste_tasks(ansible, tasks, replaced, variables=SECRETS)
    assert run.recap["hypervisor"]["changed"] == CHANGES[name], run.output
    if name == "fsfreeze":  # the last one leaves it frozen
        with open_agent(str(guest.agent_socket), 60) as agent:
            agent.execute("guest-fsfreeze-thaw")
