# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Become with the real sudo and su: who is given a password, what is tried with it, and what a task shows of it all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import dismiss
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import WAYS, Run, guest_variables, look, releases
from lab.agent import LooseAgent

# Root is not asked, so the programs that ask are started by another user. PAM writes down what is tried.
PREPARE = r"""
useradd -m qgaother
useradd -m qgauser
useradd -m -s /usr/local/bin/spy qgaspy
printf '%s\n' qgaother:secret qgauser:secret qgaspy:secret | chpasswd
echo 'qgaother ALL=(ALL) ALL' >/etc/sudoers.d/qga
printf 'echo loud\necho shy >&2\n' >~qgauser/.profile
cat >/usr/local/bin/tried <<'END'
#!/bin/sh
{ tr -d '\0'; echo; } >>/tmp/tried
END
cat >/usr/local/bin/spy <<'END'
#!/usr/bin/python3
import os, select, sys
seen = os.open("/home/qgaspy/seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for fd in {0, *map(int, os.listdir("/proc/self/fd"))} - {1, 2, seen}:
    for read in (lambda: os.pread(fd, 1 << 20, 0), lambda: open(f"/proc/self/fd/{fd}", "rb").read() if fd > 2 else b""):
        try:
            os.write(seen, read())
        except OSError:
            pass
if select.select([0], [], [], 0.5)[0]:
    os.write(seen, os.read(0, 1 << 20))
os.execv("/bin/sh", ["/bin/sh", *sys.argv[1:]])
END
chmod 0755 /usr/local/bin/tried /usr/local/bin/spy
sed -i 's,^@include common-auth,auth optional pam_exec.so expose_authtok quiet /usr/local/bin/tried\n&,' \
    /etc/pam.d/su /etc/pam.d/sudo
"""
BY_ANOTHER = "/sbin/runuser -u qgaother --"
COUNTED = """#!/bin/sh
case " $* " in *" -n "*) echo plain ;; *) echo asked ;; esac >>/tmp/calls
exec "$@"
"""


@pytest.fixture(scope="module", params=releases(pytest.param("bookworm", marks=pytest.mark.whole), "sid"))
def agent(request: pytest.FixtureRequest) -> Iterator[LooseAgent]:
    """An agent with users to become."""
    with LooseAgent(request.param) as agent:
        look(agent, PREPARE)
        yield agent


@pytest.fixture(params=WAYS)
def variables(request: pytest.FixtureRequest, agent: LooseAgent) -> dict[str, Any]:
    """The variables of a host, for each way to run programs."""
    look(agent, ": >/tmp/tried; chmod 666 /tmp/tried; rm -f ~qgaspy/seen")
    return {**guest_variables(agent), **WAYS[request.param]}


def play(
    make_ansible: MakeAnsible, variables: dict[str, Any], tasks: Sequence[dict[str, Any]], that: Sequence[str]
) -> Run:
    """Run tasks, which may fail, and assert ``that`` of their results, ``r[0]`` being the first one's."""
    ansible = make_ansible({"vm": variables})
    named = [{**task, "register": f"r{number}", "ignore_errors": True} for number, task in enumerate(tasks)]
    results = f"{{{{ [{', '.join(task['register'] for task in named)}] }}}}"
    check = {"ansible.builtin.assert": {"that": that, "fail_msg": "{{ r | to_json }}"}, "vars": {"r": results}}
    playbook = ansible.directory / "become.json"
    (ansible.directory / "say.sh").write_text("#!/bin/sh\necho out\necho err >&2\n", encoding="utf-8")
    content = [{"hosts": "all", "gather_facts": False, "tasks": [*named, check]}]
    playbook.write_text(json.dumps(content), encoding="utf-8")
    return ansible.playbook(playbook)


def become(program: str, user: str, password: str, *, by: str = "", flags: str = "") -> dict[str, Any]:
    """Return what makes a task become ``user`` by ``program``, which ``by`` starts."""
    settings: dict[str, Any] = {"become": True, "become_user": user, "become_method": f"ansible.builtin.{program}"}
    given = {"ansible_become_password": password, "ansible_become_exe": f"{by} {program}".strip()}
    return {**settings, **({"become_flags": flags} if flags else {}), "vars": given}


def test_password_is_for_who_asks(make_ansible: MakeAnsible, agent: LooseAgent, variables: dict[str, Any]) -> None:
    modules = [
        {"ansible.builtin.command": "id -un", **become(program, "qgauser", "secret", by=by)}
        for by in (BY_ANOTHER, "")
        for program in ("sudo", "su")
    ]
    play(make_ansible, variables, modules, ["r | map(attribute='stdout') | unique | list == ['qgauser']"])
    assert set(look(agent, "cat /tmp/tried").split()) == {"secret"}, "and never anything else, the module for example"


def test_nobody_else_sees_it(make_ansible: MakeAnsible, agent: LooseAgent, variables: dict[str, Any]) -> None:
    tasks = [
        {"ansible.builtin.raw": "id -un", **become("su", "qgaspy", "secret")},
        {"ansible.builtin.command": "id -un", **become("su", "qgaspy", "secret")},
        {"ansible.builtin.raw": "id -un", **become("sudo", "qgaspy", "secret", flags="-H -S -i")},
        {"ansible.builtin.raw": "id -un", **become("su", "qgaspy", "secret", by=BY_ANOTHER)},
        {"ansible.builtin.raw": "id -un", **become("sudo", "qgaspy", "secret", by=BY_ANOTHER, flags="-H -S -i")},
    ]
    right = "r | map(attribute='stdout') | map('trim') | unique | list == ['qgaspy']"
    play(make_ansible, variables, tasks, [right])
    assert "secret" not in look(agent, "cat ~qgaspy/seen")


def test_wrong_password_counts_once(make_ansible: MakeAnsible, agent: LooseAgent, variables: dict[str, Any]) -> None:
    tasks = [
        {"ansible.builtin.ping": None, **become(program, "qgauser", "wrong", by=BY_ANOTHER)}
        for program in ("sudo", "su")
    ]
    told = [f"r[{number}].msg is search('vm: Incorrect {name} password')" for number, name in enumerate(("sudo", "su"))]
    play(make_ansible, variables, tasks, told)
    assert look(agent, "cat /tmp/tried").split() == ["wrong", "wrong"]


def test_output_is_the_task_s(make_ansible: MakeAnsible, agent: LooseAgent, variables: dict[str, Any]) -> None:
    """Neither the prompt is in it nor what tells that the task has begun, whatever a profile says before."""
    asked, loud = become("sudo", "qgauser", "secret", by=BY_ANOTHER), become("sudo", "qgauser", "", flags="-H -S -n -i")
    work = ({"ansible.builtin.raw": "echo out; echo err >&2; exit 3"}, {"ansible.builtin.script": "say.sh"})
    tasks = [{**task, **how} for how in (asked, loud) for task in work]
    that = [
        f"r[{number}].{stream} | replace('\\r', '') == '{said}'"
        for first, out, err in ((0, "out\\n", "err\\n"), (2, "loud\\nout\\n", "shy\\nerr\\n"))
        for number in (first, first + 1)
        for stream, said in (("stdout", out), ("stderr", err))
    ]
    play(make_ansible, variables, tasks, [*that, "r[0].rc == 3", "r[1].rc == 0"])


def test_refusal_is_remembered(make_ansible: MakeAnsible, agent: LooseAgent, variables: dict[str, Any]) -> None:
    """From task to task: the first finds that a password is asked for, and none after it tries without."""
    look(agent, f"cat >/usr/local/bin/counted <<'END'\n{COUNTED}END\nchmod 755 /usr/local/bin/counted")
    look(agent, ": >/tmp/calls; chmod 666 /tmp/calls")
    dismiss(parse_address(str(agent.agent_socket)))  # with what another test has found
    how = become("sudo", "qgauser", "secret", by=f"{BY_ANOTHER} counted")
    tasks = [{"ansible.builtin.command": "id -un", **how}] * 4
    play(make_ansible, variables, tasks, ["r | map(attribute='stdout') | unique | list == ['qgauser']"])
    calls = look(agent, "cat /tmp/calls").split()
    tries = 1 if "ansible_qga_exec_method" in variables else 2  # one is by a warm interpreter that is to be started
    assert calls.count("asked") == 4
    assert 1 <= calls.count("plain") <= tries
