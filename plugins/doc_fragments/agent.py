# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options that every module has: where the agent is."""

    DOCUMENTATION = r"""
options:
  address:
    description:
      - Where the guest's agent is, seen from the machine that the task runs on, usually the hypervisor.
      - V(/run/vm1.qga) or V(unix:/run/vm1.qga) for the UNIX socket of QEMU's chardev, V(vsock:CID:PORT),
        V(tcp:HOST:PORT), or V(libvirt:DOMAIN) for a domain of libvirt, by its name or UUID.
      - The last one needs libvirt's Python library where the task runs (package C(python3-libvirt)).
      - Leave it out on a host whose connection is P(qemu.guest.qga#connection). The task then uses the agent of that
        connection, and the guest needs no Python. With an address, the module would run in the guest and look for the
        address there.
    type: str
  agent_timeout:
    description:
      - Seconds that one command of the agent may take, waiting for the channel included. It must be greater than 0, as
        all numbers of seconds here, unless an option says otherwise.
      - The default is 20, or what the connection says.
      - A few commands may well take longer and have more, whatever is set here. To set the time has at least 30
        seconds, and to freeze, to thaw and to set a password 60.
    type: float
  frozen_timeout:
    description:
      - Seconds for which a guest whose filesystems are frozen, by a backup for instance, is waited for in the middle of
        what the task does. With V(0), it is not waited for. What begins in a frozen guest fails at once.
      - The default is 300, or what the connection says.
    type: float
  libvirt_uri:
    description:
      - Which libvirt has the domain, where O(address) is V(libvirt:DOMAIN); of no meaning otherwise.
      - The default is what the environment variable E(LIBVIRT_DEFAULT_URI) says, or V(qemu:///system).
    type: str
notes:
  - The agent serves one client at a time. Tasks of this collection wait for each other, up to O(agent_timeout).
"""
