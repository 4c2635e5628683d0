# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import channel as _channel
from ansible_collections.qemu.guest.plugins.module_utils._agent import lock as _lock
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import FORMS, Address, parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import Channel, open_channel
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    AgentSilentError,
    ChannelBusyError,
    ConnectError,
    OutcomeUnknownError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import ChannelLock, private_path
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_peer import other_client
from ansible_collections.qemu.guest.tests.unit.scripted import Clock

NOBODY = 65534
private_directory = _lock._private_directory


@contextmanager
def as_another_user() -> Iterator[None]:
    """Be a user whom file permissions hold back, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/vm1.qga", Address("unix", path="/run/vm1.qga")),
        ("unix:/run/vm1.qga", Address("unix", path="/run/vm1.qga")),
        ("/run/a b:c/ü.sock", Address("unix", path="/run/a b:c/ü.sock")),
        ("unix:/a:b", Address("unix", path="/a:b")),
        ("vsock:3:1024", Address("vsock", cid=3, port=1024)),
        ("tcp:vm1.example:7000", Address("tcp", host="vm1.example", port=7000)),
        ("tcp:192.0.2.1:1", Address("tcp", host="192.0.2.1", port=1)),
        ("tcp:[::1]:65535", Address("tcp", host="::1", port=65535)),
        ("tcp:[fe80::1%eth0]:7", Address("tcp", host="fe80::1%eth0", port=7)),
        ("libvirt:web 1:ü", Address("libvirt", domain="web 1:ü")),
    ],
)
def test_address(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vm1",
        "run/vm1.qga",
        "./vm1.qga",
        "~/vm1.qga",
        "unix",
        "unix:",
        "unix:vm1.qga",
        "UNIX:/run/vm1.qga",
        " /run/vm1.qga",
        "vsock:3",
        "vsock:3:",
        "vsock::1024",
        "vsock:three:1024",
        "vsock:3:1024:5",
        "vsock:-1:1024",
        "vsock:4294967296:1024",
        "vsock:3:4294967296",
        "libvirt:",
        "tcp:vm1",
        "tcp:vm1:",
        "tcp::7000",
        "tcp:vm1:0",
        "tcp:vm1:65536",
        "tcp:vm1:http",
        "tcp:::1:7000",
        "tcp:[::1]",
        "tcp:[]:7000",
        "http://vm1",
        "pty:/dev/pts/1",
    ],
)
def test_malformed_address_says_what_it_should_be(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    assert FORMS in str(caught.value)


# Deadlines


def test_deadline(clock: Clock) -> None:
    deadline = Deadline(10)
    assert (deadline.left(), deadline.expired) == (10, False)
    clock.advance(9)
    assert (deadline.left(), deadline.expired) == (1, False)
    clock.advance(1)
    assert (deadline.left(), deadline.expired) == (0, True)
    clock.advance(5)
    assert deadline.left() == 0


# The lock

UNIX = Address("unix", path="/nowhere/vm1.qga")


@contextmanager
def held_by_another_process(address: Address) -> Iterator[int]:
    """Run a process that holds the lock of ``address``; it ends with the context."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            lock = ChannelLock(address)
            lock.acquire(Deadline(30))
            os.write(write_end, b"held")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(read_end, 4) == b"held"
        yield pid
    finally:
        os.close(read_end)
        os.close(write_end)
        with ExitStack() as stack:
            stack.callback(os.waitpid, pid, 0)
            os.kill(pid, signal.SIGKILL)


def test_lock_held_by_another_process_is_an_error_at_the_deadline(clock: Clock) -> None:
    with held_by_another_process(UNIX) as pid:
        started = clock.now
        with pytest.raises(ChannelBusyError) as caught:
            ChannelLock(UNIX).acquire(Deadline(3))
        assert clock.now - started == pytest.approx(3)
    assert f"pid {pid}, {os.path.basename(sys.argv[0])}" in str(caught.value)
    assert "3 s" in str(caught.value)
    assert caught.value.executed == "no"


def test_lock_is_free_when_its_holder_is_killed() -> None:
    with held_by_another_process(UNIX) as pid:
        timer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
        timer.start()
        lock = ChannelLock(UNIX)
        lock.acquire(Deadline(30))
        timer.join()
        lock.release()


def test_lock_is_had_as_soon_as_it_is_released(clock: Clock) -> None:
    first, second = ChannelLock(UNIX), ChannelLock(UNIX)
    first.acquire(Deadline(0))
    clock.on_sleep = first.release
    second.acquire(Deadline(60))
    assert clock.now < 1001


def test_lock_free_is_had_with_no_time_to_wait() -> None:
    lock = ChannelLock(UNIX)
    lock.acquire(Deadline(0))
    lock.release()
    lock.release()
    lock.acquire(Deadline(0))


def test_lock_is_one_for_all_names_of_a_socket(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    lock = ChannelLock(Address("unix", path=f"{tmp_path}/vm1"))
    lock.acquire(Deadline(0))
    with pytest.raises(ChannelBusyError):
        ChannelLock(Address("unix", path=f"{tmp_path}/link/vm1")).acquire(Deadline(0))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be in another mount namespace")
@pytest.mark.parametrize("is_here", [False, True])
def test_path_in_a_container_is_not_ours(is_here: bool, tmp_path: Path) -> None:
    """There, it is the same path, and C(/proc/PID/root) is a link to C(/)."""
    ours = tmp_path / "run" / "a.qga"
    ours.parent.mkdir()
    if is_here:
        ours.touch()
    script = f"mount -t tmpfs none {ours.parent}; touch {ours}; echo; read x"
    container = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with container:
        assert container.stdout and container.stdout.readline() == b"\n"
        theirs = f"/proc/{container.pid}/root{ours}"
        assert Address("unix", path=theirs).identity == theirs
        assert Address("unix", path=f"/proc/self/root{ours}").identity == str(ours)
        container.communicate(b"\n")


def test_locks_of_different_addresses_do_not_meet() -> None:
    addresses = ["/run/vm1", "/run/vm2", "vsock:1:2", "vsock:1:3", "tcp:a:1", "tcp:b:1", "unix:/run/\udcff"]
    locks = [ChannelLock(parse_address(address)) for address in addresses]
    for lock in locks:
        lock.acquire(Deadline(0))


def test_lock_that_is_forgotten_is_released() -> None:
    ChannelLock(UNIX).acquire(Deadline(0))
    ChannelLock(UNIX).acquire(Deadline(0))


def test_lock_file_is_private_and_no_link(locks: Path) -> None:
    lock = ChannelLock(UNIX)
    lock.acquire(Deadline(0))
    lock.release()
    (path,) = locks.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    path.symlink_to(locks / "elsewhere")
    with pytest.raises(ConnectError, match="lock"):
        lock.acquire(Deadline(0))
    assert not (locks / "elsewhere").exists()


def test_lock_of_a_program_with_an_odd_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/\udcff\udcfe" + "x" * 500])
    ChannelLock(UNIX).acquire(Deadline(0))


# The directory of locks


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for the files of another user than root."""
    path = Path(tempfile.mkdtemp())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def test_directory_of_locks_is_private(runtime: Path) -> None:
    with as_another_user():
        assert private_directory() == str(runtime / "qemu-guest")
        assert private_directory() == str(runtime / "qemu-guest"), "a second time"
    status = (runtime / "qemu-guest").stat()
    assert stat.S_IMODE(status.st_mode) == 0o700


def test_directory_of_locks_without_a_runtime_directory(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(runtime))
    with as_another_user():
        assert private_directory() == f"{runtime}/qemu-guest-{os.geteuid()}"


@pytest.mark.parametrize("trap", ["a file", "a link", "open to others"])
def test_directory_of_locks_that_others_may_have_prepared_is_refused(runtime: Path, trap: str) -> None:
    path = runtime / "qemu-guest"
    with as_another_user():
        if trap == "a file":
            path.write_text("")
        elif trap == "a link":
            path.symlink_to(runtime)
        else:
            path.mkdir()
            path.chmod(0o777)
        with pytest.raises(ConnectError) as caught:
            private_directory()
    assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_directory_of_locks_of_another_user_is_refused(runtime: Path) -> None:
    (runtime / "qemu-guest").mkdir(0o700)
    with as_another_user(), pytest.raises(ConnectError, match="uid 65534"):
        private_directory()


def test_directory_of_locks_that_cannot_be_made(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(runtime))
    runtime.chmod(0o500)
    with as_another_user(), pytest.raises(ConnectError, match="qemu-guest"):
        private_directory()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_directory_of_locks_that_another_user_has_made_first(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in nobody's way who has a home; else the message says what can be done."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    shared = runtime / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    (shared / f"qemu-guest-{NOBODY}").mkdir(0o777)
    with as_another_user():
        with pytest.raises(ConnectError, match=r"it is uid 0's, with mode 0755\. Set XDG_RUNTIME_DIR to"):
            private_directory()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        assert private_directory() == f"{runtime}/qemu-guest", "the advice can be followed"
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir=str(runtime)))
        assert private_directory() == f"{runtime}/.ansible/qemu-guest"
    assert stat.S_IMODE((runtime / ".ansible/qemu-guest").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_runtime_directory_of_another_user_is_not_used(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sudo -E leaves the variable as it was."""
    os.chown(runtime, 0, 0)
    runtime.chmod(0o777)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir="/nonexistent"))
    monkeypatch.setattr(tempfile, "tempdir", str(runtime))
    with as_another_user():
        assert private_directory() == f"{runtime}/qemu-guest-{NOBODY}"


# What is left of addresses that nobody uses


def left(directory: Path, path: str, *, age: float = 2 * _lock._OLD_SECONDS) -> list[Path]:
    """Leave what one has left who used this address and was killed so many seconds ago."""
    files = [Path(private_path(Address("unix", path=path).identity, kind)) for kind in ("lock", "ssh", "relay")]
    for file in files:
        file.write_text("pid 1, python")
        os.utime(file, (time.time() - age,) * 2)
    assert {file.parent for file in files} == {directory}
    return files


def use(path: str, seconds: float = 0) -> ChannelLock:
    lock = ChannelLock(Address("unix", path=path))
    assert lock.acquire(Deadline(seconds)) is None
    return lock


def test_leftovers_of_addresses_that_nobody_uses_are_removed(locks: Path) -> None:
    old, recent, held = left(locks, "/old"), left(locks, "/recent", age=60), left(locks, "/held")
    with open(held[0], "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        use("/recent").release()
        assert all(file.exists() for file in old), "an address that is known already has nothing to be removed for"
        use("/new").release()
        assert not any(file.exists() for file in old)
        assert all(file.exists() for file in (*recent, held[0]))
        assert not any(file.exists() for file in held[1:]), "a forward and a relay are used for a while only"
    use("/another").release()
    assert not any(file.exists() for file in held)


def test_lock_that_is_removed_while_another_waits_for_it(locks: Path) -> None:
    """Who had opened it before finds out, and two never have a lock of one name."""
    [path, *_sockets] = left(locks, "/old")
    with open(path, "r+b") as opened:
        use("/new")
        assert not path.exists()
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first = use("/old")
        assert path.stat().st_ino != os.fstat(opened.fileno()).st_ino
        with pytest.raises(ChannelBusyError):
            use("/old")
        first.release()


def test_lock_that_becomes_another_one_between_opening_and_locking(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    removed: list[Path] = []

    def flock(file: Any, how: int) -> None:
        if not removed:
            removed.extend(locks.iterdir())
            removed[0].unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = use("/a", 10)
    assert removed[0].stat().st_ino == os.fstat(lock.fileno()).st_ino
    with pytest.raises(ChannelBusyError):
        use("/a")


# Connecting


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that is served by nobody, with room for one client in its queue."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "vm1.qga"))
        sock.listen(0)
        yield sock


def trouble(path: Path | str) -> ConnectError:
    """Return the error of connecting to ``path``."""
    address = Address("unix", path=str(path))
    with pytest.raises(ConnectError) as caught:
        open_channel(address, Deadline(1))
    assert caught.value.executed == "no"
    ChannelLock(address).acquire(Deadline(0))  # the seat is free again
    return caught.value


def test_no_such_socket(tmp_path: Path) -> None:
    assert "no such socket" in str(trouble(tmp_path / "vm1.qga"))


def test_socket_that_nobody_serves(tmp_path: Path, listener: socket.socket) -> None:
    listener.close()
    assert "nothing listens on this socket" in str(trouble(tmp_path / "vm1.qga"))


def test_plain_file(tmp_path: Path) -> None:
    (tmp_path / "vm1.qga").write_text("")
    assert "not a socket" in str(trouble(tmp_path / "vm1.qga"))


def test_directory(tmp_path: Path) -> None:
    assert "not a socket" in str(trouble(tmp_path))


def test_path_that_is_too_long(tmp_path: Path) -> None:
    assert "too long" in str(trouble(tmp_path / ("x" * 200)))


def test_socket_of_another_user(tmp_path: Path, listener: socket.socket) -> None:
    (tmp_path / "vm1.qga").chmod(0)
    with as_another_user(), pytest.raises(ConnectError, match=r"permission denied.* become"):
        _channel._connect_unix(Address("unix", path=str(tmp_path / "vm1.qga")), Deadline(1))


def fill(listener: socket.socket, stack: ExitStack) -> None:
    """Let clients queue up until there is no more room."""
    while True:
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.setblocking(False)
        if client.connect_ex(listener.getsockname()):
            return


def test_full_queue_of_clients_is_an_error_at_the_deadline(listener: socket.socket, clock: Clock) -> None:
    with ExitStack() as stack:
        fill(listener, stack)
        started = clock.now
        with pytest.raises(ChannelBusyError, match="too many clients"):
            open_channel(Address("unix", path=listener.getsockname()), Deadline(7))
        assert clock.now - started == pytest.approx(7)


def test_full_queue_of_clients_that_moves_on(listener: socket.socket, clock: Clock) -> None:
    with ExitStack() as stack:
        fill(listener, stack)
        clock.on_sleep = lambda: stack.enter_context(listener.accept()[0])
        open_channel(Address("unix", path=listener.getsockname()), Deadline(7)).close()
        assert clock.now < 1001


def test_seat_is_free_when_connecting_is_interrupted(listener: socket.socket, clock: Clock) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    address = Address("unix", path=listener.getsockname())
    with ExitStack() as stack:
        fill(listener, stack)
        clock.on_sleep = interrupt
        with pytest.raises(KeyboardInterrupt):
            open_channel(address, Deadline(7))
    ChannelLock(address).acquire(Deadline(0))


def test_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = parse_address(f"tcp:127.0.0.1:{server.getsockname()[1]}")
        channel = open_channel(address, Deadline(10))
        peer, _name = server.accept()
        with peer:
            channel.send(b"hello", Deadline(10))
            assert peer.recv(5) == b"hello"
            channel.close()
            assert peer.recv(5) == b""
    with pytest.raises(ConnectError, match="cannot connect"):
        open_channel(address, Deadline(10))


@pytest.mark.parametrize(
    "address",
    [
        Address("tcp", host="x" * 70, port=1),  # more than a label of a host name can have
        Address("tcp", host="a..b", port=1),
        Address("vsock", cid=0xFFFFFFF0, port=1),  # no such guest; on many machines, no vsock at all
    ],
    ids=str,
)
def test_address_that_leads_nowhere(address: Address) -> None:
    with pytest.raises(ConnectError, match="cannot connect"):
        open_channel(address, Deadline(0.1))


def test_machine_without_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "AF_VSOCK", 12345, raising=False)
    with pytest.raises(ConnectError, match="cannot connect"):
        open_channel(Address("vsock", cid=3, port=1), Deadline(1))


# Bytes


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        yield here, there


def test_bytes_both_ways(ends: tuple[socket.socket, socket.socket]) -> None:
    channel, peer = Channel(ends[0]), ends[1]
    data = os.urandom(3_000_000)
    received = bytearray()

    def echo() -> None:
        while len(received) < len(data):
            received.extend(peer.recv(100_000))
        peer.sendall(received)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    channel.send(data, Deadline(30))
    back = b""
    while len(back) < len(data):
        back += channel.recv(Deadline(30))
    thread.join()
    assert bytes(received) == data == back


class Leaky(socket.socket):
    """A socket that takes all but the last ``keeps`` bytes of a request, and then breaks."""

    keeps = 1

    def send(self, data: memoryview, flags: int = 0) -> int:  # type: ignore[override]
        if len(data) <= self.keeps:
            raise BrokenPipeError(32, "Broken pipe")
        return super().send(data[: -self.keeps], flags)


@pytest.mark.parametrize(
    ("keeps", "error"),
    [pytest.param(1, OutcomeUnknownError, id="the newline"), pytest.param(2, ConnectError, id="the brace")],
)
def test_request_that_left_but_for(
    keeps: int, error: type[QgaError], ends: tuple[socket.socket, socket.socket]
) -> None:
    sock = Leaky(fileno=ends[0].detach())
    sock.keeps = keeps
    with sock, pytest.raises(QgaError) as caught:
        Channel(sock).send(b'{"execute":"guest-shutdown"}\n', Deadline(10))
    assert caught.value.__class__ is error
    assert "Broken pipe" in str(caught.value)


def test_guest_that_takes_no_data(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ConnectError, match=r"took no data for 0.2 s"):
        Channel(ends[0]).send(b"x" * 10_000_000, Deadline(0.2))


def test_guest_that_takes_data_too_slowly(ends: tuple[socket.socket, socket.socket], clock: Clock) -> None:
    """The limit is of the whole, not of each piece."""
    deadline = Deadline(10)
    clock.advance(11)
    with pytest.raises(ConnectError, match="took no data"):
        Channel(ends[0]).send(b"there would be room", deadline)


def test_nothing_arrives_in_time(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(OutcomeUnknownError, match=r"no reply within 0.1 s"):
        Channel(ends[0]).recv(Deadline(0.1))


def test_guest_that_never_stops_talking(ends: tuple[socket.socket, socket.socket], clock: Clock) -> None:
    """Data that are there already do not prolong a deadline."""
    channel, deadline = Channel(ends[0]), Deadline(10)
    ends[1].sendall(b"\n")
    assert channel.recv(deadline) == b"\n"
    ends[1].sendall(b"\n")
    clock.advance(11)
    with pytest.raises(OutcomeUnknownError, match="no reply within 10 s"):
        channel.recv(deadline)


def test_other_side_closes(ends: tuple[socket.socket, socket.socket]) -> None:
    channel = Channel(ends[0])
    ends[1].close()
    with pytest.raises(OutcomeUnknownError, match="closed the channel"):
        channel.recv(Deadline(10))
    with pytest.raises(ConnectError, match="broke while sending"):
        channel.send(b"request\n", Deadline(10))


def test_close_gives_the_seat_up(tmp_path: Path, listener: socket.socket, clock: Clock) -> None:
    address = Address("unix", path=listener.getsockname())
    channel = open_channel(address, Deadline(1))
    with pytest.raises(ChannelBusyError):
        ChannelLock(address).acquire(Deadline(0))
    channel.close()
    ChannelLock(address).acquire(Deadline(0))


# Who sits on the socket


@pytest.mark.parametrize("name", ["vm1.qga", "a name with spaces", "an * 1 * 2 odd name", "ünïcode"])
def test_holder_of_the_seat(name: str) -> None:
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _client in range(3)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ExitStack() as stack:
        # A socket's path has 107 bytes at most, and pytest's own directories take most of them.
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="some directory "))
        path = f"{directory}/{name}"
        listener.bind(path)
        listener.listen(8)
        first, second, third = (stack.enter_context(client) for client in clients)
        inode = {client: os.fstat(client.fileno()).st_ino for client in clients}
        first.connect(path)
        second.connect(path)
        assert other_client(path, inode[second]) == (False, ""), "nobody is served yet"
        served = listener.accept()[0]
        third.connect(path)
        taken, who = other_client(path, inode[second])
        assert taken
        assert who.endswith(f", pid {os.getpid()}")
        assert other_client(path, inode[first]) == (False, ""), "it is itself served"
        assert other_client(f"{directory}/other", inode[second]) == (False, "")
        served.close()
        first.close()
        stack.enter_context(listener.accept()[0])
        assert other_client(path, inode[second]) == (False, ""), "its turn has come"
        assert other_client(path, inode[third])[0]


@pytest.mark.parametrize("bound", [0, 1])
def test_holder_of_the_seat_by_another_name_of_the_socket(tmp_path: Path, bound: int) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    names = [str(tmp_path / "vm1.qga"), str(tmp_path / "link" / "vm1.qga")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(names[bound])
        listener.listen(8)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(listener.getsockname())
            with listener.accept()[0]:
                assert other_client(names[0], 0)[0]
                assert other_client(names[1], 0)[0]


def test_other_sockets_of_the_machine_are_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        for name in ("\0qemu-guest-test", "relative.sock"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(name)
            listener.listen(1)
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(name)
            stack.enter_context(listener.accept()[0])
        assert other_client("/run/vm1.qga", 1) == (False, "")


def test_holder_of_the_seat_is_unknown_where_the_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vm1.qga"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
            with listener.accept()[0]:
                assert other_client(str(path), 0)[0]
                monkeypatch.delattr(socket, "AF_NETLINK")
                assert other_client(str(path), 0) == (False, "")


def test_silence_is_an_error_of_connecting() -> None:
    assert issubclass(AgentSilentError, ConnectError) and issubclass(ChannelBusyError, ConnectError)
