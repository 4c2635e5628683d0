# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warm Python in a guest that is this machine, by a runner of its shell."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.bootstrap import start_runner
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest.test_login_shell import tool
from ansible_collections.qemu.guest.tests.unit.scripted import STATUS, Clock, Scripted


@pytest.fixture
def server(guest: Guest, scripted: Callable[..., Scripted]) -> Scripted:
    return scripted({**guest.answers(), STATUS: "thawed"})


@pytest.fixture
def agent(guest: Guest, clock: Clock, server: Scripted, connect: Callable[..., SocketAgent]) -> Runner:
    # Where this machine has systemd, it is not to start anything; and all of this needs real time.
    tool(guest, "systemd-run", "exit 1")
    clock.on_sleep = lambda: time.sleep(0.005)
    below = connect(server)
    return Runner(below, functools.partial(start_runner, routes=(), log=lambda line: None))


@pytest.fixture
def warm_with(agent: Runner) -> Iterator[Callable[..., WarmPython]]:
    """Make warm Pythons with their own patience. Their interpreters end with the test."""
    yield lambda **how: WarmPython(agent, lambda line: None, **how)
    WarmPython(agent, lambda line: None).end()


@pytest.fixture
def warm(warm_with: Callable[..., WarmPython]) -> WarmPython:
    return warm_with()
