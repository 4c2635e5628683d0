# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of ssh; that it really forwards is seen in tests/integration/agents/test_hypervisor.py."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import lock
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError, ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import private_path
from ansible_collections.qemu.guest.plugins.plugin_utils._ssh_forward import connect, forwarded

ADDRESS = forwarded(parse_address("/run/vm1.qga"), "root@hypervisor")


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The names of sockets must be short."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setattr(lock, "_private_directory", lambda: name)
        yield


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stands in for ssh; it writes down what it was asked for."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def does(ssh: Path, script: str) -> None:
    ssh.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{ssh.parent}/asked\n{script}\n")
    ssh.chmod(0o755)


def test_address() -> None:
    assert str(ADDRESS) == "unix:/run/vm1.qga on root@hypervisor"
    assert ADDRESS.identity != parse_address("/run/vm1.qga").identity
    assert ADDRESS.identity != forwarded(parse_address("/run/vm1.qga"), "another").identity


@pytest.mark.parametrize("text", ["libvirt:web", "tcp:host:7000", "vsock:3:1234"])
def test_only_a_path_can_be_forwarded(text: str) -> None:
    with pytest.raises(AddressError, match="cannot be reached through ssh to hypervisor: only the path"):
        forwarded(parse_address(text), "hypervisor")


@pytest.mark.parametrize("hypervisor", ["-oProxyCommand=x", " "])
def test_what_is_no_destination(hypervisor: str) -> None:
    with pytest.raises(AddressError, match="not a destination"):
        forwarded(parse_address("/run/vm1.qga"), hypervisor)


def test_ssh_that_is_there_is_used(ssh: Path) -> None:
    does(ssh, "exit 1")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(private_path(ADDRESS.identity, "ssh"))
        listener.listen()
        connect(ADDRESS, Deadline(5)).close()
    assert not (ssh.parent / "asked").exists()


def test_ssh_is_started(ssh: Path) -> None:
    serve = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); s.accept()"
    path = private_path(ADDRESS.identity, "ssh")
    does(ssh, f"python3 -c '{serve}' {path} & until [ -S {path} ]; do sleep 0.01; done; sleep 0.2")
    connect(ADDRESS, Deadline(30)).close()
    asked = (ssh.parent / "asked").read_text().splitlines()
    assert asked[-5:] == ["-L", f"{path}:/run/vm1.qga", "--", "root@hypervisor", "sleep 10"]
    assert "-oBatchMode=yes" in asked and asked[0] == "-f"
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo some warning >&2; echo 'Permission denied (publickey).' >&2; exit 255", "Permission denied"),
        ("exit 255", "exit status 255"),
        ("exec sleep 30", "did not connect within 0.5 s"),
        ("exit 0", "ended as soon as it was there"),
    ],
)
def test_ssh_that_fails(ssh: Path, script: str, words: str) -> None:
    does(ssh, script)
    with pytest.raises(ConnectError, match=words):
        connect(ADDRESS, Deadline(0.5))


def test_no_ssh(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(ssh.parent))
    with pytest.raises(ConnectError, match="cannot start ssh: No such file"):
        connect(ADDRESS, Deadline(5))
