# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mux is a real process here; the agents are scripted ones."""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader

from ansible_collections.qemu.guest.plugins.module_utils._agent import lock
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import Channel, SyncState
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ChannelBusyError, ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import ChannelLock
from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import (
    connect_to_mux,
    dismiss,
    join,
    key,
    mux_path,
    note,
    noted,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.plugin_utils import _mux_server
from ansible_collections.qemu.guest.plugins.plugin_utils._mux_server import share
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.plugins.connection.test_qga import RIGHT, WORK, Become, Tool
from ansible_collections.qemu.guest.tests.unit.scripted import SYNCS, Scripted, answers

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]
SECONDS = 60.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.005)


@pytest.fixture
def clock() -> None:
    """Time is real: a mux is another process."""


@pytest.fixture(autouse=True)
def short_paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A socket's path has 107 bytes at most; those of tests may be longer."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setattr(lock, "_private_directory", lambda: directory)
        yield


@pytest.fixture
def server(scripted: Start, short_paths: None) -> Scripted:
    return scripted({"guest-info": {"version": "7.2", "supported_commands": []}})


@pytest.fixture
def address(server: Scripted) -> Iterator[Address]:
    """The address of the scripted agent; a mux of it ends with the test."""
    address = Address("unix", path=str(server.path))
    yield address
    dismiss(address)
    until(lambda: not joins(address))


def alive() -> bool:
    return os.path.exists(mux_path())


def mux(address: Address) -> int:
    """Return the mux's pid, when it is there."""
    until(lambda: joins(address))
    return mux_pid()


def mux_pid() -> int:
    text = Path(f"{mux_path()}.lock").read_text(encoding="ascii")
    return int(text.removeprefix("pid ").removesuffix(", qga-mux"))


def joins(address: Address) -> bool:
    channel = join(address, Deadline(10))
    if channel:
        channel.close()
    return channel is not None


@pytest.fixture
def first(server: Scripted, address: Address, connect: Connect) -> SocketAgent:
    """An agent whose channel is shared."""
    agent = connect(server, share=functools.partial(share, seconds=SECONDS))
    agent.execute("guest-ping")
    until(lambda: joins(address))  # its socket is there a moment before it listens
    return agent


def syncs(server: Scripted) -> int:
    return len([command for command in server.commands if command in SYNCS])


def test_channel_outlives_its_client(first: SocketAgent, server: Scripted, connect: Connect) -> None:
    for _task in range(3):
        first.close()
        connect(server).execute("guest-ping")
        first.execute("guest-ping")
    assert server.work == ["guest-ping"] * 7
    assert syncs(server) == 1
    assert len(server.received) == 1, "one client, as the agent sees it"


def test_clients_take_turns(first: SocketAgent, server: Scripted, connect: Connect) -> None:
    others = [connect(server) for _number in range(4)]
    for _round in range(10):
        for agent in [first, *others]:
            agent.execute("guest-ping")
    assert syncs(server) == 1 and len(server.received) == 1


def test_nobody_waits_for_more_than_a_request(first: SocketAgent, server: Scripted, connect: Connect) -> None:
    ended = threading.Event()

    def use_it() -> None:
        while not ended.is_set():
            first.execute("guest-ping")

    greedy = threading.Thread(target=use_it)
    greedy.start()
    try:
        other = connect(server)
        other.execute("guest-ping")
        before = len(server.requests)
        for _number in range(20):
            other.execute("guest-info")
        assert len(server.requests) - before <= 60
    finally:
        ended.set()
        greedy.join()
    assert "guest-ping" in server.commands[before:], "the other was not kept waiting either"


def test_turn_that_is_not_had_in_time(first: SocketAgent, server: Scripted, address: Address, connect: Connect) -> None:
    channel = join(address, Deadline(10))
    assert channel is not None
    channel.acquire(Deadline(10))
    with pytest.raises(ChannelBusyError, match=f"another task uses the channel .pid {os.getpid()}, .* 0.2 s") as caught:
        connect(server, timeout=0.2).execute("guest-ping")
    assert caught.value.executed == "no"
    assert server.work == ["guest-ping"]
    channel.close()
    first.execute("guest-ping")
    assert syncs(server) == 2, "it went away in its turn"


def test_step_is_passed_on(first: SocketAgent, address: Address) -> None:
    channels = [join(address, Deadline(10)) for _number in range(2)]
    one, other = [channel for channel in channels if channel]
    state = one.acquire(Deadline(10))
    assert state.since and state.takes_id and state.echoes_id
    left = SyncState(since=17.5, takes_id=False)
    one.release(left)
    assert other.acquire(Deadline(10)) == left
    other.release(SyncState())
    assert one.acquire(Deadline(10)) == SyncState()
    for channel in (one, other):
        channel.close()


def test_what_is_noted_is_known_to_the_next(first: SocketAgent, address: Address) -> None:
    assert noted(address, "name") == ""
    for value in ("one", "another one"):
        note(address, "name", value)
        assert noted(address, "name") == value
    for number in range(_mux_server._MOST_NOTES):
        note(address, str(number), "new")
    assert (noted(address, "name"), noted(address, "0")) == ("", "new"), "not without an end"
    dismiss(address)
    until(lambda: not alive())
    note(address, "name", "one")
    assert noted(address, "name") == "", "there is nobody"


@pytest.mark.parametrize(("program", "asks", "runs"), [("sudo", True, [2, 1, 1]), ("su", False, [1, 1, 1])])
def test_whether_a_password_is_asked_for_is_known_to_the_next_task(
    scripted: Start, guest: Guest, tmp_path: Path, program: str, asks: bool, runs: list[int]
) -> None:
    """What was refused once is not tried by each task, and what asks for nothing is given no password to wait for."""
    server = scripted(guest.answers(), path=tmp_path / "guest.sock")
    tool = Tool(tmp_path)
    tool.install(asks=asks)
    options = {"address": str(server.path), "exec_method": "guest-exec", "persist": SECONDS, "agent_timeout": 20}
    for count in runs:
        connection = connection_loader.get("qemu.guest.qga", PlayContext(), None)
        connection.set_options(direct=options)
        before = len(guest.started)
        assert Become(program, connection, tool)(WORK, b"in", RIGHT) == (3, b"in", b"e\n")
        connection.close()
        assert len(guest.started) - before == count
    assert ("mkfifo" in base64.b64decode(guest.started[-1]["input-data"]).decode()) is asks
    assert tool.seen == [RIGHT] * 3 * asks
    dismiss(Address("unix", path=str(server.path)))


def test_mux_that_is_killed_while_a_request_is_under_way(
    scripted: Start, server: Scripted, first: SocketAgent, address: Address, connect: Connect
) -> None:
    pid = mux(address)

    def killed(session: Any, request: Any) -> None:
        os.kill(pid, signal.SIGKILL)
        until(lambda: not os.path.exists(f"/proc/{pid}") or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1])
        answers(session, request)

    server.then("guest-ping", killed)
    first.execute("guest-ping")
    assert server.work == ["guest-ping"] * 2, "it arrived, and once"
    first.execute("guest-ping")
    first.close()
    connect(server, share=functools.partial(share, seconds=SECONDS)).execute("guest-ping")
    assert mux(address) != pid, "the next task has another one"


def test_mux_that_is_killed_while_others_wait(
    server: Scripted, first: SocketAgent, address: Address, connect: Connect
) -> None:
    channel = join(address, Deadline(10))
    assert channel is not None
    state = channel.acquire(Deadline(10))
    done: list[Any] = []
    waiting = threading.Thread(target=lambda: done.append(connect(server, timeout=60).execute("guest-ping")))
    waiting.start()
    os.kill(mux(address), signal.SIGKILL)
    time.sleep(0.1)
    assert not done, "the turn is not over"
    channel.release(state)
    first.close()
    waiting.join(20)
    assert done == [{}]


def test_mux_ends_when_nobody_needs_it(server: Scripted, address: Address, connect: Connect) -> None:
    agent = connect(server, share=functools.partial(share, seconds=0.3))
    agent.execute("guest-ping")
    until(alive)
    time.sleep(0.6)
    assert alive(), "somebody is connected"
    agent.close()
    started = time.monotonic()
    until(lambda: not alive())
    assert time.monotonic() - started > 0.2
    until(lambda: server.received[-1] is not None and free(address))


def free(address: Address) -> bool:
    lock = ChannelLock(address)
    try:
        lock.acquire(Deadline(0))
    except ChannelBusyError:
        return False
    lock.release()
    return True


def test_mux_that_is_told_to_end(first: SocketAgent, address: Address) -> None:
    first.close()
    assert not free(address)
    dismiss(address)
    until(lambda: free(address) and not alive())
    dismiss(address)


def test_mux_that_is_told_to_end_lets_a_request_end(first: SocketAgent, address: Address) -> None:
    channel = join(address, Deadline(10))
    assert channel is not None
    state = channel.acquire(Deadline(10))
    dismiss(address)
    time.sleep(0.1)
    assert alive()
    channel.release(state)
    until(lambda: not alive())
    channel.close()
    first.execute("guest-ping")


def test_other_side_has_gone(first: SocketAgent, server: Scripted, address: Address, scripted: Start) -> None:
    first.close()
    server.__exit__()
    until(lambda: not alive())
    with pytest.raises(ConnectError, match="nothing listens on this socket"):
        first.execute("guest-ping")
    server.path.unlink()
    scripted(path=server.path)
    first.execute("guest-ping")


def test_only_the_user_gets_in(first: SocketAgent, address: Address) -> None:
    assert stat.S_IMODE(os.stat(mux_path()).st_mode) == 0o600


def test_mux_of_another_user_is_not_believed(
    first: SocketAgent, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert join(address, Deadline(1)) is None


def test_client_of_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid() + 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ExitStack() as stack:
        listener.bind(str(tmp_path / "mux"))
        listener.listen()
        made = _mux_server.MuxServer(listener)
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        client.connect(str(tmp_path / "mux"))
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        made.welcome()
        assert client.recv(10) == b""
        assert not made.clients


def test_programs_that_a_task_starts_here_do_not_inherit_the_channel(first: SocketAgent, address: Address) -> None:
    channel = join(address, Deadline(10))
    assert channel is not None
    stream, _lock = channel.descriptors
    assert not any(os.get_inheritable(number) for number in (stream, channel._lock_copy))
    channel.close()


def test_where_no_process_can_be_started(server: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    agent = connect(server, share=functools.partial(share, seconds=SECONDS))
    agent.execute("guest-ping")
    agent.execute("guest-ping")
    assert syncs(server) == 1
    assert not alive()


def test_where_the_socket_would_have_too_long_a_path(
    server: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(lock, "_private_directory", lambda: str(long))
    agent = connect(server, share=functools.partial(share, seconds=SECONDS))
    agent.execute("guest-ping")
    agent.execute("guest-ping")
    assert syncs(server) == 1 and len(server.received) == 1


def test_mux_that_cannot_write_its_name_serves_and_leaves_nothing() -> None:
    path = mux_path()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        open("/dev/full", "r+b", buffering=0) as full,
    ):
        listener.bind(path)
        listener.listen()
        given = (listener.fileno(), full.fileno())
        argv = [sys.executable, "-I", "-S", _mux_server.__file__, path, *map(str, given)]
        assert subprocess.run(argv, pass_fds=given, timeout=30, check=False).returncode == 0
    assert not os.path.exists(path)


def test_leftovers_of_a_keeper_that_was_killed(
    server: Scripted, first: SocketAgent, address: Address, connect: Connect
) -> None:
    os.kill(mux(address), signal.SIGKILL)
    first.close()
    until(lambda: free(address))
    assert alive(), "its socket"
    agent = connect(server, share=functools.partial(share, seconds=SECONDS))
    agent.execute("guest-ping")
    agent.close()
    until(lambda: joins(address))


def test_connection_keeps_its_channel(scripted: Start, guest: Guest) -> None:
    server = scripted(guest.answers())
    address = Address("unix", path=str(server.path))

    def connection(persist: float) -> Any:
        made = connection_loader.get("qemu.guest.qga", PlayContext(), None)
        made.set_options(direct={"exec_method": "guest-exec", "address": str(server.path), "persist": persist})
        return made

    for _task in range(2):
        task = connection(60)
        assert task.exec_command("echo a")[1] == b"a\n"
        task.close()
        until(lambda: joins(address))
    other = connection(0)
    assert other.exec_command("echo b")[1] == b"b\n", "it is used by who would not keep it"
    assert len(server.received) == 1
    other.reset()
    assert not joins(address)
    assert other.exec_command("echo c")[1] == b"c\n"
    other.close()
    assert not joins(address) and free(address)


def test_nothing_is_said_of_the_process_that_stays(server: Scripted, address: Address, connect: Connect) -> None:
    """Python warns of processes that nobody waits for, where warnings are shown; ansible-core takes that for output."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent = connect(server, share=functools.partial(share, seconds=SECONDS))
        agent.execute("guest-ping")
        until(lambda: joins(address))
        agent.close()
        gc.collect()
    assert not [str(one.message) for one in caught]


def test_client_that_says_what_no_client_says(first: SocketAgent, server: Scripted, address: Address) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.connect(mux_path())
        control.send(b"find /a")
        assert control.recv(10) == b"", "it is shown out"
    first.execute("guest-ping")
    assert syncs(server) == 1 and len(server.received) == 1, "and the mux is still there"


def keep(name: str, seconds: float = SECONDS) -> tuple[Address, socket.socket]:
    """Have a channel kept that nothing is sent through; return its address and its other side."""
    address = Address("unix", path=f"/run/{name}.qga")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    lock = ChannelLock(address)
    lock.acquire(Deadline(10))
    share(address, Channel(theirs, lock), seconds).close()
    return address, ours


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_one_process_keeps_all_channels_beyond_the_soft_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = descriptors_of(os.getpid())
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 300, hard))
    try:
        kept = [keep(f"vm{number}") for number in range(200)]
        pid = mux(kept[-1][0])
        assert all(joins(address) for address, _ours in kept)
        assert descriptors_of(pid) > 400
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _address, ours in kept:
            ours.close()
        until(lambda: not alive())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_tasks_that_start_a_mux_at_once_start_one() -> None:
    kept: list[tuple[Address, socket.socket]] = []
    threads = [threading.Thread(target=lambda name=name: kept.append(keep(name))) for name in map(str, range(20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 20 and all(joins(address) for address, _ours in kept), "one has all channels"
    for _address, ours in kept:
        ours.close()
    until(lambda: not alive())


def test_each_channel_has_its_own_time() -> None:
    (short, _ours), (long, theirs) = keep("short", 0.2), keep("long")
    until(lambda: free(short))
    assert not joins(short) and joins(long) and not free(long)
    theirs.close()
    until(lambda: not alive())


def test_other_side_of_one_channel_has_gone() -> None:
    (one, ours), (other, theirs) = keep("one"), keep("other")
    pid = mux(other)
    ours.close()
    until(lambda: not joins(one))
    assert free(one) and joins(other) and mux(other) == pid
    theirs.close()
    until(lambda: not alive())


def test_client_that_reads_nothing_does_not_stop_the_others() -> None:
    (one, ours), (other, theirs) = keep("one"), keep("other")
    control = connect_to_mux()
    assert control is not None
    control.send(b"visit " + key(one))
    control.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _number in range(10_000):
            control.send(b"noted name")
    started = time.monotonic()
    assert joins(other) and time.monotonic() - started < 10
    for used in (control, ours, theirs):
        used.close()
    until(lambda: not alive())


def test_mux_that_is_killed_loses_no_channel_in_use(scripted: Start, tmp_path: Path, connect: Connect) -> None:
    servers = [scripted(path=tmp_path / name) for name in ("a", "b")]
    agents = [connect(server, share=functools.partial(share, seconds=SECONDS)) for server in servers]
    for agent in agents:
        agent.execute("guest-ping")
    pid = mux(Address("unix", path=str(servers[1].path)))
    os.kill(pid, signal.SIGKILL)
    for agent, server in zip(agents, servers, strict=True):
        agent.execute("guest-ping")
        agent.execute("guest-ping")
        assert server.work == ["guest-ping"] * 3, "each arrived, and once"
        agent.close()


def test_mux_that_hangs_is_not_waited_for_without_end(server: Scripted, address: Address, connect: Connect) -> None:
    """Not even by more clients than can wait for it to accept them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ExitStack() as stack:
        listener.bind(mux_path())
        listener.listen(1)
        while (client := connect_to_mux()) is not None:
            stack.enter_context(client)
        assert join(address, Deadline(0.2)) is None
        lock = ChannelLock(address)
        lock.acquire(Deadline(10))
        with pytest.raises(ChannelBusyError):
            connect(server, timeout=0.5).execute("guest-ping")
        lock.release()
        os.unlink(mux_path())
