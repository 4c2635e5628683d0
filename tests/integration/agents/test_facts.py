# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts by the agent alone, compared with what setup finds in the same guest, and gathered for plays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import dismiss
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.facts import ALWAYS, OF_RELEASES, both, differences
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, hypervisor_variables
from ansible_collections.qemu.guest.tests.unit.documentation import COLLECTION, examples
from lab import image
from lab.agent import LooseAgent
from lab.host import private_directory
from lab.tally import Tally


def test_facts_are_those_of_setup(agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({release: guest_variables(agent) for release, agent in agents.items()})
    for release, by_agent, by_setup in both(ansible, agents):
        assert list(differences(by_agent, by_setup)) == [], release
        expected = ALWAYS if release == "sid" else ALWAYS | OF_RELEASES
        assert expected <= set(by_agent), (release, expected - set(by_agent))
        version = tuple(map(int, image.build(release).agent_version.split(".")))
        assert ("loadavg" in by_agent) == (version >= (10,)), release


def test_difference_is_seen() -> None:
    theirs = {"a": {"b": 1, "c": [2, 1]}, "mounts": [{"mount": "/", "fstype": "ext4"}], "uptime_seconds": 5}
    assert list(differences({"a": {"c": [1, 2]}, "mounts": [{"mount": "/"}], "uptime_seconds": 9}, theirs)) == []
    others: tuple[Any, ...] = (
        {"a": {"b": 2}},
        {"a": {"b": "1"}},
        {"a": {"c": [1]}},
        {"a": {"d": 1}},
        {"e": 1},
        {"mounts": []},
        {"mounts": [{"mount": "/", "fstype": "xfs"}]},
        {"uptime_seconds": 605.5},
        {"uptime_seconds": 700},
    )
    for other in others:
        assert len(list(differences(other, theirs))) == 1, other


# As the facts of a play

PLAY = {
    "hosts": "all",
    "gather_facts": True,
    "tasks": [
        {
            "ansible.builtin.debug": {
                "msg": "{{ ansible_distribution }} {{ ansible_facts['hostname'] }} of {{ inventory_hostname }}"
            },
            "when": "ansible_facts['distribution'] == 'Debian'",
        },
        {"ansible.builtin.command": "true", "when": "ansible_facts['os_family'] != 'Debian'"},
    ],
}


def gather(ansible: Any, play: Mapping[str, Any] | None = None, **how: Any) -> Any:
    playbook = ansible.directory / "play.json"
    playbook.write_text(json.dumps([play or PLAY]), encoding="utf-8")
    return ansible.playbook(playbook, **how)


@pytest.fixture
def tally(agents: Mapping[str, LooseAgent]) -> Iterator[Tally]:
    directory = private_directory()
    with Tally(directory / "tally.sock", agents["bookworm"].agent_socket) as tally:
        yield tally
        dismiss(parse_address(str(tally.path)))
    directory.rmdir()


FILES = 5
"""Of processors, memory, uptime, mounts, and of Debian's version."""
ONE_ROUND = {
    "guest-info": 1,
    "guest-get-osinfo": 1,
    "guest-get-host-name": 1,
    "guest-get-time": 1,
    "guest-get-timezone": 1,
    "guest-network-get-interfaces": 1,
    "guest-get-disks": 1,
    "guest-get-fsinfo": 1,
    # And of the routes, which this agent has no command for.
    **{f"guest-file-{name}": FILES + 2 for name in ("open", "read", "close")},
}


def requests(tally: Tally) -> dict[str, int]:
    """Return the requests of each command but for syncs: there are more where the machine is slow."""
    counts = {command: count.requests for command, count in tally.counts.items()}
    assert counts.pop("guest-sync-delimited")
    return counts


@pytest.fixture
def vm1(agents: Mapping[str, LooseAgent], tally: Tally) -> dict[str, Any]:
    """The variables of a guest whose requests are counted, and of which nobody knows where Python is."""
    variables = guest_variables(agents["bookworm"], tally.path)
    del variables["ansible_python_interpreter"]
    return {**variables, "ansible_facts_modules": "qemu.guest.qga_facts"}


def test_play_asks_once_and_runs_no_program(tally: Tally, vm1: dict[str, Any], make_ansible: MakeAnsible) -> None:
    """Not even to look for Python."""
    run = gather(make_ansible({"vm1": vm1}))
    assert "Debian bookworm of vm1" in run.message
    assert run.recap["vm1"]["ok"] == 2
    assert requests(tally) == ONE_ROUND


def test_task_asks_once(tally: Tally, vm1: dict[str, Any], make_ansible: MakeAnsible) -> None:
    run = make_ansible({"vm1": vm1}).adhoc("qemu.guest.qga_facts", "filter=distribution*")
    assert '"ansible_distribution": "Debian"' in run.output
    assert "ansible_hostname" not in run.output
    assert requests(tally) == ONE_ROUND


def test_tasks_after_it_look_for_python(vm1: dict[str, Any], make_ansible: MakeAnsible) -> None:
    task = {"ansible.builtin.command": "echo {{ ansible_facts.hostname }}", "register": "said"}
    check = {"ansible.builtin.assert": {"that": "said.stdout == 'bookworm'"}}
    settings = {"become": True, "module_defaults": {"ansible.builtin.gather_facts": {"gather_subset": ["all"]}}}
    play = {"hosts": "all", "gather_facts": True, **settings, "tasks": [task, check]}
    assert gather(make_ansible({"vm1": vm1}), play).recap["vm1"]["ok"] == 3


def test_guest_that_allows_neither_programs_nor_files(make_ansible: MakeAnsible) -> None:
    blocked = ["guest-exec", "guest-exec-status", "guest-file-open"]
    with LooseAgent("bookworm", block=blocked) as agent:
        variables = {**guest_variables(agent), "ansible_facts_modules": "qemu.guest.qga_facts"}
        run = gather(make_ansible({"vm1": variables}))
    assert "Debian bookworm of vm1" in run.message


def test_hypervisor(agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    """Where the module has an address, the facts of its host are the guest's."""
    hosts = {
        release: {**hypervisor_variables(agent), "ansible_facts_modules": "qemu.guest.qga_facts"}
        for release, agent in agents.items()
    }
    defaults = {"group/qemu.guest.qga": {"address": "{{ qga_address }}"}}
    run = gather(make_ansible(hosts), {**PLAY, "module_defaults": defaults})
    for release in agents:
        assert f"Debian {release} of {release}" in run.message


# What the documentation shows


def test_examples(agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    agent = agents["bookworm"]
    tasks = json.loads(json.dumps(examples("qga_facts")).replace("/run/vm1.qga", str(agent.agent_socket)))
    ansible = make_ansible({"vm1": guest_variables(agent)})
    run = gather(ansible, {"hosts": "all", "gather_facts": False, "tasks": tasks})
    assert run.recap["vm1"]["ok"] == len(tasks)


def test_documented_play(agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    text = (COLLECTION / "docs" / "facts.md").read_text(encoding="utf-8")
    _task, inventory, (play,) = map(yaml.safe_load, re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    ansible = make_ansible({"vm1": {**guest_variables(agents["sid"]), **inventory["guests"]["vars"]}})
    run = gather(ansible, {**play, "hosts": "all"})
    assert '"msg": "none"' in run.output, "a loose agent has no way to other networks"
