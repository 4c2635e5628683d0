# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent that answers nothing more, from each request of an operation on: all that it causes shares one limit."""

from __future__ import annotations

import io
import itertools
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    ConnectError,
    OutcomeUnknownError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor, GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import Sizes
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import kill, run_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch, put
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted

TIMEOUT = 5.0


class ManyRequests(Sizes):
    small = 1000


def _put(executor: Executor, path: Path) -> None:
    put(executor, io.BytesIO(os.urandom(20)), str(path / "file"))


def _put_long(executor: Executor, path: Path) -> None:
    put(executor, io.BytesIO(os.urandom(3000)), str(path / "file"))


def _fetch(executor: Executor, path: Path) -> None:
    (path / "there").write_bytes(os.urandom(3000))
    fetch(executor, str(path / "there"), io.BytesIO())


def _run(executor: Executor, path: Path) -> None:
    run_shell(executor, b"head -c 1100000 /dev/zero")


def _kill(executor: Executor, path: Path) -> None:
    kill(executor, 4194305, 0)  # more than any process has


OPERATIONS = {"put": _put, "put long": _put_long, "fetch": _fetch, "run": _run, "kill": _kill}


class Silence:
    """The agent answers nothing from its request ``number`` on, which is at ``since``. ``count``: those so far."""

    def __init__(self, agent: SocketAgent, clock: Clock, number: int) -> None:
        self.count = 0
        self.since = 0.0
        self._number = number
        self._clock = clock
        self._request = agent._request

    def request(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        self.count += 1
        if self.count < self._number:
            return self._request(command, arguments, deadline)
        self.since = self.since or self._clock.now
        self._clock.advance(deadline.left())
        raise (OutcomeUnknownError if self.count == self._number else AgentSilentError)("no answer")


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_agent_that_answers_nothing_more_is_given_up_once(
    server: Scripted,
    connect: Callable[..., SocketAgent],
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: Callable[[Executor, Path], None],
) -> None:
    """Two minutes, and the timeout three times: the first question, the last one, and to clean up."""
    clock.on_sleep = lambda: time.sleep(0.001)
    (tmp_path / "place").mkdir()
    for number in itertools.count(1):
        agent = connect(server, TIMEOUT)
        with agent, monkeypatch.context() as patch:
            silence = Silence(agent, clock, number)
            patch.setattr(agent, "_request", silence.request)
            with suppress(QgaError):
                operation(GuestExec(agent, sizes=ManyRequests()), tmp_path / "place")
            if silence.count < number:
                break
            assert clock.now - silence.since <= 120 + 3 * TIMEOUT, f"request {number}"
    assert number > 3


@pytest.mark.parametrize("operation", [_put_long, _run], ids=["put", "run"])
@pytest.mark.parametrize("timeout", [20.0, 60.0])
def test_guest_without_a_socket_has_the_timeout_to_be_started_again(
    server: Scripted,
    connect: Callable[..., SocketAgent],
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: Callable[[Executor, Path], None],
    timeout: float,
) -> None:
    """One that libvirt has saved (managedsave) goes on where it was, by a new QEMU with a new socket."""
    clock.on_sleep = lambda: time.sleep(0.001)
    (tmp_path / "place").mkdir()
    agent, ended = connect(server, timeout), 0.0
    request, count = agent._request, itertools.count(1)

    def none_for_long(command: str, *how: Any) -> Any:
        nonlocal ended
        if not ended and next(count) > 4:
            ended = clock.now
        if ended and clock.now - ended < timeout - 1:
            raise ConnectError("there is no such socket.")
        return request(command, *how)

    monkeypatch.setattr(agent, "_request", none_for_long)
    operation(GuestExec(agent, sizes=ManyRequests()), tmp_path / "place")
    assert ended
