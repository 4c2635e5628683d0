# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several hypervisors at the same time, of which some are down, hang, or say nonsense."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory import find as find_module
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory import libvirt_domains
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.find import BY_SHELL, Findings, Wishes, find
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import ANSWERS, OFF, SILENT
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.parallel import in_parallel
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted


class Machine(Hypervisor):
    """A hypervisor that prints ``records``, with the boundary that it was sent, and has a socket behind each path."""

    def __init__(self, *records: str, directory: Path = Path("/nonexistent")) -> None:
        super().__init__("hv", {}, is_host=True)
        self._records = records
        self._directory = directory

    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
        boundary = stdin.rpartition(b"\nmain ")[2].split()[0].decode()
        return 0, "".join(f"\n{boundary} {record}" for record in (*self._records, "end\n")).encode(), b""

    def connect(self, path: str, deadline: Deadline) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self._directory / path.lstrip("/").replace("/", "-")))
        except OSError as exc:
            sock.close()
            raise ConnectError("cannot be forwarded") from exc
        return sock


class Down(Machine):
    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
        raise ConnectError("ssh: Connection refused\x1b[2J")


class Mad(Machine):
    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
        raise RuntimeError("mad")


class Hung(Machine):
    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
        threading.Event().wait(300)
        raise AssertionError


def found(machines: dict[str, Machine], **more: Any) -> Findings:
    wishes = {"sources": BY_SHELL, "timeout": 1.0, "hypervisor_timeout": 1.0, **more}
    return find(Wishes(machines, **wishes))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_guests_of_another_machine(tmp_path: Path, stack: ExitStack) -> None:
    stack.enter_context(Scripted(tmp_path / "run-a.qga"))
    there = Machine(
        *(f"socket sockets\n/run/{name}.qga\0/run/{name}.qga" for name in ("a", "dead", "forbidden")),
        "process 7\n/usr/bin/kvm\n\0/\n\0\0kvm\0-name\0abstract\0-chardev\0socket,id=c,path=x,abstract=on,server=on\0"
        "-device\0virtserialport,chardev=c,name=org.qemu.guest_agent.0\0",
        "users\ndr-xr-xr-x 9 root root 0 Nov 30 06:07 /proc/7\n",
        "listening\n/run/forbidden.qga\n/run/a.qga\n",
        directory=tmp_path,
    )
    findings = found({"hv1": there})
    assert {guest.name: guest.state for guest in findings.guests} == {
        "a": ANSWERS,
        "dead": OFF,
        "forbidden": SILENT,
        "abstract": SILENT,
    }
    assert findings.complete and all(guest.remote for guest in findings.guests)
    (warning,) = findings.warnings
    assert warning.startswith("no answer from 2 guests: abstract on hv1: ssh can forward")
    assert "forbidden on hv1: cannot be forwarded" in warning


def test_one_that_is_down_and_one_that_fails_spoil_nothing() -> None:
    findings = found({"down": Down(), "mad": Mad(), "up": Machine("socket sockets\n/a.qga\0/a.qga")})
    assert [guest.name for guest in findings.guests] == ["a"] and not findings.complete
    assert findings.warnings == [
        "the guests of down are missing: ssh: Connection refused\\x1b[2J",
        "the guests of mad are missing: RuntimeError('mad')",
    ]


def test_one_that_does_not_tell_all() -> None:
    class Half(Machine):
        def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
            return 0, super().run(command, stdin, seconds)[1].rpartition(b"\n")[0].removesuffix(b"end"), b""

    findings = found({"half": Half("socket sockets\n/a\0/a")})
    assert [guest.address for guest in findings.guests] == ["/a"]
    assert findings.warnings[0] == "some guests of half are missing: not all that it told has come"
    assert not findings.complete


LIBVIRT = "listening\n/run/libvirt/libvirt-sock\n"


def test_libvirt_that_refuses_spoils_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Machine):
        def forward(self, path: str, deadline: Deadline) -> Any:
            raise ConnectError("permission denied")

    monkeypatch.setattr(libvirt_domains, "libvirt", object())
    machines: dict[str, Machine] = {"hv": Refusing("socket sockets\n/a\0/a", LIBVIRT)}
    findings = found(machines, sources=(*BY_SHELL, "libvirt"))
    assert [guest.address for guest in findings.guests] == ["/a"]
    assert findings.warnings[0] == "the domains of hv are missing: permission denied"
    assert not findings.complete


def test_libvirt_alone_is_asked_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def domains_of(machine: Hypervisor, name: str, listening: frozenset[str], seconds: float) -> list[Any]:
        asked.append((name, "/run/libvirt/libvirt-sock" in listening))
        return []

    monkeypatch.setattr(find_module, "domains_of", domains_of)
    assert found({"hv": Machine(LIBVIRT)}, sources=["libvirt"]).complete
    assert asked == [("hv", True)]


def test_one_that_hangs_is_left() -> None:
    started = time.monotonic()
    findings = found({"hung": Hung(), "up": Machine("socket sockets\n/a.qga\0/a.qga")}, hypervisor_timeout=0.5)
    assert time.monotonic() - started < 20
    assert [guest.name for guest in findings.guests] == ["a"] and not findings.complete
    assert findings.warnings == ["the guests of hung are missing: no answer within 0.5 s"]


def test_who_is_not_wanted_is_not_asked(tmp_path: Path, stack: ExitStack) -> None:
    agent = stack.enter_context(Scripted(tmp_path / "a.qga"))
    there = Machine("socket sockets\n/a.qga\0/a.qga", directory=tmp_path)
    assert not found({"hv1": there}, wanted=lambda guest: guest.name != "a").guests
    assert not agent.requests


def test_order_is_always_the_same() -> None:
    machines = {name: Machine("socket sockets\n/b\0/b", "socket sockets\n/a\0/a") for name in ("hv2", "hv1")}
    guests = found(machines).guests
    assert [(guest.hypervisor, guest.name) for guest in guests] == [
        ("hv1", "a"),
        ("hv1", "b"),
        ("hv2", "a"),
        ("hv2", "b"),
    ]


def test_in_parallel() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError(item)
        if item == 3:
            threading.Event().wait(300)
        return item * 10

    results = in_parallel(work, [1, 2, 3, 4], 0.5)
    assert (results[0], results[2], results[3]) == (10, None, 40) and isinstance(results[1], ValueError)
    assert in_parallel(work, [], 5) == []
    assert in_parallel(work, [1, 4, 5], 5, threads=1) == [10, 40, 50]
    assert {thread.daemon for thread in threading.enumerate() if thread.name == "inventory"} == {True}
