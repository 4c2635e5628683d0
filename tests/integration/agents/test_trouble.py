# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users meet, on all releases at once: nobody there, an agent that is silent, ends or may not do what is asked."""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import FORMS, parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import dismiss
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import (
    Ansible,
    Run,
    guest_variables,
    hypervisor_variables,
    in_background,
    look,
    until,
)
from lab import host, image
from lab.agent import LooseAgent

TIMEOUT = 4
EXEC = ("guest-exec", "guest-exec-status")
RELEASES = list(image.RELEASES)


@pytest.fixture
def ansible(agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> Ansible:
    """All guests as hosts, with little patience."""
    return make_ansible({name: {**guest_variables(a), "ansible_qga_timeout": TIMEOUT} for name, a in agents.items()})


@pytest.fixture
def fresh() -> Iterator[Callable[..., dict[str, LooseAgent]]]:
    """Return a function that starts agents of the test's own, by default one of each release."""
    with ExitStack() as stack:
        yield lambda releases=RELEASES, block=(): {
            release: stack.enter_context(LooseAgent(release, block=block)) for release in releases
        }


def said(run: Run, *texts: str, by: int = len(RELEASES)) -> None:
    """Check that each text is in the output of each host."""
    for text in texts:
        assert run.message.count(text) >= by, f"not {by} times {text!r} in:\n{run.output}"


# Nobody there


def test_no_socket(ansible: Ansible, tmp_path: Path) -> None:
    run = ansible.adhoc("ansible.builtin.ping", variables={"ansible_qga_address": str(tmp_path / "nothing é")}, rc=4)
    said(run, "UNREACHABLE", "there is no such socket", f"{tmp_path}/nothing é")
    assert run.seconds < 60


def test_socket_that_nobody_serves(ansible: Ansible, tmp_path: Path) -> None:
    path = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
    run = ansible.adhoc("ansible.builtin.ping", variables={"ansible_qga_address": str(path)}, rc=4)
    said(run, "UNREACHABLE", "nothing listens on this socket")
    for module, arguments in (("qga_ping", ""), ("qga_info", ""), ("qga_exec", "cmd=true")):
        run = ansible.adhoc(module, arguments, variables={"ansible_qga_address": str(path)}, rc=4)
        said(run, "UNREACHABLE", "nothing listens on this socket")
        assert "Maximum depth" not in run.output, "an error that is its own cause is printed again and again"


REPORT = """
- hosts: all
  gather_facts: false
  tasks:
    - qemu.guest.qga_info: {gather_subset: [min]}
      register: told
      ignore_unreachable: true
    - ansible.builtin.debug:
        msg: "the report of {{ inventory_hostname }}: {{ told.agent.version if told is reachable else 'off' }}"
    - qemu.guest.qga_exec: {shell: "echo a; echo b >&2; exit 3"}
      register: failing
      failed_when: failing.rc != 3
      when: told is reachable
    - ansible.builtin.assert:
        that: failing is changed and failing.stdout_lines == ['a'] and failing.stderr_lines == ['b']
      when: told is reachable
"""


def test_report_of_guests_of_which_some_are_off(
    agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible, tmp_path: Path
) -> None:
    (tmp_path / "report.yml").write_text(REPORT)
    off = {**guest_variables(agents["sid"]), "ansible_qga_address": str(tmp_path / "off.sock")}
    hosts = {"off1": off, "off2": off, "on": guest_variables(agents["sid"])}
    run = make_ansible(hosts).playbook(tmp_path / "report.yml")
    said(run, "the report of off1: off", "the report of off2: off", "the report of on: 11.", by=1)


def test_address_on_a_guest_is_one_of_the_guest(ansible: Ansible) -> None:
    run = ansible.adhoc("qga_ping", {"address": "/run/vm1.qga"}, rc=2)
    said(run, "there is no such socket", "looked for inside the guest", "delegate_to the hypervisor")


def test_program_as_another_user_is_not_run_as_root(ansible: Ansible) -> None:
    run = ansible.adhoc("qga_exec", {"shell": "touch /srv/ghost"}, "--become", "--become-user", "nobody", rc=2)
    said(run, "qga_exec cannot become nobody over qemu.guest.qga", "Nothing was run")
    said(ansible.adhoc("qga_exec", {"shell": "id -un; ls /srv"}, "--become"), "root")
    assert "ghost" not in ansible.adhoc("qga_exec", {"shell": "ls /srv"}).output


def test_plain_file(ansible: Ansible, tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.touch()
    said(ansible.adhoc("ansible.builtin.ping", variables={"ansible_qga_address": str(path)}, rc=4), "is not a socket")


def test_addresses_that_are_none(make_ansible: MakeAnsible) -> None:
    bad = ["relative/path", "tcp:nowhere", "vsock:1", "http://vm1", ""]
    host = {"ansible_connection": "qemu.guest.qga", "ansible_python_interpreter": "/usr/bin/python3"}
    ansible = make_ansible({f"host{n}": {**host, "ansible_qga_address": text} for n, text in enumerate(bad)})
    for module in ("ansible.builtin.ping", "qga_ping"):
        run = ansible.adhoc(module, rc=None)
        assert run.rc in (2, 4)
        said(run, FORMS, by=len(bad))
        said(run, *(f"{text!r} is not the address of a guest agent" for text in bad if text), by=1)
        said(run, "where is its guest agent? Set ansible_qga_address", by=1)
        assert "Traceback" not in run.output


def test_a_server_that_is_no_agent(ansible: Ansible, tmp_path: Path) -> None:
    path = tmp_path / "mute"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        run = ansible.adhoc(
            "ansible.builtin.ping", "", "--limit", "sid", variables={"ansible_qga_address": str(path)}, rc=4
        )
    said(run, f"no answer to a sync within {TIMEOUT} s", by=1)
    assert run.seconds < TIMEOUT + 30


# An agent that falls silent or ends


@contextmanager
def stopped(agent: LooseAgent) -> Iterator[None]:
    """The agent is there, and does nothing."""
    pid = agent.pid

    def send(number: signal.Signals) -> None:
        subprocess.run(host.as_root(["kill", f"-{number.name[3:]}", str(pid)]), check=True)

    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


def test_agent_that_hangs(fresh: Callable[..., dict[str, LooseAgent]], make_ansible: MakeAnsible) -> None:
    agents = fresh()
    ansible = make_ansible({n: {**guest_variables(a), "ansible_qga_timeout": TIMEOUT} for n, a in agents.items()})
    with ExitStack() as stack:
        for agent in agents.values():
            stack.enter_context(stopped(agent))
        run = ansible.adhoc("qga_exec", {"argv": ["touch", "/srv/ghost"]}, rc=4)
        said(run, "UNREACHABLE", f"nothing was sent: no answer to a sync within {TIMEOUT} s")
        assert run.seconds < TIMEOUT + 30
        said(ansible.adhoc("ansible.builtin.raw", "touch /srv/ghost", rc=4), "UNREACHABLE")
    # It goes on now, and what it was asked meanwhile was not among what waited for it.
    ansible.adhoc("qga_exec", {"argv": ["touch", "/srv/real"]}, variables={"ansible_qga_timeout": 20})
    for agent in agents.values():
        assert look(agent, "ls /srv") == "real\n"


def test_agent_that_is_restarted_during_a_command(
    fresh: Callable[..., dict[str, LooseAgent]], make_ansible: MakeAnsible
) -> None:
    agents = fresh(["bullseye", "sid"])
    ansible = make_ansible({n: {**guest_variables(a), "ansible_qga_timeout": 20} for n, a in agents.items()})
    command = "echo $$ >/srv/begun; sleep 5; echo survived"
    # By the runner, it goes on, and its result arrives.
    result = in_background(lambda: ansible.adhoc("ansible.builtin.raw", command))
    restart_when_begun(agents)
    said(result(), "survived", by=2)
    # By guest-exec, nobody can tell what became of it.
    variables = {"ansible_qga_exec_method": "guest-exec"}
    result = in_background(lambda: ansible.adhoc("ansible.builtin.raw", command, variables=variables, rc=4))
    restart_when_begun(agents)
    run = result()
    said(run, "UNREACHABLE", by=2)
    assert run.seconds < 120
    said(ansible.adhoc("qga_ping"), "pong", by=2)


def has_file(agent: LooseAgent, name: str) -> bool:
    return name in look(agent, "ls /srv")


def restart_when_begun(agents: Mapping[str, LooseAgent]) -> None:
    for agent in agents.values():
        until(functools.partial(has_file, agent, "begun"), 60, "the command's beginning")
        look(agent, "rm /srv/begun")
        agent.restart()


# An agent that may not


def test_programs_are_blocked(fresh: Callable[..., dict[str, LooseAgent]], make_ansible: MakeAnsible) -> None:
    agents = fresh(block=EXEC)
    ansible = make_ansible({n: guest_variables(a) for n, a in agents.items()})
    for module, arguments in (("ansible.builtin.ping", ""), ("ansible.builtin.raw", "true"), ("qga_exec", "argv=true")):
        run = ansible.adhoc(module, arguments, rc=None)
        assert run.rc in (2, 4)
        said(run, "guest-exec", "disabled by the guest's administrator", "/etc/qemu/qemu-ga.conf")
        said(run, "block-rpcs", by=3)
        said(run, "blacklist", by=1)  # what agent 5.2 calls it
    # Files, as far as they need no program.
    for agent in agents.values():
        look(agent, "umask 077; echo old >/srv/kept; chown daemon /srv/kept")
    said(ansible.adhoc("qga_file", {"path": "/srv/kept", "content": "new\n"}), "CHANGED")
    said(ansible.adhoc("qga_file", {"path": "/srv/kept", "content": "new\n"}), "SUCCESS")
    said(ansible.adhoc("qga_file", {"path": "/srv/fresh", "content": "new\n", "mode": "0666"}), "CHANGED")
    for wanted in ({"mode": "0644"}, {"owner": "root"}, {"state": "absent"}, {"content": "x", "backup": True}):
        run = ansible.adhoc("qga_file", {"path": "/srv/kept", **wanted}, rc=2)
        said(run, "guest-exec", "disabled by the guest's administrator")
    said(ansible.adhoc("qga_file", {"path": "/srv/none", "content": "x"}, rc=2), "every user of the guest can write to")
    ansible.adhoc("qga_fetch", {"src": "/srv/kept", "dest": f"{ansible.directory}/{{{{ inventory_hostname }}}}"})
    for name, agent in agents.items():
        assert look(agent, "cd /srv; ls; cat kept; stat -c '%a %U' kept fresh") == (
            "fresh\nkept\nnew\n600 daemon\n666 root\n"
        )
        assert (ansible.directory / name).read_text() == "new\n"


def test_files_are_blocked(fresh: Callable[..., dict[str, LooseAgent]], make_ansible: MakeAnsible) -> None:
    agents = fresh(["bullseye", "sid"], block=["guest-file-open"])
    ansible = make_ansible({n: guest_variables(a) for n, a in agents.items()})
    # Modules are piped to the interpreter, so they need no file, and a small file is written by a program.
    said(ansible.adhoc("ansible.builtin.ping"), "pong", by=2)
    said(ansible.adhoc("ansible.builtin.copy", {"content": "x", "dest": "/srv/x"}), "CHANGED", by=2)
    large = ansible.directory / "large"
    large.write_bytes(os.urandom(1_000_000))  # more than one program takes as its input
    run = ansible.adhoc("ansible.builtin.copy", {"src": str(large), "dest": "/srv/x"}, rc=None)
    assert run.rc in (2, 4)
    said(run, "guest-file-open", "disabled by the guest's administrator", by=2)


def test_an_agent_that_tells_nothing_about_itself(
    fresh: Callable[..., dict[str, LooseAgent]], make_ansible: MakeAnsible
) -> None:
    agents = fresh(["bullseye", "sid"], block=["guest-sync-delimited", "guest-get-osinfo"])
    ansible = make_ansible({n: guest_variables(a) for n, a in agents.items()})
    said(ansible.adhoc("ansible.builtin.raw", "echo $((6*7))"), "42", by=2)
    said(ansible.adhoc("qga_info", "gather_subset=min"), '"osinfo": "disabled by', by=2)


# Several at once


@contextmanager
def long_run(ansible: Ansible, agents: Mapping[str, LooseAgent], **variables: Any) -> Iterator[subprocess.Popen[str]]:
    """Have all guests run a command that does not end."""
    arguments = ("all", "-m", "ansible.builtin.raw", "-a", "touch /srv/first; sleep 601")
    try:
        with ansible.start("ansible", *arguments, variables=variables) as process:
            for agent in agents.values():
                until(functools.partial(has_file, agent, "first"), 60, "the first run's command")
            yield process
    finally:
        ansible.adhoc("ansible.builtin.raw", "rm /srv/first; pkill -f '[s]leep 601'")


# An agent that has written as much as a pipe holds, to a program that ends, polls that pipe for ever.
UNREAD: dict[str, dict[str, Any]] = {
    "a module without its interpreter": {"ansible_python_interpreter": "/usr/bin/no-python"},
    "a module whose user may not": {"ansible_become": True, "ansible_become_user": "nobody-there"},
}


@pytest.mark.parametrize("method", ["auto", "guest-exec"])
def test_agent_is_at_rest_after_input_that_nobody_read(
    method: str, fresh: Callable[..., dict[str, LooseAgent]], make_ansible: MakeAnsible
) -> None:
    agents = fresh()
    for variables in UNREAD.values():
        hosts = {name: {**guest_variables(agent), **variables} for name, agent in agents.items()}
        make_ansible(hosts).adhoc("ansible.builtin.ping", variables={"ansible_qga_exec_method": method}, rc=None)
    unread = {"argv": ["/bin/false"], "stdin": "{{ 'x' * 200000 }}"}
    for agent in agents.values():
        make_ansible({"here": hypervisor_variables(agent)}).adhoc(
            "qemu.guest.qga_exec", {"address": str(agent.agent_socket), **unread}, rc=2
        )
    before = {name: seconds_of_processor(agent) for name, agent in agents.items()}
    time.sleep(2)
    used = {name: seconds_of_processor(agent) - before[name] for name, agent in agents.items()}
    assert max(used.values()) < 0.2, used


def seconds_of_processor(agent: LooseAgent) -> float:
    user, system = Path(f"/proc/{agent.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_runs_take_turns(ansible: Ansible, agents: Mapping[str, LooseAgent]) -> None:
    with long_run(ansible, agents):
        said(ansible.adhoc("qga_ping"), "pong")


def test_runs_wait_for_each_other(ansible: Ansible, agents: Mapping[str, LooseAgent]) -> None:
    """Where one has its channel to itself."""
    for agent in agents.values():  # a test before this one may have had it kept
        dismiss(parse_address(str(agent.agent_socket)))
    with long_run(ansible, agents, ansible_qga_persist=0) as first:
        run = ansible.adhoc("qga_ping", rc=4)
        said(run, "UNREACHABLE", "another task uses the channel (pid ", f"did not leave it within {TIMEOUT} s")
        # One with more patience gets its turn when the first has ended.
        second = in_background(lambda: ansible.adhoc("qga_ping", variables={"ansible_qga_timeout": 60}))
        time.sleep(1)  # so that it waits already: nobody can see that from here
        first.terminate()
        first.communicate(timeout=30)
        said(second(), "pong")


# Secrets


@pytest.mark.parametrize("place", ["guest", "hypervisor"])
def test_secrets_are_not_printed(
    place: str, fresh: Callable[..., dict[str, LooseAgent]], make_ansible: MakeAnsible
) -> None:
    agent = fresh(["sid"])["sid"]
    ansible = make_ansible({"sid": {"guest": guest_variables, "hypervisor": hypervisor_variables}[place](agent)})
    # In a variable, so that it is not in the playbook's own text, which ansible may quote.
    secret = secrets.token_hex(16)
    variables = ansible.directory / "variables.json"
    variables.write_text(json.dumps({"secret": secret}), encoding="utf-8")
    address = {"address": str(agent.agent_socket)} if place == "hypervisor" else {}
    tasks = [
        {f"qemu.guest.{module}": {**address, **arguments}, "name": "Use it", **more}
        for module, arguments, more in (
            ("qga_file", {"path": "/srv/secret", "content": "{{ secret }}", "mode": "0600"}, {}),
            ("qga_exec", {"shell": 'test "$S" = "$(cat /srv/secret)"', "env": {"S": "{{ secret }}"}}, {}),
            ("qga_exec", {"argv": ["grep", "-qf", "/srv/secret"], "stdin": "{{ secret }}"}, {}),
            (
                "qga_command",
                {"command": "guest-file-open", "arguments": {"path": "/srv/{{ secret }}", "mode": "w"}},
                {},
            ),
            ("qga_file", {"path": "/srv/other", "content": "{{ secret }}"}, {"no_log": True, "diff": True}),
        )
    ]
    playbook = ansible.directory / "secrets.json"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    run = ansible.playbook(playbook, "-vvvvv", "-e", f"@{variables}")
    assert run.recap["sid"]["ok"] == len(tasks)
    assert "/srv/secret" in run.output, "it is verbose"
    assert [line for line in run.output.splitlines() if secret in line] == []
    assert look(agent, "cat /srv/secret /srv/other") == secret * 2
