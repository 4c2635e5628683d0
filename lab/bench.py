# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure this collection's connection beside ssh, on one guest in one run: `make bench`.

Rounds alternate between the contenders, so that what else the machine does hurts all alike; of each figure, the median
is given. With --write, the tables go into docs/benchmarks.md too.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
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
LOOP = 20
COUNTED = 10  # tasks
MEGABYTE = 1_000_000
FILE_SIZE = 16 * MEGABYTE
CHUNKS = (256 << 10, 1 << 20, 3 << 20)  # of a bare loop; base64 makes 4 MiB of the last
IN_GUEST = "/root/bench.bin"
PYTHON = {"ansible_python_interpreter": "/usr/bin/python3"}

# One task of each, as a role has them that sets a service up.
MIX: dict[str, dict[str, Any]] = {
    "group": {"name": "bench", "system": True},
    "user": {"name": "bench", "group": "bench", "system": True, "create_home": False},
    "file": {"path": "/srv/bench", "state": "directory", "owner": "bench", "mode": "0750"},
    "copy": {"content": "a file\n", "dest": "/srv/bench/copied", "mode": "0644"},
    "template": {"src": "bench.j2", "dest": "/srv/bench/templated", "mode": "0644"},
    "lineinfile": {"path": "/srv/bench/templated", "line": "a template of {{ inventory_hostname }}"},
    "replace": {"path": "/srv/bench/copied", "regexp": "file", "replace": "file"},
    "stat": {"path": "/srv/bench/copied"},
    "find": {"paths": "/srv/bench"},
    "slurp": {"src": "/srv/bench/copied"},
    "shell": {"cmd": "ls /srv/bench | wc -l"},
    "command": {"cmd": "id bench"},
}
Task = dict[str, Any]
TRUE: Task = {"ansible.builtin.command": "true"}
PER_TASK = f"`command: true` in a loop of {LOOP}, per task"
PLAYS: dict[str, list[Task]] = {
    PER_TASK: [{**TRUE, "loop": list(range(LOOP))}],
    f"{len(MIX)} modules, a task of each": [{f"ansible.builtin.{name}": options} for name, options in MIX.items()],
    "`setup`": [{"ansible.builtin.setup": {}}],
}
ONE = "one `command: true` in a guest where nothing is left of others"

# What differs from one contender to the next; None is ssh.
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "qga": {},
    "qga, no warm Python": {"ansible_qga_warm_python": False},
    "qga, guest-exec": {"ansible_qga_exec_method": "guest-exec"},
    "ssh": None,
}


@dataclass
class Contender:
    """A connection, by its host variables, and what was measured over it round by round, by title."""

    name: str
    variables: Mapping[str, Any]
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab.bench", description="Seconds of plays and MB/s, beside ssh.")
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
    return "\n".join(
        [
            *_plays_table(bench.contenders),
            "",
            *_rates_table(bench.contenders, bench.bare),
            "",
            *counts,
            "",
            *_conditions(guest, rounds, date, loads),
        ]
    )


class Bench:
    """One guest, and the ways to it."""

    def __init__(self, guest: Guest, scratch: Path) -> None:
        self._guest = guest
        self._scratch = scratch
        self.contenders: list[Contender] = []
        self.bare: dict[str, list[float]] = defaultdict(list)

    def prepare(self) -> None:
        """Wait for the guest, and write what the measurements need."""
        started = time.monotonic()
        _progress("booting a guest with a NIC, for ssh")
        self._guest.wait_agent()
        self._guest.wait_booted()
        _progress(f"booted in {time.monotonic() - started:.0f} s")
        qga = {"ansible_connection": "qemu.guest.qga", "ansible_qga_address": str(self._guest.agent_socket)}
        over_ssh = {**ssh.variables(self._guest), "ansible_ssh_pipelining": True}
        for name, options in CONTENDERS.items():
            variables = over_ssh if options is None else {**qga, **options}
            self.contenders.append(Contender(name, {**PYTHON, **variables}))
        (self._scratch / "bench.j2").write_text("a template of {{ inventory_hostname }}\n", encoding="utf-8")
        # Random: nothing compresses that, neither this collection nor ssh, which Ansible tells to.
        self._content("random").write_bytes(os.urandom(FILE_SIZE))
        self._content("text").write_bytes(_text(FILE_SIZE))
        _load_plugins(self._environment())
        for contender in self.contenders:  # warms the guest's caches, and makes what the plays make
            for title, tasks in PLAYS.items():
                self._seconds_of(contender, [TRUE] if title == PER_TASK else tasks)

    def round(self, number: int) -> None:
        """Measure everything once; who is first alternates."""
        contenders = self.contenders[:: -1 if number % 2 else 1]
        for title, tasks in PLAYS.items():
            for contender in contenders:
                self._note(number, contender, title, self._seconds_of(contender, tasks))
        for contender in contenders:
            if contender.name != "ssh":
                self._note(number, contender, ONE, self._seconds_of(contender, [TRUE], anew=True))
        for kind in ("random", "text"):
            for contender in (contenders[0], contenders[-1]):  # the one and ssh: files do not depend on the rest
                put, fetch = self._transfers(contender, kind)
                contender.rates[f"put, {kind}"].append(put)
                contender.rates[f"fetch, {kind}"].append(fetch)
                _progress(f"round {number + 1}: {contender.name}: {kind}: put {put:.2f} MB/s, fetch {fetch:.2f} MB/s")
        put, fetch = self._bare_loop()
        for kind in ("random", "text"):
            self.bare[f"put, {kind}"].append(put)
            self.bare[f"fetch, {kind}"].append(fetch)
        _progress(f"round {number + 1}: bare loop: put {put:.2f} MB/s, fetch {fetch:.2f} MB/s")

    def count(self) -> list[str]:
        """Return a table of what one task makes travel: the difference between a loop of 1 + COUNTED and one of 1."""
        _progress("counting requests and bytes")
        few, many = self._tally(1), self._tally(1 + COUNTED)
        lines = ["| agent command, per task | requests | bytes out | bytes back |", "|---|---|---|---|"]
        total = [0.0, 0.0, 0.0]
        for command in sorted(many):
            none = (0, 0, 0)
            numbers = [
                (more - less) / COUNTED for more, less in zip(many[command], few.get(command, none), strict=True)
            ]
            total = [one + other for one, other in zip(total, numbers, strict=True)]
            lines.append(_row(f"`{command}`", *numbers))
        return [*lines, _row("all", *total)]

    # Inside

    def _note(self, number: int, contender: Contender, title: str, seconds: float) -> None:
        seconds /= LOOP if title == PER_TASK else 1
        contender.seconds[title].append(seconds)
        _progress(f"round {number + 1}: {title}: {contender.name}: {seconds:.2f} s")

    def _content(self, kind: str) -> Path:
        return self._scratch / f"{kind}.bin"

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment.update(ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_HOME=str(self._scratch / "ansible"))
        return {**environment, "ANSIBLE_LOCALHOST_WARNING": "false", "LC_ALL": "C.UTF-8"}

    def _seconds_of(self, contender: Contender, tasks: list[Task], anew: bool = False) -> float:
        """Run tasks; return the seconds they took, without Ansible's start.

        ``anew`` ends what others have left in the guest and here; otherwise there is a connection already.
        """
        before: Task = {"ansible.builtin.meta": "reset_connection"} if anew else {"ansible.builtin.raw": "true"}
        started = {"ansible.builtin.set_fact": {"started": "{{ now().timestamp() }}"}}
        ended = {"ansible.builtin.debug": {"msg": "seconds={{ now().timestamp() - started | float }}"}}
        output = self._playbook(contender.name, contender.variables, [before, started, *tasks, ended])
        match = re.search(r"seconds=([0-9.]+)", output)
        if match is None:
            raise LabError(f"the playbook printed no time: {output}")
        return float(match.group(1))

    def _playbook(self, host: str, variables: Mapping[str, Any], tasks: list[Task]) -> str:
        host = re.sub(r"\W+", "_", host)
        inventory, playbook = self._scratch / "inventory.json", self._scratch / "playbook.json"
        inventory.write_text(json.dumps({"all": {"hosts": {host: dict(variables)}}}), encoding="utf-8")
        play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
        playbook.write_text(json.dumps([play]), encoding="utf-8")
        done = subprocess.run(
            ["ansible-playbook", "-i", str(inventory), str(playbook)],
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

    def _transfers(self, contender: Contender, kind: str) -> tuple[float, float]:
        """Put a file and fetch it back by the connection plugin; return MB/s of both. The content is compared."""
        connection = _connection(contender.variables)
        source, back = self._content(kind), self._scratch / "back"
        put = _seconds(lambda: connection.put_file(str(source), IN_GUEST))
        there = self._sum_and_remove(False)
        fetch = _seconds(lambda: connection.fetch_file(IN_GUEST, str(back)))
        connection.close()
        self._sum_and_remove(True)
        if not _sha256(source) == there == _sha256(back):
            raise LabError(f"{contender.name}: the file arrived differently")
        return FILE_SIZE / MEGABYTE / put, FILE_SIZE / MEGABYTE / fetch

    def _sum_and_remove(self, remove: bool) -> str:
        return self._guest.run(f"sha256sum <{IN_GUEST}{f'; rm {IN_GUEST}' if remove else ''}")[1].split()[0]

    def _bare_loop(self) -> tuple[float, float]:
        """Return the MB/s that writing and reading reach with the best chunk size, without any verification."""
        # By name, because it is found only where Ansible's plugins are.
        library = "ansible_collections.qemu.guest.plugins.module_utils"
        open_agent = importlib.import_module(f"{library}._agent").open_agent
        open_file = importlib.import_module(f"{library}._files").GuestFile
        data = self._content("random").read_bytes()
        puts, fetches = [], []
        for chunk in CHUNKS:
            with open_agent(str(self._guest.agent_socket), 120) as agent:

                def write(agent: Any = agent, chunk: int = chunk) -> None:
                    with open_file(agent, IN_GUEST, "w") as file:
                        for start in range(0, len(data), chunk):
                            file.write(data[start : start + chunk])

                def read(agent: Any = agent, chunk: int = chunk) -> None:
                    with open_file(agent, IN_GUEST) as file:
                        while file.read(chunk):
                            pass

                puts.append(_seconds(write))
                fetches.append(_seconds(read))
        self._sum_and_remove(True)
        return FILE_SIZE / MEGABYTE / min(puts), FILE_SIZE / MEGABYTE / min(fetches)

    def _tally(self, count: int) -> dict[str, tuple[int, int, int]]:
        with Tally(self._scratch / f"tally-{count}.sock", self._guest.agent_socket) as tally:
            variables = {**self.contenders[0].variables, "ansible_qga_address": str(tally.path)}
            # Its keeper would keep others from the agent.
            self._playbook("tally", {**variables, "ansible_qga_persist": 0}, [{**TRUE, "loop": list(range(count))}])
            return {name: (one.requests, one.sent, one.received) for name, one in tally.counts.items()}


def _progress(text: str) -> None:
    print(f"bench: {text}", flush=True)


def _text(size: int) -> bytes:
    """Return text: this project's own documents and programs, again and again."""
    paths = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "plugins").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
    once = b"".join(path.read_bytes() for path in paths)
    # Further apart than gzip looks back, so repeating gains nothing.
    return (once * (size // len(once) + 1))[:size]


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


def _plays_table(contenders: list[Contender]) -> list[str]:
    names = [contender.name for contender in contenders]
    lines = [f"| seconds | {' | '.join(names)} | ssh / qga |", "|---" * (len(names) + 2) + "|"]
    for title in [*PLAYS, ONE]:
        figures = [contender.seconds.get(title, []) for contender in contenders]
        ratio = f"{median(figures[-1]) / median(figures[0]):.1f}" if figures[-1] else ""
        lines.append(f"| {title} | {' | '.join(map(_spread, figures))} | {ratio} |")
    return lines


def _rates_table(contenders: list[Contender], bare: Mapping[str, list[float]]) -> list[str]:
    qga, ssh = contenders[0], contenders[-1]
    lines = ["| MB/s | qga | ssh | bare loop | qga / bare loop |", "|---|---|---|---|---|"]
    for title, ours in qga.rates.items():
        ratio = f"{median(ours) / median(bare[title]):.2f}"
        lines.append(f"| {title} | {_spread(ours)} | {_spread(ssh.rates[title])} | {_spread(bare[title])} | {ratio} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


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
