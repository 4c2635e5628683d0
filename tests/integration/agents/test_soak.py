# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The soak itself (lab/soak): a short one through an agent, and what it would see."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.agent import LooseAgent
from lab.bench.contenders import qga
from lab.controller import Controller
from lab.host import LabError
from lab.soak.plan import THERE
from lab.soak.sample import MEGABYTE, check_ledger, grown, table
from lab.soak.soak import Soak

ROUNDS = 3
SIZE = 50 * MEGABYTE // ROUNDS // 4


@pytest.mark.long
def test_sixty_tasks_and_fifty_megabytes(tmp_path: Path) -> None:
    with Controller() as controller, LooseAgent("bookworm") as agent:
        soak = Soak(agent, qga(agent.agent_socket), tmp_path, controller, ROUNDS, SIZE)
        assert soak.run() == [], "\n".join(table(soak.samples))
        assert (soak.tasks, soak.restarts) == (20 * ROUNDS, ROUNDS - 1)
        first, last = soak.samples[0], soak.samples[-1]
        assert {"agent", "runner", "server", "interpreters", "mux"} <= {kind for kind, of in first.kinds.items() if of}
        # What has grown is seen, whatever it is.
        agent.run("sleep 600 >/dev/null 2>&1 & touch /run/qemu-guest-runner/left /tmp/left")
        soak.sample(0)
        seen = "\n".join(grown(last, soak.samples[-1]))
        assert "processes: [sleep]: 1, then 2" in seen  # the runner has one
        assert "/run/qemu-guest-runner/left" in seen and "/tmp/left" in seen
        now = last.kinds["agent"]
        more = now._replace(descriptors=now.descriptors + 1, pss=now.pss + 3 * MEGABYTE)
        seen = "\n".join(grown(last, last._replace(kinds={**last.kinds, "agent": more})))
        assert "descriptors: agent" in seen and "PSS: agent" in seen
        with pytest.raises(LabError, match="not one of each of 3 rounds: 0 1 1 2"):
            check_ledger(last._replace(ledger=["0", "1", "1", "2"]), ROUNDS)
        # A byte that is another is seen, here and there.
        agent.run(f"cd {THERE} && mkdir -p tree-2/tree && echo other >>copied")
        with pytest.raises(LabError, match="other bytes in the guest: copied tree"):
            soak.verify(ROUNDS - 1)
