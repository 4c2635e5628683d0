# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open the Agent at an address of any kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address, parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import DEFAULT_TIMEOUT, Agent, Log
from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import Connect
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import Share, SocketAgent

if TYPE_CHECKING:
    from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import Forward

__all__ = ("open_agent",)


def open_agent(
    address: str | Address,
    timeout: float = DEFAULT_TIMEOUT,
    log: Log | None = None,
    libvirt_uri: str | None = None,
    share: Share | None = None,
    connect: Connect | None = None,
    forward: Forward | None = None,
) -> Agent:
    """Return the Agent at ``address``. It connects at its first command.

    ``share`` is called with a channel that was opened here; libvirt's is shared anyway. ``connect``: see open_channel;
    ``forward``: see LibvirtAgent.

    :raise AddressError: if the address has none of the known forms, or needs a library that is missing.
    """
    if isinstance(address, str):
        address = parse_address(address)
    if address.kind == "libvirt":
        # Imported here because few tasks need libvirt's library.
        from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import LibvirtAgent

        return LibvirtAgent(address, libvirt_uri, timeout, log, forward)
    return SocketAgent(address, timeout, log, share, connect)
