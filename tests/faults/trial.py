# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trial: one operation, a fault at one of its messages, and all that must hold afterwards."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from ansible_collections.qemu.guest.tests.faults import faulty
from ansible_collections.qemu.guest.tests.faults.deeds import DEEDS, Deed
from ansible_collections.qemu.guest.tests.faults.document import record
from ansible_collections.qemu.guest.tests.faults.matrix import (
    DONE,
    FAILED,
    KILLED,
    NOT_RUN,
    OPERATION,
    UNKNOWN,
    Cell,
)
from ansible_collections.qemu.guest.tests.faults.operations import Outcome, Task, is_right
from ansible_collections.qemu.guest.tests.faults.scene import Scene

# How often an operation with each outcome may have done what it does.
EFFECTS = {DONE: {1}, NOT_RUN: {0}, FAILED: {0, 1}, UNKNOWN: {0, 1}, KILLED: {0, 1}}
TWENTY = 20
SECONDS_AFTERWARDS = 15.0


class Trial(NamedTuple):
    """What was tried: an operation and a fault, at the message ``number`` or, ``late``, at its reply; 0: before all."""

    cell: Cell
    number: int
    late: bool = False

    def __str__(self) -> str:
        if not self.number:
            return f"{self.cell.name}, before it begins"
        return f"{self.cell.name}, at {'the reply to ' if self.late else ''}message {self.number}"


class Report(NamedTuple):
    """What became of a trial. ``befell``: the command that the fault befell; empty if it came to nothing."""

    trial: Trial
    befell: str
    outcomes: list[Outcome]
    commands: list[str]
    wrong: list[str]

    def __str__(self) -> str:
        lines = [f"{self.trial} ({self.befell or 'it befell nothing'})", *map(str, self.outcomes), *self.wrong]
        return "\n    ".join([*lines, f"after {len(self.commands)} messages: {' '.join(self.commands[-60:])}"])


def run(scene: Scene, trial: Trial) -> Report:
    """Try it; nothing is raised for what is wrong, but it stands in the report."""
    name = trial.cell.fault.name
    deeds = {**DEEDS, **scene.place.deeds}
    deed = deeds.get(name, Deed(lambda scene: None))
    fault = faulty.Fault(
        trial.number,
        faulty.REPLIES.get(name),
        partial(deed.do, scene) if name in deeds else None,
        late=trial.late,
        dies=deed.dies,
    )
    scene.channel.begin(fault)
    try:
        if not trial.number:
            fault.befell = "nothing yet"
            deed.do(scene)
        told, outcomes, wrong = _operations(scene, trial)
    finally:
        commands = scene.channel.commands
        scene.channel.begin()
        if fault.befell:
            deed.undo(scene)
    freezes = trial.cell.operation.name == "freeze"
    if freezes:  # nothing can be done before it is thawed
        wrong += _all_judged(scene, trial, told, outcomes)
    wrong += _afterwards(scene)
    wrong += [f"left behind: {one}" for one in scene.left(trial.cell, fault.befell)]
    if not freezes:  # at last, for what was begun has ended by now
        wrong += _all_judged(scene, trial, told, outcomes)
    record(trial.cell.name, fault.befell, [outcome.word for outcome in outcomes], bool(wrong))
    return Report(trial, fault.befell, outcomes, commands, wrong)


def _operations(scene: Scene, trial: Trial) -> tuple[list[Task], list[Outcome], list[str]]:
    """Run one operation, or twenty; return them, what became of each, and what hangs."""
    clients, more = (TWENTY, {"timeout": 30.0}) if trial.cell.fault.name == "twenty clients" else (1, {})
    told = [scene.start(trial.cell.operation.name, **more) for _client in range(clients)]
    scene.running = told[0][1].pid
    outcomes, wrong = [], []
    for _task, answer in told:
        try:
            outcomes.append(answer.outcome(trial.cell.seconds * scene.place.slowness))
        except AssertionError as exc:
            wrong.append(str(exc))
    if scene.channel.trouble:
        raise scene.channel.trouble
    return [task for task, _answer in told], outcomes, wrong


def _all_judged(scene: Scene, trial: Trial, told: list[Task], outcomes: list[Outcome]) -> list[str]:
    return [one for pair in zip(told, outcomes, strict=False) for one in _judged(scene, trial, *pair)]


def _judged(scene: Scene, trial: Trial, task: Task, outcome: Outcome) -> list[str]:
    """Return what is wrong with an outcome."""
    wrong = []
    freezes = trial.cell.operation.name == "freeze"
    # A fault may come too late to matter.
    if outcome.word not in {DONE, *trial.cell.outcomes}:
        wrong.append(f"{outcome.word} is not allowed here")
    if outcome.word == DONE and not is_right(task, outcome.text):
        wrong.append("it is done, and said something wrong")
    # A freeze whose task dies is undone.
    possible = {0} if freezes and outcome.word == KILLED else EFFECTS[outcome.word]
    count, torn = scene.place.effects(task, possible)
    if torn:
        wrong.append(torn)
    if freezes and count and outcome.word not in (DONE, KILLED) and "THE GUEST MAY BE FROZEN" not in outcome.text:
        wrong.append("a frozen guest is left, and it does not say so")
    # Of a put, each request is a step; others tidy up after they have succeeded.
    may_be_undone = trial.cell.fault.undoes and (trial.late or task.operation != "put")
    allowed = possible | ({0} if may_be_undone else set())
    if trial.cell.operation.changes and count not in allowed:
        wrong.append(f"it says that it is {outcome.word}, and did {count} times what it does")
    return wrong


def _afterwards(scene: Scene) -> list[str]:
    """Return what is wrong with the next task, on a channel that is in order again."""
    seconds = SECONDS_AFTERWARDS * scene.place.slowness
    task, told = scene.start(scene.place.afterwards, timeout=seconds - 5)
    try:
        outcome = told.outcome(seconds)
    except AssertionError as exc:
        return [f"the next task: {exc}"]
    count = int(OPERATION[task.operation].changes)
    if outcome.word != DONE or not is_right(task, outcome.text) or scene.place.effects(task, {count})[0] != count:
        return [f"the next task is not right: {outcome}"]
    return []
