# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure this collection's connection beside ssh, on one guest in one run: `make bench`.

Rounds alternate between the two, so that what else the machine does hurts both alike; of each figure, the median is
given. With --write, the tables go into docs/benchmarks.md too.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from lab import accel, image, ssh
from lab.host import LabError
from lab.tally import Tally
from lab.vm import Guest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
MARKERS = ("<!-- measured: begin -->", "<!-- measured: end -->")
RELEASE = "bookworm"
TASKS = 10
MEGABYTE = 1_000_000
FILE_SIZE = 16 * MEGABYTE
IN_GUEST = "/root/bench.bin"
COMMANDS = """
- hosts: "{{ target }}"
  gather_facts: false
  tasks:
    - ansible.builtin.raw: "true"
    - ansible.builtin.set_fact:
        started: "{{ now().timestamp() }}"
    - ansible.builtin.command: "true"
      loop: "{{ range(count | int) | list }}"
    - ansible.builtin.debug:
        msg: "seconds={{ now().timestamp() - started | float }}"
"""
NOTHING = """
- hosts: "{{ target }}"
  gather_facts: false
  tasks:
    - ansible.builtin.command: "true"
      loop: "{{ range(count | int) | list }}"
"""


@dataclass
class Contender:
    """A connection, by its host variables, and what was measured over it, round by round."""

    name: str
    variables: Mapping[str, Any]
    seconds_per_task: list[float] = field(default_factory=list)
    put_rates: list[float] = field(default_factory=list)
    fetch_rates: list[float] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab.bench", description="Seconds per task and MB/s, beside ssh.")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.relative_to(ROOT)}")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="the date to write there")
    options = parser.parse_args()
    try:
        text = _measure(options.rounds, options.date)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"\n{text}")
    if options.write:
        _write(text)
    return 0


def _measure(rounds: int, date: str) -> str:
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Guest(RELEASE, nic="user") as guest:
        bench = Bench(guest, Path(name))
        bench.prepare()
        loads = [os.getloadavg()[0]]
        for number in range(rounds):
            bench.round(number)
        loads.append(os.getloadavg()[0])
        counts = bench.count()
    return "\n".join([*_figures(bench.contenders), "", *counts, "", *_conditions(guest, rounds, date, loads)])


class Bench:
    """One guest, and the ways to it."""

    def __init__(self, guest: Guest, scratch: Path) -> None:
        self._guest = guest
        self._scratch = scratch
        self.contenders: list[Contender] = []

    def prepare(self) -> None:
        """Wait for the guest, and write what the measurements need."""
        started = time.monotonic()
        _progress("booting a guest with a NIC, for ssh")
        self._guest.wait_agent()
        self._guest.wait_booted()
        _progress(f"booted in {time.monotonic() - started:.0f} s")
        self.contenders = [
            Contender("qga", {**PYTHON, **self._qga(self._guest.agent_socket)}),
            Contender("ssh", {**PYTHON, **ssh.variables(self._guest), "ansible_ssh_pipelining": True}),
        ]
        # Random, so that ssh's compression, which Ansible turns on, has nothing to gain.
        self._content().write_bytes(os.urandom(FILE_SIZE))
        _load_plugins(self._environment())
        for contender in self.contenders:  # connects, warms the guest's caches
            self._commands(contender, 1)

    def round(self, number: int) -> None:
        """Measure everything once; who is first alternates."""
        contenders = self.contenders[:: -1 if number % 2 else 1]
        for contender in contenders:
            contender.seconds_per_task.append(self._commands(contender, TASKS) / TASKS)
            _progress(f"round {number + 1}: {contender.name}: {contender.seconds_per_task[-1]:.2f} s per task")
        for contender in contenders:
            put, fetch = self._transfers(contender)
            contender.put_rates.append(put)
            contender.fetch_rates.append(fetch)
            _progress(f"round {number + 1}: {contender.name}: put {put:.2f} MB/s, fetch {fetch:.2f} MB/s")

    def count(self) -> list[str]:
        """Return a table of what one task makes travel: the difference between a loop of 1 + TASKS and one of 1."""
        _progress("counting requests and bytes")
        few, many = self._tally(1), self._tally(1 + TASKS)
        lines = ["| agent command, per task | requests | bytes out | bytes back |", "|---|---|---|---|"]
        total = [0.0, 0.0, 0.0]
        for command in sorted(many):
            numbers = [(more - less) / TASKS for more, less in zip(many[command], few.get(command, ZERO), strict=True)]
            total = [one + other for one, other in zip(total, numbers, strict=True)]
            lines.append(_row(f"`{command}`", *numbers))
        return [*lines, _row("all", *total)]

    # Inside

    def _qga(self, address: Path) -> dict[str, Any]:
        return {"ansible_connection": "qemu.guest.qga", "ansible_qga_address": str(address)}

    def _content(self) -> Path:
        return self._scratch / "content"

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment.update(ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_HOME=str(self._scratch / "ansible"))
        return {**environment, "ANSIBLE_LOCALHOST_WARNING": "false", "LC_ALL": "C.UTF-8"}

    def _commands(self, contender: Contender, count: int) -> float:
        """Run a loop of commands; return the seconds it took, without Ansible's start and without connecting."""
        output = self._playbook(COMMANDS, contender.name, contender.variables, count)
        match = re.search(r"seconds=([0-9.]+)", output)
        if match is None:
            raise LabError(f"the playbook printed no time: {output}")
        return float(match.group(1))

    def _playbook(self, text: str, host: str, variables: Mapping[str, Any], count: int) -> str:
        inventory, playbook = self._scratch / "inventory.json", self._scratch / "playbook.yml"
        inventory.write_text(json.dumps({"all": {"hosts": {host: dict(variables)}}}), encoding="utf-8")
        playbook.write_text(text, encoding="utf-8")
        argv = ["ansible-playbook", "-i", str(inventory), "-e", f"target={host} count={count}", str(playbook)]
        done = subprocess.run(
            argv,
            cwd=ROOT,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        if done.returncode != 0:
            raise LabError(f"a playbook failed over {host}: {done.stdout}")
        return done.stdout

    def _transfers(self, contender: Contender) -> tuple[float, float]:
        """Put a file and fetch it back by the connection plugin; return MB/s of both. The content is compared."""
        connection = _connection(contender.variables)
        back = self._scratch / "back"
        wanted = _sha256(self._content())
        put = _seconds(lambda: connection.put_file(str(self._content()), IN_GUEST))
        there = self._guest.run(f"sha256sum <{IN_GUEST}")[1].split()[0]
        fetch = _seconds(lambda: connection.fetch_file(IN_GUEST, str(back)))
        connection.close()
        self._guest.run(f"rm {IN_GUEST}")
        if not wanted == there == _sha256(back):
            raise LabError(f"{contender.name}: the file arrived differently")
        return FILE_SIZE / MEGABYTE / put, FILE_SIZE / MEGABYTE / fetch

    def _tally(self, count: int) -> dict[str, tuple[int, int, int]]:
        with Tally(self._scratch / "tally.sock", self._guest.agent_socket) as tally:
            self._playbook(NOTHING, "tally", {**PYTHON, **self._qga(tally.path)}, count)
            return {name: (one.requests, one.sent, one.received) for name, one in tally.counts.items()}


PYTHON = {"ansible_python_interpreter": "/usr/bin/python3"}
ZERO = (0, 0, 0)


def _progress(text: str) -> None:
    print(f"bench: {text}", flush=True)


def _load_plugins(environment: Mapping[str, str]) -> None:
    """Make Ansible's plugins usable in this process. It reads its settings when it is imported, so not before."""
    os.environ.update(environment)
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader([str(ROOT / ".dev" / "collections")])


def _connection(variables: Mapping[str, Any]) -> Any:
    from ansible.playbook.play_context import PlayContext
    from ansible.plugins.loader import connection_loader

    connection = connection_loader.get(variables["ansible_connection"], PlayContext())
    connection.set_options(var_options=dict(variables))
    return connection


def _seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _figures(contenders: list[Contender]) -> list[str]:
    """Return the table of medians. A ratio above 1 means that qga is that much slower."""
    qga, ssh = contenders
    lines = ["| | qga | ssh | qga is |", "|---|---|---|---|"]
    for title, of, slow_is_high in (
        ("`command: true`, seconds per task", lambda c: c.seconds_per_task, True),
        ("put, MB/s", lambda c: c.put_rates, False),
        ("fetch, MB/s", lambda c: c.fetch_rates, False),
    ):
        ours, theirs = of(qga), of(ssh)
        slower = median(ours) / median(theirs) if slow_is_high else median(theirs) / median(ours)
        verdict = f"{slower:.2f} times slower" if slower >= 1 else f"{1 / slower:.2f} times faster"
        lines.append(f"| {title} | {_spread(ours)} | {_spread(theirs)} | {verdict} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _row(title: str, *numbers: float) -> str:
    return f"| {title} | {numbers[0]:.1f} | {numbers[1]:.0f} | {numbers[2]:.0f} |"


def _conditions(guest: Guest, rounds: int, date: str, loads: list[float]) -> list[str]:
    how = "KVM" if accel.accelerator() == "kvm" else "emulation (TCG), no KVM"
    return [
        f"Taken on {date}, {rounds} rounds; medians, with the least and the greatest in parentheses.",
        "",
        f"- host: {os.cpu_count()} processors ({platform.machine()}), load average {loads[0]:.1f} before the rounds "
        f"and {loads[1]:.1f} after them; the guest itself makes up to {guest.cpus} of it",
        f"- guest: {_said('qemu-system-x86_64', '--version')}, {how}, {guest.cpus} processors, "
        f"{guest.memory_mib} MiB; Debian {RELEASE}, agent {image.build(RELEASE).agent_version} on virtio-serial; "
        "ssh through QEMU's user network",
        f"- controller: ansible-core {_core()}, Python {platform.python_version()}, {_said('ssh', '-V')}",
    ]


def _core() -> str:
    from ansible.release import __version__

    return str(__version__)


def _said(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    return done.stdout.splitlines()[0].partition(" (")[0].partition(",")[0].replace("emulator version ", "")


def _write(text: str) -> None:
    before, _begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(MARKERS[0])
    _old, end, after = rest.partition(MARKERS[1])
    if not end:
        raise SystemExit(f"bench: {DOCUMENT} does not have the lines {MARKERS[0]} and {MARKERS[1]}")
    DOCUMENT.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}", encoding="utf-8")
    print(f"bench: written to {DOCUMENT}")


if __name__ == "__main__":
    raise SystemExit(main())
