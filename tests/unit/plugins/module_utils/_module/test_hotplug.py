# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, ProtocolError
from ansible_collections.qemu.guest.plugins.module_utils._module.hotplug import (
    Switches,
    Unit,
    apply_switches,
    choose,
    described,
    listed,
    units,
    wrongly,
)

# 0 cannot go offline, 2 and 3 are offline.
PRESENT = [Unit(0, True, False), Unit(1, True, True), Unit(2, False, True), Unit(3, False, True), Unit(4, True, True)]


def chosen(**params: Any) -> Switches:
    return choose(PRESENT, {"online": None, "offline": None, "count": None, **params}, "thing")


@pytest.mark.parametrize(
    ("online", "offline", "expected"),
    [
        ([], [], []),
        ([0, 1, 4], [2, 3], []),
        ([3, 2], [1], [(3, True), (2, True), (1, False)]),
        (None, [4, 1], [(4, False), (1, False)]),
        ([2, 2], [4, 4, 4], [(2, True), (4, False)]),
    ],
)
def test_lists(online: Any, offline: Any, expected: Any) -> None:
    switches = chosen(online=online, offline=offline)
    assert list(switches.planned) == expected
    assert switches.needed == len(switches.candidates)


@pytest.mark.parametrize(
    ("count", "expected", "candidates"),
    [
        (3, [], 2),
        (4, [(2, True)], 2),
        (5, [(2, True), (3, True)], 2),
        (2, [(4, False)], 2),
        (1, [(4, False), (1, False)], 2),
    ],
)
def test_count(count: int, expected: Any, candidates: int) -> None:
    switches = chosen(count=count)
    assert list(switches.planned) == expected
    assert len(switches.candidates) == candidates
    after = apply_switches(PRESENT, switches.planned)
    assert len(described(after)["online"]) == count
    assert not choose(after, {"count": count}, "thing").planned, "the second run changes nothing"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"online": [7, 9, 8]}, "There is no thing 7-9 in this guest. It has 0-4."),
        ({"offline": [-1]}, "There is no thing -1 in this guest"),
        ({"online": [1, 2], "offline": [2, 3]}, "online and offline both name thing 2."),
        ({"offline": [1, 0]}, r"The guest cannot take thing 0 offline \(can_offline is false\)"),
        ({"count": 0}, "count: 0 is not possible. This guest has 5 things"),
        ({"count": -3}, "count: -3 is not possible"),
        ({"count": 6}, "count: 6 is not possible. This guest has 5 things"),
    ],
)
def test_what_cannot_be(params: Any, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        chosen(**params)


def test_fewer_than_can_go_offline() -> None:
    present = [Unit(0, True, False), Unit(1, True, False), Unit(2, True, True)]
    with pytest.raises(OperationError, match="2 things of this guest cannot go offline: 0-1"):
        choose(present, {"count": 1}, "thing")


def test_one_stays_online() -> None:
    present = [Unit(0, True, True), Unit(1, True, True)]
    with pytest.raises(OperationError, match="No thing would be left online"):
        choose(present, {"count": None, "online": None, "offline": [0, 1]}, "thing")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], "none"), ([5], "5"), ([1, 0], "0-1"), ([9, 3, 1, 2, 8, 5], "1-3,5,8-9")],
)
def test_listed(numbers: Any, text: str) -> None:
    assert listed(numbers) == text


def test_units_in_any_order() -> None:
    reply = [
        {"logical-id": 1, "online": False, "can-offline": True},
        {"logical-id": 0, "online": True},
    ]
    assert units(reply, "logical-id") == [Unit(0, True, False), Unit(1, False, True)]


@pytest.mark.parametrize(
    "reply",
    [
        [1],
        [{"online": True}],
        [{"logical-id": True, "online": True}],
        [{"logical-id": 1, "online": "yes"}],
        [{"logical-id": 1, "online": True}, {"logical-id": 1, "online": True}],
    ],
)
def test_units_that_are_none(reply: Any) -> None:
    with pytest.raises(ProtocolError):
        units(reply, "logical-id")


def test_wrongly() -> None:
    assert wrongly(PRESENT, [(0, True), (1, False), (2, False), (9, True)]) == [1, 9]
