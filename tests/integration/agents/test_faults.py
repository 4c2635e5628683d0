# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of the fault matrix (tests/faults) that need no guest: at the first, a middle and the last message."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ansible_collections.qemu.guest.tests.faults.guests import RealGuest, ScriptedGuest
from ansible_collections.qemu.guest.tests.faults.injections import INJECTIONS, can_come_first
from ansible_collections.qemu.guest.tests.faults.matrix import AGENT, SCRIPTED, Cell, cells
from ansible_collections.qemu.guest.tests.faults.testbed import FaultTestbed
from ansible_collections.qemu.guest.tests.faults.trial import Trial, run
from ansible_collections.qemu.guest.tests.integration.harness import releases
from lab import image
from lab.agent import LooseAgent

WHOLE = os.environ.get("QEMU_GUEST_WHOLE")
OLDEST, *_BETWEEN, NEWEST = image.RELEASES


@pytest.fixture(scope="module", params=releases(pytest.param(OLDEST, marks=pytest.mark.whole), NEWEST))
def testbed(request: pytest.FixtureRequest) -> Iterator[FaultTestbed]:
    with LooseAgent(request.param) as agent, FaultTestbed(RealGuest(agent)) as testbed:
        yield testbed


def trials(cell: Cell, messages: int) -> Iterator[Trial]:
    """Yield the trials of a cell whose operation takes so many messages."""
    if can_come_first(cell) and (cell.operation.name != "async" or cell.fault.group == "clients"):
        yield Trial(cell, 0)
    if cell.fault.group == "clients":
        return
    some = list(range(1, messages + 1)) if WHOLE else sorted({1, (messages + 1) // 2, messages})
    if cell.operation.name == "async":  # it takes seconds
        some = some[1:2]
    for number in some:
        moments = (False, True) if cell.fault.name in INJECTIONS and WHOLE else (number % 2 == 0,)
        for late in moments:
            yield Trial(cell, number, late)


@pytest.fixture(scope="module")
def scripted_testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTestbed]:
    with ScriptedGuest(tmp_path_factory.mktemp("scripted") / "agent.sock") as guest, FaultTestbed(guest) as testbed:
        yield testbed


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in cells(AGENT)])
def test_cell(cell: Cell, testbed: FaultTestbed) -> None:
    for trial in trials(cell, testbed.messages(cell.operation.name)):
        report = run(testbed, trial)
        assert not report.wrong, str(report)


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in cells(SCRIPTED)])
def test_cell_of_a_scripted_agent(cell: Cell, scripted_testbed: FaultTestbed) -> None:
    for trial in trials(cell, scripted_testbed.messages(cell.operation.name)):
        report = run(scripted_testbed, trial)
        assert not report.wrong, str(report)
