# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random operations, faults and moments, by a seed: what changes the guest does so once, or says that it may not have.

    tests/tools/faults once [--runs N] [--seed N] [--only N] [--release NAME]

The same seed makes the same trials. ``--only N`` repeats trial N of a seed alone. An interrupt ends it, with totals.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

from ansible_collections.qemu.guest.tests.faults.guests import RealGuest
from ansible_collections.qemu.guest.tests.faults.injections import can_come_first
from ansible_collections.qemu.guest.tests.faults.matrix import AGENT, Cell, cells
from ansible_collections.qemu.guest.tests.faults.testbed import FaultTestbed
from ansible_collections.qemu.guest.tests.faults.trial import Report, Trial, run
from lab import image
from lab.agent import LooseAgent

# How many messages each operation takes, about: a trial is the same wherever its seed is given.
MESSAGES = {"sync": 2, "read": 2, "change": 2, "wait": 3, "guest-exec": 4, "fetch": 11}
MOST_MESSAGES = 20
# Seconds per run are for what changes something.
LEFT_OUT = ("async", "twenty clients")


def trials(seed: int) -> Iterator[Trial]:
    """Yield the trials of a seed, without end."""
    dice = random.Random(seed)
    by_kind: Mapping[bool, list[Cell]] = {
        changes: [c for c in cells(AGENT) if c.operation.changes == changes and not _is_left_out(c)]
        for changes in (True, False)
    }
    while True:
        cell = dice.choice(by_kind[dice.random() < 0.9])
        number = dice.randint(0 if can_come_first(cell) else 1, MESSAGES.get(cell.operation.name, MOST_MESSAGES))
        yield Trial(cell, number, dice.random() < 0.5)


def _is_left_out(cell: Cell) -> bool:
    return cell.operation.name in LEFT_OUT or cell.fault.name in LEFT_OUT


def runs(testbed: FaultTestbed, seed: int, count: int) -> Iterator[tuple[int, Report]]:
    """Try the first ``count`` trials of a seed; yield the number and the report of each."""
    for number, trial in zip(range(count), trials(seed), strict=False):
        yield number, run(testbed, trial)


def described(release: str, seed: int, number: int, report: Report) -> str:
    """Return a report with what repeats it."""
    return f"--release {release} --seed {seed} --only {number}: {report}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests/tools/faults once", description="Count what tasks do amid faults.")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", type=int, help="the number of one trial of the seed")
    parser.add_argument("--release", choices=list(image.RELEASES), default=list(image.RELEASES)[-1])
    given = parser.parse_args(arguments)
    print(f"seed {given.seed}", flush=True)
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    try:
        with suppress(KeyboardInterrupt), LooseAgent(given.release) as agent, FaultTestbed(RealGuest(agent)) as testbed:
            for number, trial in zip(range(given.runs), trials(given.seed), strict=False):
                if given.only not in (None, number):
                    continue
                report = run(testbed, trial)
                words = [outcome.word for outcome in report.outcomes]
                outcomes.update([*words, "runs", *["hit"] * bool(report.hit), *["wrong"] * bool(report.wrong)])
                if report.wrong or given.only is not None:
                    print(described(given.release, given.seed, number, report), flush=True)
    finally:
        told = ", ".join(f"{count} {word}" for word, count in sorted(outcomes.items()))
        print(f"{told} in {time.monotonic() - began:.0f} s", flush=True)
    return min(outcomes["wrong"], 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
