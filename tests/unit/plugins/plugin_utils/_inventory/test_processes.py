# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a look at a machine says of its guests."""

from __future__ import annotations

import shlex

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import NO_AGENT, OFF, SILENT, Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.machine import Process, Socket, View
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.processes import (
    guests_of_processes,
    guests_of_sockets,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.proxmox import guests_of_proxmox

UUID = "6f1c4f3e-9d1b-4d54-9a57-0d8a3a1f2b3c"
PORT = "-device virtserialport,chardev=c,name=org.qemu.guest_agent.0"
AGENT = f"-chardev socket,id=c,path=/run/a.qga,server=on {PORT}"


def process(command_line: str, remote: bool = False) -> Guest:
    view = View(processes=[Process("7", "joe", "/usr/bin/kvm", "/srv", shlex.split(command_line))])
    (guest,) = guests_of_processes(view, "hv1" if remote else "localhost", remote)
    return guest


def test_process() -> None:
    assert process(f"kvm -name web -uuid {UUID} -qmp unix:m,server {AGENT}") == Guest(
        "localhost",
        "process",
        name="web",
        uuid=UUID,
        pid="7",
        user="joe",
        address="/run/a.qga",
        socket="/run/a.qga",
        qmp_address="unix:/srv/m",
    )


def test_process_without_agent() -> None:
    assert process("kvm -name web").state == NO_AGENT


def test_process_whose_agent_is_no_socket() -> None:
    guest = process(f"kvm -name web -chardev pty,id=c {PORT}")
    assert (guest.state, guest.address) == (SILENT, "") and "not a socket" in guest.reason


@pytest.mark.parametrize(
    ("where", "address"), [("path=a.qga,abstract=on", "unix:@a.qga"), ("host=,port=5", "tcp:127.0.0.1:5")]
)
def test_what_ssh_cannot_forward(where: str, address: str) -> None:
    command_line = f"kvm -name web -chardev socket,id=c,{where},server=on {PORT}"
    assert (process(command_line).state, process(command_line).address) == ("", address)
    there = process(command_line, remote=True)
    assert (there.state, there.address) == (SILENT, address) and "ssh" in there.reason


@pytest.mark.parametrize(("remote", "uri", "state"), [(False, "qemu:///system", SILENT), (True, "", "")])
def test_process_of_libvirt(remote: bool, uri: str, state: str) -> None:
    """Another machine's libvirt is asked about it."""
    guest = process(f"kvm -name guest=web -uuid {UUID} -chardev socket,id=charmonitor,fd=3,server=on {AGENT}", remote)
    assert (guest.address, guest.libvirt_uri, guest.state) == (f"libvirt:{UUID}", uri, state)
    assert ("libvirt_uris" in guest.reason) is not remote


def test_address_that_cannot_be_shown_is_not_used() -> None:
    guest = process(f"kvm -name web -chardev socket,id=c,path=$'/run/\\x1b[2J',server=on {PORT}".replace("$", ""))
    assert guest.address.isprintable()
    guest = process("kvm -name web -chardev 'socket,id=c,path=/run/\x1b[2J,server=on' " + PORT)
    assert (guest.address, guest.state) == ("", SILENT)


@pytest.mark.parametrize(
    ("program", "count", "user"),
    [
        ("/usr/bin/qemu-system-x86_64", 1, "root"),
        ("/usr/bin/qemu-system-x86_64 (deleted)", 1, "root"),
        ("/nix/store/x/.qemu-system-x86_64-wrapped", 1, "root"),
        ("", 1, ""),
        ("/usr/bin/sudo", 0, ""),
        ("/usr/bin/sudo (deleted)", 0, ""),
    ],
)
def test_setuid_program_that_calls_itself_qemu_is_nobodys_guest(program: str, count: int, user: str) -> None:
    view = View(processes=[Process("7", "root", program, "/", ["kvm", "-S", "--", "true", "-name", "web"])])
    guests = list(guests_of_processes(view, "localhost", False))
    assert len(guests) == count and all(guest.user == user for guest in guests)


def test_relative_path_below_an_unknown_directory() -> None:
    arguments = shlex.split(f"kvm -name web -chardev socket,id=c,path=a.qga,server=on {PORT}")
    (guest,) = guests_of_processes(View(processes=[Process("7", "joe", "", "", arguments)]), "localhost", False)
    assert (guest.address, guest.state) == ("", SILENT)


@pytest.mark.parametrize(
    "command_line", ["vi kvm", "qemu-img info kvm", "kvm -machine none -qmp unix:/m,server", "kvm"]
)
def test_no_guests(command_line: str) -> None:
    view = View(processes=[Process("7", "joe", "/usr/bin/kvm", "/", shlex.split(command_line))])
    assert not list(guests_of_processes(view, "localhost", False))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/run/vm1.qga", "vm1"),
        ("/run/vm1.sock", "vm1"),
        ("/run/vm1-qga.sock", "vm1"),
        ("/vms/web/web-agent.sock", "web"),
        ("/vms/web/agent.sock", "web"),
        ("/vms/web/qga", "web"),
        ("/vms/web/qga.sock", "web"),
        ("/vms/web/qemu-ga.sock", "web"),
        ("/vms/web/org.qemu.guest_agent.0", "web"),
        ("/run/vm1", "vm1"),
        ("/run/a.b.example.com.qga", "a.b.example.com"),
        ("/agent.sock", ""),
    ],
)
def test_name_of_a_socket(path: str, name: str) -> None:
    (guest,) = guests_of_sockets(View(sockets=[Socket("sockets", path, path)]), "localhost", False)
    assert (guest.name, guest.address) == (name, path)


def test_ganeti() -> None:
    path = "/var/run/ganeti/kvm-hypervisor/ctrl/inst.example.com.qga"
    (guest,) = guests_of_sockets(View(sockets=[Socket("ganeti", path, path)]), "hv1", True)
    assert guest == Guest("hv1", "ganeti", True, name="inst.example.com", address=path, socket=path)


# Proxmox VE


def test_proxmox() -> None:
    view = View(
        sockets=[Socket("proxmox", "/var/run/qemu-server/100.qga", "/run/qemu-server/100.qga")],
        confs={
            "100.conf": f"agent: 1\nname: web\ntags: a;b c\nsmbios1: uuid={UUID.upper()},manufacturer=x\n",
            "101.conf": "agent: enabled=1,type=virtio\nname: off\n",
            "102.conf": "name: without\n",
            "103.conf": "agent: 1\nname: template\ntemplate: 1\n",
            "x;y.conf": "name: no\n",
        },
        is_node=True,
        proxmox_run="/var/run/qemu-server",
    )
    web, off, without = guests_of_proxmox(view, "hv1", True)
    assert web == Guest(
        "hv1",
        "proxmox",
        True,
        name="web",
        uuid=UUID,
        vmid="100",
        tags=["a", "b", "c"],
        address="/var/run/qemu-server/100.qga",
        socket="/run/qemu-server/100.qga",
    )
    assert (off.name, off.state, off.address) == ("off", OFF, "/var/run/qemu-server/101.qga")
    assert (without.name, without.state) == ("without", NO_AGENT)


@pytest.mark.parametrize(
    ("agent", "state"),
    [
        ("1", OFF),
        ("enabled=1", OFF),
        ("fstrim_cloned_disks=1,enabled=1", OFF),
        ("0,fstrim_cloned_disks=1", NO_AGENT),
        ("enabled=0", NO_AGENT),
    ],
)
def test_proxmox_agent(agent: str, state: str) -> None:
    (guest,) = guests_of_proxmox(View(confs={"100.conf": f"agent: {agent}\n"}, is_node=True), "hv1", True)
    assert guest.state == state


def test_configurations_of_other_nodes_only_name() -> None:
    path = "/var/run/qemu-server/100.qga"
    view = View(sockets=[Socket("proxmox", path, path)], confs={"100.conf": "name: web", "101.conf": "name: elsewhere"})
    assert [guest.name for guest in guests_of_proxmox(view, "hv1", True)] == ["web"]


def test_proxmox_without_configurations() -> None:
    view = View(sockets=[Socket("proxmox", f"/r/{name}.qga", f"/r/{name}.qga") for name in ("100", "0", "1x", "a")])
    assert [guest.vmid for guest in guests_of_proxmox(view, "hv1", True)] == ["100"]
