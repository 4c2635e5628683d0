# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the seconds of a play grow with the number of guests: loose agents, and forks to serve all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab import ssh
from lab.agent import LooseAgent
from lab.bench.contenders import NULL, PYTHON, QGA, SSH, null, qga, seconds_of
from lab.bench.guest import progress
from lab.bench.plays import TRUE

GUESTS = (1, 5, 20, 50)
TASKS = 5


def growth(scratch: Path, release: str) -> dict[str, dict[int, float]]:
    """Return the seconds of TASKS tasks, by way and by number of guests."""
    seconds: dict[str, dict[int, float]] = {QGA: {}, SSH: {}, NULL: {}}
    with ExitStack() as stack:
        agents: list[LooseAgent] = []
        for guests in GUESTS:
            while len(agents) < guests:
                agents.append(stack.enter_context(LooseAgent(release)))
            for name, ways in seconds.items():
                hosts = {f"guest{number}": _variables(name, one, scratch) for number, one in enumerate(agents)}
                seconds_of(scratch, hosts, [TRUE], forks=guests)  # what is kept between plays is there afterwards
                ways[guests] = seconds_of(scratch, hosts, [TRUE] * TASKS, forks=guests)
                progress(f"{guests} guests, {TASKS} tasks: {name}: {ways[guests]:.1f} s")
    return seconds


def _variables(name: str, agent: LooseAgent, scratch: Path) -> Mapping[str, Any]:
    if name == NULL:
        return null(scratch / "null").variables
    if name == SSH:
        return {**PYTHON, **ssh.variables(agent), "ansible_ssh_pipelining": True}
    return qga(agent.agent_socket)
