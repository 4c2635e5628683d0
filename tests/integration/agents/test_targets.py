# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every target that needs no booted guest, both ways: on the guest itself and on its hypervisor.

It runs with the agents of all releases at once.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import (
    HERE,
    guest_variables,
    hypervisor_variables,
)
from lab import image
from lab.agent import DANGEROUS, LooseAgent

# On the hypervisor, the same operations run in a process of their own each: the oldest and the newest agent will do.
ENDS = ("bullseye", "sid")
MODULES = sorted(
    path.name
    for path in (HERE / "targets").glob("qga_*")
    if "needs/guest" not in (path / "aliases").read_text(encoding="ascii").splitlines()
)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A directory of the controller, with a file of random bytes that needs more than one chunk."""
    content = os.urandom(2_500_001)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "large.sha256").write_text(hashlib.sha256(content).hexdigest(), encoding="ascii")
    return tmp_path


@pytest.mark.parametrize("place", ["guest", "hypervisor"])
@pytest.mark.parametrize("target", MODULES)
def test_module(
    target: str, place: str, agents: dict[str, LooseAgent], make_ansible: MakeAnsible, scratch: Path
) -> None:
    variables = {"guest": guest_variables, "hypervisor": hypervisor_variables}[place]
    hosts = {
        release: {
            **variables(agent),
            "agent_version": image.build(release).agent_version,
            "disabled_command": DANGEROUS[-1],
        }
        for release, agent in agents.items()
        if place == "guest" or release in ENDS
    }
    ansible = make_ansible(hosts)
    ansible.playbook(HERE / "targets.yml", variables={"target": target, "scratch": str(scratch)})
