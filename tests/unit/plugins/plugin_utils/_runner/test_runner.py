# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner, run by the shells of this machine, and who talks to it through files."""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import itertools
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    CommandError,
    CommandUnavailable,
    ConnectError,
    GuestFileError,
    HandleLostError,
    NoRunnerError,
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest import login_shell, patience
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import CAPTURE_LIMIT
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import input_of, kill, run_shell
from ansible_collections.qemu.guest.plugins.plugin_utils._runner import bootstrap
from ansible_collections.qemu.guest.plugins.plugin_utils._runner import executor as _executor
from ansible_collections.qemu.guest.plugins.plugin_utils._runner import spool as _spool
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.bootstrap import start_runner
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import GuestExecOrRunner, Runner, program
from ansible_collections.qemu.guest.tests.unit.guest import Guest, without_room
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest.test_login_shell import (
    SHELLS,
    count_of,
    tool,
)
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted

BLOCKED = {"guest-exec": "Command guest-exec has been disabled", "guest-exec-status": "Command guest-exec-status ..."}


@pytest.fixture(params=SHELLS)
def guest(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Guest]:
    guest = Guest(tmp_path, SHELLS[request.param])
    # Where this machine has systemd, it is not to start anything.
    tool(guest, "systemd-run", "exit 1")
    # The runner's second is a real one.
    clock.on_sleep = lambda: time.sleep(0.005)
    yield guest
    guest.close()


only_sh = pytest.mark.parametrize("guest", ["sh"], indirect=True)


def runner_pid(guest: Guest) -> int:
    return int((guest.runner / "1" / "pid").read_text())


def in_spool(guest: Guest) -> set[str]:
    return {path.name for path in (guest.runner / "1").iterdir()} - {"ring", "pid"}


@pytest.fixture
def executor(guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> Runner:
    return runner_by(connect(scripted(guest.answers())))


def runner_by(agent: Agent, **how: Any) -> Runner:
    return Runner(agent, functools.partial(start_runner, routes=(), log=lambda line: None), **how)


def eventually(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 60  # not what it takes, but what it may take on a busy machine
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_runner_reads_and_keeps_as_the_login_shell_does() -> None:
    """They are programs for two ways, but one thought: what is in both is the same text."""
    body = program().partition("\nread_command() {\n")[2].partition("\n}\n")[0]
    assert [line.strip() for line in body.splitlines()] == [
        line.strip() for line in login_shell.READ_COMMAND.strip().splitlines()
    ]
    assert login_shell.REST.strip() in program()


def test_result_is_exact(executor: Runner) -> None:
    everything = bytes(range(256)) * 300
    result = run_shell(executor, b"cat; printf 'e\\377' >&2; exit 9", everything)
    assert (result.rc, result.stdout, result.stderr) == (9, everything, b"e\xff")
    assert run_shell(executor, b"kill -KILL $$").shell_rc == 128 + 9
    assert run_shell(executor, b"").rc == 0
    assert run_shell(executor, b"if").rc == 2


def test_program_and_its_arguments(executor: Runner) -> None:
    words = ["a  b", "", "'\"$x`\\", "ü\n\nz", "*"]
    result = executor.finish(executor.start("/usr/bin/printf", ["%s|", *words]))
    assert result.stdout.decode() == "".join(f"{word}|" for word in words)
    assert executor.finish(executor.start("/no/such/program")).rc == 127


def test_environment(executor: Runner) -> None:
    run = functools.partial(executor.start, "/usr/bin/env")
    lines = executor.finish(run(env=["A='1' 2", "B=x\ny"])).stdout.decode().splitlines()
    # What shells add whether one wants it or not.
    added = ("_=", "PATH=", "PWD=", "SHLVL=")
    assert {line for line in lines if not line.startswith(added)} == {"A='1' 2", "B=x", "y"}
    odd = executor.finish(run(env=["a-b=1"])).stdout.decode()
    assert odd == "a-b=1\n"


def test_program_that_nobody_asks_after(executor: Runner, guest: Guest) -> None:
    """It works for as long as it likes, and nothing is left of it."""
    done = guest.tools / "done"
    with executor.forgetting():
        executor.start("/bin/sh", ["-c", f"sleep 0.5; cat >{done}; echo output"], stdin=b"input")
    eventually(lambda: in_spool(guest), "it does not run")
    eventually(lambda: not in_spool(guest), "something is left")
    assert done.read_bytes() == b"input"


def test_shell_that_nobody_asks_after_is_the_runners_own(executor: Runner, guest: Guest) -> None:
    """To start another takes longer than what it does."""
    done = guest.tools / "done"
    with executor.forgetting():
        executor.start("/bin/sh", ["-c", f'echo $$ $(umask) $(pwd) "$A" >{done}'], env=["A=b c"])
    eventually(done.exists, "it does not run")
    eventually(lambda: not in_spool(guest), "something is left")
    assert done.read_text() == f"{runner_pid(guest)} 0022 / b c\n"


def test_nothing_of_the_runner_is_in_a_program(executor: Runner, guest: Guest) -> None:
    result = run_shell(executor, b"set; umask; ls -l /proc/self/fd")
    shown = result.stdout.decode()
    assert "0022\n" in shown
    assert "ring" not in shown
    assert "QEMU_GUEST" not in shown
    assert "mark=" not in shown


def test_program_ignores_no_more_than_one_that_is_started_here(executor: Runner) -> None:
    """Nor has it other signals blocked. Shells ignore SIGINT and SIGQUIT in what they have in the background."""
    command = "grep -E 'Sig(Ign|Blk)' /proc/self/status"
    here = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, check=True).stdout
    assert run_shell(executor, command.encode()).stdout == here
    assert run_shell(executor, b"trap 'exit 5' INT; kill -INT $$; exit 0").rc == 5
    assert run_shell(executor, b"yes | head -n 1").stdout == b"y\n"


def test_input_cannot_be_read_twice_or_written(executor: Runner) -> None:
    """A password may have been in it, and the program may be another user's."""
    look = b"read -r first; ls -l /proc/self/fd/0"
    for data in (b"secret\nrest", b"secret\n" + bytes(300_000)):
        shown = run_shell(executor, look, data).stdout.decode()
        assert "pipe:" in shown, shown


def test_program_without_input_has_none(executor: Runner) -> None:
    shown = executor.finish(executor.start("/bin/ls", ["-l", "/proc/self/fd/0"])).stdout.decode()
    assert shown.endswith("/dev/null\n")


def test_input_is_not_kept_longer_than_its_program(executor: Runner, guest: Guest) -> None:
    pid = executor.start("/bin/cat", stdin=b"secret")
    eventually(lambda: f"{pid}.rc" in in_spool(guest), "no result")
    assert not any("secret" in read(guest, name) for name in in_spool(guest) if not name.endswith(".out"))


def test_signal_leaves_no_word_in_the_output(executor: Runner) -> None:
    result = run_shell(executor, b"kill -KILL $$")
    assert (result.shell_rc, result.stdout, result.stderr) == (128 + 9, b"", b"")


def test_nothing_of_a_program_stays_a_zombie(executor: Runner, guest: Guest) -> None:
    for _time in range(3):
        run_shell(executor, b"true")
    children = Path(f"/proc/{runner_pid(guest)}/task/{runner_pid(guest)}/children").read_text().split()
    # The alarm and, for a moment, what removes the last result.
    assert len(children) <= 2


ANOTHER_USER = "exec 3<>\"$0/ring\"; exec setpriv --reuid=12345 --clear-groups sh -c 'read -r _'"


@pytest.mark.parametrize(
    "program",
    ["read -r _", pytest.param(ANOTHER_USER, marks=pytest.mark.skipif(os.getuid() != 0, reason="becomes a user"))],
    ids=["root's", "of a user who was left the ring"],
)
def test_runner_does_not_take_another_process_for_one(guest: Guest, program: str) -> None:
    """The number of one that has ended may be anybody's, with whatever command line."""
    spool = guest.runner / "1"
    spool.mkdir(parents=True)
    os.mkfifo(spool / "ring")
    other = subprocess.Popen(["sh", "-c", program, str(spool)], stdin=subprocess.PIPE)
    if program == ANOTHER_USER:
        eventually(lambda: os.stat(f"/proc/{other.pid}").st_uid == 12345, "it did not become that user")
    (spool / "pid").write_text(f"{other.pid}\n")
    process = runner(guest, 1)
    try:
        eventually(lambda: read(guest, "pid") == f"{process.pid}\n", "it takes another process for a runner")
    finally:
        process.kill()
        process.wait()
        other.communicate()


def test_nothing_stays(executor: Runner, guest: Guest) -> None:
    run_shell(executor, b"echo out; echo err >&2")
    eventually(lambda: not in_spool(guest), f"left: {in_spool(guest)}")


def test_output_is_never_cut(executor: Runner, guest: Guest) -> None:
    guest.capture = 1000
    result = run_shell(executor, b"head -c 3000000 /dev/zero; head -c 1048576 /dev/zero >&2")
    assert (result.stdout, result.stderr) == (bytes(3_000_000), bytes(1_048_576))
    assert not result.stdout_truncated and not result.stderr_truncated


def test_large_input(executor: Runner) -> None:
    data = os.urandom(3_000_000)
    assert run_shell(executor, b"cat", data).stdout == data


def test_program_in_the_background_holds_nothing_up(executor: Runner) -> None:
    result = run_shell(executor, b"sleep 60 >/dev/null 2>&1 & echo $!")
    os.kill(int(result.stdout), signal.SIGKILL)


def test_output_that_is_opened_again(executor: Runner) -> None:
    result = run_shell(executor, b"echo a; echo b >/dev/stdout; echo c; echo d >&2; echo e >/dev/stderr; echo f >&2")
    assert (result.stdout, result.stderr) == (b"a\nb\nc\n", b"d\ne\nf\n")


def test_several_at_once(executor: Runner) -> None:
    slow = executor.start("/bin/sh", ["-c", "sleep 0.5; echo slow"])
    assert run_shell(executor, b"echo quick").stdout == b"quick\n"
    assert executor.finish(slow).stdout == b"slow\n"


@only_sh
def test_files_are_roots_alone(executor: Runner, guest: Guest) -> None:
    modes = run_shell(executor, b"stat -c '%a %F %n' " + f"{guest.runner} {guest.runner}/1 {guest.runner}/1/*".encode())
    for line in modes.stdout.decode().splitlines():
        mode, kind = line.split(" ")[:2]
        # The agent makes files of mode 0666, in a directory that nobody else can enter.
        assert mode == {"directory": "700", "fifo": "600"}.get(kind, "666" if line.endswith(".in") else "600")


@only_sh
def test_one_runner_serves_all(executor: Runner, guest: Guest) -> None:
    run_shell(executor, b"true")
    pid = runner_pid(guest)
    started = len(guest.started)
    for _time in range(3):
        run_shell(executor, b"true")
    assert runner_pid(guest) == pid
    assert len(guest.started) == started
    # A second one sees that there is one, and ends.
    second = subprocess.run(["sh", "-c", program(), "sh", str(guest.runner / "1"), "0"], timeout=20, check=False)
    assert second.returncode == 0
    assert runner_pid(guest) == pid


@only_sh
def test_dead_runner_is_replaced(executor: Runner, guest: Guest) -> None:
    run_shell(executor, b"true")
    pid = runner_pid(guest)
    os.kill(pid, signal.SIGKILL)
    assert run_shell(executor, b"echo new").stdout == b"new\n"
    assert runner_pid(guest) != pid


def test_nobody_but_the_runner_keeps_the_ring_open(executor: Runner, guest: Guest) -> None:
    """Else one that was killed would seem to live as long as a program of its does."""
    process = executor.process_id(executor.start("/bin/sleep", ["60"]))
    os.kill(runner_pid(guest), signal.SIGKILL)
    eventually(lambda: not executor._spool.ring(""), "somebody else reads the ring")
    os.kill(process, signal.SIGKILL)


@only_sh
def test_runner_that_dies_with_its_program(executor: Runner, guest: Guest) -> None:
    pid = executor.start("/bin/sleep", ["60"])
    process = executor.process_id(pid)
    os.kill(process, signal.SIGSTOP)
    # The one that waits for the program too.
    subprocess.run(["pkill", "-KILL", "-f", str(guest.runner / "1")], check=True)
    with pytest.raises(OutcomeUnknownError, match="the runner in the guest ended while the program ran"):
        executor.finish(pid)
    os.kill(process, signal.SIGKILL)


@only_sh
def test_runner_that_dies_while_its_program_goes_on(executor: Runner, guest: Guest) -> None:
    pid = executor.start("/bin/sh", ["-c", "sleep 2; echo done"])
    assert executor.process_id(pid)
    assert executor.wait(pid, 0) is None
    os.kill(runner_pid(guest), signal.SIGKILL)
    eventually(lambda: any(name.endswith(".rc") for name in in_spool(guest)), "no result")
    assert executor.finish(pid).stdout == b"done\n"


@only_sh
@pytest.mark.parametrize("seen", [False, True])
def test_request_that_the_runner_does_not_know_any_more(executor: Runner, guest: Guest, seen: bool) -> None:
    """As after the guest was reverted to a snapshot: the runner lives, and never heard of it."""
    pid = executor.start("/bin/sleep", ["60"])
    process = executor.process_id(pid)
    for _time in range(40 if seen else 0):
        assert executor.wait(pid, 0.05) is None
    assert (executor._requests[pid].content is None) is seen
    for path in (guest.runner / "1").glob(f"{pid}.*"):
        path.unlink()
    with pytest.raises(OutcomeUnknownError, match="does not know the program"):
        executor.finish(pid)
    os.kill(process, signal.SIGKILL)


@only_sh
@pytest.mark.parametrize("error", [AgentSilentError("no answer"), ConnectError("no socket"), ProtocolError("nonsense")])
def test_error_while_a_program_is_waited_for_says_that_it_may_have_run(
    executor: Runner, guest: Guest, clock: Clock, monkeypatch: pytest.MonkeyPatch, error: QgaError
) -> None:
    pid = executor.start("/bin/echo", ["output"])
    monkeypatch.setattr(patience, "time", clock)

    def fails(*_arguments: Any, **_how: Any) -> Any:
        raise error

    monkeypatch.setattr(executor.agent, "execute", fails)
    with pytest.raises(OutcomeUnknownError, match=error.message) as caught:
        executor.finish(pid)
    assert caught.value.as_result()["error"] == {
        "type": "OutcomeUnknownError",
        "command": "guest-exec",
        "executed": "unknown",
    }


@only_sh
@pytest.mark.parametrize(
    "error",
    [
        AgentSilentError("no answer"),
        HandleLostError("which?"),
        ProtocolError("nonsense"),
        TransferError("a part"),
        CommandError("no", command="guest-file-write"),
        GuestFileError("no", command="guest-file-write"),
    ],
)
def test_program_of_which_nobody_knows_whether_it_was_rung_for(
    executor: Runner, guest: Guest, monkeypatch: pytest.MonkeyPatch, error: QgaError
) -> None:
    """It is not said to be unsent, as it may run; who waits finds out."""
    run_shell(executor, b"true")
    execute, writes = executor.agent.execute, itertools.count(1)

    def executed(command: str, *arguments: Any, **how: Any) -> Any:
        if command == "guest-file-write" and next(writes) == 2:
            raise error
        return execute(command, *arguments, **how)

    monkeypatch.setattr(executor.agent, "execute", executed)
    assert run_shell(executor, f"echo ran | tee -a {guest.tools}/count".encode()).stdout == b"ran\n"
    assert (guest.tools / "count").read_text() == "ran\n"


@only_sh
def test_small_file_that_has_no_end(executor: Runner, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = executor.start("/bin/echo", ["output"])
    eventually(lambda: f"{pid}.rc" in in_spool(guest), "no result")
    (guest.runner / "1" / f"{pid}.rc").write_bytes(b"0" * 70_000)
    with pytest.raises(TransferError, match=r"guest-exec was run: how it ended .*more than 65536 bytes"):
        executor.finish(pid)
    eventually(lambda: not [name for name in in_spool(guest) if name.startswith(f"{pid}.")], "its files stay")


@only_sh
def test_output_that_has_no_end(executor: Runner, guest: Guest) -> None:
    spool = _spool.Spool(executor.agent, _executor.SPOOL, largest_output=10_000_000)
    pids = [executor.start("/bin/sh", ["-c", f"head -c {size} /dev/zero"]) for size in (10_000_000, 10_000_001)]
    eventually(lambda: all(map(spool.ended, pids)), "no results")
    within, beyond = ((pid, spool.ended(pid)) for pid in pids)
    assert len(spool.result(*within)[1]) == 10_000_000
    with pytest.raises(TransferError, match=r"^guest-exec was run: .*did not fit in the guest's /run"):
        spool.result(*beyond)


@only_sh
def test_request_that_nobody_took_is_handed_over_again(executor: Runner, guest: Guest) -> None:
    run_shell(executor, b"true")
    os.kill(runner_pid(guest), signal.SIGSTOP)
    pid = executor.start("/bin/sh", ["-c", f"echo ran >>{guest.tools}/count"])
    assert executor.wait(pid, 0) is None
    os.kill(runner_pid(guest), signal.SIGKILL)
    assert executor.finish(pid).rc == 0
    assert (guest.tools / "count").read_text() == "ran\n"


@only_sh
@pytest.mark.parametrize("before", ["guest-file-write", "guest-file-close"])
def test_agent_that_is_restarted_while_a_request_is_written(
    executor: Runner, guest: Guest, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    run_shell(executor, b"true")
    execute = executor.agent.execute
    restarts = iter([True])

    def restarted(command: str, *arguments: Any, **how: Any) -> Any:
        if command == before and next(restarts, False):
            guest.files.clear()
        return execute(command, *arguments, **how)

    monkeypatch.setattr(executor.agent, "execute", restarted)
    assert run_shell(executor, f"echo ran | tee -a {guest.tools}/count".encode()).stdout == b"ran\n"
    assert (guest.tools / "count").read_text() == "ran\n"


@only_sh
def test_request_that_there_is_no_room_for(executor: Runner, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not run, by nobody."""
    run_shell(executor, b"true")
    for command in ("guest-file-open", "guest-file-write"):
        with monkeypatch.context() as full:
            full.setattr(executor.agent, "execute", without_room(executor.agent.execute, command))
            with pytest.raises(NoRunnerError, match="/run is full"):
                executor.start("/bin/sh", ["-c", f"echo ran >{guest.tools}/ran"])
    run_shell(executor, b"true")
    assert not (guest.tools / "ran").exists()


@only_sh
@pytest.mark.parametrize("for_ever", [False, True])
def test_result_that_cannot_be_read_without_room(
    executor: Runner, clock: Clock, monkeypatch: pytest.MonkeyPatch, for_ever: bool
) -> None:
    pid = executor.start("/bin/echo", ["output"])
    monkeypatch.setattr(patience, "time", clock)
    with monkeypatch.context() as full:
        full.setattr(executor.agent, "execute", without_room(executor.agent.execute, "guest-file-open"))
        if for_ever:
            with pytest.raises(OutcomeUnknownError, match=r"while the program of request \d+ ran: .* no room"):
                executor.finish(pid)
            return
        asked = itertools.count()

        def slept() -> None:
            if next(asked) == 3:
                full.undo()

        clock.on_sleep = slept
        assert executor.finish(pid).stdout == b"output\n"


@only_sh
@pytest.mark.parametrize("lives", [True, False])
def test_runner_of_a_full_run_is_known_by_its_ring(
    executor: Runner, guest: Guest, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """The agent finds no room when it has opened the ring: so somebody reads it."""
    executor = runner_by(executor.agent, look_seconds=0.1)
    pid = executor.start("/bin/sh", ["-c", f"until [ -e {guest.tools}/end ]; do sleep 0.05; done; echo output"])
    process = executor.process_id(pid)
    with monkeypatch.context() as full:
        full.setattr(executor.agent, "execute", without_room(executor.agent.execute, "guest-file-open"))
        if lives:
            assert executor.wait(pid, 10) is None
        else:
            os.kill(runner_pid(guest), signal.SIGKILL)
            os.kill(process, signal.SIGSTOP)
            with pytest.raises(OutcomeUnknownError, match="the runner in the guest ended while the program ran"):
                executor.finish(pid)
            os.kill(process, signal.SIGKILL)
            return
    (guest.tools / "end").touch()
    assert executor.finish(pid).stdout == b"output\n"


@only_sh
def test_runner_of_a_full_run_is_not_started_again(
    guest: Guest,
    scripted: Callable[..., Scripted],
    connect: Callable[..., SocketAgent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with runner(guest, 0) as process:
        eventually((guest.runner / "1" / "pid").exists, "no runner")
        below = connect(scripted(guest.answers(), blocked=BLOCKED))
        executor = Runner(below, lambda below: pytest.fail("needless"))
        with monkeypatch.context() as full:
            full.setattr(below, "execute", without_room(below.execute, "guest-file-open"))
            assert executor.is_available()
        end(process, guest)


@only_sh
def test_frozen_guest_does_not_tell_whether_it_has_a_runner(
    guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    server = scripted({**guest.answers(), "guest-fsfreeze-status": "thawed"}, blocked=BLOCKED)
    agent = connect(server)
    agent.info  # noqa: B018 - it was not frozen then
    server.freeze(100)
    with pytest.raises(CommandUnavailable, match="frozen"):
        runner_by(agent).is_available()


@only_sh
def test_rung_for_twice_runs_once(executor: Runner, guest: Guest) -> None:
    pid = executor.start("/bin/sh", ["-c", f"echo ran >>{guest.tools}/count; sleep 0.3"])
    for _time in range(5):
        executor._spool.ring(str(pid))
    assert executor.finish(pid).rc == 0
    time.sleep(0.5)
    assert (guest.tools / "count").read_text() == "ran\n"


def test_rung_for_again_when_it_was_forgotten(executor: Runner, guest: Guest) -> None:
    run_shell(executor, b"true")
    executor._spool.ring("4711")
    run_shell(executor, b"sleep 0.2")
    eventually(lambda: not in_spool(guest), f"left: {in_spool(guest)}")


@pytest.mark.parametrize("then", ["wait", "exit 5"])
def test_kill(executor: Runner, guest: Guest, then: str) -> None:
    """With what it started, what that starts when it is told to end, and what has no parent any more."""
    started = guest.tools / "started"
    mark = f"60.{guest.tools.stat().st_ino}"
    program = f"trap 'sleep {mark} & {then}' TERM; sleep {mark} & sh -c 'sleep {mark} &'; : >{started}; wait"
    pid = executor.start("/bin/sh", ["-c", program])
    eventually(started.exists, "no program")
    began = time.monotonic()
    assert kill(executor, pid, grace=1)
    assert executor.finish(pid).rc != 0
    assert time.monotonic() - began < 30
    assert count_of(mark) == 0


def test_kill_before_it_was_taken(executor: Runner, guest: Guest) -> None:
    run_shell(executor, b"true")
    os.kill(runner_pid(guest), signal.SIGSTOP)
    pid = executor.start("/bin/sleep", ["60"])
    threading.Timer(0.5, os.kill, (runner_pid(guest), signal.SIGCONT)).start()
    assert kill(executor, pid, grace=1)
    assert executor.finish(pid).rc != 0


@only_sh
def test_nothing_is_ended_where_nobody_tells_its_pid(
    executor: Runner, guest: Guest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was no room for it."""
    monkeypatch.setattr(_executor, "time", clock)
    pid = executor.start("/bin/sleep", ["60"])
    process = executor.process_id(pid)
    (guest.runner / "1" / f"{pid}.pid").unlink()
    eventually(lambda: {f"{pid}.out", f"{pid}.err"} <= in_spool(guest), "nothing keeps its output")
    before = in_spool(guest)
    assert kill(executor, pid) == 0
    assert in_spool(guest) == before, "something was run"
    assert executor.wait(pid, 0) is None
    os.kill(process, signal.SIGKILL)
    assert executor.finish(pid).rc == 128 + signal.SIGKILL


@only_sh
def test_program_that_another_client_started(executor: Runner, guest: Guest) -> None:
    """Whether it has ended or not."""
    pid = executor.start("/bin/sh", ["-c", "sleep 1; echo output"])
    eventually(lambda: f"{pid}.taken" in in_spool(guest), "it was not taken")
    another = Runner(executor.agent, lambda below: None)
    assert another.finish(pid).stdout == b"output\n"


@only_sh
def test_unknown_program(executor: Runner) -> None:
    run_shell(executor, b"true")
    with pytest.raises(HandleLostError):
        executor.status(4711)


# How it ends


def runner(guest: Guest, idle: int, *over: str) -> subprocess.Popen[bytes]:
    guest.runner.mkdir(mode=0o700, exist_ok=True)
    return subprocess.Popen([*guest.shell, "-c", program(), "sh", str(guest.runner / "1"), str(idle), *over])


def without_waiting(path: str, flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def end(process: subprocess.Popen[bytes], guest: Guest) -> None:
    """Tell a runner to end, until it does: bash may miss a signal that comes just before it reads.

    yash acts upon it when it has read something.
    """
    for _time in range(10):
        process.terminate()
        with contextlib.suppress(OSError), open(guest.runner / "1" / "ring", "wb", opener=without_waiting) as ring:
            ring.write(b"\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(2) == 0
            return
    pytest.fail("the runner goes on")


LITTLE = "echo; echo tmpfs 8192 4096 4096 50% /run"
"""What df says where 4 MiB are free: three quarters for standard output, an eighth for standard error."""


@pytest.fixture
def with_tools(
    guest: Guest,
    scripted: Callable[..., Scripted],
    connect: Callable[..., SocketAgent],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Runner]:
    """An agent whose runner uses the tools of its guest."""
    monkeypatch.setenv("PATH", f"{guest.tools}:{os.environ['PATH']}")
    with runner(guest, 0) as process:
        eventually((guest.runner / "1" / "pid").exists, "no runner")
        yield Runner(connect(scripted(guest.answers())), lambda below: None)
        end(process, guest)


@pytest.mark.parametrize(("redirected", "most"), [("", 6 << 19), (" >&2", 1 << 19)])
def test_output_has_a_part_of_what_is_free(
    with_tools: Runner, guest: Guest, tmp_path: Path, redirected: str, most: int
) -> None:
    """A program that writes more, without an end for instance, goes on, and has no room any more."""
    tool(guest, "df", LITTLE)
    tool(guest, "dd", 'case " $* " in *" count=16 "*) set -- "$@" bs=16384 ;; esac; exec /bin/dd "$@"')
    result = run_shell(with_tools, f"head -c {most} /dev/zero{redirected}; exit 3".encode())
    assert (len(result.stdout) + len(result.stderr), result.rc) == (most, 3)
    fifo, done = tmp_path / "fifo", tmp_path / "done"
    os.mkfifo(fifo)
    command = f"{{ head -c {most + 1}; cat '{fifo}'; head -c 1000000; echo >'{done}'; }} </dev/zero{redirected}"
    pid = with_tools.start("/bin/sh", ["-c", command])
    with_tools.process_id(pid)
    eventually(lambda: f"{pid}.lost" in in_spool(guest), "nothing is said to be lost")
    eventually(lambda: not sum(path.stat().st_size for path in outputs(guest, pid)), "what is lost is kept")
    fifo.write_bytes(b"goes on")
    with pytest.raises(TransferError, match="did not fit in the guest's /run"):
        with_tools.finish(pid)
    assert done.exists()


def outputs(guest: Guest, pid: int) -> list[Path]:
    return [guest.runner / "1" / f"{pid}.{stream}" for stream in ("out", "err")]


@only_sh
@pytest.mark.parametrize("counts", [True, False], ids=["the first of it", "the rest of it, where dd cannot count"])
def test_output_that_does_not_fit_is_told(with_tools: Runner, guest: Guest, counts: bool) -> None:
    tool(guest, "dd", 'case " $* " in *" count=0 "*) exit 0 ;; esac; head -c 100; exit 1' if counts else "exit 1")
    tool(guest, "cat", "head -c 100; exit 1")
    with pytest.raises(TransferError, match="did not fit in the guest's /run"):
        run_shell(with_tools, b"head -c 100000 /dev/zero; echo a >&2")


def test_output_is_whole_without_a_dd_that_can_count(with_tools: Runner, guest: Guest) -> None:
    tool(guest, "dd", "echo \"dd: unrecognized operand 'iflag=fullblock'\" >&2; exit 1")
    assert len(run_shell(with_tools, b"head -c 3000000 /dev/zero; echo a >&2").stdout) == 3_000_000


def test_idle_runner_ends(guest: Guest) -> None:
    with runner(guest, 1) as process:
        assert process.wait(20) == 0
    assert list(guest.runner.iterdir()) == []


def test_installed_runner_stays_and_ends_when_told(guest: Guest) -> None:
    with runner(guest, 0) as process:
        eventually((guest.runner / "1" / "pid").exists, "no runner")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        end(process, guest)
    assert list(guest.runner.iterdir()) == []


@only_sh
@pytest.mark.timeout(180)
def test_installed_runner_is_after_two_idle_days_what_it_was(
    guest: Guest,
    scripted: Callable[..., Scripted],
    connect: Callable[..., SocketAgent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its ten minutes are over at once, as often as in 48 hours."""
    ticks, slept = 48 * 6, guest.tools / "slept"
    tool(guest, "sleep", f"echo >>{slept}; [ $(wc -l <{slept}) -gt {ticks} ] || exit 0; exec /bin/sleep 600")
    monkeypatch.setenv("PATH", f"{guest.tools}:{os.environ['PATH']}")
    with runner(guest, 0) as process:
        fds = Path(f"/proc/{process.pid}/fd")
        eventually((guest.runner / "1" / "ring").exists, "no runner")
        (guest.runner / "1" / "7.rc").touch()  # nobody fetches it
        eventually(lambda: slept.exists() and slept.read_text().count("\n") > ticks, "two days are not over")
        assert in_spool(guest) == set()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        # What slept before the last one may have ended, and not be waited for yet.
        eventually(lambda: len(children.read_text().split()) == 1, "processes are left")
        assert len(list(fds.iterdir())) <= 5
        executor = Runner(connect(scripted(guest.answers())), lambda below: None)
        assert executor.finish(executor.start("/bin/echo", ["after"])).stdout == b"after\n"
        end(process, guest)


def test_busy_runner_stays(
    guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    with contextlib.ExitStack() as runners:
        processes = []

        def begin(below: Agent) -> None:
            # Between two ticks, that many seconds, a busy machine must come to fetch the result.
            processes.append(runners.enter_context(runner(guest, 2)))
            eventually((guest.runner / "1" / "pid").exists, "no runner")

        executor = Runner(connect(scripted(guest.answers())), begin)
        pid = executor.start("/bin/sh", ["-c", "sleep 7; echo done"])
        assert executor.finish(pid).stdout == b"done\n"
        assert processes[-1].poll() is None
        assert processes[-1].wait(20) == 0


def test_runner_stays_for_a_request_that_is_just_being_taken(guest: Guest) -> None:
    """On a busy machine a while may pass before what was taken has a process."""
    with runner(guest, 20) as process:
        spool = guest.runner / "1"
        eventually((spool / "pid").exists, "no runner")
        taken, result = spool / "7.taken", spool / "8.rc"
        taken.touch()
        result.touch()
        for _tick in range(2):
            (spool / "ring").write_text("tick\n")
        eventually(lambda: not result.exists(), "what nobody fetches stays")  # the second tick does that
        assert taken.exists()
        taken.unlink()
        (spool / "ring").write_text("tick\n")
        assert process.wait(10) == 0


def test_one_takes_the_place_of_another(executor: Runner, guest: Guest) -> None:
    """Both ways: the installed one that of the one on demand, and back. What runs meanwhile notices nothing."""
    run_shell(executor, b"true")
    count = f"{guest.tools}/count"
    long = executor.start("/bin/sh", ["-c", f"sleep 4; echo long >>{count}; echo long"])
    with runner(guest, 0, "over") as installed:
        # No pause in which nobody would answer.
        numbers = range(20)
        for number in numbers:
            assert run_shell(executor, f"echo {number} >>{count}; echo {number}".encode()).stdout == b"%d\n" % number
        eventually(lambda: runner_pid(guest) == installed.pid, "not installed")
        assert len(guest.started) == 1
        with runner(guest, 100, "over") as on_demand:
            assert installed.wait(20) == 0
            assert run_shell(executor, b"echo again").stdout == b"again\n"
            assert runner_pid(guest) == on_demand.pid
            assert executor.finish(long).stdout == b"long\n"
            end(on_demand, guest)
    assert sorted(Path(count).read_text().split()) == sorted([*map(str, numbers), "long"])
    assert list(guest.runner.iterdir()) == []
    assert len(guest.started) == 1


def is_up(process: subprocess.Popen[bytes]) -> bool:
    """Say whether the runner has come to its loop: it does something of its own when it is told to end."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(caught and int(caught[1], 16) & 1 << (signal.SIGTERM - 1))


@only_sh
def test_taking_the_place_of_one_that_is_ended(guest: Guest) -> None:
    with runner(guest, 0) as old:
        eventually(lambda: is_up(old) and (guest.runner / "1" / "pid").exists(), "no runner")
        old.send_signal(signal.SIGSTOP)
        with runner(guest, 0, "over") as new:
            eventually(lambda: runner_pid(guest) == new.pid, "no successor")
            old.terminate()
            old.send_signal(signal.SIGCONT)
            assert old.wait(20) == 0
            assert runner_pid(guest) == new.pid
            eventually(lambda: is_up(new), "it does not go on")
            end(new, guest)
    assert list(guest.runner.iterdir()) == []


@only_sh
def test_result_that_nobody_fetches_is_removed(
    guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    with runner(guest, 1) as process:
        eventually((guest.runner / "1" / "pid").exists, "no runner")
        executor = Runner(connect(scripted(guest.answers())), lambda below: None)
        executor.start("/bin/sleep", ["20"])
        executor.start("/bin/echo", ["lost"])
        eventually(lambda: any(name.endswith(".rc") for name in in_spool(guest)), "no result")
        eventually(lambda: not any("lost" in read(guest, name) for name in in_spool(guest)), "it stays")
        assert process.poll() is None
        end(process, guest)


def test_request_that_nobody_rings_for_is_dropped(guest: Guest) -> None:
    """It does not keep the runner from ending; one that is still being written stays."""
    with runner(guest, 30) as process:
        spool = guest.runner / "1"
        eventually((spool / "pid").exists, "no runner")
        left, written, result = spool / "7.in", spool / "8.in", spool / "9.rc"
        starts = [guest.runner / f"warm-0.{name}" for name in ("7.parts", "7.err", "7.pid")]
        starts += [guest.runner.parent / f"qemu-guest.7.{name}" for name in ("in", "0", "12")]
        fetched = guest.runner.parent / "qemu-guest.8.in.seen"
        fetched.touch()
        late = guest.runner / "warm-0.8.parts"

        def ticks() -> None:
            result.touch()
            (spool / "ring").write_text("tick\n")
            eventually((spool / "9.rc.seen").exists, "no tick")
            (spool / "9.rc.seen").unlink()

        for path in (left, written, *starts):
            path.write_text("half of a request")
        ticks()
        assert all(path.exists() for path in (left, *starts))
        time.sleep(1.1)  # some shells compare whole seconds
        written.write_text("more of it")
        ticks()
        eventually(lambda: not any(path.exists() for path in (*starts, fetched)), "it stays")
        assert in_spool(guest) == {"7.dropped", "8.in", "8.in.seen", "9.rc"}
        (spool / "ring").write_text("7\n")  # too late
        time.sleep(1.1)
        written.write_text("all of it")
        ticks()
        eventually(lambda: in_spool(guest) == {"7.dropped", "7.dropped.seen", "8.in", "8.in.seen", "9.rc"}, "it stays")
        ticks()
        eventually(lambda: in_spool(guest) == {"8.dropped", "9.rc"}, "it stays")
        late.touch()
        (spool / "ring").write_text("tick\n")
        assert process.wait(20) == 0
        assert list(guest.runner.iterdir()) == []


@pytest.mark.parametrize("hours", [-48, 48])
def test_clock_that_was_set_keeps_nothing_for_ever(guest: Guest, hours: int) -> None:
    """What was written before stays for a tick, as ever, and what is written to stays longer."""
    with runner(guest, 30) as process:
        spool = guest.runner / "1"
        eventually((spool / "pid").exists, "no runner")
        paths = [spool / name for name in ("1.rc", "2.in", "3.rc")]
        for path in paths:
            path.write_text("before")
            os.utime(path, (time.time() + 3600 * hours,) * 2)
        (spool / "ring").write_text("tick\n")
        eventually(lambda: {f"{path.name}.seen" for path in paths} <= in_spool(guest), "no tick")
        paths[2].write_text("written to when the clock had been set")
        (spool / "ring").write_text("tick\n")
        eventually(lambda: in_spool(guest) == {"2.dropped", "3.rc", "3.rc.seen"}, "it stays")
        end(process, guest)


@only_sh
def test_request_that_was_dropped_was_not_run(executor: Runner, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that rings too late learns so within seconds."""
    run_shell(executor, b"true")
    ring = executor._spool.ring

    def late(line: str) -> bool:
        for seen in ("in.seen", "dropped"):
            (guest.runner / "1" / "ring").write_text("tick\n")
            eventually((guest.runner / "1" / f"{line}.{seen}").exists, "not dropped")
        return ring(line)

    monkeypatch.setattr(executor._spool, "ring", late)
    with pytest.raises(
        OutcomeUnknownError, match="guest-exec was not run: the runner in the guest has dropped"
    ) as caught:
        run_shell(executor, f"echo ran >>{guest.tools}/count".encode())
    assert caught.value.executed == "no"
    assert not (guest.tools / "count").exists()


def test_runner_that_can_write_no_result_ends(guest: Guest) -> None:
    """A client waits as long as there is one."""
    spool = guest.runner / "1"
    with runner(guest, 0) as process:
        try:
            eventually((spool / "ring").exists, "no ring")
            (spool / "7.rc").mkdir()
            (spool / "7.in").write_bytes(input_of(f"echo ran >{guest.tools}/ran".encode(), b""))
            (spool / "ring").write_text("7\n")
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert (guest.tools / "ran").exists()


@only_sh
def test_runner_that_takes_nothing_is_not_waited_for_without_end(executor: Runner, guest: Guest) -> None:
    executor = runner_by(executor.agent, take_seconds=3)
    run_shell(executor, b"true")
    os.kill(runner_pid(guest), signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknownError, match="has not taken it"):
            run_shell(executor, b"true")
    finally:
        os.kill(runner_pid(guest), signal.SIGCONT)


def unheard(agent: Agent, end: str) -> Callable[..., Any]:
    """Return what ``execute`` does where the reply to an open of a file whose path ends so is lost."""
    execute = agent.execute

    def executed(command: str, arguments: Any = None, **how: Any) -> Any:
        value = execute(command, arguments, **how)
        if command == "guest-file-open" and arguments["path"].endswith(end):
            raise OutcomeUnknownError("no reply", command=command, hint="It may still run.")
        return value

    return executed


@only_sh
def test_error_before_a_request_is_rung_for_says_that_nothing_was_run(
    executor: Runner, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_shell(executor, b"true")
    monkeypatch.setattr(executor.agent, "execute", unheard(executor.agent, ".in"))
    with pytest.raises(OutcomeUnknownError, match=r"^guest-exec was not run: no reply\.?$") as caught:
        run_shell(executor, f"echo ran >>{guest.tools}/count".encode())
    assert caught.value.executed == "no"
    assert not (guest.tools / "count").exists()


@only_sh
def test_request_that_there_is_no_room_for_leaves_the_room_that_it_took(
    executor: Runner, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_shell(executor, b"true")
    execute = executor.agent.execute

    def is_full() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(path.stat().st_size for path in (guest.runner / "1").glob("*.in"))
        return False

    def executed(command: str, *arguments: Any, **how: Any) -> Any:
        if is_full() and command == "guest-file-open":
            return without_room(execute, command)(command, *arguments, **how)
        value = execute(command, *arguments, **how)
        if is_full() and command == "guest-file-write":
            raise GuestFileError("there is no room", command=command, errno=errno.ENOSPC)
        return value

    monkeypatch.setattr(executor.agent, "execute", executed)
    with pytest.raises(NoRunnerError, match="/run is full"):
        executor.start("/bin/true")
    eventually(lambda: not in_spool(guest), "it stays")


def test_start_that_there_is_no_room_for_leaves_nothing(guest: Guest) -> None:
    tool(guest, "cat", "exit 1")
    starter = bootstrap._STARTER.format(new=f"{guest.runner}/0123456789abcdef")
    starter = starter.replace(_executor.HOME, str(guest.runner))
    argv = [*guest.shell, "-c", f"PATH={guest.tools}:$PATH\n{starter}"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 1
    assert list(guest.runner.iterdir()) == []


def read(guest: Guest, name: str) -> str:
    try:
        return (guest.runner / "1" / name).read_text()
    except FileNotFoundError:
        return ""


# Which way


class CutsReplies(SocketAgent):
    """Such as libvirt's."""

    largest_output = 1 << 20


@only_sh
@pytest.mark.parametrize("blocked", [{}, BLOCKED])
def test_reply_that_the_agent_below_would_not_pass(
    scripted: Callable[..., Scripted], guest: Guest, blocked: dict[str, str]
) -> None:
    server = scripted(guest.answers(), blocked=blocked)
    with CutsReplies(Address("unix", path=str(server.path))) as below:
        executor = GuestExecOrRunner(Runner(below, lambda below: None))
        # What a runner gives out is read from files.
        assert (executor.limits.output < CAPTURE_LIMIT) is not bool(blocked)


@only_sh
def test_auto_prefers_guest_exec(
    guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    executor = GuestExecOrRunner(Runner(connect(scripted(guest.answers())), lambda below: pytest.fail("needless")))
    assert run_shell(executor, b"echo a").stdout == b"a\n"
    assert not guest.runner.exists()


@only_sh
def test_no_route(guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    below = connect(scripted(guest.answers(), blocked=BLOCKED))
    lines: list[str] = []
    executor = GuestExecOrRunner(Runner(below, functools.partial(start_runner, routes=(), log=lines.append)))
    assert not executor.is_available()
    with pytest.raises(CommandUnavailable, match="disabled by the guest's administrator") as caught:
        run_shell(executor, b"true")
    assert "No runner could be started in the guest (no way to do so is allowed)." in caught.value.hint


@only_sh
def test_line_is_taken_back(
    guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    """All of what there was is there at each moment: one that is killed loses nothing of /etc/crontab."""
    path = guest.directory / "crontab"
    content = b""

    def watched(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def answered(arguments: Any) -> Any:
            answers = answer(arguments)
            assert path.read_bytes().startswith(content)
            return answers

        return answered

    below = connect(scripted({name: watched(answer) for name, answer in guest.answers().items()}))
    line = "* * * * * root qemu-guest-runner, for as long as it takes\n"
    for content in (b"", b"one\n", b"no newline"):
        path.write_bytes(content)
        path.chmod(0o640)
        with pytest.raises(ZeroDivisionError), bootstrap._Line(below, "crontab", line):
            assert path.read_bytes().splitlines() == [*content.splitlines(), line.strip().encode()]
            raise ZeroDivisionError
        size = path.stat().st_size
        for again in (line, line.replace("takes", "took")):
            with pytest.raises(ZeroDivisionError), bootstrap._Line(below, "crontab", again):
                assert again.strip().encode() in [part.strip() for part in path.read_bytes().splitlines()]
                raise ZeroDivisionError
        assert path.stat().st_size == size, "lines that were of no use do not add up"
        # What was added is a comment now, and goes with the next line that works.
        subprocess.run(["sh", "-c", bootstrap._removal(shlex.quote(str(path)))], check=True)
        assert path.read_bytes().rstrip(b"\n") == content.rstrip(b"\n")
        assert path.stat().st_mode & 0o777 == 0o640


@only_sh
def test_line_in_a_file_that_has_no_end_stays(
    guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    def read(arguments: Any) -> Any:
        reads.append(arguments["count"])
        assert len(reads) < 100
        return {
            "count": arguments["count"],
            "buf-b64": base64.b64encode(b"x" * arguments["count"]).decode(),
            "eof": False,
        }

    reads: list[int] = []
    below = connect(scripted({**guest.answers(), "guest-file-read": read}))
    with pytest.raises(ZeroDivisionError), bootstrap._Line(below, "crontab", "qemu-guest-runner\n"):
        raise ZeroDivisionError
    assert sum(reads) < 4 << 20


@pytest.fixture
def system(
    guest: Guest, tmp_path: Path, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> tuple[SocketAgent, Path]:
    """An agent that looks for the guest's files in a directory, but for /proc."""
    root = tmp_path / "root"
    root.mkdir()

    def opened(arguments: Any) -> int:
        path = arguments["path"]
        return guest.open({**arguments, "path": path if path.startswith("/proc/") else f"{root}{path}"})

    return connect(scripted({**guest.answers(), "guest-file-open": opened})), root


def made(root: Path, files: dict[str, str]) -> dict[str, str]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return files


def there_is(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@only_sh
def test_udev_where_systemd_is_installed_and_does_not_run(system: tuple[SocketAgent, Path]) -> None:
    """It would be waited for in vain, and a file that nobody removes would stay."""
    executor, root = system
    files = made(root, {name: "" for name in ("run/udev/control", "usr/bin/systemd-run", bootstrap._RULES[0][1:])})
    for route in (bootstrap._by_udev, bootstrap._by_new_udev_rules):
        with pytest.raises(OperationError, match="there is no /run/systemd/system"):
            route(executor)
    assert there_is(root) == files


def test_cron_takes_the_line() -> None:
    """Debian's ignores a line whose command has 1000 characters."""
    assert len(bootstrap._cron_command(bootstrap._new())) < 1000


@only_sh
def test_cron_that_has_ended(system: tuple[SocketAgent, Path]) -> None:
    executor, root = system
    for pid in (os.getpid(), 4194305):  # another's, and nobody's
        files = made(root, {"run/crond.pid": f"{pid}\n", "etc/crontab": "# jobs\n"})
        with pytest.raises(OperationError, match="cron that does not run any more"):
            bootstrap._by_cron(executor)
        assert there_is(root) == files


@only_sh
def test_udev_that_does_nothing_is_told_with_what_it_leaves(
    system: tuple[SocketAgent, Path], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, root = system
    rules = bootstrap._RULES[0]
    made(root, {"run/udev/control": "", "usr/bin/systemd-run": "", rules[1:]: "# rules\n", "run/systemd/system/a": ""})
    made(root, {bootstrap._UEVENT[1:]: ""})
    monkeypatch.setattr(bootstrap, "time", clock)
    left = f"{Path(rules).parent}/qemu-guest-runner"
    with pytest.raises(OperationError, match=f"udev did not act on it; remove {left} in the guest"):
        bootstrap._by_udev(executor)
    assert (root / left[1:]).exists()


def test_leftovers_of_interrupted_starts_are_removed(guest: Guest) -> None:
    guest.runner.mkdir(mode=0o700)
    name = "0123456789abcdef"
    for suffix in ("", ".go", ".run", ".sh"):
        (guest.runner / f"{name}{suffix}").touch()
    for dead in ("1.gone.4194305", "1.new.4194305"):
        (guest.runner / dead).mkdir()
    started = guest.runner / "fedcba9876543210.sh"
    started.write_text(program())
    with subprocess.Popen([*guest.shell, str(started), str(guest.runner / "1"), "1"]) as process:
        assert process.wait(20) == 0
    assert list(guest.runner.iterdir()) == []


NO_RESULTS = [
    b"",
    b"0 o",
    b"0 =5 - .",
    b"0 - =1 .",
    b"0 o e",
    b"1000 - - .",
    b"0 =5 =x .",
    b"0 =%b - ." % (b"9" * 5000),
]


@pytest.mark.parametrize("line", NO_RESULTS)
def test_result_that_is_none(executor: Runner, line: bytes) -> None:
    with pytest.raises(TransferError, match="output"):
        _spool.Spool(executor.agent, _executor.SPOOL).result(1, line + b"\n")
