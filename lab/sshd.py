# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine as a hypervisor behind ssh: an image's sshd, with its defaults, on the loopback interface.

Who logs in sees this machine's processes and its directory for temporary files, and the programs of the image.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any

from lab import host, image
from lab.leash import Leashed


class Sshd(Leashed):
    """An sshd at 127.0.0.1, `port`. Its connections end with it.

    `sudo`: there is an ordinary user, `ops`, to whom sudo allows that, in the words of sudoers(5).
    """

    WHAT = "the ssh server"
    SCRIPT = Path(__file__).with_name("sshd.sh")
    NAMESPACES = ("--mount",)
    START_SECONDS = 10.0

    PASSWORD = "open sesame 23"
    """That of `ops` and of root, where there is `ops`."""

    def __init__(self, release: str = "bookworm", sudo: str = "") -> None:
        super().__init__()
        self.release = release
        self.sudo = sudo
        self.port = 0

    def start(self) -> Sshd:
        """Start it; return when it listens. It ends with this process at the latest."""
        host.need("unshare")
        source = image.build(self.release)
        self.directory = host.private_directory()
        (self.directory / "root").mkdir()
        (self.directory / "password").write_text(f"{self.PASSWORD}\n", encoding="ascii")
        self.port = _free_port()
        self._launch(str(source.tree), str(self.directory), str(self.port), tempfile.gettempdir(), self.sudo)
        return self

    def variables(self, user: str = "root") -> dict[str, Any]:
        """Return the variables of this machine as an inventory host, whose key is in no known_hosts."""
        return {
            "ansible_connection": "ansible.builtin.ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": user,
            "ansible_ssh_private_key_file": str(image.ssh_key()),
            "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "ansible_host_key_checking": False,
        }

    def logins(self) -> int:
        """Return how many connections have been let in so far."""
        return len(re.findall(r"^Accepted publickey ", self._said(), re.MULTILINE))

    def commands(self) -> int:
        """Return how many commands have been run there so far."""
        return len(re.findall(r"^Starting session: command ", self._said(), re.MULTILINE))

    def refused(self) -> int:
        """Return how many connections have been dropped because too many had not logged in yet."""
        return len(re.findall(r"MaxStartups|^drop connection", self._said(), re.MULTILINE))

    def sessions(self) -> list[int]:
        """Return the processes that serve a connection now."""
        pid = int((self.directory / "sshd.pid").read_text(encoding="ascii"))
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]

    def left_behind(self, name: str) -> list[int]:
        """Return the processes of that `name` that run there."""
        root = str(self.directory / "root" / "new")
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is(pid, name, root)]

    def _said(self) -> str:
        return (self.directory / "sshd.log").read_text(encoding="utf-8", errors="replace")


def _is(pid: int, name: str, root: str) -> bool:
    try:
        comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        return comm == name and os.readlink(f"/proc/{pid}/root").startswith(root)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
