# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.harness import Ansible

# Who ends the tests wants what they started to end as well.
signal.signal(signal.SIGTERM, signal.default_int_handler)

MakeAnsible = Callable[[Mapping[str, Mapping[str, Any]]], Ansible]


@pytest.fixture
def make_ansible(tmp_path: Path) -> MakeAnsible:
    """Return a function from host variables, by host, to an Ansible that has these hosts."""
    return lambda hosts: Ansible(tmp_path / "ansible", hosts)
