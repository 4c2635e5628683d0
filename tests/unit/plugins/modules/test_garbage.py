# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever an agent replies, a module ends with a result or with an error of the collection's own tree.

Each reply of an agent in good order is damaged in each place, one at a time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ProtocolError, QgaError
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module import freeze, power
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec
from ansible_collections.qemu.guest.plugins.modules import qga_shutdown, qga_suspend
from ansible_collections.qemu.guest.tests.unit.filesystems import armed_for_nothing
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted

INFO = {"version": "7.2.22", "supported_commands": [{"name": "guest-ping", "enabled": True, "success-response": True}]}
CPUS = [{"logical-id": 0, "online": True, "can-offline": False}, {"logical-id": 1, "online": True, "can-offline": True}]
BLOCKS = [{"phys-index": n, "online": True, "can-offline": True} for n in range(2)]
FSINFO: list[dict[str, Any]] = [
    {"name": name, "mountpoint": point, "type": "ext4", "disk": disk, "used-bytes": 1, "total-bytes": 2}
    for name, point, disk in (("vda", "/b1", [{}]), ("loop0", "/loop", []), ("vda", "/", [{"dev": "/dev/vda"}]))
]
INTERFACES = [
    {
        "name": "eth0",
        "hardware-address": "52:54:00:12:34:56",
        "ip-addresses": [{"ip-address": "192.0.2.1", "ip-address-type": "ipv4", "prefix": 24}],
    }
]
ROUTES = [
    {"version": 4, "iface": "eth0", "destination": "0.0.0.0", "mask": "0.0.0.0", "gateway": "192.0.2.2", "flags": 3},
    {"version": 6, "iface": "eth0", "destination": "::", "desprefixlen": "0", "nexthop": "fe80::2", "flags": 3},
]
ENDED = {"exited": True, "exitcode": 3, "signal": 9, "out-data": "YQ==", "err-data": "Yg==", "out-truncated": False}
CPUSTATS = [{"type": "linux", "cpu": 0, "user": 1, "idle": 2}]
CLOSED: dict[str, Any] = {"guest-file-open": 1000, "guest-file-close": {}}
BOOT = {**CLOSED, "guest-file-read": {"count": 1, "buf-b64": "YQ==", "eof": True}, "guest-get-cpustats": CPUSTATS}

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXmEmVbE6rHhFYg7l1lVZrZ0pTnXWDFbKsNDhPcFGDD a"

# The options of a task, and the replies that its module asks for.
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qga_authorized_keys": (
        {"user": "alice", "keys": [KEY]},
        {
            "guest-ssh-get-authorized-keys": {"keys": ["# at work", KEY.replace("C3", "C4")]},
            "guest-ssh-add-authorized-keys": {},
            **CLOSED,
            "guest-file-read": {"count": 26, "buf-b64": "YWxpY2U6eDoxOjE6Oi9oOi9iaW4vc2g=", "eof": True},
        },
    ),
    "qga_command": ({"command": "guest-get-osinfo"}, {"guest-get-osinfo": {"id": "debian", "version-id": "12"}}),
    "qga_exec": (
        {"shell": "x", "timeout": 3.0, "creates": "/nothing"},
        {"guest-exec": {"pid": 1}, "guest-exec-status": ENDED, **CLOSED},
    ),
    "qga_facts": (
        {},
        {
            "guest-get-osinfo": {"id": "debian", "version-id": "12", "kernel-version": "#1", "machine": "x86_64"},
            "guest-get-host-name": {"host-name": "vm1"},
            "guest-network-get-interfaces": INTERFACES,
            "guest-network-get-route": ROUTES,
            "guest-get-disks": [{"name": "/dev/vda1", "partition": True, "dependencies": ["/dev/vda"]}],
            "guest-get-fsinfo": FSINFO,
            "guest-get-load": {"load1m": 0.5, "load5m": 0.5, "load15m": 0.5},
            "guest-get-time": 1767225600000000000,
            "guest-get-timezone": {"zone": "UTC", "offset": 0},
            **CLOSED,
            "guest-file-read": {"count": 1, "buf-b64": "YQ==", "eof": True},
        },
    ),
    "qga_fsfreeze": (
        {"state": "frozen"},
        {
            "guest-fsfreeze-freeze": 1,
            "guest-fsfreeze-thaw": 1,
            "guest-fsfreeze-status": "thawed",
            "guest-get-fsinfo": FSINFO,
        },
    ),
    "qga_fstrim": (
        {},
        {"guest-fstrim": {"paths": [{"path": "/", "minimum": 0, "trimmed": 4096}, {"path": "/b1", "error": "no"}]}},
    ),
    "qga_info": (
        {"authorized_keys_of": ["root"], "query": "addresses"},
        {
            "guest-get-users": [{"user": "root", "login-time": 1.5}],
            "guest-network-get-interfaces": INTERFACES,
            "guest-get-osinfo": {"id": "debian"},
            "guest-ssh-get-authorized-keys": {"keys": ["ssh-rsa x"]},
            **CLOSED,
        },
    ),
    "qga_memory_blocks": (
        {"offline": [1]},
        {
            "guest-get-memory-blocks": BLOCKS,
            "guest-get-memory-block-info": {"size": 1},
            "guest-set-memory-blocks": [{"phys-index": 1, "response": "operation-failed", "error-code": 16}],
        },
    ),
    "qga_ping": ({"commands": ["guest-ping"]}, {}),
    "qga_shutdown": ({"mode": "reboot", "timeout": 3.0}, {"guest-shutdown": {}, **BOOT}),
    "qga_suspend": ({"mode": "disk", "timeout": 3.0}, {"guest-suspend-disk": {}}),
    "qga_time": ({}, {"guest-get-time": 1767225600000000000, "guest-set-time": {}}),
    "qga_user_password": ({"user": "root", "password": "x"}, {"guest-set-user-password": {}}),
    "qga_vcpus": ({"count": 1}, {"guest-get-vcpus": CPUS, "guest-set-vcpus": 1}),
}

GARBAGE: tuple[Any, ...] = (None, True, -1, 0, 2**64, 10**400, 1.5, 1e308, "", "x", "\ud800\0", [], [[]], {}, {"x": {}})


def damaged(value: Any) -> Iterator[Any]:
    """Return ``value`` with each of its parts, and all of it, replaced by each kind of garbage, or left out."""
    yield from GARBAGE
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            less = copy.copy(value)
            del less[key]
            yield less
            for garbage in damaged(value[key]):
                other = copy.copy(value)
                other[key] = garbage
                yield other
        if isinstance(value, list):
            yield value * 2


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Time passes by itself, and no process is left that waits for an agent which is gone."""
    for waits in (power, qga_shutdown, qga_suspend):
        monkeypatch.setattr(waits, "time", clock)
    monkeypatch.setattr(freeze, "arm", armed_for_nothing)


@pytest.mark.parametrize(
    ("module", "command"),
    [(module, command) for module, (_given, replies) in TASKS.items() for command in ("guest-info", *replies)],
)
def test_garbage(
    scripted: Callable[..., Scripted],
    connect: Callable[..., SocketAgent],
    module: str,
    command: str,
) -> None:
    given, replies = TASKS[module]
    operation = import_module(f"ansible_collections.qemu.guest.plugins.modules.{module}").OPERATION
    options = {**{name: option.get("default") for name, option in argument_spec(operation).items()}, **given}
    server = scripted(replies)
    usual = dict(server.answers)
    for reply in damaged({"guest-info": INFO, **replies}[command]):
        server.answers.update({**usual, command: reply})
        with suppress(QgaError), connect(server) as agent:
            try:
                json.dumps(run_operation(operation, agent, options, diff=True), allow_nan=False)
            except QgaError as exc:
                json.dumps([str(exc), exc.as_result()], allow_nan=False)
                if isinstance(exc, ProtocolError):
                    assert str(exc).startswith(f"guest agent at {agent.name}: {exc.command} {exc.fate}: ")
                raise
            except Exception as exc:
                pytest.fail(f"{command} that returns {str(reply)[:200]} makes {module} fail by {exc!r}")
