# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hotplug: choose which processors or memory blocks of a guest to take online or offline."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, ProtocolError
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect

__all__ = (
    "CONSTRAINTS",
    "SPEC",
    "Switches",
    "Unit",
    "apply_switches",
    "choose",
    "described",
    "listed",
    "units",
    "wrongly",
)

SPEC: dict[str, dict[str, Any]] = {
    "online": {"type": "list", "elements": "int"},
    "offline": {"type": "list", "elements": "int"},
    "count": {"type": "int"},
}
CONSTRAINTS: dict[str, Any] = {
    "mutually_exclusive": [("count", "online"), ("count", "offline")],
    "required_one_of": [("count", "online", "offline")],
}


class Unit(NamedTuple):
    """A processor or memory block, as the agent describes it."""

    number: int
    online: bool
    can_offline: bool


class Switches(NamedTuple):
    """The switches to make: pairs of a number and whether it should be online, in order.

    ``needed`` of them must succeed; the others are spares in case one cannot be switched.
    """

    candidates: Sequence[tuple[int, bool]] = ()
    needed: int = 0

    @property
    def planned(self) -> Sequence[tuple[int, bool]]:
        return self.candidates[: self.needed]


def units(reply: Sequence[Any], member: str) -> list[Unit]:
    """Return the units that the agent listed, by number. ``member`` is the schema's name of the number.

    :raise ProtocolError: if the list does not match the schema.
    """
    found = {}
    for entry in reply:
        entry = expect(entry, dict, "a member of the list")
        number = expect(entry.get(member), int, member)
        # By the schema, the agent always gives can-offline. Without it, the unit is left alone.
        found[number] = Unit(number, expect(entry.get("online"), bool, "online"), entry.get("can-offline") is True)
    if len(found) != len(reply):
        raise ProtocolError(f"the agent listed a {member} twice")
    return [found[number] for number in sorted(found)]


def described(present: Iterable[Unit]) -> dict[str, list[int]]:
    """Return the numbers of the units online and offline."""
    present = list(present)
    return {
        "online": [unit.number for unit in present if unit.online],
        "offline": [unit.number for unit in present if not unit.online],
    }


def apply_switches(present: Iterable[Unit], switches: Iterable[tuple[int, bool]]) -> list[Unit]:
    """Return ``present`` as it would be after all ``switches``."""
    wanted = dict(switches)
    return [Unit(unit.number, wanted.get(unit.number, unit.online), unit.can_offline) for unit in present]


def wrongly(present: Iterable[Unit], switches: Iterable[tuple[int, bool]]) -> list[int]:
    """Return the numbers of the units whose state differs from ``switches``."""
    states = {unit.number: unit.online for unit in present}
    return [number for number, online in switches if states.get(number) != online]


def listed(numbers: Iterable[int]) -> str:
    """Return numbers as the kernel writes them: C(0-3,8)."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(str(end) for end in run) for run in runs) or "none"


def choose(present: Sequence[Unit], params: Mapping[str, Any], noun: str) -> Switches:
    """Return the switches for the options online, offline and count. ``noun`` is for messages: ``processor``.

    :raise OperationError: if they name a unit that does not exist, or ask for an impossible state.
    """
    if params["count"] is not None:
        return _by_count(present, params["count"], noun)
    return _by_lists(present, params["online"] or (), params["offline"] or (), noun)


def _by_lists(present: Sequence[Unit], online: Sequence[int], offline: Sequence[int], noun: str) -> Switches:
    known = {unit.number: unit for unit in present}
    unknown = {*online, *offline} - set(known)
    if unknown:
        raise OperationError(f"There is no {noun} {listed(unknown)} in this guest. It has {listed(known)}.")
    both = {*online} & {*offline}
    if both:
        raise OperationError(f"online and offline both name {noun} {listed(both)}.")
    stuck = [number for number in offline if known[number].online and not known[number].can_offline]
    if stuck:
        raise OperationError(f"The guest cannot take {noun} {listed({*stuck})} offline (can_offline is false).")
    wanted = {**{number: True for number in online}, **{number: False for number in offline}}
    if not any(wanted.get(unit.number, unit.online) for unit in present):
        raise OperationError(f"No {noun} would be left online.")
    # Online first: a unit that goes offline moves its work and content to the others.
    switches = tuple((number, state) for number, state in wanted.items() if known[number].online != state)
    return Switches(switches, len(switches))


def _by_count(present: Sequence[Unit], count: int, noun: str) -> Switches:
    online = [unit for unit in present if unit.online]
    fixed = [unit.number for unit in online if not unit.can_offline]
    if not 1 <= count <= len(present):
        raise OperationError(f"count: {count} is not possible. This guest has {len(present)} {noun}s, and needs one.")
    if count < len(fixed):
        raise OperationError(
            f"count: {count} is not possible. {len(fixed)} {noun}s of this guest cannot go offline: {listed(fixed)}."
        )
    if count >= len(online):
        return Switches(tuple((unit.number, True) for unit in present if not unit.online), count - len(online))
    candidates = tuple((unit.number, False) for unit in reversed(online) if unit.can_offline)
    return Switches(candidates, len(online) - count)
