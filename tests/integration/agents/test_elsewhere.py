# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks from elsewhere, unchanged: ansible-core's own tests of its modules and of connections."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.elsewhere import run_connection_tests, run_target
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables
from lab.agent import LooseAgent

warm_and_plain = pytest.mark.parametrize("warm", [True, False], ids=["warm", "plain"])


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.whole)], ids=["warm", "plain"])
def test_connection(warm: bool, agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    own = {"ansible_qga_warm_python": warm}
    run_connection_tests(make_ansible({name: {**guest_variables(agent), **own} for name, agent in agents.items()}))


@warm_and_plain
def test_script(warm: bool, agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    """Others are run by test_parity.py, and compared."""
    variables = {**guest_variables(agents["bookworm"]), "ansible_qga_warm_python": warm}
    run = run_target(make_ansible({"bookworm": variables}), "script")
    assert run.recap["bookworm"]["ok"] > 20
