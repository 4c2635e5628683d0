# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests of a Proxmox VE node: its sockets, and its configuration where that can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.command_line import UUID
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import NO_AGENT, OFF, Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.machine import Socket, View
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import line

__all__ = ("guests_of_proxmox",)

_VMID = re.compile(r"([1-9][0-9]{0,8})\.(qga|conf)")
_MOST_TAGS = 64


def guests_of_proxmox(view: View, hypervisor: str, remote: bool) -> Iterator[Guest]:
    """Yield the guests of this node. One that is off has a configuration and no socket."""
    sockets = {_vmid(s.path): s for s in view.sockets if s.source == "proxmox" and _vmid(s.path)}
    confs = {_vmid(name): _settings(lines) for name, lines in view.confs.items() if _vmid(name)}
    # Without the link to this node's own directory, the configurations are those of the whole cluster.
    vmids = set(sockets) | (set(confs) if view.is_node else set())
    for vmid in sorted(vmids, key=int):
        settings = confs.get(vmid, {})
        if settings.get("template") != "1":
            guest = Guest(hypervisor, "proxmox", remote, vmid=vmid)
            _describe(guest, settings)
            _place(guest, settings, sockets.get(vmid), view.proxmox_run)
            yield guest


def _describe(guest: Guest, settings: dict[str, str]) -> None:
    guest.name = line(settings.get("name", ""), 256)
    guest.tags = [line(tag, 64) for tag in re.split(r"[;, ]+", settings.get("tags", "")) if tag][:_MOST_TAGS]
    uuid = re.search(rf"uuid=({UUID.pattern})", settings.get("smbios1", ""))
    guest.uuid = uuid.group(1).lower() if uuid else ""


def _place(guest: Guest, settings: dict[str, str], socket: Socket | None, run_dir: str) -> None:
    """Say where the agent's socket is, or will be."""
    if socket and socket.path == line(socket.path):
        guest.address, guest.socket = socket.path, socket.real
    elif _has_agent(settings):
        guest.address, guest.state = f"{run_dir.rstrip('/')}/{guest.vmid}.qga", OFF
    else:
        guest.state = NO_AGENT


def _vmid(path: str) -> str:
    """Return the number of the guest whose file this is; empty if it is no guest's."""
    match = _VMID.fullmatch(path.rpartition("/")[2])
    return match.group(1) if match else ""


def _settings(lines: str) -> dict[str, str]:
    """Return the settings ``name: value``."""
    pairs = (text.partition(":") for text in lines.splitlines())
    return {name: value.strip() for name, _colon, value in pairs}


def _has_agent(settings: dict[str, str]) -> bool:
    """Return whether the guest has an agent's channel: ``agent: 1,fstrim_cloned_disks=1`` or ``enabled=1``."""
    parts = settings.get("agent", "").split(",")
    return any(part.removeprefix("enabled=") in ("1", "on", "yes", "true") for part in parts)
