# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of the same guests by setup, which runs in them, and by qga_facts: where both say something, it is the same."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.qemu.guest.tests.integration.harness import Ansible

# fmt: off
ALWAYS = {
    "all_ipv4_addresses", "all_ipv6_addresses", "architecture", "date_time", "default_ipv4", "default_ipv6",
    "devices", "distribution", "distribution_release", "hostname", "interfaces", "kernel", "kernel_version", "lo",
    "machine", "memfree_mb", "memory_mb", "memtotal_mb", "mounts", "nodename", "os_family", "processor",
    "processor_cores", "processor_count", "processor_threads_per_core", "processor_vcpus", "swapfree_mb",
    "swaptotal_mb", "system", "uptime_seconds",
}
# fmt: on
"""What each agent of Debian tells."""
OF_RELEASES = {f"distribution_{name}version" for name in ("", "major_", "minor_")}
"""What those of releases tell too."""

# What changes between two tasks, and by how much it may; of other members of date_time, only the form is compared.
VOLATILE: dict[str, float] = {
    r"uptime_seconds|date_time\.epoch(_int)?": 600,
    r"memfree_mb|swapfree_mb|memory_mb\.\w+\.(free|used|cached)": 2048,
    r"mounts\..*\.size_available": 2 << 30,
    r"loadavg\.\w+": 20,
}
CLOCK = r"date_time\.(hour|minute|second|time|iso8601\w*)"


def both(ansible: Ansible, hosts: Mapping[str, object]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield each host's name, its facts by qga_facts, and its facts by setup."""
    told = ansible.directory / "told"
    told.mkdir(exist_ok=True)
    keep = {
        "content": "{{ [by_agent, by_setup] | map(attribute='ansible_facts') | list | to_json }}",
        "dest": f"{told}/{{{{ inventory_hostname }}}}",
        "mode": "0600",
    }
    tasks = [
        {"qemu.guest.qga_facts": {}, "register": "by_agent"},
        {"ansible.builtin.setup": {}, "register": "by_setup"},
        {
            "ansible.builtin.copy": keep,
            "delegate_to": "localhost",
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
        },
    ]
    playbook = ansible.directory / "facts.json"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    ansible.playbook(playbook)
    for host in hosts:
        by_agent, by_setup = (
            {name.removeprefix("ansible_"): value for name, value in facts.items()}
            for facts in json.loads((told / host).read_text(encoding="utf-8"))
        )
        yield host, by_agent, by_setup


def differences(mine: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yield what is in `mine` and not, or differently, in `theirs`. Which order lists have is the system's."""
    if path == "mounts":
        mine, theirs = ({mount["mount"]: mount for mount in mounts} for mounts in (mine, theirs))
        if set(mine) != set(theirs):
            yield f"mounts: {sorted(mine)}, and not {sorted(theirs)}"
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name, value in mine.items():
            if name in theirs:
                yield from differences(value, theirs[name], f"{path}.{name}".lstrip("."))
            else:
                yield f"{path}.{name}: not there"
    elif type(mine) is not type(theirs) or not _same(mine, theirs, path):
        yield f"{path}: {mine!r}, and not {theirs!r}"


def _same(mine: Any, theirs: Any, path: str) -> bool:
    for pattern, most in VOLATILE.items():
        if re.fullmatch(pattern, path):
            return abs(float(theirs) - float(mine)) <= most
    if re.fullmatch(CLOCK, path):
        return re.sub(r"\d", "0", mine) == re.sub(r"\d", "0", theirs)
    if isinstance(mine, list) and path != "processor":
        return sorted(map(str, mine)) == sorted(map(str, theirs))
    return bool(mine == theirs)
