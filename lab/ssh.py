# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other way to the same machine: ssh as root, to compare the agent's with."""

from __future__ import annotations

import shlex
from typing import Any

from lab import host, image
from lab.agent import LooseAgent
from lab.vm import Guest

_OPTIONS = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
# QEMU's user network does not tell the client that a guest was reset: it would wait for hours.
_OPTIONS += " -o ServerAliveInterval=10 -o ServerAliveCountMax=6"


def variables(subject: Guest | LooseAgent) -> dict[str, Any]:
    """Return Ansible's variables for ssh to a guest (one with a NIC) or to a loose agent's files."""
    options = _OPTIONS
    if isinstance(subject, LooseAgent):
        # Its network is its own, so ssh speaks to a server that it starts there itself.
        options += f" -o ProxyCommand={shlex.quote(shlex.join(host.as_root(subject.sshd)))}"
    return {
        "ansible_connection": "ansible.builtin.ssh",
        "ansible_host": "127.0.0.1",
        "ansible_port": subject.ssh_port if isinstance(subject, Guest) else 22,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(image.ssh_key()),
        "ansible_ssh_common_args": options,
        # The path of a socket must be short.
        "ansible_control_path_dir": str(subject.directory),
    }
