# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find all guests: every hypervisor and every libvirt at the same time, then every agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import THREADS
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.ask import ask_all
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import SILENT, Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.libvirt_domains import (
    domains,
    domains_of,
    hypervisor_of,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.machine import Places, View, look
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.merge import merged
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.parallel import end_children_of_threads, in_parallel
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.processes import (
    guests_of_processes,
    guests_of_sockets,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.proxmox import guests_of_proxmox
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import line

__all__ = ("BY_SHELL", "Findings", "Wishes", "find")

BY_SHELL = ("process", "proxmox", "ganeti", "sockets")
"""The sources that look.sh reads."""

_GRACE_SECONDS = 2.0
_NAMED = 10  # guests in one warning


@dataclass(frozen=True)
class Wishes:
    """What to look for, and how long. ``hypervisors``: by name; None is this machine.

    A guest for which ``wanted`` is false is not asked, and not among the findings.
    """

    hypervisors: Mapping[str, Hypervisor | None]
    sources: Sequence[str]
    sockets: Sequence[str] = ()
    libvirt_uris: Sequence[str] = ()
    gather: Sequence[str] = ()
    timeout: float = 5.0
    hypervisor_timeout: float = 20.0
    places: Places = field(default_factory=Places)
    wanted: Callable[[Guest], bool] = lambda guest: True


@dataclass
class Findings:
    """What was found. ``complete``: every hypervisor and libvirt has answered."""

    guests: list[Guest] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    complete: bool = True

    def miss(self, what: str, why: str) -> None:
        """Note what is missing."""
        self.complete = False
        self.warnings.append(f"{line(what, 200)} are missing: {line(why, 400)}")


def find(wishes: Wishes) -> Findings:
    """Return all guests, with their states, in an order that is always the same."""
    findings = Findings()
    try:
        found = list(_looked(wishes, findings))
        findings.guests = list(filter(wishes.wanted, merged(found, findings.warnings.append)))
        ask_all(findings.guests, wishes.gather, wishes.timeout, wishes.hypervisors)
    finally:
        end_children_of_threads(THREADS)
    findings.guests.sort(key=lambda guest: (guest.hypervisor, guest.name, guest.uuid, guest.address, guest.pid))
    findings.warnings += _about(findings.guests)
    return findings


def _looked(wishes: Wishes, findings: Findings) -> Iterable[Guest]:
    """Yield what every machine and every libvirt has, and note which did not answer."""
    jobs: list[tuple[str, Callable[[], Iterable[Guest]]]] = []
    for name, machine in wishes.hypervisors.items():
        if machine or set(wishes.sources) & set(BY_SHELL):
            jobs.append((name, partial(_on, name, machine, wishes, findings)))
    for uri in wishes.libvirt_uris if "libvirt" in wishes.sources else ():
        where = hypervisor_of(uri, list(wishes.hypervisors))
        jobs.append((uri, partial(domains, uri, where, wishes.hypervisor_timeout)))
    results = in_parallel(lambda job: list(job[1]()), jobs, wishes.hypervisor_timeout + _GRACE_SECONDS)
    for (name, _job), result in zip(jobs, results, strict=True):
        if isinstance(result, list):
            yield from result
            continue
        late = f"no answer within {wishes.hypervisor_timeout:g} s"
        why = result.message if isinstance(result, ConnectError) else f"{result!r}" if result else late
        findings.miss(f"the guests of {name}", why)


def _on(name: str, machine: Hypervisor | None, wishes: Wishes, findings: Findings) -> Iterable[Guest]:
    """Yield the guests of one machine, and note if some of them are missing.

    :raise ConnectError: if it cannot be looked at.
    """
    deadline = Deadline(wishes.hypervisor_timeout)
    sources = [source for source in wishes.sources if source in BY_SHELL]
    view = look(machine, sources, wishes.sockets, wishes.places, deadline.seconds)
    if not view.whole:
        findings.miss(f"some guests of {name}", "not all that it told has come")
    yield from _guests(view, name, machine is not None)
    if machine and "libvirt" in wishes.sources:
        try:
            yield from domains_of(machine, name, view.listening, max(deadline.left(), _GRACE_SECONDS / 2))
        except ConnectError as exc:
            findings.miss(f"the domains of {name}", exc.message)


def _guests(view: View, name: str, remote: bool) -> Iterable[Guest]:
    for kind in (guests_of_proxmox, guests_of_processes, guests_of_sockets):
        for guest in kind(view, name, remote):
            guest.listens = guest.address in view.listening or guest.socket in view.listening
            yield guest


def _about(guests: Sequence[Guest]) -> Iterable[str]:
    """Yield a warning for the guests that are silent, and one for those that did not tell all, with reasons."""
    for what, concerned in (
        ("no answer from", [guest for guest in guests if guest.state == SILENT]),
        ("not all answers from", [guest for guest in guests if guest.state != SILENT and guest.reason]),
    ):
        if concerned:
            some = "; ".join(f"{guest.label}: {guest.reason}" for guest in concerned[:_NAMED])
            more = f"; and {len(concerned) - _NAMED} more" if len(concerned) > _NAMED else ""
            yield f"{what} {len(concerned)} guest{'s' if len(concerned) > 1 else ''}: {some}{more}"
