# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A loose agent: the real qemu-ga of an image, on a UNIX socket, without a guest around it.

It starts in a fraction of a second, so it serves all tests in which the guest's kernel does not matter. It runs as root
in namespaces of its own (see loose.sh), on a copy of the image that is gone when it stops. But the kernel below it is
the host's: so the commands that would stop, freeze, suspend or set the clock of the host are always blocked.
"""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from lab import host, image
from lab.host import LabError

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
SCRIPT = Path(__file__).with_name("loose.sh")
NAMESPACES = ["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup"]
NAMESPACES_OF = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
START_SECONDS = 10.0
# The privileges that loose.sh takes from the agent.
BOUNDS = "--bounding-set=-sys_admin,-sys_boot,-sys_time,-sys_module,-sys_rawio,-mknod,-sys_ptrace"
# Standard input is a pipe that only this process holds. When it ends, however that comes, loose.sh ends, and then what
# it left behind is removed. Closing standard output tells at once that loose.sh ended early; reading on keeps its log
# for the error message.
LEASH = '"$@"; exec >&-; while read -r _; do :; done; rm -rf "$0"'


class LooseAgent:
    """A real agent whose socket is `socket`. It serves one client at a time; others wait.

    Its files are a private copy of the image's, as if in a guest. `block` adds to the commands that it refuses.
    """

    def __init__(self, release: str = "bookworm", block: Sequence[str] = ()) -> None:
        self.release = release
        self.blocked = sorted({*DANGEROUS, *block})
        self.directory = Path()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
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
    def sshd(self) -> list[str]:
        """The command line, for root, of an ssh server beside the agent; it speaks on its standard input and output."""
        enter = ["nsenter", f"--target={self.pid}", *NAMESPACES_OF, "--root", "--wd"]
        return [*enter, "setpriv", BOUNDS, "/usr/sbin/sshd", "-i", "-o", "UsePAM=no", "-o", "UseDNS=no"]

    def start(self) -> LooseAgent:
        """Start the agent; return when it listens. It ends with this process at the latest."""
        host.need("unshare")
        source = image.build(self.release)
        self.directory = host.private_directory()
        (self.directory / "root").mkdir()
        argv = ["sh", "-c", LEASH, str(self.directory), "unshare", *NAMESPACES, "sh", str(SCRIPT)]
        argv += [str(source.tree), str(self.directory), self.release, ",".join(self.blocked), BOUNDS]
        with open(self.directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                host.as_root(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env={**os.environ, "PATH": host.SEARCH_PATH},
                start_new_session=True,
            )
        self._wait_ready()
        return self

    def restart(self) -> None:
        """Kill the agent and start it again on the same files, as init does in a guest. Open handles are lost."""
        process = self._running()
        assert process.stdin is not None
        process.stdin.write(b"restart\n")
        self._wait_ready()

    def stop(self) -> None:
        """End the agent and all that it started, and forget its files. Does nothing if it is not running."""
        if self._process is None:
            return
        with self._process:  # closes the pipes and waits
            pass
        self._process = None

    def __enter__(self) -> LooseAgent:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LabError("the agent is not started")
        return self._process

    def _wait_ready(self) -> None:
        stdout = self._running().stdout
        assert stdout is not None
        ready = select.select([stdout], [], [], START_SECONDS)[0]
        if not ready or stdout.readline() != b"ready\n":
            text = self._log()
            self.stop()
            raise LabError(f"the {self.release} agent did not start: {text}")

    def _log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")[-2000:]


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
