# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.facts.collector import get_collector_names

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OperationError,
    OutcomeUnknownError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Replies
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_facts import MIN, OPERATION, SUBSETS, Gathered, plan, wanted
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Scripted, swallows

# wanted


@pytest.mark.parametrize(
    "subsets",
    [
        ["all"],
        ["min"],
        ["network"],
        ["network", "!min"],
        ["!network"],
        ["all", "!network"],
        ["all", "!min"],
        ["!all"],
        ["!all", "!min"],
        ["!all", "!min", "platform"],
        ["!min", "hardware", "loadavg"],
        ["network", "!network"],
        ["all", "!nothing"],
        ["!hardware", "min", "all"],
        [],
    ],
)
def test_subsets_are_chosen_as_by_the_core(subsets: list[str]) -> None:
    assert set(wanted(subsets)) == get_collector_names(
        frozenset(SUBSETS), MIN, list(subsets), collections.defaultdict(set)
    )


def test_subset_that_does_not_exist() -> None:
    with pytest.raises(OperationError, match="there is no subset 'weather'; there are all, date_time, "):
        wanted(["weather"])


# plan

OSINFO = {
    "id": "debian",
    "name": "Debian GNU/Linux",
    "pretty-name": "Debian GNU/Linux 12 (bookworm)",
    "version-id": "12",
    "machine": "x86_64",
    "kernel-release": "6.1.0",
    "kernel-version": "#1",
}
INTERFACES = [{"name": name, "hardware-address": "52:54:00:12:34:56"} for name in ("br-1", "br-1:2", "distribution")]
ANSWERS: dict[str, Any] = {
    "guest-get-osinfo": OSINFO,
    "guest-get-host-name": {"host-name": "vm1"},
    "guest-network-get-interfaces": INTERFACES,
    "guest-get-time": 1767225600000000000,
    "guest-get-timezone": {"zone": "UTC", "offset": 0},
    "guest-get-disks": [],
    "guest-get-fsinfo": [],
}


def options(**given: Any) -> dict[str, Any]:
    return {**{name: option.get("default") for name, option in OPERATION.spec.items()}, **given}


def planned(**given: Any) -> dict[str, Any]:
    subsets = given.pop("subsets", list(SUBSETS))
    return dict(plan(Gathered(subsets, Replies(ANSWERS, {}), {}), options(**given)).result["ansible_facts"])


def test_names_have_a_prefix_and_no_hyphens() -> None:
    facts = planned()
    assert facts["ansible_br_1"]["device"] == "br-1"
    assert facts["ansible_interfaces"] == ["br-1", "br-1_2", "distribution"]
    assert all(name.startswith("ansible_") and "-" not in name for name in facts)


def test_interface_does_not_hide_another_fact() -> None:
    assert planned()["ansible_distribution"] == "Debian"
    assert planned(subsets=["network"])["ansible_distribution"]["device"] == "distribution"


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["distribution*"], {"distribution", "distribution_major_version", "distribution_release"}),
        (["ansible_kernel", "os_*"], {"kernel", "os_family"}),
        (["nothing"], set()),
        (["HOSTNAME"], set()),
        (["host[n]ame"], {"hostname"}),
    ],
)
def test_filter(patterns: list[str], names: set[str]) -> None:
    assert set(planned(filter=patterns)) == {f"ansible_{name}" for name in names}


# read


def run(agent: SocketAgent, **given: Any) -> dict[str, Any]:
    result = run_operation(OPERATION, agent, options(**given))
    assert result.pop("changed") is False
    assert set(result) <= returned("qga_facts")
    return result


@pytest.fixture
def server(scripted: Callable[..., Scripted], guest: Guest) -> Scripted:
    return scripted({**ANSWERS, **guest.answers("guest-exec", "guest-exec-status")})


def test_everything_is_asked_once(server: Scripted, connect: Callable[..., SocketAgent]) -> None:
    result = run(connect(server))
    assert "warnings" not in result
    asked = [command for command in server.work if not command.startswith("guest-file-")]
    assert sorted(asked) == sorted(["guest-info", *ANSWERS])
    assert server.work.count("guest-file-open") == len([*SUBSETS["hardware"].files, *SUBSETS["network"].files]) + 1
    facts = result["ansible_facts"]
    assert facts["ansible_hostname"] == "vm1"
    # The files are those of this machine.
    assert facts["ansible_memtotal_mb"] > 0 and facts["ansible_uptime_seconds"] > 0


def test_agent_that_reads_no_files(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    server = scripted(ANSWERS)
    facts = run(connect(server))["ansible_facts"]
    assert not any(command.startswith("guest-file") for command in server.work)
    assert facts["ansible_distribution_release"] == "bookworm"
    unknown = {"distribution_version", "memtotal_mb", "uptime_seconds", "processor_vcpus", "default_ipv4"}
    assert not {f"ansible_{name}" for name in unknown} & set(facts)


@pytest.mark.parametrize("system", ["mswindows", "freebsd", "openbsd", None])
def test_files_are_those_of_linux(system: str | None, server: Scripted, connect: Callable[..., SocketAgent]) -> None:
    server.answers["guest-get-osinfo"] = {**OSINFO, "id": system} if system else {}
    run(connect(server))
    assert not any(command.startswith("guest-file") for command in server.work)
    assert ("guest-get-disks" in server.work) is False


def test_subset_asks_for_no_more_than_it_needs(server: Scripted, connect: Callable[..., SocketAgent]) -> None:
    server.answers["guest-network-get-route"] = []
    facts = run(connect(server), gather_subset=["network", "!min"])["ansible_facts"]
    assert server.work == [
        "guest-info",
        "guest-get-osinfo",
        "guest-network-get-interfaces",
        "guest-network-get-route",
    ]
    assert facts["ansible_default_ipv4"] == {}


@pytest.mark.parametrize(
    ("osinfo", "path"),
    [
        (OSINFO, "/etc/debian_version"),
        ({**OSINFO, "version-id": ""}, "/etc/os-release"),
        ({**OSINFO, "id": "ubuntu"}, "/etc/os-release"),
    ],
)
def test_one_file_says_which_release_it_is(
    osinfo: Any, path: str, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    opened = []

    def answer(arguments: Any) -> Any:
        opened.append(arguments["path"])
        raise AgentError(f"failed to open file '{arguments['path']}' (mode: 'r'): No such file or directory")

    answers = {"guest-get-osinfo": osinfo, "guest-file-open": answer, "guest-file-read": {}, "guest-file-close": {}}
    run(connect(scripted(answers)), gather_subset=["distribution", "!min"])
    assert opened == [path]


def test_file_that_is_too_long(server: Scripted, connect: Callable[..., SocketAgent]) -> None:
    endless = {"count": 1 << 20, "buf-b64": "MS4w" * ((1 << 20) // 3) + "MQ==", "eof": False}
    server.answers["guest-file-read"] = endless
    facts = run(connect(server))["ansible_facts"]
    assert "ansible_uptime_seconds" not in facts and facts["ansible_hostname"] == "vm1"


# What an agent does not tell


@pytest.mark.parametrize(
    ("named", "blocked", "told"),
    [
        (["network"], "guest-network-get-interfaces", "guest-network-get-interfaces: disabled by the guest's"),
        (["loadavg"], "", "guest-get-load: this agent (version 7.2.22) does not know the command"),
        (["all"], "guest-network-get-interfaces", None),
        (["all", "!network"], "guest-network-get-interfaces", None),
        (["network"], "", None),
    ],
)
def test_warning_where_a_named_subset_has_no_facts(
    named: list[str],
    blocked: str,
    told: str | None,
    scripted: Callable[..., Scripted],
    connect: Callable[..., SocketAgent],
) -> None:
    refusals = {blocked: f"Command {blocked} has been disabled"} if blocked else {}
    result = run(connect(scripted(ANSWERS, blocked=refusals)), gather_subset=named)
    assert result["ansible_facts"]["ansible_hostname"] == "vm1"
    assert len(result.get("warnings", ())) == (1 if told else 0)
    assert not told or told in result["warnings"][0]


def test_command_that_fails_is_a_fact_less(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    def refuse(arguments: Any) -> Any:
        raise AgentError("this feature is not supported")

    facts = run(connect(scripted({**ANSWERS, "guest-get-timezone": refuse})))["ansible_facts"]
    assert "ansible_date_time" not in facts and "ansible_hostname" in facts


def test_frozen_guest(server: Scripted, connect: Callable[..., SocketAgent]) -> None:
    server.answers["guest-fsfreeze-status"] = "thawed"
    server.freeze(1000)
    with pytest.raises(CommandUnavailable, match="frozen"):
        run(connect(server))


def test_lost_reply_is_an_error(server: Scripted, connect: Callable[..., SocketAgent]) -> None:
    server.then("guest-get-time", swallows, swallows)
    with pytest.raises(OutcomeUnknownError):
        run(connect(server))
