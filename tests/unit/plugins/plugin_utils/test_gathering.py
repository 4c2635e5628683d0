# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts of a play, which the connection gathers: with ansible-core's own action, and what it packs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible import constants
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.block import Block
from ansible.playbook.play import Play
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins import loader as plugins
from ansible.template import Templar

from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, swallows

OURS = "qemu.guest.qga_facts"


@pytest.fixture
def server(scripted: Callable[..., Scripted], guest: Guest) -> Scripted:
    answers = {"guest-get-osinfo": {"id": "debian"}, "guest-get-host-name": {"host-name": "vm1"}}
    return scripted({**answers, **guest.answers("guest-exec", "guest-exec-status")})


Gather = Callable[..., dict[str, Any]]


VARIABLES = {"ansible_facts_parallel": False, "ansible_facts": {}, "ansible_playbook_python": "/usr/bin/python3"}


@pytest.fixture
def gather(server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: object) -> Iterator[Gather]:
    """Run gather_facts with these facts modules, module_defaults and options of the connection."""
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    made = []

    def run(
        modules: list[str],
        defaults: dict[str, Any] | None = None,
        action: str = "ansible.builtin.gather_facts",
        python: str = "auto",
        become: str = "",
        **how: Any,
    ) -> dict[str, Any]:
        loader = DataLoader()
        play = Play.load({"hosts": "vm1", "module_defaults": {OURS: defaults} if defaults else {}}, loader=loader)
        task = Task.load({action: {}, "name": "Gather"}, block=Block(play=play), loader=loader)
        connection = plugins.connection_loader.get("qemu.guest.qga", PlayContext(), None)
        if become:
            connection.set_become_plugin(plugins.become_loader.get(become))
        given = {"address": str(server.path), "persist": 0, "facts_modules": modules, **how}
        connection.set_options(task_keys={"action": task.action}, direct=given)
        connection._shell = plugins.shell_loader.get("sh")
        connection._shell.set_options()
        made.append(connection)
        variables = {**VARIABLES, "ansible_facts_modules": modules, "ansible_python_interpreter": python}
        return dict(
            plugins.action_loader.get(
                task.action,
                task=task,
                connection=connection,
                play_context=PlayContext(),
                loader=loader,
                templar=Templar(loader=loader, variables=variables),
                shared_loader_obj=plugins,
            ).run(task_vars=variables)
        )

    yield run
    for connection in made:
        connection.close()


@pytest.mark.parametrize("action", ["gather_facts", "ansible.builtin.gather_facts", "ansible.legacy.gather_facts"])
def test_facts_are_gathered_without_a_program_in_the_guest(gather: Gather, server: Scripted, action: str) -> None:
    result = gather([OURS], action=action)
    assert not result.get("failed"), result
    assert result["ansible_facts"]["ansible_hostname"] == "vm1"
    assert "discovered_interpreter_python" not in json.dumps(result["ansible_facts"])
    assert "guest-get-host-name" in server.work


@pytest.mark.parametrize("become", ["sudo", "su"])
def test_become_has_no_meaning(gather: Gather, become: str) -> None:
    assert gather([OURS], become=become)["ansible_facts"]["ansible_hostname"] == "vm1"


def test_defaults_of_the_module(gather: Gather) -> None:
    facts = gather([OURS], {"filter": ["host*"]})["ansible_facts"]
    assert set(facts) == {"ansible_hostname", "_ansible_facts_gathered"}
    failed = gather([OURS], {"gather_subset": ["weather"]})
    assert failed["failed"] and "there is no subset 'weather'" in str(failed["failed_modules"])
    wrong = gather([OURS], {"agent_timeout": "soon"})
    assert "agent_timeout" in str(wrong["failed_modules"])


@pytest.mark.parametrize(
    ("modules", "how"),
    [(["ansible.builtin.setup"], {}), (["smart"], {}), ([OURS], {"pipelining": False})],
)
def test_guest_is_asked_for_python_where_a_module_needs_it(
    gather: Gather, server: Scripted, modules: list[str], how: dict[str, Any]
) -> None:
    with pytest.raises(AnsibleError, match="guest-exec was not run"):
        gather(modules, exec_method="guest-exec", **how)
    assert "guest-get-host-name" not in server.work


def test_beside_other_modules(gather: Gather, server: Scripted) -> None:
    """Where Python is, is known; this module runs here, and the other one in the guest."""
    with pytest.raises(AnsibleError, match="guest-exec was not run"):
        gather([OURS, "ansible.builtin.setup"], exec_method="guest-exec", python="/usr/bin/python3")
    assert "guest-get-host-name" in server.work


def test_address_of_this_guest_or_of_another(gather: Gather, server: Scripted) -> None:
    assert gather([OURS], {"address": f"unix:{server.path}"})["ansible_facts"]["ansible_hostname"] == "vm1"
    for address in ("/run/other.qga", "nonsense"):
        failed = gather([OURS], {"address": address})
        assert "leave address out" in str(failed["failed_modules"])


def test_agent_that_is_gone(gather: Gather, server: Scripted) -> None:
    server.then("guest-get-host-name", swallows, swallows)
    with pytest.raises(AnsibleConnectionFailure):
        gather([OURS], agent_timeout=1)
