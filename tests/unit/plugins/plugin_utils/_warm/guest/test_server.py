# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server of warm interpreters."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import TransferError
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ShellCommand
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import client
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import fingerprint, frames, interpreter, wire
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import server as _server
from ansible_collections.qemu.guest.tests.unit.warm import a_request, an_interpreter, full, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[_server.Server]:
    """A server with its spool, that is not running. It watches two files of the test's own, none of which is there."""
    spool = tmp_path / "spool"
    spool.mkdir()
    os.mkfifo(spool / "ring")
    ring = os.open(spool / "ring", os.O_RDWR)
    launcher: Any = SimpleNamespace(fork=lambda program: None, spawn=full)
    made = _server.Server(str(spool), ring, launcher, watched=[str(tmp_path / "none"), str(tmp_path / "watched")])
    yield made
    for one in (*made.interpreters.values(), *made.leaving):
        if isinstance(one, interpreter.Interpreter):
            one.close()
    os.close(ring)


@pytest.fixture
def spool(server: _server.Server) -> Path:
    return Path(server.spool)


def said(server: _server.Server, number: int) -> bytes:
    return Path(server.path(number, "rc")).read_bytes()


def test_task_does_not_wait_for_an_interpreter_that_takes_long(server: _server.Server, spool: Path) -> None:
    """Somebody may have put a question before it that nobody answers."""
    one, zygote = an_interpreter(ready=False)
    server.interpreters["k"] = one
    (spool / "7.rc").touch()
    with zygote:
        for started, answer in ((0.0, b""), (interpreter.START_SECONDS, b"7 answer 6\nplain\n")):
            one.began = time.monotonic() - started
            server.take(7, a_request())
            assert said(server, 7) == answer
            assert len(server.waiting) == 1


def test_interpreter_that_reads_nothing_is_given_up(server: _server.Server, spool: Path) -> None:
    """However long: there is nothing that would tell of it."""
    one, zygote = an_interpreter(stuck_seconds=0.1)
    server.interpreters["k"] = one
    (spool / "7.rc").touch()
    request = a_request()
    request.program = bytes(10_000_000)
    with zygote:
        server.take(7, request)
        began = time.monotonic()
        while one.tasks and time.monotonic() - began < 10:
            server.poll([one])
            server.settle([one])
    assert said(server, 7) == b"7 begun\n7 answer 6\nplain\n"


@contextmanager
def stopped_interpreter(seconds: float = 0.5) -> Iterator[tuple[interpreter.Interpreter, socket.socket, Any]]:
    """One whose processes do not read, because they are stopped: a shell that waits for another process."""
    one, zygote = an_interpreter(stuck_seconds=seconds)
    shell = ["sh", "-c", "sleep 60 & kill -STOP $!; echo $! >&2; wait"]
    with zygote, subprocess.Popen(shell, stdout=zygote.fileno(), stderr=subprocess.PIPE) as process:
        assert process.stderr
        one.process, sleeps = process.pid, int(process.stderr.readline())
        try:
            yield one, zygote, sleeps
        finally:
            for pid in (sleeps, process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def settled(server: _server.Server, one: interpreter.Interpreter) -> None:
    began = time.monotonic()
    while one.tasks and time.monotonic() - began < 10:
        server.poll([one])
        server.settle([one])


def test_stopped_interpreter_is_killed_before_its_requests_are_said_to_be_unrun(
    server: _server.Server, spool: Path
) -> None:
    """Its user may let it go on at any time."""
    with stopped_interpreter() as (one, _zygote, sleeps):
        server.interpreters["k"] = one
        for number in (7, 8):
            (spool / f"{number}.rc").touch()
            server.take(number, a_request())
        began = time.monotonic()
        settled(server, one)
        assert time.monotonic() - began > 0.4
        until(lambda: interpreter.state_of(sleeps) in ("", "Z"))
    for number in (7, 8):
        assert said(server, number) == b"%d begun\n%d answer 6\nplain\n" % (number, number)


def test_request_that_a_stopped_interpreter_has_read_may_have_run(server: _server.Server, spool: Path) -> None:
    """It is left alone as long as nothing else is wanted of it: the task may have stopped itself."""
    with stopped_interpreter() as (one, zygote, sleeps):
        server.interpreters["k"] = one
        for number in (7, 8):
            (spool / f"{number}.rc").touch()
        server.take(7, a_request())
        request = frames.receive(zygote)
        assert request
        server.stays = False  # for it to look soon
        server.poll([one])
        server.settle([one])
        assert one.tasks and not one.dead and interpreter.state_of(sleeps) == "T"
        server.take(8, a_request())
        settled(server, one)
        request.close()
    assert said(server, 7).startswith(b"7 begun\n7 answer ") and b"lost\n" in said(server, 7)
    assert said(server, 8) == b"8 begun\n8 answer 6\nplain\n"


def test_stopped_interpreter_that_cannot_be_found_may_have_run_it(server: _server.Server, spool: Path) -> None:
    with stopped_interpreter() as (one, _zygote, _sleeps):
        one.process = 2**22 + 1  # none has that number
        server.interpreters["k"] = one
        (spool / "7.rc").touch()
        server.take(7, a_request())
        settled(server, one)
    assert b"lost\n" in said(server, 7)


def test_request_waits_until_the_one_before_it_is_read(server: _server.Server, spool: Path) -> None:
    """So that there is no doubt which of them was."""
    one, zygote = an_interpreter()
    server.interpreters["k"] = one
    with zygote:
        for number in (7, 8):
            (spool / f"{number}.rc").touch()
            server.take(number, a_request())
            server.poll([one])
        assert one.is_held_up and server.select_seconds([one]) < 0.1
        for _number in (7, 8):
            request = frames.receive(zygote)
            assert request
            request.close()
            server.poll([one])
        assert not one.queue and one.has_read()


def test_interpreter_that_takes_long_and_has_work_is_not_ended(server: _server.Server, spool: Path) -> None:
    with stopped_interpreter() as (one, zygote, sleeps):
        os.kill(sleeps, signal.SIGCONT)
        server.interpreters["k"] = one
        for number in (7, 8):
            (spool / f"{number}.rc").touch()
            server.take(number, a_request())
            if number == 7:
                at_work = frames.receive(zygote)
        for _time in range(2):
            server.poll([one])
            server.settle([one])
        assert at_work and len(one.tasks) == 2 and not one.dead
        at_work.close()


def test_who_rings_when_an_idle_server_ends_is_heard(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    os.mkfifo(spool / "ring")
    launcher: Any = None
    server = _server.Server(str(spool), os.open(spool / "ring", os.O_RDWR), launcher)
    os.write(server.ring, b"=1 x\n")
    assert not server.vanish()
    assert (spool / "ring").exists()
    os.read(server.ring, 100)
    holder = os.open(spool / "ring", os.O_WRONLY)
    assert server.vanish()
    assert list(tmp_path.glob("spool*")) == []
    with pytest.raises(BrokenPipeError):
        os.write(holder, b"=2 x\n")
    os.close(holder)


def test_idle_server_ends_after_ten_minutes_and_a_few_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock is the time that it has waited. An answer is kept for a minute of that."""
    spool = tmp_path / "spool"
    spool.mkdir()
    os.mkfifo(spool / "ring")
    answer = spool / "7.rc"
    answer.touch()
    now, looks, kept = 1.0, 0, 0.0

    def select(*_descriptors: object) -> tuple[list[int], list[int], list[int]]:
        nonlocal now, looks, kept
        kept = now if answer.exists() else kept
        now += float(str(_descriptors[-1]))
        looks += 1
        return [], [], []

    launcher: Any = None
    server = _server.Server(str(spool), os.open(spool / "ring", os.O_RDWR), launcher)
    server.taken[7] = now
    monkeypatch.setattr(_server, "select", SimpleNamespace(select=select))
    monkeypatch.setattr(_server, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    server.serve()
    assert 600 < now <= 660 + 1 and looks < 20
    assert 60 <= kept <= 75
    assert not spool.exists()


@pytest.mark.parametrize(
    ("file", "there"),
    [("7.parts", True), ("7.rc", True), ("8.rc", False), ("8.out", True), ("../spool.7.parts", True)],
)
def test_client_that_brings_something_is_waited_for(
    server: _server.Server, spool: Path, file: str, there: bool
) -> None:
    """By a server that ends soon without work: on a slow line, a request takes minutes."""
    server.was_asked = True
    server.taken[8] = time.monotonic()
    assert not server.has_clients()
    (spool / file).touch()
    assert server.has_clients() is there
    past = time.time() - _server.CLIENT_SECONDS
    os.utime(spool / file, (past, past))
    assert not server.has_clients(), "it was killed"


def test_client_that_started_a_server_is_not_waited_for_without_end(server: _server.Server) -> None:
    """It may have been killed before it asked."""
    assert server.has_clients()
    server.began -= _server.CLIENT_SECONDS
    assert not server.has_clients()


def test_file_that_vanishes_while_clients_are_looked_for(
    server: _server.Server, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell that a start began with removes its files."""
    server.was_asked = True
    (spool / "7.rc").touch()
    (there,) = (file for file in os.scandir(spool) if file.name == "7.rc")
    (spool / "7.rc").unlink()
    monkeypatch.setattr(os, "scandir", lambda _path: [there])
    assert not server.has_clients()


def test_interpreter_that_its_user_has_stopped_is_not_waited_for(server: _server.Server) -> None:
    """Nor is what it was started by, which may stop with it."""
    one, zygote = an_interpreter()
    one.marker = "BECOME-SUCCESS-x"
    server.interpreters["another"] = one
    with zygote, subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout
        sleeps, one.process = int(shell.stdout.readline()), shell.pid
        assert server.others_leave(a_request()), "it is about to end"
        os.kill(sleeps, signal.SIGSTOP)
        until(lambda: not server.others_leave(a_request()))
        os.kill(sleeps, signal.SIGKILL)
    assert server.others_leave(a_request()), "nothing is known of it"
    one.marker = ""


def test_interpreter_that_is_of_use_is_ended_for_no_other(
    server: _server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a play with one command line too many would start one anew for each task, and none would be ready."""

    def started(*_arguments: object) -> Any:
        same = fingerprint.LoginFiles([])
        return SimpleNamespace(used=time.monotonic(), ready=True, dead=False, failed=False, login_files=same)

    monkeypatch.setattr(_server, "Interpreter", started)
    monkeypatch.setattr(server.launcher, "spawn", started)

    def use(key: str) -> bool:
        request: Any = SimpleNamespace(key=key, command="python3", marker="", path="")
        return server.interpreter_for(request) is not None

    most = [f"A={number}" for number in range(_server.MOST_INTERPRETERS)]
    assert all(use(key) for key in most)
    assert not use("one more") and not server.leaving
    server.interpreters[most[2]].used -= _server.LEAST_SECONDS
    assert use("one more")
    assert most[2] not in server.interpreters and len(server.leaving) == 1


def test_interpreter_of_shell_commands_is_started_without_site(
    server: _server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each that stays; it is started by a command line where it cannot be a fork."""
    commands: list[str] = []

    def spawned(_program: object, command: str, _path: str) -> Any:
        commands.append(command)
        return full()

    monkeypatch.setattr(server.launcher, "spawn", spawned)
    with pytest.raises(OSError, match="no room"):
        server.interpreter_for(wire.ClientRequest.unpacked(client._shell_request(ShellCommand(b"true"), b"").packed()))
    server.expect_commands("")
    assert commands == [f"'{sys.executable}' -S"] * 2


def test_request_that_there_is_no_room_for_is_not_run(
    server: _server.Server, monkeypatch: pytest.MonkeyPatch, spool: Path
) -> None:
    """And one that was rung for twice is taken once."""
    request = client._shell_request(ShellCommand(b"true"), b"").packed()
    for number in (7, 8):
        (spool / f"{number}.rc").touch()
    (spool / "7.in").write_bytes(request)
    for line in [wire.ring_line(7), wire.ring_line(8, request)] * 2:
        os.write(server.ring, line + b"\n")
    monkeypatch.setattr(server.launcher, "spawn", full)
    server.read_ring()
    for number in (7, 8):
        assert said(server, number) == b"%d taken\n%d answer 6\nplain\n" % (number, number)


def test_client_learns_that_it_gets_no_answer(
    server: _server.Server, monkeypatch: pytest.MonkeyPatch, spool: Path
) -> None:
    """It would wait for ever: its file goes, or the server does."""
    (spool / "7.rc").touch()
    monkeypatch.setattr(server, "append_line", full)
    server.answer(7, b"0 - - .\n")
    assert not (spool / "7.rc").exists()
    (spool / "8.rc").touch()
    monkeypatch.setattr(os, "unlink", full)
    with pytest.raises(SystemExit):
        server.answer(8, b"0 - - .\n")


@pytest.mark.parametrize("line", [b"=9 x", b"=9 eJw=", b"9", b"-", b"=", b"-x", b"=x eA==", b"\xff\x00", b"="])
def test_line_on_the_ring_that_makes_no_sense_is_no_harm(server: _server.Server, spool: Path, line: bytes) -> None:
    """Half of a request, of a client that was killed."""
    (spool / "9.rc").touch()
    os.write(server.ring, line + b"\nquit\n")
    server.read_ring()
    assert server.ending
    assert said(server, 9) in (b"", b"9 taken\n")


def test_request_whose_client_has_gone_is_not_run(server: _server.Server) -> None:
    os.write(server.ring, wire.ring_line(7, client._shell_request(ShellCommand(b"true"), b"").packed()) + b"\n")
    server.read_ring()
    assert not server.interpreters and not server.taken


def test_answers_are_forgotten_when_they_can_have_been_fetched(server: _server.Server, spool: Path) -> None:
    for name in ("1.rc", "1.out", "2.rc", "2.err", "3.rc", "pid"):
        (spool / name).touch()
    now = time.monotonic()
    server.taken = {1: now - _server.KEPT_SECONDS - 1, 2: now, 3: 0.0}
    server.forget_answered()
    assert {path.name for path in spool.iterdir()} == {"2.rc", "2.err", "3.rc", "pid", "ring"}, "3 is at work"


def test_files_of_a_client_that_never_asked_are_swept_away(server: _server.Server, spool: Path) -> None:
    """Not at once, it may be about to; and whatever the clock says."""
    for name in ("1.rc", "2.rc", "2.in", "3.rc", "3.in", "pid"):
        (spool / name).touch()
        os.utime(spool / name, (0, 0))
    os.utime(spool / "3.in")  # it is still being written
    server.taken = {1: 0.0}
    server.sweep()
    assert (spool / "2.in").exists()
    server.sweep()
    assert {path.name for path in spool.iterdir()} == {"1.rc", "3.rc", "3.in", "pid", "ring"}


def test_no_room_for_the_interpreter_of_commands_is_no_harm(
    server: _server.Server, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started when a module has ended; what serves goes on."""
    monkeypatch.setattr(server.launcher, "spawn", full)
    (spool / "7.rc").touch()
    one, zygote = an_interpreter()
    with closing(one), zygote:
        one.hand_over(7, a_request(), str(spool / "7"))
        request = frames.receive(zygote)
        assert request
        request.close()
        zygote.sendall(frames.record(request.serial, 0))
        while b"answer" not in said(server, 7):
            server.poll([one])
            server.settle([one])
    assert said(server, 7) == b"7 answer 8\n0 - - .\n"
    assert not server.interpreters


def test_interpreter_that_sends_junk_costs_nobody_else(server: _server.Server, spool: Path) -> None:
    """The task of another one goes on, and ends well; the one with the junk is replaced when it is wanted again."""
    junk, its_zygote = an_interpreter()
    fine, zygote = an_interpreter()
    server.interpreters = {"junk": junk, "fine": fine}
    with its_zygote, zygote:
        for number, key in ((7, "junk"), (8, "fine")):
            (spool / f"{number}.rc").touch()
            server.take(number, a_request(key=key))
        request = frames.receive(zygote)
        assert request
        its_zygote.sendall(b"no record of mine\n" * 100)
        everyone = list(server.interpreters.values())
        server.poll(everyone)
        server.settle(everyone)
        assert said(server, 7).startswith(b"7 begun\n7 answer ") and b"lost\n" in said(server, 7)
        os.write(request.streams[0], b"well\n")
        request.close()
        zygote.sendall(frames.record(request.serial, 0))
        while b"answer" not in said(server, 8):
            server.poll([fine])
            server.settle([fine])
        assert said(server, 8) == b"8 begun\n8 answer 14\n0 =5 - .\nwell\n"
        assert junk.dead and not fine.dead


def test_interpreter_that_nobody_could_foresee_costs_nobody_else(
    server: _server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else goes wrong with what one sends, the server does not end by it."""

    def raise_error() -> None:
        raise RuntimeError

    junk, its_zygote = an_interpreter()
    fine, zygote = an_interpreter()
    with its_zygote, zygote:
        monkeypatch.setattr(junk, "take_records", raise_error)
        its_zygote.sendall(frames.record(1, 0))
        server.poll([junk, fine])
        assert junk.dead and not fine.dead


def test_request_to_a_stale_interpreter_is_another_ones(
    server: _server.Server, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale, zygote = an_interpreter()
    new, its_zygote = an_interpreter(ready=False)
    server.interpreters["k"] = stale
    monkeypatch.setattr(server.launcher, "spawn", lambda *arguments: (new.socket, os.dup(new.errors), 0))
    (spool / "7.rc").touch()
    with zygote, its_zygote:
        server.take(7, a_request())
        request = frames.receive(zygote)
        assert request
        zygote.sendall(frames.record(request.serial, frames.STALE))
        request.close()
        server.poll([stale])
        server.settle([stale])
        assert stale in server.leaving or stale.dead
        assert [number for number, _asked in server.waiting] == [7], "for the one that starts"
        assert server.interpreters["k"] is not stale


@pytest.mark.parametrize("changed", [False, True])
def test_first_interpreter_is_dropped_if_something_changed_as_it_started(
    server: _server.Server, tmp_path: Path, changed: bool
) -> None:
    """Nobody had looked at that before."""
    (tmp_path / "watched").touch()
    ours, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    errors, theirs = os.pipe()
    os.close(theirs)
    with zygote:
        server.adopt(
            a_request().header(), (ours, errors, 0), (tmp_path / "watched").stat().st_ctime + (0.05 if changed else 1)
        )
        assert bool(server.interpreters) != changed
        server.settle([])
        assert bool(server.leaving) == changed
        zygote.settimeout(0.1)
        if changed:
            assert zygote.recv(100) == b"", "it is told to end"
        else:
            with pytest.raises(TimeoutError):
                zygote.recv(100)


def test_answer_that_there_is_no_room_for_is_told_of(server: _server.Server, agent: Runner, spool: Path) -> None:
    answers = spool / "1.rc"
    answers.write_bytes(b"1 begun\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # Python ignores the signal of that
    try:
        server.answer(1, b"0 =2000 - .\n" + bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answers.read_bytes() == b"1 begun\n1 answer 5\nfull\n"
    with pytest.raises(TransferError, match="did not fit"):
        WarmPython(agent, lambda line: None)._spool.result(1, b"full\n")
