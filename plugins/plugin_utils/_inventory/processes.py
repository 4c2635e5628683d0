# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests among a machine's processes, and in the directories of sockets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import DEFAULT_URI
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.command_line import Found, is_qemu, parse
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import NO_AGENT, SILENT, Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.machine import Process, Socket, View
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import line

__all__ = ("guests_of_processes", "guests_of_sockets", "real_path")

_PLAIN_NAMES = re.compile(r"(qga|agent|guest[-_]?agent|qemu-ga|org\.qemu\.guest_agent\.0)?[.-]?(qga|sock|socket)?")
_SUFFIX = re.compile(r"([-_.](qga|agent|guest[-_]agent))?(\.(qga|sock|socket|agent))?$")

_NO_ADDRESS = "its agent's channel is not a socket that others can connect to"
_NOT_BY_SSH = "ssh can forward the path of a socket only, and its agent has none"
_LIBVIRTS = "libvirt has its agent, and no libvirt URI was asked that has this domain: see libvirt_uris"


def guests_of_processes(view: View, hypervisor: str, remote: bool) -> Iterator[Guest]:
    """Yield a guest for each QEMU that has a name, a UUID or an agent."""
    for process in view.processes:
        # A process calls itself what it likes. What program it is can be read by its user and by root.
        program = process.program.removesuffix(" (deleted)")
        if is_qemu(process.arguments) and (not program or is_qemu([program])):
            found = parse(process.arguments, process.directory, process.root)
            if found.name or found.uuid or found.has_agent:
                yield _guest(process, found, view, hypervisor, remote)


def _guest(process: Process, found: Found, view: View, hypervisor: str, remote: bool) -> Guest:
    guest = Guest(
        hypervisor,
        "process",
        remote,
        name=line(found.name, 256),
        uuid=found.uuid,
        vmid=found.vmid,
        pid=process.pid,
        # Without the program, this may be a setuid program that anybody has started.
        user=line(process.user, 64) if process.program else "",
        address=_usable(found.agent),
        qmp_address=_usable(found.qmp),
    )
    if not found.has_agent:
        guest.state = NO_AGENT
    elif found.libvirts and found.uuid:
        guest.address = f"libvirt:{found.uuid}"  # another machine's libvirt is asked through the same ssh
        if not remote:
            guest.libvirt_uri, guest.state, guest.reason = DEFAULT_URI, SILENT, _LIBVIRTS
    elif not guest.address:
        guest.state, guest.reason = SILENT, _NO_ADDRESS
    elif guest.address.startswith("unix:/"):
        guest.socket = real_path(guest.address.removeprefix("unix:"), view)
        guest.address = guest.address.removeprefix("unix:")
    elif remote:
        guest.state, guest.reason = SILENT, _NOT_BY_SSH
    return guest


def _usable(address: str) -> str:
    """Return ``address``, or nothing if it could not be shown and connected to as it is."""
    return address if address == line(address) else ""


def real_path(path: str, view: View) -> str:
    """Return the path of a socket without symbolic links, as far as what was seen there tells."""
    parent, name = os.path.split(path)
    for socket in view.sockets:
        if socket.path == path:
            return socket.real
        if os.path.dirname(socket.path) == parent:
            return os.path.join(os.path.dirname(socket.real), name)
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def guests_of_sockets(view: View, hypervisor: str, remote: bool) -> Iterator[Guest]:
    """Yield a guest for each socket of Ganeti's and of the user's globs."""
    for socket in view.sockets:
        if socket.source != "proxmox" and socket.path == line(socket.path):
            guest = Guest(hypervisor, socket.source, remote, address=socket.path, socket=socket.real)
            guest.name = _name(socket)
            yield guest


def _name(socket: Socket) -> str:
    """Return the guest's name that a path says: of the file, or of the directory if all files there are called so."""
    parent, name = os.path.split(socket.path)
    if socket.source == "ganeti":
        return line(name.removesuffix(".qga"), 256)
    if _PLAIN_NAMES.fullmatch(name):
        return line(os.path.basename(parent), 256)
    return line(_SUFFIX.sub("", name), 256)
