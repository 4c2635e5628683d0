# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
"""Add up what the stages of a test run left behind, print it as pytest does, exit non-zero unless all is well.

Usage: totals.py DIRECTORY SECONDS [STAGE-THAT-FAILED...]
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

# ansible-test's word for a test that found nothing to look at, such as the one for PowerShell.
NOTHING_TO_CHECK = "No tests applicable."


def outcome(case: ET.Element) -> tuple[str, str]:
    """Name the outcome of one JUnit test case, and the reason where it was skipped."""
    for child, name in (("failure", "failed"), ("error", "errors")):
        if case.find(child) is not None:
            return name, ""
    skipped = case.find("skipped")
    if skipped is None:
        return "passed", ""
    # ansible-test has the reason in the text, pytest in an attribute (and the place in the text).
    reason = skipped.get("message") or skipped.text or "no reason given"
    if reason == NOTHING_TO_CHECK:
        return "nothing to check", ""
    return ("xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"), reason


def collect(directory: Path) -> Counter[tuple[str, str]]:
    """Count outcomes in the JUnit files and step lists below a directory."""
    counts: Counter[tuple[str, str]] = Counter()
    for report in directory.rglob("*.xml"):
        counts.update(outcome(case) for case in ET.parse(report).iter("testcase"))
    for steps in directory.rglob("steps.tsv"):
        counts.update((line.split("\t")[0], "") for line in steps.read_text(encoding="utf-8").splitlines())
    return counts


def main(directory: str, seconds: str, *stages: str) -> int:
    """Print the totals; return 1 where anything failed, or where nothing at all was checked."""
    counts: Counter[str] = Counter()
    for (name, reason), number in sorted(collect(Path(directory)).items()):
        counts[name] += number
        if reason:
            print(f"{name.upper()} [{number}] {reason}")
    for stage in stages:
        print(f"FAILED stage {stage}")
    names = ("failed", "errors", "passed", "skipped", "xfailed", "nothing to check")
    shown = ", ".join(f"{counts[name]} {name}" for name in names if counts[name])
    elapsed = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    print(f" {shown or 'nothing ran'} in {seconds}s ({elapsed}) ".center(100, "="))
    return 1 if stages or counts["failed"] or counts["errors"] or not counts["passed"] else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
