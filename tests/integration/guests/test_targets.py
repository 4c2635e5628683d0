# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules' targets over virtio-serial. The agents' tests run them as modules of a hypervisor too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.elsewhere import run_connection_tests, run_target
from ansible_collections.qemu.guest.tests.integration.harness import HERE, guest_variables
from lab import image
from lab.vm import Guest

Hosts = Mapping[str, Mapping[str, Any]]


@pytest.mark.parametrize("target", sorted(path.name for path in (HERE / "targets").glob("qga_*")))
def test_module(target: str, hosts: Hosts, make_ansible: MakeAnsible, tmp_path: Path) -> None:
    content = os.urandom(1_500_001)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "large.sha256").write_text(hashlib.sha256(content).hexdigest(), encoding="ascii")
    known = {name: {**variables, "agent_version": image.build(name).agent_version} for name, variables in hosts.items()}
    make_ansible(known).playbook(HERE / "targets.yml", variables={"target": target, "scratch": str(tmp_path)})


def test_ansible_cores_own_tests_of_connections(hosts: Hosts, make_ansible: MakeAnsible) -> None:
    run_connection_tests(make_ansible(hosts))


def test_ansible_cores_own_tests_of_raw(guest: Guest, make_ansible: MakeAnsible) -> None:
    run = run_target(make_ansible({"guest": guest_variables(guest)}), "raw")
    assert run.recap["guest"]["ok"] > 20
