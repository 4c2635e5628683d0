# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which names guests get."""

from __future__ import annotations

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.names import (
    Taken,
    Wish,
    distinct,
    first_safe,
    why_unsafe,
)

NOTHING = Taken(frozenset(), frozenset())
UUIDS = ("6f1c4f3e-9d1b-4d54-9a57-0d8a3a1f2b3c", "7f1c4f3e-9d1b-4d54-9a57-0d8a3a1f2b3c")
HOSTILE = [
    "{{ lookup('pipe', 'touch /tmp/x') }}",
    "{% raw %}",
    "$(touch /tmp/x)",
    "`id`",
    "a;b",
    "a\nb",
    "-oProxyCommand=touch",
    "--help",
    "../../etc/passwd",
    "..",
    ".hidden",
    "a/b",
    "!vault |",
    "&a",
    "*",
    "~web",
    "@file",
    "a:b",
    "a,b",
    "[1:9]",
    "\x1b[2J",
    "caf\u00e9",
    "\u202egnp",
    "",
    "x" * 254,
]
RESERVED = ["all", "ALL", "ungrouped", "localhost", "LocalHost", "localhost4", "localhost.localdomain", "127.0.0.1"]


@pytest.mark.parametrize("name", [*HOSTILE, *RESERVED])
def test_unsafe(name: str) -> None:
    assert why_unsafe(Wish(name), NOTHING)


@pytest.mark.parametrize("name", ["web", "web-1", "1", "a.example.com", "192.0.2.1", "A_b", "alliance", UUIDS[0]])
def test_safe(name: str) -> None:
    assert not why_unsafe(Wish(name), NOTHING)


def test_taken_names() -> None:
    taken = Taken(frozenset({"webservers"}), frozenset({"db1"}))
    assert why_unsafe(Wish("webservers"), taken) and why_unsafe(Wish("db1", own=True), taken)
    assert not why_unsafe(Wish("db1"), taken), "the hypervisor may add to a host of another source"


def test_next_preference_is_used_and_the_first_named() -> None:
    warnings: list[str] = []
    guest = Guest("hv1", "process", name="a\x1bb")
    assert first_safe(guest, [Wish("a\x1b/b"), Wish("second")], NOTHING, warnings.append).name == "second"
    assert len(warnings) == 1 and warnings[0].isprintable() and "a\\\\x1b/b" in warnings[0].replace("\\x", "\\\\x")


def test_spaces_become_underscores() -> None:
    assert first_safe(Guest("hv1", "x"), [Wish(" web 1 ")], NOTHING, print).name == "web_1"


def test_last_resort_is_the_same_each_time_and_another_for_others() -> None:
    names = [first_safe(Guest("hv1", "x", address=path), [], NOTHING, print).name for path in ("/a", "/a", "/b")]
    assert names[0] == names[1] != names[2] and not why_unsafe(Wish(names[0]), NOTHING)


def told_apart(*guests: Guest, taken: Taken = NOTHING) -> tuple[list[str], list[str]]:
    warnings: list[str] = []
    return distinct(guests, [Wish(guest.name) for guest in guests], taken, warnings.append), warnings


def test_by_hypervisor() -> None:
    names, warnings = told_apart(Guest("root@hv1", "x", name="web"), Guest("hv 2", "x", name="web"), Guest("hv1", "x"))
    assert names == ["web-hv1", "web-hv_2", ""]
    assert warnings == ["2 guests are called web; they are web-hv1, web-hv_2 here"]


def test_by_uuid_then_vmid_then_pid_then_address() -> None:
    def pair(**values: tuple[str, str]) -> list[str]:
        guests = [Guest("hv", "x", name="web") for _n in (0, 1)]
        for key, value in values.items():
            for guest, each in zip(guests, value, strict=True):
                setattr(guest, key, each)
        return told_apart(*guests)[0]

    assert pair(uuid=UUIDS) == ["web-6f1c4f3e", "web-7f1c4f3e"]
    assert pair(uuid=(UUIDS[0], UUIDS[0]), vmid=("100", "101")) == ["web-100", "web-101"]
    assert pair(pid=("7", "8")) == ["web-7", "web-8"]
    by_address = pair(address=("/a", "/b"))
    assert len(set(by_address)) == 2 and all(name.startswith("web-") for name in by_address)


def test_name_that_tells_apart_is_not_another_ones() -> None:
    guests = [Guest("hv1", "x", name="web"), Guest("hv2", "x", name="web"), Guest("hv1", "x", name="web-hv1", uuid="1")]
    names, _warnings = told_apart(*guests, taken=Taken(frozenset({"web-hv2"}), frozenset()))
    assert names[2] == "web-hv1" and len(set(names)) == 3 and not {"web", "web-hv2"} & set(names)


def test_who_gave_the_name_to_himself_does_not_take_it_from_another() -> None:
    guests = [Guest("hv", "x", name="web", pid=pid) for pid in ("1", "2", "3")]
    wishes = [Wish("web", own=True), Wish("web"), Wish("web", own=True)]
    warnings: list[str] = []
    assert distinct(guests, wishes, NOTHING, warnings.append) == ["web-1", "web", "web-3"]
    assert warnings == ["3 guests are called web; they are web-1, web, web-3 here"]
    assert "web" not in distinct(guests[:2], [Wish("web", own=True)] * 2, NOTHING, print)
