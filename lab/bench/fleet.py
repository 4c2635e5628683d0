# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fleets: what an inventory, ad-hoc commands and plays take on many guests, and what they leave on the controller.

The guests are loose agents. Each way has a controller of its own (lab/controller.py), so that what it leaves is told
from what others leave. An agent has one seat: before another way is measured, the former one has left.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import ssh
from lab.agent import LooseAgent
from lab.bench import report
from lab.bench.contenders import NULL, PYTHON, QGA, ROOT, SSH, Task, environment, null, qga, seconds_in, timed
from lab.bench.growth import TASKS
from lab.bench.guest import progress
from lab.bench.plays import TRUE
from lab.controller import Controller, Process
from lab.host import LabError

GUESTS = (1, 20, 50, 100, 200)
MOST_FORKS = 50
MOST_OVER_SSH = 100
"""Guests; more take minutes for a round."""

INVENTORY = "inventory: agent, OS, host name, addresses"
INFO, PING = "`qga_info`", "`ping`"
FIVE = f"{TASKS} commands"
PROCESSOR = "the same: processor seconds of Ansible, with its start"
WORKING = "a play at work: MB (PSS)"
PROCESSES, DESCRIPTORS = "left by a play: processes", "left by a play: descriptors"
PSS, RSS = "left by a play: MB (PSS)", "left by a play: MB (RSS)"
AFTERWARDS = "after the persist time: processes and sockets"
MEGABYTE = 1_000_000

_ENDING_SECONDS = 10.0
"""More than the persist time that is the default."""
_FOUND = ("ansible_connection", "ansible_qga_address")
_RAW: Task = {"ansible.builtin.raw": "true"}
_SLEEP: Task = {"ansible.builtin.raw": "sleep 1"}

_HOW = (
    f"agents: without guests, directly on the host; forks: one for each guest, {MOST_FORKS} at most; ssh with up to "
    f"{MOST_OVER_SSH} guests, a server for each on the files of its agent"
)
Figures = dict[tuple[str, int], dict[str, list[float]]]


@dataclass
class Way:
    """A way to the guests, and the checkout whose collection it uses."""

    name: str
    variables: Callable[[LooseAgent], Mapping[str, Any]]
    tree: Path = ROOT

    @property
    def ours(self) -> bool:
        """Whether it is this collection, of whatever checkout."""
        return self.name not in (SSH, NULL)

    def reaches(self, guests: int) -> bool:
        return self.name != SSH or guests <= MOST_OVER_SSH


def measure(
    scratch: Path, release: str, sizes: Sequence[int], rounds: int, date: str, beside: Path | None = None
) -> str:
    """Return the tables, and how they were taken."""
    ways = [Way(QGA, lambda agent: qga(agent.agent_socket)), Way(SSH, _over_ssh)]
    if beside:
        ways.append(Way(_version(beside), lambda agent: qga(agent.agent_socket), beside))
    ways.append(Way(NULL, lambda _agent: null(scratch / "null").variables))
    loads = [os.getloadavg()[0]]
    with ExitStack() as stack:
        fleet = Fleet(scratch, ways, [])
        for size in sorted(sizes):
            fleet.grow(stack, size, release)
            for number in range(rounds):
                fleet.round(number)
    loads.append(os.getloadavg()[0])
    names = [way.name for way in ways]
    seconds = report.fleet_table("seconds", fleet.seconds, names)
    left = report.fleet_table("on the controller", fleet.left, names[:-1])
    # Not PSS: that is as much about who else runs the same programs.
    growing = {key: by_name for key, by_name in fleet.left.items() if key[0] in (RSS, DESCRIPTORS)}
    more = report.extrapolation_table({**fleet.seconds, **growing}, QGA, MOST_FORKS)
    conditions = report.fleet_conditions(rounds, date, loads, _HOW)
    return "\n\n".join("\n".join(part) for part in (seconds, left, more, conditions) if part)


def _over_ssh(agent: LooseAgent) -> Mapping[str, Any]:
    return {**PYTHON, **ssh.variables(agent), "ansible_ssh_pipelining": True}


def _version(tree: Path) -> str:
    argv = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    return done.stdout.strip() or tree.name


@dataclass
class Fleet:
    """Agents, the ways to them, and what was measured."""

    scratch: Path
    ways: Sequence[Way]
    agents: list[LooseAgent]
    seconds: Figures = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    left: Figures = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def grow(self, stack: ExitStack, size: int, release: str) -> None:
        """Start agents until there are ``size``."""
        started, before = time.monotonic(), len(self.agents)
        while len(self.agents) < size:
            self.agents.append(stack.enter_context(LooseAgent(release)))
        progress(f"{size} agents: the last {size - before} started in {time.monotonic() - started:.1f} s")

    def round(self, number: int) -> None:
        """Measure everything once with the agents that there are; who is first alternates."""
        for way in self.ways[:: -1 if number % 2 else 1]:
            if way.reaches(len(self.agents)):
                with Controller() as controller:
                    play = Play(self.scratch, way, controller, self.agents)
                    self._seconds(play, number)
                    if not number and way.name != NULL:
                        self._left(play)

    def _seconds(self, play: Play, number: int) -> None:
        if not number:
            play.run([TRUE])  # what is kept between plays is there afterwards
        if play.way.name == QGA:
            self._note(play, INVENTORY, play.inventory())
        if play.way.ours:
            self._note(play, INFO, play.adhoc("qemu.guest.qga_info"))
        if play.way.name != NULL:
            self._note(play, PING, play.adhoc("ansible.builtin.ping"))
        before = _processor_seconds()
        output = play.run(timed([TRUE] * TASKS))
        self._note(play, FIVE, seconds_in(output))
        self._note(play, PROCESSOR, _processor_seconds() - before)
        play.end()

    def _left(self, play: Play) -> None:
        """Measure what a play takes at work, and what it leaves while the channels of all guests are kept, and then."""
        self._add(self.left, play, WORKING, play.peak([_SLEEP]) / MEGABYTE)
        play.end()
        persist = max(15.0, len(self.agents) / 4)  # seconds: longer than the play takes
        play.run([_RAW], {"ansible_qga_persist": persist})
        for title, figure in _sums(play.controller.left()).items():
            self._add(self.left, play, title, figure)
        if play.way.ours:
            play.end(persist + _ENDING_SECONDS)
            self._add(self.left, play, AFTERWARDS, len(play.controller.left()) + len(play.controller.sockets()))

    def _note(self, play: Play, title: str, seconds: float) -> None:
        self._add(self.seconds, play, title, seconds)

    def _add(self, figures: Figures, play: Play, title: str, figure: float) -> None:
        guests = len(self.agents)
        figures[title, guests][play.way.name].append(figure)
        progress(f"{guests} guests: {play.way.name}: {title}: {figure:.2f}")


def _sums(left: Sequence[Process]) -> dict[str, float]:
    return {
        PROCESSES: len(left),
        PSS: sum(process.pss for process in left) / MEGABYTE,
        RSS: sum(process.rss for process in left) / MEGABYTE,
        DESCRIPTORS: sum(process.descriptors for process in left),
    }


def _processor_seconds() -> float:
    """Return those of all commands that have ended, and of what they started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Play:
    """One way to a number of agents, from one controller."""

    def __init__(self, scratch: Path, way: Way, controller: Controller, agents: Sequence[LooseAgent]) -> None:
        self._scratch = scratch
        self.way = way
        self.controller = controller
        self._sockets = [agent.agent_socket for agent in agents]
        self._forks = str(min(len(agents), MOST_FORKS))
        self._hosts = {f"guest{number}": way.variables(agent) for number, agent in enumerate(agents)}

    def run(self, tasks: list[Task], variables: Mapping[str, Any] | None = None) -> str:
        """Run a play on all guests; return what it printed."""
        return self._output(*self._play(tasks, variables))

    def peak(self, tasks: list[Task]) -> int:
        """Return the most memory that the processes of a play on all guests take at a time, in bytes."""
        argv = self._play(tasks)
        most = 0
        with subprocess.Popen(self._command(argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                most = max(most, sum(one.pss for one in self.controller.left()))
                time.sleep(0.2)
        if process.returncode != 0:
            raise LabError(f"{argv[0]} failed over {self.way.name} with {process.returncode}")
        return most

    def adhoc(self, module: str) -> float:
        """Return the seconds of a run of one module on all guests, when no channel is kept."""
        self.end()
        inventory = self._inventory(self._hosts)
        started = time.monotonic()
        self._output("ansible", "all", "-i", inventory, "--forks", self._forks, "-m", module)
        return time.monotonic() - started

    def inventory(self) -> float:
        """Return the seconds of the inventory plugin, which finds all guests by their sockets."""
        self.end()
        path = self._found(gather=["agent", "osinfo", "hostname", "addresses"])
        started = time.monotonic()
        output = self._output("ansible-inventory", "-i", path, "--list")
        seconds = time.monotonic() - started
        _check_found(output[output.index("{") :], len(self._sockets))
        return seconds

    def end(self, seconds: float = _ENDING_SECONDS) -> None:
        """Wait until nothing of this collection is left here.

        :raise LabError: if it is not so in time.
        """
        if self.way.ours and not self.controller.wait_empty(seconds):
            raise LabError(f"{self.way.name} leaves this after {seconds:.0f} s: {self.controller.left()}")

    def _play(self, tasks: list[Task], variables: Mapping[str, Any] | None = None) -> list[str]:
        playbook = self._write("playbook.json", [{"hosts": "all", "gather_facts": False, "tasks": tasks}])
        hosts = {name: {**own, **(variables or {})} for name, own in self._hosts.items()}
        return ["ansible-playbook", "-i", self._inventory(hosts), "--forks", self._forks, playbook]

    def _inventory(self, hosts: Mapping[str, Mapping[str, Any]]) -> str:
        """Return an inventory of ``hosts``. This checkout finds them itself, and gives them their other variables."""
        if self.way.name == QGA:
            (variables, *_others) = hosts.values()
            own = {name: repr(value) for name, value in variables.items() if name not in _FOUND}
            return self._found(compose=own)
        return self._write("inventory.json", {"all": {"hosts": hosts}})

    def _found(self, **options: Any) -> str:
        """Return an inventory that finds all guests by their sockets."""
        directory = self._scratch / "sockets"
        directory.mkdir(exist_ok=True)
        for number, socket in enumerate(self._sockets):
            link = directory / f"guest{number}.qga"
            link.unlink(missing_ok=True)
            link.symlink_to(socket)
        asked = {"sources": ["sockets"], "sockets": [f"{directory}/*.qga"]}
        return self._write("fleet.qga.yml", {"plugin": "qemu.guest.qga", **asked, **options})

    def _write(self, name: str, content: object) -> str:
        path = self._scratch / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    def _command(self, argv: Sequence[str]) -> list[str]:
        return self.controller.command(argv, environment(self._scratch, self.way.tree), self.way.tree)

    def _output(self, *argv: str) -> str:
        tree = self.way.tree
        failed = f"{argv[0]} failed over {self.way.name}"
        return self.controller.output(argv, environment(self._scratch, tree), tree, failed)


def _check_found(output: str, guests: int) -> None:
    """Raise LabError unless the inventory has all guests, each with what it was asked."""
    found = json.loads(output)["_meta"]["hostvars"]
    told = [name for name, variables in found.items() if {"qga_agent", "qga_osinfo", "qga_hostname"} <= {*variables}]
    if len(told) != guests:
        raise LabError(f"the inventory has {len(found)} hosts, {len(told)} of which said something, of {guests}")
