# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest without systemd, booted: a task ends there as it ends over ssh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.guests.conftest import blocked, booted
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, look
from ansible_collections.qemu.guest.tests.integration.parity import WAYS, compare
from lab.vm import Guest

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with booted("bookworm-sysv", nic="user") as guest:
        yield guest


@pytest.mark.parametrize("target", ["raw", "slurp"])
@pytest.mark.parametrize("way", WAYS)
def test_target(target: str, way: str, guest: Guest, tmp_path: Path) -> None:
    compare(target, way, guest, lambda: guest, tmp_path)


def test_runner_is_started(guest: Guest, make_ansible: MakeAnsible) -> None:
    """By cron or udev, which have no systemd to ask; and nothing of that stays."""
    assert look(guest, "cat /proc/1/comm") == "init\n"
    with blocked(guest, "guest-exec,guest-exec-status"):
        run = make_ansible({"vm": {**guest_variables(guest), "ansible_qga_timeout": 60}}).adhoc("ansible.builtin.ping")
    assert "pong" in run.output
    assert look(guest, "grep -rl qemu-guest-runner /lib/udev /etc/udev /etc/crontab || :") == ""
