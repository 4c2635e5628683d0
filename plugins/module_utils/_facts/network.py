# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts on network interfaces and their addresses."""

from __future__ import annotations

import ipaddress
from typing import Any, Container, Iterator, Mapping, NamedTuple, Sequence, Union

from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Facts, Replies, entries, number, text
from ansible_collections.qemu.guest.plugins.module_utils._facts.routes import Route, routes, way_to

__all__ = ("network_facts",)

Interface = Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]

# ansible-core asks for the routes to these.
_FAR_4 = ipaddress.ip_address("8.8.8.8")
_FAR_6 = ipaddress.ip_address("2404:6800:400a:800::1012")
_ADDRESS_OF_LOOPBACK = ipaddress.ip_address("::1")


class Link(NamedTuple):
    """A network interface: its MAC address, empty if unknown, and its addresses with their prefixes."""

    name: str
    mac: str
    addresses: Sequence[Interface]

    def of_version(self, version: int) -> list[Interface]:
        return [address for address in self.addresses if address.version == version]


def network_facts(replies: Replies) -> Facts:
    if "guest-network-get-interfaces" not in replies.commands:
        return {}
    links = _links(replies.listed("guest-network-get-interfaces"))
    ipv4 = [str(address.ip) for link in links for address in link.of_version(4) if not address.ip.is_loopback]
    if replies.system == "Windows":
        return {"all_ipv4_addresses": [text for text in ipv4 if not ipaddress.ip_address(text).is_link_local]}
    facts: Facts = {"interfaces": [_key(link.name) for link in links], "all_ipv4_addresses": ipv4}
    if replies.system == "FreeBSD":
        return {**{_key(link.name): _of_bsd(link) for link in links}, **facts}
    ipv6 = [address.ip for link in links for address in link.of_version(6)]
    facts["all_ipv6_addresses"] = [str(address) for address in ipv6 if address != _ADDRESS_OF_LOOPBACK]
    table = routes(replies)
    if table is not None:
        facts["default_ipv4"] = _default_ipv4(way_to(_FAR_4, table), links)
        facts["default_ipv6"] = _default_ipv6(way_to(_FAR_6, table), links)
    aliases = [link.name.partition(":")[0] for link in links if ":" in link.name]
    own = {_key(link.name): _of_linux(link, link.name in aliases) for link in links if ":" not in link.name}
    return {**own, **facts}


def _key(name: str) -> str:
    return name.replace(":", "_")


def _links(interfaces: Sequence[Mapping[str, Any]]) -> list[Link]:
    found = {
        text(interface, "name"): (text(interface, "hardware-address").lower(), list(_addresses(interface)))
        for interface in interfaces
        if text(interface, "name")
    }
    tunnels = {address.packed.ljust(6, b"\0")[:6] for _mac, held in found.values() for address in held}
    return [Link(name, mac if _is_mac(name, mac, tunnels) else "", held) for name, (mac, held) in found.items()]


def _addresses(interface: Mapping[str, Any]) -> Iterator[Interface]:
    for entry in entries(interface.get("ip-addresses")):
        address, prefix = text(entry, "ip-address").partition("%")[0], number(entry, "prefix")
        try:
            yield ipaddress.ip_interface(f"{address}/{prefix}")
        except ValueError:
            continue


def _is_mac(name: str, mac: str, tunnels: Container[bytes]) -> bool:
    """Return whether this is the whole address of an interface.

    The agent returns six bytes of any address. A tunnel's begins with one of the guest's IP addresses, and that of
    InfiniBand is longer.
    """
    try:
        raw = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        return False
    return len(raw) == 6 and any(raw) and raw not in tunnels and not name.startswith("ib")


def _of_linux(link: Link, has_aliases: bool) -> Facts:
    """Addresses with labels (C(eth0:1)) may be secondary ones of their interface, which the agent does not tell."""
    facts: Facts = {"device": link.name}
    if link.mac:
        facts["macaddress"] = link.mac
    ipv4 = [_ipv4(address) for address in link.of_version(4)]
    if ipv4:
        facts["ipv4"] = ipv4[0]
    if ipv4[1:] and not has_aliases:
        facts["ipv4_secondaries"] = ipv4[1:]
    if link.of_version(6):
        facts["ipv6"] = [_ipv6(address) for address in link.of_version(6)]
    return facts


def _of_bsd(link: Link) -> Facts:
    facts: Facts = {"device": link.name}
    if link.mac:
        facts["macaddress"] = link.mac
    kept = ("address", "netmask", "network")
    facts["ipv4"] = [{name: _ipv4(address)[name] for name in kept} for address in link.of_version(4)]
    return facts


def _ipv4(address: Interface) -> dict[str, str]:
    return {
        "address": str(address.ip),
        "netmask": str(address.netmask),
        "network": str(address.network.network_address),
        "prefix": str(address.network.prefixlen),
    }


def _ipv6(address: Interface) -> dict[str, str]:
    return {"address": str(address.ip), "prefix": str(address.network.prefixlen), "scope": _scope(address)}


def _scope(address: Interface) -> str:
    """Return the scope as the kernel derives it from the address."""
    if address.ip.is_loopback:
        return "host"
    if address.ip.is_link_local:
        return "link"
    return "site" if getattr(address.ip, "is_site_local", False) else "global"


def _default_ipv4(route: Route | None, links: Sequence[Link]) -> Facts:
    """Return the way to other networks. The kernel takes the address in the gateway's network, else the first."""
    if not route:
        return {}
    facts = _way(route)
    link = next((link for link in links if link.name == route.interface), None)
    held = link.of_version(4) if link else []
    if link and held:
        near = [address for address in held if route.gateway and route.gateway in address.network]
        chosen = (near or held)[0]
        facts.update(_ipv4(chosen), alias=link.name)
        facts.update({"macaddress": link.mac} if link.mac else {})
    return facts


def _default_ipv6(route: Route | None, links: Sequence[Link]) -> Facts:
    """Return the way to other networks. Of several addresses, the agent does not tell which may be used."""
    if not route:
        return {}
    facts = _way(route)
    link = next((link for link in links if link.name == route.interface), None)
    held = [address for address in link.of_version(6) if _scope(address) not in ("link", "host")] if link else []
    if link and len(held) == 1:
        facts.update(_ipv6(held[0]))
        facts.update({"macaddress": link.mac} if link.mac else {})
    return facts


def _way(route: Route) -> Facts:
    gateway = {"gateway": str(route.gateway)} if route.gateway else {}
    return {"interface": route.interface, **gateway}
