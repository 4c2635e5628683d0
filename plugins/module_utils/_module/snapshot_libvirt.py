# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots by libvirt, of disks only. It makes the files itself, and removes them where it fails.

libvirt could freeze by itself (VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE). It has no timer, does not look whether everything
stayed frozen, and freezes where an older agent hangs. So it is not asked to.
"""

from __future__ import annotations

import os
from typing import Sequence
from xml.etree import ElementTree

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import LibvirtAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot import Disk, Image, Overlay, Snapshots

__all__ = ("LibvirtSnapshots",)

# VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA, _DISK_ONLY and _ATOMIC. Without metadata, the disks alone say what there is,
# as with QEMU's monitor, and nothing is left behind when they are merged.
_FLAGS = 4 | 16 | 128


class LibvirtSnapshots(Snapshots):
    """Snapshots of the agent's domain."""

    def __init__(self, agent: Agent) -> None:
        if not isinstance(agent, LibvirtAgent):
            raise OperationError(f"the agent at {agent.name} is not one of libvirt's.")
        self._agent = agent
        self._text = ""

    def disks(self) -> list[Disk]:
        text = self._agent.ask_domain("virDomainGetXMLDesc", lambda domain: domain.XMLDesc(0), self._agent.timeout)
        return [found for found in map(_disk, ElementTree.fromstring(text).iterfind("devices/disk")) if found]

    def exists(self, file: str) -> bool:
        """Look, if libvirt is on this machine. One elsewhere refuses to write over a file."""
        return self._agent.is_here and os.path.lexists(file)

    def prepare(self, new: Sequence[Overlay]) -> None:
        """Describe the snapshot. Disks that are not mentioned would be part of it."""
        snapshot = ElementTree.Element("domainsnapshot")
        disks = ElementTree.SubElement(snapshot, "disks")
        files = {overlay.disk.name: overlay.file for overlay in new}
        for disk in self.disks():
            kind = "external" if disk.name in files else "no"
            element = ElementTree.SubElement(disks, "disk", name=disk.name, snapshot=kind)
            if disk.name in files:
                ElementTree.SubElement(element, "driver", type="qcow2")
                ElementTree.SubElement(element, "source", file=files[disk.name])
        self._text = ElementTree.tostring(snapshot, encoding="unicode")

    def take(self, new: Sequence[Overlay], seconds: float) -> None:
        self._agent.ask_domain(
            "virDomainSnapshotCreateXML", lambda domain: domain.snapshotCreateXML(self._text, _FLAGS), seconds
        )


def _disk(element: ElementTree.Element) -> Disk | None:
    """Return the disk of a domain; None if it has no medium."""
    chain = []
    layer: ElementTree.Element | None = element
    while layer is not None and layer.find("source") is not None:
        source, form = layer.find("source"), layer.find("driver" if layer is element else "format")
        chain.append(Image(_source(source), "raw" if form is None else form.get("type", "raw")))
        layer = layer.find("backingStore")
    target = element.find("target")
    if not chain or target is None:
        return None
    never = any(element.find(kind) is not None for kind in ("readonly", "shareable", "transient"))
    usual = element.get("device", "disk") == "disk" and element.get("snapshot") != "no" and not never
    return Disk([target.get("dev", "")], chain, usual, element.find(".//encryption") is not None)


def _source(element: ElementTree.Element | None) -> str:
    """Return the file or device that an image is; else something that is no path."""
    if element is None:
        return "none:"
    return element.get("file") or element.get("dev") or f"{element.get('protocol', 'pool')}:{element.get('name', '')}"
