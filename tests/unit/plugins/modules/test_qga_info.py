# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import schema
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.public_keys import HIDDEN
from ansible_collections.qemu.guest.plugins.modules import qga_info
from ansible_collections.qemu.guest.plugins.modules.qga_info import (
    COMMANDS,
    KEYS_COMMAND,
    MIN,
    NOT_BY_DEFAULT,
    OPERATION,
    plan,
    subsets_of,
    wanted,
)
from ansible_collections.qemu.guest.tests.unit.documentation import documentation, examples, returned
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Scripted, swallows

ALL = sorted(COMMANDS)
DEFAULT = [name for name in ALL if name not in NOT_BY_DEFAULT]


def options(**given: Any) -> dict[str, Any]:
    return {**{name: option.get("default") for name, option in OPERATION.spec.items()}, **given}


# wanted


@pytest.mark.parametrize(
    ("subsets", "names"),
    [
        (["all"], ALL),
        (["default"], DEFAULT),
        (["default", "vcpus", "memory_blocks"], sorted([*DEFAULT, "memory_blocks"])),
        (["min"], sorted(MIN)),
        (["users"], ["users"]),
        (["users", "time", "users"], ["time", "users"]),
        (["min", "time"], sorted([*MIN, "time"])),
        (["all", "!users"], [name for name in ALL if name != "users"]),
        (["!users"], [name for name in DEFAULT if name != "users"]),
        (["!users", "users"], []),
        (["min", "!osinfo"], sorted(set(MIN) - {"osinfo"})),
        (["all", "!min"], sorted(set(ALL) - set(MIN))),
        (["!all"], []),
        ([], DEFAULT),
    ],
)
def test_wanted(subsets: list[str], names: list[str]) -> None:
    assert wanted(subsets) == names


@pytest.mark.parametrize("subset", ["nope", "!nope", "", "!", "ALL", "guest-info", "authorized_keys"])
def test_subset_that_does_not_exist(subset: str) -> None:
    with pytest.raises(OperationError, match="there is no subset") as caught:
        wanted(["users", subset])
    assert "fsfreeze_status" in str(caught.value), "and which there are"


def test_subset_that_is_left_out_twice() -> None:
    with pytest.raises(OperationError, match="there is no subset"):
        wanted(["!!users"])


@pytest.mark.parametrize(
    ("query", "subsets"),
    [
        (None, ["default"]),
        ("", ["default"]),
        ("@", ["default"]),
        ("keys(@)", ["default"]),
        ("unavailable", ["default"]),
        ("nope", ["default"]),
        ("osinfo.id", ["osinfo"]),
        ("[osinfo.id, host_name]", ["host_name", "osinfo"]),
        ("{users: length(vcpus), name: host_name.host_name}", ["host_name", "vcpus"]),
        ("vcpus[?online][:2].logical_id | sort(@)", ["vcpus"]),
        ("addresses.*[]", ["network_interfaces"]),
        ("max_by(memory_blocks, &phys_index).phys_index", ["memory_blocks"]),
        ("load.load1m > `1` && !(fsfreeze_status == 'frozen')", ["fsfreeze_status", "load"]),
        ("authorized_keys.root", ["!all"]),
        ("{keys: authorized_keys.root, name: host_name}", ["host_name"]),
    ],
)
def test_subsets_of_a_query(query: str | None, subsets: list[str]) -> None:
    assert subsets_of(query) == subsets


def test_every_command_that_reads_is_here() -> None:
    reading = {name for name, known in schema.COMMANDS.items() if known.read_only}
    not_about_the_guest = {"guest-ping", "guest-sync", "guest-sync-delimited", KEYS_COMMAND}
    assert set(COMMANDS.values()) == reading - not_about_the_guest


def test_subsets_are_documented() -> None:
    text = " ".join(documentation("qga_info")["options"]["gather_subset"]["description"])
    assert set(re.findall(r"(?<!R)V\(([a-z_]+)\)", text)) == {*COMMANDS, "all", "default", "min"}
    assert {*COMMANDS, "addresses", "authorized_keys", "unavailable", "result"} <= returned("qga_info")


# plan

GATHERED = {
    "network_interfaces": [
        {"name": "lo", "ip_addresses": [{"ip_address": "127.0.0.1", "ip_address_type": "ipv4"}]},
        {
            "name": "eth0",
            "ip_addresses": [
                {"ip_address": "192.0.2.10", "ip_address_type": "ipv4"},
                {"ip_address": "2001:db8::1", "ip_address_type": "ipv6"},
            ],
        },
    ],
    "unavailable": {},
}


def test_plan() -> None:
    planned = plan(GATHERED, options())
    assert planned.result == {**GATHERED, "addresses": {}}
    assert not planned.changes


@pytest.mark.parametrize(
    ("query", "result"),
    [
        ("network_interfaces[?name!='lo'].ip_addresses[] | [?ip_address_type=='ipv4'].ip_address", ["192.0.2.10"]),
        ("network_interfaces[].name", ["lo", "eth0"]),
        ("length(network_interfaces)", 2),
        ("nope", None),
        ("unavailable", {}),
    ],
)
def test_query(query: str, result: Any) -> None:
    planned = plan(GATHERED, options(gather_subset=["network_interfaces"], query=query))
    assert planned.result == {**GATHERED, "addresses": {}, "result": result}
    assert plan(GATHERED, options(query=query)).result == {"result": result}


@pytest.mark.parametrize(
    ("query", "warns"), [("hostname", True), ("host_name.nope", False), ("`null`", True), ("@", False)]
)
def test_query_that_names_nothing(query: str, warns: bool) -> None:
    warnings = plan(GATHERED, options(query=query)).warnings
    assert ["none of the return values" in text for text in warnings] == [True] * warns


def test_query_over_what_is_unavailable() -> None:
    current = {"unavailable": {"users": "disabled"}}
    assert plan(current, options(query="users")).result == {"result": None, **current}


def test_queries_of_the_examples() -> None:
    tasks = (task["qemu.guest.qga_info"] for task in examples("qga_info"))
    current = {**GATHERED, "osinfo": {"pretty_name": "Debian"}}
    found = [plan(current, options(query=task["query"])).result["result"] for task in tasks if "query" in task]
    assert found == ["Debian", ["192.0.2.10"]]


@pytest.mark.parametrize("query", ["[", "a b", "nope(@)", "length(`5`)", "length(@, @)"])
def test_query_that_is_wrong(query: str) -> None:
    with pytest.raises(OperationError, match="query: "):
        plan(GATHERED, options(query=query))


def test_query_without_the_library(
    monkeypatch: pytest.MonkeyPatch, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    monkeypatch.setattr(qga_info, "jmespath", None)
    server = scripted()
    with pytest.raises(OperationError, match="jmespath"):
        run_operation(OPERATION, connect(server), options(query="x"))
    assert server.commands == [], "said before anything is asked"
    run_operation(OPERATION, connect(server), options(gather_subset=["agent"]))


# addresses


def interface(mac: str | None, *addresses: str) -> dict[str, Any]:
    return {
        "name": "eth0",
        **({"hardware_address": mac} if mac else {}),
        **({"ip_addresses": [{"ip_address": text, "prefix": 24} for text in addresses]} if addresses else {}),
    }


@pytest.mark.parametrize(
    ("interfaces", "addresses"),
    [
        ([], {}),
        ([interface("00:00:00:00:00:00", "127.0.0.1", "::1", "192.0.2.1")], {}),
        ([interface(None, "192.0.2.1"), interface("", "192.0.2.2")], {}),
        ([interface("52:54:00:AB:CD:EF")], {"52:54:00:ab:cd:ef": []}),
        (
            [interface("52:54:00:00:00:01", "192.0.2.1", "169.254.3.4", "fe80::1", "fe80::1%eth0", "febf::1")],
            {"52:54:00:00:00:01": ["192.0.2.1"]},
        ),
        (
            [interface("52:54:00:00:00:01", "2001:db8::1", "fec0::1", "fd00::1", "::ffff:192.0.2.1", "127.0.0.2")],
            {"52:54:00:00:00:01": ["2001:db8::1", "fec0::1", "fd00::1", "::ffff:192.0.2.1"]},
        ),
        (
            [interface("52:54:00:00:00:01"), interface("02:42:00:00:00:02", "172.17.0.1")],
            {"52:54:00:00:00:01": [], "02:42:00:00:00:02": ["172.17.0.1"]},
        ),
        # A bridge has the MAC address of the interface below it.
        (
            [interface("52:54:00:00:00:01", "fe80::1"), interface("52:54:00:00:00:01", "192.0.2.1")],
            {"52:54:00:00:00:01": ["192.0.2.1"]},
        ),
        ([interface("52:54:00:00:00:01", "", "what", "192.0.2.256")], {"52:54:00:00:00:01": []}),
    ],
)
def test_addresses(interfaces: list[dict[str, Any]], addresses: dict[str, list[str]]) -> None:
    assert plan({"network_interfaces": interfaces}, options()).result["addresses"] == addresses


@pytest.mark.parametrize(
    "interface",
    [
        "eth0",
        {"hardware_address": "52:54:00:00:00:01", "ip_addresses": "192.0.2.1"},
        {"hardware_address": "52:54:00:00:00:01", "ip_addresses": ["192.0.2.1"]},
    ],
)
def test_interfaces_that_are_not_as_in_the_schema(interface: Any) -> None:
    with pytest.raises(ProtocolError):
        plan({"network_interfaces": [interface]}, options())


def test_query_over_addresses() -> None:
    current = {"network_interfaces": [interface("52:54:00:00:00:01", "192.0.2.1")], "unavailable": {}}
    assert plan(current, options(query='addresses."52:54:00:00:00:01"')).result["result"] == ["192.0.2.1"]


# read

ANSWERS = {
    "guest-get-host-name": {"host-name": "vm1"},
    "guest-get-osinfo": {"id": "debian", "version-id": "12"},
    "guest-get-users": [{"user": "root", "login-time": 1.5}],
    "guest-fsfreeze-status": "thawed",
    "guest-get-time": 1,
    KEYS_COMMAND: lambda arguments: {"keys": [f"key of {arguments['username']}"]},
}


def run(agent: SocketAgent, **given: Any) -> dict[str, Any]:
    result = run_operation(OPERATION, agent, options(**given))
    assert result.pop("changed") is False
    assert set(result) <= returned("qga_info")
    return result


def test_everything(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    server = scripted(
        ANSWERS,
        blocked={"guest-get-users": "Command guest-get-users has been disabled"},
    )
    server.answers["guest-get-vcpus"] = lambda arguments: _refuse("this guest has no such thing")
    result = run(connect(server), gather_subset=["all"])
    assert result["host_name"] == {"host_name": "vm1"}
    assert result["osinfo"] == {"id": "debian", "version_id": "12"}
    assert result["agent"]["version"] == "7.2.22"
    assert {"name": "guest-ping", "enabled": True, "success_response": True} in result["agent"]["supported_commands"]
    assert result["fsfreeze_status"] == "thawed"
    assert result["time"] == 1
    unavailable = result["unavailable"]
    assert set(result) | set(unavailable) == {*COMMANDS, "unavailable"} - {"devices"}
    assert "disabled by the guest's administrator" in unavailable["users"]
    assert "does not know the command" in unavailable["load"] and "10.0" in unavailable["load"]
    assert unavailable["vcpus"] == "this guest has no such thing"
    assert "guest-get-load" not in server.work, "what the agent does not have is not asked for"


@pytest.mark.parametrize("listed", [True, False], ids=["as disabled", "not listed"])
@pytest.mark.parametrize(("system", "lacks"), [("debian", "devices"), ("mswindows", "network_route")])
def test_subset_that_other_systems_have(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], system: str, lacks: str, listed: bool
) -> None:
    """Unless the subset is named, there is no word about a command that the guest's system cannot have."""
    blocked = {COMMANDS[lacks]: "Command has been disabled"} if listed else {}
    agent = connect(scripted({**ANSWERS, "guest-get-osinfo": {"id": system}}, blocked=blocked))
    assert lacks not in run(agent)["unavailable"]
    assert "only agents in" in run(agent, gather_subset=[lacks])["unavailable"][lacks]


def test_reasons_are_asked_for_once(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    server = scripted({**ANSWERS, "guest-get-osinfo": {"id": "debian"}})
    assert len(run(connect(server), gather_subset=["load", "disks", "vcpus", "devices"])["unavailable"]) == 4
    assert server.work == ["guest-info", "guest-fsfreeze-status", "guest-info", "guest-get-osinfo"]


def test_frozen_guest_tells_what_it_may(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    server = scripted({**ANSWERS, "guest-get-osinfo": {"id": "debian"}})
    server.freeze(600)
    result = run(connect(server))
    assert result["fsfreeze_status"] == "frozen"
    assert "blocked while the guest's filesystems are frozen" in result["unavailable"]["host_name"]


def test_default_leaves_out_what_is_long(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    answers = {**ANSWERS, "guest-get-memory-blocks": [], "guest-get-diskstats": []}
    result = run(connect(scripted(answers)))
    assert not set(NOT_BY_DEFAULT) & {*result, *result["unavailable"]}
    assert result["users"] and "load" in result["unavailable"]


def _refuse(text: str) -> Any:
    raise AgentError(text)


def test_what_is_not_asked_for_is_not_asked(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    server = scripted(ANSWERS)
    assert run(connect(server), gather_subset=["time"]) == {"time": 1, "unavailable": {}}
    assert server.work == ["guest-info", "guest-get-time"]


def open_only(*there: str) -> Callable[[Any], int]:
    def answer(arguments: Any) -> int:
        if arguments["path"] not in there:
            raise AgentError(f"failed to open file '{arguments['path']}' (mode: 'r'): No such file or directory")
        return 1000

    return answer


@pytest.mark.parametrize(
    ("users", "files", "told"),
    [
        ([], ("/proc/version",), True),
        ([], ("/proc/version", "/run/utmp"), False),
        ([], (), False),  # Windows, say
        (ANSWERS["guest-get-users"], ("/proc/version",), False),
    ],
)
def test_guest_that_keeps_no_list_of_logins(
    scripted: Callable[..., Scripted],
    connect: Callable[..., SocketAgent],
    users: list[Any],
    files: tuple[str, ...],
    told: bool,
) -> None:
    server = scripted({"guest-get-users": users, "guest-file-open": open_only(*files), "guest-file-close": {}})
    result = run(connect(server), gather_subset=["users"])
    assert len(result["users"]) == len(users)
    assert ("/run/utmp" in result["unavailable"].get("users", "")) is told


@pytest.mark.parametrize("blocked", ["guest-file-open", "guest-file-close"])
def test_guest_that_may_not_tell_whether_it_keeps_a_list(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], blocked: str
) -> None:
    server = scripted({"guest-get-users": []}, blocked={blocked: "Command has been disabled"})
    assert run(connect(server), gather_subset=["users"]) == {"users": [], "unavailable": {}}
    assert not any(command.startswith("guest-file") for command in server.work)


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI admin"


def test_authorized_keys(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    def keys(arguments: Any) -> Any:
        if arguments["username"] == "nobody":
            raise AgentError("failed to lookup user 'nobody': Success")
        return {"keys": ["root:$6$x:1:::::", KEY]}

    server = scripted({**ANSWERS, KEYS_COMMAND: keys})
    result = run(connect(server), gather_subset=["!all"], authorized_keys_of=["root", "nobody", "app"])
    assert result == {
        "authorized_keys": {"root": [HIDDEN, KEY], "app": [HIDDEN, KEY]},
        "unavailable": {"authorized_keys of nobody": "failed to lookup user 'nobody': Success"},
    }


def test_query_over_what_the_agent_says(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    server = scripted(ANSWERS)
    agent = connect(server)
    assert run(agent, query="osinfo.version_id") == {"result": "12"}
    assert server.work == ["guest-info", "guest-get-osinfo"]
    assert run(agent, query="load")["unavailable"].keys() == {"load"}, "it says why"


def test_query_that_is_wrong_is_said_before_anything_is_asked(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    server = scripted(ANSWERS)
    with pytest.raises(OperationError, match="query: "):
        run(connect(server), query="osinfo[")
    assert server.commands == []


def test_lost_reply_is_an_error_and_nothing_that_is_unavailable(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    server = scripted(ANSWERS)
    server.then("guest-get-time", swallows, swallows)
    with pytest.raises(OutcomeUnknownError):
        run(connect(server))
