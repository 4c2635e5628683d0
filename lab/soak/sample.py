# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is on both sides at a moment, and whether it has grown."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab.agent import LooseAgent
from lab.controller import Controller
from lab.host import LabError
from lab.soak.plan import LEDGER
from lab.vm import Guest

MEGABYTE = 1_000_000
_INSIDE = Path(__file__).with_name("inside.py")
_KEPT = "/run/qemu-guest"

IN_GUEST = ("agent", "runner", "server", "interpreters", "shells")
HERE = ("mux", "others here")
"""Kinds of processes: in the guest, and on the controller."""

GROWTH = {
    "agent": 2.0,
    "runner": 1.0,
    "server": 4.0,
    "interpreters": 12.0,
    "shells": 2.0,
    "mux": 2.0,
}
"""Megabytes of PSS by which each kind may grow from the first sample to a later one. Of counts, none may grow."""
RUN_GROWTH = 4.0
"""Megabytes by which the guest's /run may grow: systemd's journal is there, too."""


class Kind(NamedTuple):
    """All processes of a kind, together; memory in bytes."""

    processes: int = 0
    descriptors: int = 0
    pss: int = 0
    rss: int = 0


class Sample(NamedTuple):
    """What there was after that many tasks: ``files`` are those that we have in the guest's /run."""

    tasks: int
    kinds: Mapping[str, Kind]
    others: Mapping[str, int]
    files: Sequence[str]
    left: Sequence[str]
    run: int
    locks: Sequence[str]
    ledger: Sequence[str]


def take(subject: LooseAgent | Guest, controller: Controller, tasks: int) -> Sample:
    """Look at a guest by its console (beside its agent, if it is loose), and at the controller."""
    script = f"/usr/bin/python3 -I -S -c {shlex.quote(_INSIDE.read_text(encoding='utf-8'))} {LEDGER}"
    inside: dict[str, Any] = json.loads(subject.run(script, timeout=300)[1])
    kinds = {kind: Kind(**sums) for kind, sums in inside["ours"].items()}
    here = controller.left()
    for name in HERE:
        those = [one for one in here if (one.name == "qga-mux") == (name == "mux")]
        sums = [sum(getattr(one, what) for one in those) for what in ("descriptors", "pss", "rss")]
        kinds[name] = Kind(len(those), *sums)
    argv = controller.command(["ls", "-A", _KEPT], {}, Path("/"))
    locks = subprocess.run(argv, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout.split()
    return Sample(
        tasks,
        kinds,
        inside["others"],
        inside["runner"],
        inside["left"],
        inside["run"],
        locks,
        inside["ledger"],
    )


def grown(first: Sample, later: Sample) -> list[str]:
    """Return what has grown from one sample to another beyond the bounds."""
    found = []
    for kind in (*IN_GUEST, *HERE):
        before, after = (sample.kinds.get(kind, Kind()) for sample in (first, later))
        if after.processes > before.processes:
            found.append(f"processes: {kind}: {before.processes}, then {after.processes}")
        if after.descriptors > before.descriptors:
            found.append(f"descriptors: {kind}: {before.descriptors}, then {after.descriptors}")
        if after.pss - before.pss > GROWTH.get(kind, 0.0) * MEGABYTE:
            found.append(f"PSS: {kind}: {before.pss} bytes, then {after.pss}")
    for name, count in later.others.items():
        if count > first.others.get(name, 0):
            found.append(f"processes: {name}: {first.others.get(name, 0)}, then {count}")
    for what, here, then in (
        ("in the guest's /run", first.files, later.files),
        ("left in the guest", first.left, later.left),
        ("on the controller", first.locks, later.locks),
    ):
        found += [f"{what}: more files {name}" for name in sorted((_names(then) - _names(here)).elements())]
    if later.run - first.run > RUN_GROWTH * MEGABYTE:
        found.append(f"the guest's /run: {first.run} bytes, then {later.run}")
    return found


def _names(paths: Sequence[str]) -> Counter[str]:
    """Return how many paths there are of each name, whatever their numbers.

    Notes of the runner about files that have gone since (.seen) go with its next tick, ten minutes later.
    """
    return Counter(re.sub("[0-9a-f]{8,}", "N", path) for path in paths if not path.endswith(".seen"))


def table(samples: Sequence[Sample]) -> list[str]:
    """Return a table of samples, a column each."""
    rows = [("tasks", [str(one.tasks) for one in samples])]
    for kind in (*IN_GUEST, *HERE):
        each = [one.kinds.get(kind, Kind()) for one in samples]
        if any(one.processes for one in each):
            rows.append((f"{kind}: processes", [str(one.processes) for one in each]))
            rows.append((f"{kind}: descriptors", [str(one.descriptors) for one in each]))
            rows.append(
                (f"{kind}: MB (PSS, RSS)", [f"{one.pss / MEGABYTE:.1f}, {one.rss / MEGABYTE:.1f}" for one in each])
            )
    rows += [
        ("other processes in the guest", [str(sum(one.others.values())) for one in samples]),
        ("files of ours in its `/run`", [str(len(one.files)) for one in samples]),
        ("its `/run`: MB in use", [f"{one.run / MEGABYTE:.1f}" for one in samples]),
        ("files on their way there", [str(len(one.left)) for one in samples]),
        ("locks and sockets on the controller", [str(len(one.locks)) for one in samples]),
    ]
    (_title, head), *rest = rows
    lines = [f"| after tasks | {' | '.join(head)} |", f"|---|{'---:|' * len(samples)}"]
    return lines + [f"| {title} | {' | '.join(cells)} |" for title, cells in rest]


def check_ledger(sample: Sample, rounds: int) -> None:
    """Raise LabError unless each round has run its command once."""
    if list(sample.ledger) != [str(number) for number in range(rounds)]:
        raise LabError(f"the commands that ran are not one of each of {rounds} rounds: {' '.join(sample.ledger)}")
