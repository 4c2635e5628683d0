# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a program is when it starts, by each way and over ssh: the state of its process, one for all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, guest_variables, look, until
from lab import ssh
from lab.agent import LooseAgent

STATES: dict[str, dict[str, Any]] = {
    "runner": {"ansible_qga_exec_method": "runner", "ansible_qga_warm_python": False},
    "guest-exec": {"ansible_qga_exec_method": "guest-exec", "ansible_qga_warm_python": False},
    "warm": {"ansible_qga_exec_method": "runner", "ansible_qga_warm_python": True},
}
"""Host variables of each way, by its name."""

NO_TTY = {"ansible_ssh_use_tty": False}
"""For ssh: what is piped has no terminal, and `raw` has one otherwise."""

STATE = r"""
section() { echo "== $1"; }
section status
grep -E '^(Uid|Gid|Umask|NoNewPrivs|Seccomp|Cap[A-Z][a-z]*|Sig(Blk|Ign)|Cpus_allowed|Mems_allowed):' /proc/self/status
section limits
cat /proc/self/limits
section oom
cat /proc/self/oom_score_adj
section cgroup
cat /proc/self/cgroup
section nice
cut -d ' ' -f 18,19,40,41 /proc/self/stat
section terminal
cut -d ' ' -f 7 /proc/self/stat
section descriptors
for f in /proc/self/fd/*; do echo "${f##*/} $(readlink "$f" | sed 's/:.*//')"; done | grep -v /proc/
section directory
pwd
section environment
env
section signals
sh -c 'trap "exit 5" INT; kill -INT $$; exit 0'; echo "$?"
sh -c 'yes | head -n 1; kill -PIPE $$'; echo "$?"
"""

SSHS_ALONE = re.compile(r"^(SSH_|LC_|MAIL=|SHLVL=|_=|XDG_|DBUS_|MOTD_)")
"""Variables of the ssh connection, which brings the client's locale too, of login programs, and what shells count."""


def state(ansible: Ansible, module: str = "ansible.builtin.raw") -> dict[str, list[str]]:
    """Return the state of a program that a module runs on one host, by section."""
    run = ansible.adhoc(module, STATE)
    sections: dict[str, list[str]] = {}
    for line in run.output.splitlines():
        if line.startswith("== "):
            lines = sections.setdefault(line[3:], [])
        elif sections:
            lines.append(line.rstrip())
    sections["environment"] = sorted(line for line in sections["environment"] if not SSHS_ALONE.match(line))
    return sections


@pytest.fixture
def over_ssh(agent: LooseAgent, make_ansible: MakeAnsible) -> dict[str, list[str]]:
    return state(make_ansible({"guest": {**ssh.variables(agent), **NO_TTY}}))


@pytest.mark.parametrize("way", STATES)
def test_state_is_that_of_a_login(
    way: str, agent: LooseAgent, make_ansible: MakeAnsible, over_ssh: Mapping[str, list[str]]
) -> None:
    ansible = make_ansible({"guest": {**guest_variables(agent), **STATES[way]}})
    if way == "warm":
        warm_up(ansible)
    assert_same(state(ansible), over_ssh)


def warm_up(ansible: Ansible) -> None:
    """Have interpreters for modules and for shell commands: the latter comes when the first module has ended."""
    for _time in range(3):
        ansible.adhoc("ansible.builtin.ping")


def assert_same(seen: Mapping[str, list[str]], expected: Mapping[str, list[str]]) -> None:
    assert seen.keys() == expected.keys()
    for section, lines in expected.items():
        assert seen[section] == lines, section


@pytest.mark.parametrize("way", STATES)
def test_state_of_what_a_module_starts_is_that_over_ssh(way: str, agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    expected = state(make_ansible({"guest": {**ssh.variables(agent), **NO_TTY}}), "ansible.builtin.shell")
    ansible = make_ansible({"guest": {**guest_variables(agent), **STATES[way]}})
    if way == "warm":
        warm_up(ansible)
    assert_same(state(ansible, "ansible.builtin.shell"), expected)


END_ALL = "sleep 300 & echo begun >/srv/begun; kill 0"
"""What many scripts end with, in a trap: all that they have started is to end, too."""


@pytest.mark.parametrize("module", ["ansible.builtin.raw", "ansible.builtin.shell", "qemu.guest.qga_exec"])
@pytest.mark.parametrize("way", STATES)
def test_program_that_ends_its_process_group_does_not_end_the_agent(
    way: str, module: str, agent: LooseAgent, make_ansible: MakeAnsible
) -> None:
    pid = agent.pid
    ansible = make_ansible({"guest": {**guest_variables(agent), **STATES[way]}})
    run = ansible.adhoc(module, {"shell": END_ALL} if "qga" in module else END_ALL, rc=2)
    assert "UNREACHABLE" not in run.output
    assert agent.pid == pid
    assert look(agent, "cat /srv/begun; rm /srv/begun") == "begun\n"
    until(lambda: "sleep" not in look(agent, "ps -C sleep -o args= | grep 300 || :"), 10, "the end of what it started")


TRAPS = "trap 'exit 3' TERM; echo be''fore; kill 0; sleep 5"


@pytest.mark.parametrize("module", ["ansible.builtin.raw", "qemu.guest.qga_exec"])
@pytest.mark.parametrize("way", STATES)
def test_what_takes_output_and_brings_input_is_not_in_the_group_of_the_program(
    way: str, module: str, agent: LooseAgent, make_ansible: MakeAnsible
) -> None:
    ansible = make_ansible({"guest": {**guest_variables(agent), **STATES[way]}})
    more_than_a_pipe_holds = "a line\n" * 12_000
    arguments = {"shell": TRAPS, "stdin": more_than_a_pipe_holds} if "qga" in module else TRAPS
    output = ansible.adhoc(module, arguments, rc=2).output
    assert "before" in output and ("rc=3" in output or "exit status 3" in output)


LOOK = r"""read -r password
su -s /bin/sh daemon -c 'python3 -c "
import os
try:
    print(os.pread(0, 99, 0))
except OSError as exc:
    print(exc.strerror)
print(os.readlink(\"/proc/self/fd/0\").partition(\":\")[0])
"'"""


@pytest.mark.parametrize("rest", [10, 300_000])
@pytest.mark.parametrize("way", STATES)
def test_input_cannot_be_read_again_by_another_user(
    way: str, rest: int, agent: LooseAgent, make_ansible: MakeAnsible
) -> None:
    """Nor is it a file that they could write to."""
    connection = connection_loader.get("qemu.guest.qga", PlayContext(), os.devnull)
    method, warm = (STATES[way][f"ansible_qga_{name}"] for name in ("exec_method", "warm_python"))
    connection.set_options(
        direct={"address": str(agent.agent_socket), "exec_method": method, "warm_python": warm, "persist": 0}
    )
    if warm:
        warm_up(make_ansible({"guest": {**guest_variables(agent), **STATES[way]}}))
    try:
        ended = connection.exec_command(LOOK, in_data=b"password\n" + b"x" * rest)
    finally:
        connection.close()
    assert ended == (0, b"Illegal seek\npipe\n", b"")
