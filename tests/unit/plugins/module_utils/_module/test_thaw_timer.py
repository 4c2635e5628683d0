# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real timers, in processes of their own, in real time: hence the one clock of these tests that nobody stops."""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import resource
import select
import signal
import socket
import syslog
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    ChannelBusyError,
    ConnectError,
    OperationError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import ChannelLock
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module import thaw_timer
from ansible_collections.qemu.guest.plugins.module_utils._module.thaw_timer import Armed, Timer, disarm
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, closes, fails, returns

STATUS, THAW = "guest-fsfreeze-status", "guest-fsfreeze-thaw"
SOON = 0.2
# More than enough: what is waited for comes in a moment.
PATIENCE = 15.0
hold = functools.partial(thaw_timer.arm, tick=0.1)

# Tests are threads too, and a fork of threads is what Python warns of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


class Frozen:
    """A guest that is frozen until it is thawed."""

    def __init__(self) -> None:
        self.status = "frozen"
        self.thaws = 0

    def thaw(self, arguments: Any) -> int:
        self.status = "thawed"
        self.thaws += 1
        return 2

    def answers(self) -> dict[str, Any]:
        return {STATUS: lambda arguments: self.status, THAW: self.thaw}


@pytest.fixture
def frozen() -> Frozen:
    return Frozen()


@pytest.fixture
def start(tmp_path: Path, frozen: Frozen) -> Iterator[Callable[[], Scripted]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Scripted(tmp_path / "agent.sock", frozen.answers()))


@pytest.fixture
def server(start: Callable[[], Scripted]) -> Scripted:
    return start()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[SocketAgent]:
    agent = SocketAgent(Address("unix", path=str(tmp_path / "agent.sock")), 5)
    yield agent
    agent.close()


@pytest.fixture(autouse=True)
def timers(locks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The pids of the timers that this process armed. None outlives its test."""
    pids: list[int] = []

    fork = thaw_timer._fork

    def note(*work: Any) -> str:
        answer = fork(*work)
        if answer.isdigit():
            pids.append(int(answer))
        return answer

    monkeypatch.setattr(thaw_timer, "_fork", note)
    yield pids
    for pid in pids:
        if is_timer(pid):
            os.kill(pid, signal.SIGKILL)


def arm(agent: SocketAgent, seconds: float, **more: float) -> Timer:
    """Arm a timer and leave it."""
    armed = hold(agent, seconds, **more)
    armed.leave()
    return armed.timer


def is_timer(pid: int) -> bool:
    """Say whether the process is a timer that has not ended; who adopted it may be slow to notice that it has."""
    try:
        name, _parenthesis, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    return name.endswith("(qga-thaw-timer") and rest.split()[0] not in ("Z", "X")


def ends(timer: Timer) -> bool:
    return until(lambda: not is_timer(timer.pid))


def until(condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found[int(link.name)] = os.readlink(link)
    return found


def test_it_thaws(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    started = time.monotonic()
    timer = arm(agent, 1.5)
    assert is_timer(timer.pid)
    assert timer.seconds == 1.5 and timer.fired is None
    assert until(lambda: frozen.thaws)
    assert time.monotonic() - started >= 1.5
    assert ends(timer)
    assert server.work == [STATUS, THAW, STATUS]
    fired = disarm(agent)
    assert fired and fired.fired
    assert disarm(agent) is None, "it is told of once"


def test_result(agent: SocketAgent, server: Scripted) -> None:
    timer = arm(agent, 60)
    result = timer.as_result()
    assert json.loads(json.dumps(result)) == {
        "seconds": 60,
        "pid": timer.pid,
        "deadline": timer.deadline,
        "fired": None,
    }
    left = time.mktime(time.strptime(timer.deadline, "%Y-%m-%dT%H:%M:%SZ")) - time.mktime(time.gmtime())
    assert 55 < left <= 61


@pytest.mark.parametrize("count", [0, 1])
def test_it_thaws_what_the_status_does_not_tell_of(
    agent: SocketAgent, server: Scripted, frozen: Frozen, count: int
) -> None:
    frozen.status = "thawed"
    server.answers[THAW] = count
    assert ends(arm(agent, SOON))
    assert server.work == [STATUS, THAW]
    timer = disarm(agent)
    assert timer and bool(timer.fired) is bool(count)


def test_hook_that_fails_where_nothing_was_frozen(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    frozen.status = "thawed"
    server.then(THAW, *[fails("fsfreeze hook has failed with status 1")] * 9)
    assert ends(arm(agent, SOON))
    assert server.work.count(THAW) == 1, "the hook is not run each second"


def test_disarmed(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    timer = arm(agent, 1)
    assert disarm(agent) == timer
    assert disarm(agent) is None
    assert ends(timer)
    assert server.commands == []


def test_nothing_to_disarm(agent: SocketAgent) -> None:
    assert disarm(agent) is None


def test_another_takes_its_place(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    first, second = arm(agent, 1), arm(agent, 600)
    assert ends(first)
    assert is_timer(second.pid)
    assert server.commands == []
    assert disarm(agent) == second


def test_disarmed_while_it_waits_for_the_seat(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    """The deadline passes while a task thaws and disarms; what is frozen next is not the timer's."""
    agent.execute("guest-ping")
    timer = arm(agent, SOON)
    time.sleep(0.6)
    assert is_timer(timer.pid)
    disarm(agent)
    agent.close()
    assert ends(timer)
    assert frozen.thaws == 0


def test_two_names_of_one_socket(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    (tmp_path / "other.sock").symlink_to(server.path)
    timer = arm(SocketAgent(Address("unix", path=str(tmp_path / "other.sock"))), 60)
    assert disarm(agent) == timer


@pytest.mark.parametrize("damage", ["gone", "garbage"])
def test_file_that_is_lost_disarms_nothing(
    agent: SocketAgent, server: Scripted, frozen: Frozen, locks: Path, damage: str
) -> None:
    timer = arm(agent, 1.0)
    (file,) = locks.glob("*.thaw")
    if damage == "garbage":
        file.write_text("{")
    else:
        file.unlink()
    assert ends(timer)
    assert frozen.thaws == 1


def test_nothing_of_its_parent_stays_with_it(agent: SocketAgent, server: Scripted) -> None:
    agent.execute("guest-ping")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    timer = arm(agent, 60)
    open_files = descriptors(timer.pid)
    assert {number: path for number, path in open_files.items() if number < 3} == dict.fromkeys(range(3), os.devnull)
    # Its own connection to syslog at most.
    assert len(open_files) <= 4, open_files
    os.close(writer)
    assert select.select([reader], [], [], 5)[0] and os.read(reader, 1) == b"", "it kept the pipe open"
    os.close(reader)
    assert os.getsid(timer.pid) not in (os.getsid(0), timer.pid)
    assert os.readlink(f"/proc/{timer.pid}/cwd") == "/"


def test_it_does_not_hold_the_seat(agent: SocketAgent, server: Scripted) -> None:
    agent.execute("guest-ping")
    timer = arm(agent, 60)
    lock = ChannelLock(Address("unix", path=str(server.path)))
    with pytest.raises(ChannelBusyError, match=f"pid {os.getpid()}"):
        lock.acquire(Deadline(0))
    assert agent.execute("guest-ping") == {}, "the channel is still the parent's"
    agent.close()
    lock.acquire(Deadline(0))
    lock.release()
    assert is_timer(timer.pid)


def test_it_leaves_the_seat_when_it_is_done(agent: SocketAgent, server: Scripted) -> None:
    assert ends(arm(agent, SOON))
    ChannelLock(Address("unix", path=str(server.path))).acquire(Deadline(0))


def orphan(agent: SocketAgent, seconds: float, last: Callable[[], None]) -> int:
    """Arm a timer in a process that leaves it and does ``last`` then, and return the timer's pid."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            agent.execute("guest-ping")
            os.write(writer, b"%d" % arm(agent, seconds).pid)
            last()
        finally:
            os._exit(1)
    os.close(writer)
    os.waitpid(child, 0)
    pid = int(os.read(reader, 100))
    os.close(reader)
    return pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_it_outlives_its_parent(
    agent: SocketAgent, server: Scripted, frozen: Frozen, timers: list[int], number: signal.Signals
) -> None:
    def die() -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        os.killpg(0, number)
        time.sleep(5)

    pid = orphan(agent, 1.2, die)
    timers.append(pid)
    assert is_timer(pid)
    assert until(lambda: frozen.thaws == 1)
    assert until(lambda: not is_timer(pid))


def test_it_survives_hangup(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    timer = arm(agent, 1.2)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        os.kill(timer.pid, number)
    assert until(lambda: frozen.thaws == 1)


def test_exit_handlers_do_not_run(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    def left() -> None:
        (tmp_path / str(os.getpid())).touch()

    atexit.register(left)
    try:
        timer = arm(agent, SOON)
        assert ends(timer)
    finally:
        atexit.unregister(left)
    assert not (tmp_path / str(timer.pid)).exists()


# The line to its task


def test_its_task_dies(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    armed = hold(agent, 600)
    time.sleep(SOON)
    assert is_timer(armed.timer.pid) and frozen.thaws == 0
    armed.line.close()
    assert ends(armed.timer)
    assert frozen.thaws == 1
    timer = disarm(agent)
    assert timer and timer.fired


@pytest.mark.parametrize("seconds", [0, 600])
def test_its_task_is_killed(
    agent: SocketAgent, server: Scripted, frozen: Frozen, timers: list[int], seconds: float
) -> None:
    child = os.fork()
    if child == 0:
        try:
            hold(agent, seconds)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert until(lambda: frozen.thaws == 1)


def test_deadline_while_its_task_works(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    armed = hold(agent, SOON)
    assert ends(armed.timer)
    assert frozen.thaws == 1
    armed.leave()


def test_no_deadline(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    armed = hold(agent, 0)
    time.sleep(SOON)
    assert is_timer(armed.timer.pid)
    armed.end()
    assert ends(armed.timer)
    assert frozen.thaws == 0


def test_its_task_dies_when_another_has_taken_its_place(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    first = hold(agent, 0)
    second = arm(agent, 600)
    first.line.close()
    assert ends(first.timer)
    assert is_timer(second.pid) and server.commands == []


def test_disarmed_if_it_has_no_deadline(agent: SocketAgent, server: Scripted) -> None:
    armed = hold(agent, 600)
    assert disarm(agent, if_without_deadline=True) is None and is_timer(armed.timer.pid)
    without: Armed = hold(agent, 0)
    assert disarm(agent, if_without_deadline=True) == without.timer
    assert ends(armed.timer) and ends(without.timer)
    armed.line.close()
    without.line.close()
    assert server.commands == []


# Trouble at the deadline


def test_agent_that_comes_late(agent: SocketAgent, start: Callable[[], Scripted], frozen: Frozen) -> None:
    timer = arm(agent, SOON)
    time.sleep(0.6)
    assert is_timer(timer.pid), "it does not give up where there is no socket"
    start()
    assert ends(timer)
    assert frozen.thaws == 1


def test_seat_that_is_taken(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.connect(str(server.path))
        timer = arm(agent, SOON)
        time.sleep(0.6)
        assert frozen.thaws == 0
    assert ends(timer)
    assert frozen.thaws == 1


def test_own_seat_that_is_taken(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    agent.execute("guest-ping")
    timer = arm(agent, SOON)
    time.sleep(0.6)
    assert frozen.thaws == 0
    agent.close()
    assert ends(timer)
    assert frozen.thaws == 1


def test_replies_that_are_lost(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    server.then(STATUS, closes(), closes())
    server.then(THAW, closes(), fails("failed to thaw"))
    assert ends(arm(agent, SOON))
    assert frozen.thaws == 1
    assert server.work.count(THAW) == 3


def test_thaw_that_leaves_it_frozen(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    server.then(THAW, returns(0), returns(1))
    assert ends(arm(agent, SOON))
    assert server.work.count(THAW) == 3 and frozen.thaws == 1


def test_hook_that_fails_when_it_thaws(agent: SocketAgent, server: Scripted, frozen: Frozen) -> None:
    def step(session: Any, request: Any) -> None:
        frozen.thaw({})
        fails("fsfreeze hook has failed with status 1")(session, request)

    server.then(THAW, step)
    assert ends(arm(agent, SOON))
    assert frozen.thaws == 1
    timer = disarm(agent)
    assert timer and timer.fired, "it did thaw"


def test_it_gives_up(agent: SocketAgent) -> None:
    assert ends(arm(agent, SOON, retry_seconds=1.0))


def test_what_it_logs(
    agent: SocketAgent, start: Callable[[], Scripted], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def log(level: int, text: str) -> None:
        with (tmp_path / "log").open("a") as file:
            file.write(f"{level} {text}\n")

    monkeypatch.setattr(syslog, "syslog", log)
    timer = arm(agent, SOON)
    time.sleep(0.6)
    start()
    assert ends(timer)
    silent, thawed = (tmp_path / "log").read_text().splitlines()
    assert silent.startswith("4 it cannot thaw the guest yet: guest agent at unix:") and "no such socket" in silent
    assert thawed == f"4 {agent.name}: thawed the guest's filesystems, 0.2 s after arming"


# Trouble before


def test_directory_that_cannot_be_written_to(agent: SocketAgent, locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thaw_timer, "private_path", lambda identity, kind: str(locks / "absent" / "x.thaw"))
    with pytest.raises(OperationError, match=r"could not be armed: .*absent.*No such file"):
        arm(agent, 60)


def test_no_room(agent: SocketAgent, server: Scripted, locks: Path) -> None:
    """What is there stays, and nothing else."""
    timer = arm(agent, 60)
    before = [(path, path.read_text()) for path in locks.iterdir()]
    _soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OperationError, match=r"^cannot write .*: File too large\.$"):
            disarm(agent)
        with pytest.raises(OperationError, match=r"could not be armed: cannot write .*: File too large\.$"):
            arm(agent, 60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [(path, path.read_text()) for path in locks.iterdir()] == before
    assert is_timer(timer.pid)


def test_no_processes(agent: SocketAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = set(descriptors(os.getpid()))
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(OperationError, match="could not be armed: Resource temporarily unavailable"):
        arm(agent, 60)
    monkeypatch.undo()
    assert set(descriptors(os.getpid())) == before


def test_process_that_fails_at_once(agent: SocketAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    def detach(keep: int) -> None:
        raise MemoryError

    monkeypatch.setattr(thaw_timer, "_detach", detach)
    with pytest.raises(OperationError, match=r"could not be armed: .*MemoryError"):
        arm(agent, 60)


def test_channel_that_is_gone_when_the_task_is(agent: SocketAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    def again() -> SocketAgent:
        raise ConnectError("this channel ends with the task.")

    monkeypatch.setattr(agent, "again", again)
    with pytest.raises(ConnectError, match="ends with the task"):
        arm(agent, 60)


def test_lock_of_a_parent_that_forked_stays_its_own(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    """A lock is shared with a fork: as long as that keeps it open, it is held, and unlocking there unlocks it here."""
    with (tmp_path / "lock").open("w") as lock, (tmp_path / "lock").open("w") as other:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arm(agent, 60)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
