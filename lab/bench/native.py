# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same plays where nothing is emulated: a loose agent and an SSH server, on the same files, on this processor."""

from __future__ import annotations

from pathlib import Path

from lab.agent import LooseAgent
from lab.bench.contenders import Contender, quick_ones, run, seconds_of
from lab.bench.guest import progress
from lab.bench.plays import LOOP, LOOPED, PLAYS, Task, loop, prepare


def native(scratch: Path, release: str, rounds: int) -> list[Contender]:
    """Return who took part, and the seconds that each took, round by round; who is first alternates."""
    plays: dict[str, tuple[list[Task], int]] = {LOOPED: (loop(LOOP), LOOP)}
    plays.update({title: (tasks, 1) for title, tasks in PLAYS.items()})
    prepare(scratch)
    with LooseAgent(release) as agent:
        contenders = quick_ones(agent.socket, agent)
        for title, (tasks, items) in plays.items():
            for one in contenders:  # makes what the play makes, and what is kept between plays
                run(scratch, {"guest": one.variables}, tasks, one.environment)
            for number in range(rounds):
                for one in contenders[:: -1 if number % 2 else 1]:
                    seconds = seconds_of(scratch, {"guest": one.variables}, tasks, one.environment) / items
                    one.seconds[title].append(seconds)
                    progress(f"not emulated, round {number + 1}: {title}: {one.name}: {seconds:.2f} s")
    return contenders
