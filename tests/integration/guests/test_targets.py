# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every target that needs a booted guest (aliases: needs/guest): on all guests, and from the hypervisor of one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ansible_collections.qemu.guest.tests.integration.commands import targets_of_modules
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import PLACES, run_target
from lab.vm import Guest

# They want QEMU's monitor: test_power.py, test_disks.py.
ELSEWHERE = ("qga_shutdown", "qga_snapshot", "qga_suspend")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", [name for name in targets_of_modules(in_guests=True) if name not in ELSEWHERE])
def test_module(target: str, place: str, guests: Mapping[str, Guest], guest: Guest, make_ansible: MakeAnsible) -> None:
    # Emulated guests are slow, and on the hypervisor the same operations run: the newest will do.
    subjects = guests if place == "guest" else {guest.release: guest}
    run_target(make_ansible, target, place, subjects)
