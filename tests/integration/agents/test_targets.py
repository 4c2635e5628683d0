# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every target that needs no booted guest, with the agents of all releases at once: on the guest itself, with warm and
with plain Python, and on its hypervisor."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.agents.conftest import NEWEST, OLDEST
from ansible_collections.qemu.guest.tests.integration.commands import targets_of_modules
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import run_target
from lab.agent import DANGEROUS, LooseAgent

# Where, and whether with warm Python.
WAYS = {"guest": ("guest", True), "guest-plain": ("guest", False), "hypervisor": ("hypervisor", True)}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A directory of the controller, with a file of random bytes that needs more than one chunk."""
    content = os.urandom(2_500_001)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "large.sha256").write_text(hashlib.sha256(content).hexdigest(), encoding="ascii")
    return tmp_path


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.whole) if way == "guest-plain" else way for way in WAYS]
)
@pytest.mark.parametrize("target", targets_of_modules(in_guests=False))
def test_module(target: str, way: str, agents: dict[str, LooseAgent], make_ansible: MakeAnsible, scratch: Path) -> None:
    place, warm = WAYS[way]
    # On the hypervisor, the same operations run in a process of their own each.
    subjects = {name: agent for name, agent in agents.items() if way == "guest" or name in (OLDEST, NEWEST)}
    variables = {"scratch": str(scratch), "disabled_command": DANGEROUS[-1], "ansible_qga_warm_python": warm}
    run_target(make_ansible, target, place, subjects, **variables)
