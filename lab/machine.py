# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with a /run, an /etc and processes of its own, so that paths can be those of the documentation.

Its network, and the rest of its files, are those of the machine around it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import host
from lab.leash import Leashed


class Machine(Leashed):
    """A place for commands of root's. All that runs there ends with it."""

    WHAT = "the machine"
    SCRIPT = Path(__file__).with_name("machine.sh")
    NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child")
    START_SECONDS = 10.0

    def start(self) -> Machine:
        """Start it; return when commands can be run there. It ends with this process at the latest."""
        host.need("unshare")
        self.directory = host.private_directory()
        (self.directory / "own").mkdir()
        self._launch(str(self.directory), str(Path("~/.ssh").expanduser()))
        return self

    def command(self, argv: Sequence[str], environment: Mapping[str, str], directory: Path) -> list[str]:
        """Return a command line that runs ``argv`` there, as root, with that environment and nothing else of it."""
        self._running()
        pid = int((self.directory / "pid").read_text(encoding="ascii"))
        pairs = [f"{name}={value}" for name, value in environment.items()]
        return host.as_root(
            ["nsenter", f"--target={pid}", "--mount", "--pid", f"--wd={directory}", "env", "-i", *pairs, *argv]
        )

    def run(self, command: str) -> str:
        """Run a shell command there; return its output."""
        argv = self.command(["/bin/sh", "-euc", command], {"PATH": host.SEARCH_PATH}, Path("/"))
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True).stdout

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Write a file there."""
        argv = self.command(["install", "-D", "-m", mode, "/dev/stdin", path], {"PATH": host.SEARCH_PATH}, Path("/"))
        subprocess.run(argv, input=text, check=True, text=True)

    def link(self, path: str, target: Path) -> None:
        """Have a path there lead to a file, whatever was there before."""
        self.run(f"mkdir -p {Path(path).parent} && ln -sfn {target} {path}")
