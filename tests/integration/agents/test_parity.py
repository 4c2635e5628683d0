# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-core's own integration targets end over the agent as they end over ssh, on the same files.

QEMU_GUEST_PARITY=all runs all that need neither a network nor a kernel of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.parity import WHOLE, Way, check_same, ways
from lab.agent import LooseAgent

TARGETS = ["async", "slurp", "tempfile"]
MORE = """
copy file script raw template unarchive lineinfile stat command_shell become become_su become_sudo
async_fail fetch/run_fetch_tests.yml fetch/injection/avoid_slurp_return.yml environment/test_environment.yml
remote_tmp/playbook.yml interpreter_discovery_python unicode/unicode.yml
assemble blockinfile cron facts_d find getent group loop-connection/main.yml package_facts replace service_facts
unsafe_writes user wait_for wait_for_connection gathering_facts/test_gathering_facts.yml
""".split()


@pytest.fixture(scope="module")
def all_ways() -> Iterator[tuple[Way, Sequence[Way]]]:
    """The ways to one machine that the targets may leave their traces on."""
    with LooseAgent("bookworm") as agent:
        yield ways(agent)


@pytest.mark.parametrize("target", [*TARGETS, *(MORE if WHOLE else [])])
def test_target(target: str, all_ways: tuple[Way, Sequence[Way]], tmp_path: Path) -> None:
    ssh, others = all_ways
    ending = check_same(tmp_path, target, ssh, others if target in TARGETS else others[:-1])
    assert ending.recap.get("ok", 0) > 1, "nothing was compared"
