# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rounds of tasks through one guest, with samples of what there is on both sides."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.agent import LooseAgent
from lab.bench.contenders import RESET, ROOT, Task, environment
from lab.controller import Controller
from lab.host import LabError
from lab.soak import plan
from lab.soak.sample import Sample, check_ledger, grown, take
from lab.vm import Guest

SETTLED_SECONDS = 150.0
"""Answers can be fetched for a minute, and what watches over an async task looks every five seconds."""
PERSIST_SECONDS = 240
"""Longer than a sample waits: the mux is to be the same from the first round to the last one."""
ENDED_SECONDS = 10.0
COPIES = 2 * len(plan.COPIED)
"""How often a large file travels in a round: there, and back."""


@dataclass
class Soak:
    """A guest that is up, its host variables, how many rounds there are, and how large each file is.

    After that many ``seconds``, no further round is begun.
    """

    subject: LooseAgent | Guest
    variables: Mapping[str, Any]
    scratch: Path
    controller: Controller
    rounds: int
    size: int
    seconds: float = float("inf")
    samples: list[Sample] = field(default_factory=list)
    restarts: int = 0
    tasks: int = 0
    bytes: int = 0

    def run(self) -> list[str]:
        """Run all rounds there is time for; return what has grown. The agent is restarted after each quarter of them.

        :raise LabError: if a task fails, a byte is another, or a command ran twice or not at all.
        """
        self.subject.run(plan.PREPARE)
        quarter = max(1, self.rounds // 4)
        began = time.monotonic()
        for number in range(self.rounds):
            started = time.monotonic()
            if started - began > self.seconds:
                break
            self._round(number)
            progress(f"round {number + 1} of {self.rounds}: {time.monotonic() - started:.1f} s")
            if number in (0, self.rounds // 2 - 1):
                self.sample()
            if number % quarter == quarter - 1 and number + 1 < self.rounds:
                self._restart()
        self.sample()
        first, *later = self.samples
        check_ledger(later[-1], self.tasks // plan.KINDS)
        found = [f"after {one.tasks} tasks: {text}" for one in later for text in grown(first, one)]
        self._play(self.rounds, [RESET])
        if not self.controller.wait_empty(ENDED_SECONDS):
            found.append(f"at the end: processes on the controller: {self.controller.left()}")
        return found

    def _round(self, number: int) -> None:
        plan.prepare(self.scratch, number, self.size)
        tasks = plan.tasks(self.scratch, number, plan.service(self.subject))
        if f"ok={len(tasks)} " not in self._play(number, tasks):
            raise LabError(f"round {number} has not run all of its tasks")
        self.tasks += len(tasks)
        self.verify(number)
        self.bytes += COPIES * self.size

    def _play(self, number: int, tasks: list[Task]) -> str:
        inventory, playbook = self.scratch / "inventory.json", self.scratch / "playbook.json"
        hosts = {"guest": {**self.variables, "ansible_qga_persist": PERSIST_SECONDS, "round": number}}
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")
        play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
        playbook.write_text(json.dumps([play]), encoding="utf-8")
        argv = ["ansible-playbook", "-i", str(inventory), str(playbook)]
        return self.controller.output(argv, environment(self.scratch), ROOT, f"round {number}")

    def verify(self, number: int) -> None:
        """Compare all files of a round, here, in the guest by another path than the agent, and back again."""
        here = _sums(self.scratch / "here")
        back = _sums(self.scratch / "back")
        script = (
            f"cd {plan.THERE} && mv tree-{number}/tree . && find copied written tree -type f -exec sha256sum {{}} +"
        )
        printed = self.subject.run(f"{script}; rm -rf tree tree-{number}", timeout=300)[1]
        there = {name: summed for summed, name in (line.split() for line in printed.splitlines())}
        for where, sums in (("in the guest", there), ("back", back)):
            if sums != here:
                wrong = sorted(name for name in {*here, *sums} if here.get(name) != sums.get(name))
                raise LabError(f"round {number}: other bytes {where}: {' '.join(wrong)}")

    def _restart(self) -> None:
        if isinstance(self.subject, LooseAgent):
            self.subject.restart()
        else:
            self.subject.run("systemctl restart qemu-guest-agent", timeout=120)
            self.subject.wait_agent()
        self.restarts += 1
        progress("the agent was restarted")

    def sample(self, seconds: float = SETTLED_SECONDS) -> None:
        """Take a sample as soon as there is no more than in the first one, or after that time."""
        deadline = time.monotonic() + seconds
        while True:
            sample = take(self.subject, self.controller, self.tasks)
            if not _moves(sample) and (not self.samples or not grown(self.samples[0], sample)):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(2)
        self.samples.append(sample)
        progress(f"sample after {self.tasks} tasks")


def progress(text: str) -> None:
    """Tell how far it has come, since it takes long."""
    print(f"soak: {text}", file=sys.stderr, flush=True)


def _moves(sample: Sample) -> bool:
    """Return whether something is on its way: answers, tasks in the background, interpreters that are to end."""
    answers = [path for path in sample.files if path.rpartition("/")[2][:1].isdigit() and "." in path]
    return bool(answers or sample.left or sample.kinds.get("shells"))


def _sums(directory: Path) -> dict[str, str]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
