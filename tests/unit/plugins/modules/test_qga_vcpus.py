# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OperationError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.hotplug import Unit
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_vcpus import OPERATION, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Scripted, fails, returns

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]


class Processors:
    """What an agent answers whose guest has processors; it stops at those that are ``stubborn``."""

    def __init__(self, *online: bool, stubborn: tuple[int, ...] = ()) -> None:
        self.online = dict(enumerate(online))
        self.stubborn = stubborn

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {"guest-get-vcpus": self.get, "guest-set-vcpus": self.set}

    def get(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {"logical-id": number, "online": online, "can-offline": number != 0}
            for number, online in reversed(self.online.items())
        ]

    def set(self, arguments: Mapping[str, Any]) -> int:
        for done, node in enumerate(arguments["vcpus"]):
            if node["logical-id"] in self.stubborn:
                if done:
                    return done
                raise AgentError(f"write: processor {node['logical-id']} is busy")
            self.online[node["logical-id"]] = node["online"]
        return len(arguments["vcpus"])


def asked(server: Scripted) -> list[list[tuple[int, bool]]]:
    """Return what each request asked to switch."""
    requests = [request.arguments for request in server.requests if request.command == "guest-set-vcpus"]
    return [[(node["logical-id"], node["online"]) for node in arguments["vcpus"]] for arguments in requests]


def run(agent: SocketAgent, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    params = {"online": None, "offline": None, "count": None, **given}
    result = run_operation(OPERATION, agent, params, check_mode=check_mode, diff=True)
    assert set(result) - {"changed", "diff"} <= returned("qga_vcpus")
    return result


def test_plan() -> None:
    current = [Unit(0, True, False), Unit(1, True, True)]
    planned = plan(current, {"online": None, "offline": [1], "count": None})
    assert planned.before == {"online": [0, 1], "offline": []}
    assert planned.after == {"online": [0], "offline": [1]}
    assert not plan(current, {"online": None, "offline": None, "count": 2}).changes


def test_offline_and_again(scripted: Start, connect: Connect) -> None:
    server = scripted(Processors(True, True, True).answers())
    agent = connect(server)
    checked = run(agent, check_mode=True, offline=[2])
    assert asked(server) == []
    result = run(agent, offline=[2])
    assert asked(server) == [[(2, False)]]
    assert result.pop("processed") == [2]
    assert result == checked
    assert result["changed"] is True
    assert result["before"] == {"online": [0, 1, 2], "offline": []}
    assert result["after"] == {"online": [0, 1], "offline": [2]}
    assert result["vcpus"][2] == {"logical_id": 2, "online": False, "can_offline": True}
    assert result["diff"][0]["before"] == result["before"]
    assert result["diff"][0]["after"] == result["after"]
    again = run(agent, offline=[2])
    assert again["changed"] is False
    assert again["after"] == result["after"]
    assert "diff" not in again
    assert len(asked(server)) == 1


def test_count(scripted: Start, connect: Connect) -> None:
    server = scripted(Processors(True, True, False, True).answers())
    agent = connect(server)
    assert run(agent, count=1)["after"]["online"] == [0]
    assert run(agent, count=3)["after"]["online"] == [0, 1, 2]
    assert asked(server) == [[(3, False), (1, False)], [(1, True), (2, True)]]


def test_the_rest_is_asked_for_again_to_learn_the_error(scripted: Start, connect: Connect) -> None:
    server = scripted(Processors(True, True, False, True, stubborn=(3,)).answers())
    with pytest.raises(OperationError) as caught:
        run(connect(server), online=[2], offline=[3, 1])
    assert asked(server) == [[(2, True), (3, False), (1, False)], [(3, False), (1, False)]]
    assert caught.value.message == (
        "Processor 3 could not be taken offline: write: processor 3 is busy. Switched before that: 2; not tried: 1."
    )
    result = caught.value.as_result()
    assert result["changed"] is True
    assert result["processed"] == [2]
    assert result["not_processed"] == [3, 1]
    assert result["before"] == {"online": [0, 1, 3], "offline": [2]}
    assert result["after"] == {"online": [0, 1, 2, 3], "offline": []}
    assert result["error"] == {"type": "CommandError", "command": "guest-set-vcpus", "executed": "yes"}


def test_an_error_that_does_not_persist(scripted: Start, connect: Connect) -> None:
    processors = Processors(True, True, True, stubborn=(2,))
    server = scripted(processors.answers())

    def relents(session: Any, request: Any) -> None:
        returns(processors.set(request.arguments))(session, request)
        processors.stubborn = ()

    server.then("guest-set-vcpus", relents)
    result = run(connect(server), offline=[1, 2])
    assert asked(server) == [[(1, False), (2, False)], [(2, False)]]
    assert result["processed"] == [1, 2]
    assert result["after"]["offline"] == [1, 2]


def test_an_error_at_once_changes_nothing(scripted: Start, connect: Connect) -> None:
    server = scripted(Processors(True, True, stubborn=(1,)).answers())
    with pytest.raises(OperationError, match="Switched before that: none; not tried: none") as caught:
        run(connect(server), count=1)
    assert len(asked(server)) == 1
    assert caught.value.as_result()["changed"] is False


@pytest.mark.parametrize("count", [0, -1, 2])
def test_a_count_that_the_schema_does_not_have(scripted: Start, connect: Connect, count: int) -> None:
    server = scripted(Processors(True, True).answers())
    server.then("guest-set-vcpus", returns(count))
    with pytest.raises(ProtocolError, match=f"did {count} of 1 processors"):
        run(connect(server), offline=[1])


def test_an_agent_that_only_says_so(scripted: Start, connect: Connect) -> None:
    server = scripted(Processors(True, True).answers())
    server.then("guest-set-vcpus", returns(1))
    with pytest.raises(OperationError, match="says that it switched processor 1, and the guest says that it did not"):
        run(connect(server), offline=[1])


def test_a_processor_that_cannot_go_offline_is_not_asked_to(scripted: Start, connect: Connect) -> None:
    server = scripted(Processors(True, True).answers())
    with pytest.raises(OperationError, match="cannot take processor 0 offline"):
        run(connect(server), offline=[1, 0])
    assert asked(server) == []


def test_an_agent_that_may_not(scripted: Start, connect: Connect) -> None:
    answers = Processors(True, True).answers()
    del answers["guest-set-vcpus"]
    server = scripted(answers, blocked={"guest-set-vcpus": "Command guest-set-vcpus has been disabled"})
    agent = connect(server)
    assert run(agent, count=2)["changed"] is False
    with pytest.raises(CommandUnavailable, match="guest-set-vcpus was not run: disabled"):
        run(agent, count=1)


def test_an_agent_that_no_longer_may(scripted: Start, connect: Connect) -> None:
    server = scripted(Processors(True, True, True).answers())
    server.then("guest-set-vcpus", returns(1), fails("Command guest-set-vcpus has been disabled", "CommandNotFound"))
    with pytest.raises(OperationError) as caught:
        run(connect(server), offline=[1, 2])
    assert caught.value.as_result()["error"]["type"] == "CommandUnavailable"
