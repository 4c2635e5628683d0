# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`. Rounds alternate between the contenders, so that what else the machine does hurts all alike.

With --write, the tables go into docs/benchmarks.md, and the picture beside it; those of a fleet into docs/scale.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from pathlib import Path

from lab.agent import LooseAgent
from lab.bench import fleet, report
from lab.bench.growth import growth
from lab.bench.guest import Bench, boot, progress
from lab.bench.plays import FILES_PER_ROUND
from lab.host import LabError
from lab.libvirt import Daemon, Domain

RELEASE = "bookworm"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab.bench", description="Seconds of plays and MB/s, compared.")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--only", choices=["guest", "fleet"], help="one guest, or many agents (default: both)")
    parser.add_argument("--guests", type=int, nargs="+", default=fleet.GUESTS, help="sizes of the fleet, rising")
    parser.add_argument("--beside", type=Path, help="another checkout, which is measured on the same fleet")
    parser.add_argument("--write", action="store_true", help="put tables and picture into docs/")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="the date to write there")
    options = parser.parse_args()
    try:
        if options.only != "fleet":
            _measure(options.rounds, options.date, options.write)
        if options.only != "guest":
            _measure_fleet(options)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _measure_fleet(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        beside = options.beside.resolve() if options.beside else None
        text = fleet.measure(Path(name), RELEASE, options.guests, options.rounds, options.date, beside)
    print(f"\n{text}")
    if options.write:
        report.write(text, report.SCALE)


def _measure(rounds: int, date: str, write: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        with Daemon() as daemon, Domain(daemon, RELEASE, "bench", "user") as domain:
            boot(domain)
            bench = Bench(domain, scratch)
            loads = [os.getloadavg()[0]]
            tables = _tables(bench, rounds)
            loads.append(os.getloadavg()[0])
            lines = [*tables, "", *report.counts_table(*bench.count())]
            conditions = report.conditions(domain, rounds, date, loads)
        # The same where nothing is emulated: an agent and an SSH server on the same files, on this processor.
        with LooseAgent(RELEASE) as agent:
            progress("once more, not emulated")
            lines += ["", *_tables(Bench(agent, scratch), rounds, ", not emulated")]
        grown = growth(scratch, RELEASE)
        text = "\n".join([*lines, "", *report.growth_table(grown), "", *conditions])
        print(f"\n{text}")
        if write:
            report.draw(bench.contenders, grown)
            report.write(f"![seconds of plays over each connection]({report.PICTURE.name})\n\n{text}")


def _tables(bench: Bench, rounds: int, where: str = "") -> list[str]:
    """Measure, and return the tables of plays and of files."""
    for number in range(rounds):
        bench.round(number)
    for number in range(FILES_PER_ROUND * rounds):
        bench.files(number)
    for number in range(rounds):
        bench.whole_runs(number)
    for number in range(rounds):
        bench.cold(number)
    plays = report.plays_table(bench.contenders, f"seconds{where}")
    return [*plays, "", *report.rates_table(bench.contenders, bench.bare, f"MB/s{where}")]


if __name__ == "__main__":
    raise SystemExit(main())
