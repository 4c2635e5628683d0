# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Channels: byte streams to a guest agent, and how one is connected.

Only a sync is sent before the agent has answered (socket_agent.py): lock.py describes what happens to a second client.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import time
from typing import Any, Callable, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    ChannelBusyError,
    ConnectError,
    OutcomeUnknownError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import ChannelLock

__all__ = (
    "Channel",
    "Connect",
    "SyncState",
    "open_channel",
)

_RECV_SIZE = 1024 * 1024
_RETRY_SECONDS = 0.05


class SyncState(NamedTuple):
    """Whether client and agent are in sync: no request or reply is left in the channel.

    ``since``: the time (monotonic) of the last expected reply; 0: out of sync. ``takes_id`` and ``echoes_id`` say how
    the agent handles ids.
    """

    since: float = 0.0
    takes_id: bool = True
    echoes_id: bool = False


class Channel:
    """A connected, non-blocking byte stream and the lock that belongs to it."""

    shared = False
    """Whether other clients may use the channel between ``release`` and ``acquire``."""

    def __init__(self, sock: socket.socket, lock: ChannelLock | None = None) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._lock = lock
        self._state = SyncState()

    @property
    def descriptors(self) -> tuple[int, int]:
        """The stream's descriptor, and that of the lock (-1 if there is none)."""
        return self._sock.fileno(), self._lock.fileno() if self._lock else -1

    def acquire(self, deadline: Deadline) -> SyncState:
        """Acquire the channel, until ``release``, and return its sync state; it is out of sync until then.

        :raise ChannelBusyError: if other clients hold it until the deadline.
        :raise ConnectError: if the channel no longer exists.
        """
        state, self._state = self._state, SyncState(takes_id=self._state.takes_id)
        return state

    def release(self, state: SyncState) -> None:
        """Release the channel and store its sync state."""
        self._state = state

    @property
    def inode(self) -> int:
        """The socket's inode number, its name in the system's tables."""
        return os.fstat(self._sock.fileno()).st_ino

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of ``data``.

        :raise ConnectError: if a part did not leave: an incomplete JSON object is never run.
        :raise OutcomeUnknownError: if all but the final newline left.
        """
        view = memoryview(data)
        while view:
            # A request ends in a newline that the agent does not wait for.
            kind = ConnectError if len(view) > 1 else OutcomeUnknownError
            if not self._poll(select.POLLOUT, deadline):
                raise kind(f"the guest took no data for {deadline.seconds:g} s")
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                raise kind(f"the channel broke while sending: {exc.strerror or exc}") from exc

    def is_silent(self, deadline: Deadline) -> bool:
        """Return whether nothing arrives until the deadline; the end of the stream counts as an arrival."""
        return not self._poll(select.POLLIN, deadline)

    def recv(self, deadline: Deadline) -> bytes:
        """Return what has arrived, at least one byte.

        :raise OutcomeUnknownError: at the deadline, or if the other side closed the channel.
        """
        while True:
            if not self._poll(select.POLLIN, deadline):
                raise OutcomeUnknownError(f"no reply within {deadline.seconds:g} s")
            try:
                data = self._sock.recv(_RECV_SIZE)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise OutcomeUnknownError(f"the channel broke: {exc.strerror or exc}") from exc
            if not data:
                raise OutcomeUnknownError(
                    "the other side closed the channel (QEMU ended, or the agent stopped listening)"
                )
            return data

    def close(self) -> None:
        """Close the socket, then release the lock."""
        self._sock.close()
        if self._lock:
            self._lock.release()

    def _poll(self, event: int, deadline: Deadline) -> bool:
        poller = select.poll()
        poller.register(self._sock, event)
        # Checked first, so that a guest that sends without end cannot prolong the deadline.
        return not deadline.expired and bool(poller.poll(deadline.left() * 1000))


Connect = Callable[[Address, Deadline], socket.socket]
"""Returns a socket connected to an address, or raises ConnectError."""


def open_channel(
    address: Address,
    deadline: Deadline,
    join: Callable[[], Channel | None] = lambda: None,
    connect: Connect | None = None,
) -> Channel:
    """Return a Channel to ``address`` with its lock held; or the channel that ``join`` returns while the lock is taken.

    ``connect`` replaces the usual connector for this kind of address.

    :raise ConnectError: with the reason and what to do.
    :raise ChannelBusyError: if one of our own processes keeps the lock until the deadline.
    """
    lock = ChannelLock(address)
    joined = lock.acquire(deadline, join)
    if joined:
        return joined
    try:
        return Channel((connect or _CONNECTORS[address.kind])(address, deadline), lock)
    except BaseException:  # KeyboardInterrupt included: the lock must not stay taken
        lock.release()
        raise


_UNIX_TROUBLE = {
    errno.ENOENT: "there is no such socket. QEMU makes it when the guest starts: is the guest running on this machine?",
    errno.ECONNREFUSED: "nothing listens on this socket: its QEMU has exited. Start the guest.",
    errno.EACCES: "permission denied. The socket belongs to the user that runs QEMU: become that user or root.",
    errno.ENOTSOCK: "this is not a socket.",
}


def _connect_unix(address: Address, deadline: Deadline) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            code = _connect_code(sock, address)
            if code == 0:
                return sock
            # The socket's backlog of waiting clients is full.
            if code != errno.EAGAIN:
                raise ConnectError(_UNIX_TROUBLE.get(code, os.strerror(code)))
            if deadline.expired:
                raise ChannelBusyError("too many clients wait for the channel already")
            time.sleep(min(_RETRY_SECONDS, deadline.left()))
    except BaseException:  # KeyboardInterrupt included: do not leave a half-connected client in the backlog
        sock.close()
        raise


def _connect_code(sock: socket.socket, address: Address) -> int:
    try:
        code = sock.connect_ex(address.name)
    except OSError as exc:  # Python rejects a path longer than the 107 bytes of sockaddr_un
        raise ConnectError(f"{exc}") from exc
    # For a plain file, some systems report ENOTSOCK, Linux ECONNREFUSED.
    with contextlib.suppress(OSError, ValueError):  # it may be gone by now, and an abstract one is no file
        if code == errno.ECONNREFUSED and not stat.S_ISSOCK(os.stat(address.name).st_mode):
            return errno.ENOTSOCK
    return code


def _connect_vsock(address: Address, deadline: Deadline) -> socket.socket:
    try:
        family = socket.AF_VSOCK
        socket.socket(family, socket.SOCK_STREAM).close()
    except (AttributeError, OSError) as exc:
        raise ConnectError(f"cannot connect: this machine has no vsock ({exc})") from exc
    try:
        return _connected(family, (address.cid, address.port), deadline)
    except OSError as exc:
        raise ConnectError(f"cannot connect: {exc.strerror or exc}") from exc


def _connect_tcp(address: Address, deadline: Deadline) -> socket.socket:
    error: OSError | UnicodeError | None = None
    try:
        for family, _kind, _protocol, _name, where in socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        ):
            try:
                return _connected(family, where, deadline)
            except OSError as exc:
                error = exc
    except (OSError, UnicodeError) as exc:  # Python raises UnicodeError for an invalid host name
        error = exc
    raise ConnectError(f"cannot connect: {getattr(error, 'strerror', None) or error}") from error


def _connected(family: int, where: Any, deadline: Deadline) -> socket.socket:
    """Return a socket connected to ``where``, an address of this ``family``."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(deadline.left(), 0.001))
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock


_CONNECTORS: dict[str, Connect] = {
    "unix": _connect_unix,
    "vsock": _connect_vsock,
    "tcp": _connect_tcp,
}
