# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The targets of the fuzzer: properties that hypothesis tests in each run (test_properties.py), by name.

A property that takes bytes gets the fuzzer's own: that is quick, and the corpus can be read. One whose input has a
structure is drawn from them by its strategy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._agent import schema
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._agent import test_properties as agent
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest import test_properties as guest

Target = Callable[[bytes], Any]

COMMANDS = sorted(schema.COMMANDS)
_BETWEEN = b"\0\n"


def property_of(test: Any) -> Callable[..., Any]:
    """Return the function below ``@given``."""
    inner: Callable[..., Any] = test.hypothesis.inner_test
    return inner


def drawn(test: Any) -> Target:
    """Return a target that draws a test's input from bytes."""
    target: Target = test.hypothesis.fuzz_one_input
    return target


def text(data: bytes) -> str:
    """Return text of any characters; bytes that are no text are among them, as Python shows these."""
    return data.decode("utf-8", "surrogateescape")


def pieces(data: bytes) -> list[bytes]:
    return data.split(_BETWEEN)


def reply(data: bytes) -> tuple[str, Any]:
    """Return a command and what it returned, which JSON can carry."""
    try:
        value = json.loads(data[1:])
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        value = text(data[1:])
    return COMMANDS[data[0] % len(COMMANDS)] if data else "guest-unknown", value


DIRECT: dict[str, Target] = {
    "address": lambda data: property_of(agent.test_address_is_one_that_can_be_written_again_or_an_error)(text(data)),
    "archive": lambda data: property_of(guest.test_all_that_is_read_of_an_archive_is_in_it)(guest.with_checksums(data)),
    "error": lambda data: property_of(agent.test_error_of_the_agent_is_a_command_error_that_can_be_shown)(
        "GenericError", text(data)
    ),
    "files": lambda data: property_of(guest.test_files_make_sense_or_an_error)(data[1:], data[:1] > b"0"),
    "frame": lambda data: property_of(guest.test_frame_is_an_error_or_within_its_limit)(data),
    "limit": lambda data: property_of(agent.test_no_line_is_longer_than_the_limit_and_the_next_one_comes_whole)(pieces(data)),
    "lines": lambda data: property_of(agent.test_lines_do_not_depend_on_how_the_stream_is_split)(pieces(data)),
    "printable": lambda data: property_of(agent.test_printable_is_one_visible_line_and_stays_it)(text(data), 40),
    "reply": lambda data: property_of(agent.test_reply_is_what_json_says_within_its_limits_or_an_error)(data),
    "state": lambda data: property_of(agent.test_state_that_makes_no_sense_is_out_of_sync)(data),
    "stream": lambda data: property_of(agent.test_command_ends_with_a_value_or_an_error_that_says_rightly_whether_it_was_sent)(
        COMMANDS[data[0] % len(COMMANDS)] if data else COMMANDS[0], pieces(data[1:])
    ),
    "value": lambda data: property_of(agent.test_value_is_of_the_type_of_the_schema_or_an_error)(*reply(data)),
}

DRAWN: dict[str, Target] = {
    "request": drawn(agent.test_request_is_one_line_that_says_what_it_was_asked_to_or_is_not_sent),
    "returned": drawn(agent.test_what_is_returned_has_nothing_that_core_takes_for_its_own),
    "compression": drawn(guest.test_damaged_content_is_an_error_or_within_its_limit),
}

TARGETS = {**DIRECT, **DRAWN}
