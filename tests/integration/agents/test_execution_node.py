# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A play on an execution node: what AWX does there, by ansible-runner's transmit, worker and process.

The node has the collection, as its image would, and nothing of the user: no settings of ssh's, no known host, an empty
home. The job brings the inventory, the playbook and the key, and its hypervisor is an inventory host behind an sshd.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.harness import COMMANDS, ROOT, guest_variables, look
from lab import image
from lab.agent import LooseAgent
from lab.controller import Controller
from lab.sshd import Sshd

RUNNER = COMMANDS / "ansible-runner"
SECONDS = 50
"""Less than the ssh to the hypervisor stays: the job must not wait for what it leaves on the node."""

pytestmark = pytest.mark.skipif(not RUNNER.exists(), reason="the newest core's environment has ansible-runner")

PLAY = {
    "hosts": "all:!hv",
    "gather_facts": False,
    "tasks": [
        {"ansible.builtin.copy": {"content": "by an execution node", "dest": "/srv/node", "mode": "0600"}},
        {"ansible.builtin.command": "cat /srv/node"},
        {"qemu.guest.qga_info": {"gather_subset": ["osinfo"]}},
        {"qemu.guest.qga_ping": {}, "delegate_to": "hv"},
    ],
}


@pytest.fixture
def agent(agents: dict[str, LooseAgent]) -> LooseAgent:
    return agents["bookworm"]


@pytest.fixture
def node() -> Iterator[Controller]:
    with Controller() as node:
        yield node


def write_job(job: Path, guests: str, agent: LooseAgent, sshd: Sshd) -> None:
    """Write a job as AWX has it: the key comes by an ssh-agent, and no host key is known or checked.

    The guest is "listed" in the inventory, or "found" by the inventory plugin.
    """
    names = ("ansible_host", "ansible_port", "ansible_user", "ansible_ssh_common_args")
    hypervisor = {name: value for name, value in sshd.variables().items() if name in names}
    inventory: dict[str, Any] = {"all": {"hosts": {"hv": hypervisor}}}
    if guests == "listed":
        variables = guest_variables(agent)
        del variables["witness"]
        inventory["all"]["hosts"]["guest"] = {**variables, "ansible_qga_hypervisor": "hv"}
    else:
        found = {"sources": ["sockets"], "sockets": [str(agent.agent_socket)], "gather": ["osinfo"]}
        write(job / "inventory" / "x.qga.yml", {"plugin": "qemu.guest.qga", "hypervisors": ["hv"], **found})
    write(job / "inventory" / "hosts.yml", inventory)
    write(job / "project" / "site.yml", [PLAY])
    write(job / "env" / "ssh_key", image.ssh_key().read_text(encoding="ascii"))
    write(job / "env" / "envvars", {"ANSIBLE_HOST_KEY_CHECKING": "False"})


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def node_environment(node: Controller) -> dict[str, str]:
    home = node.directory / "home"
    home.mkdir()
    return {
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".dev" / "collections"),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "PATH": f"{COMMANDS}{os.pathsep}{os.defpath}",
    }


def run_job(job: Path, result: Path, node: Controller) -> str:
    """Send the job to the node, and what comes back to ``result``; return what Ansible printed."""
    work = node.directory / "work"
    worker = [str(RUNNER), "worker", "--private-data-dir", str(work)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([RUNNER, "transmit", job, "-p", "site.yml"], stdout=pipe) as transmit,
        subprocess.Popen(
            node.command(worker, node_environment(node), node.directory), stdin=transmit.stdout, stdout=pipe
        ) as working,
        subprocess.Popen([RUNNER, "process", result], stdin=working.stdout, stdout=pipe, text=True) as process,
    ):
        output = process.communicate(timeout=SECONDS)[0]
    return output


@pytest.mark.parametrize("guests", ["listed", "found"])
def test_job_by_ansible_runner(guests: str, agent: LooseAgent, node: Controller, tmp_path: Path) -> None:
    result = tmp_path / "result"
    with Sshd() as sshd:
        write_job(tmp_path / "job", guests, agent, sshd)
        output = run_job(tmp_path / "job", result, node)
        assert (result / "artifacts" / "status").read_text(encoding="ascii") == "successful", output
        assert sshd.logins() == 2, "one for the guest's tasks, and Ansible's own for the one that is delegated"
    assert look(agent, "cat /srv/node; rm /srv/node") == "by an execution node"
    assert not (node.directory / "home" / ".ssh").exists()
