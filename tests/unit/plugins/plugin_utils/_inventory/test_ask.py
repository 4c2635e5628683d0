# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking agents: which state they are in, and what becomes of what they say."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.ask import GATHER, ask_all
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import ANSWERS, NO_AGENT, OFF, SILENT, Guest
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Scripted

INTERFACES = [
    {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8}]},
    {
        "name": "eth0",
        "hardware-address": "52:54:00:12:34:56",
        "ip-addresses": [{"ip-address": "192.0.2.10"}, {"ip-address": "fe80::1%eth0"}, {"ip-address": "2001:db8::1"}],
    },
    {"name": "tun0"},
]
ANSWER: dict[str, Any] = {
    "guest-get-osinfo": {"id": "debian", "pretty-name": "Debian"},
    "guest-get-host-name": {"host-name": "web"},
    "guest-network-get-interfaces": INTERFACES,
    "guest-get-timezone": {"zone": "UTC", "offset": 0},
    "guest-get-users": [{"user": "root", "login-time": 1.5}],
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def agent(stack: ExitStack, path: Path, **answers: Any) -> Scripted:
    scripted = Scripted(path, {**ANSWER, **{name.replace("_", "-"): value for name, value in answers.items()}})
    return stack.enter_context(scripted)


def asked(path: Path, *gather: str, timeout: float = 5.0, **more: Any) -> Guest:
    guest = Guest("localhost", "sockets", address=str(path), **more)
    ask_all([guest], gather, timeout, {})
    return guest


def test_answers(stack: ExitStack, tmp_path: Path) -> None:
    scripted = agent(stack, tmp_path / "a")
    guest = asked(tmp_path / "a")
    assert (guest.state, guest.reason, guest.facts) == (ANSWERS, "", {})
    assert scripted.work == ["guest-ping"]


def test_gather(stack: ExitStack, tmp_path: Path) -> None:
    scripted = agent(stack, tmp_path / "a")
    guest = asked(tmp_path / "a", "agent", "osinfo", "hostname", "addresses", "interfaces", "timezone", "users")
    facts = guest.facts
    assert facts["agent"]["version"] == "7.2.22" and "guest-ping" in facts["agent"]["commands"]
    assert facts["agent"]["disabled"] == []
    assert facts["osinfo"] == {"id": "debian", "pretty_name": "Debian"}
    assert (facts["hostname"], facts["addresses"]) == ("web", ["192.0.2.10", "2001:db8::1"])
    assert [interface["name"] for interface in facts["interfaces"]] == ["lo", "eth0", "tun0"]
    assert (facts["timezone"], facts["users"][0]["user"]) == ({"zone": "UTC", "offset": 0}, "root")
    assert scripted.work.count("guest-network-get-interfaces") == 1, "what two facts need is asked once"


def test_what_the_agent_refuses_is_left_out(stack: ExitStack, tmp_path: Path) -> None:
    scripted = stack.enter_context(Scripted(tmp_path / "a", ANSWER, blocked={"guest-get-osinfo": "has been disabled"}))
    guest = asked(tmp_path / "a", "osinfo", "vcpus", "hostname")
    assert (guest.state, guest.facts, guest.reason) == (ANSWERS, {"hostname": "web"}, "")
    assert "guest-ping" in scripted.work


def test_an_agent_that_refuses_a_ping_answers(stack: ExitStack, tmp_path: Path) -> None:
    def no(arguments: Any) -> Any:
        raise AgentError("no")

    agent(stack, tmp_path / "a", guest_ping=no)
    assert asked(tmp_path / "a").state == ANSWERS


@pytest.mark.parametrize(
    "answer", [5, "x", None, [], {"host-name": {"a": 1}}, {"host-name": "x" * 100000}, {"host-name": ["\x1b"] * 9}]
)
def test_wrong_answers_stop_nobody(answer: Any, stack: ExitStack, tmp_path: Path) -> None:
    agent(stack, tmp_path / "a", guest_get_host_name=answer, guest_network_get_interfaces=[1, {"ip-addresses": 5}])
    guest = asked(tmp_path / "a", "hostname", "interfaces", "osinfo")
    assert guest.state == ANSWERS
    assert guest.facts["osinfo"]["id"] == "debian" and len(str(guest.facts)) < 10000
    assert "\x1b" not in str(guest.facts)


@pytest.mark.parametrize(
    "interfaces", [[5], [{"ip-addresses": 5}], [{"ip-addresses": [5, {"ip-address": -5}, {"ip-address": "x"}]}]]
)
def test_addresses_that_are_none(interfaces: Any, stack: ExitStack, tmp_path: Path) -> None:
    agent(stack, tmp_path / "a", guest_network_get_interfaces=interfaces)
    guest = asked(tmp_path / "a", "addresses")
    assert guest.state == ANSWERS and guest.facts.get("addresses", []) == []


def test_address_with_a_scope(stack: ExitStack, tmp_path: Path) -> None:
    entries = [{"ip-address": text} for text in ("2001:db8::1%\n{{ 5 }}", "192.0.2.1%\x1b[2J")]
    agent(stack, tmp_path / "a", guest_network_get_interfaces=[{"name": "e", "ip-addresses": entries}])
    assert asked(tmp_path / "a", "addresses").facts == {"addresses": ["2001:db8::1", "192.0.2.1"]}


@pytest.mark.parametrize("fact", GATHER)
def test_every_fact_survives_nonsense(fact: str, stack: ExitStack, tmp_path: Path) -> None:
    for number, value in enumerate(({}, [], [{}], [[[]]], {"supported-commands": 5})):
        agent(stack, tmp_path / str(number), **{GATHER[fact][0].replace("-", "_"): value})
        assert asked(tmp_path / str(number), fact).state == ANSWERS


def test_silence_ends_with_the_deadline(stack: ExitStack, tmp_path: Path) -> None:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "a"))
    listener.listen(8)
    started = time.monotonic()
    guest = asked(tmp_path / "a", "osinfo", timeout=0.5)
    assert guest.state == SILENT and "within 0.5 s" in guest.reason
    assert time.monotonic() - started < 5


def test_silence_of_one_delays_no_other(stack: ExitStack, tmp_path: Path) -> None:
    guests = []
    for number in range(20):
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / str(number)))
        listener.listen(8)
        guests.append(Guest("localhost", "sockets", address=str(tmp_path / str(number))))
    agent(stack, tmp_path / "a")
    guests.append(Guest("localhost", "sockets", address=str(tmp_path / "a")))
    started = time.monotonic()
    ask_all(guests, [], 1.0, {})
    assert time.monotonic() - started < 15, "one after the other, they take 20 seconds"
    assert [guest.state for guest in guests] == [SILENT] * 20 + [ANSWERS]


def test_few_open_files_are_enough(stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (64, 64))
    agent(stack, tmp_path / "a")
    assert asked(tmp_path / "a").state == ANSWERS


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_nobody_listens(tmp_path: Path) -> None:
    dead_socket(tmp_path / "a")
    assert asked(tmp_path / "a").state == OFF
    assert asked(tmp_path / "none").state == OFF
    running = asked(tmp_path / "a", pid="7")
    assert running.state == SILENT and "nothing listens" in running.reason


def test_path_that_is_too_long(tmp_path: Path) -> None:
    guest = asked(tmp_path / ("x" * 150))
    assert guest.state == SILENT and "too long" in guest.reason


def test_states_that_are_known_are_not_asked_for() -> None:
    guests = [Guest("localhost", "x", address="/nonexistent", state=state) for state in (OFF, NO_AGENT, SILENT)]
    guests.append(Guest("localhost", "x", state=NO_AGENT))
    ask_all(guests, [], 5, {})
    assert [guest.state for guest in guests] == [OFF, NO_AGENT, SILENT, NO_AGENT]


def test_address_that_is_none() -> None:
    guest = Guest("localhost", "process", address="nonsense:1", pid="7")
    ask_all([guest], [], 5, {})
    assert guest.state == SILENT and "is not the address of a guest agent" in guest.reason


def test_by_way_of_a_hypervisor(stack: ExitStack, tmp_path: Path) -> None:
    agent(stack, tmp_path / "a")
    seen = []

    class There(Hypervisor):
        def connect(self, path: str, deadline: Deadline) -> socket.socket:
            seen.append(path)
            if path != "/there/a.qga":
                raise ConnectError("no such socket there")
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(tmp_path / "a"))
            return sock

    paths = ("/there/a.qga", "/there/dead.qga", "/there/forbidden.qga")
    guests = [Guest("hv1", "sockets", True, address=path, listens="dead" not in path) for path in paths]
    ask_all(guests, ["hostname"], 5, {"hv1": There("hv1", {}, is_host=True)})
    assert [guest.state for guest in guests] == [ANSWERS, OFF, SILENT]
    assert guests[0].facts == {"hostname": "web"} and guests[2].reason.startswith("no such socket there")
    assert "/there/a.qga" in seen
