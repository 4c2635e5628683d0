# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-core's own integration targets end over the agent as they end over ssh, on the same files.

QEMU_GUEST_PARITY=all runs all that need neither a network nor a kernel of their own, QEMU_GUEST_RELEASES on another
release than bookworm.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ansible_collections.qemu.guest.tests.integration.harness import releases
from ansible_collections.qemu.guest.tests.integration.parity import MORE, TARGETS, WAYS, WHOLE, Comparison
from lab.agent import LooseAgent


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """A machine that the targets may leave their traces on."""
    with LooseAgent(releases("bookworm")[-1]) as agent:
        yield Comparison(agent, tmp_path_factory.mktemp("parity"))


# One way is enough for what sleeps most of its minutes.
CASES = [
    (target, way)
    for target in (TARGETS + MORE if WHOLE else TARGETS)
    for way in WAYS
    if WHOLE or target != "async" or way == "files"
]


@pytest.mark.parametrize(("target", "way"), CASES)
def test_target(target: str, way: str, comparison: Comparison) -> None:
    comparison.check(target, way)
