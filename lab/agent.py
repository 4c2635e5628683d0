# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A loose agent: the real qemu-ga of an image, on a UNIX socket, without a guest around it.

It starts in a fraction of a second, so it serves all tests in which the guest's kernel does not matter. It runs as root
in namespaces of its own (see loose.sh), on a copy of the image that is gone when it stops. But the kernel below it is
the host's: so the commands that would stop, freeze, suspend or set the clock of the host are always blocked.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab import host, image
from lab.host import LabError
from lab.leash import Leashed

# Never allowed, whatever a test asks for: each of these would act on this machine.
DANGEROUS = (
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-freeze-list",
    "guest-fstrim",
    "guest-set-memory-blocks",
    "guest-set-time",
    "guest-set-user-password",
    "guest-set-vcpus",
    "guest-shutdown",
    "guest-suspend-disk",
    "guest-suspend-hybrid",
    "guest-suspend-ram",
)
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES_OF = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
# The privileges that loose.sh takes from the agent. It keeps sys_ptrace, which reaches no further than the processes
# there: without it, userdel does not see whose they are.
BOUNDS = "--bounding-set=-sys_admin,-sys_boot,-sys_time,-sys_module,-sys_rawio,-mknod"


class LooseAgent(Leashed):
    """A real agent whose socket is `agent_socket`. It serves one client at a time; others wait.

    Its files are a private copy of the image's, as if in a guest. `block` adds to the commands that it refuses.
    """

    WHAT = "the agent"
    SCRIPT = Path(__file__).with_name("loose.sh")
    NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup")
    START_SECONDS = 10.0

    def __init__(self, release: str = "bookworm", block: Sequence[str] = ()) -> None:
        super().__init__()
        self.release = release
        self.blocked = sorted({*DANGEROUS, *block})

    @property
    def agent_socket(self) -> Path:
        """Where the agent listens."""
        return self.directory / "agent.sock"

    @property
    def pid(self) -> int:
        """The agent's process number on the host; a restart changes it."""
        for pid in _descendants(self._running().pid):
            if _proc(pid, "comm") == "qemu-ga\n":
                return pid
        raise LabError(f"no agent runs: {self._log()}")

    @property
    def shell(self) -> list[str]:
        """The beginning of a command line that runs a shell command beside the agent, without the agent.

        The command is in all of the agent's namespaces, so it signals the processes that it sees, and none of the host.
        """
        clean = [host.find("env") or "env", "-i", f"PATH={_PATH}", "LC_ALL=C.UTF-8"]
        return host.as_root([*clean, *self._enter, "/bin/sh", "-c"])

    def run(self, command: str, timeout: float = 120.0, check: bool = True) -> tuple[int, str]:
        """Run a shell command so; return its exit status and its exact output."""
        done = subprocess.run(
            [*self.shell, command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False
        )
        output = done.stdout.decode("utf-8", "surrogateescape")
        if check and done.returncode != 0:
            raise LabError(f"exit status {done.returncode} beside the agent: {command}\nOutput: {output}")
        return done.returncode, output

    @property
    def sshd(self) -> list[str]:
        """The command line, for root, of an ssh server beside the agent; it speaks on its standard input and output."""
        return [*self._enter, "setpriv", BOUNDS, "/usr/sbin/sshd", "-i", "-o", "UsePAM=no", "-o", "UseDNS=no"]

    @property
    def _enter(self) -> list[str]:
        enter = host.find("nsenter") or "nsenter"
        return [enter, f"--target={self.pid}", *NAMESPACES_OF, "--root", "--wd"]

    def start(self) -> LooseAgent:
        """Start the agent; return when it listens. It ends with this process at the latest."""
        host.need("unshare")
        source = image.build(self.release)
        self.directory = host.private_directory()
        (self.directory / "root").mkdir()
        self._launch(str(source.tree), str(self.directory), self.release, ",".join(self.blocked), BOUNDS)
        return self

    def restart(self) -> None:
        """Kill the agent and start it again on the same files, as init does in a guest. Open handles are lost."""
        self._tell("restart")


def _descendants(pid: int) -> Iterator[int]:
    for child in _proc(pid, f"task/{pid}/children").split():
        yield int(child)
        yield from _descendants(int(child))


def _proc(pid: int, name: str) -> str:
    """Read a file about a process; nothing if the process has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8")
    except OSError:
        return ""
