# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine is meant, and which logins are the same; tests/integration/agents/test_hypervisor.py reaches one."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible.plugins.loader import become_loader, connection_loader

from ansible_collections.qemu.guest.plugins.module_utils._agent import lock
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline, within
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError, ConnectError
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor import login
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.control_socket import ControlSocket
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.find import find_hypervisor, host_variables
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The names of sockets must be short."""
    with TemporaryDirectory() as name:
        monkeypatch.setattr(lock, "_private_directory", lambda: name)
        yield Path(name)


@pytest.fixture
def clock() -> None:
    """Time is real: ssh is another process."""


def found(name: str, variables: dict[str, Any] | None = None, **options: Any) -> Hypervisor:
    hypervisor = find_hypervisor(name, variables, options)
    assert hypervisor is not None
    return hypervisor


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("localhost", None),
        ("localhost", {"ansible_connection": "local"}),
        ("hv", {"ansible_connection": "ansible.builtin.local"}),
    ],
)
def test_this_machine(name: str, variables: dict[str, Any] | None) -> None:
    assert find_hypervisor(name, variables) is None


@pytest.mark.parametrize("name", ["-oProxyCommand=x", " ", "hv\nother", ""])
def test_what_is_no_destination(name: str) -> None:
    with pytest.raises(AddressError, match="neither an inventory host nor a destination"):
        find_hypervisor(name, None)
    with pytest.raises(AddressError, match="neither an inventory host nor a destination"):
        find_hypervisor("hv", {"ansible_host": name or " "})


def test_host_of_another_connection() -> None:
    with pytest.raises(AddressError, match=r"hv has the connection community\.docker\.docker"):
        find_hypervisor("hv", {"ansible_connection": "community.docker.docker"})


def test_only_the_same_login_shares_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    login = {"ansible_host": "192.0.2.1", "ansible_user": "root", "ansible_password": "one"}
    identity = found("hv", login).identity
    assert found("hv", {**login, "ansible_password": "another", "qga_address": "/run/vm1.qga"}).identity == identity
    assert found("other name", login).identity == identity
    facts = {"ansible_ssh_host_key_rsa_public": "AAAA", "ansible_ssh_host_key_rsa_public_keytype": "ssh-rsa"}
    assert found("hv", {**login, **facts}).identity == identity
    assert found("hv", {**login, "ansible_ssh_host_key_checking": False}).identity != identity
    for variable in ("host", "port", "user", "ssh_common_args", "ssh_args", "private_key_file", "become_user"):
        assert found("hv", {**login, f"ansible_{variable}": "other"}).identity != identity, variable
    monkeypatch.setenv("ANSIBLE_HOST_KEY_CHECKING", "False")
    assert found("hv", login).identity != identity


def test_become_belongs_to_the_login() -> None:
    login = {"ansible_host": "192.0.2.1", "ansible_become": "yes", "ansible_become_method": "community.general.pfexec"}
    hypervisor = found("hv", login)
    for variable in ("python_interpreter", "pfexec_pass", "become_password"):
        assert found("hv", {**login, f"ansible_{variable}": "other"}).identity == hypervisor.identity, variable
    for variable in ("become_user", "pfexec_flags", "become_method", "become"):
        assert found("hv", {**login, f"ansible_{variable}": "other"}).identity != hypervisor.identity, variable


def test_address() -> None:
    one, other = found("root@hv"), found("hv")
    assert str(one.address("/run/vm1.qga")) == "unix:/run/vm1.qga on root@hv"
    assert one.address("/run/vm1.qga").identity == found("root@hv").address("/run/vm1.qga").identity
    assert one.address("/run/vm1.qga").identity != one.address("/run/vm2.qga").identity
    assert one.address("/run/vm1.qga").identity != other.address("/run/vm1.qga").identity


def test_variables_of_a_host() -> None:
    hostvars = {"hv": {"ansible_host": "192.0.2.1"}}
    assert host_variables("hv", hostvars) == {"ansible_host": "192.0.2.1"}
    assert host_variables("root@hv", hostvars) is None
    assert host_variables("hv", None) is None, "this process was not started for a task"


def stand_in(directory: Path, script: str) -> Hypervisor:
    """Return a hypervisor to which ssh is this script."""
    program = directory / "ssh"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return found("hv", {"ansible_host": "192.0.2.1", "ansible_ssh_executable": str(program)})


@pytest.mark.parametrize(
    "script", ["echo $$ >{}/pid; while :; do sleep 0.1; done", "sleep 1000 & echo $! >{}/pid; wait"]
)
def test_ssh_that_hangs_is_ended(script: str, directory: Path) -> None:
    """It, and what it has started: a ProxyCommand."""
    hypervisor = stand_in(directory, script.format(directory))
    started = time.monotonic()
    with pytest.raises(ConnectError, match=r"ssh to hv did not come to an end within 0\.5 s"):
        hypervisor.connect("/run/vm1.qga", Deadline(0.5))
    assert time.monotonic() - started < 5
    pid = int((directory / "pid").read_text(encoding="ascii"))
    end = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < end, "it runs on"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("variables", "is_host", "user"), [({}, True, "ops"), ({"ansible_user": "root"}, True, "root"), ({}, False, "")]
)
def test_user_of_the_command_line(
    variables: dict[str, Any], is_host: bool, user: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "CLIARGS", ImmutableDict(remote_user="ops"))
    it = login.Login("hv", {"ansible_host": "hv", **variables}, is_host=is_host)
    assert it.ssh("/nowhere", Deadline(5)).get_option("remote_user") == user


def test_plugins_are_loaded_by_one_thread_at_a_time(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several hypervisors are looked at at once, and ansible-core's loaders fail then."""
    busy = threading.Lock()
    alone = []

    def loads(loader: Any) -> None:
        get = loader.get

        def get_alone(*arguments: Any) -> Any:
            alone.append(busy.acquire(blocking=False))
            try:
                time.sleep(0.02)
                return get(*arguments)
            finally:
                if alone[-1]:
                    busy.release()

        monkeypatch.setattr(loader, "get", get_alone)

    loads(connection_loader)
    loads(become_loader)

    def load(_number: int) -> None:
        it = login.Login("hv", {"ansible_host": "hv", "ansible_become": True}, is_host=True)
        it.ssh("/nowhere", Deadline(5))
        it.become()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load, range(8)))
    assert alone == [True] * 16


def test_ssh_that_hangs_with_a_full_queue_is_not_waited_for(directory: Path) -> None:
    control = ControlSocket(str(directory / "ctl"), "ssh")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(control.path)
        listener.listen(0)
        assert [within(5, control.listens) for _number in range(3)] == [True, False, False]


def test_what_ssh_says_is_told(directory: Path) -> None:
    hypervisor = stand_in(directory, "echo 'ssh: connect to host 192.0.2.1 port 22: No route to host' >&2; exit 255")
    with pytest.raises(ConnectError, match=r"cannot connect to hv by ssh: ssh: connect to host .*: No route to host"):
        hypervisor.connect("/run/vm1.qga", Deadline(20))


def test_program_that_is_not_openssh(directory: Path) -> None:
    with pytest.raises(ConnectError, match=r"ssh to hv leaves no connection behind: .* OpenSSH's ssh"):
        stand_in(directory, "exit 0").connect("/run/vm1.qga", Deadline(20))


def test_program_that_is_missing(directory: Path) -> None:
    hypervisor = found("hv", {"ansible_host": "192.0.2.1", "ansible_ssh_executable": str(directory / "nope")})
    with pytest.raises(ConnectError, match=r"cannot connect to hv by ssh: .*No such file"):
        hypervisor.connect("/run/vm1.qga", Deadline(20))
