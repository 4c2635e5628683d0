# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with guests, reached by ssh. A stand-in, until all users of a hypervisor share one connection."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line
from ansible_collections.qemu.guest.plugins.plugin_utils import _ssh_forward

__all__ = ("Hypervisor", "hypervisor")


class Hypervisor:
    """The machine that the ssh destination ``name`` leads to."""

    def __init__(self, name: str, variables: Mapping[str, Any]) -> None:
        self.name = name
        user = f"{variables['ansible_user']}@" if "ansible_user" in variables else ""
        self.identity = f"{user}{variables.get('ansible_host', name)}"

    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
        """Run a shell command there.

        :raise ConnectError: with ssh's message.
        """
        argv = ["ssh", "-oBatchMode=yes", "--", self.identity, command]
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ConnectError(f"no answer within {seconds:g} s") from None
        except OSError as exc:
            raise ConnectError(f"cannot start ssh: {exc}") from exc
        if done.returncode == 255:
            raise ConnectError(f"cannot connect by ssh: {last_line(done.stderr)}")
        return done.returncode, done.stdout, done.stderr

    def connect(self, path: str, deadline: Deadline) -> socket.socket:
        """Return a socket that leads to the UNIX socket ``path`` there.

        :raise ConnectError: if ssh cannot forward it.
        """
        return _ssh_forward.connect(Address("ssh", path=path, host=self.identity), deadline)


def hypervisor(
    name: str, variables: Mapping[str, Any] | None, options: Mapping[str, Any] | None = None
) -> Hypervisor | None:
    """Return the machine called ``name``; None if it is this one."""
    if name == "localhost" or (variables or {}).get("ansible_connection") in ("local", "ansible.builtin.local"):
        return None
    return Hypervisor(name, variables or {})
