# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/reliability.md from the matrix, with the counts of what ran.

Each trial adds a line to the file that QEMU_GUEST_FAULT_RESULTS names, if it does.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ansible_collections.qemu.guest.tests.faults.matrix import (
    FAULTS,
    GUEST,
    OPERATIONS,
    SCRIPTED,
    Fault,
    Operation,
    cell,
    cells,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
RESULTS = "QEMU_GUEST_FAULT_RESULTS"

Counts = Mapping[str, Counter[str]]
"""How often each cell ended how, by its name; C(wrong) is how often not as the table says."""


def record(name: str, hit: str, outcomes: Iterable[str], wrong: bool) -> None:
    """Add a trial to the results. What the fault came too late for is none of the cell's."""
    path = os.environ.get(RESULTS)
    if path and hit:
        line = json.dumps({"cell": name, "outcomes": list(outcomes), "wrong": wrong})
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{line}\n")


def read(path: Path) -> Counts:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in path.read_text(encoding="ascii").splitlines():
        result = json.loads(line)
        counts[result["cell"]].update([*result["outcomes"], "runs", *["wrong"] * result["wrong"]])
    return counts


def document(counts: Counts) -> str:
    total: Counter[str] = Counter()
    for one in counts.values():
        total.update(one)
    return _PAGE.format(
        operations="\n".join(f"| {one.name} | {one.about} | {one.seconds:g} s |" for one in OPERATIONS),
        faults="\n".join(map(_fault, FAULTS)),
        names=" | ".join(one.name for one in OPERATIONS),
        rule="|".join(["---"] * (len(OPERATIONS) + 1)),
        cells="\n".join(_row(fault, counts) for fault in FAULTS),
        reasons="\n".join(dict.fromkeys(_reasons())),
        runs=total["runs"],
        words=", ".join(f"{total[word]} {word}" for word in ("done", "not run", "failed", "unknown", "killed")),
        wrong=total["wrong"],
    )


def _reasons() -> Iterator[str]:
    """Yield why cells are not tried that could be, by reading the table alone."""
    for found in cells():
        if found.fault.elsewhere:
            yield f"- {found.fault.name}: {found.why_not}"
        elif found.why_not and not found.fault.hits:
            yield f"- {found.name}: {found.why_not}"


def without_counts(text: str) -> str:
    """Return a document without what differs from run to run."""
    return re.sub(
        r"(?<=\| )\d+(?= (?:\||guest|scripted))|\d+(?= (?:trials|done|not run|failed|unknown|killed|wrong)\b)",
        "N",
        text,
    )


def _fault(fault: Fault) -> str:
    ends = (", ".join(sorted(words)) for words in (fault.reads, fault.changes))
    left = ", ".join(sorted(fault.leaves)) or "nothing"
    return f"| {fault.name} | {fault.about} | {' | '.join(ends)} | {fault.seconds:g} s | {left} |"


def _row(fault: Fault, counts: Counts) -> str:
    return f"| {fault.name} | {' | '.join(_cell(operation, fault, counts) for operation in OPERATIONS)} |"


def _cell(operation: Operation, fault: Fault, counts: Counts) -> str:
    found = cell(operation, fault)
    if found.why_not:
        return "-"
    runs = counts.get(found.name, Counter())["runs"]
    return f"{runs} {found.where}" if found.where in (GUEST, SCRIPTED) else str(runs)


_PAGE = """\
<!--
Copyright (c) 2026 the qemu.guest authors
GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later

Written by the repository's tests/tools/faults from tests/faults/matrix.py. Do not edit.
-->

# Reliability

What becomes of a task when something fails in the middle of it, and how that is tested. An operation ends in one of
four ways, and within a deadline:

- **done**: it says that it succeeded. What it does was done exactly once.
- **not run**: its error says that nothing was done. Nothing was, and it can be repeated.
- **failed**: its error says that it ran, and not to the end. What it does was done once at most.
- **unknown**: its error says that it may have run. It was done once or not at all: look before you repeat it.

A process that was **killed** tells nothing; what it did was done once at most, and a freeze is undone. Each operation
that changes something leaves one mark of its own in the guest. The marks are counted by another path than the agent,
and compared with what the operation said. After each fault the next task must succeed over the same channel, and
nothing may be left but what the table names: no handle of the agent's, no process, no file in the guest or on the
controller. The runner and warm Python stay, with what they sweep away by themselves in /run/qemu-guest-runner.

## Operations

| operation | what it is | its deadline has more |
|---|---|---|
{operations}

## Faults

How each may end, for operations that only read and those that change something, with a timeout of three seconds and a
grace of three for an agent that is away (20 and 120, unless you set the former).

| fault | what happens | reads may be | changes may be | at most | may leave |
|---|---|---|---|---|---|
{faults}

## What ran

How often each fault hit each operation, at its first message, its last and those between. `guest`: tried in booted
guests. `scripted`: by an agent that follows a script, because a real one without a guest may not be asked. `-`: not
tried, because the operation does not use what fails, or:

{reasons}

| fault | {names} |
|{rule}|
{cells}

{runs} trials: {words}; {wrong} wrong.

`docs/long_runs.md` has what thousands of tasks leave behind, and what a fuzzer found.
"""


if __name__ == "__main__":
    DOCUMENT.write_text(document(read(Path(sys.argv[1]))), encoding="utf-8")
