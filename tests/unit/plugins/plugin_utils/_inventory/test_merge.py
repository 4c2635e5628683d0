# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest is one record, and no process takes another guest's place."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import NO_AGENT, OFF, SILENT, Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.merge import merged

UUID = "6f1c4f3e-9d1b-4d54-9a57-0d8a3a1f2b3c"
SOCKET = "/run/a.qga"


def guest(source: str, hypervisor: str = "localhost", **more: Any) -> Guest:
    return Guest(hypervisor, source, **more)


def libvirts(**more: Any) -> Guest:
    return guest("libvirt", name="web", uuid=UUID, address=f"libvirt:{UUID}", **more)


def quietly(*guests: Guest) -> list[Guest]:
    def fail(text: str) -> None:
        raise AssertionError(text)

    return merged(guests, fail)


def test_process_and_socket_are_one() -> None:
    (one,) = quietly(
        guest("sockets", name="a", address=SOCKET, socket=SOCKET),
        guest(
            "process", name="web", pid="7", user="joe", address=f"/var{SOCKET}", socket=SOCKET, qmp_address="unix:/m"
        ),
    )
    assert (one.source, one.name, one.pid, one.user, one.qmp_address) == ("process", "web", "7", "joe", "unix:/m")


def test_libvirt_wins_over_its_process() -> None:
    (one,) = quietly(
        guest(
            "process", name="guest", uuid=UUID, pid="7", user="libvirt-qemu", address=f"libvirt:{UUID}", state=SILENT
        ),
        libvirts(),
    )
    assert (one.source, one.name, one.state, one.user, one.pid) == ("libvirt", "web", "", "libvirt-qemu", "7")


def test_second_process_with_the_uuid_of_a_domain_is_another_guest() -> None:
    guests = quietly(
        guest("process", uuid=UUID, pid="9", user="mallory", address="/tmp/evil", socket="/tmp/evil"),
        guest("process", uuid=UUID, pid="12", user="root", address=f"libvirt:{UUID}", state=SILENT),
        libvirts(),
    )
    assert [(one.source, one.user, one.address) for one in guests] == [
        ("libvirt", "root", f"libvirt:{UUID}"),
        ("process", "mallory", "/tmp/evil"),
    ]


def test_processes_with_the_address_of_a_domain_are_that_domain() -> None:
    """Who runs them is not known to an ordinary user, so each of them may be its QEMU."""
    (one,) = quietly(
        guest("process", name="x", uuid=UUID, pid="7", address=f"libvirt:{UUID}", state=SILENT),
        guest("process", name="web", uuid=UUID, pid="8", address=f"libvirt:{UUID}", state=SILENT),
        libvirts(),
    )
    assert (one.source, one.name) == ("libvirt", "web")


def test_process_gives_a_domain_no_monitor() -> None:
    (one,) = quietly(guest("process", uuid=UUID, pid="7", qmp_address="unix:/tmp/evil", state=NO_AGENT), libvirts())
    assert one.qmp_address == ""


@pytest.mark.parametrize(
    ("user", "other"), [("root", "mallory"), ("libvirt-qemu", "mallory"), ("joe", ""), ("root", "")]
)
def test_whose_process_counts(user: str, other: str) -> None:
    """It is not known who runs a process where its program cannot be read: a user can read that of one's own."""
    guests = [
        guest("process", name="fake", pid="1", user=other, address=SOCKET, socket=SOCKET),
        guest("process", name="real", pid="2", user=user, address=SOCKET, socket=SOCKET),
    ]
    assert [one.name for one in merged(guests, lambda text: None)] == ["real"]


def test_process_cannot_move_a_domain_or_a_proxmox_guest() -> None:
    guests = quietly(
        libvirts(state=NO_AGENT),
        guest("proxmox", name="db", vmid="100", state=OFF),
        guest("process", uuid=UUID, vmid="100", pid="9", user="mallory", address="/tmp/evil", socket="/tmp/evil"),
    )
    assert [one.address for one in guests if one.name] == [f"libvirt:{UUID}", ""]


def test_two_processes_with_one_uuid_are_two_guests() -> None:
    assert len(quietly(*(guest("process", uuid=UUID, pid=pid) for pid in ("1", "2")))) == 2


@pytest.mark.parametrize("pids", [("1", "2"), ("2", "1")])
def test_two_processes_with_one_socket_are_one_guest_and_a_warning(pids: tuple[str, str]) -> None:
    warnings: list[str] = []
    real, fake = pids
    guests = [
        guest("process", name="fake", pid=fake, user="mallory", address=SOCKET, socket=SOCKET),
        guest("process", name="real", pid=real, user="root", address=SOCKET, socket=SOCKET),
    ]
    assert [one.name for one in merged(guests, warnings.append)] == ["real"]
    assert warnings == [
        f"two processes say that they serve {SOCKET}: real on localhost (process {real}) counts, "
        f"fake on localhost (process {fake}) does not"
    ]


def test_hypervisors_are_different_machines() -> None:
    guests = [guest("process", name, uuid=UUID, socket=SOCKET, pid="1") for name in ("hv1", "hv2")]
    assert len(quietly(*guests)) == 2


def test_proxmox_guest_that_runs_without_agent() -> None:
    (one,) = quietly(
        guest("proxmox", name="web", vmid="100", tags=["a"], state=OFF),
        guest("process", name="web", vmid="100", pid="7", user="root", state=NO_AGENT),
    )
    assert (one.source, one.state, one.tags, one.pid) == ("proxmox", NO_AGENT, ["a"], "7")


def test_proxmox_guest_whose_agent_is_there() -> None:
    (one,) = quietly(
        guest("proxmox", vmid="100", address="/var/run/100.qga", socket="/run/100.qga"),
        guest("process", name="web", vmid="100", pid="7", user="root", address="/run/100.qga", socket="/run/100.qga"),
    )
    assert (one.source, one.name, one.state, one.address) == ("proxmox", "web", "", "/var/run/100.qga")


def test_many_are_merged_in_no_time() -> None:
    guests = [guest("process", pid=str(n), uuid=f"{n}", socket=f"/{n}") for n in range(5000)]
    guests += [guest("sockets", socket=f"/{n}") for n in range(5000)]
    assert len(quietly(*guests)) == 5000
