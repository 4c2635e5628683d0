#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_facts
short_description: Gather facts about a guest without Python in it
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Returns facts in the names and shapes of M(ansible.builtin.setup), made from what the QEMU Guest Agent tells. No
    program is run in the guest.
  - What the agent cannot tell is left out, also inside a fact. All that is returned is what M(ansible.builtin.setup)
    returns on the same guest. C(docs/facts.md) in the collection has a list by operating system and agent.
  - Where the agent lets files be read, a few files of a Linux guest are read too, which the agent has no commands for.
  - It can gather the facts of a play, by C(ansible_facts_modules=qemu.guest.qga_facts).
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
  - qemu.guest.attributes.reads
attributes:
  facts:
    description: Returns C(ansible_facts), which become variables of the host.
    support: full
options:
  gather_subset:
    description:
      - Which facts to gather, as for M(ansible.builtin.setup). V(min) means V(date_time), V(distribution) and
        V(platform), and is always there unless V(!min) is.
      - The others are V(all), V(hardware), V(loadavg) and V(network). V(!NAME) leaves one out.
      - A subset that is named, and that the agent can tell nothing about, gives a warning.
    type: list
    elements: str
    default: [all]
  filter:
    description:
      - Return only facts whose names match one of these shell patterns, with or without C(ansible_).
    type: list
    elements: str
    default: []
notes:
  - C(default_ipv4) and C(default_ipv6) come from the guest's main routing table; rules for others are not seen.
  - A play passes its C(gather_subset) and its C(filter) to M(ansible.builtin.setup) only. Set them for this module
    with C(module_defaults).
seealso:
  - module: ansible.builtin.setup
  - module: ansible.builtin.gather_facts
  - module: qemu.guest.qga_info
"""

EXAMPLES = r"""
- name: Gather facts about a guest that is connected to by qemu.guest.qga
  qemu.guest.qga_facts:

# The hypervisor's own ansible_facts are replaced by the guest's, for the rest of the play.
- name: Gather facts about a guest, from its hypervisor
  qemu.guest.qga_facts:
    address: /run/vm1.qga
    gather_subset: [network]
  register: vm1

- name: Gather only what says which system it is
  qemu.guest.qga_facts:
    filter: [distribution*, os_family]
"""

RETURN = r"""
ansible_facts:
  description: Facts, each in the shape that M(ansible.builtin.setup) has it in. This is a selection.
  type: dict
  returned: success
  contains:
    ansible_all_ipv4_addresses:
      description: IPv4 addresses of all interfaces but loopback ones.
      type: list
      elements: str
      returned: when the agent tells addresses
      sample: ["192.0.2.10"]
    ansible_default_ipv4:
      description: The way to other networks and the address that is used there. Empty without one.
      type: dict
      returned: on Linux, when the agent has C(guest-network-get-route) or lets files be read
      sample: {"address": "192.0.2.10", "gateway": "192.0.2.1", "interface": "eth0", "macaddress": "52:54:00:12:34:56"}
    ansible_devices:
      description: Disks and their partitions, by name.
      type: dict
      returned: on Linux, with agents from 5.2 on
      sample: {"vda": {"partitions": {"vda1": {}}}}
    ansible_distribution:
      description: The distribution.
      type: str
      returned: on FreeBSD and common distributions of Linux
      sample: Debian
    ansible_distribution_version:
      description: The distribution's version.
      type: str
      returned: when it is known exactly
      sample: "12.11"
    ansible_hostname:
      description: The host's name up to the first dot.
      type: str
      returned: when the agent tells it, but not on Windows
      sample: vm1
    ansible_kernel:
      description: The kernel's release.
      type: str
      returned: when the agent tells about the system
      sample: 6.1.0-40-cloud-amd64
    ansible_memtotal_mb:
      description: Memory in MiB.
      type: int
      returned: on Linux, when the agent lets files be read
      sample: 987
    ansible_mounts:
      description: Mounted filesystems with their sizes in bytes.
      type: list
      elements: dict
      returned: on Linux, when the agent tells about filesystems or lets files be read
      sample: [{"mount": "/", "device": "/dev/vda1", "fstype": "ext4", "size_total": 2040373248, "size_available": 1}]
    ansible_os_family:
      description: The family of the operating system.
      type: str
      returned: on Windows, FreeBSD and common distributions of Linux
      sample: Debian
"""

import fnmatch
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    OperationError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._facts import distribution, hardware, mounts, routes
from ansible_collections.qemu.guest.plugins.module_utils._facts.clock import date_time_facts, load_facts
from ansible_collections.qemu.guest.plugins.module_utils._facts.network import network_facts
from ansible_collections.qemu.guest.plugins.module_utils._facts.platform import platform_facts
from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Facts, Replies
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import is_frozen
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "gather_subset": {"type": "list", "elements": "str", "default": ["all"]},
    "filter": {"type": "list", "elements": "str", "default": []},
}

SYSTEM = "guest-get-osinfo"
READING = ("guest-file-open", "guest-file-read", "guest-file-close")
# Enough for the processors of the largest guests.
_LARGEST_FILE = 1 << 20


class Subset(NamedTuple):
    """Facts that are gathered together: a function that makes them, and the commands and files that it looks at."""

    make: Callable[[Replies], Facts]
    commands: Sequence[str] = ()
    on_linux: Sequence[str] = ()
    on_windows: Sequence[str] = ()
    files: Sequence[str] = ()  # of Linux

    def asked(self, system: str) -> list[str]:
        """Return the commands of the agent that this needs on an operating system."""
        return [*self.commands, *{"Linux": self.on_linux, "Windows": self.on_windows}.get(system, ())]


SUBSETS = {
    # First: an interface may have the name of another fact, which then overrides it.
    "network": Subset(
        network_facts,
        ("guest-network-get-interfaces",),
        on_linux=("guest-network-get-route",),
        files=(routes.ROUTES_4, routes.ROUTES_6),
    ),
    "date_time": Subset(date_time_facts, ("guest-get-time", "guest-get-timezone")),
    "distribution": Subset(
        distribution.distribution_facts, (SYSTEM,), files=(distribution.OS_RELEASE, distribution.DEBIAN_VERSION)
    ),
    "hardware": Subset(
        lambda replies: {**hardware.hardware_facts(replies), **mounts.mount_facts(replies)},
        on_linux=("guest-get-disks", "guest-get-fsinfo"),
        on_windows=("guest-get-vcpus",),
        files=(hardware.CPUINFO, hardware.MEMINFO, hardware.UPTIME, mounts.MOUNTS),
    ),
    "loadavg": Subset(load_facts, ("guest-get-load",)),
    "platform": Subset(platform_facts, (SYSTEM, "guest-get-host-name")),
}
MIN = frozenset({"date_time", "distribution", "platform"})


class Gathered(NamedTuple):
    """The subsets that are wanted, what the guest told, and why it did not tell more about those that were named."""

    subsets: Sequence[str]
    replies: Replies
    refused: Mapping[str, str]


def read(agent: Agent, params: Params) -> Gathered:
    chosen = wanted(params["gather_subset"])
    if agent.info.looks_frozen:
        agent.require(SYSTEM)
    replies = Replies({}, {})
    _ask(agent, [SYSTEM], replies)  # what else to ask for depends on it
    for name in chosen:
        _ask(agent, SUBSETS[name].asked(replies.system), replies)
    if replies.system == "Linux" and agent.supports(*READING):
        _read_files(agent, [path for name in chosen for path in SUBSETS[name].files], replies)
    named = [name for name in chosen if name in params["gather_subset"]]
    commands = [command for name in named for command in SUBSETS[name].asked(replies.system)]
    refusals = agent.refusals(*(command for command in commands if command not in replies.commands))
    return Gathered(chosen, replies, {command: exc.explanation for command, exc in refusals.items()})


def wanted(subsets: Sequence[str]) -> list[str]:
    """Return the names of the subsets that C(gather_subset) asks for, by the rules of ansible-core.

    :raise OperationError: if it names one that does not exist.
    """
    groups = {"all": frozenset(SUBSETS), "min": MIN}
    named = {subset for subset in subsets if not subset.startswith("!")} - set(groups)
    for name in sorted(named - set(SUBSETS)):
        known = ", ".join(sorted([*groups, *SUBSETS]))
        raise OperationError(f"gather_subset: there is no subset {name!r}; there are {known}.")
    left_out = {**groups, "all": groups["all"] - MIN}
    excluded = [left_out.get(subset[1:], {subset[1:]}) for subset in subsets if subset.startswith("!")]
    included = MIN.union(named, SUBSETS if "all" in subsets or not subsets else ())
    return [name for name in SUBSETS if name in named or name in included.difference(*excluded)]


def _ask(agent: Agent, commands: Sequence[str], replies: Replies) -> None:
    """Add the replies to the commands that the agent has and that it does not refuse."""
    for command in commands:
        if command in replies.commands or not agent.supports(command):
            continue
        try:
            replies.commands[command] = agent.execute(command)
        except CommandError as exc:
            if is_frozen(exc):
                raise


def _read_files(agent: Agent, paths: Sequence[str], replies: Replies) -> None:
    """Add the content of the files that are there and that tell what no reply does."""
    for path in paths:
        if path in _needless(replies):
            continue
        try:
            with GuestFile(agent, path) as file:
                replies.files[path] = file.read_all(_LARGEST_FILE).decode("utf-8", "replace")
        except (CommandError, TransferError) as exc:
            if is_frozen(exc):
                raise


def _needless(replies: Replies) -> Sequence[str]:
    """Return the files that tell nothing more than the replies do."""
    of_routes = (routes.ROUTES_4, routes.ROUTES_6) if "guest-network-get-route" in replies.commands else ()
    return (*of_routes, distribution.needless_file(replies))


def plan(current: Gathered, params: Params) -> Plan:
    facts: Facts = {}
    warnings = []
    for name in current.subsets:
        made = SUBSETS[name].make(current.replies)
        facts.update((f"ansible_{fact.replace('-', '_')}", value) for fact, value in made.items())
        if not made and name in params["gather_subset"]:
            reasons = [
                f"{command}: {current.refused[command]}"
                for command in SUBSETS[name].asked(current.replies.system)
                if command in current.refused
            ]
            warnings.append(" ".join([f"The agent tells nothing for the subset {name}.", *reasons]))
    return Plan(result={"ansible_facts": _filtered(facts, params["filter"])}, warnings=warnings)


def _filtered(facts: Facts, patterns: Sequence[str]) -> Facts:
    """Return the facts whose names match one of the patterns, with or without their prefix; all without patterns."""
    either = [form for pattern in patterns for form in (pattern, f"ansible_{pattern}")]
    return {
        name: value
        for name, value in facts.items()
        if not patterns or any(fnmatch.fnmatchcase(name, form) for form in either)
    }


OPERATION = Operation(SPEC, read, plan)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
