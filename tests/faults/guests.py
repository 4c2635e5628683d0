# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests of the matrix, and what became of operations there, seen by another path than the agent.

A guest of another kind is another class.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import subprocess
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.qemu.guest.tests.faults.matrix import OPERATION
from ansible_collections.qemu.guest.tests.faults.operations import EFFECTS, FETCHED, Task, content
from ansible_collections.qemu.guest.tests.integration.harness import Subject, look
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted
from lab import host, image
from lab.agent import LooseAgent

SECONDS_TO_DO = 5.0
"""How long a program that was started may take to do what it does."""

# Filesystems of their own, which can be filled; what was there before stays.
PREPARE = f"""
set -e
for d in /run /srv; do
    mkdir /tmp/kept
    cp -a $d/. /tmp/kept
    mount -t tmpfs -o size=16m,mode=755 tmpfs $d
    cp -a /tmp/kept/. $d
    rm -r /tmp/kept
done
: >{EFFECTS}
chmod 0666 {EFFECTS}
"""
STATE = Path(__file__).with_name("guest_state.py")


class GuestUnderTest(ABC):
    """A guest, or what stands for one.

    ``afterwards`` is the operation that is done there after each fault, and ``slowness`` how much longer all takes than
    with an agent of this machine. ``channel`` is the only way to the agent.
    """

    afterwards = "change"
    slowness = 1.0
    channel = Path()

    @property
    @abstractmethod
    def agent_socket(self) -> Path:
        """The agent's socket, before which faults happen."""

    @abstractmethod
    def prepare(self) -> None:
        """Make what operations need."""

    @abstractmethod
    def effects(self, task: Task, wanted: Container[int]) -> tuple[int, str]:
        """Return how often an operation did what it does, and what is wrong with that; and clean up after it.

        A program that was only started has some time to do what is ``wanted``.
        """

    @abstractmethod
    def state(self) -> Iterable[str]:
        """Return what there is besides: a line for each handle of the agent, process and file."""

    @abstractmethod
    def tidy(self) -> None:
        """Remove files that may stay, and whose room others need."""


class RealGuest(GuestUnderTest):
    """A ``subject`` with a real agent."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @property
    def agent_socket(self) -> Path:
        return self.subject.agent_socket

    def prepare(self) -> None:
        look(self.subject, PREPARE)
        self.feed(f"cat >{FETCHED}", content("fetched"))

    def tidy(self) -> None:
        look(self.subject, "rm -f /srv/.put-*")

    def feed(self, command: str, data: bytes) -> None:
        """Run a shell command with this input in the guest."""
        assert isinstance(self.subject, LooseAgent)
        subprocess.run([*self.subject.shell, command], input=data, check=True)

    def effects(self, task: Task, wanted: Container[int]) -> tuple[int, str]:
        if not OPERATION[task.operation].changes:
            return 0, ""
        if task.operation == "put":
            return self._put(f"/srv/put-{task.token}", content(task.token))
        end = time.monotonic() + SECONDS_TO_DO * self.slowness
        while True:
            count = look(self.subject, f"cat {EFFECTS}").split().count(task.token)
            if count in wanted or time.monotonic() > end:
                return count, ""
            time.sleep(0.05)

    def _put(self, path: str, data: bytes) -> tuple[int, str]:
        found = look(self.subject, f"[ ! -e {path} ] || {{ sha256sum <{path}; stat -c %a {path}; }}; rm -f {path}")
        whole = f"{hashlib.sha256(data).hexdigest()}  -\n600\n"
        return int(bool(found)), "" if found in ("", whole) else f"{path} is not what was put there: {found!r}"

    def state(self) -> Iterable[str]:
        program = shlex.quote(STATE.read_text(encoding="utf-8"))
        return look(self.subject, f"/usr/bin/python3 -IS -c {program}").splitlines()

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


class ScriptedGuest(GuestUnderTest):
    """An agent that follows a script, and freezes no more than a word."""

    afterwards = "wait"

    def __init__(self, path: Path) -> None:
        self.frozen = False
        self.freezes = 0
        self._agent = Scripted(
            path,
            {
                "guest-fsfreeze-status": lambda arguments: "frozen" if self.frozen else "thawed",
                "guest-fsfreeze-freeze": self._freeze,
                "guest-fsfreeze-thaw": self._thaw,
                "guest-get-fsinfo": [],
            },
        )

    @property
    def agent_socket(self) -> Path:
        return self._agent.path

    def __enter__(self) -> ScriptedGuest:
        self._agent.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._agent.__exit__(*exc_info)

    def _freeze(self, arguments: Mapping[str, Any]) -> int:
        self.frozen = True
        self.freezes += 1
        return 2

    def _thaw(self, arguments: Mapping[str, Any]) -> int:
        was, self.frozen = self.frozen, False
        return 2 * was

    def prepare(self) -> None:
        """Nothing is needed."""

    def effects(self, task: Task, wanted: Container[int]) -> tuple[int, str]:
        """Return whether the guest is frozen, and thaw it. That it was frozen twice would be wrong."""
        if not OPERATION[task.operation].changes:
            return 0, ""
        end = time.monotonic() + SECONDS_TO_DO * self.slowness
        while int(self.frozen) not in wanted and time.monotonic() < end:
            time.sleep(0.05)
        found = int(self.frozen), "it was frozen again" if self.freezes > 1 else ""
        self.frozen, self.freezes = False, 0
        return found

    def state(self) -> Iterable[str]:
        return ()

    def tidy(self) -> None:
        """Nothing is there."""


def inside(tree: Path, path: str) -> Path:
    """Return the file at a path in an image's tree, whose links are relative to the tree."""
    found = tree / path.lstrip("/")
    while found.is_symlink():
        target = Path(os.readlink(found))
        found = tree / str(target).lstrip("/") if target.is_absolute() else found.parent / target
    return found
