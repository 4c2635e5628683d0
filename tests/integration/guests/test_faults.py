# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of the fault matrix (tests/faults) that need a booted guest.

Usually, some of what hypervisors do all day; the whole has all cells. Where a guest has to boot again after each trial,
it hits one message in the middle. A guest goes back to a snapshot at each message of a put: what was done before is
undone, and nothing tells so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ansible_collections.qemu.guest.tests.faults import booted
from ansible_collections.qemu.guest.tests.faults.injections import INJECTIONS
from ansible_collections.qemu.guest.tests.faults.matrix import GUEST, Cell, cells
from ansible_collections.qemu.guest.tests.faults.testbed import FaultTestbed
from ansible_collections.qemu.guest.tests.faults.trial import Trial, run
from ansible_collections.qemu.guest.tests.integration.guests import conftest
from ansible_collections.qemu.guest.tests.integration.harness import releases

WHOLE = os.environ.get("QEMU_GUEST_WHOLE")
USUAL = {
    *(
        (operation, fault)
        for operation in ("put", "warm", "runner")
        for fault in ("guest rolled back", "guest migrated")
    ),
    ("warm", "clock backwards"),
    ("freeze", "agent restarted"),
}
BOOTS = ("guest reset", "guest rebooted", "QEMU killed")


@pytest.fixture(scope="module", params=releases("bookworm"))
def testbed(request: pytest.FixtureRequest) -> Iterator[FaultTestbed]:
    with conftest.booted(request.param, snapshots=True) as guest, FaultTestbed(booted.BootedGuest(guest)) as testbed:
        yield testbed


def trials(cell: Cell, messages: int) -> Iterator[Trial]:
    """Yield the trials of a cell whose operation takes so many messages."""
    middle = (messages + 1) // 2
    if cell.fault.name in BOOTS:
        yield Trial(cell, middle)
        return
    yield Trial(cell, 0)
    if cell.fault.undoes and cell.operation.name == "put":
        yield from (Trial(cell, number) for number in range(1, messages + 1))
        yield Trial(cell, messages, late=True)
        return
    for number in sorted({1, middle, messages}) if WHOLE else (middle,):
        yield Trial(cell, number)
        yield Trial(cell, number, late=True)


def usual(cell: Cell) -> object:
    marks = () if (cell.operation.name, cell.fault.name) in USUAL else pytest.mark.whole
    return pytest.param(cell, id=cell.name, marks=marks)


# By fault: what an operation has to prepare is lost with each boot.
@pytest.mark.parametrize("cell", [usual(one) for one in sorted(cells(GUEST), key=lambda one: one.fault.name in BOOTS)])
def test_cell(cell: Cell, testbed: FaultTestbed) -> None:
    for trial in trials(cell, testbed.messages(cell.operation.name)):
        report = run(testbed, trial, {**INJECTIONS, **booted.INJECTIONS})
        assert not report.wrong, str(report)
