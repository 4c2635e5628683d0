# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces, addresses, and the way to other networks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.facts.network.freebsd import FreeBSDNetwork

from ansible_collections.qemu.guest.plugins.module_utils._facts.network import network_facts
from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Replies
from ansible_collections.qemu.guest.plugins.module_utils._facts.routes import ROUTES_4, ROUTES_6

MAC = "52:54:00:12:34:56"


def interface(name: str, *addresses: str, mac: str = MAC) -> dict[str, Any]:
    entries = [address.partition("/") for address in addresses]
    return {
        "name": name,
        "hardware-address": mac,
        "ip-addresses": [
            {"ip-address": ip, "ip-address-type": "ipv6" if ":" in ip else "ipv4", "prefix": int(prefix)}
            for ip, _slash, prefix in entries
        ],
    }


LO = interface("lo", "127.0.0.1/8", "::1/128", mac="00:00:00:00:00:00")


def route(destination: str, mask: str, gateway: str, iface: str = "eth0", metric: int = 0, flags: int = 3) -> Any:
    return {
        "iface": iface,
        "destination": destination,
        "mask": mask,
        "gateway": gateway,
        "metric": metric,
        "flags": flags,
        "version": 4,
    }


def route6(destination: str, length: str, nexthop: str, iface: str = "eth0", metric: int = 0, flags: int = 3) -> Any:
    return {
        "iface": iface,
        "destination": destination,
        "desprefixlen": length,
        "nexthop": nexthop,
        "metric": metric,
        "flags": flags,
        "version": 6,
    }


def facts(*interfaces: Any, table: Any = None, files: dict[str, str] | None = None, system: str = "debian") -> Any:
    commands = {"guest-get-osinfo": {"id": system}, "guest-network-get-interfaces": list(interfaces)}
    if table is not None:
        commands["guest-network-get-route"] = table
    return network_facts(Replies(commands, files or {}))


def test_interfaces() -> None:
    told = facts(LO, interface("eth0", "192.0.2.10/24", "192.0.2.11/24", "fe80::1/64", "2001:db8::1/64"))
    assert told == {
        "interfaces": ["lo", "eth0"],
        "all_ipv4_addresses": ["192.0.2.10", "192.0.2.11"],
        "all_ipv6_addresses": ["fe80::1", "2001:db8::1"],
        "lo": {
            "device": "lo",
            "ipv4": {"address": "127.0.0.1", "netmask": "255.0.0.0", "network": "127.0.0.0", "prefix": "8"},
            "ipv6": [{"address": "::1", "prefix": "128", "scope": "host"}],
        },
        "eth0": {
            "device": "eth0",
            "macaddress": MAC,
            "ipv4": {"address": "192.0.2.10", "netmask": "255.255.255.0", "network": "192.0.2.0", "prefix": "24"},
            "ipv4_secondaries": [
                {"address": "192.0.2.11", "netmask": "255.255.255.0", "network": "192.0.2.0", "prefix": "24"}
            ],
            "ipv6": [
                {"address": "fe80::1", "prefix": "64", "scope": "link"},
                {"address": "2001:db8::1", "prefix": "64", "scope": "global"},
            ],
        },
    }


def test_labels_may_be_secondary_addresses() -> None:
    told = facts(interface("eth0", "192.0.2.10/24", "198.51.100.1/24"), interface("eth0:1", "192.0.2.11/24", mac=""))
    assert told["interfaces"] == ["eth0", "eth0_1"]
    assert set(told["eth0"]) == {"device", "macaddress", "ipv4"}
    assert "eth0_1" not in told
    assert told["all_ipv4_addresses"] == ["192.0.2.10", "198.51.100.1", "192.0.2.11"]


@pytest.mark.parametrize(
    ("name", "mac"),
    [
        ("ib0", "80:00:02:08:fe:80"),
        ("sit1", "c0:00:02:0a:00:00"),
        ("ip6tnl1", "20:01:0d:b8:00:00"),
        ("tun0", "00:00:00:00:00:00"),
        ("eth0", ""),
        ("eth0", "nonsense"),
        ("eth0", "52:54:00"),
    ],
)
def test_addresses_that_are_not_the_whole(name: str, mac: str) -> None:
    told = facts(interface(name, "192.0.2.10/24", "2001:db8::1/64", mac=mac))
    assert "macaddress" not in told[name]


def test_mac_address_in_capitals() -> None:
    assert facts(interface("eth0", mac="52:54:00:AB:CD:EF"))["eth0"]["macaddress"] == "52:54:00:ab:cd:ef"


# The way to other networks

TABLE = [
    route("0.0.0.0", "0.0.0.0", "192.0.2.1", metric=100),
    route("0.0.0.0", "0.0.0.0", "203.0.113.1", iface="eth1", metric=50, flags=2),  # down
    route("192.0.2.0", "255.255.255.0", "0.0.0.0", flags=1),
    route6("::", "0", "fe80::2", metric=1024, flags=4194307),
    route6("::", "0", "::", iface="lo", metric=-1, flags=2097664),
]
ETH0 = interface("eth0", "198.51.100.7/24", "192.0.2.10/24", "fe80::1/64", "2001:db8::1/64")
WAY_4 = {
    "interface": "eth0",
    "gateway": "192.0.2.1",
    "address": "192.0.2.10",
    "netmask": "255.255.255.0",
    "network": "192.0.2.0",
    "prefix": "24",
    "alias": "eth0",
    "macaddress": MAC,
}
WAY_6 = {
    "interface": "eth0",
    "gateway": "fe80::2",
    "address": "2001:db8::1",
    "prefix": "64",
    "scope": "global",
    "macaddress": MAC,
}


def ways(*interfaces: Any, **how: Any) -> tuple[Any, Any]:
    told = facts(*interfaces, **how)
    return told.get("default_ipv4"), told.get("default_ipv6")


def test_default_routes() -> None:
    assert ways(LO, ETH0, table=TABLE) == (WAY_4, WAY_6)


@pytest.mark.parametrize(
    "table",
    [
        [],
        [route("192.0.2.0", "255.255.255.0", "0.0.0.0", flags=1)],
        [route("0.0.0.0", "0.0.0.0", "0.0.0.0", iface="*", flags=0x201)],
        [*TABLE, route("8.0.0.0", "255.0.0.0", "0.0.0.0", flags=0x201), route6("2404:6800::", "32", "::", flags=0x201)],
        "nonsense",
        [{"version": 4, "destination": "x"}, {"version": 6}, 5],
    ],
)
def test_no_way_to_other_networks(table: Any) -> None:
    assert ways(LO, ETH0, table=table) == ({}, {})


def test_longest_prefix_and_least_metric() -> None:
    more = [
        route("0.0.0.0", "128.0.0.0", "10.8.0.1", iface="tun0", metric=300),
        route("0.0.0.0", "128.0.0.0", "10.8.0.9", iface="tun1", metric=200),
    ]
    assert ways(ETH0, interface("tun1", "10.8.0.2/24", mac=""), table=[*TABLE, *more])[0] == {
        "interface": "tun1",
        "gateway": "10.8.0.9",
        "address": "10.8.0.2",
        "netmask": "255.255.255.0",
        "network": "10.8.0.0",
        "prefix": "24",
        "alias": "tun1",
    }


def test_route_without_a_gateway_or_a_known_interface() -> None:
    table = [route("0.0.0.0", "0.0.0.0", "0.0.0.0", iface="ppp0", flags=1)]
    assert ways(ETH0, table=table)[0] == {"interface": "ppp0"}
    assert ways(interface("ppp0", "192.0.2.1/32", mac=""), table=table)[0]["address"] == "192.0.2.1"


def test_several_ipv6_addresses_leave_open_which_is_used() -> None:
    several = interface("eth0", "2001:db8::1/64", "2001:db8::2/64")
    assert ways(several, table=TABLE)[1] == {"interface": "eth0", "gateway": "fe80::2"}


def test_site_local_address() -> None:
    way = ways(interface("eth0", "fec0::1/64", "fe80::1/64"), table=TABLE)[1]
    assert (way["address"], way["scope"]) == ("fec0::1", "site")


KERNEL_4 = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	100	00000000	0	0	0
eth1	00000000	017100CB	0002	0	0	50	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
"""
KERNEL_6 = f"""\
{0:032x} 00 {0:032x} 00 fe80000000000000{2:016x} 00000400 00000001 00000000 00400003     eth0
{0:032x} 00 {0:032x} 00 {0:032x} ffffffff 00000001 00000000 00200200       lo
"""


def test_routes_of_the_kernel() -> None:
    assert ways(LO, ETH0, files={ROUTES_4: KERNEL_4, ROUTES_6: KERNEL_6}) == (WAY_4, WAY_6)
    assert ways(LO, ETH0, files={ROUTES_4: KERNEL_4}) == (WAY_4, {})
    assert ways(LO, ETH0, files={ROUTES_6: KERNEL_6}) == (None, None)
    garbage = "x y z\n" + "9" * 100000 + " 1" * 10 + "\n" + "1 2 3 4 5 6 7 8 9 10 11\n"
    assert ways(LO, ETH0, files={ROUTES_4: garbage, ROUTES_6: garbage}) == ({}, {})


def test_routes_that_nobody_tells() -> None:
    assert ways(LO, ETH0) == (None, None)


# Others

IFCONFIG = """\
vtnet0: flags=8863<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> metric 0 mtu 1500
\toptions=4c07bb<RXCSUM,TXCSUM>
\tether 52:54:00:12:34:56
\tinet 192.0.2.10 netmask 0xffffff00 broadcast 192.0.2.255
\tinet 198.51.100.1 netmask 0xfffffff0 broadcast 198.51.100.15
\tmedia: Ethernet autoselect (10Gbase-T <full-duplex>)
\tstatus: active
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> metric 0 mtu 16384
\tinet 127.0.0.1 netmask 0xff000000
\tgroups: lo
"""


def test_freebsd() -> None:
    module = SimpleNamespace(run_command=lambda command: (0, IFCONFIG, ""))
    interfaces, addresses = FreeBSDNetwork(module).get_interfaces_info("ifconfig")
    told = facts(
        interface("vtnet0", "192.0.2.10/24", "198.51.100.1/28"),
        interface("lo0", "127.0.0.1/8", mac="00:00:00:00:00:00"),
        system="freebsd",
    )
    assert told["interfaces"] == list(interfaces)
    assert told["all_ipv4_addresses"] == addresses["all_ipv4_addresses"]
    assert "all_ipv6_addresses" not in told
    for name, expected in interfaces.items():
        assert set(told[name]) <= set(expected)
        for mine, theirs in zip(told[name].pop("ipv4"), expected.pop("ipv4"), strict=True):
            assert mine == {key: theirs[key] for key in ("address", "netmask", "network")}
        assert told[name] == {key: expected[key] for key in told[name]}
    assert told["vtnet0"]["macaddress"] == MAC


def test_windows() -> None:
    told = facts(
        interface("Ethernet", "192.0.2.10/24", "169.254.7.7/16", "fe80::1%4/64"),
        interface("Loopback Pseudo-Interface 1", "127.0.0.1/8", mac=""),
        system="mswindows",
    )
    assert told == {"all_ipv4_addresses": ["192.0.2.10"]}


@pytest.mark.parametrize("reply", [None, 5, [5], [{}], [{"name": 5}], {"name": "eth0"}])
def test_interfaces_that_are_not_as_in_the_schema(reply: Any) -> None:
    commands = {"guest-get-osinfo": {"id": "debian"}, "guest-network-get-interfaces": reply}
    assert network_facts(Replies(commands, {})) == {
        "interfaces": [],
        "all_ipv4_addresses": [],
        "all_ipv6_addresses": [],
    }


def test_interfaces_that_nobody_tells() -> None:
    assert network_facts(Replies({"guest-get-osinfo": {"id": "debian"}}, {ROUTES_4: KERNEL_4})) == {}
