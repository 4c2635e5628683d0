# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    OperationError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.hotplug import Unit
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_memory_blocks import OPERATION, Current, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails, returns

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]

SIZE = {"size": 134217728}


class Memory:
    """What an agent answers whose guest has memory blocks, some of them in use."""

    def __init__(self, *online: bool, in_use: tuple[int, ...] = ()) -> None:
        self.online = dict(enumerate(online))
        self.in_use = in_use

    def answers(self) -> dict[str, Any]:
        return {
            "guest-get-memory-blocks": self.get,
            "guest-set-memory-blocks": self.set,
            "guest-get-memory-block-info": SIZE,
        }

    def get(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {"phys-index": number, "online": online, "can-offline": True}
            for number, online in reversed(self.online.items())
        ]

    def set(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [self._set(block["phys-index"], block["online"]) for block in arguments["mem-blks"]]

    def _set(self, number: int, online: bool) -> dict[str, Any]:
        if number in self.in_use:
            return {"phys-index": number, "response": "operation-failed", "error-code": 16}
        self.online[number] = online
        return {"phys-index": number, "response": "success"}


def asked(server: Scripted) -> list[tuple[int, bool]]:
    requests = [request.arguments for request in server.requests if request.command == "guest-set-memory-blocks"]
    return [(block["phys-index"], block["online"]) for arguments in requests for block in arguments["mem-blks"]]


def run(agent: SocketAgent, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    params = {"online": None, "offline": None, "count": None, **given}
    result = run_operation(OPERATION, agent, params, check_mode=check_mode, diff=True)
    assert set(result) - {"changed", "diff"} <= returned("qga_memory_blocks")
    return result


def test_plan() -> None:
    current = Current([Unit(0, True, True), Unit(1, True, True)], SIZE)
    by_list = plan(current, {"online": None, "offline": [1], "count": None})
    assert (by_list.before, by_list.after) == (
        {"online": [0, 1], "offline": []},
        {"online": [0], "offline": [1]},
    )
    by_count = plan(current, {"online": None, "offline": None, "count": 1})
    assert (by_count.before, by_count.after) == ({"count": 2}, {"count": 1})
    assert not plan(current, {"online": None, "offline": None, "count": 2}).changes


def test_offline_and_again(scripted: Start, connect: Connect) -> None:
    server = scripted(Memory(True, True, True).answers())
    agent = connect(server)
    checked = run(agent, check_mode=True, offline=[1, 2])
    assert asked(server) == []
    result = run(agent, offline=[1, 2])
    assert asked(server) == [(1, False), (2, False)]
    assert result.pop("responses") == [
        {"phys_index": 1, "response": "success"},
        {"phys_index": 2, "response": "success"},
    ]
    assert result == checked
    assert result["changed"] is True
    assert result["memory_block_info"] == SIZE
    assert result["before"] == {"online": [0, 1, 2], "offline": []}
    assert result["after"] == {"online": [0], "offline": [1, 2]}
    assert result["memory_blocks"][1] == {"phys_index": 1, "online": False, "can_offline": True}
    again = run(agent, offline=[1, 2])
    assert again["changed"] is False
    assert len(asked(server)) == 2


def test_count_tries_the_next(scripted: Start, connect: Connect) -> None:
    server = scripted(Memory(True, True, True, True, in_use=(0, 2, 3)).answers())
    agent = connect(server)
    result = run(agent, count=3)
    assert asked(server) == [(3, False), (2, False), (1, False)]
    assert result["changed"] is True
    assert result["after"] == {"online": [0, 2, 3], "offline": [1]}
    assert [response["response"] for response in result["responses"]] == [*["operation-failed"] * 2, "success"]
    assert run(agent, count=3)["changed"] is False
    assert run(agent, count=4)["after"]["offline"] == []


def test_count_that_cannot_be_reached(scripted: Start, connect: Connect) -> None:
    server = scripted(Memory(True, True, True, in_use=(0, 2)).answers())
    with pytest.raises(OperationError) as caught:
        run(connect(server), count=1)
    assert asked(server) == [(2, False), (1, False), (0, False)]
    assert (
        "could not take these memory blocks: 2 offline: operation-failed (errno 16, Device or resource busy); "
        "0 offline: operation-failed (errno 16, Device or resource busy). Switched: 1."
    ) in str(caught.value)
    result = caught.value.as_result()
    assert result["changed"] is True
    assert result["after"] == {"online": [0, 2], "offline": [1]}
    assert len(result["responses"]) == 3


def test_a_block_that_fails_does_not_keep_the_others(scripted: Start, connect: Connect) -> None:
    server = scripted(Memory(True, True, True, False, in_use=(1,)).answers())
    with pytest.raises(OperationError, match=r"1 offline: operation-failed.*Switched: 2-3\.") as caught:
        run(connect(server), online=[3], offline=[1, 2])
    assert asked(server) == [(3, True), (1, False), (2, False)]
    assert caught.value.as_result()["after"] == {"online": [0, 1, 3], "offline": [2]}


def test_nothing_could_be_done(scripted: Start, connect: Connect) -> None:
    server = scripted(Memory(True, True, in_use=(1,)).answers())
    with pytest.raises(OperationError, match="Switched: none") as caught:
        run(connect(server), offline=[1])
    assert caught.value.as_result()["changed"] is False


def test_kernel_without_blocks(scripted: Start, connect: Connect) -> None:
    with pytest.raises(OperationError, match=r"kernel has no memory blocks.*CONFIG_MEMORY_HOTPLUG"):
        run(connect(scripted({"guest-get-memory-blocks": []})), count=1)


def test_agent_that_calls_that_an_error(scripted: Start, connect: Connect) -> None:
    server = scripted(Memory(True).answers())
    server.then("guest-get-memory-blocks", fails("guest reported zero memory blocks!"))
    with pytest.raises(OperationError, match="kernel has no memory blocks"):
        run(connect(server), count=1)


def test_agent_that_cannot_list_them(scripted: Start, connect: Connect) -> None:
    server = scripted(Memory(True).answers())
    server.then("guest-get-memory-blocks", fails("this feature or command is not currently supported"))
    with pytest.raises(CommandError, match="guest-get-memory-blocks failed: this feature"):
        run(connect(server), count=1)


def test_agent_that_only_says_so(scripted: Start, connect: Connect) -> None:
    server = scripted(Memory(True, True).answers())
    server.then("guest-set-memory-blocks", returns([{"phys-index": 1, "response": "success"}]))
    with pytest.raises(OperationError, match="says that it switched memory block 1"):
        run(connect(server), offline=[1])


@pytest.mark.parametrize(
    "responses",
    [[], [{"phys-index": 7, "response": "success"}], [{"phys-index": 1}], [1], [{"phys-index": 1, "response": 0}] * 2],
)
def test_responses_that_the_schema_does_not_have(scripted: Start, connect: Connect, responses: Any) -> None:
    server = scripted(Memory(True, True).answers())
    server.then("guest-set-memory-blocks", returns(responses))
    with pytest.raises(ProtocolError):
        run(connect(server), offline=[1])
