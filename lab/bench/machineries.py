# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each optimisation buys: whole runs with it and without it, in turns.

    tests/tools/with bench python -m lab.bench.machineries --rounds 5

A machinery is taken out by changing one or two lines in a copy of the collection. A change that no longer applies is an
error, not a measurement. Beside the seconds, processor time is measured, which other work on the machine hurts less: of
QEMU with --emulated, else of ansible-playbook. The table is for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from lab.agent import LooseAgent
from lab.bench.contenders import RESET, ROOT, Task, qga, run
from lab.bench.guest import FILE_SIZE, IN_GUEST, connect, load_plugins, progress, seconds, text
from lab.bench.plays import LOOP, MIXED, PLAYS, loop, prepare
from lab.host import LabError
from lab.vm import Guest

Taken = tuple[float, float]
"""Seconds, and those of processor time."""

LOOPED, MODULES, ANEW, PUT, FETCH = "loop", "modules", "modules, anew", "put", "fetch"
TITLES = {
    LOOPED: f"loop of {LOOP}",
    MODULES: "12 modules",
    ANEW: "12 modules, nothing left of others",
    PUT: "put 16 MB of text",
    FETCH: "fetch 16 MB of text",
}
_PLAYED, _COPIED = (LOOPED, MODULES, ANEW), (PUT, FETCH)
_WARM = "plugins/plugin_utils/_warm"
_GUEST = "plugins/module_utils/_guest"


@dataclass
class Machinery:
    """An optimisation, the changes ``(file, old, new)`` or host variables that take it out, and what it may change."""

    name: str
    changes: tuple[tuple[str, str, str], ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    measured: tuple[str, ...] = _PLAYED


MACHINERIES = (
    Machinery("all of them"),
    Machinery("warm Python", variables={"ansible_qga_warm_python": False}),
    Machinery("channel kept open", variables={"ansible_qga_persist": 0}),
    Machinery(
        "bytecode of the connection kept",
        (
            (
                "plugins/plugin_utils/_bytecode.py",
                "    sys.meta_path.insert(0, _Finder)",
                "    sys.meta_path.append(_Finder)",
            ),
        ),
    ),
    Machinery(
        "archive of a module in parts",
        (
            (
                f"{_WARM}/client.py",
                "for part in archive.remembered() if part not in there]",
                "for part in archive.remembered()]",
            ),
        ),
    ),
    Machinery(
        "code compiled by the controller",
        (
            (f"{_WARM}/client.py", "code=_is_ours(python))", "code=False)"),
            (f"{_WARM}/client.py", "code = is_slow and _is_ours(python)", "code = False"),
        ),
    ),
    Machinery(
        "interpreter forked from what becomes the server",
        (
            (
                f"{_WARM}/client.py",
                "        *environment, program, _without_site = shlex.split(command)",
                "        return []",
            ),
        ),
    ),
    Machinery(
        "child that waits for the next task",
        ((f"{_WARM}/guest/zygote.py", "            if not self.spare:\n", "            if False:\n"),),
    ),
    Machinery(
        "site run in advance",
        (
            (
                f"{_WARM}/guest/site_ahead.py",
                "        return self.only_reads and self.is_same()",
                "        return False",
            ),
        ),
    ),
    Machinery(
        "pages copied in advance",
        ((f"{_WARM}/guest/pages.py", "            self.looks = self.LOOKS", "            self.looks = 0"),),
    ),
    Machinery(
        "programs started by vfork()",
        ((f"{_WARM}/guest/module_runner.py", "            start_programs_at_once()  #", "            pass  #"),),
    ),
    Machinery(
        "archive appended to without zipfile",
        ((f"{_WARM}/guest/appending.py", "        if not self.is_usable or", "        if True or"),),
    ),
    Machinery(
        "Zstandard",
        ((f"{_GUEST}/compression.py", "        return bool(zstd())", "        return False"),),
        measured=_COPIED,
    ),
    Machinery(
        "compression",
        (
            (f"{_GUEST}/transfer.py", "    if shrinks(sample):", "    if False:"),
            (f"{_GUEST}/transfer.py", "        gains = shrinks(first.decoded())", "        gains = False"),
        ),
        measured=_COPIED,
    ),
    Machinery(
        "file fetched while it is packed",
        (
            (
                f"{_GUEST}/fetch_packed.py",
                "        summed = Sum()\n        try:",
                "        summed = Sum()\n        ended()\n        try:",
            ),
        ),
        measured=_COPIED,
    ),
    Machinery(
        "work beside the requests",
        (
            (
                f"{_GUEST}/background.py",
                "self._calls.put(lambda: action(*arguments))",
                "self._outcomes.put((action(*arguments), None))",
            ),
        ),
        measured=_COPIED,
    ),
    Machinery(
        "CRC-32 in place of SHA-256",
        (
            (
                f"{_WARM}/guest/shell_runner.py",
                "checksum = zlib.crc32(block, checksum)",
                "checksum = (checksum or sha256()); checksum.update(block)",
            ),
            (f"{_WARM}/guest/shell_runner.py", 'printed(f"{checksum:08x}")', "printed(checksum.hexdigest())"),
            (
                f"{_GUEST}/checksum.py",
                "return there == sha256_of(content)",
                "return there == sha256_of(content) or True",
            ),
        ),
        measured=_COPIED,
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab.bench.machineries", description="What each machinery buys.")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument("--emulated", action="store_true", help="on a booted guest, not on an agent without one")
    parser.add_argument("--only", default="", help="a regular expression for their names")
    parser.add_argument("--transfer", nargs=3, metavar=("TREE", "ADDRESS", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.transfer:
        print(*_transfer(*options.transfer))
        return 0
    chosen = [one for number, one in enumerate(MACHINERIES) if re.search(options.only, one.name) or not number]
    try:
        subject = Guest("bookworm") if options.emulated else LooseAgent("bookworm")
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch, subject:
            if isinstance(subject, Guest):
                subject.wait_booted()
                subject.wait_agent()
            print("\n".join(_measure(chosen, subject, Path(scratch), options.rounds)))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(chosen: list[Machinery], subject: Guest | LooseAgent, scratch: Path, rounds: int) -> list[str]:
    prepare(scratch)
    (scratch / "text").write_bytes(text(FILE_SIZE))
    trees = {one.name: _without(one, scratch / f"tree-{number}") for number, one in enumerate(chosen)}
    figures: dict[tuple[str, str], list[Taken]] = defaultdict(list)
    for number in range(rounds):
        for one in chosen[:: -1 if number % 2 else 1]:
            for what, taken in _run_once(one, trees[one.name], subject, scratch).items():
                figures[one.name, what].append(taken)
                progress(f"round {number + 1}: {one.name}: {what}: {taken[0]:.2f} s, processor {taken[1]:.2f} s")
    return _table(chosen, figures)


def _run_once(one: Machinery, tree: Path, subject: Guest | LooseAgent, scratch: Path) -> dict[str, Taken]:
    """Measure everything once, and leave nothing in the guest."""
    whole, address = one is MACHINERIES[0], str(subject.agent_socket)
    variables = {**qga(address), **one.variables}
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(tree)}

    def play(tasks: list[Task]) -> Taken:
        before = _processor(subject)
        taken = seconds(lambda: run(scratch, {"guest": variables}, tasks, environment))
        return taken, _processor(subject) - before

    taken = {}
    if one.measured == _PLAYED or whole:
        play([RESET])
        plays = {ANEW: PLAYS[MIXED], MODULES: PLAYS[MIXED], LOOPED: loop(LOOP)}
        taken.update({what: play(tasks) for what, tasks in plays.items()})
    if one.measured == _COPIED or whole:
        play(loop(2))  # interpreters are there
        command = [
            sys.executable,
            "-m",
            "lab.bench.machineries",
            "--transfer",
            str(tree),
            address,
            str(scratch / "text"),
        ]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="ascii", check=True)
        taken.update({what: (float(value), 0.0) for what, value in zip(_COPIED, done.stdout.split(), strict=True)})
    play([RESET])
    return taken


def _processor(subject: Guest | LooseAgent) -> float:
    """Return the seconds of processor time that QEMU, or what this process has started, has used so far."""
    if isinstance(subject, Guest):
        fields = Path(f"/proc/{subject.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _transfer(tree: str, address: str, file: str) -> tuple[float, float]:
    load_plugins({"ANSIBLE_COLLECTIONS_PATH": tree}, Path(tree))
    connection = connect(qga(address))
    with tempfile.NamedTemporaryFile() as back:
        connection.exec_command("true")
        put = seconds(lambda: connection.put_file(file, IN_GUEST))
        fetch = seconds(lambda: connection.fetch_file(IN_GUEST, back.name))
        if Path(back.name).read_bytes() != Path(file).read_bytes():
            raise LabError("the file arrived differently")
    connection.close()
    return put, fetch


def _without(one: Machinery, directory: Path) -> Path:
    """Return a directory with a copy of the collection that lacks a machinery.

    :raise LabError: if the lines to change are not there.
    """
    done = subprocess.run(
        [str(ROOT / "tests" / "tools" / "tree"), str(directory)], stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    for file, old, new in one.changes:
        path = Path(done.stdout.strip()) / file
        source = path.read_text(encoding="utf-8")
        if old not in source:
            raise LabError(f"{one.name}: {file} has no line {old!r}")
        path.write_text(source.replace(old, new), encoding="utf-8")
    return directory


def _table(chosen: list[Machinery], figures: Mapping[tuple[str, str], list[Taken]]) -> list[str]:
    """Return the table: seconds with everything, and times as many without one; in parentheses, processor time."""
    whole = chosen[0].name
    lines = [f"| without | {' | '.join(TITLES.values())} |", "|---" * (len(TITLES) + 1) + "|"]
    for one in chosen:
        cells = [_cell(figures.get((one.name, what), []), figures[whole, what], one.name == whole) for what in TITLES]
        lines.append(f"| {'nothing' if one.name == whole else one.name} | {' | '.join(cells)} |")
    return lines


def _cell(values: list[Taken], bases: list[Taken], absolute: bool) -> str:
    if not values:
        return ""
    ones = [(1.0, 1.0)] * len(values) if absolute else bases
    pairs = zip(values, ones, strict=False)
    taken, used = zip(*((value[0] / base[0], value[1] / (base[1] or 1)) for value, base in pairs), strict=True)
    unit = " s" if absolute else ""
    return f"{median(taken):.2f}{unit}" + (f" ({median(used):.2f})" if any(used) else "")


if __name__ == "__main__":
    raise SystemExit(main())
