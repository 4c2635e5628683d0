# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many guests cost: logins at their hypervisor, and what is left on the controller after a play."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import HERE, Ansible, guest_variables, until
from lab.agent import LooseAgent
from lab.controller import Controller
from lab.sshd import Sshd

MANY = 30
"""Guests of one hypervisor: three times what an sshd lets log in at a time."""

SEVERAL = 20
PERSIST = 3.0
"""Seconds: long enough for a play on SEVERAL guests to end within that time of its first task."""


LARGEST = 16_000_000
"""Bytes: the mux has 12.3 million resident, of which 5.9 are its share, with Python 3.13 (measured on 2026-11-30). All
but some kilobytes is the interpreter, which takes as much for one channel as for SEVERAL; alone on a machine, its share
is all of it. ansible-core's modules would add 30 million.
"""

OWN_DESCRIPTORS = 6
"""Of the mux: the standard ones, the listening socket, the lock that makes it the only one, and epoll's."""


@contextmanager
def fleet(guests: int) -> Iterator[dict[str, dict[str, Any]]]:
    """Start that many agents and give their variables, by the names of their guests."""
    with ExitStack() as stack:
        agents = [stack.enter_context(LooseAgent("bookworm")) for _number in range(guests)]
        yield {f"guest{number}": guest_variables(agent) for number, agent in enumerate(agents)}


@pytest.fixture
def controller() -> Iterator[Controller]:
    with Controller() as controller:
        yield controller


def run(controller: Controller, hosts: dict[str, dict[str, Any]], *tasks: dict[str, Any]) -> None:
    """Run a play on all guests at once."""
    ansible = Ansible(controller.directory / "ansible", hosts, controller)
    playbook: Path = ansible.directory / "play.json"
    playbook.write_text(json.dumps([{"hosts": "guest*", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    recap = ansible.playbook(playbook, "--forks", str(MANY)).recap
    guests = sum(name.startswith("guest") for name in hosts)
    assert [counts["ok"] for counts in recap.values()] == [len(tasks)] * guests


def test_hypervisor_many_guests_at_once_one_login(controller: Controller) -> None:
    with Sshd() as sshd, fleet(MANY) as guests:
        hosts = {name: {**variables, "ansible_qga_hypervisor": "hv"} for name, variables in guests.items()}
        run(controller, {**hosts, "hv": sshd.variables()}, {"qemu.guest.qga_ping": {}}, {"ansible.builtin.raw": "id"})
        assert (sshd.logins(), sshd.refused()) == (1, 0)
        assert sorted(process.name for process in controller.left()) == ["qga-mux", "ssh"]


def test_play_on_many_guests_leaves_one_small_process(controller: Controller) -> None:
    """It closes what is over, and then ends."""
    with fleet(SEVERAL) as guests:
        hosts = {name: {**variables, "ansible_qga_persist": PERSIST} for name, variables in guests.items()}
        hosts["guest0"]["ansible_qga_persist"] = 5 * PERSIST
        run(controller, hosts, {"ansible.builtin.raw": "true"})
        (mux,) = controller.left()
        assert mux.name == "qga-mux" and mux.pss <= LARGEST
        assert mux.descriptors <= OWN_DESCRIPTORS + 2 * SEVERAL
        until(lambda: [one.descriptors for one in controller.left()] == [OWN_DESCRIPTORS + 2], PERSIST + 2, "closed")
        assert controller.wait_empty(5 * PERSIST)
        assert controller.sockets() == []


FOUND = "the inventory plugin finds the guest"
BESIDE = "the inventory plugin finds nothing; the guest is in another inventory"
ACTION = "the play has a task of this collection"


@pytest.mark.parametrize("way", [FOUND, BESIDE, ACTION])
def test_processes_of_tasks_find_all_loaded(way: str, agents: dict[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    """Each is a fork of a process that has what they need."""
    ansible = make_ansible({} if way == FOUND else {"guest1": guest_variables(agents["sid"])})
    plugin: dict[str, Any] = {"plugin": "qemu.guest.qga", "sources": []}
    if way == FOUND:
        plugin.update(sources=["sockets"], sockets=[str(agents["sid"].agent_socket)])
        plugin["compose"] = {"ansible_python_interpreter": "'/usr/bin/python3'"}
    inventory = ansible.directory / "guests.qga.yml"
    inventory.write_text(json.dumps(plugin), encoding="utf-8")
    beside = [] if way == ACTION else ["-i", str(inventory)]
    first = "qemu.guest.qga_ping" if way == ACTION else "ansible.builtin.command"
    tasks = [{first: None if way == ACTION else "true"}, *[{"ansible.builtin.command": "true"}] * 2]
    playbook, loaded = ansible.directory / "play.json", ansible.directory / "loaded"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    environment = {
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "task_modules",
        "TASK_MODULES": str(loaded),
    }
    ansible.playbook(playbook, *beside, environment=environment)
    _first, *others = map(json.loads, loaded.read_text(encoding="utf-8").splitlines())  # the first starts the mux
    assert others == [[], []]
