# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trial: one operation, a fault at one of its messages, and all that must hold afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from ansible_collections.qemu.guest.tests.faults import faulty_channel
from ansible_collections.qemu.guest.tests.faults.document import record
from ansible_collections.qemu.guest.tests.faults.injections import INJECTIONS, Injection
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
from ansible_collections.qemu.guest.tests.faults.testbed import FaultTestbed

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
    """What became of a trial. ``hit``: the command that the fault hit; empty if it came to nothing."""

    trial: Trial
    hit: str
    outcomes: list[Outcome]
    commands: list[str]
    wrong: list[str]

    def __str__(self) -> str:
        lines = [f"{self.trial} ({self.hit or 'it hit nothing'})", *map(str, self.outcomes), *self.wrong]
        return "\n    ".join([*lines, f"after {len(self.commands)} messages: {' '.join(self.commands[-60:])}"])


def run(testbed: FaultTestbed, trial: Trial, injections: Mapping[str, Injection] | None = None) -> Report:
    """Try it; nothing is raised for what is wrong, but it stands in the report."""
    name = trial.cell.fault.name
    injections = INJECTIONS if injections is None else injections
    injection = injections.get(name, Injection(lambda testbed: None))
    fault = faulty_channel.ChannelFault(
        trial.number,
        faulty_channel.REPLIES.get(name),
        partial(injection.inject, testbed) if name in injections else None,
        late=trial.late,
        dies=injection.dies,
    )
    testbed.channel.begin(fault)
    try:
        if not trial.number:
            fault.hit = "nothing yet"
            injection.inject(testbed)
        tasks, outcomes, wrong = _operations(testbed, trial)
    finally:
        commands = testbed.channel.commands
        testbed.channel.begin()
        if fault.hit:
            injection.revert(testbed)
    freezes = trial.cell.operation.name == "freeze"
    if freezes:  # nothing can be done before it is thawed
        wrong += _all_judged(testbed, trial, tasks, outcomes)
    wrong += _afterwards(testbed)
    wrong += [f"left behind: {one}" for one in testbed.left(trial.cell, fault.hit)]
    if not freezes:  # at last, for what was begun has ended by now
        wrong += _all_judged(testbed, trial, tasks, outcomes)
    record(trial.cell.name, fault.hit, [outcome.word for outcome in outcomes], bool(wrong))
    return Report(trial, fault.hit, outcomes, commands, wrong)


def _operations(testbed: FaultTestbed, trial: Trial) -> tuple[list[Task], list[Outcome], list[str]]:
    """Run one operation, or twenty; return them, what became of each, and what hangs."""
    clients, more = (TWENTY, {"timeout": 30.0}) if trial.cell.fault.name == "twenty clients" else (1, {})
    started = [testbed.start(trial.cell.operation.name, **more) for _client in range(clients)]
    testbed.running = started[0][1].pid
    outcomes, wrong = [], []
    for _task, answer in started:
        try:
            outcomes.append(answer.outcome(trial.cell.seconds * testbed.guest.slowness))
        except AssertionError as exc:
            wrong.append(str(exc))
    if testbed.channel.trouble:
        raise testbed.channel.trouble
    return [task for task, _answer in started], outcomes, wrong


def _all_judged(testbed: FaultTestbed, trial: Trial, tasks: list[Task], outcomes: list[Outcome]) -> list[str]:
    return [one for pair in zip(tasks, outcomes, strict=False) for one in _judged(testbed, trial, *pair)]


def _judged(testbed: FaultTestbed, trial: Trial, task: Task, outcome: Outcome) -> list[str]:
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
    count, torn = testbed.guest.effects(task, possible)
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


def _afterwards(testbed: FaultTestbed) -> list[str]:
    """Return what is wrong with the next task, on a channel that is in order again."""
    seconds = SECONDS_AFTERWARDS * testbed.guest.slowness
    task, started = testbed.start(testbed.guest.afterwards, timeout=seconds - 5)
    try:
        outcome = started.outcome(seconds)
    except AssertionError as exc:
        return [f"the next task: {exc}"]
    count = int(OPERATION[task.operation].changes)
    if outcome.word != DONE or not is_right(task, outcome.text) or testbed.guest.effects(task, {count})[0] != count:
        return [f"the next task is not right: {outcome}"]
    return []
