# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's routes: from guest-network-get-route, or from the files of the kernel that this command reads."""

from __future__ import annotations

import ipaddress
from typing import Any, Iterator, Mapping, NamedTuple, Sequence, Union

from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Replies, number, text

__all__ = ("ROUTES_4", "ROUTES_6", "Route", "routes", "way_to")

ROUTES_4 = "/proc/net/route"
ROUTES_6 = "/proc/net/ipv6_route"

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_UP, _REJECT = 0x1, 0x200
_LONGEST = 32  # characters of a word: an IPv6 address


class Route(NamedTuple):
    """A route of the main table; ``gateway`` is None where none is needed."""

    interface: str
    network: Network
    gateway: Address | None
    metric: int
    flags: int


def way_to(address: Address, table: Sequence[Route]) -> Route | None:
    """Return the route that the kernel takes to ``address`` by its main table; None if there is none."""
    there = [route for route in table if route.flags & _UP and address in route.network]
    best = min(there, key=lambda route: (-route.network.prefixlen, route.metric), default=None)
    return None if best is None or best.flags & _REJECT else best


def routes(replies: Replies) -> list[Route] | None:
    """Return the guest's routes; None if they are unknown."""
    if "guest-network-get-route" in replies.commands:
        found = map(_of_agent, replies.listed("guest-network-get-route"))
    elif ROUTES_4 in replies.files:  # a kernel without IPv6 has no file for it
        found = map(_of_kernel, _lines(replies.files))
    else:
        return None
    return [route for route in found if route]


def _lines(files: Mapping[str, str]) -> Iterator[list[str]]:
    yield from (line.split() for line in files[ROUTES_4].splitlines()[1:])
    yield from (line.split() for line in files.get(ROUTES_6, "").splitlines())


def _of_agent(entry: Mapping[str, Any]) -> Route | None:
    is_4 = number(entry, "version") == 4
    mask, gateway = ("mask", "gateway") if is_4 else ("desprefixlen", "nexthop")
    try:
        network = ipaddress.ip_network(f"{text(entry, 'destination')}/{text(entry, mask)}")
        return _route(
            text(entry, "iface"),
            network,
            ipaddress.ip_address(text(entry, gateway)),
            number(entry, "metric") or 0,
            number(entry, "flags") or 0,
        )
    except ValueError:
        return None


def _of_kernel(words: Sequence[str]) -> Route | None:
    """Return the route in a line of the kernel's: numbers are hexadecimal, IPv4 addresses in the machine's order."""
    if any(len(word) > _LONGEST for word in words):
        return None
    try:
        if len(words) == 11:
            name, destination, gateway, flags, _references, _uses, metric, mask = words[:8]
            network = ipaddress.ip_network(f"{_address_4(destination)}/{_address_4(mask)}")
            return _route(name, network, _address_4(gateway), int(metric), int(flags, 16))
        destination, prefix, _source, _length, gateway, metric, _references, _uses, flags, name = words
        network = ipaddress.ip_network(f"{ipaddress.IPv6Address(int(destination, 16))}/{int(prefix, 16)}")
        return _route(name, network, ipaddress.IPv6Address(int(gateway, 16)), int(metric, 16), int(flags, 16))
    except ValueError:
        return None


def _address_4(word: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(bytes.fromhex(word)[::-1])


def _route(interface: str, network: Network, gateway: Address, metric: int, flags: int) -> Route:
    return Route(interface, network, gateway if int(gateway) else None, metric & 0xFFFFFFFF, flags)
