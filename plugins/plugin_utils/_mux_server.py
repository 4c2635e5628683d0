# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep channels open between tasks: the mux process, and its start. mux_client.py is the clients' side.

One mux keeps all channels of a user. It runs in its own interpreter, so it imports only the standard library, and holds
none of Ansible's memory. It has a session of its own. It closes a channel that no client has used for its time, or
whose other side has gone, and ends when it has none left.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
    from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import Channel

_NAME = "qga-mux"
_PACKET = 16384
_MOST_NOTES = 100
_LONGEST_PATH = 107  # bytes; struct sockaddr_un has no room for more
_BACKLOG = 1024
# Seconds for which a mux waits for its first client, which connects while this starts.
_SECONDS_ALONE = 1.0
# Seconds for which a mux that starts, or ends, is waited for.
_SECONDS_TO_START = 1.0
_RETRY_SECONDS = 0.01
_NEVER = float("inf")


def share(address: Address, channel: Channel, seconds: float) -> Channel:
    """Have the mux keep ``channel`` open for ``seconds`` after its last client; return it as one to share.

    The caller holds the turn. If there is no mux and none can be started, the channel is returned as it is.
    """
    from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import SharedChannel, key

    stream, lock = channel.descriptors
    try:
        control = _reach_mux()
    except OSError:  # packets or processes are not to be had here
        return channel
    if control is None:
        return channel
    copies = os.dup(stream), os.dup(lock)
    try:
        socket.send_fds(control, [b"keep %b %f" % (key(address), seconds)], [stream, lock])
    except OSError:  # it has just ended
        control.close()
        for copy in copies:
            os.close(copy)
        return channel
    channel.close()
    return SharedChannel(socket.socket(fileno=copies[0]), control, copies[1], mine=True)


def _reach_mux() -> socket.socket | None:
    """Return a connection to this user's mux, which is started if need be; None if there is none in time.

    :raise OSError: if one cannot be started.
    """
    from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import lock_file
    from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import connect_to_mux, mux_path

    path = mux_path()
    if len(os.fsencode(path)) > _LONGEST_PATH or not hasattr(select, "epoll"):
        return None
    end = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < end:
        control = connect_to_mux()
        if control:
            return control
        with lock_file(f"{path}.lock") as lock:
            if lock:
                _start(path, lock.fileno())
                return connect_to_mux()
        time.sleep(_RETRY_SECONDS)  # another task starts it, or one ends
    return None


def _start(path: str, lock: int) -> None:
    """Start a mux that holds ``lock`` and listens at ``path``, where clients can connect at once."""
    import subprocess  # needed to start a mux, not in a mux

    class Staying(subprocess.Popen[bytes]):
        """A process that outlives this one, without the warning that Popen gives."""

        def __del__(self) -> None:
            pass

    # The holder of the lock is the only mux, so a file at this path is left by one that was killed.
    with suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
        given = (listener.fileno(), lock)
        try:
            Staying(
                [sys.executable, "-I", "-S", __file__, path, *map(str, given)],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            os.unlink(path)
            raise


class Client:
    """A client of the mux, and of one channel at most. Others that wait for that channel are told its ``name``."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        control.setblocking(False)
        credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid, self.uid, _gid = struct.unpack("3i", credentials)
        self.channel: KeptChannel | None = None

    @property
    def name(self) -> str:
        with suppress(OSError), open(f"/proc/{self.pid}/comm") as comm:
            return f"pid {self.pid}, {comm.read().strip()}"
        return f"pid {self.pid}"

    def tell(self, packet: bytes, descriptors: tuple[int, ...] = ()) -> None:
        with suppress(OSError):  # listen() notices a client that has gone
            socket.send_fds(self.control, [packet], descriptors)


class KeptChannel:
    """A channel and its clients, one of which may hold the turn. It is closed at ``expires`` if it has no client."""

    def __init__(self, descriptors: list[int], seconds: float) -> None:
        self.stream, self.lock = self.descriptors = descriptors[0], descriptors[1]
        self.seconds = seconds
        self.expires = 0.0
        self.clients: set[Client] = set()
        self.turn: Client | None = None
        self.waiting: deque[Client] = deque()
        self.state = b""
        self.notes: dict[bytes, bytes] = {}
        self.is_ending = False
        _sign(self.lock)

    def queue(self, client: Client, _text: bytes) -> None:
        self.waiting.append(client)
        if self.turn:
            client.tell(b"busy " + self.turn.name.encode("utf-8", "replace"))

    def release(self, client: Client, text: bytes) -> None:
        if self.turn is client:
            self.turn, self.state = None, text

    def end(self, _client: Client, _text: bytes) -> None:
        self.is_ending = True

    def note(self, client: Client, text: bytes) -> None:
        name, _space, value = text.partition(b" ")
        self.notes.pop(name, None)
        self.notes[name] = value
        if len(self.notes) > _MOST_NOTES:
            del self.notes[next(iter(self.notes))]
        self.noted(client, name)

    def noted(self, client: Client, name: bytes) -> None:
        client.tell(b"noted " + self.notes.get(name, b""))

    def part(self, client: Client) -> None:
        """Forget a client that has gone. The channel is out of sync if that held the turn."""
        self.clients.discard(client)
        if client in self.waiting:
            self.waiting.remove(client)
        if self.turn is client:
            self.turn, self.state = None, b""

    def pass_on(self) -> None:
        """Grant the turn to the client that has waited longest."""
        if not self.turn and self.waiting and not self.is_ending:
            self.turn = self.waiting.popleft()
            self.turn.tell(b"step " + self.state)


class MuxServer:
    """All channels that are kept, by key, and the clients of the mux."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        listener.setblocking(False)
        self.clients: dict[int, Client] = {}
        self.channels: dict[bytes, KeptChannel] = {}
        self.streams: dict[int, bytes] = {}  # each stream's descriptor, and the channel's key
        self.next_look = time.monotonic() + _SECONDS_ALONE
        self.is_done = False
        self.poller = select.epoll()
        self.poller.register(listener, select.EPOLLIN)

    def serve(self) -> None:
        """Serve until there is no channel and no client left."""
        while not self.is_done:
            for descriptor, _event in self.poller.poll(self.patience()):
                if descriptor == self.listener.fileno():
                    self.welcome()
                elif descriptor in self.streams:
                    self.drop(self.streams[descriptor])
                elif descriptor in self.clients:
                    self.listen(self.clients[descriptor])
            if time.monotonic() >= self.next_look:
                self.look()

    def patience(self) -> float | None:
        """Return the seconds until the next look; None: there is nothing to look for."""
        return None if self.next_look == _NEVER else max(0.0, self.next_look - time.monotonic())

    def look(self) -> None:
        """Close the channels that were idle for their time, and set the time of the next look."""
        now, idle = time.monotonic(), self.idle()
        for expires, key in idle:
            if expires <= now:
                self.drop(key)
        self.next_look = min((expires for expires, _key in idle if expires > now), default=_NEVER)
        self.is_done = not self.channels and not self.clients

    def idle(self) -> list[tuple[float, bytes]]:
        """Return when each channel without clients is to be closed, and its key."""
        return [(channel.expires, key) for key, channel in self.channels.items() if not channel.clients]

    def welcome(self) -> None:
        try:
            control = self.listener.accept()[0]
        except BlockingIOError:
            return
        except OSError:  # no descriptor is left
            self.make_room()
            return
        client = Client(control)
        if client.uid != os.geteuid():
            control.close()
            return
        self.clients[control.fileno()] = client
        self.poller.register(control, select.EPOLLIN)

    def make_room(self) -> None:
        """Close the channel that will be needed last, of those without clients."""
        idle = self.idle()
        if idle:
            self.drop(min(idle)[1])
        else:
            time.sleep(_RETRY_SECONDS)  # a client will leave

    def listen(self, client: Client) -> None:
        """Read a packet from a client, or notice that it has gone."""
        descriptors: list[int] = []
        try:
            packet, descriptors, flags, _address = socket.recv_fds(client.control, _PACKET, 2)
        except BlockingIOError:
            return
        except OSError:
            packet, flags = b"", 0
        word, _space, text = packet.partition(b" ")
        if word == b"keep" and len(descriptors) == 2 and not flags & socket.MSG_CTRUNC and not client.channel:
            try:
                self.keep(client, text, descriptors)
                return
            except (OSError, ValueError):  # these are no channel and its lock, or that is no number of seconds
                pass
        for descriptor in descriptors:
            os.close(descriptor)
        if not client.channel and word in (b"join", b"visit"):
            self.admit(client, word, text)
            return
        self.serve_client(client, word, text)

    def keep(self, client: Client, text: bytes, descriptors: list[int]) -> None:
        """Keep a channel that its client, which holds the turn, has opened.

        :raise OSError: if the descriptors are no channel's.
        :raise ValueError: if C(text) makes no sense.
        """
        key, _space, seconds = text.partition(b" ")
        channel = KeptChannel(descriptors, _seconds(seconds))
        # Nothing is read here, but the other side's end is reported all the same.
        self.poller.register(channel.stream, select.EPOLLRDHUP)
        self.drop(key)  # its other side has gone: the client has the lock
        self.channels[key] = channel
        self.streams[channel.stream] = key
        client.channel, channel.turn = channel, client
        channel.clients.add(client)

    def admit(self, client: Client, word: bytes, key: bytes) -> None:
        """Answer a client that wants a channel's descriptors, or only its notes; show it out if there is none."""
        channel = self.channels.get(key)
        if not channel:
            self.part(client)
            return
        client.channel = channel
        channel.clients.add(client)
        client.tell(b"\n", channel.descriptors if word == b"join" else ())

    def serve_client(self, client: Client, word: bytes, text: bytes) -> None:
        channel = client.channel
        if channel:
            acts = {
                b"take": channel.queue,
                b"step": channel.release,
                b"end": channel.end,
                b"note": channel.note,
                b"noted": channel.noted,
            }
            if word in acts:
                acts[word](client, text)
            else:
                self.part(client)
            channel.pass_on()
            if channel.is_ending and not channel.turn:
                self.drop(self.streams.get(channel.stream, b""))
        else:
            self.part(client)

    def part(self, client: Client) -> None:
        """Drop a client that has gone, or has sent an unknown packet."""
        del self.clients[client.control.fileno()]
        client.control.close()
        channel, client.channel = client.channel, None
        if channel:
            channel.part(client)
            channel.expires = time.monotonic() + channel.seconds
            self.next_look = min(self.next_look, channel.expires)
        if not self.clients and not self.channels:
            self.next_look = 0.0

    def drop(self, key: bytes) -> None:
        """Close a channel and the connections of its clients."""
        channel = self.channels.pop(key, None)
        if channel:
            del self.streams[channel.stream]
            self.poller.unregister(channel.stream)
            for descriptor in channel.descriptors:
                os.close(descriptor)
            for client in list(channel.clients):
                self.part(client)
            if not self.clients and not self.channels:
                self.next_look = 0.0


def _seconds(text: bytes) -> float:
    seconds = float(text)
    if not 0 <= seconds < _NEVER:
        raise ValueError(f"{seconds} seconds")
    return seconds


def _sign(lock: int) -> None:
    """Name the mux in a file that it has locked."""
    os.truncate(lock, 0)
    os.pwrite(lock, f"pid {os.getpid()}, {_NAME}".encode(), 0)


def _lift_limit() -> None:
    """Let the mux have as many descriptors as the system allows: each channel takes two, each client one."""
    import resource

    with suppress(OSError, ValueError):
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(path: str, listener: str, lock: str) -> None:
    """Serve at ``path``, by the descriptors of the listening socket and of the lock that makes this the only mux."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    _lift_limit()
    with suppress(OSError):  # without a name, it serves as well: the disk may be full
        _sign(int(lock))
    # Show a meaningful name to users that look for the holder of a channel.
    with suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(_NAME)
    try:
        MuxServer(socket.socket(fileno=int(listener))).serve()
    finally:
        # A client that is in the queue now sees the connection end, and connects anew, or goes on without a mux.
        with suppress(FileNotFoundError):
            os.unlink(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
