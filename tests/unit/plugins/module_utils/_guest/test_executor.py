# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Patience
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OutcomeUnknownError,
    ProtocolError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    CAPTURE_LIMIT,
    ExecResult,
    GuestExec,
)
from ansible_collections.qemu.guest.tests.unit.scripted import (
    SYNCS,
    AgentError,
    Clock,
    Request,
    Scripted,
    Session,
    Step,
    answers,
    closes,
    fails,
    in_turn,
    returns,
    sends,
    swallows,
)

EXEC, STATUS = "guest-exec", "guest-exec-status"
SYNC = SYNCS[0]
RUNS = {"exited": False}
ENDS = {"exited": True, "exitcode": 0}


@pytest.fixture
def server(scripted: Callable[..., Scripted]) -> Scripted:
    return scripted({EXEC: {"pid": 7}, STATUS: ENDS, "guest-fsfreeze-status": "thawed"})


@pytest.fixture
def executor(server: Scripted, connect: Callable[..., SocketAgent]) -> GuestExec:
    return GuestExec(connect(server))


# Start


def test_start(executor: GuestExec, server: Scripted) -> None:
    assert executor.start("/bin/ls", ["-l", "/ü"], env=["A=1"], stdin=b"\x00\xff\n") == 7
    (request,) = (request for request in server.requests if request.command == EXEC)
    assert request.arguments == {
        "path": "/bin/ls",
        "arg": ["-l", "/ü"],
        "capture-output": True,
        "env": ["A=1"],
        "input-data": base64.b64encode(b"\x00\xff\n").decode(),
    }


def test_start_with_the_agents_own_environment(executor: GuestExec, server: Scripted) -> None:
    executor.start("/bin/ls")
    assert server.requests[-1].arguments == {"path": "/bin/ls", "arg": [], "capture-output": True}


def test_start_with_an_empty_environment(executor: GuestExec, server: Scripted) -> None:
    executor.start("/bin/ls", env=[])
    assert server.requests[-1].arguments["env"] == []


@pytest.mark.parametrize("reply", [{}, {"pid": "7"}, {"pid": True}, {"pid": None}])
def test_start_without_a_pid(executor: GuestExec, server: Scripted, reply: Any) -> None:
    server.answers[EXEC] = reply
    with pytest.raises(ProtocolError, match="pid"):
        executor.start("/bin/ls")


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
def test_program_that_cannot_be_started(executor: GuestExec, server: Scripted, text: str) -> None:
    server.then(EXEC, fails(text))
    with pytest.raises(CommandError) as caught:
        executor.start("/x")
    assert caught.value.__class__ is CommandError
    assert text in str(caught.value)


@pytest.mark.parametrize("lost", [swallows, closes()])
def test_program_that_may_have_been_started(executor: GuestExec, server: Scripted, lost: Step) -> None:
    server.then(EXEC, lost)
    with pytest.raises(OutcomeUnknownError):
        executor.start("/bin/ls")
    assert server.work == [EXEC]


def test_more_input_than_a_request_can_carry(executor: GuestExec, server: Scripted) -> None:
    with pytest.raises(TransferError) as caught:
        executor.start("/bin/cat", stdin=bytes(51_000_000))
    assert caught.value.executed == "no"
    assert server.commands == []


@pytest.mark.parametrize(
    ("known", "size", "seconds"), [(True, 3_000_000, 23), (False, 160_000, 60), (False, 10**7, 80)]
)
def test_large_input_has_more_time(executor: GuestExec, server: Scripted, known: bool, size: int, seconds: int) -> None:
    """As long as nothing is known of the way there, that may be a serial port."""
    if known:
        executor.agent.execute("guest-ping")
    server.then(EXEC, swallows)
    with pytest.raises(OutcomeUnknownError, match=f"within {seconds} s"):
        executor.start("/bin/cat", stdin=bytes(size))


@pytest.mark.parametrize("blocked", [(), (EXEC,), (STATUS,)])
def test_can_run_programs(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], blocked: tuple[str, ...]
) -> None:
    server = scripted({EXEC: {}, STATUS: {}}, blocked={name: f"Command {name} has been disabled" for name in blocked})
    assert GuestExec(connect(server)).is_available() is not bool(blocked)


def test_frozen_guest_does_not_tell_whether_it_can_run_programs(executor: GuestExec, server: Scripted) -> None:
    """It lists all commands as disabled, those too that it has when it is thawed."""
    server.freeze(100)
    with pytest.raises(CommandUnavailable) as caught:
        executor.is_available()
    assert caught.value.reason == "frozen"


def test_guest_that_allows_no_more_than_a_frozen_one_can_run_no_programs(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    blocked = {name: f"Command {name} has been disabled" for name in (EXEC, STATUS, "guest-file-open")}
    server = scripted({"guest-fsfreeze-status": "thawed"}, blocked=blocked)
    assert not GuestExec(connect(server)).is_available()


# Wait


def test_wait_until_it_has_ended(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    server.answers[STATUS] = in_turn([RUNS] * 30 + [ENDS])
    result = executor.wait(7, 60)
    assert result == ExecResult(0, None)
    assert [request.arguments for request in server.requests if request.command == STATUS] == [{"pid": 7}] * 31


def test_pauses_between_looks(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    """At first at once, later seldom."""
    server.answers[STATUS] = in_turn([RUNS] * 40 + [ENDS])
    times: list[float] = []
    clock.on_sleep = lambda: times.append(clock.now)
    executor.wait(7, 60)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] < 0.01
    assert all(0 < earlier <= later + 1e-9 for earlier, later in itertools.pairwise(pauses))
    assert max(pauses) == pytest.approx(0.25)


def test_wait_no_longer_than_asked_for(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    server.answers[STATUS] = RUNS
    started = clock.now
    assert executor.wait(7, 5) is None
    assert clock.now - started == pytest.approx(5)


def test_end_at_the_last_moment_is_seen(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    started = clock.now
    server.answers[STATUS] = lambda arguments: ENDS if clock.now - started >= 5 else RUNS
    assert executor.wait(7, 5) == ExecResult(0, None)


def test_one_look_with_no_time_to_wait(executor: GuestExec, server: Scripted) -> None:
    assert executor.wait(7, 0) == ExecResult(0, None)
    server.answers[STATUS] = RUNS
    assert executor.wait(7, 0) is None


def test_finish_takes_any_time(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    server.answers[STATUS] = in_turn([RUNS] * 100 + [ENDS])
    clock.on_sleep = lambda: clock.advance(10 * 3600)
    assert executor.finish(7) == ExecResult(0, None)


@pytest.mark.parametrize("lost", [swallows, closes()])
def test_answer_that_is_lost_is_asked_for_again(executor: GuestExec, server: Scripted, lost: Step) -> None:
    server.then(STATUS, returns(RUNS), lost)
    assert executor.wait(7, 60) == ExecResult(0, None)
    assert server.work == [STATUS] * 3


@pytest.mark.parametrize("lost", [swallows, closes()])
def test_end_is_told_once(executor: GuestExec, server: Scripted, lost: Step) -> None:
    """A lost answer may have been the one that told it: to ask again is to be told of no such pid."""
    server.then(STATUS, returns(RUNS), lost, fails("Invalid parameter 'pid'"))
    with pytest.raises(OutcomeUnknownError, match="the answer that the program ended was lost") as caught:
        executor.wait(7, 60)
    assert caught.value.executed == "unknown"
    assert server.work == [STATUS] * 3


@pytest.mark.parametrize("text", ["Invalid parameter 'pid'", "PID ld does not exist", "PID 7 does not exist"])
def test_agent_restarted_meanwhile(executor: GuestExec, server: Scripted, text: str) -> None:
    server.answers[STATUS] = in_turn([RUNS, AgentError(text)])
    with pytest.raises(OutcomeUnknownError, match="restarted") as caught:
        executor.wait(7, 60)
    assert caught.value.command == EXEC
    assert caught.value.address == f"unix:{server.path}"
    assert "pid 7" in str(caught.value)


def away(server: Scripted, clock: Clock, seconds: float) -> None:
    """Have the agent answer nothing for so long: the guest is paused, say."""
    until = clock.now + seconds

    def step(session: Session, request: Request) -> None:
        if clock.now >= until:
            answers(session, request)
            return
        clock.advance(20)
        session.send(b"\n")

    for command in (STATUS, SYNC):
        server.then(command, *[step] * 99)


def test_agent_that_is_away_is_waited_for(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    """The time does not count, of which the program had nothing in a paused guest."""
    server.answers[STATUS] = in_turn([RUNS, RUNS, ENDS])
    away(server, clock, 90)
    assert executor.wait(7, 5) == ExecResult(0, None)


def test_agent_that_stays_away_is_given_up(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    away(server, clock, 3600)
    began = clock.now
    with pytest.raises(OutcomeUnknownError, match="contact was lost while the program with pid 7 ran: no answer"):
        executor.wait(7, 60)
    assert 120 <= clock.now - began < 200


def blocks(session: Session, request: Request) -> None:
    """The guest's administrator does not allow it any more."""
    session.server.blocked[STATUS] = f"Command {STATUS} has been disabled"
    answers(session, request)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (blocks, "disabled by the guest's administrator"),
        (fails("something else"), "something else"),
        (sends(b"{}\n"), "sent a reply that is to no request"),
        (returns([]), "return value"),
    ],
)
def test_error_of_a_question_is_not_that_of_the_program(
    executor: GuestExec, server: Scripted, status: Step, text: str
) -> None:
    server.then(STATUS, returns(RUNS), status)
    with pytest.raises(OutcomeUnknownError, match=text) as caught:
        executor.finish(7)
    assert caught.value.command == EXEC
    assert "guest-exec may have run: contact was lost while the program with pid 7 ran" in str(caught.value)


# A frozen guest


def test_frozen_guest_is_waited_for(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    said: list[str] = []
    executor.agent.patience = Patience(warn=said.append)
    executor.agent.info  # noqa: B018 - so that it is known what the agent can do when it is thawed
    began = clock.now
    server.freeze(250)
    assert executor.wait(7, 5) == ExecResult(0, None)
    assert 250 <= clock.now - began < 253
    assert said == ["the guest is frozen; waiting up to 300 s until it is thawed."]
    assert executor.is_available(), "what a frozen guest refuses says nothing of what it can do later"
    assert len(server.received) > 200, "others have their turn, one of which is to thaw it"


def test_guest_that_stays_frozen_is_given_up(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    executor.agent.patience = Patience(30)
    began = clock.now
    server.freeze(100)
    with pytest.raises(OutcomeUnknownError, match=r"may have run: contact was lost .* frozen") as caught:
        executor.finish(7)
    assert 30 <= clock.now - began < 33
    assert caught.value.command == EXEC and "qga_fsfreeze" in caught.value.hint


def test_frozen_guest_is_not_waited_for_without_a_timeout(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    executor.agent.patience = Patience(0)
    began = clock.now
    server.freeze(100)
    with pytest.raises(OutcomeUnknownError, match="frozen"):
        executor.finish(7)
    assert clock.now == began


def test_nothing_is_started_in_a_frozen_guest(executor: GuestExec, server: Scripted, clock: Clock) -> None:
    server.freeze(100)
    began = clock.now
    with pytest.raises(CommandUnavailable) as caught:
        executor.start("/bin/ls")
    assert caught.value.reason == "frozen" and clock.now == began


@pytest.mark.parametrize("when", ["guest-fsfreeze-status", "guest-info"])
def test_thawed_while_the_refusal_is_looked_into(
    executor: GuestExec, server: Scripted, clock: Clock, when: str
) -> None:
    """The guest that refused is frozen no more when it is asked why; that is not its administrator's doing."""
    executor.agent.info  # noqa: B018
    server.freeze(10)

    def thaws(session: Session, request: Request) -> None:
        clock.advance(10)
        answers(session, request)

    server.then(when, thaws)
    assert executor.wait(7, 5) == ExecResult(0, None)


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
def test_result(executor: GuestExec, server: Scripted, status: dict[str, Any], result: ExecResult) -> None:
    server.answers[STATUS] = {"exited": True, **status}
    assert executor.wait(7, 0) == result


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
    server: Scripted,
    connect: Callable[..., SocketAgent],
    stream: str,
    flag: bool | None,
    size: int,
    truncated: bool,
) -> None:
    status: dict[str, Any] = {"exited": True, "exitcode": 0, f"{stream}-data": b64(bytes(size))}
    if flag is not None:
        status[f"{stream}-truncated"] = flag
    server.answers[STATUS] = status
    result = GuestExec(connect(server), capture_limit=8).wait(7, 0)
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
    executor: GuestExec, server: Scripted, status: dict[str, Any]
) -> None:
    server.answers[STATUS] = status
    with pytest.raises(OutcomeUnknownError, match="should be"):
        executor.wait(7, 0)


@pytest.mark.parametrize("text", ["YQ", "Y Q==", "YQ==\n", "Ü===", "%%%%"])
@pytest.mark.parametrize("stream", ["out-data", "err-data"])
def test_output_that_is_no_base64(executor: GuestExec, server: Scripted, stream: str, text: str) -> None:
    server.answers[STATUS] = {"exited": True, "exitcode": 0, stream: text}
    with pytest.raises(TransferError, match=f"guest-exec was run: .* {stream}"):
        executor.wait(7, 0)


@pytest.mark.parametrize(
    ("result", "rc"), [(ExecResult(0, None), 0), (ExecResult(255, None), 255), (ExecResult(None, 15), 143)]
)
def test_exit_status_as_a_shell_shows_it(result: ExecResult, rc: int) -> None:
    assert result.shell_rc == rc


def test_unknown_end_is_no_success() -> None:
    assert ExecResult(None, None).shell_rc != 0
