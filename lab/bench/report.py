# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables and the picture of docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from operator import truediv
from pathlib import Path
from statistics import linear_regression, median

from lab import accel, image
from lab.bench.contenders import LIBVIRT, LIBVIRT_QEMU, NULL, QGA, ROOT, Contender
from lab.bench.growth import TASKS
from lab.bench.guest import Counts
from lab.bench.plays import FILES_PER_ROUND, LOOPED, MIXED, ONE, PLAYS, RUN, RUN_ANEW, RUNS, SETUP, TREE
from lab.libvirt import Domain

DOCUMENT = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "benchmarks.svg"
SCALE = ROOT / "docs" / "scale.md"
MARKERS = ("<!-- measured: begin -->", "<!-- measured: end -->")

Rows = Mapping[tuple[str, int], Mapping[str, Sequence[float]]]
"""What was measured, by title and number of guests, and by name."""


def plays_table(contenders: Sequence[Contender], what: str) -> list[str]:
    """Return a table of what was measured, and of how many times one takes what another does."""
    pairs = _compared(contenders)
    ratios = [f"{_short(one)} / {_short(other)}" for one, other in pairs]
    lines = _head(what, *(one.name for one in contenders), *ratios)
    runs = [title.format(what) for what in RUNS for title in (RUN, RUN_ANEW)]
    for title in [LOOPED, *PLAYS, TREE, *runs, ONE]:
        if not any(one.seconds.get(title) for one in contenders):
            continue
        figures = [_spread(one.seconds.get(title, [])) for one in contenders]
        lines.append(f"| {title} | {' | '.join(figures + [_ratio(*pair, title) for pair in pairs])} |")
    return lines


def _compared(contenders: Sequence[Contender]) -> list[tuple[Contender, Contender]]:
    """Return who is divided by whom: the others by this collection, by both its ways if they go through libvirt, and
    this collection by the null connection.
    """
    by_name = {one.name: one for one in contenders}
    pairs = [(one, by_name[QGA]) for one in contenders if not one.ours and one.name != NULL]
    pairs += [(by_name[LIBVIRT_QEMU], by_name[LIBVIRT])] if LIBVIRT_QEMU in by_name else []
    return [*pairs, *((by_name[name], by_name[NULL]) for name in (QGA, LIBVIRT) if name in by_name)]


def _short(one: Contender) -> str:
    """Return a contender's name for the head of a column: "mitogen over ssh" is mitogen, "qga, libvirt" libvirt."""
    return one.name.removeprefix(f"{QGA}, ").partition(" ")[0]


def _head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _ratio(one: Contender, other: Contender, title: str) -> str:
    figures = [who.seconds.get(title) for who in (one, other)]
    return f"{median(figures[0]) / median(figures[1]):.1f}" if figures[0] and figures[1] else ""


def rates_table(contenders: Sequence[Contender], bare: Mapping[str, list[float]], what: str) -> list[str]:
    """Return a table of files: who took part, the bare loop, and the ratios of this collection's rates."""
    rates = {one.name: one.rates for one in contenders if one.rates}
    lines = _head(what, *rates, "bare loop", "qga / bare loop", "qga / null")
    for title, ours in rates[QGA].items():
        figures = [_spread(one[title]) for one in [*rates.values(), bare]]
        # Pairs that were measured one after the other: the machine is not as fast in one minute as in the next.
        ratios = [median(map(truediv, ours, other[title])) for other in (bare, rates[NULL])]
        lines.append(f"| {title} | {' | '.join(figures)} | {ratios[0]:.2f} | {ratios[1]:.4f} |")
    return lines


def counts_table(counts: Mapping[str, Counts], asked: Counts) -> list[str]:
    """Return a table of what travels, beside what ansible-core asks of any connection, counted in the null one."""
    lines = _head("agent command, per task", "requests", "bytes out", "bytes back")
    for command, numbers in counts.items():
        lines.append(_row(f"`{command}`", *numbers))
    everything = [sum(column) for column in zip(*counts.values(), strict=True)]
    ratios = " | ".join(f"{ours / null:.2f}" for ours, null in zip(everything, asked, strict=True))
    return [
        *lines,
        _row("all", *everything),
        _row("null: calls of the connection", *asked),
        f"| all / null | {ratios} |",
    ]


def growth_table(growth: Mapping[str, Mapping[int, float]]) -> list[str]:
    lines = _head(f"seconds of {TASKS} tasks on so many guests at once", *map(str, growth[QGA]))
    ratios = {number: seconds / growth[NULL][number] for number, seconds in growth[QGA].items()}
    for name, figures in {**growth, "qga / null": ratios}.items():
        lines.append(f"| {name} | {' | '.join(f'{figures[number]:.1f}' for number in growth[QGA])} |")
    return lines


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _row(title: str, *numbers: float) -> str:
    return f"| {title} | {numbers[0]:.1f} | {numbers[1]:.0f} | {numbers[2]:.0f} |"


def conditions(domain: Domain, rounds: int, date: str, loads: Sequence[float]) -> list[str]:
    """Return how the figures were taken."""
    how = "KVM" if accel.accelerator() == "kvm" else "emulation (TCG), no KVM"
    return [
        f"Taken on {date}, {rounds} round{'s' * (rounds > 1)}, files {FILES_PER_ROUND} times in each; medians, with "
        "the least and the greatest in parentheses. Contenders with a single figure took part in the first round only.",
        "",
        f"- host: {os.cpu_count()} processors ({platform.machine()}), load average {loads[0]:.1f} before the rounds "
        f"and {loads[1]:.1f} after them; the guest itself makes up to {domain.cpus} of it",
        f"- guest: {_said('qemu-system-x86_64', '--version')}, {how}, {domain.cpus} processors, "
        f"{domain.memory_mib} MiB; Debian {domain.release}, agent {image.build(domain.release).agent_version} on "
        f"virtio-serial; ssh through QEMU's user network; libvirt {_said('virsh', '--version')}",
        f"- controller: {_versions()}, Python {platform.python_version()}, {_said('ssh', '-V')}",
    ]


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("ansible-core", "mitogen", "ansible"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _said(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False)
    return done.stdout.splitlines()[0].partition(" (")[0].partition(",")[0].replace("emulator version ", "")


def fleet_table(what: str, rows: Rows, names: Sequence[str]) -> list[str]:
    """Return a table of medians by title and number of guests: those of each name, and the ratios to the first."""
    first, *others = names
    lines = _head(what, "guests", *names, *(f"{other} / {first}" for other in others))
    for (title, guests), by_name in rows.items():
        figures = [median(by_name[name]) if by_name.get(name) else None for name in names]
        shown = ["" if figure is None else _short_figure(figure) for figure in figures]
        ratios = [f"{figure / figures[0]:.1f}" if figures[0] and figure is not None else "" for figure in figures[1:]]
        lines.append(f"| {title} | {guests} | {' | '.join([*shown, *ratios])} |")
    return lines


EXTRAPOLATED = (1_000, 10_000)
"""Guests."""


def extrapolation_table(rows: Rows, name: str, least: int) -> list[str]:
    """Return what more guests would take: the straight line through what was measured with ``least`` guests or more.

    It is empty where there are no two such numbers of guests.
    """
    lines = _head(f"{name}, extrapolated", *(f"{guests:,} guests" for guests in EXTRAPOLATED))
    by_title: dict[str, dict[int, float]] = {}
    for (title, guests), by_name in rows.items():
        if guests >= least and by_name.get(name):
            by_title.setdefault(title, {})[guests] = median(by_name[name])
    for title, figures in by_title.items():
        if len(figures) > 1:
            slope, start = linear_regression(list(figures), list(figures.values()))
            more = [_short_figure(round(start + slope * guests, 1)) for guests in EXTRAPOLATED]
            lines.append(f"| {title} | {' | '.join(more)} |")
    return lines if len(lines) > 2 else []


def _short_figure(figure: float) -> str:
    return f"{figure:.0f}" if figure == int(figure) else f"{figure:.2f}" if figure < 10 else f"{figure:.1f}"


def fleet_conditions(rounds: int, date: str, loads: Sequence[float], how: str) -> list[str]:
    """Return how the figures of a fleet were taken."""
    return [
        f"Taken on {date}, {rounds} rounds in turns, medians.",
        "",
        f"- host: {os.cpu_count()} processors ({platform.machine()}), for the controller and all agents; load average "
        f"{loads[0]:.1f} before the rounds and {loads[1]:.1f} after them",
        f"- controller: {_versions()}, Python {platform.python_version()}, {_said('ssh', '-V')}",
        f"- {how}",
    ]


def write(text: str, document: Path = DOCUMENT) -> None:
    """Put the tables into the document."""
    before, _begin, rest = document.read_text(encoding="utf-8").partition(MARKERS[0])
    _old, end, after = rest.partition(MARKERS[1])
    if not end:
        raise SystemExit(f"bench: {document} does not have the lines {MARKERS[0]} and {MARKERS[1]}")
    document.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}", encoding="utf-8")
    print(f"bench: written to {document}")


def draw(contenders: Sequence[Contender], growth: Mapping[str, Mapping[int, float]], path: Path = PICTURE) -> None:
    """Draw seconds by contender, and how they grow with guests; an SVG that differs only if the figures do."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "qemu.guest", "font.size": 9})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 5, figsize=(14, 3.2), layout="constrained")
    titles = {LOOPED: "command: true, per item", MIXED: "12 modules", SETUP: "setup", TREE: "copy, per small file"}
    for panel, (title, shown) in zip(panels, titles.items(), strict=False):
        measured = [one for one in contenders if one.seconds.get(title)][::-1]
        seconds = [median(one.seconds[title]) for one in measured]
        colours = ["tab:blue" if one.name == QGA else "silver" for one in measured]
        bars = panel.barh([one.name for one in measured], seconds, color=colours)
        panel.bar_label(bars, fmt="%.2f", padding=2)
        panel.set_title(f"{shown}, s")
        panel.margins(x=0.2)
        panel.xaxis.set_visible(False)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
    for name, by_guests in growth.items():
        panels[-1].plot(list(by_guests), list(by_guests.values()), marker="o", label=name)
    panels[-1].set_title(f"{TASKS} tasks by guests, s")
    panels[-1].legend()
    figure.savefig(path, metadata={"Date": None})
    print(f"bench: drawn to {path}")
