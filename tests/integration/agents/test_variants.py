# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests as others ship them: another shell, other tools. A task ends there as it ends over ssh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.agents.test_process_state import NO_TTY, STATES, state
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, look, until
from ansible_collections.qemu.guest.tests.integration.parity import compare
from lab import image, ssh
from lab.agent import LooseAgent

BATTERY = ["raw", "slurp"]
"""Of ansible-core's integration targets: what programs print, and what files arrive."""


# What differs in the last one is how it boots: see guests/test_variants.py.
@pytest.fixture(scope="module", params=[name for name in image.VARIANTS if name != "bookworm-sysv"])
def variant(request: pytest.FixtureRequest) -> Iterator[LooseAgent]:
    with LooseAgent(request.param) as agent:
        yield agent


@pytest.mark.parametrize("target", BATTERY)
@pytest.mark.parametrize("way", ["runner", pytest.param("guest-exec", marks=pytest.mark.whole)])
def test_target(target: str, way: str, variant: LooseAgent, tmp_path: Path) -> None:
    with LooseAgent(variant.release) as twin:
        compare(target, way, variant, lambda: twin, tmp_path)


@pytest.mark.parametrize("way", STATES)
def test_state_is_that_of_a_login(way: str, variant: LooseAgent, make_ansible: MakeAnsible) -> None:
    expected = state(make_ansible({"guest": {**ssh.variables(variant), **NO_TTY}}))
    assert state(make_ansible({"guest": {**guest_variables(variant), **STATES[way]}})) == expected


def test_nothing_is_left(variant: LooseAgent, make_ansible: MakeAnsible) -> None:
    variables = {**guest_variables(variant), **STATES["runner"]}
    make_ansible({"guest": variables}).adhoc("ansible.builtin.raw", "true")
    # But for what is warm Python's.
    spooled = "find /run/qemu-guest-runner -path '*/warm-*' -prune -o -type f ! -name pid -print"
    files = f"{spooled}; ls -d /run/qemu-guest.* 2>/dev/null || :"
    # The runner removes them while it serves others.
    until(lambda: not look(variant, files), 20, "what a program needed is gone")
