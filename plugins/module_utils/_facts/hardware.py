# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts on processors, memory, disks and uptime."""

from __future__ import annotations

import re
from typing import Mapping, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Facts, Replies, text

__all__ = ("CPUINFO", "MEMINFO", "UPTIME", "hardware_facts")

CPUINFO = "/proc/cpuinfo"
MEMINFO = "/proc/meminfo"
UPTIME = "/proc/uptime"

# Windows counts the processors of one group, which has no more than these.
_GROUP = 64
# The lines that ansible-core takes for the names of processors.
_NAMING = ("model name", "Processor", "vendor_id", "cpu", "Vendor", "processor")
# Processors that are counted by their number alone.
_BY_NUMBER = ("armv", "aarch", "ppc")


def hardware_facts(replies: Replies) -> Facts:
    if replies.system == "Windows":
        online = [cpu for cpu in replies.listed("guest-get-vcpus") if cpu.get("online") is True]
        return {"processor_vcpus": len(online)} if 0 < len(online) <= _GROUP else {}
    if replies.system != "Linux":
        return {}
    files = replies.files
    return {
        **_processors(files.get(CPUINFO, ""), text(replies.osinfo, "machine")),
        **_memory(files.get(MEMINFO, "")),
        **_uptime(files.get(UPTIME, "")),
        **_devices(replies),
    }


def _uptime(content: str) -> Facts:
    seconds = re.match(r"(\d{1,18})\.", content)
    return {"uptime_seconds": int(seconds.group(1))} if seconds else {}


def _memory(content: str) -> Facts:
    found = re.findall(r"^(\w+):\s+(\d{1,18}) kB$", content, re.MULTILINE)
    mib = {name.lower(): int(size) // 1024 for name, size in found}
    wanted = ("memtotal", "memfree", "swaptotal", "swapfree", "swapcached", "cached", "buffers")
    if not all(name in mib for name in wanted):
        return {}
    total, free, swap, swap_free, swap_cached, cached, buffers = (mib[name] for name in wanted)
    unused = cached + free + buffers
    return {
        "memtotal_mb": total,
        "memfree_mb": free,
        "swaptotal_mb": swap,
        "swapfree_mb": swap_free,
        "memory_mb": {
            "real": {"total": total, "used": total - free, "free": free},
            "nocache": {"free": unused, "used": total - unused},
            "swap": {"total": swap, "free": swap_free, "used": swap - swap_free, "cached": swap_cached},
        },
    }


def _processors(content: str, machine: str) -> Facts:
    """Count as ansible-core does, which takes the first socket and the first core for all."""
    if not content or not machine or machine == "s390x":
        return {}
    lines = [line.partition(":")[::2] for line in content.splitlines()]
    named = [(name.strip(), value.strip()) for name, value in lines]
    values: dict[str, list[str]] = {}
    for name, value in named:
        values.setdefault(name, []).append(value)
    sockets = len(set(values.get("physical id", ()))) or _count(values, machine)
    per_socket = _first(values, "cpu cores")
    threads = round(_first(values, "siblings") / per_socket)
    return {
        "processor": [value for name, value in named if name in _NAMING],
        "processor_count": sockets,
        "processor_cores": per_socket,
        "processor_threads_per_core": threads,
        "processor_vcpus": threads * sockets * per_socket,
    }


def _first(values: Mapping[str, Sequence[str]], name: str) -> int:
    """Return the first of the values as a number; 1 where there is none."""
    number = re.match(r"\d{1,9}$", values.get(name, [""])[0])
    return int(number.group()) or 1 if number else 1


def _count(values: dict[str, list[str]], machine: str) -> int:
    if machine.startswith(_BY_NUMBER):
        return len(values.get("processor", ()))
    vendors, models = (len(values.get(name, ())) for name in ("vendor_id", "model name"))
    return vendors if 0 < vendors == models else sum(len(values.get(name, ())) for name in _NAMING)


def _devices(replies: Replies) -> Facts:
    """Return the disks and their partitions by name; the agent leaves out what has no size."""
    if "guest-get-disks" not in replies.commands:
        return {}
    disks = replies.listed("guest-get-disks")
    devices: Facts = {_name(text(disk, "name")): {"partitions": {}} for disk in disks if disk.get("partition") is False}
    for disk in disks:
        parents = disk.get("dependencies")
        if disk.get("partition") is True and isinstance(parents, list) and len(parents) == 1:
            parent = devices.get(_name(str(parents[0])))
            if parent:
                parent["partitions"][_name(text(disk, "name"))] = {}
    return {"devices": devices}


def _name(path: str) -> str:
    return path.rpartition("/")[2]
