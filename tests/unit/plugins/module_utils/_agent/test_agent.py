# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import DEFAULT_TIMEOUT
from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    AgentSilentError,
    ChannelBusyError,
    CommandError,
    CommandUnavailable,
    ConnectError,
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import MAX_STRUCTURE, SENTINEL, encode_request
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._agent.unavailable import AgentInfo
from ansible_collections.qemu.guest.tests.unit.scripted import (
    RELEASES,
    SYNCS,
    AgentError,
    Clock,
    Scripted,
    Session,
    answers,
    answers_in_halves,
    answers_late,
    closes,
    closes_afterwards,
    fails,
    interrupts,
    reply_to,
    returns,
    sends,
    swallows,
    turns_deaf,
)

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]

SYNC, OLD_SYNC = SYNCS
# A command that changes something, with an answer that another reply could be taken for.
OPEN = "guest-file-open"
FILE = {OPEN: lambda arguments: int(arguments["path"])}


def is_sync(data: bytes) -> bool:
    """Return whether ``data`` is 0xFF and one sync, and nothing else."""
    sync = json.loads(data[1:])
    return data == SENTINEL + encode_request(SYNC, {"id": sync["arguments"]["id"]}, sync["id"])


# In sync


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("echoes_id", [True, False])
@pytest.mark.parametrize("piece", [0, 1, 7])
def test_command(scripted: Start, connect: Connect, release: str, echoes_id: bool, piece: int) -> None:
    server = scripted(FILE, release=release, echoes_id=echoes_id, piece=piece)
    agent = connect(server)
    assert agent.execute(OPEN, {"path": "17"}) == 17
    assert agent.execute("guest-ping") == {}
    assert agent.execute(OPEN, {"path": "18"}) == 18
    assert server.commands == [SYNC, OPEN, "guest-ping", OPEN]


def test_nothing_but_the_sync_leaves_before_it_is_answered(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    early: list[bytes] = []

    def listens(session: Session, request: Any) -> None:
        early.append(server.received[0] + session.listens_for(0.1))
        returns(request.arguments["id"])(session, request)

    server.then(SYNC, listens)
    assert connect(server).execute(OPEN, {"path": "1"}) == 1
    assert is_sync(early[0])
    command = server.requests[1]
    assert server.received == [early[0] + encode_request(OPEN, {"path": "1"}, command.ids["id"])]


def test_nothing_but_the_sync_leaves_where_it_is_never_answered(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    server.then(SYNC, swallows)
    with pytest.raises(AgentSilentError) as caught:
        connect(server).execute(OPEN, {"path": "1"})
    assert caught.value.executed == "no"
    assert connect(server).execute("guest-ping") == {}, "the server has read all there is of the first client"
    assert len(server.received) == 2
    assert is_sync(server.received[0])


def test_ids_differ_between_requests_and_agents(scripted: Start, connect: Connect) -> None:
    server = scripted()
    for _client in range(3):
        with connect(server) as agent:
            agent.execute("guest-ping")
            agent.execute("guest-ping")
    ids = [request.ids["id"] for request in server.requests]
    syncs = [request.arguments["id"] for request in server.requests if request.command == SYNC]
    assert len(ids) == 9 == len(set(ids))
    assert len(syncs) == 3 == len(set(syncs))
    assert all(0 <= sync < 2**63 for sync in syncs)


def test_busy_channel_is_not_synced_again_and_an_idle_one_is(scripted: Start, connect: Connect, clock: Clock) -> None:
    server = scripted()
    agent = connect(server)
    for seconds in (0.0, 0.1, 0.4, 5.0, 0.0):
        clock.advance(seconds)
        agent.execute("guest-ping")
    assert server.commands == [SYNC, *["guest-ping"] * 3, SYNC, *["guest-ping"] * 2]


STALE = [
    pytest.param(b'{"return": 99}\n', id="reply"),
    pytest.param(b'{"return": 99, "id": "a-1"}\n', id="reply with an id"),
    pytest.param(b'\xff{"return": 99}\n', id="delimited reply"),
    pytest.param(b'{"return": 1}\n' * 87, id="many replies"),
    pytest.param(b'rn": {"buf-b64": "AAAA"}}\n', id="half a reply"),
    pytest.param(b'{"return": 99, "id": "a', id="half a reply without its end"),
    pytest.param(b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n', id="error"),
    pytest.param(b'{"return": true}\n{"return": 1.5}\n[1]\n5\nnull\n"a"\n\n', id="things"),
    pytest.param(b"\xff\xff\x00\n\xfe\n", id="bytes"),
    pytest.param(b"[" * 100_000 + b"\n", id="nesting"),
]


@pytest.mark.parametrize("stale", STALE)
@pytest.mark.parametrize("echoes_id", [True, False])
def test_what_a_former_client_left_unread_is_skipped(
    scripted: Start, connect: Connect, stale: bytes, echoes_id: bool
) -> None:
    server = scripted(FILE, before=stale, echoes_id=echoes_id)
    assert connect(server).execute(OPEN, {"path": "17"}) == 17


@pytest.mark.parametrize("half", [b'{"execute": "guest-pi', b'{"a": "', b'{"a": {"b": [', b"garbage"])
def test_half_a_request_of_a_former_client_is_dropped(scripted: Start, connect: Connect, half: bytes) -> None:
    server = scripted(FILE)
    server.half = half
    assert connect(server).execute(OPEN, {"path": "17"}) == 17


def test_end_of_a_giant_reply_to_somebody_else_is_skipped(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE, before=b"x" * 3 * MAX_STRUCTURE + b"\n", piece=1 << 20)
    assert connect(server).execute(OPEN, {"path": "17"}) == 17


# What a new agent says of the end of a request whose beginning another has read.
STRAY = b'{"error": {"class": "GenericError", "desc": "JSON parse error, invalid keyword \'QUJD\'"}}\n'

# Agents that lack something


@pytest.mark.parametrize("release", RELEASES)
def test_agent_without_delimited_sync_that_echoes_no_id(scripted: Start, connect: Connect, release: str) -> None:
    text = RELEASES[release].unknown.format(SYNC)
    server = scripted(FILE, release=release, blocked={SYNC: text}, echoes_id=False)
    agent = connect(server)
    assert agent.execute(OPEN, {"path": "1"}) == 1
    assert agent.execute(OPEN, {"path": "2"}) == 2
    assert server.commands == [SYNC, OLD_SYNC, OPEN, OPEN]
    sync, old_sync = server.requests[:2]
    assert sync.arguments == old_sync.arguments


def test_leftovers_where_delimited_sync_is_lacking(scripted: Start, connect: Connect) -> None:
    """A former client has found the same. Its error must not make for one sync too many: its reply would be ours."""
    text = RELEASES["5.2"].unknown.format(SYNC)
    error = json.dumps({"error": {"class": "CommandNotFound", "desc": text}}).encode() + b"\n"
    server = scripted(FILE, blocked={SYNC: text}, echoes_id=False, before=error)
    agent = connect(server)
    assert [agent.execute(OPEN, {"path": str(n)}) for n in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("release", RELEASES)
def test_delimited_sync_disabled_but_its_id_echoed(scripted: Start, connect: Connect, release: str) -> None:
    server = scripted(FILE, release=release, blocked={SYNC: RELEASES[release].disabled.format(SYNC)})
    agent = connect(server)
    assert agent.execute(OPEN, {"path": "1"}) == 1
    assert server.commands == [SYNC, OPEN]


@pytest.mark.parametrize("delimited", [True, False])
def test_agent_that_refuses_ids(scripted: Start, connect: Connect, delimited: bool) -> None:
    """As agents before 4.0 do, which took "execute" and "arguments" and nothing else."""
    blocked = {} if delimited else {SYNC: RELEASES["5.2"].unknown.format(SYNC)}
    server = scripted(FILE, blocked=blocked, takes_id=False)
    agent = connect(server)
    assert [agent.execute(OPEN, {"path": str(n)}) for n in (1, 2, 3)] == [1, 2, 3]
    server.then(OPEN, answers_late)
    with pytest.raises(OutcomeUnknownError):
        agent.execute(OPEN, {"path": "4"})
    assert agent.execute(OPEN, {"path": "5"}) == 5
    assert server.work == [OPEN] * 5


# Silence


@pytest.mark.parametrize("echoes_id", [True, False])
@pytest.mark.parametrize("late", [swallows, answers_late, answers_in_halves])
def test_command_without_reply_is_not_repeated_and_the_next_one_syncs(
    scripted: Start, connect: Connect, echoes_id: bool, late: Any
) -> None:
    server = scripted(FILE, echoes_id=echoes_id)
    server.then(OPEN, late)
    agent = connect(server)
    with pytest.raises(OutcomeUnknownError, match="no reply within 20 s") as caught:
        agent.execute(OPEN, {"path": "1"})
    assert caught.value.executed == "unknown"
    assert caught.value.command == OPEN
    assert agent.execute(OPEN, {"path": "2"}) == 2, "and not the late reply to the first"
    assert agent.execute(OPEN, {"path": "3"}) == 3
    assert server.commands == [SYNC, OPEN, SYNC, OPEN, OPEN]
    assert len(server.received) == 1, "on the same channel: to close it is to lose the reply"


@pytest.mark.parametrize("echoes_id", [True, False])
@pytest.mark.parametrize("late", [answers_late, answers_in_halves])
def test_late_reply_to_a_former_client(scripted: Start, connect: Connect, echoes_id: bool, late: Any) -> None:
    server = scripted(FILE, echoes_id=echoes_id)
    server.then(OPEN, late)
    with connect(server) as first, pytest.raises(OutcomeUnknownError):
        first.execute(OPEN, {"path": "1"})
    assert connect(server).execute(OPEN, {"path": "2"}) == 2


@pytest.mark.parametrize("lost", [closes(), closes(b'{"return": {"host-'), sends(STRAY)])
def test_command_that_only_reads_is_repeated_once(scripted: Start, connect: Connect, lost: Any) -> None:
    server = scripted({"guest-get-host-name": {"host-name": "vm1"}})
    server.then("guest-get-host-name", lost)
    assert connect(server).execute("guest-get-host-name") == {"host-name": "vm1"}
    assert server.commands == [SYNC, "guest-get-host-name", SYNC, "guest-get-host-name"]


def test_command_that_only_reads_was_sent_though_it_cannot_be_repeated(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-ping", goes_away)
    with pytest.raises(
        OutcomeUnknownError, match=r"guest-ping may have run: .*closed.*, and then: there is no such socket"
    ):
        connect(server).execute("guest-ping")
    assert server.work == ["guest-ping"]


def goes_away(session: Session, request: Any) -> None:
    """Close the channel, and let there be no other."""
    session.server.path.unlink()
    closes()(session, request)


def test_command_that_only_reads_is_not_repeated_twice(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-ping", closes(), closes())
    with pytest.raises(OutcomeUnknownError):
        connect(server).execute("guest-ping")
    assert server.work == ["guest-ping"] * 2


@pytest.mark.parametrize("late", [swallows, answers_late, answers_in_halves])
def test_command_that_only_reads_has_its_timeout_once(scripted: Start, connect: Connect, late: Any) -> None:
    server = scripted()
    server.then("guest-ping", late)
    with pytest.raises(OutcomeUnknownError, match="no reply within 20 s"):
        connect(server).execute("guest-ping")
    assert server.work == ["guest-ping"]


def takes(seconds: float, step: Any = answers) -> Any:
    """Let so much time pass, then go on."""

    def slowly(session: Session, request: Any) -> None:
        clock = session.server._clock
        assert clock
        clock.advance(seconds)
        step(session, request)

    return slowly


def test_one_deadline_for_a_command_and_its_repetition(scripted: Start, connect: Connect, clock: Clock) -> None:
    server = scripted()
    server.then("guest-ping", takes(15, closes()), takes(6, sends(b"\n")))
    started = clock.now
    with pytest.raises(OutcomeUnknownError, match="no reply within 20 s"):
        connect(server).execute("guest-ping")
    assert clock.now - started == 21, "by one second: the second time, it had five"


def test_one_deadline_for_a_refusal_and_its_explanation(scripted: Start, connect: Connect, clock: Clock) -> None:
    """The agent takes 9 seconds for each answer: there is no time for all that it could be asked."""
    server = scripted({"guest-get-osinfo": {"id": "debian"}, "guest-fsfreeze-status": "thawed"}, blocked={EXEC: "No."})
    for name in (*SYNCS, EXEC, "guest-info", "guest-get-osinfo", "guest-fsfreeze-status"):
        server.then(name, *[takes(9)] * 10)
    agent = connect(server)
    started = clock.now
    with pytest.raises(CommandUnavailable) as caught:
        agent.execute(EXEC)
    assert caught.value.command == EXEC
    assert clock.now - started == 27, "the third answer came too late, and there was no fourth question"


@pytest.mark.parametrize(
    "command", ["guest-exec", "guest-exec-status", "guest-file-read", "guest-fsfreeze-thaw", "guest-nobody-knows"]
)
def test_command_that_may_change_something_is_never_repeated(scripted: Start, connect: Connect, command: str) -> None:
    server = scripted({command: {}})
    server.then(command, swallows)
    with pytest.raises(OutcomeUnknownError):
        connect(server).execute(command)
    assert server.work == [command]


def test_agent_that_stays_silent_after_a_command(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    agent = connect(server)
    agent.execute("guest-ping")
    server.then(OPEN, swallows)
    server.then(SYNC, swallows)
    with pytest.raises(OutcomeUnknownError):
        agent.execute(OPEN, {"path": "1"})
    with pytest.raises(AgentSilentError) as caught:
        agent.execute(OPEN, {"path": "2"})
    assert caught.value.executed == "no"
    assert agent.execute(OPEN, {"path": "3"}) == 3
    assert server.work == ["guest-ping", OPEN, OPEN]


def test_timeout_of_one_command(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    server.then(OPEN, swallows)
    with pytest.raises(OutcomeUnknownError, match=r"within 7.5 s"):
        connect(server, timeout=20).execute(OPEN, {"path": "1"}, timeout=7.5)


@pytest.mark.parametrize(("usual", "seconds"), [(20, 60), (90, 90)])
def test_command_that_may_well_take_longer(scripted: Start, connect: Connect, usual: float, seconds: float) -> None:
    server = scripted({"guest-set-user-password": {}})
    server.then("guest-set-user-password", swallows)
    agent = connect(server, timeout=usual)
    with pytest.raises(OutcomeUnknownError, match=f"within {seconds} s"):
        agent.execute("guest-set-user-password", {})


def never_idle(server: Scripted) -> SocketAgent:
    """Return an agent for tests in real time, on machines that are slow at times."""
    return SocketAgent(Address("unix", path=str(server.path)), 30, idle_seconds=3600)


def test_deadlines_in_real_time(tmp_path: Path) -> None:
    with Scripted(tmp_path / "agent.sock", FILE) as server, never_idle(server) as agent:
        agent.execute("guest-ping")
        server.then(OPEN, lambda session, request: None)
        server.then(SYNC, lambda session, request: None)
        started = time.monotonic()
        with pytest.raises(OutcomeUnknownError, match=r"no reply within 0.3 s"):
            agent.execute(OPEN, {"path": "1"}, timeout=0.3)
        with pytest.raises(AgentSilentError, match=r"no answer to a sync within 0.3 s") as caught:
            agent.execute(OPEN, {"path": "2"}, timeout=0.3)
        assert 0.6 <= time.monotonic() - started < 10
        assert "qemu-guest-agent" in caught.value.hint


@pytest.mark.parametrize(
    ("command", "piece", "timeout", "waited"),
    [
        ("guest-exec-status", 1000, 0.5, ""),
        ("guest-exec-status", 5, 0.5, "0.5"),
        ("guest-exec-status", 1000, 0.1, "1"),
        ("guest-file-read", 1000, 0.5, "0.5"),
    ],
)
def test_reply_that_arrives_slowly(tmp_path: Path, command: str, piece: int, timeout: float, waited: str) -> None:
    """How a program ended is told once: that is waited for at the pace of a serial port, but for ten timeouts only.

    An error says how long that was.
    """
    value = {"exited": True, "exitcode": 0, "out-data": "YWJj" * 7500}

    def slowly(session: Session, request: Any) -> None:
        reply = reply_to(session, request)
        with suppress(OSError):
            for start in range(0, len(reply), piece):
                session.send(reply[start : start + piece])
                time.sleep(0.05)

    with Scripted(tmp_path / "agent.sock", {command: value}) as server, never_idle(server) as agent:
        agent.execute("guest-ping")
        agent.timeout = timeout
        server.then(command, slowly)
        if not waited:
            assert agent.execute(command) == value
        else:
            with pytest.raises(OutcomeUnknownError, match=rf"no reply within {waited} s"):
                agent.execute(command)


def test_guest_that_talks_without_end(scripted: Start, connect: Connect, clock: Clock) -> None:
    server = scripted(FILE)

    def babbles(session: Session, request: Any) -> None:
        for _line in range(200):
            clock.advance(1)
            session.send(b'{"return": {}, "id": "of another"}\n' * 50)

    server.then(OPEN, babbles)
    with pytest.raises(OutcomeUnknownError, match="no reply within 20 s"):
        connect(server).execute(OPEN, {"path": "1"})


def test_guest_that_sends_at_once_more_than_there_is_time_for(
    scripted: Start, connect: Connect, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is looked at for each line, not only when nothing more is there to be read."""
    server = scripted(FILE)
    server.then(OPEN, sends(b'{"return": {}, "id": "of another"}\n' * 5000))
    looked_at = []
    decode = protocol.decode_reply

    def slowly(line: bytes) -> Any:
        looked_at.append(line)
        clock.advance(1)
        return decode(line)

    agent = connect(server)
    agent.execute("guest-ping")
    monkeypatch.setattr(protocol, "decode_reply", slowly)
    with pytest.raises(OutcomeUnknownError, match="no reply within 20 s"):
        agent.execute(OPEN, {"path": "1"})
    assert len(looked_at) == 20


def test_noise_without_end_before_a_sync_is_answered(
    scripted: Start, connect: Connect, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted(FILE)
    server.then(SYNC, sends(b"noise\n" * 5000))
    feed = protocol.ReplyParser.feed

    def slowly(parser: Any, data: bytes) -> Any:
        clock.advance(1)
        return feed(parser, data)

    monkeypatch.setattr(protocol.ReplyParser, "feed", slowly)
    started = clock.now
    with pytest.raises(AgentSilentError, match="no answer to a sync within 20 s"):
        connect(server).execute(OPEN, {"path": "1"})
    assert clock.now - started == 20


def test_silent_agent_is_not_waited_for_as_long_as_a_long_command(scripted: Start, connect: Connect) -> None:
    """A freeze may take minutes; an agent that is away is told after its own timeout, and nothing was sent to it."""
    server = scripted(FILE)
    server.then(SYNC, swallows)
    with pytest.raises(AgentSilentError, match="no answer to a sync within 20 s") as caught:
        connect(server).execute(OPEN, {"path": "1"}, timeout=300)
    assert caught.value.executed == "no"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("-inf")])
def test_timeout_that_leaves_no_time(scripted: Start, connect: Connect, seconds: float) -> None:
    server = scripted(FILE)
    agent = connect(server)
    agent.timeout = seconds
    for action in (lambda: agent.execute(OPEN, {"path": "1"}), lambda: agent.require("guest-ping")):
        with pytest.raises(OperationError, match=r"was not run: it was given .* A timeout is more than 0") as caught:
            action()
        assert caught.value.executed == "no"
    with pytest.raises(OperationError, match="A timeout is more than 0"):
        connect(server).execute("guest-ping", timeout=seconds)
    assert not server.received


@pytest.mark.parametrize("seconds", [1e12, float("inf")])
def test_timeout_without_end(scripted: Start, connect: Connect, seconds: float) -> None:
    """The system's calls take no such number."""
    assert connect(scripted(FILE), timeout=seconds).execute(OPEN, {"path": "7"}) == 7


# Commands that answer only when they fail


@pytest.mark.parametrize(
    "command", ["guest-shutdown", "guest-suspend-ram", "guest-suspend-disk", "guest-suspend-hybrid"]
)
def test_command_without_answer_has_worked(scripted: Start, connect: Connect, clock: Clock, command: str) -> None:
    server = scripted({command: {}})
    server.then(command, swallows)
    agent = connect(server)
    assert agent.execute(command, {"mode": "halt"}) is None
    assert server.work == [command]
    assert agent.execute("guest-ping") == {}, "a guest that woke up again"
    assert server.commands[-2:] == [SYNC, "guest-ping"]


def test_command_without_answer_ends_the_guest(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-shutdown", closes())
    assert connect(server).execute("guest-shutdown") is None


def test_command_without_answer_that_fails(scripted: Start, connect: Connect) -> None:
    text = "mode is invalid (valid values are: halt|powerdown|reboot"
    server = scripted({"guest-shutdown": AgentError})
    server.then("guest-shutdown", fails(text))
    with pytest.raises(CommandError) as caught:
        connect(server).execute("guest-shutdown", {"mode": "x"})
    assert (caught.value.message, caught.value.executed) == (text, "yes")


def test_command_without_answer_that_was_never_sent(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then(SYNC, swallows)
    with pytest.raises(AgentSilentError):
        connect(server).execute("guest-shutdown")


def test_command_without_answer_is_waited_for_a_few_seconds_only(tmp_path: Path) -> None:
    with Scripted(tmp_path / "agent.sock") as server, never_idle(server) as agent:
        agent.execute("guest-ping")
        server.then("guest-suspend-ram", lambda session, request: None)
        started = time.monotonic()
        assert agent.execute("guest-suspend-ram", timeout=0.2) is None
        assert time.monotonic() - started < 4


def test_longest_wait_for_a_command_without_answer(
    scripted: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted()
    waits: list[float] = []
    request = SocketAgent._request

    def watched(self: SocketAgent, command: str, arguments: Any, deadline: Any) -> Any:
        waits.append(deadline.seconds)
        return request(self, command, arguments, deadline)

    monkeypatch.setattr(SocketAgent, "_request", watched)
    server.then("guest-shutdown", swallows, swallows)
    agent = connect(server, timeout=60)
    agent.execute("guest-shutdown")
    agent.execute("guest-shutdown", timeout=30)
    assert waits == [5, 30]


# A channel that breaks


@pytest.mark.parametrize("rest", [b"", b'{"return": 1', b'\xff{"ret'])
def test_channel_closed_in_place_of_a_reply(scripted: Start, connect: Connect, rest: bytes) -> None:
    server = scripted(FILE)
    server.then(OPEN, closes(rest))
    agent = connect(server)
    with pytest.raises(OutcomeUnknownError, match="closed the channel") as caught:
        agent.execute(OPEN, {"path": "1"})
    assert caught.value.executed == "unknown"
    assert agent.execute(OPEN, {"path": "2"}) == 2, "over a new channel"
    assert [data[:1] for data in server.received] == [SENTINEL] * 2
    assert server.work == [OPEN] * 2


def test_reading_goes_on_over_a_new_channel(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-ping", closes())
    assert connect(server).execute("guest-ping") == {}
    assert server.commands == [SYNC, "guest-ping"] * 2
    assert len(server.received) == 2


def test_channel_closed_while_idle_is_opened_again(scripted: Start, connect: Connect, clock: Clock) -> None:
    server = scripted(FILE)
    server.then(OPEN, closes_afterwards)
    agent = connect(server)
    assert agent.execute(OPEN, {"path": "1"}) == 1
    clock.advance(10)
    assert agent.execute(OPEN, {"path": "2"}) == 2
    assert server.work == [OPEN] * 2
    assert len(server.received) == 2


def test_channel_closed_during_the_first_sync(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    server.then(SYNC, closes())
    with pytest.raises(ConnectError, match="closed the channel") as caught:
        connect(server).execute(OPEN, {"path": "1"})
    assert caught.value.__class__ is ConnectError
    assert caught.value.executed == "no"
    assert server.work == []


def test_socket_gone_after_the_channel_broke(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    agent = connect(server)
    agent.execute("guest-ping")
    server.then(OPEN, closes())
    with pytest.raises(OutcomeUnknownError):
        agent.execute(OPEN, {"path": "1"})
    server.path.unlink()
    with pytest.raises(ConnectError, match=f"{OPEN} was not sent: there is no such socket") as caught:
        agent.execute(OPEN, {"path": "2"})
    assert caught.value.executed == "no"
    with pytest.raises(ConnectError, match=r"agent.sock: nothing was sent: there is no such socket") as caught:
        connect(server).execute(OPEN, {"path": "2"})
    assert caught.value.as_result()["error"] == {"type": "ConnectError", "command": OPEN, "executed": "no"}


def test_closed_agent_opens_the_channel_with_its_next_command(scripted: Start, connect: Connect) -> None:
    server = scripted()
    agent = connect(server)
    agent.close()
    agent.execute("guest-ping")
    agent.close()
    agent.close()
    agent.execute("guest-ping")
    assert len(server.received) == 2


def test_guest_that_takes_no_more_data(tmp_path: Path) -> None:
    """What is cut off in the middle of the request is never run; the next client is not disturbed by it."""
    with Scripted(tmp_path / "agent.sock", FILE) as server, never_idle(server) as agent:
        server.then("guest-ping", turns_deaf)
        agent.execute("guest-ping")
        with pytest.raises(ConnectError, match="took no data") as caught:
            agent.execute("guest-file-write", {"handle": 1, "buf-b64": "A" * 8_000_000}, timeout=0.3)
        assert caught.value.executed == "no"
        server.hears.set()
        assert agent.execute(OPEN, {"path": "2"}) == 2
        assert server.work == ["guest-ping", OPEN]


# A guest that went back to a snapshot has lost what it was asked. Its agent says nothing, and all else works.


# Seconds after which an agent that is silent is asked whether it is there.
SOON = 0.05


def loses(session: Session, request: Any) -> None:
    """Never answer, and let no time pass."""


def is_slow(session: Session, request: Any) -> None:
    """Answer when the client has sent something more."""
    more = session.listens_for(30)
    answers(session, request)
    session.server.half = session._take(more)


@pytest.mark.parametrize("lost_probes", [0, 2])
def test_request_that_was_lost_is_told_soon(scripted: Start, connect: Connect, lost_probes: int) -> None:
    server = scripted(FILE)
    agent = connect(server, silent_seconds=SOON)
    agent.execute("guest-ping")
    server.then(OPEN, loses)
    server.then(SYNC, *[loses] * lost_probes)
    with pytest.raises(OutcomeUnknownError, match="may have run: the agent answers again, but not to this"):
        agent.execute(OPEN, {"path": "1"})
    assert agent.execute(OPEN, {"path": "2"}) == 2
    assert agent.execute(OPEN, {"path": "3"}) == 3
    assert server.work == ["guest-ping", OPEN, OPEN, OPEN]


def test_question_that_was_lost_is_asked_again(scripted: Start, connect: Connect) -> None:
    server = scripted()
    server.then("guest-ping", loses)
    assert connect(server, silent_seconds=SOON).execute("guest-ping") == {}
    assert server.work == ["guest-ping"] * 2


@pytest.mark.parametrize("half", [b'{"return": {"count": 4, "buf-b64": "AA', b'{"retu'])
def test_reply_that_broke_off_is_that_of_an_agent_that_was_restarted(
    scripted: Start, connect: Connect, half: bytes
) -> None:
    """Or the guest went back to a snapshot. The answer to the probe begins in the middle of that line."""
    server = scripted(FILE)
    agent = connect(server, silent_seconds=SOON)
    server.then(OPEN, sends(half))
    with pytest.raises(OutcomeUnknownError, match=r"may have run: its reply broke off \(the agent was restarted, or"):
        agent.execute(OPEN, {"path": "1"})
    assert agent.execute(OPEN, {"path": "2"}) == 2
    server.then("guest-ping", sends(half))
    assert agent.execute("guest-ping") == {}, "a question is asked again"
    assert server.work == [OPEN, OPEN, "guest-ping", "guest-ping"]


@pytest.mark.parametrize("blocked", [(), (SYNC,)])
@pytest.mark.parametrize("takes_id", [True, False])
@pytest.mark.parametrize("echoes_id", [True, False])
def test_sync_that_was_lost_is_sent_again(
    scripted: Start, connect: Connect, echoes_id: bool, takes_id: bool, blocked: tuple[str, ...]
) -> None:
    disabled = {name: RELEASES["7.2"].disabled.format(name) for name in blocked}
    server = scripted(FILE, echoes_id=echoes_id, takes_id=takes_id, blocked=disabled)
    server.then(SYNC, loses, answers, loses)
    server.then(OLD_SYNC, loses)
    agent = connect(server, silent_seconds=SOON)
    assert [agent.execute(OPEN, {"path": str(number)}) for number in range(3)] == [0, 1, 2]
    assert server.work == [OPEN] * 3


def test_slow_answer_is_taken(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    server.then(OPEN, is_slow, is_slow)
    agent = connect(server, silent_seconds=SOON)
    assert [agent.execute(OPEN, {"path": str(number)}) for number in range(4)] == [0, 1, 2, 3]
    assert server.work == [OPEN] * 4
    assert len(server.received) == 1, "on the same channel"


@pytest.mark.parametrize(("command", "echoes_id"), [(OPEN, False), ("guest-shutdown", True)])
def test_nothing_is_sent_into_silence_where_no_answer_would_tell(
    tmp_path: Path, connect: Connect, command: str, echoes_id: bool
) -> None:
    """An agent that does not echo ids, and a command that answers only if it fails."""
    with Scripted(tmp_path / "agent.sock", FILE, echoes_id=echoes_id) as server:
        server.then(command, loses)
        with connect(server, 0.5, silent_seconds=SOON) as agent, suppress(OutcomeUnknownError):
            agent.execute(command, {"path": "1"} if command == OPEN else {})
        assert server.commands == [SYNC, command]


class Interruption(BaseException):
    pass


@pytest.fixture
def _signals() -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("echoes_id", [True, False])
@pytest.mark.parametrize("command", [OPEN, "guest-ping"])
def test_command_interrupted_by_a_signal(scripted: Start, connect: Connect, echoes_id: bool, command: str) -> None:
    server = scripted({**FILE, "guest-ping": 99}, echoes_id=echoes_id)
    server.then(command, interrupts)
    agent = connect(server)
    with pytest.raises(Interruption):
        agent.execute(command, {"path": "1"})
    assert agent.execute(OPEN, {"path": "2"}) == 2, "and not the reply to what was interrupted"
    assert server.commands == [SYNC, command, SYNC, OPEN]
    assert len(server.received) == 1


@pytest.mark.usefixtures("_signals")
def test_sync_interrupted_by_a_signal(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    server.then(SYNC, interrupts)
    agent = connect(server)
    with pytest.raises(Interruption):
        agent.execute(OPEN, {"path": "1"})
    assert agent.execute(OPEN, {"path": "2"}) == 2
    assert server.commands == [SYNC, SYNC, OPEN]


# Replies that are none


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"gibberish\n", "not JSON"),
        (b"[1]\n", "list"),
        (b'{"return": NaN}\n', "not JSON"),
        (b'{"return": ' + b"[" * 500 + b"]" * 500 + b"}\n", "nested"),
        (b"x" * (MAX_STRUCTURE + 1), "larger than 4194304 bytes"),
        (b"x" * 3 * MAX_STRUCTURE + b"\n", "larger than 4194304 bytes"),
        (b'{"return": 1}\n', "to no request of ours"),
    ],
)
def test_reply_that_is_none(scripted: Start, connect: Connect, reply: bytes, text: str) -> None:
    server = scripted(FILE, piece=1 << 20)
    server.then(OPEN, sends(reply))
    agent = connect(server)
    with pytest.raises(ProtocolError, match=text) as caught:
        agent.execute(OPEN, {"path": "1"})
    assert caught.value.executed == "unknown"
    assert agent.execute(OPEN, {"path": "2"}) == 2
    assert server.work == [OPEN] * 2


@pytest.mark.parametrize(
    ("command", "value"),
    [
        (OPEN, "1"),
        (OPEN, True),
        (OPEN, 1.0),
        (OPEN, None),
        ("guest-ping", []),
        ("guest-file-read", "data"),
        ("guest-get-users", {}),
        ("guest-fsfreeze-status", 0),
    ],
)
def test_value_of_another_type_than_the_schema_says(
    scripted: Start, connect: Connect, command: str, value: Any
) -> None:
    server = scripted({command: value})
    with pytest.raises(ProtocolError, match="by the schema") as caught:
        connect(server).execute(command)
    assert caught.value.command == command


def test_value_of_a_command_that_nobody_knows_may_be_anything(scripted: Start, connect: Connect) -> None:
    values: list[Any] = [1, True, None, "a", [], {}, 1.5]
    server = scripted({"guest-later": 0})
    server.then("guest-later", *map(returns, values))
    agent = connect(server)
    assert [agent.execute("guest-later") for _value in values] == values


@pytest.mark.parametrize(
    "members",
    [{}, {"error": "text"}, {"error": {"class": "GenericError", "desc": 5}}, {"returns": 1}],
)
def test_reply_without_value_and_error(scripted: Start, connect: Connect, members: dict[str, Any]) -> None:
    server = scripted(FILE)

    def reply(session: Session, request: Any) -> None:
        session.send(json.dumps({**members, **request.ids}).encode() + b"\n")

    server.then(OPEN, reply)
    with pytest.raises(ProtocolError):
        connect(server).execute(OPEN, {"path": "1"})


def test_arguments_that_cannot_be_sent(scripted: Start, connect: Connect) -> None:
    server = scripted(FILE)
    agent = connect(server)
    agent.execute("guest-ping")
    with pytest.raises(ProtocolError) as caught:
        agent.execute(OPEN, {"path": "\udcff"})
    assert caught.value.executed == "no"
    agent.execute("guest-ping")
    assert server.commands == [SYNC, "guest-ping", "guest-ping"]


@pytest.mark.parametrize("echoes_id", [True, False])
def test_agent_that_was_killed_in_the_middle_of_a_request(scripted: Start, connect: Connect, echoes_id: bool) -> None:
    """The next one reads the end of what that one has begun to read."""
    server = scripted({"guest-file-write": {"count": 1}}, echoes_id=echoes_id)
    server.then("guest-file-write", sends(STRAY * 3))
    agent = connect(server)
    if echoes_id:
        with pytest.raises(OutcomeUnknownError, match="may have run: the agent was restarted") as caught:
            agent.execute("guest-file-write", {"handle": 1000, "buf-b64": "QUJD"})
        assert "may be there in part" in str(caught.value)
    else:  # before QEMU 4.0 nobody can tell
        with pytest.raises(CommandError, match="JSON parse error"):
            agent.execute("guest-file-write", {"handle": 1000, "buf-b64": "QUJD"})
    assert agent.execute("guest-file-write", {"handle": 1000, "buf-b64": "QUJD"}) == {"count": 1}
    assert server.work == ["guest-file-write"] * 2


def test_request_that_is_larger_than_the_agent_reads(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-file-write": {"count": 1}})
    server.then("guest-file-write", fails_without_id("JSON token size limit exceeded"))
    with pytest.raises(ProtocolError, match=r"guest-file-write was not run: .* limit exceeded") as caught:
        connect(server).execute("guest-file-write")
    assert caught.value.executed == "no"


def fails_without_id(desc: str) -> Any:
    return sends(json.dumps({"error": {"class": "GenericError", "desc": desc}}).encode() + b"\n")


@pytest.mark.parametrize(("count", "size"), [(1, MAX_STRUCTURE + 4), (3 * MAX_STRUCTURE, 5 * MAX_STRUCTURE)])
def test_reply_is_no_longer_than_what_was_asked_for(scripted: Start, connect: Connect, count: int, size: int) -> None:
    text = json.dumps({"return": {"count": 1, "buf-b64": ""}}).encode()
    server = scripted(piece=1 << 20)
    for more in (0, 1):
        content = b"A" * (size - len(text) + more)
        server.then("guest-file-read", sends(text.replace(b'""', b'"%b"' % content) + b"\n"))
    agent = connect(server)
    arguments = {"handle": 1000, "count": count}
    with pytest.raises(ProtocolError, match="to no request of ours"):  # it has no id: read it was
        agent.execute("guest-file-read", arguments)
    with pytest.raises(ProtocolError, match=f"larger than {size} bytes"):
        agent.execute("guest-file-read", arguments)


# Who has the seat


def test_seat_taken_by_a_foreign_client(tmp_path: Path) -> None:
    """It is named; and nothing is run once it has left."""
    path = tmp_path / "a socket with spaces"
    other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with ExitStack() as stack:
        stack.enter_context(other)
        server = stack.enter_context(Scripted(path, FILE))
        agent = stack.enter_context(open_agent(f"unix:{path}", 0.5))
        other.connect(str(path))
        other.sendall(encode_request("guest-ping", None, "other"))
        server.until(lambda: len(server.requests) == 1)
        with pytest.raises(ChannelBusyError, match=rf"another client \(.*, pid {os.getpid()}\)") as caught:
            agent.execute(OPEN, {"path": "1"})
        assert caught.value.executed == "no"
        assert f"unix:{path}" in str(caught.value)
        other.close()
        assert agent.execute("guest-ping", timeout=30) == {}
        assert server.work == ["guest-ping"] * 2


def test_seat_taken_by_a_client_of_ours(scripted: Start, connect: Connect, clock: Clock) -> None:
    server = scripted(FILE)
    first, second = connect(server), connect(server, timeout=3)
    first.execute("guest-ping")
    started = clock.now
    with pytest.raises(ChannelBusyError, match=f"pid {os.getpid()}"):
        second.execute(OPEN, {"path": "1"})
    assert clock.now - started == pytest.approx(3)
    first.close()
    assert second.execute(OPEN, {"path": "2"}) == 2


# What an agent does not run

EXEC = "guest-exec"


def unavailable(agent: SocketAgent, command: str = EXEC) -> CommandUnavailable:
    with pytest.raises(CommandUnavailable) as caught:
        agent.execute(command)
    assert caught.value.executed == "no"
    assert caught.value.command == command
    return caught.value


@pytest.mark.parametrize("release", RELEASES)
def test_unknown_command(scripted: Start, connect: Connect, release: str) -> None:
    error = unavailable(connect(scripted(release=release)), "guest-get-load")
    assert error.reason == "unknown"
    assert RELEASES[release].version in str(error)
    assert "does not know" in str(error)
    assert "version 10.0" in error.hint
    assert unavailable(connect(scripted(release=release, path=error_path(error))), "guest-nope").hint == ""


def error_path(error: QgaError) -> Path:
    """Return a second path beside the socket of ``error``."""
    return Path(error.address.partition(":")[2] + "2")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("distribution", "file"),
    [
        ("debian", "/etc/qemu/qemu-ga.conf"),
        ("ubuntu", "/etc/default/qemu-guest-agent"),
        ("rocky", "/etc/sysconfig/qemu-ga"),
        ("fedora", "/etc/sysconfig/qemu-ga"),
        (None, "/etc/qemu/qemu-ga.conf"),
    ],
)
def test_disabled_command(scripted: Start, connect: Connect, release: str, distribution: str | None, file: str) -> None:
    answers = {"guest-fsfreeze-status": "thawed"}
    if distribution:
        answers["guest-get-osinfo"] = {"id": distribution}  # type: ignore[assignment]
    blocked = {EXEC: RELEASES[release].disabled.format(EXEC)}
    error = unavailable(connect(scripted(answers, release=release, blocked=blocked)))
    assert error.reason == "disabled"
    assert "administrator" in str(error)
    assert file in error.hint and EXEC in error.hint
    if file != "/etc/sysconfig/qemu-ga":
        assert ("block-rpcs" in error.hint) == (release != "5.2")
        assert ("blacklist" in error.hint) == (release == "5.2")


FILES = ("guest-file-open", "guest-file-read", "guest-file-write", "guest-file-close")


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        (EXEC, {"path": "/bin/true"}, [EXEC, "guest-exec-status"]),
        (OPEN, {"path": "/x"}, ["guest-file-open", "guest-file-read", "guest-file-close"]),
        (OPEN, {"path": "/x", "mode": "w"}, ["guest-file-open", "guest-file-write", "guest-file-close"]),
        (OPEN, {"path": "/x", "mode": "r+"}, list(FILES)),
        ("guest-file-close", {"handle": 1}, ["guest-file-close"]),
    ],
)
def test_disabled_command_and_those_that_it_is_of_no_use_without(
    scripted: Start, connect: Connect, command: str, arguments: dict[str, Any], named: list[str]
) -> None:
    """Whoever allows one learns of the next at once, and of no other."""
    blocked = {name: f"Command {name} has been disabled" for name in (EXEC, "guest-exec-status", *FILES)}
    agent = connect(scripted({"guest-fsfreeze-status": "thawed"}, blocked=blocked))
    with pytest.raises(CommandUnavailable) as caught:
        agent.execute(command, arguments)
    assert str(caught.value).partition(": ")[2].startswith(f"{command} was not run: disabled by")
    assert f"take {', '.join(named)} out of" in caught.value.hint


@pytest.mark.parametrize("release", RELEASES)
def test_command_blocked_while_frozen(scripted: Start, connect: Connect, release: str) -> None:
    words = RELEASES[release].frozen
    blocked = {name: words.format(name) for name in (EXEC, "guest-get-osinfo")}
    server = scripted({"guest-fsfreeze-status": "frozen"}, release=release, blocked=blocked)
    error = unavailable(connect(server))
    assert error.reason == "frozen"
    assert "frozen" in str(error) and "-m qemu.guest.qga_fsfreeze -a state=thawed" in error.hint


def test_disabled_command_that_freezing_would_not_block(scripted: Start, connect: Connect) -> None:
    server = scripted({"guest-fsfreeze-status": "frozen"}, blocked={"guest-fsfreeze-thaw": "Command disabled"})
    assert unavailable(connect(server), "guest-fsfreeze-thaw").reason == "disabled"


def test_disabled_command_of_an_agent_before_4(scripted: Start, connect: Connect) -> None:
    server = scripted(blocked={EXEC: ""})
    server.then(EXEC, fails("The command guest-exec has been disabled for this instance", "GenericError"))
    assert unavailable(connect(server)).reason == "disabled"


def test_reason_that_the_agent_may_not_tell(scripted: Start, connect: Connect) -> None:
    server = scripted(blocked={name: f"Command {name} has been disabled" for name in (EXEC, "guest-info")})
    agent = connect(server)
    assert f"Command {EXEC} has been disabled" in str(unavailable(agent))
    assert "Command guest-info has been disabled" in str(unavailable(agent, "guest-info"))
    assert len(server.work) <= 4


def test_agent_that_contradicts_itself(scripted: Start, connect: Connect) -> None:
    """What is listed as enabled is refused all the same: an error, not a conversation without end."""
    server = scripted({name: disabled for name in (EXEC, "guest-get-osinfo", "guest-fsfreeze-status")})
    assert unavailable(connect(server)).reason == "disabled"
    assert len(server.requests) < 10


def disabled(arguments: Any) -> Any:
    raise AgentError("Command has been disabled: the command is not allowed", "CommandNotFound")


def test_monitor_in_place_of_the_agent(scripted: Start, connect: Connect) -> None:
    """QEMU's monitor answers a sync as old agents do: with an error."""
    server = scripted(blocked={"guest-info": "Expecting capabilities negotiation with 'qmp_capabilities'"})
    with pytest.raises(CommandUnavailable, match=r"qmp_capabilities'\. This is the socket of QEMU's monitor\."):
        connect(server).require(EXEC)


def test_other_errors_are_the_agents_own(scripted: Start, connect: Connect) -> None:
    server = scripted()
    text = "Invalid parameter type for 'path', expected: string"
    server.then(OPEN, fails(text))
    with pytest.raises(CommandError) as caught:
        connect(server).execute(OPEN)
    assert caught.value.__class__ is CommandError
    assert (caught.value.error_class, caught.value.message) == ("GenericError", text)
    assert str(caught.value) == f"guest agent at unix:{server.path}: {OPEN} failed: {text}"


# Capabilities


def test_info_is_asked_once(scripted: Start, connect: Connect) -> None:
    server = scripted(blocked={EXEC: "Command disabled"})
    agent = connect(server)
    assert agent.supports("guest-ping")
    assert agent.supports("guest-ping", SYNC)
    assert not agent.supports(EXEC)
    assert not agent.supports("guest-nope")
    assert not agent.supports("guest-ping", EXEC)
    agent.require("guest-ping", "guest-info")
    assert agent.info.version == "7.2.22"
    assert server.work == ["guest-info"]
    agent.refresh_info()
    assert server.work == ["guest-info"] * 2


def test_all_that_is_missing_is_named(scripted: Start, connect: Connect) -> None:
    blocked = {name: "Command disabled" for name in ("guest-file-open", "guest-file-read")}
    server = scripted({"guest-get-osinfo": {"id": "debian"}}, blocked=blocked)
    with pytest.raises(CommandUnavailable) as caught:
        connect(server).require(OPEN, "guest-ping", "guest-file-read", "guest-get-load", "guest-get-devices")
    assert (caught.value.command, caught.value.reason) == ("guest-file-open", "disabled")
    text = str(caught.value)
    assert "administrator (agent version 7.2.22): guest-file-open, guest-file-read; " in text
    assert "does not know guest-get-load; only agents in Windows guests have guest-get-devices. " in text
    assert "take guest-file-open, guest-file-read out of block-rpcs" in text
    assert "guest-get-load came with version 10.0: upgrade" in text
    assert "guest-ping" not in text


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("system", "command", "elsewhere"),
    [
        ("debian", "guest-get-devices", "Windows"),
        ("mswindows", "guest-get-devices", ""),
        ("mswindows", "guest-set-vcpus", "Linux"),
        ("debian", "guest-set-vcpus", ""),
        ("", "guest-get-devices", ""),
    ],
)
def test_command_of_another_operating_system(
    scripted: Start, connect: Connect, system: str, command: str, elsewhere: str, listed: bool
) -> None:
    """Agents of some versions list it, as disabled; others do not know it. Nothing can be done about either."""
    answers: dict[str, Any] = {"guest-get-osinfo": {"id": system}} if system else {}
    blocked = {command: f"Command {command} has been disabled"} if listed else {}
    error = unavailable(connect(scripted(answers, blocked=blocked)), command)
    if elsewhere:
        assert error.reason == "elsewhere" and not error.hint
        assert error.message == f"only agents in {elsewhere} guests have the command."
    else:
        assert error.reason == ("disabled" if listed else "unknown") and error.hint


@pytest.mark.parametrize(("version", "todo"), [("7.2.22", "upgrade"), ("11.1.3", "was built without it")])
def test_agent_that_is_new_enough_is_not_to_be_upgraded(
    scripted: Start, connect: Connect, version: str, todo: str
) -> None:
    info = {"version": version, "supported_commands": [{"name": "guest-info", "enabled": True}]}
    error = unavailable(connect(scripted({"guest-info": info})), "guest-network-get-route")
    assert f"guest-network-get-route came with version 9.1: {todo}" in error.hint.replace("this agent ", "")


def test_advice_names_what_the_distributions_agent_reads(scripted: Start, connect: Connect) -> None:
    """Debian's unit has neither options nor an EnvironmentFile."""
    server = scripted({"guest-get-osinfo": {"id": "debian"}}, blocked={EXEC: "Command disabled"})
    hint = unavailable(connect(server)).hint
    assert "systemctl cat qemu-guest-agent; without systemd, DAEMON_ARGS in /etc/default" in hint


def test_requirement_is_checked_without_running_anything(scripted: Start, connect: Connect) -> None:
    server = scripted(blocked={EXEC: "Command disabled"})
    with pytest.raises(CommandUnavailable) as caught:
        connect(server).require("guest-ping", EXEC, "guest-nope")
    assert (caught.value.command, caught.value.reason) == (EXEC, "disabled")
    assert caught.value.address == f"unix:{server.path}"
    assert EXEC not in server.work


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"version": "1"},
        {"version": 1, "supported_commands": []},
        {"version": "1", "supported_commands": {}},
        {"version": "1", "supported_commands": ["guest-ping"]},
        {"version": "1", "supported_commands": [{"name": 1}]},
        {"version": "1", "supported_commands": [{}]},
    ],
)
def test_info_that_is_not_what_the_schema_says(scripted: Start, connect: Connect, info: Any) -> None:
    agent = connect(scripted({"guest-info": info}))
    with pytest.raises(ProtocolError) as caught:
        agent.supports("guest-ping")
    assert str(caught.value).startswith(f"guest agent at {agent.name}: guest-info may have run: ")


def test_command_is_enabled_only_if_the_agent_says_so() -> None:
    commands: dict[str, Any] = {"a": True}
    assert AgentInfo("7.2", commands).commands.get("b", False) is False


@pytest.mark.parametrize("enabled", [False, None, 1, "true"])
def test_only_true_is_enabled(scripted: Start, connect: Connect, enabled: Any) -> None:
    info = {"version": "1", "supported_commands": [{"name": "guest-exec", "enabled": enabled}]}
    assert not connect(scripted({"guest-info": info})).supports(EXEC)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("7.2.22", (7, 2, 22)),
        ("11.1.3", (11, 1, 3)),
        ("2.12.0-rc1", (2, 12, 0)),
        ("7.2.11 (Debian)", (7, 2)),
        ("", ()),
        ("git", ()),
        ("7.²", (7,)),
        ("9" * 5000, ()),
        ("7." + "1" * 5000 + ".3", (7,)),
        (".".join("1" * 100_000), (1, 1, 1, 1)),
    ],
)
def test_version_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert AgentInfo(version, {}).version_tuple == numbers


# The rest


def test_log_has_no_arguments(scripted: Start, connect: Connect) -> None:
    lines: list[str] = []
    connect(scripted(FILE), log=lines.append).execute(OPEN, {"path": "123456"})
    assert len(lines) == 1
    assert lines[0].startswith(f"{OPEN} took ") and "123456" not in lines[0]


def test_open_agent(tmp_path: Path) -> None:
    agent = open_agent(f"unix:{tmp_path}/vm1.qga")
    assert (agent.name, agent.timeout) == (f"unix:{tmp_path}/vm1.qga", DEFAULT_TIMEOUT)
    assert open_agent(Address("tcp", host="a", port=1), 3).name == "tcp:a:1"
    with pytest.raises(AddressError):
        open_agent("vm1")


def test_large_reply_in_pieces(scripted: Start, connect: Connect) -> None:
    text = "A" * 3_000_000
    server = scripted({"guest-later": {"buf": text}}, piece=65_521)
    assert connect(server).execute("guest-later") == {"buf": text}
