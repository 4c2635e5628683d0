# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's socket is on another machine, which has an ssh server and nothing else of use.

That machine is the loose agent's own root: the agent's socket is in there, too.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, guest_variables, look, until
from lab import host, image
from lab.agent import LooseAgent

SOCKET = "/lab/agent.sock"
# Channels are shared by all tasks of a user for a socket of a host: tests that run beside this have another host.
HOST = f"hypervisor-{os.getpid()}"


@pytest.fixture
def agent(agents: dict[str, LooseAgent]) -> LooseAgent:
    return agents["bookworm"]


@pytest.fixture
def path(agent: LooseAgent, tmp_path: Path) -> Iterator[str]:
    """A PATH on which ssh knows the hypervisor; what it has started ends."""
    proxy = shlex.join(host.as_root(agent.sshd))
    (tmp_path / "config").write_text(
        f"Host {HOST}\nUser root\nIdentityFile {image.ssh_key()}\nProxyCommand {proxy}\n"
        "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n",
        encoding="utf-8",
    )
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {host.find("ssh")} -F {tmp_path}/config "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    yield f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"
    for pid in forwards(tmp_path):
        os.kill(pid, signal.SIGTERM)


@pytest.fixture
def ansible(agent: LooseAgent, make_ansible: MakeAnsible) -> Ansible:
    return make_ansible({"guest": {**guest_variables(agent), **there()}})


def there(address: str = SOCKET, hypervisor: str = HOST) -> dict[str, str]:
    return {"ansible_qga_address": address, "ansible_qga_hypervisor": hypervisor}


def forwards(directory: Path) -> list[int]:
    """Return the processes of ssh that forward something, of this test's."""
    found = subprocess.run(
        ["pgrep", "-f", f"^[^ ]*ssh -F {directory}/config -f"], stdout=subprocess.PIPE, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.parametrize("persist", [2, 0])
def test_tasks(persist: int, agent: LooseAgent, ansible: Ansible, path: str, tmp_path: Path) -> None:
    playbook = tmp_path / "play.json"
    playbook.write_text(
        '[{"hosts": "all", "gather_facts": false, "tasks": ['
        '{"ansible.builtin.copy": {"content": "from afar", "dest": "/srv/afar", "mode": "0600"}},'
        '{"ansible.builtin.command": "cat /srv/afar", "register": "it"},'
        '{"ansible.builtin.assert": {"that": "it.stdout == \'from afar\'"}}, {"qemu.guest.qga_ping": {}}]}]',
        encoding="utf-8",
    )
    ansible.playbook(playbook, environment={"PATH": path}, variables={"ansible_qga_persist": persist})
    assert look(agent, "cat /srv/afar; rm /srv/afar") == "from afar"
    assert len(forwards(tmp_path)) == 1, "all tasks went through one ssh"
    until(lambda: not forwards(tmp_path), 30, "ssh ends by itself")


def test_no_such_socket(ansible: Ansible, path: str) -> None:
    run = ansible.adhoc(
        "ansible.builtin.ping", "", "-e", "ansible_qga_address=/nope.sock", rc=4, environment={"PATH": path}
    )
    assert (
        f"guest agent at unix:/nope.sock on {HOST}: nothing was sent: the socket there cannot be reached" in run.message
    )
    assert "AllowStreamLocalForwarding" in run.message


def test_no_such_machine(ansible: Ansible, path: str) -> None:
    run = ansible.adhoc(
        "ansible.builtin.ping", "", "-e", "ansible_qga_hypervisor=nope.invalid", rc=4, environment={"PATH": path}
    )
    assert "cannot connect to nope.invalid by ssh: ssh: Could not resolve hostname nope.invalid" in run.message


def test_what_is_no_path(ansible: Ansible, path: str) -> None:
    run = ansible.adhoc(
        "ansible.builtin.ping", "", "-e", "ansible_qga_address=libvirt:web", rc=None, environment={"PATH": path}
    )
    assert run.rc and f"libvirt:web cannot be reached through ssh to {HOST}" in run.message
