# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A channel that outlives its client, and that several of this user's processes use in turns.

A mux (plugin_utils/_mux_server.py), one for all channels of a user, keeps it in between. The mux does not carry the
data: each client gets the channel's own descriptor, and the lock's, so nothing is lost when the mux is killed in the
middle of a request. The mux grants the turn, for one request at a time.

Clients and mux exchange packets on a socket in a directory that is the user's alone. A connection is about one channel,
which its first packet names: C(keep KEY SECONDS) brings the channel's descriptors, and its sender has the turn;
C(join KEY) is answered by the descriptors, and C(visit KEY) by an empty line. The mux closes the connection if it has
no such channel.

C(take) acquires the turn; the mux answers C(busy NAME) while another client has it, and C(step STATE) when it is
granted. C(step STATE) releases it. A client that disconnects with the turn leaves the channel out of sync. C(end)
closes the channel when no client has the turn. C(note NAME VALUE) stores what a task learned of the guest for the next
task, and C(noted NAME) asks for it; both are answered by C(noted VALUE), which may be empty.
"""

from __future__ import annotations

import array
import json
import math
import os
import select
import socket
import struct
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import Channel, SyncState
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ChannelBusyError, ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import short_name, user_path

__all__ = ("SharedChannel", "connect_to_mux", "dismiss", "join", "key", "mux_path", "note", "noted")

# The number grows with each change of what is said there: two releases have each their mux.
_MUX = "mux-2"

_PACKET = 16384
_SECONDS_TO_END = 1.0
_SECONDS_TO_NOTE = 1.0


class SharedChannel(Channel):
    """A channel used in turns. ``control`` is the socket to the mux; ``mine``: this client has the turn already."""

    shared = True

    def __init__(self, sock: socket.socket, control: socket.socket, lock: int = -1, *, mine: bool = False) -> None:
        super().__init__(sock)
        self._control = control
        self._control.setblocking(False)
        self._lock_copy = lock
        self._mine = mine

    def acquire(self, deadline: Deadline) -> SyncState:
        if not self._mine:
            self._say(b"take")
            holder = "unknown"
            while True:
                word, _space, text = self._hear(deadline, holder).partition(b" ")
                if word == b"step":
                    break
                holder = text.decode("utf-8", "replace")
                if deadline.expired:
                    raise _not_in_time(deadline, holder)
            self._mine = True
            self._state = decode_state(text)
        return super().acquire(deadline)

    def release(self, state: SyncState) -> None:
        super().release(state)
        if self._mine:
            self._mine = False
            try:
                self._say(b"step " + encode_state(state))
            except ConnectError:
                self.close()  # the mux is gone: other clients wait for the lock now

    def close(self) -> None:
        # Close the channel first: closing the control socket passes the turn on.
        super().close()
        if self._lock_copy >= 0:
            os.close(self._lock_copy)
            self._lock_copy = -1
        self._control.close()

    def _say(self, packet: bytes) -> None:
        try:
            self._control.send(packet)
        except OSError as exc:
            raise _gone() from exc

    def _hear(self, deadline: Deadline, holder: str) -> bytes:
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        if not poller.poll(deadline.left() * 1000):
            raise _not_in_time(deadline, holder)
        try:
            packet = self._control.recv(_PACKET)
        except OSError as exc:
            raise _gone() from exc
        if not packet:
            raise _gone()
        return packet


def _not_in_time(deadline: Deadline, holder: str) -> ChannelBusyError:
    return ChannelBusyError(
        f"another task uses the channel ({holder}) and did not leave it within {deadline.seconds:g} s.",
        hint="A guest agent serves one client at a time.",
    )


def _gone() -> ConnectError:
    return ConnectError("the process that kept the channel open has ended")


def encode_state(state: SyncState) -> bytes:
    return json.dumps(state).encode("ascii")


def decode_state(text: bytes) -> SyncState:
    """Return the state encoded in ``text``; out of sync if it is invalid."""
    try:
        state = SyncState(*json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return SyncState()
    known = isinstance(state.since, float) and math.isfinite(state.since)
    return state if known and isinstance(state.takes_id, bool) and isinstance(state.echoes_id, bool) else SyncState()


def mux_path() -> str:
    """Return the path of the socket of this user's mux.

    :raise ConnectError: if there is no directory for it.
    """
    return user_path(_MUX)


def key(address: Address) -> bytes:
    """Return the name of the channel to ``address`` in the mux."""
    return short_name(address.identity).encode("ascii")


def join(address: Address, deadline: Deadline) -> SharedChannel | None:
    """Return the channel to ``address`` from this user's mux; None if that does not keep it."""
    control = connect_to_mux()
    if control is None:
        return None
    descriptors: array.array[int] = array.array("i")
    try:
        control.settimeout(max(deadline.left(), 0.001))
        control.send(b"join " + key(address))
        _packet, ancillary, _flags, _address = control.recvmsg(
            1, socket.CMSG_LEN(2 * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        stream, lock = descriptors
    except (OSError, ValueError):  # there is no such channel, or the mux has just ended
        control.close()
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    return SharedChannel(socket.socket(fileno=stream), control, lock)


def dismiss(address: Address) -> None:
    """Have the mux close the channel to ``address``, if it keeps that, once no client has the turn."""
    control = _visit(address, _SECONDS_TO_END)
    if control:
        with control, suppress(OSError):
            deadline = Deadline(_SECONDS_TO_END)
            control.send(b"end")
            while control.recv(_PACKET) and not deadline.expired:
                control.settimeout(max(deadline.left(), 0.001))


def note(address: Address, name: str, value: str) -> None:
    """Store ``value`` with the channel to ``address``, if the mux keeps that, for as long."""
    _noted(address, f"note {name} {value}")


def noted(address: Address, name: str) -> str:
    """Return the value last stored under ``name``; empty if there is none."""
    return _noted(address, f"noted {name}")


def _noted(address: Address, packet: str) -> str:
    control = _visit(address, _SECONDS_TO_NOTE)
    if control:
        with control, suppress(OSError):
            control.send(packet.encode("ascii"))
            return control.recv(_PACKET).partition(b" ")[2].decode("ascii", "replace")
    return ""


def _visit(address: Address, seconds: float) -> socket.socket | None:
    """Return a connection about the channel to ``address``, without its descriptors; None if it is not kept.

    Each answer on it has ``seconds``.
    """
    control = connect_to_mux()
    if control:
        control.settimeout(seconds)
        try:
            control.send(b"visit " + key(address))
            if control.recv(_PACKET):
                return control
        except OSError:
            pass
        control.close()
    return None


def connect_to_mux() -> socket.socket | None:
    """Return a connection to this user's mux; None if there is none."""
    try:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:  # not on every system
        return None
    try:
        # With a timeout, connect fails at once where a mux that hangs has too many clients.
        control.settimeout(_SECONDS_TO_NOTE)
        control.connect(mux_path())
        credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] == os.geteuid():
            return control
    except OSError:
        pass
    control.close()
    return None
