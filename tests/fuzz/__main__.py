# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run targets of the fuzzer, one after another: see docs/testing.md.

Each runs in a process of its own, which ends with its executions or at a fault. What it has found worth keeping stays
in the cache, and is where the next run begins; ``--keep`` writes the shortest of it to tests/fuzz/corpus, which a unit
test runs through.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLLECTIONS = ROOT / ".dev" / "collections"
CORPUS = HERE / "corpus"
CACHE = Path(os.environ.get("QEMU_GUEST_CACHE") or Path.home() / ".cache" / "qemu-guest") / "fuzz"
RUNS = 100_000
SEED = 1
MOST_KEPT = 60
LONGEST = 256
LONGEST_OF = {"archive": 4096}
# An input that takes longer or more is a fault.
MOST_SECONDS = 20
MOST_MEGABYTES = 1024


def inputs(target: str) -> list[bytes]:
    """Return the corpus of a target that is in the tree."""
    try:
        return [base64.b64decode(line) for line in (CORPUS / f"{target}.txt").read_text(encoding="ascii").splitlines()]
    except FileNotFoundError:
        return []


def keep(target: str) -> None:
    """Write to the tree the shortest inputs of a target's that each ran code which none before had run."""
    CORPUS.mkdir(exist_ok=True)
    found = sorted({path.read_bytes() for path in (CACHE / target).iterdir()}, key=lambda one: (len(one), one))[
        :MOST_KEPT
    ]
    lines = (base64.b64encode(one).decode("ascii") + "\n" for one in found)
    (CORPUS / f"{target}.txt").write_text("".join(lines), encoding="ascii")


def fuzz(target: str, arguments: Sequence[str]) -> None:
    """Be the process that runs a target; return never. libFuzzer ends it."""
    import atheris

    sys.path[:0] = [str(COLLECTIONS), str(ROOT)]
    with atheris.instrument_imports(include=["ansible_collections.qemu.guest.plugins"]):
        from ansible_collections.qemu.guest.tests.fuzz.targets import TARGETS
    atheris.Setup([target, *arguments], TARGETS[target])
    atheris.Fuzz()


def names() -> list[str]:
    """Return the names of all targets; to import them here, too, would take seconds."""
    return re.findall(r'^    "([a-z-]+)": ', (HERE / "targets.py").read_text(encoding="utf-8"), re.MULTILINE)


def run(target: str, runs: int, seed: int) -> tuple[int, bool]:
    """Run a target in another process; return how many executions it had, and whether all were well."""
    directory = CACHE / target
    directory.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(inputs(target)):
        (directory / f"kept-{number}").write_bytes(one)
    done = subprocess.run(
        [
            *(sys.executable, __file__, "--child", target),
            f"-runs={runs}",
            f"-seed={seed}",
            f"-max_len={LONGEST_OF.get(target, LONGEST)}",
            f"-timeout={MOST_SECONDS}",
            f"-rss_limit_mb={MOST_MEGABYTES}",
            f"-artifact_prefix={CACHE}/{target}-",
            "-print_final_stats=1",
            str(directory),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    match = re.search(r"number_of_executed_units: (\d+)", done.stdout)
    if done.returncode:
        print(done.stdout[-6000:])
    return int(match[1]) if match else 0, not done.returncode


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--child"]:
        fuzz(arguments[1], arguments[2:])
    parser = argparse.ArgumentParser(prog="make fuzz FUZZ_ARGS=…")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="of targets.py; all without any")
    parser.add_argument("--runs", type=int, default=RUNS, help="executions of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--keep", action="store_true", help="keep what was found in the tree")
    options = parser.parse_args(arguments)
    total, broken = 0, []
    for target in options.targets or names():
        runs, is_well = run(target, options.runs, options.seed)
        total += runs
        print(f"{target}: {runs} executions{'' if is_well else ', FAULT'}", flush=True)
        if not is_well:
            broken.append(target)
        elif options.keep:
            keep(target)
    print(f"{total} executions" + (f"; faults in {', '.join(broken)}" if broken else ""))
    return bool(broken)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
