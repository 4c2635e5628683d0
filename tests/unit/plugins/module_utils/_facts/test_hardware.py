# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processors, memory, disks and mounts; files of /proc are compared with what ansible-core's own code makes of them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.facts.hardware import linux as core

from ansible_collections.qemu.guest.plugins.module_utils._facts.hardware import (
    CPUINFO,
    MEMINFO,
    UPTIME,
    hardware_facts,
)
from ansible_collections.qemu.guest.plugins.module_utils._facts.mounts import MOUNTS, mount_facts
from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Replies


def linux(machine: str = "x86_64", files: dict[str, str] | None = None, **commands: Any) -> Replies:
    replies = {f"guest-get-{name.replace('_', '-')}": reply for name, reply in commands.items()}
    return Replies({"guest-get-osinfo": {"id": "debian", "machine": machine}, **replies}, files or {})


def x86(sockets: int, cores: int, threads: int) -> str:
    return "\n".join(
        f"processor\t: {(socket * cores + core) * threads + thread}\nvendor_id\t: GenuineIntel\nmodel\t\t: 85\n"
        f"model name\t: Intel Xeon\nphysical id\t: {socket}\nsiblings\t: {cores * threads}\ncore id\t\t: {core}\n"
        f"cpu cores\t: {cores}\nflags\t\t: fpu vme: sse\npower management:\n"
        for socket in range(sockets)
        for core in range(cores)
        for thread in range(threads)
    )


CPUS = {
    "one": ("x86_64", x86(1, 1, 1)),
    "sockets": ("x86_64", x86(4, 1, 1)),
    "cores": ("x86_64", x86(1, 8, 1)),
    "all": ("x86_64", x86(2, 3, 2)),
    "old": ("i686", "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Pentium\n"),
    "arm": ("aarch64", "processor\t: 0\nBogoMIPS\t: 125.00\n\nprocessor\t: 1\nBogoMIPS\t: 125.00\n"),
    "power": ("ppc64le", "processor\t: 0\ncpu\t\t: POWER9\n\nprocessor\t: 1\ncpu\t\t: POWER9\n\nmodel\t: IBM\n"),
    "risc": ("riscv64", "processor\t: 0\nhart\t\t: 0\nisa\t\t: rv64\n\nprocessor\t: 1\nhart\t\t: 1\n"),
}


@pytest.mark.parametrize("name", CPUS)
def test_processors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, content = CPUS[name]
    monkeypatch.setattr(core, "get_file_lines", lambda path: content.splitlines() if path == CPUINFO else [])
    expected = core.LinuxHardware(None).get_cpu_facts({"ansible_architecture": machine})
    facts = hardware_facts(linux(machine, {CPUINFO: content}))
    names = ("", "_count", "_cores", "_threads_per_core", "_vcpus")
    assert facts == {f"processor{suffix}": expected[f"processor{suffix}"] for suffix in names}


def test_threads_are_counted() -> None:
    facts = hardware_facts(linux(files={CPUINFO: x86(2, 3, 2)}))
    assert [facts[f"processor_{name}"] for name in ("count", "cores", "threads_per_core", "vcpus")] == [2, 3, 2, 12]


def test_processors_of_a_mainframe_are_left_out() -> None:
    assert hardware_facts(linux("s390x", {CPUINFO: "vendor_id : IBM/S390\n# processors : 2\n"})) == {}


SIZES = {"MemTotal": 987654, "MemFree": 400000, "Buffers": 20000, "Cached": 123456, "SwapCached": 5000}
SIZES.update(SwapTotal=524284, SwapFree=500000, Dirty=4)
MEMORY = "".join(f"{name}:{size:>15} kB\n" for name, size in SIZES.items()) + "HugePages_Total:       0\n"


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "get_file_lines", lambda path: MEMORY.splitlines())
    facts = hardware_facts(linux(files={MEMINFO: MEMORY}))
    assert facts == core.LinuxHardware(None).get_memory_facts()
    assert facts["memtotal_mb"] == 964


@pytest.mark.parametrize("content", ["", "MemTotal: 5 kB\n", MEMORY.replace("kB", "MB"), "x\0" * 100])
def test_memory_that_is_not_told(content: str) -> None:
    assert hardware_facts(linux(files={MEMINFO: content})) == {}


@pytest.mark.parametrize(("content", "facts"), [("8.99 1.00\n", {"uptime_seconds": 8}), ("", {}), ("9" * 9999, {})])
def test_uptime(content: str, facts: dict[str, int]) -> None:
    assert hardware_facts(linux(files={UPTIME: content})) == facts


def disk(name: str, *parents: str, partition: bool = False) -> dict[str, Any]:
    return {"name": f"/dev/{name}", "partition": partition, "dependencies": [f"/dev/{parent}" for parent in parents]}


@pytest.mark.parametrize(
    ("disks", "devices"),
    [
        ([], {}),
        (
            [disk("vda1", "vda", partition=True), disk("vda"), disk("dm-0", "vda1"), disk("vdb")],
            {"vda": {"partitions": {"vda1": {}}}, "vdb": {"partitions": {}}, "dm-0": {"partitions": {}}},
        ),
        ([disk("vda1", "vda", partition=True), disk("vdb1", partition=True)], {}),
        ("vda", {}),
        ([{"name": 5, "partition": True, "dependencies": [5]}, 5], {}),
    ],
)
def test_devices(disks: Any, devices: dict[str, Any]) -> None:
    assert hardware_facts(linux(disks=disks)) == {"devices": devices}


def test_hardware_that_nothing_is_told_of() -> None:
    assert hardware_facts(linux()) == {}
    assert hardware_facts(Replies({}, {UPTIME: "1.0 1.0\n"})) == {}


@pytest.mark.parametrize(
    ("count", "facts"), [(0, {}), (2, {"processor_vcpus": 2}), (64, {"processor_vcpus": 64}), (65, {})]
)
def test_processors_of_windows(count: int, facts: dict[str, int]) -> None:
    cpus = [{"logical-id": n, "online": True} for n in range(count)] + [{"logical-id": count, "online": False}]
    commands = {"guest-get-osinfo": {"id": "mswindows"}, "guest-get-vcpus": cpus}
    assert hardware_facts(Replies(commands, {})) == facts
    assert mount_facts(Replies({**commands, "guest-get-fsinfo": FSINFO}, {})) == {}


TABLE = r"""
sysfs /sys sysfs rw,nosuid 0 0
/dev/vda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdb /with\040space xfs rw,seclabel 0 0
/dev/vda1 /srv/bound ext4 rw 0 0
server:/export /mnt nfs4 rw 0 0
/dev/loop0 /none none rw 0 0
/dev/vdc / ext4 rw,relatime 0 0
short line
"""
FSINFO = [
    {"name": "vda1", "mountpoint": "/", "type": "ext4", "used-bytes": 10, "total-bytes": 90},
    {
        "name": "vdb",
        "mountpoint": "/with space",
        "type": "xfs",
        "used-bytes": 20,
        "total-bytes": 80,
        "total-bytes-privileged": 100,
    },
]


def test_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = core.LinuxHardware(SimpleNamespace(warn=print))
    entries = [line.split() for line in TABLE.splitlines() if len(line.split()) >= 4]
    monkeypatch.setattr(hardware, "_mtab_entries", lambda: entries)
    monkeypatch.setattr(hardware, "_find_bind_mounts", lambda: set())
    monkeypatch.setattr(hardware, "_lsblk_uuid", lambda: {})
    monkeypatch.setattr(hardware, "get_mount_info", lambda mount, device, uuids: ({}, None))
    kept = ("mount", "device", "fstype")
    expected = [{name: mount[name] for name in kept} for mount in hardware.get_mount_facts()["mounts"]]
    mounts = mount_facts(linux(files={MOUNTS: TABLE}))["mounts"]
    assert sorted(mounts, key=str) == sorted(expected, key=str)
    assert len(mounts) == 4


def test_sizes_of_mounts() -> None:
    mounts = mount_facts(linux(fsinfo=FSINFO, files={MOUNTS: TABLE}))["mounts"]
    sizes = {mount["mount"]: (mount.get("size_total"), mount.get("size_available")) for mount in mounts}
    assert sizes == {"/": (None, 80), "/with space": (100, 60), "/srv/bound": (None, None), "/mnt": (None, None)}


def test_mounts_without_the_file() -> None:
    assert mount_facts(linux(fsinfo=FSINFO)) == {
        "mounts": [
            {"mount": "/", "fstype": "ext4", "size_available": 80},
            {"mount": "/with space", "fstype": "xfs", "size_available": 60, "size_total": 100},
        ]
    }
    assert mount_facts(linux()) == {}


def test_this_machine() -> None:
    """What its own files say is what ansible-core says of it."""
    with open(CPUINFO, encoding="utf-8") as file:
        facts = hardware_facts(linux(os.uname().machine, {CPUINFO: file.read()}))
    expected = core.LinuxHardware(None).get_cpu_facts({"ansible_architecture": os.uname().machine})
    assert facts and facts == {name: expected[name] for name in facts}
