# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever processes, libvirt and the files of a machine say: what becomes of it in an inventory."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any
from xml.sax.saxutils import escape

from ansible.inventory.data import InventoryData
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.command_line import (
    AGENT_PORT,
    UUID,
    Found,
    parse,
    split_options,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guarded_inventory import GuardedInventory
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.libvirt_domains import guest_of, hypervisor_of
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.machine import Socket, parse_view
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.names import (
    Taken,
    Wish,
    distinct,
    first_safe,
    why_unsafe,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.processes import (
    guests_of_processes,
    guests_of_sockets,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.proxmox import guests_of_proxmox
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import bounded, line
from ansible_collections.qemu.guest.tests.unit.properties import bytes_of, text_of, values

ID = "6f1c4f3e-9d1b-4d54-9a57-0d8a3a1f2b3c"
BOUNDARY = "b0" * 16
OPTIONS = (
    *("-name", "-uuid", ID, "-chardev", "socket", ",id=a", ",path=", "/run/a", ",server=on", "-device"),
    *("virtserialport", ",chardev=a", f",name={AGENT_PORT}", "-qmp", "unix:", "tcp:", "-mon", ",mode=control"),
    *("-serial", "chardev:a", "isa-serial", "-chroot", "-smbios", "type=1,uuid=", "-id", "100", ",,", "=", "{"),
    *('{"backend": {"type": "socket"}}', ",host=::", ",port=1", ",abstract=on", "..", "\n"),
)

# Command lines


def check_found(found: Found) -> None:
    assert found.uuid == "" or UUID.fullmatch(found.uuid)
    assert re.fullmatch("[0-9]{0,9}", found.vmid)
    for address in (found.agent, found.qmp):
        if address and address == line(address):  # others are not used
            with suppress(AddressError):  # of tcp, whose host may be anything
                there = parse_address(address)
                assert str(there) == address and ".." not in there.path.split("/")
    assert not (found.libvirts and (found.agent or found.qmp))


arguments = st.lists(st.sampled_from(OPTIONS) | text_of(*OPTIONS), max_size=12)


@given(arguments, st.sampled_from(["", "/srv"]), st.sampled_from(["", "/proc/7/root"]))
def test_any_command_line_says_something_or_nothing(words: list[str], directory: str, root: str) -> None:
    check_found(parse(["kvm", *words], directory, root))


words_of_options = st.text(st.characters(exclude_characters="=,{", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.dictionaries(words_of_options, text_of(",", "=", "a", "{")))
def test_options_are_what_they_were(options: dict[str, str]) -> None:
    text = ",".join(f"{name}={value.replace(',', ',,')}" for name, value in options.items())
    assert split_options(text) == options


@given(text_of("guest", "a", " ", "{{ x }}", "=", "\n"), text_of("a", "/", ".", " ", "=", "\n"))
def test_name_and_path_are_what_they_were(name: str, path: str) -> None:
    name, path = f"x{name}x".replace(",", ""), f"/run/x{path}x".replace(",", "")
    port = ("-device", f"virtserialport,chardev=a,name={AGENT_PORT}")
    it = parse(["kvm", "-name", f"guest={name}", "-chardev", f"socket,id=a,path={path},server=on", *port], "/")
    assert it.name == name and it.has_agent
    assert it.agent.startswith("unix:/") and it.agent.rpartition("/")[2] == path.rpartition("/")[2]


# What look.sh prints

socket_paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map("/{}".format)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 99),
            st.lists(text_of("kvm", "-name", "\n").map(lambda text: text.replace("\0", "")), max_size=3),
        ),
        max_size=3,
    ),
    st.lists(socket_paths, max_size=3),
)
def test_view_is_what_was_there(processes: list[tuple[int, list[str]]], paths: list[str]) -> None:
    said = []
    for pid, words in processes:
        said.append(f"process {pid}\n/usr/bin/kvm\n\0/srv\n\0\0" + "".join(f"{word}\0" for word in ["kvm", *words]))
    said += [f"socket sockets\n{path}\0{path}" for path in paths]
    output = "".join(f"\n{BOUNDARY} {record}" for record in [*said, "end"]) + "\n"
    view = parse_view(output.encode("utf-8", "surrogatepass"), BOUNDARY)
    assert view.whole and view.sockets == [Socket("sockets", path, path) for path in paths]
    assert [(process.pid, process.directory) for process in view.processes] == [
        (str(pid), "/srv") for pid, _words in processes
    ]


RECORDS = (
    f"\n{BOUNDARY} ".encode(),
    b"process 7\n/usr/bin/kvm\n\0/\n\0\0kvm\0",
    b"-name\0vm\0",
    b"-uuid\0%b\0" % ID.encode(),
    b"socket sockets\n/run/a\0/run/a",
    b"socket proxmox\n/run/100.qga\0",
    b"socket ganeti\n",
    b"conf this\n100.conf\0name: a\n",
    b"agent: 1\n",
    b"template: 1\n",
    b"smbios1: uuid=%b\n" % ID.encode(),
    b"tags: a;b\n",
    b"listening\n",
    b"end\n",
    b"users\n",
    b"drwxr-xr-x 9 root root 0 /proc/7\n",
    b"\0",
    b"\xff",
)
NOTHING_TAKEN = Taken(frozenset(["hv"]), frozenset(["web"]))


@given(bytes_of(*RECORDS), st.booleans())
def test_any_output_makes_guests_that_can_be_shown_and_named(output: bytes, remote: bool) -> None:
    view = parse_view(output, BOUNDARY)
    view.proxmox_run = "/run"
    found = [
        *guests_of_processes(view, "hv", remote),
        *guests_of_sockets(view, "hv", remote),
        *guests_of_proxmox(view, "hv", remote),
    ]
    warnings: list[str] = []
    wishes = [first_safe(guest, [Wish(guest.name, own=True)], NOTHING_TAKEN, warnings.append) for guest in found]
    check_names(found, wishes, warnings)
    for guest in found:
        assert Guest.from_plain(json.loads(json.dumps(guest.plain()))) == guest
        assert all(map(str.isprintable, (guest.name, guest.uuid, guest.vmid, guest.user, guest.reason, *guest.tags)))
        assert guest.address.isprintable() and guest.qmp_address.isprintable()


# Names


def check_names(guests: list[Guest], wishes: list[Wish], warnings: list[str]) -> None:
    names = distinct(guests, wishes, NOTHING_TAKEN, warnings.append)
    assert len(names) == len(guests) and len({*names}) == len(names)
    assert all(not why_unsafe(Wish(name), NOTHING_TAKEN) for name in names)
    assert all(map(str.isprintable, warnings))


guest_names = st.sampled_from(
    ["web", "hv", "all", "localhost.x", "a" * 253, "a" * 250, "a" * 260, "{{ x }}"]
) | text_of("web", "-", " ")
guests = st.builds(
    Guest,
    st.just("hv"),
    st.just("process"),
    name=guest_names,
    uuid=st.sampled_from(["", ID]),
    pid=st.sampled_from(["", "7", "8"]),
    address=st.sampled_from(["/run/a", "/run/b"]),
)


@given(st.lists(st.tuples(guests, guest_names, st.booleans()), max_size=5))
@example([(Guest("hv", "process", name="web", uuid=ID), "a" * 250, False)] * 2)
def test_names_are_safe_and_all_different(of: list[tuple[Guest, str, bool]]) -> None:
    warnings: list[str] = []
    found = [guest for guest, _name, _own in of]
    wishes = [
        first_safe(guest, [Wish(name, own), Wish(guest.name)], NOTHING_TAKEN, warnings.append)
        for guest, name, own in of
    ]
    check_names(found, wishes, warnings)


few = st.sampled_from(["all", "ungrouped", "a", "b", "vm1", "vm2"])


@given(st.lists(st.tuples(st.sampled_from(["add_group", "add_host", "add_child"]), few, few), max_size=12))
def test_groups_never_are_their_own_ancestors(acts: list[tuple[str, str, str]]) -> None:
    data = InventoryData()
    for host in ("vm1", "vm2"):
        data.add_host(host)
    inventory = GuardedInventory(data, lambda _text: None)
    for act, one, other in acts:
        if act == "add_group":
            inventory.add_group(one)
        elif act == "add_host":
            inventory.add_host("vm1", inventory.add_group(other))
        else:
            inventory.add_child(inventory.add_group(one), inventory.add_group(other))
    data.reconcile_inventory()
    for group in data.groups.values():
        assert group not in group.get_ancestors()
    assert set(data.hosts) <= {"vm1", "vm2"} and not {"vm1", "vm2"} & set(data.groups)


# libvirt

TAGS = (
    "<domain>",
    "</domain>",
    "<name>",
    "</name>",
    "<uuid>",
    "</uuid>",
    "<devices>",
    "<channel>",
    "<target name='",
    "'/>",
    "<!",
    "&lt;",
)


@given(text_of(*TAGS, ID, AGENT_PORT), st.booleans())
@example("\ud800", True)
@example("<domain><uuid>../x</uuid></domain>", True)
def test_any_xml_is_a_guest_or_an_error(xml: str, is_active: bool) -> None:
    with suppress(AddressError):
        guest = guest_of(xml, is_active, "qemu:///system", "localhost")
        assert guest.name.isprintable() and UUID.fullmatch(guest.uuid)
        assert str(parse_address(guest.address)) == guest.address


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="\ufffe\uffff")))
def test_domain_is_a_guest_of_its_name(name: str) -> None:
    xml = f"<domain><name>{escape(name)}</name><uuid>{ID.upper()}</uuid></domain>"
    if "<!" not in xml:
        guest = guest_of(xml, True, "qemu:///system", "localhost")
        assert (guest.name, guest.uuid) == (line(name, 256), ID)


@given(text_of("qemu", "+ssh", "://", "[", "]", "@", "/system", "hv", ":1"))
def test_any_uri_has_a_hypervisor(uri: str) -> None:
    assert isinstance(hypervisor_of(uri, ["root@hv"]), str)


# Facts


def size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(len(name) + size(item) for name, item in value.items())
    return sum(map(size, value)) if isinstance(value, list) else len(str(value))


@given(values)
def test_facts_are_bounded_and_can_be_shown(value: Any) -> None:
    nested = value
    for _level in range(20):
        nested = [nested, {"x" * 300: nested}]
    shown = bounded([value, "y" * 9000, nested])
    assert size(shown) < 200_000
    assert json.dumps(shown, ensure_ascii=False, allow_nan=False).isprintable()
