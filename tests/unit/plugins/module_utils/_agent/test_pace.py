# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.pace import Pace
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import CHUNK, copy_in, copy_out
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import run_shell
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.spool import Spool
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Request, Scripted, Session, answers, reply_to

SERIAL = 7000  # bytes per second


def test_nothing_is_known_at_first() -> None:
    assert Pace().carries(2.5, CHUNK) == 16 * 1024
    assert Pace().carries(2.5, 100) == 100


@pytest.mark.parametrize(("size", "seconds", "carried"), [(7000, 1, 13_125), (4096, 60, 4096), (10**6, 0.1, CHUNK)])
def test_what_was_seen_counts(size: int, seconds: float, carried: int) -> None:
    pace = Pace()
    pace.note(size, seconds)
    assert pace.carries(2.5, CHUNK) == carried


def test_small_request_that_waited_tells_little() -> None:
    pace = Pace()
    pace.note(100_000, 0.1)
    pace.note(100, 2)
    assert pace.carries(2.5, CHUNK) == CHUNK


class Serial:
    """An agent behind a serial port, on the test's clock; ``longest`` is the longest request in seconds."""

    def __init__(self, server: Scripted, clock: Clock) -> None:
        self.longest = 0.0
        self.writes: list[int] = []
        self._clock = clock
        for command in server.answers:
            server.then(command, *[self.step] * 500)
        server.then("guest-info", *[self.step] * 9)

    def step(self, session: Session, request: Request) -> None:
        seconds = len(request.line) / SERIAL
        if request.command == "guest-info":
            seconds += len(reply_to(session, request)) / SERIAL
        if request.command == "guest-file-read":
            seconds += int(request.arguments["count"]) * 4 / 3 / SERIAL
        if "buf-b64" in request.arguments:
            self.writes.append(len(base64.b64decode(request.arguments["buf-b64"])))
        self._clock.advance(seconds)
        self.longest = max(self.longest, seconds)
        answers(session, request)


@pytest.fixture
def serial(server: Scripted, clock: Clock) -> Serial:
    return Serial(server, clock)


DATA = os.urandom(150_000)


@pytest.mark.parametrize("way", ["in", "out", "spool"])
def test_requests_over_a_slow_way_take_an_eighth_of_their_time(
    agent: SocketAgent, serial: Serial, tmp_path: Path, way: str
) -> None:
    path = tmp_path / "file"
    if way == "in":
        copy_in(agent, io.BytesIO(DATA), str(path))
    elif way == "out":
        path.write_bytes(DATA)
        sink = io.BytesIO()
        copy_out(agent, str(path), sink.write)
        assert sink.getvalue() == DATA
    else:
        assert Spool(agent, str(tmp_path)).write("file", DATA)
        assert Spool(agent, str(tmp_path)).read("file", len(DATA)) == DATA
    assert path.read_bytes() == DATA
    assert serial.longest < agent.timeout / 4, "but for the first, of which nothing is known, an eighth"


def test_long_input_over_a_slow_way_goes_by_a_file(agent: SocketAgent, serial: Serial) -> None:
    assert agent.supports("guest-exec")
    assert run_shell(GuestExec(agent), b"cat", DATA).stdout == DATA
    assert serial.longest < agent.timeout / 1.5
    assert sum(serial.writes) >= len(DATA)


def test_quick_way_takes_a_chunk_at_once(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    copy_in(agent, io.BytesIO(DATA), str(tmp_path / "file"))
    assert server.work.count("guest-file-write") == 1
