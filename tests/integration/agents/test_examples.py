# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the modules' documentation, pasted into a play. Those of qga_facts are in test_facts.py."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, guest_variables
from ansible_collections.qemu.guest.tests.unit.documentation import examples, module
from lab.agent import LooseAgent

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
    tasks = module(name).EXAMPLES.replace("/run/vm1.qga", str(guest.agent_socket))
    tasks = tasks.replace("/srv/logs", str(ansible.directory))
    playbook = ansible.directory / "play.yml"
    playbook.write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n{textwrap.indent(tasks, '    ')}")
    run = ansible.playbook(playbook)
    assert run.recap["vm1"]["ok"] == len(examples(name))
