# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    CommandUnavailable,
    ConnectError,
    OutcomeUnknownError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_ping import OPERATION, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted, closes, sends, swallows

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]


def run(agent: Any, **given: Any) -> dict[str, Any]:
    params = {**{name: option.get("default") for name, option in OPERATION.spec.items()}, **given}
    result = run_operation(OPERATION, agent, params)
    assert result.pop("changed") is False
    assert set(result) <= returned("qga_ping")
    return result


def test_plan_changes_nothing() -> None:
    assert not plan({"ping": "pong"}, {}).changes
    assert plan({"ping": "pong"}, {}).result == {"ping": "pong"}


def test_ping(scripted: Start, connect: Connect) -> None:
    assert run(connect(scripted())) == {"ping": "pong", "version": "7.2.22", "elapsed": 0}


def test_no_agent(tmp_path: Path, clock: Clock) -> None:
    started = clock.now
    with open_agent(str(tmp_path / "agent.sock")) as agent, pytest.raises(ConnectError, match="no such socket"):
        run(agent)
    assert clock.now == started, "asked once"


def test_silent_agent(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-sync-delimited", swallows)
    with pytest.raises(AgentSilentError, match="20 s"):
        run(connect(server))


def test_wait_until_the_guest_is_there(tmp_path: Path, clock: Clock) -> None:
    """No socket, then nobody who serves it, then a channel that breaks, then an agent."""
    path = tmp_path / "agent.sock"
    with ExitStack() as stack:

        def boots() -> None:
            if clock.now >= 1010 and not path.exists():
                path.touch()
            if clock.now >= 1020 and not path.is_socket():
                path.unlink()
                server = stack.enter_context(Scripted(path, clock=clock))
                server.then("guest-sync-delimited", closes())
                server.then("guest-ping", closes(), closes())

        clock.on_sleep = boots
        with open_agent(str(path)) as agent:
            result = run(agent, wait=300)
    assert 20 <= result["elapsed"] < 25
    assert result["ping"] == "pong"


@pytest.mark.parametrize("wait", [1, 2.5, 60])
def test_wait_ends(tmp_path: Path, clock: Clock, wait: float) -> None:
    started = clock.now
    with open_agent(str(tmp_path / "agent.sock")) as agent, pytest.raises(ConnectError, match="no such socket"):
        run(agent, wait=wait)
    assert clock.now - started == pytest.approx(wait)


@pytest.mark.parametrize(("wait", "patience"), [(0, 20), (300, 20), (7, 7), (0.25, 1)])
def test_one_attempt_does_not_exceed_the_wait(scripted: Start, connect: Connect, wait: float, patience: float) -> None:
    server = scripted()
    server.then("guest-sync-delimited", swallows)
    with pytest.raises(AgentSilentError, match=f"within {patience:g} s"):
        run(connect(server), wait=wait)


def test_attempts_go_on_after_a_lost_reply(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-ping", closes(), closes(), closes(), closes())
    assert run(connect(server), wait=60)["ping"] == "pong"


def test_no_wait_for_an_agent_that_talks_nonsense(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-ping", sends(b"nonsense\n"))
    with pytest.raises(ProtocolError):
        run(connect(server), wait=60)


def test_lost_reply_without_wait(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-ping", swallows, swallows)
    with pytest.raises((OutcomeUnknownError, AgentSilentError)):
        run(connect(server))


def test_commands_that_are_there(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-exec": {}})
    run(connect(server), commands=["guest-exec", "guest-ping"])
    assert "guest-exec" not in server.work, "it is not tried"


def test_command_that_is_not(scripted: Start, connect: Connect, clock: Clock) -> None:
    server = scripted(blocked={"guest-exec": "Command guest-exec has been disabled"})
    started = clock.now
    with pytest.raises(CommandUnavailable, match="guest-exec"):
        run(connect(server), wait=60, commands=["guest-ping", "guest-exec"])
    assert clock.now == started, "that will not change"


def test_agent_that_may_not_tell_its_version(scripted: Start, connect: Connect) -> None:
    assert run(connect(scripted(blocked={"guest-info": "Command guest-info has been disabled"})))["version"] == ""
