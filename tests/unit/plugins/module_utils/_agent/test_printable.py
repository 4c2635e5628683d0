# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.parsing.ajson import AnsibleJSONDecoder

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    OperationError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line, printable, returnable
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Plan, run_operation

FORGED = "no\r\n\x1b[2Aok: [vm1]\x9b1m\u202egnp.exe\u2066\x00\x7f\u2028end\udcff\ufeff"
SHOWN = r"no  \x1b[2Aok: [vm1]\x9b1m\u202egnp.exe\u2066\x00\x7f end\udcff\ufeff"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("/srv/ümläut 日本 \U0001f600 'a\\b'", "/srv/ümläut 日本 \U0001f600 'a\\b'"),
        (FORGED, SHOWN),
        ("\t\v\f\x1c\x85\xa0", " " * 6),
    ],
)
def test_words_are_one_visible_line(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_of_many_words_the_beginning_and_the_end_are_shown() -> None:
    assert printable("a" * 1_000_000 + "the cause", limit=20) == "aaaaaaaaaa … athe cause"
    assert printable("x" * 2000) == "x" * 2000
    assert len(printable("\x1b" * 1_000_000)) < 10_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        (b"a\nb\n\n", "b"),
        ("a\n \x1b[1mb\r\n", r"\x1b[1mb"),
        (b"\xff" + b"x" * 999, f"\ufffd{149 * 'x'} … {150 * 'x'}"),
    ],
)
def test_last_line_is_what_can_be_seen_of_it(text: bytes | str, line: str) -> None:
    assert last_line(text) == line


def test_error_shows_no_more_of_the_guests_words_than_can_be_seen() -> None:
    error = CommandError(FORGED, command="guest-exec", hint=FORGED)
    assert str(error) == f"guest-exec failed: {SHOWN}. {SHOWN}"
    assert error.message == SHOWN == error.args[0]
    error.hint = FORGED * 1000
    assert len(str(error)) < 10_000
    assert ProtocolError("x" * 10**6).message.count("x") == 2000


def test_error_shows_a_command_and_an_address_as_what_can_be_seen_of_them() -> None:
    error = CommandError("no", command="a\x1b[2Ab")
    error.address = "unix:/run/a\nb"
    assert str(error) == r"guest agent at unix:/run/a b: a\x1b[2Ab failed: no."[:-1]


def test_warning_of_an_operation_is_one_visible_line() -> None:
    operation = Operation({}, lambda agent, params: None, lambda state, params: Plan(warnings=[FORGED]))
    assert run_operation(operation, Named(), {})["warnings"] == [f"vm1: {SHOWN}"]


class Named(Agent):
    """An agent that is asked nothing."""

    def __init__(self) -> None:
        super().__init__("vm1")

    def _request(self, command: str, arguments: Any, deadline: Any) -> dict[str, Any]:
        raise AssertionError("nobody asks")

    def close(self) -> None:
        pass


MAGIC: list[Any] = [
    {"__ansible_type": "nothing"},
    {"__ansible_type": "AnsibleTaggedObject", "value": 1},
    {"__ansible_type": []},
    {"__ansible_unsafe": 5},
    {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256\n00"},
    [{"deep": [{"__ansible_type": "_AnsibleTaggedDate", "iso8601": "x"}]}],
    "\ud800 text \udcff",
    {"\udcff": 1},
]


@pytest.mark.parametrize("value", MAGIC)
def test_what_core_takes_for_its_own_is_returned_as_data(value: Any) -> None:
    """As it does with each module's result; _json exists from core 2.19 on."""
    before = {"plain": [1, None, True, 1.5, "a_b", {"_ansible_no_log": 1}], "value": value}
    text = json.dumps(returnable(before))
    result = decoded(text)
    assert json.loads(text) == result, "nothing has become an object"
    assert result["plain"] == before["plain"]
    text.encode("utf-8")
    assert "__ansible" not in text


def decoded(text: str) -> Any:
    """Return what core makes of the result of a module."""
    try:
        from ansible.module_utils._internal._json._profiles._module_legacy_m2c import Decoder
    except ImportError:
        return json.loads(text, cls=AnsibleJSONDecoder)
    return json.loads(text, cls=Decoder)


def test_result_of_an_operation_and_of_its_failure_can_be_returned() -> None:
    magic = {"__ansible_type": "nothing", "name": "\udcff"}
    plain = {"ansible_type": "nothing", "name": "\ufffd"}
    operation = Operation({}, lambda agent, params: None, lambda state, params: Plan(result={"found": [magic]}))
    assert run_operation(operation, Named(), {}) == {"changed": False, "found": [plain]}
    assert OperationError("No.", result={"found": (magic,)}).as_result() == {"found": [plain]}
