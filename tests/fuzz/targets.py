# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The targets of the fuzzer: properties that hypothesis tests in each run (test_properties.py), by name.

A property whose input can be made of bytes as they are gets the fuzzer's own: that is quick, and the corpus can be
read. One whose input has more structure is drawn from them by its strategy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol, schema
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ProtocolError
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._agent import test_properties as agent
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest import test_properties as guest
from ansible_collections.qemu.guest.tests.unit.plugins.modules import test_properties as modules
from ansible_collections.qemu.guest.tests.unit.plugins.plugin_utils import test_properties as controller
from ansible_collections.qemu.guest.tests.unit.plugins.plugin_utils._inventory import test_properties as inventory

Target = Callable[[bytes], Any]

COMMANDS = sorted(schema.COMMANDS)
_BETWEEN = b"\0\n"
_BOUNDARY = b"\x01"


def direct(test: Any, made: Callable[[bytes], tuple[Any, ...]]) -> Target:
    """Return a target that calls the function below ``@given`` with what is ``made`` of bytes."""
    inner = test.hypothesis.inner_test
    return lambda data: inner(*made(data))


def drawn(test: Any) -> Target:
    """Return a target that draws a test's input from bytes."""
    target: Target = test.hypothesis.fuzz_one_input
    return target


def as_it_is(data: bytes) -> tuple[bytes]:
    return (data,)


def text(data: bytes) -> str:
    """Return text of any characters; bytes that are no text are among them, as Python shows these."""
    return data.decode("utf-8", "surrogateescape")


def as_text(data: bytes) -> tuple[str]:
    return (text(data),)


def pieces(data: bytes) -> tuple[list[bytes]]:
    return (data.split(_BETWEEN),)


def choice(data: bytes, of: list[Any]) -> tuple[Any, bytes]:
    """Return what the first byte chooses, and the others."""
    return of[data[0] % len(of) if data else 0], data[1:]


def reply(data: bytes) -> tuple[str, Any]:
    """Return a command and what it returned."""
    command, value = choice(data, COMMANDS)
    try:
        return command, protocol.decode_reply(b'{"return": %b}' % value).get("return")
    except ProtocolError:
        return command, text(value)


def stream(data: bytes) -> tuple[str, list[bytes]]:
    command, heard = choice(data, COMMANDS)
    return command, heard.split(_BETWEEN)


def xml(data: bytes) -> tuple[str, bool]:
    return text(data), True


def view(data: bytes) -> tuple[bytes, bool]:
    remote, output = choice(data, [False, True])
    return output.replace(_BOUNDARY, inventory.RECORDS[0]), remote


DIRECT: dict[str, Target] = {
    "address": direct(agent.test_address_is_one_that_can_be_written_again_or_an_error, as_text),
    "answer": direct(controller.test_answer_is_whole_or_there_is_none, lambda data: (data, len(data) // 2)),
    "archive": direct(guest.test_all_that_is_read_of_an_archive_is_in_it, lambda data: (guest.with_checksums(data),)),
    "command": direct(modules.test_command_is_split_as_a_shell_splits_it_or_an_error, as_text),
    "command-line": direct(
        inventory.test_any_command_line_says_something_or_nothing, lambda data: (text(data).split("\0"), "/srv", "")
    ),
    "error": direct(
        agent.test_error_of_the_agent_is_a_command_error_that_can_be_shown, lambda data: ("GenericError", text(data))
    ),
    "files": direct(guest.test_files_make_sense_or_an_error, lambda data: choice(data, [False, True])[::-1]),
    "frame": direct(guest.test_frame_is_an_error_or_within_its_limit, as_it_is),
    "instant": direct(modules.test_instant_is_one_that_the_agent_takes_or_an_error, as_text),
    "limit": direct(agent.test_no_line_is_longer_than_the_limit_and_the_next_one_comes_whole, pieces),
    "lines": direct(agent.test_lines_do_not_depend_on_how_the_stream_is_split, pieces),
    "mode": direct(modules.test_mode_is_one_that_a_file_can_have_or_an_error, lambda data: (text(data), 0o640)),
    "printable": direct(agent.test_printable_is_one_visible_line_and_stays_it, lambda data: (text(data), 40)),
    "relay-output": direct(controller.test_what_a_login_prints_is_a_relay_or_none, as_it_is),
    "reply": direct(agent.test_reply_is_what_json_says_within_its_limits_or_an_error, as_it_is),
    "result": direct(controller.test_result_of_a_program_is_its_own_or_an_error, as_it_is),
    "ring": direct(controller.test_any_line_on_the_ring_is_a_request_or_a_value_error, as_it_is),
    "state": direct(agent.test_state_that_makes_no_sense_is_out_of_sync, as_it_is),
    "stream": direct(agent.test_command_ends_with_a_value_or_an_error_that_says_rightly_whether_it_was_sent, stream),
    "uri": direct(inventory.test_any_uri_has_a_hypervisor, as_text),
    "value": direct(agent.test_value_is_of_the_type_of_the_schema_or_an_error, reply),
    "view": direct(inventory.test_any_output_makes_guests_that_can_be_shown_and_named, view),
    "xml": direct(inventory.test_any_xml_is_a_guest_or_an_error, xml),
}

DRAWN: dict[str, Target] = {
    "compression": drawn(guest.test_damaged_content_is_an_error_or_within_its_limit),
    "facts": drawn(inventory.test_facts_are_bounded_and_can_be_shown),
    "groups": drawn(inventory.test_groups_never_are_their_own_ancestors),
    "interpreter": drawn(controller.test_interpreter_that_says_anything_costs_itself_alone),
    "module-archive": drawn(controller.test_any_archive_is_taken_to_pieces_or_refused),
    "mux": drawn(controller.test_no_packet_ends_the_mux_and_other_clients_go_on),
    "names": drawn(inventory.test_names_are_safe_and_all_different),
    "options": drawn(modules.test_options_of_any_kind_end_in_a_result_or_an_error),
    "payload": drawn(controller.test_guest_has_the_archive_that_was_sent_or_wants_it),
    "relay": drawn(controller.test_relay_leads_nobody_without_the_secret_and_tells_others_why_not),
    "replies": drawn(modules.test_replies_that_make_no_sense_end_in_a_result_or_an_error),
    "request": drawn(agent.test_request_is_one_line_that_says_what_it_was_asked_to_or_is_not_sent),
    "returned": drawn(agent.test_what_is_returned_has_nothing_that_core_takes_for_its_own),
    "turns": drawn(controller.test_one_client_at_most_has_the_turn_and_each_gets_it),
    "unpacked": drawn(guest.test_nothing_is_unpacked_but_the_files_that_were_asked_for),
}

TARGETS = {**DIRECT, **DRAWN}
