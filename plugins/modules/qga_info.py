#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_info
short_description: Tell what a guest's agent knows about the guest
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Returns what the QEMU Guest Agent tells about the guest, by all commands that only read.
  - What an agent is too old for, does not allow, or cannot tell, is listed in RV(unavailable) and fails nothing.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
  - qemu.guest.attributes.reads
options:
  gather_subset:
    description:
      - What to return. Each subset is one command of the agent and has the name of its return value.
      - Without it, the subsets that O(query) names are gathered, and only RV(result) is returned; without O(query), the
        default.
      - V(default) means everything but V(cpustats), V(diskstats), V(memory_block_info) and V(memory_blocks), which are
        long and of no use to most. V(all) means everything, V(min) means V(agent), V(osinfo), V(host_name) and
        V(fsfreeze_status). V(!name) leaves out a subset that others include.
      - A subset that the guest's operating system cannot have is left out silently, unless it is named here.
      - >-
        The subsets are V(agent), V(cpustats), V(devices), V(disks), V(diskstats), V(fsfreeze_status), V(fsinfo),
        V(host_name), V(load), V(memory_block_info), V(memory_blocks), V(network_interfaces), V(network_route),
        V(osinfo), V(time), V(timezone), V(users), V(vcpus).
    type: list
    elements: str
  authorized_keys_of:
    description:
      - Users of the guest whose authorized SSH keys to return too.
    type: list
    elements: str
    default: []
  query:
    description:
      - A JMESPath expression that is applied to the return values. What it yields is returned as RV(result).
      - Without O(gather_subset), the subsets that it names are gathered for it, or the default if it names none.
      - Needs the Python library jmespath where the task runs, or in the controller where O(address) is left out.
    type: str
requirements:
  - jmespath, for O(query)
seealso:
  - name: QEMU Guest Agent Protocol Reference
    description: What each return value means.
    link: https://www.qemu.org/docs/master/interop/qemu-ga-ref.html
  - name: JMESPath
    description: The language of O(query).
    link: https://jmespath.org/
"""

EXAMPLES = r"""
- name: Everything about a guest, from its hypervisor
  qemu.guest.qga_info:
    address: /run/vm1.qga
    gather_subset: [all]
  register: vm1

- name: What system a guest runs, and nothing else
  qemu.guest.qga_info:
    address: /run/vm1.qga
    query: osinfo.pretty_name
  register: system

# vm1.addresses['52:54:00:12:34:56'] is then a list of the addresses of the interface with that MAC address.
- name: The addresses of a guest's network interfaces
  qemu.guest.qga_info:
    address: /run/vm1.qga
    gather_subset: [network_interfaces]
  register: vm1

- name: The IPv4 addresses of a guest that is connected to by qemu.guest.qga
  qemu.guest.qga_info:
    query: network_interfaces[?name!='lo'].ip_addresses[] | [?ip_address_type=='ipv4'].ip_address
  register: ipv4
"""

RETURN = r"""
addresses:
  description:
    - The IP addresses of each network interface, by its MAC address in lower case, taken from
      RV(network_interfaces). Loopback and link-local addresses are left out.
    - The MAC address is what a hypervisor knows of an interface that it gave to the guest. Bridges of containers and
      the like have others, and interfaces without one (loopback, tunnels) are left out. A bridge, bond or VLAN that the
      guest has put on top of an interface has the same, and its addresses are here with it.
    - An interface that has no address yet has an empty list.
  type: dict
  returned: when V(network_interfaces) is asked for and available
  sample: {"52:54:00:12:34:56": ["192.0.2.10", "2001:db8::10"]}
agent:
  description: The agent's version and its commands (C(guest-info)).
  type: dict
  returned: when asked for and available
  sample:
    version: 7.2.22
    supported_commands:
      - {"name": "guest-ping", "enabled": true, "success_response": true}
authorized_keys:
  description:
    - The authorized SSH keys of each user in O(authorized_keys_of), as the agent lists them, which is the last line of
      the file first. They are read by a program in the guest, or by C(guest-ssh-get-authorized-keys) where the agent
      may run none.
    - A text stands in the place of lines that are no keys. The agent's command follows links, so a user of the guest
      can have it read what only root may, and it waits as long as the file is a FIFO.
  type: dict
  returned: when asked for and available
  sample: {"root": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI admin"]}
cpustats:
  description: How many milliseconds each CPU spent on what since the guest was booted (C(guest-get-cpustats)).
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"type": "linux", "cpu": 0, "user": 1020, "nice": 0, "system": 640, "idle": 5600}]
devices:
  description: Drivers of the guest's devices (C(guest-get-devices)). Windows guests only.
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"driver_name": "VirtIO Balloon Driver", "driver_version": "100.90.104.21700"}]
disks:
  description: The guest's disks and partitions (C(guest-get-disks)).
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"name": "/dev/vda", "partition": false, "dependencies": []}]
diskstats:
  description: Input and output of each block device since the guest was booted (C(guest-get-diskstats)). Sectors have
    512 bytes, times are in milliseconds.
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"name": "vda", "major": 254, "minor": 0, "stats": {"read_ios": 4120}}]
fsfreeze_status:
  description: Whether the guest's filesystems are V(frozen) or V(thawed) (C(guest-fsfreeze-status)).
  type: str
  returned: when asked for and available
  sample: thawed
fsinfo:
  description: The mounted filesystems that can be frozen (C(guest-get-fsinfo)). Sizes are in bytes.
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"name": "vda1", "mountpoint": "/", "type": "ext4", "used_bytes": 987654321, "total_bytes": 2147483648}]
host_name:
  description: The guest's host name (C(guest-get-host-name)).
  type: dict
  returned: when asked for and available
  sample: {"host_name": "vm1"}
load:
  description: Load averages (C(guest-get-load)).
  type: dict
  returned: when asked for and available
  sample: {"load1m": 0.1, "load5m": 0.2, "load15m": 0.1}
memory_block_info:
  description: The size of memory blocks in bytes (C(guest-get-memory-block-info)).
  type: dict
  returned: when asked for and available
  sample: {"size": 134217728}
memory_blocks:
  description: The guest's memory blocks (C(guest-get-memory-blocks)).
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"phys_index": 0, "online": true, "can_offline": true}]
network_interfaces:
  description: Network interfaces with their addresses (C(guest-network-get-interfaces)).
  type: list
  elements: dict
  returned: when asked for and available
  sample:
    - name: eth0
      hardware_address: "52:54:00:12:34:56"
      ip_addresses:
        - {"ip_address": "192.0.2.10", "ip_address_type": "ipv4", "prefix": 24}
network_route:
  description: The guest's routes (C(guest-network-get-route)).
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"iface": "eth0", "destination": "192.0.2.0", "metric": 0, "version": 4}]
osinfo:
  description: The guest's operating system (C(guest-get-osinfo)).
  type: dict
  returned: when asked for and available
  sample: {"id": "debian", "name": "Debian GNU/Linux", "version_id": "12", "kernel_release": "6.1.0-40-cloud-amd64"}
result:
  description: What O(query) yields.
  type: raw
  returned: when O(query) is given
  sample: ["192.0.2.10"]
time:
  description: The guest's time in nanoseconds since 1970-01-01 UTC (C(guest-get-time)).
  type: int
  returned: when asked for and available
  sample: 1767225600000000000
timezone:
  description: The guest's time zone; the offset is in seconds (C(guest-get-timezone)).
  type: dict
  returned: when asked for and available
  sample: {"zone": "UTC", "offset": 0}
unavailable:
  description: Why there is no answer, for each subset that was asked for and has none. See also RV(users).
  type: dict
  returned: success; with O(query) and without O(gather_subset), only if there is one
  sample: {"load": "this agent (version 7.2.22) does not know the command."}
users:
  description:
    - Users who are logged in (C(guest-get-users)). Times are in seconds since 1970-01-01 UTC.
    - Agents look that up in the guest's C(/run/utmp). Some distributions do not write that (Debian from 13 on, Alpine),
      and the list is empty, whoever is logged in. Where the agent may look for the file, RV(unavailable) says so.
      C(loginctl list-users), run in the guest, knows them.
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"user": "root", "login_time": 1767225600.5}]
vcpus:
  description: The guest's logical processors (C(guest-get-vcpus)).
  type: list
  elements: dict
  returned: when asked for and available
  sample: [{"logical_id": 0, "online": true, "can_offline": false}]
"""

import ipaddress
from typing import Any, Callable, Iterator, Mapping, Sequence

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect
from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import with_underscores
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor, GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import exists
from ansible_collections.qemu.guest.plugins.module_utils._module.key_file import look
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.public_keys import listed, shown
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

try:
    import jmespath
except ImportError:
    jmespath = None

SPEC: dict[str, dict[str, Any]] = {
    "gather_subset": {"type": "list", "elements": "str"},
    "authorized_keys_of": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "query": {"type": "str"},
}

COMMANDS = {
    "agent": "guest-info",
    "cpustats": "guest-get-cpustats",
    "devices": "guest-get-devices",
    "disks": "guest-get-disks",
    "diskstats": "guest-get-diskstats",
    "fsfreeze_status": "guest-fsfreeze-status",
    "fsinfo": "guest-get-fsinfo",
    "host_name": "guest-get-host-name",
    "load": "guest-get-load",
    "memory_block_info": "guest-get-memory-block-info",
    "memory_blocks": "guest-get-memory-blocks",
    "network_interfaces": "guest-network-get-interfaces",
    "network_route": "guest-network-get-route",
    "osinfo": "guest-get-osinfo",
    "time": "guest-get-time",
    "timezone": "guest-get-timezone",
    "users": "guest-get-users",
    "vcpus": "guest-get-vcpus",
}
_NO_UTMP = (
    "this guest writes no /run/utmp, from which its agent would take who is logged in. The list is empty, whoever is. "
    "In the guest, loginctl list-users knows."
)

MIN = ("agent", "osinfo", "host_name", "fsfreeze_status")
NOT_BY_DEFAULT = ("cpustats", "diskstats", "memory_block_info", "memory_blocks")
KEYS_COMMAND = "guest-ssh-get-authorized-keys"


def read(executor: Executor, params: Params) -> dict[str, Any]:
    agent = executor.agent
    if params["query"] and jmespath is None:
        raise OperationError(missing_required_lib("jmespath", reason="for query"))
    gathered: dict[str, Any] = {}
    unavailable: dict[str, str] = {}
    named = params["gather_subset"] or []
    names = wanted(params["gather_subset"] or subsets_of(params["query"]))
    refusals = agent.refusals(*(COMMANDS[name] for name in names))
    for name in names:
        try:
            if COMMANDS[name] in refusals:
                raise refusals[COMMANDS[name]]
            gathered[name] = with_underscores(agent.execute(COMMANDS[name]))
        except CommandError as exc:
            if isinstance(exc, CommandUnavailable) and exc.reason == "elsewhere" and name not in named:
                continue
            unavailable[name] = exc.explanation
    if gathered.get("users") == [] and _writes_no_utmp(agent):
        unavailable["users"] = _NO_UTMP
    for user in params["authorized_keys_of"]:
        try:
            gathered.setdefault("authorized_keys", {})[user] = shown(_authorized_keys(executor, user))
        except (CommandError, OperationError) as exc:
            unavailable[f"authorized_keys of {user}"] = exc.explanation
    return {**gathered, "unavailable": unavailable}


def _authorized_keys(executor: Executor, user: str) -> list[str]:
    """Return the lines of the user's file, the last one first."""
    file = look(executor, user) if executor.is_available() else None
    if file:
        return [line for line in map(listed, reversed((file.text or "").split("\n"))) if line]
    executor.agent.require(KEYS_COMMAND)
    keys = expect(executor.agent.execute(KEYS_COMMAND, {"username": user}).get("keys", []), list, "keys")
    return [expect(key, str, "a key") for key in keys]


def _writes_no_utmp(agent: Agent) -> bool:
    """Return whether the guest is a Linux without /run/utmp, as far as the agent's commands can show."""
    try:
        can_look = agent.supports("guest-file-open", "guest-file-close")
        return can_look and exists(agent, "/proc/version") and not exists(agent, "/run/utmp")
    except CommandError:
        return False


def subsets_of(query: str | None) -> list[str]:
    """Return the subsets whose names occur in a query; V(default) if none does, or there is no query.

    :raise OperationError: if the query has a syntax error.
    """
    if not query:
        return ["default"]
    names = set(_fields(_checked(jmespath.compile, query).parsed))
    if "addresses" in names:
        names.add("network_interfaces")
    return sorted(names & set(COMMANDS)) or ["!all" if "authorized_keys" in names else "default"]


def _fields(node: Any) -> Iterator[str]:
    """Return the names of fields in a parsed query, and in what it is made of."""
    if isinstance(node, dict):  # the numbers of a slice are no nodes
        if node["type"] == "field":
            yield node["value"]
        for child in node["children"]:
            yield from _fields(child)


def _checked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of jmespath.

    :raise OperationError: if the query is wrong.
    """
    try:
        return function(*arguments)
    except jmespath.exceptions.JMESPathError as exc:
        raise OperationError(f"query: {exc}") from exc


def wanted(subsets: Sequence[str]) -> list[str]:
    """Return the names of the subsets that C(gather_subset) asks for, sorted.

    :raise OperationError: if it names one that does not exist.
    """
    default = set(COMMANDS).difference(NOT_BY_DEFAULT)
    groups = {"all": set(COMMANDS), "default": default, "min": set(MIN), **{name: {name} for name in COMMANDS}}
    for name in (subset[1:] if subset.startswith("!") else subset for subset in subsets):
        if name not in groups:
            raise OperationError(f"gather_subset: there is no subset {name!r}; there are {', '.join(sorted(groups))}.")
    included = [groups[s] for s in subsets if not s.startswith("!")] or [default]
    excluded = [groups[s[1:]] for s in subsets if s.startswith("!")]
    return sorted(set().union(*included).difference(*excluded))


def plan(current: dict[str, Any], params: Params) -> Plan:
    result = dict(current)
    warnings = []
    if "network_interfaces" in result:
        result["addresses"] = addresses_by_mac(result["network_interfaces"])
    if params["query"]:
        found = _checked(jmespath.search, params["query"], result)
        if params["gather_subset"] is None:
            result = {"unavailable": result["unavailable"]} if result["unavailable"] else {}
        result["result"] = found
        names = {*COMMANDS, "addresses", *current}
        if found is None and names.isdisjoint(_fields(jmespath.compile(params["query"]).parsed)):
            warnings.append(f"query: it names none of the return values, which are {', '.join(sorted(names))}.")
    return Plan(result=result, warnings=warnings)


def addresses_by_mac(interfaces: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the addresses at which other machines may reach each interface that has a MAC address."""
    found: dict[str, list[str]] = {}
    for interface in interfaces:
        mac = str(expect(interface, dict, "a network interface").get("hardware_address", "")).lower()
        if mac.strip("0:"):  # the loopback interface's consists of zeros
            entries = expect(interface.get("ip_addresses", []), list, "ip_addresses")
            found.setdefault(mac, []).extend(filter(_is_reachable, map(_address, entries)))
    return found


def _address(entry: Any) -> str:
    return str(expect(entry, dict, "an IP address").get("ip_address", ""))


def _is_reachable(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local)


OPERATION = Operation(SPEC, read, plan, executor=GuestExec)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
