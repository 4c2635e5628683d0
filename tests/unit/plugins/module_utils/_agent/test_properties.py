# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a guest sends, and whatever a user types: what the client makes of it."""

from __future__ import annotations

import base64
import json
import math
from collections import deque
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol, schema, socket_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address, parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import value_of
from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import Channel, SyncState
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    CommandError,
    ConnectError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    command_error,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import decode_state, encode_state
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line, printable, returnable
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import (
    SENTINEL,
    Base64,
    ReplyParser,
    decode_reply,
    encode_request,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.tests.unit.properties import bytes_of, text_of, values

REPLIES = (
    b'{"return": {}, "id": "7-2"}\n',
    b'{"return": 7, "id": "7-1"}\n',
    b'{"return": 7}\n',
    b'{"return": {}}\n',
    b'{"error": {"class": "GenericError", "desc": "JSON parse error, stray \'\\ufffd\'"}}\n',
    b'{"error": {"class": "CommandNotFound", "desc": "x"}, "id": "7-2"}\n',
    b'{"error": {"desc": "QMP input object member \'id\' is unexpected"}}\n',
    b'{"error": {"desc": "guest-sync-delimited"}}\n',
    b'{"return": {"buf-b64": "YQ==", "count": 1, "eof": true}, "id": "7-2"}\n',
    b"\n",
    SENTINEL,
)
WORDS = (b"{", b"}", b"[", b"]", b":", b",", b'"', b'"return"', b'"id"', b"\\", b"\\ud800", b"1e999", b"NaN", b"9" * 41)


# The protocol


@given(st.lists(bytes_of(*REPLIES), max_size=8))
def test_lines_do_not_depend_on_how_the_stream_is_split(pieces: list[bytes]) -> None:
    expected = []
    for line in b"".join(pieces).split(b"\n")[:-1]:
        after = line.split(SENTINEL)[-1]
        if after.strip():
            expected.append(after)
    parser = ReplyParser()
    assert [line for piece in pieces for line in parser.feed(piece)] == expected


@given(st.lists(bytes_of(b"\n", b"12345678"), max_size=8))
def test_no_line_is_longer_than_the_limit_and_the_next_one_comes_whole(pieces: list[bytes]) -> None:
    parser = ReplyParser(limit=10)
    for piece in pieces:
        try:
            assert all(len(line) <= 10 for line in parser.feed(piece))
        except ProtocolError:
            assert not parser._pending
        assert len(parser._pending) <= 10
    parser.reset()
    assert parser.feed(b"{}\n") == [b"{}"]


def small(digits: str) -> int:
    assert -(2**63) <= int(digits) < 2**64
    return int(digits)


def depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, children), default=0) if isinstance(value, (dict, list)) else 0


odd = st.sampled_from([b"NaN", b"-Infinity", b"1e999", b"9" * 21, b"1." + b"1" * 41, b"[" * 70 + b"]" * 70])


@given(
    bytes_of(*REPLIES, *WORDS)
    | odd.map(lambda value: b'{"return": [%b]}' % value)
    | values.map(lambda value: json.dumps({"return": value}).encode())
)
@example(b'{"return": {"buf-b64": "\xc3\xbc"}}')
def test_reply_is_what_json_says_within_its_limits_or_an_error(line: bytes) -> None:
    try:
        reply = decode_reply(line)
    except ProtocolError as exc:
        assert exc.executed == "unknown" and str(exc).isprintable()
        reply = None
    else:
        assert reply == json.loads(line, parse_int=small) and depth(reply) <= protocol._MAX_DEPTH + 2
        json.dumps(reply, allow_nan=False)
    # A long reply is read by a shortcut, which says the same of base64.
    usual, protocol._LONG = protocol._LONG, 0
    try:
        short = decode_reply(line)
    except ProtocolError:
        short = None
    finally:
        protocol._LONG = usual
    assert short == reply or not is_base64(short)


def is_base64(reply: protocol.Reply | None) -> bool:
    """Return whether the content of a reply can be decoded."""
    holder = (reply or {}).get("return")
    try:
        for name in ("buf-b64", "out-data", "err-data"):
            if isinstance(holder, dict) and isinstance(holder.get(name), str):
                base64.b64decode(holder[name], validate=True)
    except ValueError:
        return False
    return True


@given(st.text(max_size=8), st.dictionaries(st.text(max_size=8), values | st.binary(max_size=2)), st.text(max_size=4))
def test_request_is_one_line_that_says_what_it_was_asked_to_or_is_not_sent(
    command: str, arguments: dict[str, Any], number: str
) -> None:
    try:
        line = encode_request(command, {**arguments, "content": Base64("YQ==")}, number)
    except ProtocolError as exc:
        assert exc.executed == "no"
        return
    assert line.isascii() and line.count(b"\n") == 1
    said = {"execute": command, "arguments": {**arguments, "content": "YQ=="}, **({"id": number} if number else {})}
    assert json.loads(line) == said


@given(st.sampled_from([*schema.COMMANDS, "guest-unknown"]), values)
def test_value_is_of_the_type_of_the_schema_or_an_error(command: str, value: Any) -> None:
    known = schema.command(command).returns
    fits = isinstance(value, known) and (not isinstance(value, bool) or object in known)
    try:
        assert value_of(command, {"return": value}) == value and fits
    except ProtocolError as exc:
        assert not fits and exc.executed == "unknown"


# The agent at the other end of a stream


class Stream(Channel):
    """A channel on which these pieces arrive, whatever is sent."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = deque(pieces)
        self.sent = b""
        self._state = SyncState()

    def send(self, data: bytes, deadline: Deadline) -> None:
        self.sent += data

    def recv(self, deadline: Deadline) -> bytes:
        while self.pieces:
            piece = self.pieces.popleft()
            if piece:
                return piece
        raise OutcomeUnknownError("the other side closed the channel")

    def is_silent(self, deadline: Deadline) -> bool:
        return False

    def close(self) -> None:
        pass


class StreamAgent(SocketAgent):
    """An agent of which these pieces are heard. Its first sync has the number 7, and its ids begin with 7."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(Address("tcp", host="guest", port=1), connect=self.refuse)
        self.stream = self._channel = Stream(pieces)
        self._id_prefix = "7"

    @staticmethod
    def refuse(*_of: object) -> Any:
        raise ConnectError("nothing listens")


class Seven:
    """In place of the module random."""

    @staticmethod
    def getrandbits(_bits: int) -> int:
        return 7


def refused_by_agent(error: QgaError) -> bool:
    return isinstance(error, CommandError) or "could not parse the request" in error.message


@given(st.sampled_from(sorted(schema.COMMANDS)), st.lists(bytes_of(*REPLIES, *WORDS), max_size=6))
@example("guest-ping", [REPLIES[1], REPLIES[0]])
def test_command_ends_with_a_value_or_an_error_that_says_rightly_whether_it_was_sent(
    command: str, pieces: list[bytes]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket_agent, "random", Seven)
        patch.setattr(socket_agent, "open_channel", StreamAgent.refuse)
        patch.setattr(socket_agent, "other_client", lambda *_of: (False, ""))
        agent = StreamAgent(pieces)
        try:
            value = agent.execute(command)
        except QgaError as exc:
            error: QgaError | None = exc
        else:
            error = None
            known = schema.command(command)
            assert isinstance(value, known.returns) or (value is None and not known.answers)
    was_sent = (
        b'\n{"execute":"%b"' % command.encode() in agent.stream.sent
    )  # a sync of our own has a sentinel before it
    if error is None:
        assert was_sent
        return
    assert str(error).isprintable() and len(str(error)) < 10_000
    json.dumps(error.as_result(), allow_nan=False)
    if error.executed == "no":
        # A command that only reads is repeated once; then it is the second time that was not sent.
        assert not was_sent or schema.is_read_only(command) or refused_by_agent(error)
    else:
        assert was_sent


@given(st.text(max_size=20), text_of("failed to open file '/x': ", "No such file or directory", "handle '1' has not"))
def test_error_of_the_agent_is_a_command_error_that_can_be_shown(error_class: str, desc: str) -> None:
    error = command_error("guest-file-open", error_class, desc)
    assert isinstance(error, CommandError) and error.executed == "yes"
    assert str(error).isprintable() and len(str(error)) < 30_000


# The state that a mux keeps


@given(st.builds(SyncState, st.floats(0, 1e9), st.booleans(), st.booleans()))
def test_state_is_what_it_was(state: SyncState) -> None:
    assert decode_state(encode_state(state)) == state


@given(
    bytes_of(b"[", b"]", b",", b"1.5", b"true", b"Infinity", b'"abc"') | values.map(lambda v: json.dumps(v).encode())
)
@example(b"[Infinity]")
@example(b"[" * 100_000)
def test_state_that_makes_no_sense_is_out_of_sync(text: bytes) -> None:
    state = decode_state(text)
    assert isinstance(state.since, float) and math.isfinite(state.since)
    assert isinstance(state.takes_id, bool) and isinstance(state.echoes_id, bool)


# Text of a guest


@given(text_of("\x1b[1m", "\u202e", "\n", "\\") | st.text(min_size=30), st.integers(2, 40))
def test_printable_is_one_visible_line_and_stays_it(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable() and len(shown) <= 10 * (limit + 3)
    assert printable(shown, 10_000) == shown
    assert "\n" not in last_line(text) and last_line(text).isprintable()


@given(values)
def test_what_is_returned_has_nothing_that_core_takes_for_its_own(value: Any) -> None:
    safe = returnable(value)
    assert returnable(safe) == safe
    text = json.dumps(safe, ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")
    assert '"__ansible_type":' not in text


# Addresses


@given(
    text_of(
        "unix:", "/run/a", "@", "vsock:", "tcp:", "libvirt:", ":", "1", "65535", "4294967295", "[", "]", "::1", "\0"
    )
)
@example("/run/a\0")
@example("libvirt:\ud800")
@example("tcp:[a[b]:80")
def test_address_is_one_that_can_be_written_again_or_an_error(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError as exc:
        assert str(exc).isprintable() and exc.executed == "no"
        return
    assert parse_address(str(address)) == address
    assert address.identity and address.name.lstrip("\0") in text
    str(address).encode("utf-8", "surrogateescape")
