# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils import _exec
from ansible_collections.qemu.guest.plugins.module_utils._agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._errors import (
    CommandError,
    CommandUnavailable,
    OutcomeUnknownError,
    ProtocolError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._exec import (
    CAPTURE_LIMIT,
    ExecResult,
    can_run_programs,
    finish,
    start,
    wait,
)
from ansible_collections.qemu.guest.tests.unit.scripted import (
    AgentError,
    Clock,
    Scripted,
    Step,
    closes,
    fails,
    in_turn,
    returns,
    swallows,
)

EXEC, STATUS = "guest-exec", "guest-exec-status"
RUNS = {"exited": False}
ENDS = {"exited": True, "exitcode": 0}


@pytest.fixture
def server(scripted: Callable[..., Scripted]) -> Scripted:
    return scripted({EXEC: {"pid": 7}, STATUS: ENDS})


@pytest.fixture
def agent(server: Scripted, connect: Callable[..., SocketAgent]) -> SocketAgent:
    return connect(server)


# Start


def test_start(agent: SocketAgent, server: Scripted) -> None:
    assert start(agent, "/bin/ls", ["-l", "/ü"], env=["A=1"], stdin=b"\x00\xff\n") == 7
    (request,) = (request for request in server.requests if request.command == EXEC)
    assert request.arguments == {
        "path": "/bin/ls",
        "arg": ["-l", "/ü"],
        "capture-output": True,
        "env": ["A=1"],
        "input-data": base64.b64encode(b"\x00\xff\n").decode(),
    }


def test_start_with_the_agents_own_environment(agent: SocketAgent, server: Scripted) -> None:
    start(agent, "/bin/ls")
    assert server.requests[-1].arguments == {"path": "/bin/ls", "arg": [], "capture-output": True}


def test_start_with_an_empty_environment(agent: SocketAgent, server: Scripted) -> None:
    start(agent, "/bin/ls", env=[])
    assert server.requests[-1].arguments["env"] == []


@pytest.mark.parametrize("reply", [{}, {"pid": "7"}, {"pid": True}, {"pid": None}])
def test_start_without_a_pid(agent: SocketAgent, server: Scripted, reply: Any) -> None:
    server.answers[EXEC] = reply
    with pytest.raises(ProtocolError, match="pid"):
        start(agent, "/bin/ls")


@pytest.mark.parametrize(
    "text",
    [
        "Guest agent command failed, error was 'Failed to execute child process "
        "\u201c/x\u201d (No such file or directory)'",
        "Failed to execute child process \u201c/x\u201d (No such file or directory)",
        "Failed to execute child process \u201c/x\u201d (Permission denied)",
        "Failed to execute child process \u201c/x\u201d (Argument list too long)",
    ],
)
def test_program_that_cannot_be_started(agent: SocketAgent, server: Scripted, text: str) -> None:
    server.then(EXEC, fails(text))
    with pytest.raises(CommandError) as caught:
        start(agent, "/x")
    assert caught.value.__class__ is CommandError
    assert text in str(caught.value)


@pytest.mark.parametrize("lost", [swallows, closes()])
def test_program_that_may_have_been_started(agent: SocketAgent, server: Scripted, lost: Step) -> None:
    server.then(EXEC, lost)
    with pytest.raises(OutcomeUnknownError):
        start(agent, "/bin/ls")
    assert server.work == [EXEC]


def test_more_input_than_a_request_can_carry(agent: SocketAgent, server: Scripted) -> None:
    with pytest.raises(TransferError) as caught:
        start(agent, "/bin/cat", stdin=bytes(51_000_000))
    assert caught.value.executed == "no"
    assert server.commands == []


@pytest.mark.parametrize(
    ("known", "size", "seconds"), [(True, 3_000_000, 23), (False, 160_000, 60), (False, 10**7, 80)]
)
def test_large_input_has_more_time(
    agent: SocketAgent, server: Scripted, known: bool, size: int, seconds: int
) -> None:
    """As long as nothing is known of the way there, that may be a serial port."""
    if known:
        agent.execute("guest-ping")
    server.then(EXEC, swallows)
    with pytest.raises(OutcomeUnknownError, match=f"within {seconds} s"):
        start(agent, "/bin/cat", stdin=bytes(size))


@pytest.mark.parametrize("blocked", [(), (EXEC,), (STATUS,)])
def test_can_run_programs(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], blocked: tuple[str, ...]
) -> None:
    server = scripted({EXEC: {}, STATUS: {}}, blocked={name: f"Command {name} has been disabled" for name in blocked})
    assert can_run_programs(connect(server)) is not bool(blocked)


# Wait


def test_wait_until_it_has_ended(agent: SocketAgent, server: Scripted, clock: Clock) -> None:
    server.answers[STATUS] = in_turn([RUNS] * 30 + [ENDS])
    result = wait(agent, 7, 60)
    assert result == ExecResult(0, None)
    assert [request.arguments for request in server.requests if request.command == STATUS] == [{"pid": 7}] * 31


def test_pauses_between_looks(agent: SocketAgent, server: Scripted, clock: Clock) -> None:
    """At first at once, later seldom."""
    server.answers[STATUS] = in_turn([RUNS] * 40 + [ENDS])
    times: list[float] = []
    clock.on_sleep = lambda: times.append(clock.now)
    wait(agent, 7, 60)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] < 0.01
    assert all(0 < earlier <= later + 1e-9 for earlier, later in itertools.pairwise(pauses))
    assert max(pauses) == pytest.approx(0.25)


def test_wait_no_longer_than_asked_for(agent: SocketAgent, server: Scripted, clock: Clock) -> None:
    server.answers[STATUS] = RUNS
    started = clock.now
    assert wait(agent, 7, 5) is None
    assert clock.now - started == pytest.approx(5)


def test_end_at_the_last_moment_is_seen(agent: SocketAgent, server: Scripted, clock: Clock) -> None:
    started = clock.now
    server.answers[STATUS] = lambda arguments: ENDS if clock.now - started >= 5 else RUNS
    assert wait(agent, 7, 5) == ExecResult(0, None)


def test_one_look_with_no_time_to_wait(agent: SocketAgent, server: Scripted) -> None:
    assert wait(agent, 7, 0) == ExecResult(0, None)
    server.answers[STATUS] = RUNS
    assert wait(agent, 7, 0) is None


def test_finish_takes_any_time(agent: SocketAgent, server: Scripted, clock: Clock) -> None:
    server.answers[STATUS] = in_turn([RUNS] * 100 + [ENDS])
    clock.on_sleep = lambda: clock.advance(10 * 3600)
    assert finish(agent, 7) == ExecResult(0, None)


@pytest.mark.parametrize("lost", [swallows, closes()])
def test_end_is_told_once(agent: SocketAgent, server: Scripted, lost: Step) -> None:
    """A lost answer may have been the one that told it: to ask again is to be told of no such pid."""
    server.then(STATUS, returns(RUNS), lost)
    with pytest.raises(OutcomeUnknownError) as caught:
        wait(agent, 7, 60)
    assert caught.value.executed == "unknown"
    assert server.work == [STATUS] * 2


@pytest.mark.parametrize("text", ["Invalid parameter 'pid'", "PID ld does not exist", "PID 7 does not exist"])
def test_agent_restarted_meanwhile(agent: SocketAgent, server: Scripted, text: str) -> None:
    server.answers[STATUS] = in_turn([RUNS, AgentError(text)])
    with pytest.raises(OutcomeUnknownError, match="restarted") as caught:
        wait(agent, 7, 60)
    assert caught.value.command == EXEC
    assert caught.value.address == f"unix:{server.path}"
    assert "pid 7" in str(caught.value)


def test_status_blocked_meanwhile(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    server = scripted(blocked={STATUS: f"Command {STATUS} has been disabled"})
    with pytest.raises(CommandUnavailable):
        wait(connect(server), 7, 60)


# Results


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("status", "result"),
    [
        ({"exitcode": 3}, ExecResult(3, None)),
        ({"signal": 9}, ExecResult(None, 9)),
        ({}, ExecResult(None, None)),  # agents 11.1 that have lost their standard input
        ({"exitcode": 0, "out-data": b64(b"\x00\xff")}, ExecResult(0, None, b"\x00\xff")),
        ({"exitcode": 0, "err-data": b64(b"e")}, ExecResult(0, None, b"", b"e")),
        ({"exitcode": 0, "out-data": "", "err-data": ""}, ExecResult(0, None)),
    ],
)
def test_result(agent: SocketAgent, server: Scripted, status: dict[str, Any], result: ExecResult) -> None:
    server.answers[STATUS] = {"exited": True, **status}
    assert wait(agent, 7, 0) == result


@pytest.mark.parametrize("stream", ["out", "err"])
@pytest.mark.parametrize(
    ("flag", "size", "truncated"),
    [
        pytest.param(None, 2, False, id="5.2, not truncated"),
        pytest.param(False, 8, True, id="5.2, truncated"),
        pytest.param(False, 2, False, id="7.2, not truncated"),
        pytest.param(True, 8, True, id="7.2, truncated"),
        pytest.param(True, 2, True, id="truncated at another size"),
        pytest.param(None, 8, True, id="a full buffer is never taken for a whole one"),
    ],
)
def test_truncation(
    agent: SocketAgent,
    server: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    stream: str,
    flag: bool | None,
    size: int,
    truncated: bool,
) -> None:
    monkeypatch.setattr(_exec, "CAPTURE_LIMIT", 8)
    status: dict[str, Any] = {"exited": True, "exitcode": 0, f"{stream}-data": b64(bytes(size))}
    if flag is not None:
        status[f"{stream}-truncated"] = flag
    server.answers[STATUS] = status
    result = wait(agent, 7, 0)
    assert result is not None
    assert (result.stdout_truncated, result.stderr_truncated) == (
        truncated and stream == "out",
        truncated and stream == "err",
    )


def test_capture_limit_is_the_agents() -> None:
    assert CAPTURE_LIMIT == 16_777_216


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"exited": 1},
        {"exited": "true", "exitcode": 0},
        {"exited": True, "exitcode": "0"},
        {"exited": True, "exitcode": True},
        {"exited": True, "signal": "KILL"},
        {"exited": True, "exitcode": 0, "out-data": 5},
    ],
)
def test_status_of_another_type_than_the_schema_says(
    agent: SocketAgent, server: Scripted, status: dict[str, Any]
) -> None:
    server.answers[STATUS] = status
    with pytest.raises(ProtocolError):
        wait(agent, 7, 0)


@pytest.mark.parametrize("text", ["YQ", "Y Q==", "YQ==\n", "Ü===", "%%%%"])
@pytest.mark.parametrize("stream", ["out-data", "err-data"])
def test_output_that_is_no_base64(agent: SocketAgent, server: Scripted, stream: str, text: str) -> None:
    server.answers[STATUS] = {"exited": True, "exitcode": 0, stream: text}
    with pytest.raises(TransferError, match=stream):
        wait(agent, 7, 0)


@pytest.mark.parametrize(
    ("result", "rc"), [(ExecResult(0, None), 0), (ExecResult(255, None), 255), (ExecResult(None, 15), 143)]
)
def test_exit_status_as_a_shell_shows_it(result: ExecResult, rc: int) -> None:
    assert result.shell_rc == rc


def test_unknown_end_is_no_success() -> None:
    assert ExecResult(None, None).shell_rc != 0
