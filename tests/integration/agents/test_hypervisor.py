# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents' sockets are on another machine, which has an ssh server and nothing else of use.

That machine is this one, behind an sshd with OpenSSH's defaults; or a loose agent's own root, which is in no network.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, guest_variables, look
from lab import ssh
from lab.agent import LooseAgent
from lab.sshd import Sshd


@pytest.fixture
def agent(agents: dict[str, LooseAgent]) -> LooseAgent:
    return agents["bookworm"]


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    with Sshd() as sshd:
        yield sshd


@pytest.fixture
def ansible(agent: LooseAgent, sshd: Sshd, make_ansible: MakeAnsible) -> Ansible:
    """The guest, and its hypervisor as an inventory host of its own group."""
    return make_ansible({"guest": on(agent, "hv"), "hv": sshd.variables()})


def on(agent: LooseAgent, hypervisor: str, **variables: Any) -> dict[str, Any]:
    """Return the variables of a guest of `hypervisor`."""
    return {**guest_variables(agent), "ansible_qga_hypervisor": hypervisor, **variables}


def play(directory: Path, *tasks: Mapping[str, Any], hosts: str = "guest*") -> Path:
    path = directory / "play.json"
    path.write_text(json.dumps([{"hosts": hosts, "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    return path


COPY = {"ansible.builtin.copy": {"content": "from afar", "dest": "/srv/afar", "mode": "0600"}}
READ = {"ansible.builtin.command": "cat /srv/afar", "register": "it"}
COMPARE = {"ansible.builtin.assert": {"that": "it.stdout == 'from afar'"}}
PING: dict[str, Any] = {"qemu.guest.qga_ping": {}}
RESET: dict[str, Any] = {"ansible.builtin.meta": "reset_connection"}


@pytest.mark.parametrize("persist", [2, 0])
def test_tasks(persist: int, agent: LooseAgent, ansible: Ansible, sshd: Sshd, tmp_path: Path) -> None:
    variables = {"ansible_qga_persist": persist}
    ansible.playbook(play(tmp_path, COPY, READ, COMPARE, PING, RESET, PING), variables=variables)
    assert look(agent, "cat /srv/afar; rm /srv/afar") == "from afar"
    assert sshd.logins() == 1, "all tasks went through one ssh"
    ansible.playbook(play(tmp_path, PING))
    assert sshd.logins() == 1, "which the next play uses as well"


def test_machine_that_is_in_no_network(agent: LooseAgent, make_ansible: MakeAnsible, tmp_path: Path) -> None:
    """Its variables name a ProxyCommand."""
    guest = on(agent, "hv", ansible_qga_address="/lab/agent.sock")
    make_ansible({"guest": guest, "hv": ssh.variables(agent)}).playbook(play(tmp_path, COPY, READ, COMPARE))
    look(agent, "rm /srv/afar")


def test_destination_of_ssh(agent: LooseAgent, make_ansible: MakeAnsible, sshd: Sshd, tmp_path: Path) -> None:
    """It is no inventory host: the guest's variables have the arguments, and its user is not the guest's."""
    login = sshd.variables()
    names = ("ansible_ssh_private_key_file", "ansible_ssh_common_args", "ansible_host_key_checking")
    guest = on(agent, f"ssh://root@127.0.0.1:{sshd.port}", **{name: login[name] for name in names})
    make_ansible({"guest": guest}).playbook(play(tmp_path, PING), "-u", "nobody")
    assert sshd.logins() == 1


def test_host_key_that_is_not_known(ansible: Ansible, sshd: Sshd) -> None:
    run = ansible.adhoc(
        "qemu.guest.qga_ping", "", "--limit", "guest", "-e", "ansible_host_key_checking=true", rc=4, timeout=60
    )
    assert "cannot connect to hv by ssh: Host key verification failed." in run.message
    assert not sshd.logins()


def test_host_key_checking_by_environment(agent: LooseAgent, make_ansible: MakeAnsible, sshd: Sshd) -> None:
    login = sshd.variables()
    del login["ansible_host_key_checking"]
    ansible = make_ansible({"guest": on(agent, "hv"), "hv": login})
    ansible.adhoc("qemu.guest.qga_ping", "", "--limit", "guest", environment={"ANSIBLE_HOST_KEY_CHECKING": "False"})
    assert sshd.logins() == 1


def test_password(agent: LooseAgent, make_ansible: MakeAnsible, sshd: Sshd) -> None:
    """No password is let in there, but it is tried, which takes a program that not every machine has."""
    hypervisor = {**sshd.variables(), "ansible_password": "secret word"}
    run = make_ansible({"guest": on(agent, "hv"), "hv": hypervisor}).adhoc(
        "qemu.guest.qga_ping", "", "--limit", "guest", "-vvvvv", rc=None, timeout=120
    )
    assert "secret word" not in run.output


def test_ssh_that_is_killed_between_plays(ansible: Ansible, sshd: Sshd, tmp_path: Path) -> None:
    ansible.playbook(play(tmp_path, PING))
    (session,) = sshd.sessions()
    os.kill(session, signal.SIGKILL)
    ansible.playbook(play(tmp_path, PING))
    assert sshd.logins() == 2


def test_no_such_socket(ansible: Ansible) -> None:
    run = ansible.adhoc("ansible.builtin.ping", "", "--limit", "guest", "-e", "ansible_qga_address=/nope.sock", rc=4)
    said = "guest agent at unix:/nope.sock on hv: nothing was sent: the socket there cannot be reached"
    assert said in run.message and "AllowStreamLocalForwarding" in run.message


def test_no_such_machine(ansible: Ansible) -> None:
    run = ansible.adhoc(
        "ansible.builtin.ping", "", "--limit", "guest", "-e", "ansible_qga_hypervisor=nope.invalid", rc=4
    )
    assert "cannot connect to nope.invalid by ssh: ssh: Could not resolve hostname nope.invalid" in run.message


@pytest.mark.parametrize("address", ["tcp:localhost:7000", "unix:@web"])
def test_what_is_no_path(ansible: Ansible, address: str) -> None:
    run = ansible.adhoc("ansible.builtin.ping", "", "--limit", "guest", "-e", f"ansible_qga_address={address}", rc=None)
    assert run.rc and f"{address} cannot be reached through ssh to hv" in run.message


def test_hypervisor_that_is_this_machine(agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    hosts = {"guest": on(agent, "here"), "here": {"ansible_connection": "local"}, "other": on(agent, "localhost")}
    make_ansible(hosts).adhoc("qemu.guest.qga_ping", "", "--limit", "guest,other")


def test_two_machines_of_one_name_are_told_apart(agent: LooseAgent, make_ansible: MakeAnsible, tmp_path: Path) -> None:
    """A channel that is kept for one is not taken for the other's."""
    with Sshd() as one, Sshd() as other:
        for sshd in (one, other):
            make_ansible({"guest": on(agent, "hv"), "hv": sshd.variables()}).playbook(
                play(tmp_path, PING), variables={"ansible_qga_persist": 0.5}
            )
            assert sshd.logins() == 1


def test_task_that_is_delegated_to_the_hypervisor(ansible: Ansible, agent: LooseAgent, tmp_path: Path) -> None:
    """It runs there, as a module, with the guest's own address."""
    delegated = {"qemu.guest.qga_info": {}, "delegate_to": "hv", "register": "it"}
    by_name = {"qemu.guest.qga_ping": {}, "delegate_to": "{{ ansible_qga_hypervisor }}"}
    own = {"qemu.guest.qga_ping": {"address": str(agent.agent_socket)}}
    check = {"ansible.builtin.assert": {"that": "it.address is not defined and it.agent.version is defined"}}
    ansible.playbook(play(tmp_path, delegated, check, by_name, own), variables={"ansible_qga_persist": 0})
