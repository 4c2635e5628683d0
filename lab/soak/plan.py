# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a round does: twenty tasks, each of another kind, and four files and two trees that nobody has seen before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab.bench.contenders import Task
from lab.vm import Guest

USERS = ("soak1", "soak2")
THERE = "/srv/soak"
"""Where files are in the guest."""
LEDGER = f"{THERE}/ledger"
"""Each round appends its number to it, once."""
PREPARE = f"mkdir -m 0755 {THERE}; for user in {' '.join(USERS)}; do useradd -m -s /bin/sh $user; done"
FILES_OF_A_TREE = 20
LARGEST_OF_A_TREE = 5000

COPIED = {"copied": "by `copy`, back by `qga_fetch`", "written": "by `qga_file`, back by `fetch`"}
"""The large files: each goes to the guest and comes back by another way."""
KINDS = 20


def prepare(scratch: Path, number: int, size: int) -> None:
    """Make what a round brings: files of ``size`` bytes, random or, in each second round, text that shrinks."""
    shutil.rmtree(scratch / "here", ignore_errors=True)
    shutil.rmtree(scratch / "back", ignore_errors=True)
    (scratch / "here" / "tree" / "deep").mkdir(parents=True)
    (scratch / "back").mkdir()
    for name in COPIED:
        content = os.urandom(size // 2).hex().encode("ascii") if number % 2 else os.urandom(size)
        (scratch / "here" / name).write_bytes(content)
    for file in range(FILES_OF_A_TREE):
        path = scratch / "here" / "tree" / ("deep" if file % 2 else "") / f"{file}"
        path.write_bytes(os.urandom(LARGEST_OF_A_TREE * file // FILES_OF_A_TREE))
    (scratch / "about.j2").write_text("Round {{ round }} of {{ inventory_hostname }}.\n", encoding="utf-8")
    (scratch / "say.sh").write_text('#!/bin/sh\necho "said $1"\n', encoding="utf-8")


def tasks(scratch: Path, number: int, service: Task) -> list[Task]:
    """Return the tasks of a round. What they print is checked by the tasks themselves."""
    here, back = scratch / "here", scratch / "back"
    first, second = ({"become": True, "become_user": user} for user in USERS)
    return [
        {"ansible.builtin.command": "cat /proc/sys/kernel/ostype"},
        {"ansible.builtin.shell": f"echo {number} >>{LEDGER}; seq 20000 | tail -n1"},
        _says("raw", {"ansible.builtin.raw": f"echo round {number}"}, f"round {number}"),
        _says("script", {"ansible.builtin.script": f"{scratch}/say.sh {number}"}, f"said {number}"),
        {**_says("one", {"ansible.builtin.command": "id -un"}, USERS[0]), **first},
        {**_says("two", {"ansible.builtin.shell": "id -un; cat >/dev/null"}, USERS[1]), **second},
        {"ansible.builtin.shell": "sleep 0.5", "async": 60, "poll": 1},
        {"ansible.builtin.copy": {"src": f"{here}/copied", "dest": f"{THERE}/copied", "mode": "0600"}},
        {"ansible.builtin.template": {"src": f"{scratch}/about.j2", "dest": f"{THERE}/about", "mode": "0644"}},
        {"ansible.builtin.file": {"path": f"{THERE}/about", "mode": "0640" if number % 2 else "0644"}},
        {"ansible.builtin.lineinfile": {"path": f"{THERE}/lines", "line": f"{number}", "create": True, "mode": "0644"}},
        service,
        {"ansible.builtin.setup": {"gather_subset": ["!all", "platform", "network"]}},
        {"qemu.guest.qga_info": {}},
        _says("exec", {"qemu.guest.qga_exec": {"shell": "cat", "stdin": f"input {number}"}}, f"input {number}"),
        {"qemu.guest.qga_file": {"src": f"{here}/written", "path": f"{THERE}/written", "mode": "0600"}},
        {"ansible.builtin.fetch": {"src": f"{THERE}/written", "dest": f"{back}/written", "flat": True}},
        {"qemu.guest.qga_fetch": {"src": f"{THERE}/copied", "dest": f"{back}/copied"}},
        {"qemu.guest.qga_file": {"src": f"{here}/tree", "path": f"{THERE}/tree-{number}/", "recurse": True}},
        {"qemu.guest.qga_fetch": {"src": f"{THERE}/tree-{number}/tree", "dest": f"{back}/", "recurse": True}},
    ]


def _says(name: str, task: Task, text: str) -> Task:
    """Return a task that fails unless it prints ``text``."""
    return {**task, "register": name, "failed_when": f"{name}.rc != 0 or {name}.stdout | trim != {text!r}"}


def service(subject: object) -> Task:
    """Return a task about services, which only a booted guest has."""
    if isinstance(subject, Guest):
        return {"ansible.builtin.systemd_service": {"name": "cron", "state": "restarted"}}
    return {"ansible.builtin.service_facts": {}}
