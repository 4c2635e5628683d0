# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine as a controller of its own, where everything that a run of Ansible leaves behind is seen.

It is a mount namespace, in which root's directory for kept channels is empty, and the user has no settings of ssh's.
What a command starts there stays in that namespace, so that its processes are told from those of all others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab import host
from lab.leash import Leashed

_LEFT = Path(__file__).with_name("left.py")
_KEPT = "/run/qemu-guest"
"""Where root's processes find each other's channels."""


class Process(NamedTuple):
    """A process: its name, its memory in bytes (proportional and resident), and how many descriptors are open."""

    pid: int
    name: str
    pss: int
    rss: int
    descriptors: int


class Controller(Leashed):
    """A place for commands of root's. What is left there ends with it."""

    WHAT = "the controller"
    SCRIPT = Path(__file__).with_name("controller.sh")
    NAMESPACES = ("--mount",)
    START_SECONDS = 10.0

    def start(self) -> Controller:
        """Start it; return when commands can be run there. It ends with this process at the latest."""
        host.need("unshare")
        self.directory = host.private_directory()
        self._launch(str(self.directory), _KEPT, str(Path("~/.ssh").expanduser()))
        return self

    def stop(self) -> None:
        """End it, and what is left there."""
        if self._process is not None:
            pids = [str(process.pid) for process in self.left()]
            if pids:
                subprocess.run(host.as_root(["kill", "-KILL", *pids]), stderr=subprocess.DEVNULL, check=False)
        super().stop()

    def command(self, argv: Sequence[str], environment: Mapping[str, str], directory: Path) -> list[str]:
        """Return a command line that runs ``argv`` there, as root, with that environment and nothing else of it."""
        pairs = [f"{name}={value}" for name, value in environment.items()]
        enter = ["nsenter", f"--mount=/proc/{self._holder}/ns/mnt", f"--wd={directory}"]
        return host.as_root([*enter, "env", "-i", *pairs, *argv])

    def output(self, argv: Sequence[str], environment: Mapping[str, str], directory: Path, failed: str) -> str:
        """Run a command there, as ``command`` says, and return what it printed; ``failed`` begins the error's text."""
        return host.output(self.command(argv, environment, directory), failed)

    def left(self) -> list[Process]:
        """Return the processes that are there now."""
        return [Process(*one) for one in self._look("processes")]

    def sockets(self) -> list[str]:
        """Return the names of the sockets in the directory for kept channels."""
        return [str(name) for name in self._look("sockets")]

    def wait_empty(self, seconds: float) -> bool:
        """Return whether all processes end within that time."""
        end = time.monotonic() + seconds
        while self.left():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    @property
    def _holder(self) -> int:
        self._running()
        return int((self.directory / "pid").read_text(encoding="ascii"))

    def _look(self, what: str) -> list[Any]:
        argv = [sys.executable, "-I", "-S", str(_LEFT), what, str(self._holder), _KEPT]
        done = subprocess.run(host.as_root(argv), stdout=subprocess.PIPE, check=True, cwd=os.sep)
        found: list[Any] = json.loads(done.stdout)
        return found
