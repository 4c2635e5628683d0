# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever hits a task: what it does is done once, or it says that it may not have been (tests/faults)."""

from __future__ import annotations

import os
import random

import pytest

from ansible_collections.qemu.guest.tests.faults.exactly_once import described, runs
from ansible_collections.qemu.guest.tests.faults.guests import RealGuest
from ansible_collections.qemu.guest.tests.faults.testbed import FaultTestbed
from lab import image
from lab.agent import LooseAgent

PARTS = 4
"""Each has an agent of its own: they run beside each other."""

RUNS = int(os.environ.get("QEMU_GUEST_FAULT_RUNS", "10000" if os.environ.get("QEMU_GUEST_WHOLE") else "300"))
SEED = int(os.environ.get("QEMU_GUEST_FAULT_SEED", "0"))
"""0: another one each time; it is printed."""


@pytest.mark.long
@pytest.mark.timeout(RUNS * 3 + 120)
@pytest.mark.parametrize("part", range(PARTS))
def test_tasks_have_their_effect_once(part: int) -> None:
    seed = SEED + part if SEED else random.randrange(10**6)
    print(f"seed {seed}")
    release = list(image.RELEASES)[-1 if part % 2 else 0]
    with LooseAgent(release) as agent, FaultTestbed(RealGuest(agent)) as testbed:
        reports = list(runs(testbed, seed, RUNS // PARTS))
    wrong = [described(release, seed, number, report) for number, report in reports if report.wrong]
    assert not wrong, "\n".join(wrong)
    assert any(report.hit for _number, report in reports)
