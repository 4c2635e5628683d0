# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server of warm interpreters."""

from __future__ import annotations

import base64
import os
import resource
import socket
import time
import zlib
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._errors import TransferError
from ansible_collections.qemu.guest.plugins.module_utils._runner import RunnerAgent
from ansible_collections.qemu.guest.plugins.plugin_utils import (
    _warm,
    _warm_archives,
    _warm_interpreters,
    _warm_server,
    _warm_surroundings,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import WarmPython
from ansible_collections.qemu.guest.tests.unit.warm import HEADER, an_interpreter, full


def test_task_does_not_wait_for_an_interpreter_that_takes_long(tmp_path: Path) -> None:
    """Somebody may have put a question before it that nobody answers."""
    one, zygote = an_interpreter()
    one.ready = False
    server = a_server(tmp_path)
    server.interpreters["k"] = one
    one.surroundings = _warm_surroundings.Surroundings([])
    answers = tmp_path / "7.rc"
    answers.touch()
    with closing(one.socket), zygote:
        for started, answer in ((0.0, b""), (_warm_interpreters.START_SECONDS, b"6\nplain\n")):
            one.began = time.monotonic() - started
            with open(tmp_path / "in", "w+b") as file:
                server.take(7, _warm_interpreters.Request(HEADER, file, 0))
                assert file.closed == bool(answer)
            assert answers.read_bytes() == answer
            assert len(server.waiting) == 1


def a_server(home: Path) -> _warm_server.Server:
    server = _warm_server.Server.__new__(_warm_server.Server)
    server.home, server.ending, server.rung = str(home), 0.0, b""
    server.interpreters, server.leaving, server.waiting, server.login = {}, [], [], None
    server.archives = _warm_archives.Archives(str(home))
    return server


def test_who_rings_when_an_idle_server_ends_is_heard(tmp_path: Path) -> None:
    server = _warm_server.Server.__new__(_warm_server.Server)
    server.home = str(tmp_path / "home")
    os.mkdir(server.home)
    os.mkfifo(f"{server.home}/ring")
    server.ring = os.open(f"{server.home}/ring", os.O_RDWR)
    os.write(server.ring, b"=1 x\n")
    assert not server.vanish()
    assert os.path.exists(f"{server.home}/ring")
    os.read(server.ring, 100)
    holder = os.open(f"{server.home}/ring", os.O_WRONLY)
    assert server.vanish()
    assert list(tmp_path.glob("home*")) == []
    with pytest.raises(BrokenPipeError):
        os.write(holder, b"=2 x\n")
    os.close(holder)


def test_interpreter_that_is_of_use_is_ended_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a play with one command line too many would start one anew for each task, and none would be ready."""

    def started(*_arguments: object) -> Any:
        same = _warm_surroundings.Surroundings([])
        return SimpleNamespace(used=time.monotonic(), ready=True, dead=False, failed=False, surroundings=same)

    monkeypatch.setattr(_warm_server, "Interpreter", started)
    monkeypatch.setattr(_warm_server, "spawn", started)
    server = _warm_server.Server.__new__(_warm_server.Server)
    server.home, server.interpreters, server.leaving = "", {}, []

    def use(key: str) -> bool:
        request: Any = SimpleNamespace(key=key, command="python3", marker="", path="")
        return server.interpreter(request) is not None

    most = [f"A={number}" for number in range(_warm_server.MOST_INTERPRETERS)]
    assert all(use(key) for key in most)
    assert not use("one more") and not server.leaving
    server.interpreters[most[2]].used -= _warm_server.LEAST_SECONDS
    assert use("one more")
    assert most[2] not in server.interpreters and len(server.leaving) == 1


def test_request_that_there_is_no_room_for_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = a_server(tmp_path)
    server.ring, ring = os.pipe()
    request = _warm._request("", "", b"true", b"")
    answers = tmp_path / "7.rc"
    answers.touch()
    (tmp_path / "7.in").write_bytes(request)
    os.write(ring, b"7\n=7 " + base64.b64encode(zlib.compress(request)) + b"\n7\n")
    monkeypatch.setattr(_warm_server, "Interpreter", full)
    server.answer_ring()
    assert answers.read_bytes() == b"6\nplain\n" * 2, "the third was taken already"
    os.close(ring)
    os.close(server.ring)


def test_results_that_nobody_fetches_are_swept_away(tmp_path: Path) -> None:
    server = _warm_server.Server.__new__(_warm_server.Server)
    home = tmp_path / "home"
    home.mkdir()
    server.home = str(home)
    server.interpreters, server.leaving = {}, [SimpleNamespace(tasks={1: SimpleNamespace(number=3)})]  # type: ignore[list-item]
    old = time.time() - _warm_server.IDLE_SECONDS - 1
    for name in ("1.rc", "1.out", "2.rc", "2.err", "3.rc", "pid"):
        (home / name).touch()
    for name in ("1.rc", "3.rc", "pid"):
        os.utime(home / name, (old, old))
    server.sweep()
    assert {path.name for path in home.iterdir()} == {"2.rc", "2.err", "3.rc", "pid"}, "3 is at work"


def test_no_room_for_the_interpreter_of_commands_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started when a module has ended; what serves goes on."""
    monkeypatch.setattr(_warm_server, "spawn", full)
    server = a_server(tmp_path)
    (tmp_path / "7.rc").touch()
    one, zygote = an_interpreter()
    one.path = "/bin"
    one.tasks = {1: SimpleNamespace(ended=True, number=7, result=lambda: b"0 - - .\n")}  # type: ignore[dict-item]
    with closing(one.socket), zygote:
        server.settle([one])
    assert (tmp_path / "7.rc").read_bytes() == b"8\n0 - - .\n"
    assert not server.interpreters


@pytest.mark.parametrize("changed", [False, True])
def test_first_interpreter_is_dropped_if_something_changed_as_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """Nobody had looked at that before."""
    (tmp_path / "first").write_bytes(HEADER)
    (tmp_path / "watched").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_warm_server, "WATCHED", [str(tmp_path / "none"), str(tmp_path / "watched")])
    server = a_server(tmp_path)
    ours, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with zygote, ours, open(os.devnull, "rb") as errors:
        server.adopt((ours, errors), (tmp_path / "watched").stat().st_ctime + (0.05 if changed else 1))
        assert bool(server.interpreters) != changed
        server.settle([])
        assert bool(server.leaving) == changed
        zygote.settimeout(0.1)
        if changed:
            assert zygote.recv(100) == b"", "it is told to end"
        else:
            with pytest.raises(TimeoutError):
                zygote.recv(100)


def test_answer_that_there_is_no_room_for_is_told_of(agent: RunnerAgent, tmp_path: Path) -> None:
    server = _warm_server.Server.__new__(_warm_server.Server)
    server.home = str(tmp_path)
    answers = tmp_path / "1.rc"
    answers.write_bytes(b"5\nfirst")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # Python ignores the signal of that
    try:
        server.say(1, b"0 =2000 - .\n" + bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answers.read_bytes() == b"5\nfirst5\nfull\n"
    with pytest.raises(TransferError, match="did not fit"):
        WarmPython(agent, lambda line: None)._spool.result(1, b"full\n")
