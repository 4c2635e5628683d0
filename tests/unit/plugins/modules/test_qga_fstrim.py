# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_fstrim import OPERATION, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails, swallows

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]

ROOT = {"path": "/", "minimum": 0, "trimmed": 4096}
SRV = {"path": "/srv", "minimum": 512, "trimmed": 100}
EFI = {"path": "/boot/efi", "error": "trim not supported"}
BAD = {"path": "/small", "error": "failed to trim: Invalid argument"}


def run(agent: SocketAgent, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    params = {**{name: option.get("default") for name, option in OPERATION.spec.items()}, **given}
    result = run_operation(OPERATION, agent, params, check_mode=check_mode)
    assert result.pop("changed") is True
    assert set(result) <= returned("qga_fstrim")
    return result


def test_plan_always_changes() -> None:
    assert plan(None, {"minimum": 0}).changes
    assert plan(None, {"minimum": 0}).diff() == []


@pytest.mark.parametrize(
    ("paths", "trimmed", "warnings"),
    [
        ([], 0, []),
        ([ROOT, SRV], 4196, []),
        ([ROOT, EFI], 4096, []),
        ([ROOT, EFI, BAD], 4096, ["not trimmed: /small: failed to trim: Invalid argument"]),
    ],
)
def test_paths(scripted: Start, connect: Connect, paths: list[Any], trimmed: int, warnings: Any) -> None:
    agent = connect(scripted({"guest-fstrim": {"paths": paths}}))
    result = run(agent)
    assert (result["paths"], result["trimmed"]) == (paths, trimmed)
    assert result.get("warnings", []) == [f"{agent.name}: {warning}" for warning in warnings]


def test_minimum(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-fstrim": {"paths": [ROOT]}})
    agent = connect(server)
    run(agent, minimum=65536)
    assert server.requests[-1].arguments == {"minimum": 65536}
    run(agent)
    assert server.requests[-1].arguments == {"minimum": 0}
    with pytest.raises(OperationError, match="negative"):
        run(agent, minimum=-1)


def test_agent_that_tells_nothing(scripted: Start, connect: Connect) -> None:
    assert run(connect(scripted({"guest-fstrim": {}}))) == {"paths": [], "trimmed": None}


def test_check_mode(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-fstrim": {}})
    assert run(connect(server), check_mode=True) == {}
    assert server.work == ["guest-info"]


def test_nothing_trimmed(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-fstrim": {"paths": [EFI, BAD]}})
    with pytest.raises(OperationError, match="no filesystem was trimmed") as caught:
        run(connect(server))
    assert "/boot/efi: trim not supported (its disk needs discard=unmap on the host)" in str(caught.value)
    assert "/small: failed to trim: Invalid argument" in str(caught.value)
    assert caught.value.as_result() == {"paths": [EFI, BAD], "trimmed": 0}


@pytest.mark.parametrize("reply", [{"paths": 1}, {"paths": [1]}, {"paths": [{"path": "/", "trimmed": "much"}]}])
def test_reply_that_is_none(scripted: Start, connect: Connect, reply: Any) -> None:
    with pytest.raises(ProtocolError):
        run(connect(scripted({"guest-fstrim": reply})))


@pytest.mark.parametrize("check_mode", [False, True])
def test_blocked(scripted: Start, connect: Connect, check_mode: bool) -> None:
    server = scripted(blocked={"guest-fstrim": "Command guest-fstrim has been disabled"})
    with pytest.raises(CommandUnavailable, match="guest-fstrim was not run: disabled"):
        run(connect(server), check_mode=check_mode)
    assert "guest-fstrim" not in server.work


def test_trouble(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-fstrim": {}})
    server.then("guest-fstrim", fails("failed to open /proc/self/mounts"), swallows)
    agent = connect(server)
    with pytest.raises(CommandError, match="failed to open"):
        run(agent)
    with pytest.raises(OutcomeUnknownError, match="no reply within 7 s"):
        run(agent, timeout=7)
