# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask guests' agents: whether they answer, and what they say. Each guest has one deadline for all of it."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    ChannelBusyError,
    CommandError,
    ConnectError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import with_underscores
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import ANSWERS, OFF, SILENT, Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.parallel import in_parallel
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import bounded, line

__all__ = ("GATHER", "Outcome", "ask", "ask_all")

# For the few waits that a deadline does not cover: closing, libvirt's grace.
_GRACE_SECONDS = 2.0
# At most so many guests are asked at a time, and fewer where the system allows few open files, of which each takes two.
_MOST_THREADS = 256
_OTHER_FILES = 128
# libvirt's daemon serves 20 clients that have not logged in yet.
_AT_LIBVIRT = threading.BoundedSemaphore(16)

Fact = Callable[[Any], Any]


def _records(value: Any) -> list[dict[str, Any]]:
    """Return the dictionaries in a list, if it is one: agents may send anything."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _agent(info: Any) -> Any:
    listed = _records(info.get("supported_commands"))
    return {
        "version": info.get("version", ""),
        "commands": [each.get("name") for each in listed if each.get("enabled") is True],
        "disabled": [each.get("name") for each in listed if each.get("enabled") is not True],
    }


def _addresses(interfaces: Any) -> list[str]:
    """Return the addresses at which other machines may reach the guest, in the order of its interfaces."""
    entries = [entry for interface in _records(interfaces) for entry in _records(interface.get("ip_addresses"))]
    found = [_reachable(entry.get("ip_address")) for entry in entries]
    return [address for address in found if address]


def _reachable(text: Any) -> str:
    """Return the address as Python writes it; empty if it is none, or means something in the guest only."""
    try:
        address = ipaddress.ip_address(str(text).partition("%")[0])
    except ValueError:
        return ""
    return "" if address.is_loopback or address.is_link_local else str(address)


def _as_it_is(value: Any) -> Any:
    return value


GATHER: Mapping[str, tuple[str, Fact]] = {
    "agent": ("guest-info", _agent),
    "osinfo": ("guest-get-osinfo", _as_it_is),
    "hostname": ("guest-get-host-name", lambda value: value.get("host_name", "")),
    "addresses": ("guest-network-get-interfaces", _addresses),
    "interfaces": ("guest-network-get-interfaces", _as_it_is),
    "users": ("guest-get-users", _as_it_is),
    "timezone": ("guest-get-timezone", _as_it_is),
    "time": ("guest-get-time", _as_it_is),
    "vcpus": ("guest-get-vcpus", _as_it_is),
    "fsinfo": ("guest-get-fsinfo", _as_it_is),
    "disks": ("guest-get-disks", _as_it_is),
    "load": ("guest-get-load", _as_it_is),
    "fsfreeze_status": ("guest-fsfreeze-status", _as_it_is),
}
"""What can be gathered: the agent's command, and what becomes of its answer."""


class Outcome(NamedTuple):
    """What became of asking: the state, why the guest is silent, what it said, and what it did not say."""

    state: str
    reason: str
    facts: Mapping[str, Any]
    missing: str = ""


def ask_all(
    guests: Sequence[Guest], gather: Sequence[str], timeout: float, machines: Mapping[str, Hypervisor | None]
) -> None:
    """Ask all ``guests`` at the same time, and set their states. ``machines``: the hypervisors, by name."""
    asked = [guest for guest in guests if guest.is_asked]
    outcomes = in_parallel(
        lambda guest: ask(guest, gather, timeout, machines.get(guest.hypervisor)),
        asked,
        timeout + _GRACE_SECONDS,
        threads=max(1, min(_MOST_THREADS, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES) // 2)),
    )
    for guest, outcome in zip(asked, outcomes, strict=True):
        if isinstance(outcome, Outcome):
            guest.state, guest.reason, facts, missing = outcome
            guest.facts = dict(facts)
            guest.reason = guest.reason or missing
        else:
            guest.state = SILENT
            guest.reason = line(f"{outcome}", 300) if outcome else f"no answer within {timeout:g} s"


def ask(guest: Guest, gather: Sequence[str], timeout: float, machine: Hypervisor | None) -> Outcome:
    """Return whether the guest's agent answers, and what it says. At least it answers a sync and a ping."""
    deadline = Deadline(timeout)
    if not guest.address.startswith("libvirt:"):
        return _ask(guest, gather, deadline, machine)
    turn = _AT_LIBVIRT.acquire(timeout=deadline.left())
    try:
        return _ask(guest, gather, deadline, machine)
    finally:
        if turn:
            _AT_LIBVIRT.release()


def _ask(guest: Guest, gather: Sequence[str], deadline: Deadline, machine: Hypervisor | None) -> Outcome:
    try:
        with _opened(guest, _left(deadline), machine) as agent:
            with suppress(CommandError):  # an agent that refuses answers
                agent.execute("guest-ping", timeout=_left(deadline))
            facts, missing = _facts(agent, gather, deadline)
    except ConnectError as exc:
        is_off = not isinstance(exc, (AgentSilentError, ChannelBusyError)) and _is_off(guest)
        return Outcome(OFF, "", {}) if is_off else Outcome(SILENT, _why(exc), {})
    except QgaError as exc:
        return Outcome(SILENT, _why(exc), {})
    return Outcome(ANSWERS, "", facts, missing)


def _opened(guest: Guest, timeout: float, machine: Hypervisor | None) -> Agent:
    """Return the guest's agent, as the connection opens it: what that keeps open is used."""
    uri = guest.libvirt_uri or None
    if not machine or uri:
        return open_agent(guest.address, timeout, libvirt_uri=uri)
    if guest.address.startswith("libvirt:"):
        return open_agent(guest.address, timeout, forward=machine.forward)
    return open_agent(machine.address(guest.address), timeout, connect=machine.connector)


def _left(deadline: Deadline) -> float:
    """Return the seconds left, as a number that messages can show."""
    return max(round(deadline.left(), 1), 0.1)


def _facts(agent: Agent, gather: Sequence[str], deadline: Deadline) -> tuple[dict[str, Any], str]:
    """Return what the agent says, and which of it is missing because contact was lost or the answers were wrong."""
    answers: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    missing = []
    for name in gather:
        command, fact = GATHER[name]
        try:
            if command not in answers:
                answers[command] = with_underscores(agent.execute(command, timeout=_left(deadline)))
            facts[name] = bounded(fact(answers[command]))
        except CommandError:
            continue  # this agent does not know or allow it
        except QgaError as exc:
            missing.append(f"{name} ({_why(exc)})")
    return facts, f"it did not tell: {', '.join(missing)}" if missing else ""


def _why(exc: QgaError) -> str:
    """Return the error's message, to be a part of a sentence."""
    return line(exc.message, 300).rstrip(".")


def _is_off(guest: Guest) -> bool:
    """Return whether a guest whose socket cannot be connected to does not run: nobody listens there."""
    if guest.pid:
        return False
    if guest.remote:
        return not guest.listens
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(0)
        try:
            return sock.connect_ex(guest.address) in (errno.ECONNREFUSED, errno.ENOENT)
        except OSError:
            return False
