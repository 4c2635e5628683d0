# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest and all the ways to it: seconds of plays, MB/s of files, requests and bytes of a task."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lab.agent import LooseAgent
from lab.bench.contenders import (
    LIBVIRT,
    MITOGEN,
    NULL,
    QGA,
    RESET,
    ROOT,
    SSH,
    Contender,
    Task,
    contenders,
    environment,
    run,
    seconds_of,
)
from lab.bench.plays import (
    FEWER_FILES,
    FILES,
    GONE,
    LOOP,
    LOOPED,
    ONE,
    PLAYS,
    RUN,
    RUN_ANEW,
    RUNS,
    SHORTER_LOOP,
    TREE,
    TRUE,
    loop,
    prepare,
    tree,
)
from lab.host import LabError
from lab.libvirt import Domain
from lab.tally import Tally

COUNTED = 10  # tasks
MEGABYTE = 1_000_000
FILE_SIZE = 16 * MEGABYTE
CHUNKS = (256 << 10, 1 << 20, 3 << 20)  # of a bare loop; base64 makes 4 MiB of the last
IN_GUEST = "/root/bench.bin"
KINDS = ("random", "text")
# Over the others, files are as quick or as slow as over one of these.
TRANSFERRING = (QGA, LIBVIRT, SSH, NULL)
# A tree of many files takes them seconds, the others minutes.
MANY_FILES = (QGA, LIBVIRT, NULL)
# Those whose start takes a while, and the one that needs none.
STARTING = (QGA, LIBVIRT, MITOGEN, NULL)

Counts = tuple[float, float, float]
"""Requests, bytes out and bytes back."""


def progress(text: str) -> None:
    print(f"bench: {text}", flush=True)


def boot(domain: Domain) -> None:
    """Wait for a guest and both its agents."""
    started = time.monotonic()
    progress("booting a guest with a NIC, for ssh")
    domain.wait_booted()
    domain.wait_agent()
    domain.start_second_agent()
    progress(f"booted in {time.monotonic() - started:.0f} s")


class Bench:
    """A guest, or an agent without one, the ways to it, and what was measured."""

    def __init__(self, subject: Domain | LooseAgent, scratch: Path) -> None:
        self._subject = subject
        self._scratch = scratch
        self.contenders = contenders(subject, scratch)
        self._bare: dict[str, dict[int, list[float]]] = {way: defaultdict(list) for way in ("put", "fetch")}
        prepare(self._scratch)
        # Random: nothing compresses that, neither this collection nor ssh, which Ansible tells to.
        self._content("random").write_bytes(os.urandom(FILE_SIZE))
        self._content("text").write_bytes(text(FILE_SIZE))
        load_plugins(environment(self._scratch))

    def round(self, number: int) -> None:
        """Measure everything once; who is first alternates."""
        taking_part = [one for one in self.contenders if not (one.slow and number)][:: -1 if number % 2 else 1]
        for one in taking_part:
            items = SHORTER_LOOP if one.slow else LOOP
            if not number:
                self._run(one, [TRUE] if one.slow else loop(items))  # what is kept between plays is there afterwards
            self._note(number, one, LOOPED, self._seconds_of(one, loop(items)) / items)
        for title, tasks in PLAYS.items():
            for one in taking_part:
                if not number and not one.slow:  # warms the guest's caches, and makes what the play makes
                    self._run(one, tasks)
                self._note(number, one, title, self._seconds_of(one, tasks))
        for one in taking_part:
            if not one.slow:
                files = FILES if one.name in MANY_FILES else FEWER_FILES
                self._run(one, [GONE])
                self._note(number, one, TREE, self._seconds_of(one, tree(self._scratch, files)) / files)

    def files(self, number: int) -> None:
        """Measure transfers once. Plays come before that, so that what is kept between plays is there."""
        compared = self._named(*TRANSFERRING)
        for kind in KINDS:
            for one in compared:
                put, fetch = self._transfers(one, kind)
                one.rates[f"put, {kind}"].append(put)
                one.rates[f"fetch, {kind}"].append(fetch)
                progress(f"round {number + 1}: {one.name}: {kind}: put {put:.2f} MB/s, fetch {fetch:.2f} MB/s")
                if (one, kind) == (compared[0], KINDS[0]):
                    self._bare_loops(number)  # right beside what is compared with them

    def _bare_loops(self, number: int) -> None:
        for chunk in CHUNKS:
            put, fetch = self._bare_loop(chunk)
            self._bare["put"][chunk].append(put)
            self._bare["fetch"][chunk].append(fetch)
            progress(f"round {number + 1}: bare loop: {chunk >> 10} KiB: put {put:.2f} MB/s, fetch {fetch:.2f} MB/s")

    def cold(self, number: int) -> None:
        """Measure what a single task takes. It ends what is kept between plays, so this comes after all rounds."""
        for one in [one for one in self.contenders if one.ours or one.name == NULL][:: -1 if number % 2 else 1]:
            self._note(number, one, ONE, self._seconds_of(one, [TRUE], anew=True))

    def whole_runs(self, number: int) -> None:
        """Measure whole runs of Ansible, some seconds after the same one, and where nothing is left of others.

        What others than these take in a run is what they take for its tasks.
        """
        for what, tasks in RUNS.items():
            for one in self._named(*STARTING)[:: -1 if number % 2 else 1]:
                measured = functools.partial(self._run, one, tasks)
                measured()
                self._note(number, one, RUN.format(what), seconds(measured))
                self._run(one, [RESET])
                self._note(number, one, RUN_ANEW.format(what), seconds(measured))

    @property
    def bare(self) -> dict[str, list[float]]:
        """The MB/s of the bare loop with the chunk size that was best over all rounds, not in one by chance."""
        best = {way: max(by_chunk.values(), key=median) for way, by_chunk in self._bare.items()}
        return {f"{way}, {kind}": rates for way, rates in best.items() for kind in KINDS}

    def count(self) -> tuple[dict[str, Counts], Counts]:
        """Return what one task makes travel, by agent command; and what ansible-core asks of a connection for it.

        That is the difference between a loop of 1 + COUNTED tasks and one of 1, divided.
        """
        progress("counting requests and bytes")
        few, many = self._tally(1), self._tally(1 + COUNTED)
        counts = {command: _per_task(few.get(command, (0, 0, 0)), many[command]) for command in sorted(many)}
        return counts, _per_task(self._asked(1), self._asked(1 + COUNTED))

    # Inside

    def _named(self, *names: str) -> list[Contender]:
        return [one for one in self.contenders if one.name in names]

    def _note(self, number: int, one: Contender, title: str, seconds: float) -> None:
        one.seconds[title].append(seconds)
        progress(f"round {number + 1}: {title}: {one.name}: {seconds:.2f} s")

    def _seconds_of(self, one: Contender, tasks: list[Task], anew: bool = False) -> float:
        return seconds_of(self._scratch, {"guest": one.variables}, tasks, one.environment, anew=anew)

    def _run(self, one: Contender, tasks: list[Task]) -> None:
        run(self._scratch, {"guest": one.variables}, tasks, one.environment)

    def _content(self, kind: str) -> Path:
        return self._scratch / f"{kind}.bin"

    def _transfers(self, one: Contender, kind: str) -> tuple[float, float]:
        """Put a file and fetch it back by the connection plugin; return MB/s of both. The content is compared."""
        connection = connect(one.variables)
        source, back = self._content(kind), self._scratch / "back"
        put = seconds(lambda: connection.put_file(str(source), IN_GUEST))
        # Over the null connection nothing arrives in the guest.
        there = _sha256(source) if one.name == NULL else self._sum_and_remove(False)
        back.unlink(missing_ok=True)  # some filesystems write what was there to the disk before it is overwritten
        fetch = seconds(lambda: connection.fetch_file(IN_GUEST, str(back)))
        connection.close()
        if one.name != NULL:
            self._sum_and_remove(True)
        if not _sha256(source) == there == _sha256(back):
            raise LabError(f"{one.name}: the file arrived differently")
        return FILE_SIZE / MEGABYTE / put, FILE_SIZE / MEGABYTE / fetch

    def _sum_and_remove(self, remove: bool) -> str:
        return self._subject.run(f"sha256sum <{IN_GUEST}{f'; rm {IN_GUEST}' if remove else ''}")[1].split()[0]

    def _bare_loop(self, chunk: int) -> tuple[float, float]:
        """Return the MB/s that writing and reading reach with this chunk size, without any verification."""
        # By name, because it is found only where Ansible's plugins are.
        library = "ansible_collections.qemu.guest.plugins.module_utils"
        open_agent = importlib.import_module(f"{library}._agent.connect").open_agent
        open_file = importlib.import_module(f"{library}._guest.files").GuestFile
        data = self._content("random").read_bytes()
        with open_agent(str(self._subject.agent_socket), 120) as agent:

            def write() -> None:
                with open_file(agent, IN_GUEST, "w") as file:
                    for start in range(0, len(data), chunk):
                        file.write(data[start : start + chunk])

            def read() -> None:
                with open_file(agent, IN_GUEST) as file:
                    while file.read(chunk):
                        pass

            rates = FILE_SIZE / MEGABYTE / seconds(write), FILE_SIZE / MEGABYTE / seconds(read)
        self._sum_and_remove(True)
        return rates

    def _tally(self, count: int) -> dict[str, tuple[int, int, int]]:
        with Tally(self._scratch / f"tally-{count}.sock", self._subject.agent_socket) as tally:
            # Its mux would keep others from the agent.
            own = {"ansible_qga_address": str(tally.path), "ansible_qga_persist": 0}
            run(self._scratch, {"guest": {**self._named(QGA)[0].variables, **own}}, loop(count))
            return {name: (one.requests, one.sent, one.received) for name, one in tally.counts.items()}

    def _asked(self, count: int) -> tuple[int, int, int]:
        """Return the calls of the null connection in a loop of `count` tasks, and their bytes there and back."""
        log = self._scratch / f"asked-{count}"
        run(self._scratch, {"guest": {**self._named(NULL)[0].variables, "ansible_null_log": str(log)}}, loop(count))
        calls = [[int(number) for number in line.split()] for line in log.read_text(encoding="ascii").splitlines()]
        return len(calls), sum(sent for sent, _received in calls), sum(received for _sent, received in calls)


def _per_task(few: tuple[int, int, int], many: tuple[int, int, int]) -> Counts:
    requests, out, back = ((more - less) / COUNTED for more, less in zip(many, few, strict=True))
    return requests, out, back


def text(size: int) -> bytes:
    """Return text that does not repeat: sources of Python's library, and of ansible-core where those are too few."""
    paths = sysconfig.get_paths()
    library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
    files = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    text = b"".join(path.read_bytes() for path in [*files, *sorted((packages / "ansible").rglob("*.py"))])
    if len(text) < size:
        raise LabError(f"Python's library and ansible-core have {len(text)} bytes of text only")
    return text[:size]


def load_plugins(variables: Mapping[str, str], collections: Path = ROOT / ".dev" / "collections") -> None:
    """Make Ansible's plugins usable in this process. It reads its settings when it is imported, so not before."""
    os.environ.update(variables)
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader([str(collections)])


def connect(variables: Mapping[str, Any]) -> Any:
    from ansible.playbook.play_context import PlayContext
    from ansible.plugins.loader import connection_loader

    connection = connection_loader.get(variables["ansible_connection"], PlayContext())
    connection.set_options(var_options=dict(variables))
    return connection


def seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
