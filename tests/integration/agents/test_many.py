# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many hosts at once, several of them one guest, and several plays at once."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, in_background, look
from lab.agent import LooseAgent

NAMES = 3
"""Of each guest."""

PLAY = {
    "hosts": "all",
    "gather_facts": False,
    "tasks": [
        {
            "name": "Write all at once",
            "ansible.builtin.copy": {
                "content": "{{ inventory_hostname }} {{ play }}",
                "dest": "/srv/{{ inventory_hostname }} {{ play }}",
                "mode": "0600",
            },
        },
        {
            "name": "Loop",
            "ansible.builtin.raw": "echo {{ inventory_hostname }} {{ item }}",
            "loop": [1, 2, 3, 4, 5],
            "register": "loop",
        },
        {
            "name": "Look at what came back",
            "ansible.builtin.assert": {
                "that": "loop.results | map(attribute='stdout') | map('trim') | list == "
                "[1, 2, 3, 4, 5] | map('regex_replace', '^', inventory_hostname ~ ' ') | list"
            },
        },
        {
            "name": "One at a time",
            "ansible.builtin.shell": "mkdir /srv/only.{{ play }} && sleep 0.1 && rmdir /srv/only.{{ play }}",
            "throttle": 1,
        },
        {
            "name": "For another",
            "ansible.builtin.command": "touch '/srv/of {{ inventory_hostname }} {{ play }}'",
            "delegate_to": "{{ groups.all[0] }}",
        },
        {"name": "For all", "ansible.builtin.command": "touch '/srv/once {{ play }}'", "run_once": True},
    ],
}


@pytest.mark.parametrize("method", ["runner", pytest.param("guest-exec", marks=pytest.mark.whole)])
def test_many(method: str, agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    patience = {"ansible_qga_timeout": 120, "ansible_qga_exec_method": method}
    variables = {name: {**guest_variables(agent), **patience} for name, agent in agents.items()}
    hosts = {f"{name}-{n}": variables[name] for name in agents for n in range(NAMES)}
    ansible = make_ansible(hosts)
    playbook = ansible.directory / "many.json"
    playbook.write_text(json.dumps([PLAY]), encoding="utf-8")

    def run(play: str) -> None:
        ansible.playbook(playbook, "--forks", str(len(hosts)), variables={"play": play})

    # Two plays at once, on the same guests.
    another = in_background(lambda: run("two"))
    run("one")
    another()
    first = next(iter(agents))
    for name, agent in agents.items():
        expected = [f"{name}-{n} {play}" for n in range(NAMES) for play in ("one", "two")]
        if name == first:
            expected += [f"of {host} {play}" for host in hosts for play in ("one", "two")]
            expected += ["once one", "once two"]
        names = look(agent, "cd /srv && ls -A | grep -e one -e two && rm -- *one *two").splitlines()
        assert sorted(names) == sorted(expected)
