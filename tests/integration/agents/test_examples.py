# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation that need no booted guest. Those of qga_facts are in test_facts.py."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.connection import qga as connection
from ansible_collections.qemu.guest.plugins.inventory import qga as inventory
from ansible_collections.qemu.guest.tests.integration.agents.test_guides import know, listening, plain_qemu
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.examples import example_tasks, paste_tasks
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, guest_variables, shell_on
from lab.agent import LooseAgent
from lab.libvirt import Daemon
from lab.machine import Machine

PASTED = ("authorized_keys", "command", "exec", "fetch", "file", "info", "ping")
"""Not those that a loose agent must not run, because they act on the whole machine."""

# What the examples speak of.
IN_THE_GUEST = """
useradd -m alice && useradd -m admin && useradd postgres && useradd -U app
mkdir -p /home/admin/.ssh && touch /home/admin/.ssh/authorized_keys && chown -R admin: /home/admin/.ssh
echo line >/var/log/app.log
printf '#!/bin/sh\\ncat >/tmp/sql\\n' >/usr/bin/psql
command -v openssl >/dev/null || printf '#!/bin/sh\\necho 5ec\\n' >/usr/bin/openssl
chmod 0755 /usr/bin/psql /usr/bin/openssl
"""
BESIDE_THE_PLAYBOOK = {
    "admins.pub": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXmEmVbE6rHhFYg7l1lVZrZ0pTnXWDFbKsNDhPcFGDD admin\n",
    "app.sql": "SELECT 1;\n",
    "files/app/conf": "on\n",
}


@pytest.fixture(scope="module")
def guest() -> Iterator[LooseAgent]:
    with LooseAgent("bookworm") as agent:
        agent.run(IN_THE_GUEST)
        yield agent


@pytest.fixture
def ansible(guest: LooseAgent, make_ansible: MakeAnsible) -> Ansible:
    ansible = make_ansible({"vm1": guest_variables(guest)})
    for name, content in BESIDE_THE_PLAYBOOK.items():
        path = ansible.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return ansible


@pytest.mark.parametrize("name", [f"qga_{name}" for name in PASTED])
def test_examples(name: str, guest: LooseAgent, ansible: Ansible) -> None:
    replaced = {"/run/vm1.qga": guest.agent_socket, "/srv/logs": ansible.directory}
    paste_tasks(ansible, example_tasks(name), replaced)


# Of the plugins, pasted on a machine that has what they speak of


class Console:
    """A user's shell on a machine with a guest, and two hypervisors that have one each."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.directory = directory
        self.machine = stack.enter_context(Machine())
        plain_qemu(self.machine, stack)
        for names, guest in (("hv1.example.com hypervisor.example.com", "shop"), ("hv2.example.com", "mail")):
            agent = stack.enter_context(LooseAgent())
            agent.run(ON_A_HYPERVISOR.format(guest=guest))
            know(self.machine, names, stack.enter_context(listening(agent.sshd)))

    def type(self, command: str) -> str:
        """Run a shell command, which must not give a warning; return its output."""
        argv = [*shell_on(self.machine, self.directory, home=self.directory), command]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    def graph(self, text: str, *more: str) -> str:
        """Paste an inventory and see its hosts."""
        (self.directory / "guests.qga.yml").write_text(text, encoding="utf-8")
        return self.type(" ".join(["ansible-inventory", *more, "-i guests.qga.yml --graph"]))


ON_A_HYPERVISOR = """
ln -s /lab/agent.sock /run/vm2.qga
mkdir -p /run/qemu-server /etc/pve/qemu-server && ln -s /lab/agent.sock /run/qemu-server/100.qga
printf 'agent: 1\nname: {guest}\ntags: web\n' >/etc/pve/qemu-server/100.conf
"""


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    (tmp_path / "there").mkdir()
    with ExitStack() as stack:
        yield Console(stack, tmp_path / "there")


def test_connection(console: Console) -> None:
    (console.directory / "play.yml").write_text(connection.EXAMPLES, encoding="utf-8")
    output = console.type("ANSIBLE_PYTHON_INTERPRETER=auto_silent ansible-playbook -i vm1,vm2, play.yml")
    assert "vm1 : ok=2 changed=1" in output and "vm2 : ok=2" in output


def test_inventory(console: Console) -> None:
    here, others, by_group, libvirt, sockets, nothing = inventory.EXAMPLES.split("---\n")[1:]
    assert console.graph(here) == "@all: |--@ungrouped: | |--vm1"
    graph = console.graph(others)
    assert "|--@os_debian: | |--shop | |--mail" in graph and "|--@at_root_hv1_example_com: | |--shop" in graph
    (console.directory / "hosts.ini").write_text("[hypervisors]\nhv2.example.com\n", encoding="utf-8")
    assert "|--@web: | |--mail" in console.graph(by_group, "-i hosts.ini")
    with Daemon() as daemon, Daemon() as other:
        daemon.define("db")
        other.define("cache")
        console.machine.link("/run/libvirt", daemon.socket.parent)
        graph = console.graph(libvirt.replace("qemu+ssh://root@hv1.example.com/system", other.uri))
    assert "|--db" in graph and "|--cache" in graph
    console.machine.run("ln -s vm1.qga /run/vm-1.qga")
    assert "|--vm-1" in console.graph(sockets)
    assert list((console.directory / ".cache" / "ansible-inventory").iterdir())
    (console.directory / "hosts.yml").write_text("all: {hosts: {vm1: }}\n", encoding="utf-8")
    assert console.graph(nothing, "-i hosts.yml") == "@all: |--@ungrouped: | |--vm1"
