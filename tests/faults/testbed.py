# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A testbed: a guest, a controller of its own, and a channel between them that fails as told.

What an operation did is counted by another path than the agent, and so is what it left behind.
"""

from __future__ import annotations

import json
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, cast

from ansible_collections.qemu.guest.tests.faults.faulty_channel import FaultyChannel
from ansible_collections.qemu.guest.tests.faults.guests import GuestUnderTest
from ansible_collections.qemu.guest.tests.faults.matrix import (
    DONE,
    FILE,
    HANDLE,
    KILLED,
    LOST_HANDLE,
    SOCKET,
    Cell,
)
from ansible_collections.qemu.guest.tests.faults.operations import Outcome, Task, is_right
from lab import host
from lab.controller import Controller
from lab.host import private_directory

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 3.0
"""The agent's, in seconds."""
STAGED = "file /srv/.put-"
"""What a put leaves that was cut off. It may stay, and is removed, for others need its room."""
SECONDS_TO_END = 5.0
"""How long what is left of an operation may take to end."""


class Started(NamedTuple):
    """What a worker's process is, and a function that waits for what it says."""

    pid: int
    outcome: Callable[[float], Outcome]


class FaultTestbed:
    """A guest whose channel fails: ``channel`` is what operations are given as the agent's socket."""

    def __init__(self, guest: GuestUnderTest) -> None:
        self.guest = guest
        self._messages: dict[str, int] = {}
        self.running = 0
        """The process of the operation that runs, the first of several."""
        self._stack = ExitStack()

    def __enter__(self) -> FaultTestbed:
        with self._stack:
            self.controller = self._stack.enter_context(Controller())
            self.directory = private_directory()
            self.directory.chmod(0o755)
            self._stack.callback(self.directory.rmdir)
            self.channel = self._stack.enter_context(
                FaultyChannel(self.directory / "channel.sock", lambda: self.guest.agent_socket)
            )
            self.guest.channel = self.channel.path
            self.tasks = self.controller.directory / "tasks"
            self.here(f"mkdir {self.tasks} && mount -t tmpfs -o size=16m tmpfs {self.tasks}")
            self.here("mount -o remount,size=1m /run/qemu-guest")
            self.guest.prepare()
            self._stack.enter_context(self._worker())
            self._before = self.state()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def _worker(self) -> Iterator[None]:
        environment = {"PATH": host.SEARCH_PATH, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}
        self.workers = self.controller.directory / "workers.sock"
        argv = self.controller.command([sys.executable, str(WORKER), str(self.workers)], environment, Path("/"))
        log = self._stack.enter_context((self.controller.directory / "worker.log").open("wb"))
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n", (self.controller.directory / "worker.log").read_text()
            yield
        finally:
            process.communicate()  # it ends with its input
            self.workers.unlink()

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Signal a process, which may be root's."""
        assert pid > 1, "kill(1) takes these for many"
        subprocess.run(host.as_root(["kill", f"-{number.name[3:]}", str(pid)]), check=False, stderr=subprocess.DEVNULL)

    # Operations

    def start(self, operation: str, **how: float) -> tuple[Task, Started]:
        """Start an operation in a process of its own."""
        token = secrets.token_hex(8)
        how.setdefault("timeout", TIMEOUT * self.guest.slowness)
        task = Task(operation, str(self.channel.path), token, str(self.tasks / token), **how)
        client = self._client()
        stream = cast(BinaryIO, client.makefile("rwb"))
        stream.write(json.dumps(task._asdict()).encode() + b"\n")
        stream.flush()
        pid = int(stream.readline())
        return task, Started(pid, lambda seconds: self._outcome(client, stream, pid, seconds))

    def _outcome(self, client: socket.socket, stream: BinaryIO, pid: int, seconds: float) -> Outcome:
        """Return what a worker says; fail if it says nothing for so long."""
        began = time.monotonic()
        client.settimeout(seconds)
        try:
            line = stream.readline()
        except TimeoutError as exc:
            self.signal(pid, signal.SIGKILL)
            raise AssertionError(f"it hangs: nothing was said within {seconds:g} s") from exc
        finally:
            with suppress(OSError):
                stream.close()
            client.close()
        return Outcome(*json.loads(line)) if line else Outcome(KILLED, "", time.monotonic() - began)

    def messages(self, operation: str) -> int:
        """Return how many messages an operation takes; the second time, for the first has things to prepare."""
        if operation not in self._messages:
            for _time in range(2):
                self.channel.begin()
                task, started = self.start(operation)
                outcome = started.outcome(60)
                assert outcome.word == DONE and is_right(task, outcome.text), str(outcome)
                self.guest.effects(task, {1})
            self._messages[operation] = self.channel.messages
        return self._messages[operation]

    def state(self) -> Counter[str]:
        """Return what there is: handles, processes and files in the guest, processes and files on the controller."""
        kept = re.compile(r"file /run/qemu-guest/(mux-\d+\.lock|\w+\.(lock|thaw))$")
        here = (re.sub(r"^process \d+", "process", line) for line in self.look() if not kept.match(line))
        lines = (
            re.sub(r"[0-9a-f]{16}", "TOKEN", line)
            for line in [*self.guest.state(), *(f"controller's {line}" for line in here)]
        )
        return Counter(line for line in lines if line != "file /srv/put-TOKEN")  # what was put is counted as an effect

    def left(self, cell: Cell, hit: str) -> list[str]:
        """Return what is there and was not in the beginning, once all has had its time to end; it counts once."""
        end = time.monotonic() + SECONDS_TO_END * self.guest.slowness
        while True:
            state = self.state()
            left = [one for one in (state - self._before).elements() if not may_stay(one, cell, hit)]
            if not left or time.monotonic() > end:
                if any(line.startswith(STAGED) for line in state):
                    self.guest.tidy()
                self._before |= Counter({line: n for line, n in state.items() if not line.startswith(STAGED)})
                return left
            time.sleep(0.1)

    # By other means

    def look(self) -> list[str]:
        """Return a line for each process and file on the controller."""
        with self._client() as client, client.makefile("rwb") as stream:
            stream.write(json.dumps([str(self.tasks), "/run/qemu-guest"]).encode() + b"\n")
            stream.flush()
            return [str(line) for line in json.loads(stream.read())]

    def _client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.workers))
        return client

    def here(self, command: str) -> str:
        """Run a shell command on the controller; return what it printed."""
        argv = self.controller.command(["/bin/sh", "-euc", command], {"PATH": host.SEARCH_PATH}, Path("/"))
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True).stdout


def may_stay(what: str, cell: Cell, hit: str) -> bool:
    """Return whether something may be left by an operation that a fault has hit."""
    kinds = {"handle": {HANDLE}, "file": {FILE}, "controller's file": {FILE}}
    if hit in ("guest-file-open", "guest-file-read", "guest-file-close"):
        kinds["handle"].add(LOST_HANDLE)
    if what.startswith("controller's file /run/qemu-guest/mux-"):
        kinds["controller's file"] = {SOCKET}
    if cell.operation.name == "async" and what.startswith(("file /root/.ansible_async/", "file /root/.ansible/tmp/")):
        return True  # ansible-core's own, which it removes by commands of their own: one of them may be what failed
    kind, _name, _rest = what.partition(" /")
    return bool(kinds.get(kind, set()) & cell.fault.leaves)
