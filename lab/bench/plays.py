# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is run: plays as people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.bench.contenders import Task

# Items of a loop and files of a tree; and of shorter ones, for those who take minutes for that.
LOOP, SHORTER_LOOP = 20, 5
FILES, FEWER_FILES = 200, 10
# Transfers take seconds, and scatter more than plays.
FILES_PER_ROUND = 3

# One task of each, as a role has them that sets a service up.
MIX: dict[str, dict[str, Any]] = {
    "group": {"name": "bench", "system": True},
    "user": {"name": "bench", "group": "bench", "system": True, "create_home": False},
    "file": {"path": "/srv/bench", "state": "directory", "owner": "bench", "mode": "0750"},
    "copy": {"content": "a file\n", "dest": "/srv/bench/copied", "mode": "0644"},
    "template": {"src": "bench.j2", "dest": "/srv/bench/templated", "mode": "0644"},
    "lineinfile": {"path": "/srv/bench/templated", "line": "a template of {{ inventory_hostname }}"},
    "replace": {"path": "/srv/bench/copied", "regexp": "file", "replace": "file"},
    "stat": {"path": "/srv/bench/copied"},
    "find": {"paths": "/srv/bench"},
    "slurp": {"src": "/srv/bench/copied"},
    "shell": {"cmd": "ls /srv/bench | wc -l"},
    "command": {"cmd": "id bench"},
}
TRUE: Task = {"ansible.builtin.command": "true"}
LOOPED = "`command: true` in a loop, per item"
MIXED = f"{len(MIX)} modules, a task of each"
SETUP = "`setup`"
ONE = "one `command: true` in a guest where nothing is left of others"
TREE = "a tree of small files by `copy`, per file"
RUN = "`ansible-playbook` from its start to its end, after the same, {}"
RUN_ANEW = "the same in a guest where nothing is left of others, {}"

PLAYS: dict[str, list[Task]] = {
    MIXED: [{f"ansible.builtin.{name}": options} for name, options in MIX.items()],
    SETUP: [{"ansible.builtin.setup": {}}],
}


def prepare(scratch: Path) -> None:
    """Write what PLAYS need beside the playbook."""
    (scratch / "bench.j2").write_text("a template of {{ inventory_hostname }}\n", encoding="utf-8")


def loop(items: int) -> list[Task]:
    return [{**TRUE, "loop": list(range(items))}]


RUNS: dict[str, list[Task]] = {f"a loop of {LOOP} `command: true`": loop(LOOP), MIXED: PLAYS[MIXED]}
"""Those of which whole runs are measured; see RUN."""


def tree(scratch: Path, files: int) -> list[Task]:
    """Return tasks that copy a tree of small files which the guest does not have yet."""
    source = scratch / f"tree-{files}"
    if not source.exists():
        for number in range(files):
            path = source / f"directory-{number % 10}" / f"file-{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"file {number}\n" * 40, encoding="utf-8")
    return [{"ansible.builtin.copy": {"src": f"{source}/", "dest": "/srv/tree/"}}]


GONE: Task = {"ansible.builtin.raw": "rm -rf /srv/tree"}
