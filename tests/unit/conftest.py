# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import (
    base,
    channel,
    deadline,
    libvirt_agent,
    lock,
    socket_agent,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest import executor, fetch_packed, files, patience
from ansible_collections.qemu.guest.plugins.modules import qga_exec, qga_ping
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.machine import Machine
from ansible_collections.qemu.guest.tests.unit.properties import load_profile
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted

load_profile()


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of tests are the tests' own."""
    directory = tmp_path / "locks"
    directory.mkdir()
    monkeypatch.setattr(lock, "_private_directory", lambda: str(directory))
    return directory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of all modules stands still but for what the test and its scripted agent let pass."""
    clock = Clock()
    agent = (base, channel, deadline, libvirt_agent, lock, socket_agent)
    for module in (*agent, executor, files, fetch_packed, patience, qga_exec, qga_ping):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def scripted(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Scripted]]:
    """Start scripted agents, on the test's clock. They end with the test."""
    with ExitStack() as stack:

        def start(answers: dict[str, Any] | None = None, *, path: Path | None = None, **how: Any) -> Scripted:
            server = Scripted(path or tmp_path / "agent.sock", answers, clock=clock, **how)
            return stack.enter_context(server)

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., SocketAgent]]:
    """Make agents that lead to a scripted one. They are closed with the test."""
    with ExitStack() as stack:

        def agent(server: Scripted, timeout: float = 20, **how: Any) -> SocketAgent:
            made = SocketAgent(Address("unix", path=str(server.path)), timeout, **how)
            stack.callback(made.close)
            return made

        yield agent


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    guest.close()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Start machines that are shut down and suspended. They end with the test."""
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(Machine(tmp_path, **how))


@pytest.fixture
def server(scripted: Callable[..., Scripted], guest: Guest) -> Scripted:
    """The scripted agent of a guest that is this machine; files whose agents answer otherwise have another one."""
    return scripted(guest.answers())


@pytest.fixture
def agent(server: Scripted, connect: Callable[..., SocketAgent]) -> SocketAgent:
    """An agent that leads to `server`."""
    return connect(server)
