# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import (
    COMMANDS,
    argument_name,
    command,
    is_read_only,
    longest_reply,
    with_underscores,
)

CHANGING = (
    "file-",
    "exec",
    "set-",
    "shutdown",
    "suspend",
    "fsfreeze-freeze",
    "fsfreeze-thaw",
    "fstrim",
    "ssh-add",
    "ssh-remove",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_may_be_repeated_changes_nothing(name: str) -> None:
    assert is_read_only(name) is not any(name.startswith(f"guest-{verb}") for verb in CHANGING)


def test_what_answers_only_when_it_fails() -> None:
    assert {name for name, known in COMMANDS.items() if not known.answers} == {
        "guest-shutdown",
        "guest-suspend-disk",
        "guest-suspend-ram",
        "guest-suspend-hybrid",
    }


def test_what_a_frozen_guest_takes() -> None:
    """As measured; see also ga_freeze_whitelist in QEMU."""
    assert {name for name, known in COMMANDS.items() if known.while_frozen} == {
        "guest-fsfreeze-status",
        "guest-fsfreeze-thaw",
        "guest-info",
        "guest-ping",
        "guest-sync",
        "guest-sync-delimited",
    }


def test_nothing_is_taken_for_granted_of_an_unknown_command() -> None:
    unknown = command("guest-nobody-knows")
    assert not unknown.read_only and unknown.answers and not unknown.while_frozen
    assert unknown.since == ""


def test_names() -> None:
    assert argument_name("ip-address-type") == "ip_address_type"
    value = [{"a-b": {"c-d": [1, "x-y", None, {"e-f": True}]}}]
    assert with_underscores(value) == [{"a_b": {"c_d": [1, "x-y", None, {"e_f": True}]}}]
    assert value == [{"a-b": {"c-d": [1, "x-y", None, {"e-f": True}]}}], "a copy"


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("command", "arguments", "size"),
    [
        ("guest-ping", None, 4 * MIB),
        ("guest-nobody-knows", {"count": 48 * MIB}, 4 * MIB),
        ("guest-exec-status", {"pid": 1}, 4 * MIB + 44_739_244),
        ("guest-file-read", {"handle": 1}, 4 * MIB + 5464),
        ("guest-file-read", {"handle": 1, "count": 3}, 4 * MIB + 4),
        ("guest-file-read", {"handle": 1, "count": 48 * MIB}, 68 * MIB),
        ("guest-file-read", {"handle": 1, "count": 10**15}, 68 * MIB),
        ("guest-file-read", {"handle": 1, "count": -1}, 68 * MIB),
        ("guest-file-read", {"handle": 1, "count": "a"}, 68 * MIB),
    ],
)
def test_reply_is_as_long_as_its_content_and_a_little_more(command: str, arguments: Any, size: int) -> None:
    assert longest_reply(command, arguments) == size
