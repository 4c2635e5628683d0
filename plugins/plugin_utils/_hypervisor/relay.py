# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay: lets one login of a hypervisor use UNIX sockets that only this program's user can.

It runs on the hypervisor, with Python 3.6 and the standard library; client.py sends it there, and starts it. It listens
on a socket of its own, which ssh forwards. A client begins with a line that has a secret, ASK. The reply has another
secret, ANSWER, which proves who replies; or it is ``error CODE TEXT``:

- ``ASK connect PATH``, ``ok ANSWER``: bytes are passed on in both directions, between the client and PATH.
- ``ASK listen PATH``, ``ok ANSWER NAME``: while the client stays connected, those who connect to the socket NAME are
  connected to PATH, for programs that cannot say a first line.

It ends when it has had no connection for a while.
"""

import contextlib
import errno
import hmac
import itertools
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from typing import Dict, Iterable, List, Optional, Tuple

NAME = "qga-relay"
_DIRECTORIES = ("/run", "/tmp")
_BACKLOG = 1024
_LONGEST_LINE = 1024
_CHUNK = 65536
_CHUNKS_AT_ONCE = 4  # then it is another connection's turn
_LINE_SECONDS = 10.0
# Seconds for which what a client sent before it left is offered to an agent that reads nothing.
_LINGER_SECONDS = 10.0
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class End:
    """One side of a connection, and what was read from it that the other side has not taken yet."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.pending = b""
        self.ended = False  # nothing more is read
        self.passed = False  # and the other side has been told
        self.gone = False  # nothing can be written to it

    def drop(self) -> None:
        """Read no more: the other side takes nothing."""
        self.pending, self.ended, self.passed = b"", True, True

    def pass_on(self, other: "End") -> None:
        """Move bytes to the ``other`` side until one of them has to be waited for."""
        turns: Iterable[object] = itertools.repeat(None) if self.gone else range(_CHUNKS_AT_ONCE)
        for _turn in turns:
            if not self.pending and not self.ended and not self._read():
                return
            if self.pending:
                if not self._write(other):
                    return
            elif self.ended:
                if not self.passed:
                    self.passed = True
                    with contextlib.suppress(OSError):
                        other.sock.shutdown(socket.SHUT_WR)
                return

    def _read(self) -> bool:
        try:
            self.pending = self.sock.recv(_CHUNK)
        except BlockingIOError:
            self.ended = self.gone
            return self.gone
        except OSError:
            pass
        self.ended = not self.pending
        return True

    def _write(self, other: "End") -> bool:
        try:
            sent = other.sock.send(self.pending)
        except BlockingIOError:
            return False
        except OSError:
            self.drop()
            return False
        self.pending = self.pending[sent:]
        return True


class Connection:
    """A client, and the socket that it is connected to, once its first line has come."""

    def __init__(self, client: socket.socket) -> None:
        self.client = End(client)
        self.target: Optional[End] = None
        self.listener: Optional[socket.socket] = None
        self.closed = False

    @property
    def ends(self) -> List[End]:
        return [self.client, self.target] if self.target else [self.client]

    @property
    def over(self) -> bool:
        return not self.closed and all(end.passed for end in self.ends)

    def events(self, end: End) -> int:
        """Return what is to be waited for at this ``end``."""
        if self.target is None:
            return select.EPOLLIN
        other = self.target if end is self.client else self.client
        reads = 0 if end.pending or end.ended else select.EPOLLIN
        return reads | (select.EPOLLOUT if other.pending else 0)


class Relay:
    """Serves the user ``uid`` at ``listener``, and its own user, until there has been no connection for ``seconds``."""

    def __init__(self, listener: socket.socket, ask: bytes, answer: bytes, uid: int, seconds: float) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._ask = ask
        self._answer = answer
        self._uid = uid
        self._uids = (uid, os.geteuid())
        self._seconds = seconds
        self._epoll = select.epoll()
        self._connections: Dict[int, Tuple[Connection, End]] = {}
        self._waited_for: Dict[int, int] = {}
        self._due: Dict[Connection, float] = {}
        # Descriptors are closed after a round, or events of that round could be taken for those of a new connection.
        self._closing: List[socket.socket] = []
        self._accepts = False
        # By descriptor: the connection that asked for this listener, and where its clients are led.
        self._listeners: Dict[int, Tuple[Connection, socket.socket, bytes]] = {}

    def serve(self) -> None:
        """Serve clients; return when the relay is no longer used."""
        self._accept_from(True)
        end = time.monotonic() + self._seconds
        while self._connections or time.monotonic() < end:
            used = bool(self._connections)
            self._round(end)
            if used or self._connections:
                end = time.monotonic() + self._seconds

    def _round(self, until: float) -> None:
        times = [*self._due.values()] if self._connections else [until]
        timeout = max(min(times) - time.monotonic(), 0) if times else None
        for descriptor, events in self._epoll.poll(timeout):
            if descriptor in self._connections:
                connection, end = self._connections[descriptor]
                self._handle(connection, end, events)
            elif descriptor in self._listeners:
                self._accept_led(*self._listeners[descriptor])
        now = time.monotonic()
        for connection in [late for late, due in self._due.items() if due <= now]:
            self._close(connection)
        if self._closing:
            self._accept_from(True)
        while self._closing:
            self._closing.pop().close()
        self._accept()

    def _accept_from(self, accepts: bool) -> None:
        if accepts and not self._accepts:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        elif self._accepts and not accepts:
            self._epoll.unregister(self._listener.fileno())
        self._accepts = accepts

    def _accept(self) -> None:
        while self._accepts:
            try:
                client = self._listener.accept()[0]
            except OSError as exc:
                if exc.errno in _NO_DESCRIPTORS:
                    self._accept_from(False)  # until a connection ends
                return
            connection = self._admitted(client)
            if connection:
                self._due[connection] = time.monotonic() + _LINE_SECONDS
                self._wait(connection)

    def _admitted(self, client: socket.socket) -> Optional[Connection]:
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] not in self._uids:
            client.close()
            return None
        connection = Connection(client)
        self._connections[client.fileno()] = connection, connection.client
        return connection

    def _accept_led(self, owner: Connection, listener: socket.socket, path: bytes) -> None:
        try:
            client = listener.accept()[0]
        except OSError:
            self._close(owner)
            return
        connection = self._admitted(client)
        if connection and self._connect(connection, path):
            self._wait(connection)

    def _handle(self, connection: Connection, end: End, events: int) -> None:
        if connection.listener:
            self._close(connection)  # it has left, or says what it should not
        elif connection.target is None:
            self._greet(connection)
        else:
            other = connection.target if end is connection.client else connection.client
            if events & (select.EPOLLHUP | select.EPOLLERR):
                # It has closed. What it sent is still passed on; what the other one sends goes nowhere.
                end.gone = True
                other.drop()
                if end is connection.client:
                    self._due.setdefault(connection, time.monotonic() + _LINGER_SECONDS)
            end.pass_on(other)
            other.pass_on(end)
        if connection.over:
            self._close(connection)
        elif not connection.closed:
            self._wait(connection)

    def _greet(self, connection: Connection) -> None:
        """Read from a client whose first line is not complete yet, and connect it when it is."""
        client = connection.client
        try:
            more = client.sock.recv(_LONGEST_LINE)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        line, newline, rest = (client.pending + more).partition(b"\n")
        client.pending = line + newline + rest
        if newline and len(line) <= _LONGEST_LINE:
            ask, verb, path = [*line.split(b" ", 2), b"", b""][:3]
            if hmac.compare_digest(ask, self._ask) and verb in (b"connect", b"listen"):
                client.pending = rest
                if self._connect(connection, path, True) if verb == b"connect" else self._listen(connection, path):
                    del self._due[connection]
                return
        if newline or not more or len(line) > _LONGEST_LINE:
            self._close(connection)

    def _connect(self, connection: Connection, path: bytes, tells: bool = False) -> bool:
        """Connect a client to ``path``, and tell it so, or why not; return whether it is connected."""
        try:
            target = _connected(path)
        except (OSError, ValueError) as exc:  # ValueError: not the name of a socket
            if tells:
                self._tell(connection, _error(exc))
            self._close(connection)
            return False
        connection.target = End(target)
        self._connections[target.fileno()] = connection, connection.target
        if tells and not self._tell(connection, b"ok %s\n" % self._answer):
            self._close(connection)
            return False
        return True

    def _listen(self, connection: Connection, path: bytes) -> bool:
        """Listen for others that are to be connected to ``path``, until this client leaves."""
        name = os.path.join(os.path.dirname(self._listener.getsockname()), os.urandom(16).hex())
        try:
            connection.listener = bound(name, self._uid)
        except OSError as exc:
            self._tell(connection, _error(exc))
            self._close(connection)
            return False
        connection.listener.setblocking(False)
        self._listeners[connection.listener.fileno()] = connection, connection.listener, path
        self._epoll.register(connection.listener.fileno(), select.EPOLLIN)
        return self._tell(connection, b"ok %s %s\n" % (self._answer, name.encode("ascii")))

    @staticmethod
    def _tell(connection: Connection, reply: bytes) -> bool:
        with contextlib.suppress(OSError):
            return connection.client.sock.send(reply) == len(reply)
        return False

    def _wait(self, connection: Connection) -> None:
        for end in connection.ends:
            descriptor = end.sock.fileno()
            # A side that has closed would be reported again and again: it is read when the other one can take more.
            events = None if end.gone else connection.events(end)
            before = self._waited_for.get(descriptor)
            if events == before:
                continue
            if events is None:
                self._forget(descriptor)
            elif before is None:
                self._epoll.register(descriptor, events)
                self._waited_for[descriptor] = events
            else:
                self._epoll.modify(descriptor, events)
                self._waited_for[descriptor] = events

    def _forget(self, descriptor: int) -> None:
        if self._waited_for.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def _close(self, connection: Connection) -> None:
        connection.closed = True
        self._due.pop(connection, None)
        if connection.listener:
            self._listeners.pop(connection.listener.fileno())
            self._epoll.unregister(connection.listener.fileno())
            self._closing.append(connection.listener)
            with contextlib.suppress(OSError):
                os.unlink(connection.listener.getsockname())
        for end in connection.ends:
            self._forget(end.sock.fileno())
            if self._connections.pop(end.sock.fileno(), None):
                self._closing.append(end.sock)


def _connected(path: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def listen(uid: int) -> Tuple[socket.socket, str]:
    """Return a listening socket for ``uid`` in a directory of its own, and its path."""
    for number, parent in enumerate(_DIRECTORIES, 1):
        try:
            directory = tempfile.mkdtemp(prefix=NAME + ".", dir=parent)
            break
        except OSError:
            if number == len(_DIRECTORIES):
                raise
    os.chmod(directory, 0o711)
    path = os.path.join(directory, "socket")
    return bound(path, uid), path


def bound(path: str, uid: int) -> socket.socket:
    """Return a socket that listens at ``path`` for ``uid``."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    try:
        os.chown(path, uid, -1)
        os.chmod(path, 0o600)
    except OSError:  # only root can give it away
        os.chmod(path, 0o666)
    listener.listen(_BACKLOG)
    return listener


def _error(exc: Exception) -> bytes:
    number = getattr(exc, "errno", None)
    code = errno.errorcode.get(number or 0, "-")
    return f"error {code} {os.strerror(number) if number else exc}\n".encode("utf-8", "replace")


def _remove(path: str) -> None:
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def _detach() -> None:
    """Leave the session and the streams of the process that started this; have as many descriptors as are allowed."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.close(null)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit(0))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(NAME)


def main(given: bytes) -> None:
    """Start a relay as ``given`` says, a JSON object, print its path and its process number, and return."""
    start = json.loads(given.decode("ascii"))
    os.closerange(3, 1024)  # su passes on what its caller has open
    os.umask(0o077)
    listener, path = listen(start["uid"])
    try:
        pid = os.fork()
    except OSError:
        _remove(path)
        raise
    if pid:
        print(f"{NAME} {path} {pid}")
        return
    try:
        _detach()
        secrets = (start["ask"].encode("ascii"), start["answer"].encode("ascii"))
        Relay(listener, *secrets, uid=start["uid"], seconds=start["seconds"]).serve()
    finally:
        _remove(path)
        os._exit(0)
