# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of a guest's host."""

from __future__ import annotations

from typing import Any

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import HERE, Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import marked
from ansible_collections.qemu.guest.plugins.plugin_utils._load_ahead import CONNECTION

__all__ = ("host_variables",)


def host_variables(guest: Guest, with_facts: bool = True) -> dict[str, Any]:
    """Return the variables of the guest's host, marked as untrusted. Those that always exist may be empty.

    Without facts, they are what the hypervisor says, and nothing of what the guest says itself.
    """
    variables: dict[str, Any] = {
        "qga_hypervisor": guest.hypervisor,
        "qga_name": guest.name,
        "qga_qmp_address": guest.qmp_address,
        "qga_source": guest.source,
        "qga_tags": guest.tags,
        "qga_user": guest.user,
        "qga_uuid": guest.uuid,
        "qga_vmid": guest.vmid,
    }
    if guest.address:
        variables["ansible_qga_address"] = guest.address
    if guest.libvirt_uri:
        variables["ansible_qga_libvirt_uri"] = guest.libvirt_uri
    elif guest.remote and guest.hypervisor != HERE:
        variables["ansible_qga_hypervisor"] = guest.hypervisor
    if with_facts:
        variables.update({f"qga_{name}": value for name, value in guest.facts.items()})
        variables.update(qga_reason=guest.reason, qga_state=guest.state)
    return {"ansible_connection": CONNECTION, **marked(variables)}
