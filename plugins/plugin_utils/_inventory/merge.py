# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest that was found in several ways is one record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import QEMU_USERS, Guest

__all__ = ("merged",)

# Whose word counts more, first. A process may be any user's, and may say anything.
_RANKS = {"libvirt": 0, "proxmox": 1, "ganeti": 2, "process": 3, "sockets": 4}
_TEXTS = ("name", "uuid", "vmid", "pid", "user", "qmp_address")


def merged(guests: Sequence[Guest], warn: Callable[[str], None]) -> list[Guest]:
    """Return ``guests`` with each guest once. What is known of it only in a lower place is added to the higher."""
    kept: list[Guest] = []
    by_key: dict[tuple[str, ...], Guest] = {}
    for guest in sorted(guests, key=_rank):
        keys = _keys(guest)
        known = next((by_key[key] for key in keys if key in by_key and _is_same(by_key[key], guest)), None)
        if known is None:
            kept.append(guest)
            known = guest
        elif guest.source == known.source == "process":
            counts, other = (f"{one.label} (process {one.pid})" for one in (known, guest))
            warn(f"two processes say that they serve {guest.address}: {counts} counts, {other} does not")
        else:
            _add(known, guest)
        for key in keys:
            by_key.setdefault(key, known)
    return kept


def _keys(guest: Guest) -> list[tuple[str, ...]]:
    """Return what may identify the guest on its hypervisor, the surest first."""
    values = (("socket", guest.socket), ("uuid", guest.uuid), ("vmid", guest.vmid))
    return [(kind, guest.hypervisor, value) for kind, value in values if value]


def _rank(guest: Guest) -> tuple[int, bool, bool, int]:
    return _RANKS[guest.source], guest.user not in QEMU_USERS, not guest.user, int(guest.pid or 0)


def _is_same(known: Guest, guest: Guest) -> bool:
    """Return whether both are one guest. Two processes, or two domains, are two guests whatever their UUIDs."""
    if known.socket and known.socket == guest.socket:
        return True
    if known.source == "libvirt" and guest.source == "process" and guest.address:
        return known.address == guest.address
    if guest.source == known.source or guest.source == "sockets" or known.pid:
        return False
    if known.source == "proxmox":  # whose QEMUs are root's
        return guest.user == "root" and bool(guest.vmid) and known.vmid == guest.vmid
    return known.source == "libvirt" and bool(guest.uuid) and known.uuid == guest.uuid


def _add(known: Guest, guest: Guest) -> None:
    for name in _TEXTS:
        if name != "qmp_address" or known.source != "libvirt":  # whose monitor is its own
            setattr(known, name, getattr(known, name) or getattr(guest, name))
    if known.source == "proxmox" and known.state and guest.pid:
        # It runs, so its process knows better than its configuration, which may have been changed since.
        known.state, known.reason, known.address, known.socket = guest.state, guest.reason, guest.address, guest.socket
    if not known.address and known.source != "libvirt":
        known.address, known.socket = guest.address, guest.socket
