# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A scene for operations and faults: a guest, a controller of its own, and a channel between them that fails as told.

What an operation did is counted by another path than the agent, and so is what it left behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, cast

from ansible_collections.qemu.guest.tests.faults.faulty import Faulty
from ansible_collections.qemu.guest.tests.faults.matrix import DONE, KILLED, OPERATION, Cell
from ansible_collections.qemu.guest.tests.faults.operations import EFFECTS, FETCHED, Outcome, Task, content
from ansible_collections.qemu.guest.tests.integration.harness import Subject, look
from lab import host, image
from lab.agent import LooseAgent
from lab.controller import Controller
from lab.host import private_directory

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_END = 5.0
"""How long what is left of an operation may take to end."""

# Filesystems of their own, which can be filled; what was there before stays.
PREPARE = f"""
set -e
for d in /run /srv; do
    mkdir /tmp/kept
    cp -a $d/. /tmp/kept
    mount -t tmpfs -o size=8m,mode=755 tmpfs $d
    cp -a /tmp/kept/. $d
    rm -r /tmp/kept
done
: >{EFFECTS}
chmod 0666 {EFFECTS}
"""
# The open files of the agent, processes beside it, and files that are not the image's, a line each. What serves later
# tasks stays: the runner and warm Python, with what they sweep away by themselves.
STATE = r"""
import os, re
def told(*words):
    print(*(word.encode("utf-8", "backslashreplace").decode() for word in words))
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        line = open(f"/proc/{pid}/cmdline", errors="replace").read().replace("\0", " ").strip()
        if line.startswith("qemu-ga ") or line.startswith("/opt/upgrade/qemu-ga "):
            files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            for path in files:
                if path.startswith(("/srv/", "/tmp/", "/run/qemu", "/root/", "/var/")) and "/lab-" not in path:
                    told("handle", path)
        elif line and not re.search("loose.sh|qemu-guest|^sleep 600$|^/usr/bin/python3 -S$|told", line):
            told("process", line)
    except OSError:
        pass
for top in ("/tmp", "/root", "/srv", "/run", "/var/tmp"):
    for directory, _names, files in os.walk(top):
        for name in files if not directory.startswith("/run/qemu-guest-runner") else ():
            told("file", os.path.join(directory, name))
"""


class Told(NamedTuple):
    """What a worker's process is, and a function that waits for what it says."""

    pid: int
    outcome: Callable[[float], Outcome]


class Scene:
    """A ``subject`` whose channel fails: ``channel`` is what operations are given as the agent's socket."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._messages: dict[str, int] = {}
        self.running = 0
        """The process of the operation that runs, the first of several."""
        self._stack = ExitStack()

    def __enter__(self) -> Scene:
        with self._stack:
            self.controller = self._stack.enter_context(Controller())
            self.directory = private_directory()
            self.directory.chmod(0o755)
            self._stack.callback(self.directory.rmdir)
            self.channel = self._stack.enter_context(
                Faulty(self.directory / "channel.sock", lambda: self.subject.agent_socket)
            )
            self.tasks = self.controller.directory / "tasks"
            self.here(f"mkdir {self.tasks} && mount -t tmpfs -o size=4m tmpfs {self.tasks}")
            self.here("mount -o remount,size=1m /run/qemu-guest")
            look(self.subject, PREPARE)
            self.feed(f"cat >{FETCHED}", content("fetched"))
            self._stack.enter_context(self._worker())
            self._before = self.state()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def feed(self, command: str, data: bytes) -> None:
        """Run a shell command with this input in the guest."""
        assert isinstance(self.subject, LooseAgent)
        subprocess.run([*self.subject.shell, command], input=data, check=True)

    @contextmanager
    def _worker(self) -> Iterator[None]:
        environment = {"PATH": host.SEARCH_PATH, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}
        self.workers = self.controller.directory / "workers.sock"
        argv = self.controller.command([sys.executable, str(WORKER), str(self.workers)], environment, Path("/"))
        log = self._stack.enter_context((self.controller.directory / "worker.log").open("wb"))
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n", (self.controller.directory / "worker.log").read_text()
            yield
        finally:
            process.stdout.close() if process.stdout else None
            self.signal(process.pid, signal.SIGKILL)
            process.wait()
            self.workers.unlink()

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Signal a process, which may be root's."""
        subprocess.run(host.as_root(["kill", f"-{number.name[3:]}", str(pid)]), check=False, stderr=subprocess.DEVNULL)

    # Operations

    def start(self, operation: str, **how: float) -> tuple[Task, Told]:
        """Start an operation in a process of its own."""
        token = secrets.token_hex(8)
        task = Task(operation, str(self.channel.path), token, str(self.tasks / token), **how)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.workers))
        stream = cast(BinaryIO, client.makefile("rwb"))
        stream.write(json.dumps(task._asdict()).encode() + b"\n")
        stream.flush()
        pid = int(stream.readline())
        return task, Told(pid, lambda seconds: self._outcome(client, stream, pid, seconds))

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
                outcome = self.start(operation)[1].outcome(60)
                assert outcome.word == DONE, str(outcome)
            self._messages[operation] = len(self.channel.commands)
        return self._messages[operation]

    # What became of them

    def effects(self, task: Task, wanted: Container[int]) -> tuple[int, str]:
        """Return how often an operation did what it does, and what is wrong with that; a file is removed.

        A program that was only started has some time to do what is ``wanted``.
        """
        if not OPERATION[task.operation].changes:
            return 0, ""
        if task.operation != "put":
            end = time.monotonic() + SECONDS_TO_END
            while True:
                count = look(self.subject, f"cat {EFFECTS}").split().count(task.token)
                if count in wanted or time.monotonic() > end:
                    return count, ""
                time.sleep(0.05)
        path = f"/srv/put-{task.token}"
        found = look(self.subject, f"[ ! -e {path} ] || sha256sum <{path}; rm -f {path}").split(" ")[0]
        whole = hashlib.sha256(content(task.token)).hexdigest()
        return int(bool(found)), "" if found in ("", whole) else f"{path} is not what was put there"

    def state(self) -> Counter[str]:
        """Return what there is: handles, processes and files in the guest, processes and files on the controller."""
        guest = look(self.subject, f"/usr/bin/python3 -IS -c {shlex.quote(STATE)}").splitlines()
        processes = [f"controller's process {one.name}" for one in self.controller.left()]
        files = self.here(f"find {self.tasks} /run/qemu-guest ! -type d").splitlines()
        kept = re.compile(r"/run/qemu-guest/(mux-\d+\.lock|\w+\.lock)$")
        here = [f"controller's file {path}" for path in files if not kept.match(path)]
        return Counter(re.sub(r"[0-9a-f]{16}", "TOKEN", line) for line in [*guest, *processes, *here])

    def left(self, cell: Cell, befell: str) -> list[str]:
        """Return what is there and was not in the beginning, once all has had its time to end; it counts once."""
        end = time.monotonic() + SECONDS_TO_END
        while True:
            state = self.state()
            left = [one for one in (state - self._before).elements() if not may_stay(one, cell, befell)]
            if not left or time.monotonic() > end:
                self._before |= state
                return left
            time.sleep(0.1)

    # By other means

    def here(self, command: str) -> str:
        """Run a shell command on the controller; return what it printed."""
        argv = self.controller.command(["/bin/sh", "-euc", command], {"PATH": host.SEARCH_PATH}, Path("/"))
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True).stdout

    def bring_agent(self, release: str, command: str) -> None:
        """Run a shell command in the guest whose input is an archive of another release's agent and its libraries."""
        tree = image.build(release).tree
        libraries = subprocess.run(
            host.as_root(["chroot", str(tree), "ldd", "/usr/sbin/qemu-ga"]),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
        paths = re.findall(r"(/\S+) \(0x", libraries)
        loader = next(path for path in paths if "/ld-linux" in path)
        names = {loader: "qemu-ga", "/usr/sbin/qemu-ga": "program"}
        with io.BytesIO() as file:
            with tarfile.open(fileobj=file, mode="w", dereference=True) as archive:
                for path in ["/usr/sbin/qemu-ga", *paths]:
                    archive.add(inside(tree, path), names.get(path, f"lib/{Path(path).name}"))
            self.feed(command, file.getvalue())


def may_stay(what: str, cell: Cell, befell: str) -> bool:
    """Return whether something may be left by an operation that a fault has befallen.

    A handle whose number the operation never learned, or that it was not there to close, is nobody's.
    """
    # The socket of a mux: the next one that starts takes its place.
    return cell.fault.name == "mux killed" and what.startswith("controller's file /run/qemu-guest/mux-")


def inside(tree: Path, path: str) -> Path:
    """Return the file at a path in an image's tree, whose links are relative to the tree."""
    found = tree / path.lstrip("/")
    while found.is_symlink():
        target = Path(os.readlink(found))
        found = tree / str(target).lstrip("/") if target.is_absolute() else found.parent / target
    return found
