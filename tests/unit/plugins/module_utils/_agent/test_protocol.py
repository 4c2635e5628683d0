# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ProtocolError
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import (
    MAX_STRUCTURE,
    Base64,
    ReplyParser,
    decode_reply,
    encode_request,
    expect,
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _level in range(depth):
        value = [value]
    return value


# Requests


def test_request_without_id() -> None:
    assert encode_request("guest-ping", None, "") == b'{"execute":"guest-ping"}\n'


def test_request_is_one_line_of_ascii() -> None:
    line = encode_request("guest-file-open", {"path": "/tmp/ümläut \U0001f600\n"}, "7-1")
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert line.isascii()
    assert json.loads(line) == {
        "execute": "guest-file-open",
        "id": "7-1",
        "arguments": {"path": "/tmp/ümläut \U0001f600\n"},
    }


@pytest.mark.parametrize("arguments", [None, {}])
def test_request_without_arguments_has_no_such_member(arguments: dict[str, Any] | None) -> None:
    assert encode_request("guest-ping", arguments, "a") == b'{"execute":"guest-ping","id":"a"}\n'


def test_request_keeps_integers_whole() -> None:
    assert b'"id":9223372036854775807}' in encode_request("guest-sync", {"id": 2**63 - 1}, "a")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("\udcff", id="byte that is not UTF-8"),
        pytest.param("\ud83d", id="half a surrogate pair"),
        pytest.param(["deep", {"er": "\udc80"}], id="lone surrogate inside"),
        pytest.param(float("nan"), id="NaN"),
        pytest.param(float("inf"), id="infinity"),
        pytest.param(b"bytes", id="bytes"),
        pytest.param({1, 2}, id="set"),
        pytest.param(nested(100_000), id="nesting"),
    ],
)
def test_request_that_json_cannot_carry_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode_request("guest-exec", {"path": value}, "a")
    assert caught.value.executed == "no"
    assert "was not sent" in str(caught.value)
    assert caught.value.command == "guest-exec"


@pytest.mark.parametrize("text", ["\\ud800", "C:\\udata", "\U0001f600"])
def test_request_with_text_that_looks_like_a_surrogate_is_sent(text: str) -> None:
    assert json.loads(encode_request("guest-exec", {"path": text}, "a"))["arguments"] == {"path": text}


# Replies


def test_reply_is_an_object() -> None:
    assert decode_reply(b'{"return": {"a": [1, "\\u00fc", null]}, "id": 1}\r') == {
        "return": {"a": [1, "ü", None]},
        "id": 1,
    }


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"5",
        b'"text"',
        b"null",
        b"{",
        b'{"return": {}} {"return": {}}',
        b'{"return": NaN}',
        b'{"return": Infinity}',
        b'{"return": -Infinity}',
        b'{"return": "\xff"}',
        b'{"return": "\xed\xa0\x80"}',
        b"\x00",
        b'{"return": ' + b"[" * 100_000,
        b'{"return": 1e999}',
        b'{"return": [-1.5e400]}',
        b'{"return": 18446744073709551616}',
        b'{"return": -9223372036854775809}',
        b'{"return": ' + b"9" * 1_000_000 + b"}",
        b'{"return": 0.' + b"1" * 1_000_000 + b"}",
    ],
)
def test_line_that_is_no_reply(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(line)


def test_numbers_are_those_of_the_schema() -> None:
    numbers = [2**64 - 1, -(2**63), 0, 1.5, -1e-300, 1.7976931348623157e308, 0.30000000000000004]
    assert decode_reply(json.dumps({"return": numbers}).encode()) == {"return": numbers}


@pytest.mark.parametrize("digits", [4001, 1_000_000])
def test_digits_are_counted_before_they_are_read(digits: int) -> None:
    """Pythons that limit them allow 4300; the others take 17 seconds for a million."""
    with pytest.raises(ProtocolError, match=f"a number of {digits} digits"):
        decode_reply(b'{"return": ' + b"1" * digits + b"}")


def test_values_are_counted_before_they_are_made() -> None:
    most = protocol._MAX_VALUES - 2
    assert len(decode_reply(b'{"return": [' + b"0," * (most - 1) + b"0]}")["return"]) == most
    for value in (b"0", b"{}", b"[]", b'"a":0'):
        text = b",".join([value] * (MAX_STRUCTURE // 5))
        with pytest.raises(ProtocolError, match=f"more than {protocol._MAX_VALUES} values"):
            decode_reply(b'{"return": [' + text[: MAX_STRUCTURE - 20] + b"]}")


def test_what_is_not_content_has_a_limit() -> None:
    content = b'"out-data": "' + b"A" * 2 * MAX_STRUCTURE + b'", "err-data":"' + b"B" * 2 * MAX_STRUCTURE + b'"'
    for rest in (b"", b', "exited": true', b', "x": "' + b"x" * (MAX_STRUCTURE - 100) + b'"'):
        value = decode_reply(b'{"return": {' + content + rest + b"}}")["return"]
        assert (len(value["out-data"]), len(value["err-data"])) == (2 * MAX_STRUCTURE,) * 2
    for reply in (b'{"x": "%b", %b}' % (b"x" * MAX_STRUCTURE, content), b'{"a": {%b}}' % content, b"[{%b}]" % content):
        with pytest.raises(ProtocolError, match=f"larger than {MAX_STRUCTURE} bytes"):
            decode_reply(b'{"return": %b}' % reply)


def test_line_takes_the_room_of_its_bytes_however_it_arrives() -> None:
    parser = ReplyParser()
    tracemalloc.start()
    try:
        for number in range(50_000):
            parser.feed(b"%d" % (number % 10))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_error_shows_the_start_of_a_long_line_only() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_reply(b"x" * 1_000_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_has_a_limit(opening: str, closing: str) -> None:
    def reply(depth: int) -> bytes:
        return f'{{"return": {opening * depth}1{closing * depth}}}'.encode()

    assert "return" in decode_reply(reply(60))
    with pytest.raises(ProtocolError, match="nested"):
        decode_reply(reply(66))
    with pytest.raises(ProtocolError, match=r"nested|recursion"):
        decode_reply(reply(900))


# Framing


def feed(parser: ReplyParser, *pieces: bytes) -> list[bytes]:
    return [line for piece in pieces for line in parser.feed(piece)]


def test_lines_come_whole_however_they_arrive() -> None:
    assert feed(ReplyParser(), b'{"a"', b": 1", b"}\n{", b"}\n\n{x") == [b'{"a": 1}', b"{}"]


def test_sentinel_frees_a_line_of_what_was_before_it() -> None:
    parser = ReplyParser()
    assert feed(parser, b"half a line\xff{1}\n") == [b"{1}"]
    assert feed(parser, b"\xff", b"\xff{2}", b"\n") == [b"{2}"]
    assert feed(parser, b"{3}\n") == [b"{3}"]


def test_sentinel_alone_is_no_line() -> None:
    assert feed(ReplyParser(), b"\xff\n", b" \t\r\n", b"\n") == []


def test_reset_forgets_half_a_line() -> None:
    parser = ReplyParser(limit=10)
    feed(parser, b"12345678")
    parser.reset()
    assert feed(parser, b"{2345678}\n") == [b"{2345678}"]


@pytest.mark.parametrize(
    "pieces", [[b"12345678901"], [b"123456", b"78901"], [b"12345678901\n"], [b"12345", b"678901\n"]]
)
def test_line_beyond_the_limit_is_an_error_and_forgotten(pieces: list[bytes]) -> None:
    parser = ReplyParser(limit=10)
    with pytest.raises(ProtocolError, match="larger than 10 bytes"):
        feed(parser, *pieces)
    parser.reset()
    assert feed(parser, b"x" * 10 + b"\n") == [b"x" * 10]


def test_limit_is_of_a_line_not_of_what_arrives_at_once() -> None:
    assert len(feed(ReplyParser(limit=10), b"12345678\n" * 100)) == 100


# Types


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, int),
        (True, bool),
        ("", str),
        ({}, dict),
        ([], list),
        (None, object),
        (True, object),
        (1, (str, int)),
        (True, (bool, int)),
    ],
)
def test_value_of_the_right_type_passes(value: Any, kind: Any) -> None:
    assert expect(value, kind, "it") is value


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, int), (1, bool), (1.0, int), ("1", int), (None, dict), ([], dict), (True, (int, str)), (b"", str)],
)
def test_value_of_the_wrong_type_is_an_error(value: Any, kind: Any) -> None:
    with pytest.raises(ProtocolError, match=f"it should be .* sent {type(value).__name__}"):
        expect(value, kind, "it")


def test_integer_that_the_schema_has_no_room_for() -> None:
    assert expect(2**64 - 1, (int, str), "it") == 2**64 - 1
    for value in (2**64, -(2**65), 10**4000):
        with pytest.raises(ProtocolError, match="it should have at most 64 bits"):
            expect(value, int, "it")


@pytest.mark.parametrize("before", [{}, {"handle": 7}])
def test_request_with_content_says_what_it_would_say_without_a_shortcut(before: dict[str, int]) -> None:
    arguments = {**before, "buf-b64": Base64("aGVsbG8="), "more": Base64("")}
    line = encode_request("guest-file-write", arguments, "id-1")
    assert json.loads(line) == {"execute": "guest-file-write", "id": "id-1", "arguments": arguments}
    assert line.endswith(b"}}\n") and line.count(b"\n") == 1


LONG = "QUJD" * 40_000
WITH_CONTENT = {
    "content": {"return": {"count": 120_000, "buf-b64": LONG, "eof": False}, "id": "1"},
    "id first": {"id": "1", "return": {"buf-b64": LONG}},
    "no content": {"return": {"out-data": LONG, "exited": True}},
    "empty": {"return": {"buf-b64": "", "other": LONG}},
    "elsewhere": {"return": {"inner": {"buf-b64": LONG}}},
    "both outputs": {"return": {"err-data": LONG, "exited": True, "out-data": LONG, "exitcode": 0}},
    "an output elsewhere": {"return": {"out-data": LONG, "inner": {"err-data": LONG}}},
    "three": {"return": {"out-data": LONG, "err-data": LONG, "buf-b64": LONG}},
    "in a list": {"return": [{"buf-b64": LONG}]},
    "in a text": {"return": {"text": '"buf-b64": "' + LONG + '"', "buf-b64": "QQ=="}},
    "twice": {"return": {"inner": {"buf-b64": LONG}, "buf-b64": LONG}},
    "escaped": {"return": {"buf-b64": LONG + '"\\\n/'}},
    "not base64": {"return": {"buf-b64": LONG + "{}[]:,"}},
}


@pytest.mark.parametrize("reply", WITH_CONTENT.values(), ids=WITH_CONTENT)
def test_long_reply_says_what_it_would_say_without_a_shortcut(reply: dict[str, Any]) -> None:
    for text in (json.dumps(reply), json.dumps(reply, separators=(",", ":")), json.dumps(reply).replace("/", "\\/")):
        assert decode_reply(text.encode()) == reply


def test_long_reply_that_ends_in_its_content_is_an_error() -> None:
    with pytest.raises(ProtocolError):
        decode_reply(b'{"return": {"buf-b64": "' + LONG.encode())
