# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guides of the docs site that need a booted guest, typed in from the beginning to the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.harness import run_guide
from lab.libvirt import Daemon, Domain
from lab.machine import Machine
from lab.vm import Guest


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as running:
        yield running


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A libvirt with a domain that runs, web, and one that does not, mail."""
    with Daemon() as running, Domain(running, "bookworm", "web") as web:
        running.define("mail")
        web.wait_booted()
        web.wait_agent()
        yield running


@pytest.mark.parametrize("guide", ["libvirt", "moving_from_libvirt_qemu"])
def test_guide_of_libvirt(guide: str, daemon: Daemon, machine: Machine, tmp_path: Path) -> None:
    for name in ("libvirt-sock", "libvirt-sock-ro"):
        machine.link(f"/run/libvirt/{name}", daemon.socket.with_name(name))
    run_guide(guide, machine, tmp_path)


def test_guide_of_snapshots(guest: Guest, machine: Machine, tmp_path: Path) -> None:
    machine.link("/run/vm1.qga", guest.agent_socket)
    machine.link("/run/vm1.qmp", guest.qmp_socket)
    run_guide("snapshots", machine, tmp_path)
