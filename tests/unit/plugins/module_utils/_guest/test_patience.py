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


class Absence:
    """The socket is missing for some ``seconds`` from the agent's request ``number`` on, which is at ``since``."""

    def __init__(self, agent: SocketAgent, clock: Clock, number: int, seconds: float) -> None:
        self.since = 0.0
        self._left = number
        self._clock = clock
        self._seconds = seconds
        self._request = agent._request

    def request(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        self._left -= 1
        if self._left == 0:
            self.since = self._clock.now
        if self.since and self._clock.now - self.since < self._seconds:
            raise ConnectError("there is no such socket.")
        return self._request(command, arguments, deadline)


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


@pytest.mark.parametrize(
    ("name", "timeout"), [("put", 20.0), ("put long", 20.0), ("put long", 60.0), ("fetch", 20.0), ("run", 60.0)]
)
def test_guest_without_a_socket_has_the_timeout_to_be_started_again(
    server: Scripted,
    connect: Callable[..., SocketAgent],
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    timeout: float,
) -> None:
    """One that libvirt has saved (managedsave) goes on where it was, by a new QEMU with a new socket.

    So it is from each request of an operation on, but for the first, which nothing was done before.
    """
    clock.on_sleep = lambda: time.sleep(0.001)
    (tmp_path / "place").mkdir()
    for number in itertools.count(2):
        agent = connect(server, timeout)
        with agent, monkeypatch.context() as patch:
            absence = Absence(agent, clock, number, timeout - 1)
            patch.setattr(agent, "_request", absence.request)
            OPERATIONS[name](GuestExec(agent, sizes=ManyRequests()), tmp_path / "place")
            if not absence.since:
                break
    assert number > 3
