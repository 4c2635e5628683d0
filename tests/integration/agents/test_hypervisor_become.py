# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents' sockets are root's on another machine, and the login there is an ordinary user's: become."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import user_path
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.find import find_hypervisor
from ansible_collections.qemu.guest.tests.integration.agents.test_hypervisor import (
    COMPARE,
    COPY,
    PING,
    READ,
    RESET,
    on,
    play,
)
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, Run, look
from lab.agent import LooseAgent
from lab.sshd import Sshd

FREELY = "NOPASSWD: ALL"
RELAY = "qga-relay"
MANY = 12
"""Guests of one hypervisor: more than the sessions that an sshd allows one connection to have."""

Make = Callable[..., tuple[Ansible, Sshd]]


@pytest.fixture
def agent(agents: dict[str, LooseAgent]) -> LooseAgent:
    return agents["bookworm"]


@pytest.fixture
def make(agent: LooseAgent, make_ansible: MakeAnsible) -> Iterator[Make]:
    """Make a hypervisor, as an inventory host with variables for become, and the guest."""
    with ExitStack() as stack:

        def made(sudo: str = FREELY, *, user: str = "ops", become: bool = True, **variables: Any) -> Any:
            sshd = stack.enter_context(Sshd(sudo=sudo))
            given = {f"ansible_{name}": value for name, value in variables.items()}
            hypervisor = {**sshd.variables(user), "ansible_become": become, **given}
            return make_ansible({"guest": on(agent, "hv"), "hv": hypervisor}), sshd

        yield made


def ping(ansible: Ansible, *arguments: str, rc: int | None = 4, **options: Any) -> Run:
    return ansible.adhoc("qemu.guest.qga_ping", "", "--limit", "guest", *arguments, rc=rc, timeout=120, **options)


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Collect the command lines of all processes meanwhile."""
    seen: set[bytes] = set()
    over = threading.Event()

    def collect() -> None:
        while not over.wait(0.005):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with suppress(OSError):
                    seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def notes() -> list[dict[str, Any]]:
    return [json.loads(note.read_text(encoding="ascii")) for note in Path(user_path("")).glob("*.relay")]


def test_login_that_may_not_use_the_socket(make: Make) -> None:
    ansible, sshd = make(become=False)
    assert "the socket there cannot be reached" in ping(ansible).message
    assert not sshd.left_behind(RELAY)


@pytest.mark.parametrize("persist", [2, 0])
def test_sudo(persist: int, agent: LooseAgent, make: Make, tmp_path: Path) -> None:
    ansible, sshd = make()
    variables = {"ansible_qga_persist": persist}
    ansible.playbook(play(tmp_path, COPY, READ, COMPARE, PING, RESET, PING), variables=variables)
    assert look(agent, "cat /srv/afar; rm /srv/afar") == "from afar"
    relays = sshd.left_behind(RELAY)
    ansible.playbook(play(tmp_path, PING))
    assert len(relays) == 1 and sshd.left_behind(RELAY) == relays, "one relay, which the next play uses as well"
    assert sshd.logins() == 1


def test_password_is_in_no_output_and_no_command_line(make: Make) -> None:
    ansible, sshd = make("ALL", become_password=Sshd.PASSWORD)
    with command_lines() as lines:
        run = ping(ansible, "-vvvvv", rc=0, environment={"ANSIBLE_DEBUG": "1"})
    assert len(sshd.left_behind(RELAY)) == 1
    secrets = [Sshd.PASSWORD, *(secret for note in notes() for secret in (note["ask"], note["answer"]) if secret)]
    assert len(secrets) >= 3 and any(b"qga-relay" in line for line in lines)
    for secret in secrets:
        assert secret not in run.output and not any(secret.encode("ascii") in line for line in lines)


def test_password_by_the_variable_of_sudo(make: Make) -> None:
    ansible, _sshd = make("ALL", sudo_pass=Sshd.PASSWORD, become_method="ansible.builtin.sudo")
    ping(ansible, rc=0)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"become_password": "wrong one", "ssh_retries": 2},
            "(sudo, root): Incorrect sudo password. Set ansible_become_password of hv.",
        ),
        ({}, "(sudo, root): Missing sudo password. Set ansible_become_password of hv."),
        ({"become_method": "su", "become_password": "wrong one"}, "(su, root): Incorrect su password. Set"),
        ({"become_method": "su"}, "(su, root): it has neither begun nor asked for a password in a way"),
        (
            {"become_method": "nope.nope.nope"},
            "there is no become plugin nope.nope.nope. Set ansible_become_method of hv",
        ),
        (
            {"become_user": "nobody.at.all", "become_password": Sshd.PASSWORD, "ssh_verbosity": 3},
            "(sudo, nobody.at.all): no relay could be started: sudo: unknown user nobody.at.all",
        ),
    ],
)
def test_become_that_fails(variables: dict[str, Any], words: str, make: Make) -> None:
    ansible, sshd = make("ALL", **variables)
    run = ping(ansible, "-vvvvv")
    assert "become on hv" in run.message and words in run.message
    assert "ssh_retry: attempt" not in run.output, "a wrong password is tried once"
    assert "wrong one" not in run.output and not sshd.left_behind(RELAY)


def test_become_that_is_slow(make: Make) -> None:
    ansible, _sshd = make("ALL", become_method="su")
    message = ping(ansible, "-e", "ansible_qga_timeout=4").message
    assert "become on hv (su, root): ssh to hv did not come to an end within 4 s" in message


def test_su(make: Make) -> None:
    ansible, sshd = make(become_method="su", become_password=Sshd.PASSWORD)
    ping(ansible, rc=0)
    assert len(sshd.left_behind(RELAY)) == 1


def test_user_who_is_not_root(agent: LooseAgent, make: Make) -> None:
    ansible, sshd = make(become_user="nobody")
    assert "become on hv (sudo, nobody): permission denied. The socket belongs to the user" in ping(ansible).message
    (relay,) = sshd.left_behind(RELAY)
    assert os.stat(f"/proc/{relay}").st_uid == 65534
    agent.directory.chmod(0o711)
    os.chown(agent.agent_socket, 65534, -1)
    agent.agent_socket.chmod(0o600)
    try:
        ping(ansible, rc=0)
    finally:
        os.chown(agent.agent_socket, 0, -1)
        agent.directory.chmod(0o700)


def test_login_that_is_that_user_already_needs_no_become(make: Make) -> None:
    ansible, sshd = make(user="root", become_method="su", become_exe="/nope")
    for _task in range(2):
        ping(ansible, rc=0)
    assert not sshd.left_behind(RELAY)
    assert sshd.commands() == 2, "who that is, is asked once"


def test_interpreter(make: Make) -> None:
    ansible, sshd = make(python_interpreter="/nope/python3")
    words = "needs Python 3 there, 3.6 or later. There is none; ansible_python_interpreter of hv (now /nope/python3)"
    assert words in ping(ansible).message
    ping(ansible, "-e", json.dumps({"ansible_python_interpreter": "/usr/bin/env python3"}), rc=0)
    (relay,) = sshd.left_behind(RELAY)
    assert Path(f"/proc/{relay}/cmdline").read_bytes().startswith(b"python3\0-I\0")


def test_no_such_socket(make: Make) -> None:
    ansible, sshd = make()
    message = ping(ansible, "-e", "ansible_qga_address=/nope.sock").message
    assert (
        "guest agent at unix:/nope.sock on hv: nothing was sent: become on hv (sudo, root): there is no such" in message
    )
    assert len(sshd.left_behind(RELAY)) == 1


def test_many_guests_of_one_hypervisor(make: Make, make_ansible: MakeAnsible, tmp_path: Path) -> None:
    _ansible, sshd = make()
    with ExitStack() as stack:
        agents = {f"guest{n}": stack.enter_context(LooseAgent("bookworm")) for n in range(MANY)}
        hosts = {name: on(agent, "hv") for name, agent in agents.items()}
        ansible = make_ansible({**hosts, "hv": {**sshd.variables("ops"), "ansible_become": True}})
        run = ansible.playbook(
            play(tmp_path, READ | {"ansible.builtin.command": "hostname"}, PING), "--forks", str(MANY)
        )
        assert all(counts["ok"] == 2 for counts in run.recap.values()) and len(run.recap) == MANY
    assert (sshd.logins(), sshd.refused(), len(sshd.left_behind(RELAY))) == (1, 0, 1)
    assert sshd.commands() == 3, "to log in, to ask who that is, and to start the relay"


def test_relay_that_is_killed_between_plays(make: Make, tmp_path: Path) -> None:
    ansible, sshd = make()
    for _play in range(2):
        run = ansible.playbook(play(tmp_path, PING), variables={"ansible_qga_persist": 0})
        assert "WARNING" not in run.output
        (relay,) = sshd.left_behind(RELAY)
        os.kill(relay, signal.SIGKILL)
    assert sshd.logins() == 1


def test_ssh_that_ends_between_plays(make: Make, tmp_path: Path) -> None:
    ansible, sshd = make()
    ansible.playbook(play(tmp_path, PING))
    for session in sshd.sessions():
        os.kill(session, signal.SIGTERM)  # killed, it would leave the ordinary user's half of it
    ansible.playbook(play(tmp_path, PING))
    assert sshd.logins() == 2


def test_commands_of_the_inventory(make: Make) -> None:
    _ansible, sshd = make("ALL")
    variables = {**sshd.variables("ops"), "ansible_become": True, "ansible_become_password": Sshd.PASSWORD}
    hypervisor = find_hypervisor("hv", variables)
    assert hypervisor
    assert hypervisor.run("id -u; cat; exit 3", b"input", 20)[:2] == (3, b"0\ninput")
    assert hypervisor.run("id -u; cat", b"", 20)[:2] == (0, b"0\n")
    assert not sshd.left_behind(RELAY)


def test_forward_for_those_who_can_only_name_a_socket(make: Make, agent: LooseAgent) -> None:
    """Such as libvirt's library."""
    _ansible, sshd = make()
    hypervisor = find_hypervisor("hv", {**sshd.variables("ops"), "ansible_become": True})
    assert hypervisor
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        with hypervisor.forward(str(agent.agent_socket), Deadline(20)) as local:
            sock.connect(local)
        assert not os.path.exists(local)
        sock.settimeout(20)
        sock.sendall(b'{"execute": "guest-ping"}\n')
        assert sock.recv(100) == b'{"return": {}}\n'
