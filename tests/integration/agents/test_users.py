# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users of the guest: who has a key is let in, and who has become somebody does not stay."""

from __future__ import annotations

import json
import shlex
import subprocess

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, look, witness
from lab import host, image
from lab.agent import LooseAgent


def test_user_is_removed(agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    """userdel refuses as long as a user has processes, and warm interpreters would be such."""
    ansible = make_ansible({"vm": {**guest_variables(agent), "ansible_become": True}})
    user = {"ansible.builtin.user": {"name": "qgagone"}}
    work = {"ansible.builtin.command": "id -un", "become_user": "qgagone"}
    tasks = [user, *[work] * 4, {"ansible.builtin.user": {"name": "qgagone", "state": "absent", "remove": True}}]
    playbook = ansible.directory / "users.json"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    assert ansible.playbook(playbook).recap["vm"]["ok"] == len(tasks)
    assert look(agent, "id qgagone 2>/dev/null || echo gone") == "gone\n"


def test_interpreter_outlives_new_users(agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    """They concern no process that is there; who becomes a member of a group may be somebody who has one."""
    ansible = make_ansible({"vm": guest_variables(agent)})
    group = {"ansible.builtin.group": {"name": "qganew"}}
    user = {"ansible.builtin.user": {"name": "qganew", "group": "qganew"}}
    member = {"ansible.builtin.user": {"name": "qganew", "groups": "users"}}
    gone = {"ansible.builtin.user": {"name": "qganew", "state": "absent", "remove": True}}
    seen = {"ansible.builtin.shell": "cut -d ' ' -f 4 /proc/$PPID/stat"}  # the parent of the module's process
    tasks = [seen, group, user, seen, member, seen, gone]
    names = iter(("first", "second", "third"))
    tasks = [{**task, "register": next(names)} if task is seen else task for task in tasks]
    same = ["first.stdout == second.stdout", "second.stdout != third.stdout"]
    playbook = ansible.directory / "users.json"
    tasks.append({"ansible.builtin.assert": {"that": same}})
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    assert ansible.playbook(playbook).recap["vm"]["ok"] == len(tasks)


def test_user_does_not_choose_whose_agent_runs_the_next_task(agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    """What a user's own interpreter says is the answer of the task that became that user: facts, for instance."""
    ansible = make_ansible({"vm": {**guest_variables(agent), "ansible_become_user": "qgaliar"}})
    said = json.dumps({"ansible_facts": {"ansible_qga_address": "/run/other.qga"}})
    liar = f"import os\nos.write(1, {said.encode()!r})\nos._exit(0)\n"
    look(
        agent,
        f"""useradd -m qgaliar
        d=$(runuser -u qgaliar -- python3 -c 'import site; print(site.getusersitepackages())')
        mkdir -p "$d" && printf %s {shlex.quote(liar)} >"$d/usercustomize.py" && chmod -R a+rX ~qgaliar""",
    )
    tasks = [{"ansible.builtin.ping": {}, "become": True}, {"ansible.builtin.command": "true"}]
    playbook = ansible.directory / "liar.json"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    run = ansible.playbook(playbook, rc=2)
    assert "ansible_qga_address came from the guest" in run.message
    assert run.recap["vm"]["ok"] == 1


def test_user_of_the_connection_is_warned_of_once(agents: dict[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    """Tasks run as the agent's user, whatever -u says."""
    ansible = make_ansible({"vm": guest_variables(agents["bookworm"])})
    playbook = ansible.directory / "user.json"
    for task in ({"ansible.builtin.raw": "test $(id -un) = root"}, {"qemu.guest.qga_exec": {"cmd": "true"}}):
        play = {"hosts": "all", "gather_facts": False, "tasks": [task] * 3}
        playbook.write_text(json.dumps([play]), encoding="utf-8")
        assert ansible.playbook(playbook, "-u", "somebody").message.count("vm: tasks run as root") == 1
        assert "tasks run as" not in ansible.playbook(playbook, "-u", "root").message
        assert "tasks run as" not in ansible.playbook(playbook).message


def lets_in(agent: LooseAgent) -> bool:
    """Log in as root with the lab's key. No network: an sshd for this one session is at the other end of a pipe."""
    sshd = shlex.join([*witness(agent), "mkdir -p /run/sshd; exec /usr/sbin/sshd -i"])
    argv = [host.find("ssh") or "ssh", "-n", "-F", "/dev/null", "-i", str(image.ssh_key())]
    for option in ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"):
        argv += ["-o", option]
    argv += ["-o", f"ProxyCommand={sshd}", "root@here", "true"]
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)
    return done.returncode == 0


def test_key_lets_in(agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"vm": guest_variables(agent)})
    keys = {"user": "root", "keys": [image.ssh_key().with_suffix(".pub").read_text(encoding="ascii")]}
    assert lets_in(agent), "as the image is"
    ansible.adhoc("qemu.guest.qga_authorized_keys", {**keys, "state": "absent"})
    assert not lets_in(agent)
    ansible.adhoc("qemu.guest.qga_authorized_keys", keys)
    assert lets_in(agent)


def test_key_lets_in_where_the_agent_itself_writes(make_ansible: MakeAnsible) -> None:
    """It may not run programs, so its own commands do it."""
    with LooseAgent("bookworm", block=["guest-exec", "guest-exec-status"]) as agent:
        options = {"address": str(agent.agent_socket), "user": "root"}
        key = image.ssh_key().with_suffix(".pub").read_text(encoding="ascii").strip()
        other = f"{key} other"
        ansible = make_ansible({"vm": {"ansible_connection": "local"}})
        for given, lines in (
            ({"keys": [key], "exclusive": True}, [key]),
            ({"keys": [other]}, [other]),
            ({"keys": [key], "state": "absent"}, []),
        ):
            ansible.adhoc("qemu.guest.qga_authorized_keys", {**options, **given})
            assert look(agent, "cat ~root/.ssh/authorized_keys").split("\n") == [*lines, ""]
            assert lets_in(agent) == bool(lines)
