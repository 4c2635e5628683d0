# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of hosts: which are safe, and how guests of one name are told apart. Pure."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import printable
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import Guest

__all__ = ("Taken", "Wish", "distinct", "first_safe", "why_unsafe")

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")
_RESERVED = re.compile(
    r"all|ungrouped|localhost([46]|\..*)?|ip6-localhost|ip6-loopback|127\..*|0\.0\.0\.0", re.IGNORECASE
)

Warn = Callable[[str], None]


class Taken(NamedTuple):
    """Names that no guest gets: of groups, hypervisors and other guests; and names that no guest can give itself.

    ``hosts`` are those of other inventory sources. A hypervisor's name of a guest may be one of them, which adds our
    variables to it; but with a host name of its choice, a guest would get what is meant for another host.
    """

    names: frozenset[str]
    hosts: frozenset[str]


class Wish(NamedTuple):
    """A name that a guest might get. ``own``: the guest itself says so, or a process of no user that counts."""

    name: str
    own: bool = False


def why_unsafe(wish: Wish, taken: Taken) -> str:
    """Return why a name cannot be a host's; empty if it can."""
    name = wish.name
    if not _SAFE.fullmatch(name):
        return "a host's name has letters, digits, '_', '.' and '-', and begins with one of the first two"
    if _RESERVED.fullmatch(name):
        return "the name is reserved"
    if name in taken.names or (wish.own and name in taken.hosts):
        return "a group, a hypervisor or a host of another inventory source has this name"
    return ""


def first_safe(guest: Guest, wishes: Sequence[Wish], taken: Taken, warn: Warn) -> Wish:
    """Return the first of ``wishes`` that is safe; if none is, a name made from what identifies the guest."""
    for wish in wishes:
        safe = wish._replace(name=wish.name.strip().replace(" ", "_"))
        reason = why_unsafe(safe, taken)
        if not reason:
            return safe
        warn(f"{printable(guest.label, 200)}: not named {printable(repr(wish.name), 200)}: {reason}")
    return Wish(next(_by_digest(guest)))


def _by_digest(guest: Guest) -> Iterator[str]:
    """Yield names made from what identifies the guest, without end: there may be others that say the same of them."""
    what = guest.uuid or guest.address or guest.pid
    text = f"{guest.hypervisor}\n{what}\n{guest.name}"
    while True:
        yield f"guest-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        text += "\n"


def distinct(guests: Sequence[Guest], wishes: Sequence[Wish], taken: Taken, warn: Warn) -> list[str]:
    """Return a name for each guest, all different. Of several that wish for one, none gets it as it is.

    If it is the hypervisor's name of one of them, and the others gave it to themselves, that one gets it.
    """
    places: dict[str, list[int]] = {}
    for place, wish in enumerate(wishes):
        places.setdefault(wish.name, []).append(place)
    used = {*taken.names, *taken.hosts, *places}
    result = [wish.name for wish in wishes]
    for name, there in sorted(places.items()):
        owners = [place for place in there if not wishes[place].own]
        renamed = [place for place in there if owners != [place]] if len(there) > 1 else []
        for place in renamed:
            alike = [guests[other] for other in there]
            candidates = (f"{name}-{suffix}" for suffix in _suffixes(guests[place], alike))
            result[place] = next(
                each
                for each in itertools.chain(candidates, _by_digest(guests[place]))
                if each not in used and not why_unsafe(Wish(each), taken)
            )
            used.add(result[place])
        if renamed:
            new = ", ".join(result[place] for place in there)
            warn(f"{len(there)} guests are called {name}; they are {new} here")
    return result


def _suffixes(guest: Guest, alike: Sequence[Guest]) -> Iterator[str]:
    """Yield what tells ``guest`` apart from the others ``alike``, the best first."""
    for value in (
        lambda one: re.sub(r"[^A-Za-z0-9_.-]+", "_", one.hypervisor.rpartition("@")[2]),
        lambda one: one.uuid[:8],
        lambda one: one.vmid,
        lambda one: one.pid,
        lambda one: next(_by_digest(one)).removeprefix("guest-"),
    ):
        mine = value(guest)
        if mine and [value(other) for other in alike].count(mine) == 1:
            yield mine
