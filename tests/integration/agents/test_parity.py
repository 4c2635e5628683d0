# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-core's own integration targets end over the agent as they end over ssh, on such files.

QEMU_GUEST_PARITY=all runs all that need neither a network nor a kernel of their own, QEMU_GUEST_RELEASES on another
release than bookworm.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.harness import releases
from ansible_collections.qemu.guest.tests.integration.parity import MORE, TARGETS, WAYS, WHOLE, compare
from lab.agent import LooseAgent

# One way is enough for what sleeps most of its minutes.
CASES = [
    pytest.param(
        target,
        way,
        marks=[pytest.mark.whole] * (way == "guest-exec") + [pytest.mark.long] * (target == "async"),
    )
    for target in (TARGETS + MORE if WHOLE else TARGETS)
    for way in WAYS
    if WHOLE or target != "async" or way == "files"
]


@pytest.mark.parametrize(("target", "way"), CASES)
def test_target(target: str, way: str, tmp_path: Path) -> None:
    # Two that nobody has used: a target that has been run leaves its traces.
    release = releases("bookworm")[-1]
    with LooseAgent(release) as agent, LooseAgent(release) as twin:
        compare(target, way, agent, lambda: twin, tmp_path)
