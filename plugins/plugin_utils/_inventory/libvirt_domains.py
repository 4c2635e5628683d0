# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The domains of a libvirt, and what it knows of their agents without asking them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline, Stuck, within
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError, ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import (
    AT_SOCKET,
    DEFAULT_URI,
    SOCKETS,
    THREADS,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.command_line import AGENT_PORT, UUID
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import HERE, NO_AGENT, OFF, Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import line

try:
    import libvirt
except ImportError:
    libvirt = None

__all__ = ("default_uris", "domains", "domains_of", "guest_of", "hypervisor_of")

_LONGEST_XML = 4 * 1024 * 1024


def default_uris() -> list[str]:
    """Return the URI to ask where the user names none: nothing, unless there is a libvirt and its library."""
    chosen = os.environ.get("LIBVIRT_DEFAULT_URI")
    if libvirt is None or not (chosen or any(map(os.path.exists, SOCKETS))):
        return []
    return [chosen or DEFAULT_URI]


def hypervisor_of(uri: str, hypervisors: Sequence[str]) -> str:
    """Return the name of the machine that ``uri`` leads to: that of ``hypervisors`` if it is one of them."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
        login = f"{parts.username}@{host}" if parts.username else host
    except ValueError:
        return HERE
    if not host:
        return HERE
    return next((name for name in hypervisors if name in (login, host) or name.endswith(f"@{host}")), login)


def domains(uri: str, hypervisor: str, seconds: float) -> list[Guest]:
    """Return the domains at ``uri``.

    :raise ConnectError: if libvirt's library is missing, it refuses, or does not answer in time.
    """
    if libvirt is None:
        raise ConnectError("libvirt's Python library is missing (most distributions: the package python3-libvirt)")
    try:
        return within(seconds, lambda: _domains(uri, hypervisor), THREADS)
    except Stuck:
        raise ConnectError(f"libvirt did not answer within {seconds:g} s") from None
    except libvirt.libvirtError as exc:
        raise ConnectError(f"{exc.get_error_message()}") from exc
    except Exception as exc:  # one libvirt must not spoil the others
        raise ConnectError(f"{exc}") from exc


def domains_of(machine: Hypervisor, name: str, listening: Collection[str], seconds: float) -> list[Guest]:
    """Return the domains of the libvirt of another machine, ``name``, where these sockets are listened at.

    Nothing is returned where it has no libvirt, or this one has no library for it.

    :raise ConnectError: as ``domains`` does.
    """
    path = next((path for path in SOCKETS if path in listening), "")
    if not path or libvirt is None:
        return []
    with machine.forward(path, Deadline(seconds)) as local:
        found = domains(AT_SOCKET.format(local), name, seconds)
    for guest in found:
        guest.libvirt_uri = ""  # it is the hypervisor's own
    return found


def _domains(uri: str, hypervisor: str) -> list[Guest]:
    libvirt.registerErrorHandler(lambda context, error: None, None)  # by default it prints each error
    connection = libvirt.openReadOnly(_without_questions(uri))
    try:
        found = []
        for domain in connection.listAllDomains(0):
            try:
                found.append(guest_of(domain.XMLDesc(0), bool(domain.isActive()), uri, hypervisor))
            except (libvirt.libvirtError, AddressError):
                continue  # it has gone meanwhile
        return found
    finally:
        connection.close()


def _without_questions(uri: str) -> str:
    """Return ``uri`` so that its ssh asks nobody for a password: nobody would see the question in time."""
    if "+ssh" not in uri.partition(":")[0] or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


def guest_of(xml: str, is_active: bool, uri: str, hypervisor: str) -> Guest:
    """Return the guest that a domain's live XML describes.

    :raise AddressError: if that is not the XML of a domain.
    """
    if len(xml) > _LONGEST_XML or "<!" in xml.replace("<!--", ""):
        raise AddressError("not the XML of a domain")
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, UnicodeError):
        raise AddressError("not XML") from None
    uuid = root.findtext("uuid") or ""
    if not UUID.fullmatch(uuid):
        raise AddressError("not the XML of a domain: it has no UUID")
    guest = Guest(
        hypervisor,
        "libvirt",
        remote=hypervisor != HERE,
        name=line(root.findtext("name") or "", 256),
        uuid=uuid.lower(),
        libvirt_uri=uri,
    )
    guest.address = f"libvirt:{guest.uuid}"
    target = _target(root)
    if target is None:
        guest.state = NO_AGENT
    elif not is_active:
        guest.state = OFF
    elif target.get("state") == "disconnected":
        guest.state = NO_AGENT
    return guest


def _target(root: Any) -> Any:
    """Return the agent's channel; None if the domain has none."""
    return next((each for each in root.iterfind("devices/channel/target") if each.get("name") == AGENT_PORT), None)
