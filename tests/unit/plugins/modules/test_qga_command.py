# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import schema
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandError, CommandUnavailable
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_command import OPERATION, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails, swallows

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]


def run(agent: SocketAgent, command: str, check_mode: bool = False, **arguments: Any) -> dict[str, Any]:
    params = {"command": command, "arguments": arguments}
    result = run_operation(OPERATION, agent, params, check_mode=check_mode)
    assert set(result) - {"changed"} <= returned("qga_command")
    return result


@pytest.mark.parametrize("command", [*schema.COMMANDS, "guest-nobody-knows"])
def test_plan(command: str) -> None:
    """Only what is known to change nothing is no change."""
    current = {"return": 1} if schema.is_read_only(command) else {}
    planned = plan(current, {"command": command, "arguments": {}})
    assert planned.changes is not schema.is_read_only(command)
    assert planned.result == current


@pytest.mark.parametrize("check_mode", [True, False])
def test_command_that_reads(scripted: Start, connect: Connect, check_mode: bool) -> None:
    server = scripted({"guest-get-host-name": {"host-name": "vm1"}})
    result = run(connect(server), "guest-get-host-name", check_mode)
    assert result == {"changed": False, "return": {"host_name": "vm1"}}
    assert server.work == ["guest-get-host-name"]


def test_command_that_changes(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-fstrim": {"paths": [{"path": "/", "trimmed-bytes": 5}]}})
    result = run(connect(server), "guest-fstrim", minimum=4096)
    assert result == {"changed": True, "return": {"paths": [{"path": "/", "trimmed_bytes": 5}]}}
    assert server.requests[-1].arguments == {"minimum": 4096}


def test_check_mode_runs_nothing_that_changes(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-fstrim": {}})
    assert run(connect(server), "guest-fstrim", check_mode=True) == {"changed": True}
    assert server.commands == []


def test_command_without_answer(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-shutdown", swallows)
    assert run(connect(server), "guest-shutdown", mode="reboot") == {"changed": True, "return": None}


def test_command_that_nobody_knows(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-later": True})
    assert run(connect(server), "guest-later") == {"changed": True, "return": True}
    with pytest.raises(CommandUnavailable, match="does not know"):
        run(connect(scripted(path=server.path.with_suffix(".2"))), "guest-later")


def test_arguments_are_checked_by_the_agent_alone(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-fstrim": {}})
    server.then("guest-fstrim", fails("Parameter 'foo' is unexpected"))
    with pytest.raises(CommandError, match="Parameter 'foo' is unexpected"):
        run(connect(server), "guest-fstrim", foo=1)


def test_arguments_are_not_logged() -> None:
    assert tuple(OPERATION.quiet) == ("arguments",)
