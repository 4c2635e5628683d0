# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench, without anything to measure: its tables, and its null connection."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lab.bench import report
from lab.bench.contenders import LIBVIRT, LIBVIRT_QEMU, MITOGEN, NULL, QGA, RESET, SSH, Contender, null, run
from lab.bench.plays import GONE, LOOPED, MIX, MIXED, PLAYS, SETUP, TRUE, loop, prepare, tree
from lab.host import LabError


def contender(name: str, *seconds: float, rates: tuple[float, ...] = ()) -> Contender:
    one = Contender(name, {})
    if seconds:
        one.seconds[LOOPED] = [*seconds]
    if rates:
        one.rates["put, random"] = [*rates]
    return one


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def column(table: list[str], name: str, row: int = 0) -> str:
    """Return what is below a heading. All lines of a table have as many cells."""
    assert len({len(cells(line)) for line in table}) == 1
    return cells(table[2 + row])[cells(table[0]).index(name)]


def test_plays_table_two_rounds_ratios_of_medians() -> None:
    everyone = [
        contender(QGA, 3.0, 5.0),
        contender("qga, guest-exec", 8.0),
        contender(LIBVIRT, 6.0, 6.0),
        contender(LIBVIRT_QEMU, 60.0),
        contender(MITOGEN, 2.0, 2.0),
        contender(SSH, 40.0, 40.0),
        contender(NULL, 1.0, 3.0),
    ]
    table = report.plays_table(everyone, "seconds")
    assert len(table) == 3
    assert column(table, QGA) == "4.00 (3.00 to 5.00)"
    ratios = {name: column(table, name) for name in cells(table[0]) if " / " in name}
    assert ratios == {
        "libvirt_qemu / qga": "15.0",
        "mitogen / qga": "0.5",
        "ssh / qga": "10.0",
        "libvirt_qemu / libvirt": "10.0",
        "qga / null": "2.0",
        "libvirt / null": "3.0",
    }


def test_plays_table_without_libvirt_has_no_column_of_it() -> None:
    table = report.plays_table([contender(QGA, 3.0), contender(SSH), contender(NULL, 2.0)], "seconds")
    assert cells(table[0]) == ["seconds", QGA, SSH, NULL, "ssh / qga", "qga / null"]
    assert cells(table[2])[1:] == ["3.00", "", "2.00", "", "1.5"]


def test_rates_table_ratios_of_pairs_taken_together() -> None:
    rated = [contender(QGA, rates=(1.0, 4.0)), contender(MITOGEN), contender(NULL, rates=(1000.0, 2000.0))]
    table = report.rates_table(rated, {"put, random": [2.0, 4.0]}, "MB/s")
    assert cells(table[0]) == ["MB/s", QGA, NULL, "bare loop", "qga / bare loop", "qga / null"]
    assert column(table, "qga / bare loop") == "0.75"
    assert column(table, "qga / null") == "0.0015"


def test_counts_table_ends_with_ratios_to_the_null_connection() -> None:
    counts = {"guest-file-read": (3.0, 30.0, 300.0), "guest-file-write": (1.0, 20.0, 100.0)}
    table = report.counts_table(counts, (2.0, 1000.0, 200.0))
    assert [cells(line) for line in table[-3:]] == [
        ["all", "4.0", "50", "400"],
        ["null: calls of the connection", "2.0", "1000", "200"],
        ["all / null", "2.00", "0.05", "2.00"],
    ]


def test_growth_table_ends_with_ratios_to_the_null_connection() -> None:
    table = report.growth_table({QGA: {1: 3.0, 5: 8.0}, SSH: {1: 9.0, 5: 40.0}, NULL: {1: 2.0, 5: 4.0}})
    assert [cells(line)[0] for line in table[2:]] == [QGA, SSH, NULL, "qga / null"]
    assert cells(table[-1])[1:] == ["1.5", "2.0"]


def test_fleet_table_medians_and_ratios_to_the_first() -> None:
    rows = {
        ("ping", 1): {QGA: [1.0, 3.0, 2.0], SSH: [8.0, 7.0, 9.0]},
        ("ping", 200): {QGA: [20.0]},
        ("processes afterwards", 1): {QGA: [0.0], SSH: [1.0]},
    }
    table = report.fleet_table("seconds", rows, [QGA, SSH])
    assert [cells(line) for line in table if "---" not in line] == [
        ["seconds", "guests", QGA, SSH, "ssh / qga"],
        ["ping", "1", "2", "8", "4.0"],
        ["ping", "200", "20", "", ""],
        ["processes afterwards", "1", "0", "1", ""],
    ]


def test_extrapolation_table_straight_line_through_many_guests() -> None:
    rows = {("ping", guests): {QGA: [seconds]} for guests, seconds in ((1, 9.0), (50, 6.0), (100, 11.0), (200, 21.0))}
    rows["one size", 50] = {QGA: [1.0]}
    table = report.extrapolation_table(rows, QGA, least=50)
    assert [cells(line) for line in table[2:]] == [["ping", "101", "1001"]]
    assert report.extrapolation_table({("ping", 50): {QGA: [1.0]}}, QGA, least=50) == []


def test_write_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "scale.md"
    document.write_text(f"before\n{report.MARKERS[0]}\nold\n{report.MARKERS[1]}\nafter\n")
    report.write("new", document)
    assert document.read_text() == f"before\n{report.MARKERS[0]}\n\nnew\n\n{report.MARKERS[1]}\nafter\n"


def over_null(scratch: Path, tasks: list[dict[str, Any]], **variables: str) -> str:
    """Run tasks over the null connection; return what Ansible printed."""
    return run(scratch, {"guest": {**null(scratch / "null").variables, **variables}}, tasks)


def recap(output: str) -> dict[str, int]:
    line = next(line for line in output.splitlines() if line.startswith("guest "))
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line)}


def test_null_connection_mix_second_run_changes_nothing(tmp_path: Path) -> None:
    prepare(tmp_path)
    first, second = (recap(over_null(tmp_path, PLAYS[MIXED])) for _run in range(2))
    # What runs programs always says that it changes something.
    programs = len({"command", "shell"} & set(MIX))
    assert (first["ok"], first["changed"]) == (len(MIX), programs + len({"copy", "template"}))
    assert (second["ok"], second["changed"]) == (len(MIX), programs)
    assert (tmp_path / "null" / "files" / "srv" / "bench" / "copied").read_text() == "a file\n"


def test_null_connection_setup_twice_answers_the_same_facts(tmp_path: Path) -> None:
    show = {
        "ansible.builtin.debug": {"msg": "system {{ ansible_facts.system }}, at {{ ansible_facts.date_time.epoch }}"}
    }
    output = over_null(tmp_path, [*PLAYS[SETUP], show, *PLAYS[SETUP], show])
    shown = re.findall(r"system Linux, at \d+", output)
    assert len(shown) == 2 and shown[0] == shown[1]


def test_null_connection_tree_is_copied_again_once_it_is_gone(tmp_path: Path) -> None:
    tasks = tree(tmp_path, 3)
    changed = recap(over_null(tmp_path, [*tasks, *tasks, GONE, *tasks]))["changed"]
    assert changed == 3  # the first, the raw task, and the last
    copied = sorted((tmp_path / "null" / "files" / "srv" / "tree").rglob("file-*"))
    assert [path.read_text() for path in copied] == [f"file {number}\n" * 40 for number in range(3)]


def test_null_connection_log_has_a_call_for_each_item(tmp_path: Path) -> None:
    log = tmp_path / "log"
    over_null(tmp_path, [RESET, *loop(3)], ansible_null_log=str(log))
    calls = [line.split() for line in log.read_text().splitlines()]
    assert len(calls) == 3
    assert all(int(sent) > 10_000 and int(received) > 100 for sent, received in calls)


def test_null_connection_unknown_module_fails(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no answer of the module ping"):
        over_null(tmp_path, [TRUE, {"ansible.builtin.ping": {}}])
