# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interpreters, as their server sees them: what they send may be anything."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import frames, interpreter
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.task_output import LOST
from ansible_collections.qemu.guest.tests.unit.warm import a_request, an_interpreter, until


def test_late_end_of_a_process_is_not_that_of_the_next_task(tmp_path: Path) -> None:
    """A task tells its status before its process ends, and the next one may have begun when that is heard of."""
    one, zygote = an_interpreter()
    numbers = []
    with closing(one), zygote:
        for _task in range(2):
            one.hand_over(7, a_request(), str(tmp_path / "7"))
            request = frames.receive(zygote)
            assert request
            request.close()
            numbers.append(request.serial)
        zygote.sendall(frames.record(numbers[0], 3))
        one.listen()
        assert [task.rc for task in one.tasks.values()] == [3, None]
        zygote.sendall(frames.record(numbers[1], 4))
        one.listen()
        assert [task.rc for task in one.tasks.values()] == [3, 4]


def test_interpreter_that_has_ended_unheard_of_runs_nothing(tmp_path: Path) -> None:
    one, zygote = an_interpreter()
    zygote.close()
    before = len(os.listdir("/proc/self/fd"))
    one.hand_over(7, a_request(), str(tmp_path / "7"))
    task = next(iter(one.tasks.values()))
    assert one.dead and task.ended
    assert task.result() == b"plain\n"
    task.drop()
    one.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2, "nothing stays open"


def junk() -> Iterator[bytes]:
    """Yield what no interpreter sends."""
    yield frames.record(4711, 0)  # of no request
    yield frames.record(1, 0xFFFF)
    yield b'{"number": 1, "rc": 0}\n' * 10
    yield bytes(1 << 16)
    chance = random.Random(1)
    yield from (chance.randbytes(size) for size in (7, 100, 5000))


@pytest.mark.parametrize("text", list(junk()), ids=range(len(list(junk()))))
def test_junk_costs_its_interpreter_alone(tmp_path: Path, text: bytes) -> None:
    one, zygote = an_interpreter()
    with closing(one), zygote:
        one.hand_over(7, a_request(), str(tmp_path / "7"))
        zygote.setblocking(False)
        for _time in range(50):
            with suppress(BlockingIOError, BrokenPipeError):
                zygote.send(text)
            if one.dead:
                break
            one.listen()
        assert one.dead
        assert [task.rc for task in one.tasks.values()] == [LOST]


def test_interpreter_that_talks_before_it_is_ready_is_not_listened_to_for_ever() -> None:
    one, zygote = an_interpreter(ready=False)
    with closing(one), zygote:
        zygote.setblocking(False)
        for _time in range(1000):
            with suppress(BlockingIOError, BrokenPipeError):
                zygote.send(bytes(4096))
            if one.dead:
                break
            one.listen()
        assert one.dead and one.failed
        assert len(one.received) <= interpreter.MOST_STARTUP_OUTPUT + 8192


def test_descriptors_that_an_interpreter_sends_are_not_taken() -> None:
    one, zygote = an_interpreter()
    with closing(one), zygote, open(os.devnull, "rb") as file:
        before = len(os.listdir("/proc/self/fd"))
        zygote.sendmsg([frames.record(1, 0)], frames.rights([file.fileno()]))
        one.listen()
        assert len(os.listdir("/proc/self/fd")) <= before


def lingering() -> tuple[socket.socket, socket.socket]:
    """Return a connection that takes 20 s to close, because the other end, which comes second, reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs = server.accept()[0]
    ours.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    return ours, theirs


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
@pytest.mark.parametrize("heard", [True, False])
def test_descriptors_that_take_long_to_close_keep_nobody(flags: int, heard: bool) -> None:
    one, zygote = an_interpreter()
    one.marker = "BECOME-SUCCESS-x"
    connection, other = lingering()
    with zygote, other:
        zygote.sendmsg([b"x"], frames.rights([connection.fileno()]), flags)
        connection.close()
        began = time.monotonic()
        if heard:
            one.listen()
            assert one.dead
        one.close()
        assert time.monotonic() - began < 10
        assert other.recv(1)


def test_interpreter_that_reads_nothing_is_given_up(tmp_path: Path) -> None:
    """It has not got all of its request, so nothing was run."""
    one, zygote = an_interpreter(stuck_seconds=0.5)
    with closing(one), zygote:
        request = a_request()
        request.program = bytes(10_000_000)
        began = time.monotonic()
        one.hand_over(7, request, str(tmp_path / "7"))

        def given_up() -> bool:
            one.send()
            return one.dead

        until(given_up)
        assert 0.5 < time.monotonic() - began < 10
        task = next(iter(one.tasks.values()))
        assert task.result() == b"plain\n"
        task.drop()


def test_interpreter_that_does_not_stay_is_overdue(tmp_path: Path) -> None:
    """One of another user: nobody could remove that user otherwise."""
    one, zygote = an_interpreter(ready=False)
    with closing(one), zygote:
        zygote.sendall(frames.READY + b"\0")
        one.listen()
        overdue = [one.is_overdue]
        one.used -= interpreter.UNKEPT_IDLE_SECONDS + 1
        overdue.append(one.is_overdue)
        one.hand_over(7, a_request(), str(tmp_path / "7"))
        one.used -= interpreter.UNKEPT_IDLE_SECONDS + 1
        assert [*overdue, one.is_overdue] == [False, True, False], "not one that is at work"
