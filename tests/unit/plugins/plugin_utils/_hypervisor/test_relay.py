# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real relay, between real sockets. tests/integration/agents/test_hypervisor_become.py reaches one through ssh."""

from __future__ import annotations

import ast
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor import relay, relay_client
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.relay_client import RelayGone, RelayNote

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

MANY = 300
NOBODY = 65534
SECONDS = 20.0


class Started:
    """A relay that runs."""

    def __init__(self, login: RelayNote, pid: int) -> None:
        self.login = login
        self.pid = pid
        self.path = Path(login.path)

    def dial(self) -> socket.socket:
        """Return a socket that the relay waits for a first line from."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(SECONDS)
        sock.connect(self.login.path)
        return sock

    def connect(self, path: Path | str) -> socket.socket:
        """Return a socket that the relay has connected to `path`."""
        sock = self.dial()
        try:
            self.login.lead(sock, str(path), Deadline(SECONDS))
        except BaseException:
            sock.close()
            raise
        sock.settimeout(SECONDS)
        return sock

    @property
    def runs(self) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
        return False

    def wait(self) -> None:
        end = time.monotonic() + SECONDS
        while self.runs:
            assert time.monotonic() < end, "it runs on"
            time.sleep(0.01)

    def stop(self) -> None:
        if self.runs:
            os.kill(self.pid, signal.SIGTERM)

    def sleeps(self) -> bool:
        """Return whether it takes no processor time, for a second; it would get little where much else runs."""
        before = self._ticks()
        time.sleep(1)
        return self._ticks() - before <= 2

    def _ticks(self) -> int:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def kilobytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    def sockets(self) -> int:
        """Return how many sockets it has open, but for the one that it listens at."""
        links = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                links.append(os.readlink(descriptor))
        return sum(link.startswith("socket:") for link in links) - 1

    def wait_for_sockets(self, count: int = 0, seconds: float = relay._LINGER_SECONDS / 2) -> None:
        end = time.monotonic() + seconds
        while self.sockets() != count:
            assert time.monotonic() < end, f"{self.sockets()} sockets, not {count}, are open"
            time.sleep(0.01)


Start = Callable[..., Started]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a relay for the user `uid`: as `user`, with other `constants` and `limits`."""
    with ExitStack() as stack:

        def started(seconds: float = 60, uid: int = 0, user: int = 0, files: int = 0, **constants: float) -> Started:
            login = RelayNote(uid, "it").with_secrets()
            program = login.program(seconds).decode("utf-8")
            for name, value in constants.items():
                before, line, after = program.partition(f"\n_{name} = ")
                assert line, name
                program = f"{before}{line}{value}\n{after.partition(chr(10))[2]}"
            prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
            done = subprocess.run(
                [*prefix, "sh", "-c", relay_client.python_command(sys.executable if not user else "/usr/bin/python3")],
                input=program.encode("utf-8"),
                stdout=subprocess.PIPE,
                preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None,
                check=True,
            )
            path = relay_client.started_path(done.stdout)
            assert path, done.stdout
            running = Started(login._replace(path=path), int(done.stdout.split()[-1]))
            stack.callback(running.stop)
            return running

        yield started


@pytest.fixture
def directory() -> Iterator[Path]:
    """The names of sockets must be short."""
    with TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def listener(directory: Path) -> Iterator[socket.socket]:
    """What an agent's socket is at hand for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(directory / "agent.sock"))
        sock.listen(MANY)
        sock.settimeout(SECONDS)
        yield sock


@pytest.fixture
def pair(start: Start, listener: socket.socket) -> Iterator[tuple[Started, socket.socket, socket.socket]]:
    """A relay, a client, and the agent that it is connected to."""
    running = start()
    with running.connect(listener.getsockname()) as sock, listener.accept()[0] as agent:
        agent.settimeout(SECONDS)
        yield running, sock, agent


Pair = tuple[Started, socket.socket, socket.socket]


def received(sock: socket.socket, size: int = -1) -> bytes:
    """Return what comes: `size` bytes, or all until the end."""
    data = bytearray()
    while size < 0 or len(data) < size:
        more = sock.recv(65536 if size < 0 else size - len(data))
        if not more:
            break
        data += more
    return bytes(data)


def send_later(sock: socket.socket, data: bytes, end: Callable[[], Any]) -> threading.Thread:
    def send() -> None:
        sock.sendall(data)
        end()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def filled(sock: socket.socket) -> int:
    """Send as much as is taken; return how much that was."""
    sock.settimeout(0.5)
    sent = 0
    with suppress(TimeoutError):
        while sent < 64 << 20:
            sent += sock.send(bytes(65536))
    return sent


def test_syntax_is_that_of_python_3_6() -> None:
    source = Path(relay.__file__).read_text(encoding="ascii")
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__ import annotations" not in source


def test_many_connections_at_once(start: Start, listener: socket.socket) -> None:
    running = start()
    with ExitStack() as stack:
        socks = [stack.enter_context(running.connect(listener.getsockname())) for _n in range(MANY)]
        agents = [stack.enter_context(listener.accept()[0]) for _n in range(MANY)]
        for number, sock in enumerate(socks):
            sock.sendall(b"request %4d" % number)
        for number, agent in enumerate(agents):
            agent.settimeout(SECONDS)
            assert received(agent, 12) == b"request %4d" % number
            agent.sendall(b"reply %4d" % number)
        for number, sock in enumerate(socks):
            assert received(sock, 10) == b"reply %4d" % number
    running.wait_for_sockets()


def test_first_line_in_pieces_and_what_follows_it(start: Start, listener: socket.socket) -> None:
    running = start()
    with running.dial() as sock:
        line = f"{running.login.ask} connect {listener.getsockname()}\nearly".encode("ascii")
        for piece in (line[:10], line[10:40], line[40:]):
            sock.sendall(piece)
            time.sleep(0.05)
        assert received(sock, 36) == f"ok {running.login.answer}\n".encode("ascii")
        with listener.accept()[0] as agent:
            assert received(agent, 5) == b"early"


@pytest.mark.parametrize("first", ["client", "agent"])
def test_half_that_is_closed(first: str, pair: Pair) -> None:
    _running, sock, agent = pair
    one, other = (sock, agent) if first == "client" else (agent, sock)
    data = os.urandom(3 << 20)
    send_later(one, data, lambda: one.shutdown(socket.SHUT_WR))
    assert received(other) == data
    send_later(other, data[::-1], other.close)
    assert received(one) == data[::-1]


@pytest.mark.parametrize("first", ["client", "agent"])
def test_last_words_arrive(first: str, pair: Pair) -> None:
    """The other side reads late."""
    running, sock, agent = pair
    one, other = (sock, agent) if first == "client" else (agent, sock)
    other.sendall(b"which nobody reads")
    data = os.urandom(1 << 20)
    thread = send_later(one, data, one.close)
    time.sleep(0.3)
    assert received(other) == data
    thread.join(SECONDS)
    with pytest.raises(OSError):
        for _attempt in range(100):
            other.send(b"nobody is there")
            time.sleep(0.01)
    running.wait_for_sockets()


def test_agent_that_does_nothing_is_left_with_its_client(pair: Pair) -> None:
    """Or the next client could not be served."""
    running, sock, agent = pair
    sock.sendall(b"request")
    sock.close()
    assert received(agent) == b"request", "its end is told"
    running.wait_for_sockets()


def test_agent_that_reads_nothing_is_left_after_a_time(start: Start, listener: socket.socket) -> None:
    running = start(LINGER_SECONDS=3)
    sock = running.connect(listener.getsockname())
    with sock, listener.accept()[0]:
        filled(sock)
        sock.close()
        assert running.sleeps() and running.sockets() == 2
        time.sleep(3)
        running.wait_for_sockets()


@pytest.mark.parametrize("reader", ["client", "agent"])
def test_side_that_reads_nothing_costs_no_memory(reader: str, pair: Pair) -> None:
    running, sock, agent = pair
    before = running.kilobytes()
    sent = filled(agent if reader == "client" else sock)
    assert 0 < sent < 4 << 20 and running.kilobytes() - before < 2048
    one, other = (sock, agent) if reader == "client" else (agent, sock)
    one.sendall(b"the other way")
    assert received(other, 13) == b"the other way"
    assert running.sleeps()


@pytest.mark.parametrize(
    "line", [b"\n", b"junk\n", b"0" * 32 + b" connect /agent.sock\n", b"\0\xff" * 5000, b"GET / HTTP/1.0\r\n\r\n"]
)
def test_client_without_the_secret(line: bytes, pair: Pair) -> None:
    running, other, agent = pair
    with running.dial() as sock:
        sock.settimeout(relay._LINE_SECONDS / 2)  # it is not waited for
        with suppress(OSError):
            sock.sendall(line)
        with suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    other.sendall(b"still served")
    assert received(agent, 12) == b"still served"


def test_client_that_says_nothing(start: Start, listener: socket.socket) -> None:
    running = start(LINE_SECONDS=0.5)
    with running.dial() as silent, running.dial() as slow, running.connect(listener.getsockname()) as sock:
        for byte in running.login.ask.encode("ascii"):
            with suppress(OSError):
                slow.send(bytes([byte]))
            time.sleep(0.05)
        assert received(silent) == b""
        running.wait_for_sockets(2)
        with listener.accept()[0] as agent:
            sock.sendall(b"request")
            assert received(agent, 7) == b"request"


def as_user(uid: int, call: Callable[[], bytes]) -> bytes:
    """Return what `call` does in a process of that user."""
    mine, theirs = socket.socketpair()

    def run() -> None:
        os.setgroups([])
        os.setuid(uid)
        try:
            theirs.sendall(call())
        except OSError as exc:
            theirs.sendall(repr(exc).encode("ascii"))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    theirs.close()
    process.join(SECONDS)
    with closing(mine):
        return received(mine)


def test_other_users(start: Start, listener: socket.socket) -> None:
    running = start(uid=1000)

    def call() -> bytes:
        return tried(running, listener.getsockname())

    assert running.path.stat().st_mode & 0o777 == 0o600 and running.path.stat().st_uid == 1000
    assert running.path.parent.stat().st_mode & 0o777 == 0o711
    assert as_user(1000, call) == b"was let in"
    assert as_user(0, call) == b"was let in"
    assert b"PermissionError" in as_user(NOBODY, call)
    running.path.chmod(0o666)
    assert as_user(NOBODY, lambda: tried(running, listener.getsockname())) == b"was refused"


def tried(running: Started, path: str) -> bytes:
    try:
        with running.connect(path):
            return b"was let in"
    except RelayGone:
        return b"was refused"


def test_user_who_is_not_root(start: Start, listener: socket.socket, directory: Path) -> None:
    running = start(uid=1000, user=NOBODY)
    assert running.path.stat().st_mode & 0o777 == 0o666 and running.path.stat().st_uid == NOBODY
    (directory / "agent.sock").chmod(0o666)

    def call() -> bytes:
        return tried(running, listener.getsockname())

    assert as_user(1000, call) == b"was let in"
    assert as_user(NOBODY, call) == b"was let in"
    assert as_user(1001, call) == b"was refused"
    (directory / "agent.sock").chmod(0o600)
    assert as_user(1000, lambda: told(running, listener.getsockname())).startswith(b"permission denied.")


def told(running: Started, path: str) -> bytes:
    with pytest.raises(ConnectError) as caught:
        running.connect(path)
    return caught.value.message.encode("utf-8")


def test_what_is_no_socket_of_an_agent(start: Start, listener: socket.socket, directory: Path) -> None:
    running = start()
    (directory / "file").touch()
    assert told(running, f"{directory}/nope").startswith(b"there is no such socket.")
    assert told(running, f"{directory}/file").startswith((b"nothing listens", b"this is not a socket"))
    assert b"too long" in told(running, "/" + "x" * 200)
    assert told(running, f"{directory}/a b ").startswith(b"there is no such socket.")
    with pytest.raises(RelayGone):
        running.connect("/" + "x" * 2000)
    listener.close()
    assert told(running, f"{directory}/agent.sock").startswith(b"nothing listens on this socket")
    running.wait_for_sockets()


def test_socket_for_those_who_cannot_say_a_first_line(start: Start, listener: socket.socket) -> None:
    running = start(uid=1000)
    with running.dial() as owner:
        name = Path(running.login.listen(owner, listener.getsockname(), Deadline(SECONDS)))
        assert name.parent == running.path.parent and name.stat().st_mode & 0o777 == 0o600
        with ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _n in range(3)]
            for sock in socks:
                sock.connect(str(name))
                agent = stack.enter_context(listener.accept()[0])
                sock.sendall(b"request")
                assert received(agent, 7) == b"request"
                agent.sendall(b"reply")
                assert received(sock, 5) == b"reply"
            name.chmod(0o666)
            assert as_user(NOBODY, lambda: said(name)) == b""
            owner.close()
            end = time.monotonic() + SECONDS
            while name.exists():
                assert time.monotonic() < end, "it stays"
                time.sleep(0.01)
            sock.sendall(b"more")
            assert received(agent, 4) == b"more", "what was connected stays"
    with running.dial() as owner, socket.socket(socket.AF_UNIX) as sock:
        other = running.login.listen(owner, "/nope", Deadline(SECONDS))
        sock.connect(other)
        assert received(sock) == b"", "whoever connects is let go"
    with running.dial() as owner:
        running.login.listen(owner, "/nope", Deadline(SECONDS))
        running.stop()
        running.wait()
    assert not running.path.parent.exists()


def said(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        return sock.recv(1)


def test_agent_whose_queue_is_full(start: Start, directory: Path) -> None:
    running = start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, ExitStack() as stack:
        sock.bind(str(directory / "busy.sock"))
        sock.listen(0)
        stack.enter_context(running.connect(sock.getsockname()))
        assert told(running, sock.getsockname()) == b"several clients wait for this agent already."


def test_end(start: Start, listener: socket.socket) -> None:
    running = start(seconds=1)
    with running.connect(listener.getsockname()):
        time.sleep(2)
        assert running.runs
    time.sleep(0.5)
    assert running.runs, "its time begins with the end of the last connection"
    running.wait()
    assert not running.path.parent.exists()


def test_signals(pair: Pair) -> None:
    running, sock, agent = pair
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        os.kill(running.pid, number)
    sock.sendall(b"request")
    assert received(agent, 7) == b"request"
    os.kill(running.pid, signal.SIGTERM)
    running.wait()
    assert not running.path.parent.exists()


def test_what_it_takes_from_the_one_who_started_it(start: Start) -> None:
    running = start()
    assert os.getsid(running.pid) == running.pid
    assert os.readlink(f"/proc/{running.pid}/cwd") == "/"
    streams = [os.readlink(f"/proc/{running.pid}/fd/{number}") for number in range(3)]
    assert streams == ["/dev/null"] * 3
    assert Path(f"/proc/{running.pid}/comm").read_text(encoding="ascii") == "qga-relay\n"
    told_all = b"".join(Path(f"/proc/{running.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    assert running.login.ask.encode("ascii") not in told_all


def test_more_clients_than_descriptors(start: Start, listener: socket.socket) -> None:
    running = start(files=16)
    with ExitStack() as stack:
        first = [stack.enter_context(running.dial()) for _n in range(30)]
        time.sleep(0.2)
        assert running.sleeps()
        for sock in first:
            sock.close()
        stack.enter_context(running.connect(listener.getsockname()))


def test_latency(pair: Pair) -> None:
    """It adds little to a request: 0.05 ms, measured."""
    _running, sock, agent = pair
    times = []
    for _n in range(200):
        started = time.perf_counter()
        sock.sendall(b"x")
        assert received(agent, 1)
        agent.sendall(b"y")
        assert received(sock, 1)
        times.append(time.perf_counter() - started)
    assert sorted(times)[100] < 0.01
