# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's XML says, and a libvirt that hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError, ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import THREADS
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory import libvirt_domains
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import NO_AGENT, OFF
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.libvirt_domains import (
    default_uris,
    domains,
    domains_of,
    guest_of,
    hypervisor_of,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.parallel import end_children_of_threads

UUID = "6f1c4f3e-9d1b-4d54-9a57-0d8a3a1f2b3c"
URI = "qemu:///system"
OTHER = "<channel type='unix'><target type='virtio' name='com.redhat.spice.0' state='connected'/></channel>"
CONSOLE = "<console><target type='virtio' name='org.qemu.guest_agent.0'/></console>"


def channel(state: str = "") -> str:
    said = f" state='{state}'" if state else ""
    return f"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'{said}/></channel>"


def xml(devices: str, name: str = "web") -> str:
    return f"<domain type='kvm'><name>{name}</name><uuid>{UUID}</uuid><devices>{OTHER}{devices}</devices></domain>"


@pytest.mark.parametrize(
    ("devices", "is_active", "state"),
    [
        (channel("connected"), True, ""),
        (channel("disconnected"), True, NO_AGENT),
        (channel(), True, ""),
        ("", True, NO_AGENT),
        (CONSOLE, True, NO_AGENT),
        (channel(), False, OFF),
        ("", False, NO_AGENT),
    ],
)
def test_state(devices: str, is_active: bool, state: str) -> None:
    guest = guest_of(xml(devices), is_active, URI, "localhost")
    assert (guest.name, guest.uuid, guest.state, guest.libvirt_uri) == ("web", UUID, state, URI)
    assert guest.address == f"libvirt:{UUID}" and not guest.remote


def test_names_are_made_visible() -> None:
    assert guest_of(xml("", "a &lt;{{ b }} \u202e"), True, URI, "hv1").name == "a <{{ b }} \\u202e"


@pytest.mark.parametrize("text", ["<!DOCTYPE x [<!ENTITY a 'b'>]><domain/>", "<domain><![CDATA[x]]></domain>"])
def test_xml_that_is_no_domain(text: str) -> None:
    with pytest.raises(AddressError):
        guest_of(text, True, URI, "localhost")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("qemu:///system", "localhost"),
        ("qemu:///system?socket=/run/x", "localhost"),
        ("qemu+ssh://root@hv1/system", "root@hv1"),
        ("qemu+ssh://hv2/system", "joe@hv2"),
        ("qemu+tls://hv3:16514/system", "hv3"),
        ("qemu+ssh://[::1", "localhost"),
    ],
)
def test_hypervisor_of(uri: str, name: str) -> None:
    assert hypervisor_of(uri, ["localhost", "root@hv1", "joe@hv2"]) == name


def test_default_is_nothing_where_there_is_no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_domains, "libvirt", None)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", URI)
    assert default_uris() == []
    with pytest.raises(ConnectError, match="library is missing"):
        domains(URI, "localhost", 5)


def test_default_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_domains, "libvirt", SimpleNamespace())
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///session")
    assert default_uris() == ["qemu:///session"]


def test_libvirt_that_hangs_is_left_and_its_ssh_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    end = threading.Event()
    asked = []

    def open_read_only(uri: str) -> Any:
        asked.append(uri)
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]))
        end.wait(60)
        raise RuntimeError

    library = SimpleNamespace(
        openReadOnly=open_read_only, registerErrorHandler=lambda *_: None, libvirtError=RuntimeError
    )
    monkeypatch.setattr(libvirt_domains, "libvirt", library)
    before = time.monotonic()
    with pytest.raises(ConnectError, match=r"did not answer within 0\.5 s"):
        domains("qemu+ssh://hv1/system", "hv1", 0.5)
    assert time.monotonic() - before < 5 and asked == ["qemu+ssh://hv1/system?no_tty=1"]
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        end_children_of_threads(THREADS)
        assert started[0].wait(10) == -9
        assert bystander.poll() is None
    finally:
        end.set()
        bystander.kill()
        bystander.wait()


def test_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        def get_error_message(self) -> str:
            return "authentication failed"

    def refuse(uri: str) -> Any:
        raise Refused

    library = SimpleNamespace(openReadOnly=refuse, registerErrorHandler=lambda *_: None, libvirtError=Refused)
    monkeypatch.setattr(libvirt_domains, "libvirt", library)
    with pytest.raises(ConnectError, match="authentication failed"):
        domains(URI, "localhost", 5)


class Remote(Hypervisor):
    """A machine whose sockets are here under another name."""

    @contextmanager
    def forward(self, path: str, deadline: object) -> Iterator[str]:
        yield f"/here{path}"


def test_libvirt_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    domain = SimpleNamespace(
        XMLDesc=lambda flags: f"<domain><name>web</name><uuid>{UUID}</uuid></domain>", isActive=int
    )

    def open_read_only(uri: str) -> Any:
        opened.append(uri)
        return SimpleNamespace(listAllDomains=lambda flags: [domain], close=lambda: None)

    library = SimpleNamespace(
        openReadOnly=open_read_only, registerErrorHandler=lambda *_: None, libvirtError=RuntimeError
    )
    monkeypatch.setattr(libvirt_domains, "libvirt", library)
    machine = Remote("hv1", {}, is_host=True)
    assert domains_of(machine, "hv1", {"/run/other"}, 5) == [] and not opened, "it has none"
    (guest,) = domains_of(machine, "hv1", {"/run/libvirt/virtqemud-sock"}, 5)
    assert opened == ["qemu+unix:///system?socket=/here/run/libvirt/virtqemud-sock"]
    assert (guest.name, guest.address, guest.libvirt_uri, guest.remote) == ("web", f"libvirt:{UUID}", "", True)
    monkeypatch.setattr(libvirt_domains, "libvirt", None)
    assert domains_of(machine, "hv1", {"/run/libvirt/libvirt-sock"}, 5) == [], "nor is there a library for it here"
