# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import LibvirtAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot import Overlay, choose, overlays
from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot_libvirt import LibvirtSnapshots
from ansible_collections.qemu.guest.plugins.modules.qga_snapshot import snapshots

# As libvirt 9.0 shows a domain that runs.
DOMAIN = """<domain><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/vm1.monday' index='3'/>
 <backingStore type='file' index='1'><format type='raw'/><source file='/vm1.raw'/><backingStore/></backingStore>
 <target dev='vda' bus='virtio'/></disk>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/vm1'/><target dev='vdb'/></disk>
<disk type='network' device='disk'><source protocol='rbd' name='pool/vm1'/><target dev='vdc'/></disk>
<disk type='file' device='disk'><source file='/ro'/><target dev='vdd'/><readonly/></disk>
<disk type='file' device='disk'><source file='/shared'/><target dev='vde'/><shareable/></disk>
<disk type='file' device='disk' snapshot='no'><source file='/no'/><target dev='vdf'/></disk>
<disk type='file' device='disk'><source file='/luks'><encryption format='luks'/></source><target dev='vdg'/></disk>
<disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='sda'/></disk>
<disk type='file' device='cdrom'><target dev='sdb'/></disk>
</devices></domain>"""


class Agent(LibvirtAgent):
    """The agent of a domain that takes snapshots."""

    is_here = True

    def __init__(self) -> None:
        self.name = "libvirt:vm1"
        self.timeout = 20
        self.asked: list[str] = []
        self.snapshots: list[tuple[str, int]] = []

    def ask_domain(self, command: str, call: Callable[[Any], Any], seconds: float) -> Any:
        self.asked.append(command)
        return call(self)

    def XMLDesc(self, flags: int) -> str:
        assert flags == 0
        return DOMAIN

    def snapshotCreateXML(self, text: str, flags: int) -> None:
        self.snapshots.append((text, flags))


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_disks(agent: Agent) -> None:
    disks = snapshots(agent, None).disks()
    assert [disk.name for disk in disks] == ["vda", "vdb", "vdc", "vdd", "vde", "vdf", "vdg", "sda"]
    assert [disk.name for disk in choose(disks, None)] == ["vda", "vdb", "vdc", "vdg"]
    assert [tuple(image) for image in disks[0].chain] == [("/vm1.monday", "qcow2"), ("/vm1.raw", "raw")]
    assert (disks[1].chain[0].file, disks[2].chain[0].file) == ("/dev/vg/vm1", "rbd:pool/vm1")
    assert [disk.name for disk in disks if disk.encrypted] == ["vdg"]


def test_snapshot(agent: Agent) -> None:
    """All that can be asked before the guest is frozen is, and the other disks are no part of it."""
    host = snapshots(agent, None)
    new = overlays(choose(host.disks(), ["vda", "vdb"]), "tuesday", {"vdb": "/new & old"})
    host.prepare(new)
    agent.asked.clear()
    host.take(new, 60)
    assert agent.asked == ["virDomainSnapshotCreateXML"]
    ((text, flags),) = agent.snapshots
    assert flags == 4 | 16 | 128
    root = ElementTree.fromstring(text)
    files = {disk.get("name"): disk.find("source") for disk in root.iterfind("disks/disk[@snapshot='external']")}
    assert {name: source.get("file") for name, source in files.items() if source is not None} == {
        "vda": "/vm1.tuesday",
        "vdb": "/new & old",
    }
    others = [disk.get("name") for disk in root.iterfind("disks/disk[@snapshot='no']")]
    assert others == ["vdc", "vdd", "vde", "vdf", "vdg", "sda"]


def test_snapshot_that_is_there(agent: Agent) -> None:
    host = snapshots(agent, None)
    (found,) = overlays(choose(host.disks(), ["vda"]), "monday", {})
    assert found.exists
    assert found.as_result() == {"name": "vda", "image": "/vm1.raw", "format": "raw", "overlay": "/vm1.monday"}


def test_file_that_exists(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for where libvirt is on this machine."""
    (tmp_path / "new").symlink_to("nowhere")
    host = LibvirtSnapshots(agent)
    new = [Overlay(host.disks()[0], str(tmp_path / "new"))]
    with pytest.raises(OperationError, match="exists already"):
        host.refuse_existing(new)
    host.refuse_existing([new[0]._replace(file=str(tmp_path / "other"))])
    monkeypatch.setattr(Agent, "is_here", False)
    host.refuse_existing(new)


def test_monitor_of_a_domain_is_libvirts(agent: Agent) -> None:
    with pytest.raises(OperationError, match="qmp_address is not for a domain of libvirt's"):
        snapshots(agent, "/run/vm1.qmp")
