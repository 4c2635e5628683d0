# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: qga
author: The qemu.guest authors (!UNKNOWN)
short_description: Find the guests of QEMU, libvirt, Proxmox VE and Ganeti
version_added: 0.1.0
description:
  - Finds the guests of this machine and of others, and what is known of each, and gives them the variables by which
    the connection P(qemu.guest.qga#connection) reaches them.
  - Another machine with guests needs nothing but an SSH server and C(sh). Nothing is installed there, and nothing
    changed.
  - It reads files whose names end in C(.qga.yml) or C(.qga.yaml). A file with nothing in it but C(plugin) finds the
    guests of this machine.
  - Every guest that may be up is asked whether its agent answers, all at the same time. O(gather) asks more.
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
options:
  plugin:
    description: Says that a file is for this plugin.
    type: str
    required: true
    choices: [qemu.guest.qga]
  hypervisors:
    description:
      - The machines whose guests to find. V(localhost) is the one that runs Ansible.
      - Each is the name of a host of an inventory source that was read before, or of a group of such hosts, or else a
        destination of C(ssh) such as V(root@hv1.example.com). The variables of a host say how C(ssh) reaches it.
      - All are asked at the same time. One that does not answer is named in a warning.
    type: list
    elements: str
    default: [localhost]
    env:
      - name: ANSIBLE_QGA_INVENTORY_HYPERVISORS
    ini:
      - section: qga_inventory
        key: hypervisors
  sources:
    description:
      - Where to look on each machine.
      - V(process) takes the guest's name, its UUID and the sockets of its agent and its QMP monitor from the command
        lines of running QEMUs.
      - V(proxmox) knows guests of Proxmox VE by their sockets and, where they can be read (by root), by their
        configurations, which also name those that are off.
      - V(ganeti) knows instances of Ganeti by their sockets.
      - V(sockets) is the option O(sockets), and V(libvirt) the option O(libvirt_uris). Without them in this list, those
        options have no effect.
      - A guest that is found in several ways is one host.
      - With an empty list, nothing is found. The connection is loaded for all tasks at once, as this plugin always
        does; so such a file makes tasks faster whose hosts are those of another inventory.
    type: list
    elements: str
    choices: [process, proxmox, ganeti, sockets, libvirt]
    default: [process, proxmox, ganeti, sockets, libvirt]
  sockets:
    description:
      - Absolute paths of more agents' sockets, on each of the O(hypervisors). They may have wildcards, as in a shell.
      - The name of such a guest is that of its socket, without what says that it is one (V(/run/vm1.qga) is C(vm1)),
        or that of the directory if the socket is called C(agent.sock), C(qga.sock) or the like.
    type: list
    elements: str
    default: []
  libvirt_uris:
    description:
      - The libvirts whose domains to find, such as V(qemu:///system) or V(qemu+ssh://root@hv1/system). It needs
        libvirt's Python library in the Python that runs Ansible (package C(python3-libvirt)).
      - By default it is what E(LIBVIRT_DEFAULT_URI) says, or V(qemu:///system) if that is there, if O(hypervisors)
        has this machine and the library is installed.
      - The libvirt of another machine of O(hypervisors) need not be named. Its socket comes through the same C(ssh) as
        those of all other guests there.
    type: list
    elements: str
  gather:
    description:
      - What to ask of the agents that answer. What one does not know or allow is left out.
      - V(agent) becomes C(qga_agent), a dictionary with its C(version) and the names of its C(commands) and of those
        that are C(disabled).
      - V(hostname) becomes C(qga_hostname), a string, and V(fsfreeze_status) C(qga_fsfreeze_status), V(frozen) or
        V(thawed).
      - V(addresses) becomes C(qga_addresses), the IP addresses at which others may reach the guest, as a list.
        Loopback and link-local addresses are not among them.
      - V(osinfo), V(timezone) and V(load) become C(qga_osinfo), C(qga_timezone) and C(qga_load), dictionaries;
        V(interfaces), V(users), V(vcpus), V(fsinfo) and V(disks) become lists of dictionaries; V(time) a number. They
        are what M(qemu.guest.qga_info) returns.
    type: list
    elements: str
    choices:
      - addresses
      - agent
      - disks
      - fsfreeze_status
      - fsinfo
      - hostname
      - interfaces
      - load
      - osinfo
      - time
      - timezone
      - users
      - vcpus
    default: []
  hostnames:
    description:
      - What to call a guest, in the order of preference. The first that it has, and that is safe as the name of a
        host, is it. After these come its name and its UUID.
      - V(name), V(uuid) and V(vmid) are what its hypervisor says; V(hostname) and V(address) what the guest says
        itself, its host name and its first IPv4 address. Everything else is a Jinja2 expression.
      - A safe name has letters, digits, C(_), C(.) and C(-), begins with one of the first two, and means nothing
        else; it is no group, no hypervisor and not C(localhost). Spaces become C(_). A guest cannot give itself the
        name of a host of another inventory source.
      - Guests that would have the same name are told apart by their hypervisor, the beginning of their UUID, or their
        number, and a warning says so.
    type: list
    elements: str
    default: [name, uuid]
  filters:
    description:
      - Jinja2 expressions. A guest becomes a host only if all of them are true for it.
      - Guests that are left out because of nothing but what hypervisors say (C(qga_name), C(qga_tags), C(qga_user) and
        the like) are not even asked.
    type: list
    elements: str
    default: []
  exclude:
    description: Jinja2 expressions. A guest is left out if any of them is true for it.
    type: list
    elements: str
    default: []
  include_silent:
    description: Whether guests whose agents do not answer become hosts, too. Their C(qga_state) says so.
    type: bool
    default: true
  timeout:
    description: Seconds that asking one guest may take, with everything of O(gather).
    type: float
    default: 5
    env:
      - name: ANSIBLE_QGA_INVENTORY_TIMEOUT
    ini:
      - section: qga_inventory
        key: timeout
  hypervisor_timeout:
    description: Seconds that looking at one hypervisor, or one libvirt, may take.
    type: float
    default: 20
    env:
      - name: ANSIBLE_QGA_INVENTORY_HYPERVISOR_TIMEOUT
    ini:
      - section: qga_inventory
        key: hypervisor_timeout
  proxmox_run_dir:
    description: Where Proxmox VE has the sockets of its guests.
    type: str
    default: /var/run/qemu-server
  proxmox_config_dir:
    description: Where Proxmox VE has its configuration.
    type: str
    default: /etc/pve
  ganeti_run_dir:
    description: Where Ganeti has its sockets.
    type: str
    default: /var/run/ganeti
notes:
  - Each host has C(qga_state). It is V(answers); V(silent), where the agent should be there and does not answer
    (C(qga_reason) says more); V(no_agent), where the guest has no channel for one, or libvirt knows that none is
    connected; or V(off).
  - The other variables are C(qga_name), C(qga_uuid), C(qga_vmid) (a string), C(qga_hypervisor), C(qga_source),
    C(qga_user) (who runs the QEMU), C(qga_tags) (a list) and C(qga_qmp_address). They are always there, and empty if
    nothing is known.
  - All texts come from others, and none is ever a template or run, whatever it looks like. Control characters in them
    become visible, long ones are shortened.
  - The command line of a process may be anybody's on its machine who may start processes there. Where users are not
    trusted, say whose guests count, as in C(qga_user in ('root', 'libvirt-qemu'\)).
  - A guest chooses its host name and all that O(gather) asks. A group that is made of that can have any guest in it,
    so give such groups a C(prefix) of their own.
  - Asking takes the agent's only seat for some milliseconds. A guest whose agent serves another client until
    O(timeout) is silent.
seealso:
  - plugin: qemu.guest.qga
    plugin_type: connection
  - module: qemu.guest.qga_info
"""

EXAMPLES = r"""
---
# guests.qga.yml: all guests of this machine. Try it with: ansible-inventory -i guests.qga.yml --graph
plugin: qemu.guest.qga
---
# Those of two other machines, reached by ssh, with groups by operating system (os_debian) and by hypervisor.
plugin: qemu.guest.qga
hypervisors: [root@hv1.example.com, root@hv2.example.com]
gather: [osinfo, addresses]
keyed_groups:
  - {key: qga_osinfo.id, prefix: os}
  - {key: qga_hypervisor, prefix: at}
compose:
  first_address: qga_addresses | first
---
# The machines of the group hypervisors of another source, with how ssh reaches them:
# ansible-inventory -i hosts.yml -i guests.qga.yml --list
plugin: qemu.guest.qga
hypervisors: [hypervisors]
# Guests that answer and are root's, and not those whose Proxmox tag says that they are left alone.
include_silent: false
filters: ["qga_user in ('', 'root')"]
exclude: ["'manual' in qga_tags"]
groups:
  web: "'web' in qga_tags"
---
# Only the domains of two libvirts, called by their own host names.
plugin: qemu.guest.qga
sources: [libvirt]
libvirt_uris: ["qemu:///system", "qemu+ssh://root@hv1.example.com/system"]
hostnames: [hostname, name, uuid]
---
# Sockets in places of one's own, with what was found kept for ten minutes.
plugin: qemu.guest.qga
sources: [sockets]
sockets: [/srv/vms/*/agent.sock, /run/vm-*.qga]
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/ansible-inventory
cache_timeout: 600
---
# Nothing. It stands beside another inventory and makes tasks faster: they find the connection loaded.
# ansible-playbook -i hosts.yml -i load.qga.yml site.yml
plugin: qemu.guest.qga
sources: []
"""

import hashlib
import ipaddress
import json
import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.helpers import get_group_vars
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.template import Templar
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

from ansible_collections.qemu.guest.plugins.plugin_utils._bytecode import kept_bytecode

with kept_bytecode():
    from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import QgaError
    from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.find import find_hypervisor
    from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor
    from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.find import Findings, Wishes, find
    from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guarded_inventory import GuardedInventory
    from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import ANSWERS, HERE, QEMU_USERS, Guest
    from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.libvirt_domains import default_uris
    from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.machine import Places
    from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.names import Taken, Wish, distinct, first_safe
    from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import line
    from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.variables import host_variables
    from ansible_collections.qemu.guest.plugins.plugin_utils._load_ahead import load_ahead

_CACHE_FORMAT = 1
# Names that guests give themselves, and what has to be gathered for them.
_OWN_NAMES = {"hostname": "hostname", "address": "addresses"}
_NAMES = ("name", "uuid", "vmid")
_SAID_BY_HYPERVISORS = [f"qga_{name}" for name in (*_NAMES, "hypervisor", "qmp_address", "source", "tags", "user")]


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Finds guests. What is found, and how, is in plugin_utils/_inventory; this is what ansible-core sees of it."""

    NAME = "qemu.guest.qga"
    inventory: Any

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith((".qga.yml", ".qga.yaml", "/qga.yml", "/qga.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._complained: set[str] = set()
        config = self._read_config_data(path)
        # ansible-core ignores them; but a misspelt ``exclude`` leaves nobody out.
        for option in sorted(map(str, set(config) - set(self.option_definitions))):
            self._warn(f"there is no option {line(option, 100)}")
        self._check()
        self._strict = self.get_option("strict")
        self._is_complete = True
        self._machines: set[str] = set()  # names of hypervisors, which no guest gets
        machines = self._hypervisors()
        guests = self._guests(path, machines, cache)
        kept = [guest for guest in guests if self._is_wanted(guest)]
        self._add(kept, self._named(kept))
        load_ahead()

    def _warn(self, text: str) -> None:
        """Warn, once."""
        if text not in self._complained:
            self._complained.add(text)
            self.display.warning(f"{self.NAME}: {text}")

    def _check(self) -> None:
        """Refuse what makes no sense.

        :raise AnsibleParserError: naming the option.
        """
        for option in (name for name, each in self.option_definitions.items() if each.get("elements") == "str"):
            for value in self.get_option(option) or ():
                if not isinstance(value, str):
                    raise AnsibleParserError(f"{option}: {value!r} should be a text; put it in quotes.")
        for option in ("timeout", "hypervisor_timeout"):
            if not 0 < self.get_option(option) < 86400:
                raise AnsibleParserError(f"{option} should be a number of seconds that is more than 0.")
        for path in (*self.get_option("sockets"), *map(self.get_option, _DIRECTORIES)):
            if not path.startswith("/") or "\0" in path:
                raise AnsibleParserError(f"{path!r} should be an absolute path.")
        for name in self.get_option("hypervisors"):
            if name.startswith("-") or name != line(name) or not name.strip():
                raise AnsibleParserError(f"hypervisors: {name!r} is neither a host nor a destination of ssh.")

    # Looking

    def _hypervisors(self) -> dict[str, Hypervisor | None]:
        """Return the machines to look at, each once, by name; None is this one."""
        found: dict[str, Hypervisor | None] = {}
        identities = set()
        for entry in self.get_option("hypervisors"):
            group = self.inventory.groups.get(entry)
            for name in [host.name for host in group.get_hosts()] if group else [entry]:
                self._machines |= {name, name.rpartition("@")[2]}
                try:
                    machine = find_hypervisor(line(name), self._variables_of(name))
                except QgaError as exc:
                    self._is_complete = False
                    self._warn(f"the guests of {line(name)} are missing: {exc}")
                    continue
                identity = machine.identity if machine else ""
                if identity not in identities:
                    identities.add(identity)
                    found[line(name) if machine else HERE] = machine
        return found

    def _variables_of(self, name: str) -> dict[str, Any] | None:
        """Return the variables of a host of an earlier source that matter to connections, with templates done."""
        host = self.inventory.hosts.get(name)
        if host is None:
            return None
        sources = getattr(self.inventory, "processed_sources", [])
        variables = get_group_vars(host.get_groups())
        for entities in (host.get_groups(), [host]):
            variables = combine_vars(variables, get_vars_from_inventory_sources(self.loader, sources, entities, "all"))
        variables = combine_vars(variables, {**host.get_vars(), "inventory_hostname": host.name})
        variables = combine_vars(variables, self._vars or {})  # -e
        templar = Templar(loader=self.loader, variables=variables)
        done = {}
        for key in (key for key in variables if key.startswith("ansible_")):
            try:
                done[key] = templar.template(variables[key])
            except AnsibleError as exc:
                self._warn(f"{line(name)}: {key} is left out: {line(str(exc), 300)}")
        return done

    def _guests(self, path: str, machines: Mapping[str, Hypervisor | None], cache: bool) -> list[Guest]:
        """Return the guests, from the cache if it has them and may be read."""
        wishes = self._wishes(machines)
        kept = self.get_option("cache")
        # Who is left out early is not in the cache either, and that may depend on -e.
        extra = self._vars if self.get_option("use_extra_vars") else None
        key = f"{self.get_cache_key(path)}_{_digest(wishes, *map(self.get_option, ('filters', 'exclude')), extra)}"
        if kept and cache:
            with suppress(AnsibleError, KeyError, ValueError, TypeError):  # AnsibleError: the file was damaged
                data = self._cache[key]
                if data["format"] == _CACHE_FORMAT:
                    return [Guest.from_plain(each) for each in data["guests"]]
        findings: Findings = find(wishes)
        for text in findings.warnings:
            self._warn(text)
        if (
            kept and findings.complete and self._is_complete
        ):  # else those that are missing now would be missing for long
            self._cache[key] = {"format": _CACHE_FORMAT, "guests": [guest.plain() for guest in findings.guests]}
        return findings.guests

    def _wishes(self, machines: Mapping[str, Hypervisor | None]) -> Wishes:
        gather = list(self.get_option("gather"))
        gather += [_OWN_NAMES[name] for name in self.get_option("hostnames") if name in _OWN_NAMES]
        uris = self.get_option("libvirt_uris")
        if uris is None:
            uris = default_uris() if None in machines.values() else []
        return Wishes(
            machines,
            tuple(self.get_option("sources")),
            tuple(self.get_option("sockets")),
            tuple(map(line, uris)),
            tuple(dict.fromkeys(gather)),
            self.get_option("timeout"),
            self.get_option("hypervisor_timeout"),
            Places("/proc", *(self.get_option(option) for option in _DIRECTORIES)),
            lambda guest: self._passes(guest, early=True),
        )

    # Choosing and naming

    def _is_wanted(self, guest: Guest) -> bool:
        """Return whether the guest becomes a host."""
        return (guest.state == ANSWERS or self.get_option("include_silent")) and self._passes(guest)

    def _passes(self, guest: Guest, early: bool = False) -> bool:
        """Return whether expressions let the guest through; early, those that need no answer of its agent."""
        variables = host_variables(guest)
        for option, passing in (("filters", True), ("exclude", False)):
            for expression in self.get_option(option):
                if early and not _is_known_early(expression):
                    continue
                if self._holds(option, expression, variables, guest) is not passing:
                    return False
        return True

    def _holds(self, option: str, expression: str, variables: dict[str, Any], guest: Guest) -> bool:
        """Return whether an expression is true; one that fails is not.

        :raise AnsibleParserError: if one fails, and ``strict`` is on.
        """
        if self.get_option("use_extra_vars"):
            variables = combine_vars(variables, self._vars or {})
        self.templar.available_variables = variables
        try:
            if hasattr(self.templar, "evaluate_expression"):  # from ansible-core 2.19 on
                return bool(self.templar.evaluate_expression(expression))
            return boolean(self.templar.template(f"{{% if {expression} %}}True{{% else %}}False{{% endif %}}"))
        except Exception as exc:  # ansible-core raises errors of many kinds here
            if self._strict:
                raise AnsibleParserError(f"{option}: {expression!r} for {guest.label}: {line(str(exc), 300)}") from exc
            self._warn(f"{option}: {line(expression, 200)} is false for some guests: {line(str(exc), 300)}")
            return False

    def _named(self, guests: Sequence[Guest]) -> list[str]:
        """Return a safe name for each guest, and a different one. A guest that is a host already keeps its name."""
        hosts = self.inventory.hosts
        ours = {name: host.vars for name, host in hosts.items() if "qga_state" in host.vars}
        known = {(each.get("ansible_qga_address"), each.get("qga_hypervisor")): name for name, each in ours.items()}
        groups = {*self.inventory.groups, *map(self._sanitize_group_name, self.get_option("groups") or {})}
        taken = Taken(frozenset({*groups, *self._machines, *ours}), frozenset(hosts))
        wishes = []
        for guest in guests:
            name = known.get((guest.address, guest.hypervisor))
            wishes.append(Wish(name) if name else first_safe(guest, list(self._wishes_of(guest)), taken, self._warn))
        return distinct(guests, wishes, taken, self._warn)

    def _wishes_of(self, guest: Guest) -> Iterable[Wish]:
        """Yield the names that ``hostnames`` has for a guest."""
        counts = _counts(guest)
        for word in dict.fromkeys((*self.get_option("hostnames"), "name", "uuid")):
            if word in _NAMES:
                text, own = getattr(guest, word), not counts
            elif word in _OWN_NAMES:
                text, own = _own_name(word, guest), True
            else:
                text = self._expression(word, host_variables(guest), guest)
                # Whether it depends on what the guest says shows without that.
                other = self._expression(word, host_variables(guest, with_facts=False), guest, quietly=True)
                own = text != other or not counts
            if text:
                yield Wish(line(text, 300), own)

    def _expression(self, expression: str, variables: dict[str, Any], guest: Guest, quietly: bool = False) -> str:
        """Return the text that an expression of ``hostnames`` yields; empty if it yields nothing or fails."""
        try:
            value = self._compose(expression, variables)
        except Exception as exc:  # as in _holds
            if self._strict and not quietly:
                raise AnsibleParserError(f"hostnames: {expression!r} for {guest.label}: {line(str(exc), 300)}") from exc
            return ""
        return "" if value is None or isinstance(value, (bool, list, dict)) else str(value)

    # Telling ansible-core

    def _add(self, guests: Sequence[Guest], names: Sequence[str]) -> None:
        """Add the hosts, then what is composed for them: by then it is known which names are hosts'."""
        every = [host_variables(guest) for guest in guests]
        for name, variables in zip(names, every, strict=True):
            self.inventory.add_host(name)
            for key, value in variables.items():
                self.inventory.set_variable(name, key, value)
        inventory, self.inventory = self.inventory, GuardedInventory(self.inventory, self._warn)
        try:
            for name, variables in zip(names, every, strict=True):
                self._construct(name, variables)
        finally:
            self.inventory = inventory

    def _construct(self, name: str, variables: dict[str, Any]) -> None:
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=self._strict)
        for option, construct in (
            ("groups", self._add_host_to_composed_groups),
            ("keyed_groups", self._add_host_to_keyed_groups),
        ):
            try:
                construct(self.get_option(option), variables, name, strict=self._strict)
            except AnsibleError as exc:
                if self._strict:
                    raise
                self._warn(f"{option} for {name}: {line(str(exc), 300)}")


_DIRECTORIES = ("proxmox_run_dir", "proxmox_config_dir", "ganeti_run_dir")


def _is_known_early(expression: str) -> bool:
    """Return whether an expression is about nothing but what hypervisors say: then guests need not be asked first."""
    words = set(re.findall(r"\w+", expression))
    return "vars" not in words and all(word in _SAID_BY_HYPERVISORS for word in words if word.startswith("qga_"))


def _counts(guest: Guest) -> bool:
    """Return whether the name of a guest is an administrator's: anybody can start a process that is called so."""
    users = {*QEMU_USERS} if guest.remote else {*QEMU_USERS, _me()}
    return guest.source != "process" or guest.user in users


def _me() -> str:
    with suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return "root"


def _own_name(word: str, guest: Guest) -> str:
    """Return the guest's host name, or its first IPv4 address, as it says itself."""
    if word == "hostname":
        return str(guest.facts.get("hostname") or "")
    addresses = guest.facts.get("addresses") or []
    return next((text for text in addresses if isinstance(ipaddress.ip_address(text), ipaddress.IPv4Address)), "")


def _digest(wishes: Wishes, *more: Any) -> str:
    """Return what tells apart caches of one file with other options."""
    options = [sorted(wishes.hypervisors), wishes.sources, wishes.sockets, wishes.libvirt_uris, wishes.gather]
    return hashlib.sha256(json.dumps([*options, astuple(wishes.places), *more], default=str).encode()).hexdigest()[:8]
