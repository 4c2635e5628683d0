# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep a channel open between tasks: the mux process, and its start. mux_client.py is the clients' side.

The mux runs in its own interpreter, so it imports only the standard library, and holds none of Ansible's memory. It has
a session of its own. It ends when no client has used the channel for a time, when the channel's other side has gone,
or when it is told to.
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


def share(address: Address, channel: Channel, seconds: float) -> Channel:
    """Start a mux that keeps ``channel`` open for ``seconds`` after its last client; return it as one to share.

    The caller holds the turn. If no mux can be started, the channel is returned as it is.
    """
    from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import SharedChannel, mux_path

    stream, lock = channel.descriptors
    path = mux_path(address)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        return channel
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:  # not supported on every system
        return channel
    with theirs:
        given = (stream, lock, theirs.fileno())
        try:
            _start([path, str(seconds), *map(str, given)], given)
        except OSError:
            ours.close()
            return channel
    copies = os.dup(stream), os.dup(lock)
    channel.close()
    return SharedChannel(socket.socket(fileno=copies[0]), ours, copies[1], mine=True)


def _start(arguments: list[str], given: tuple[int, ...]) -> None:
    """Start a mux that inherits the descriptors ``given``."""
    import subprocess  # needed to start a mux, not in a mux

    class Staying(subprocess.Popen[bytes]):
        """A process that outlives this one, without the warning that Popen gives."""

        def __del__(self) -> None:
            pass

    Staying(
        [sys.executable, "-I", "-S", __file__, *arguments],
        pass_fds=given,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


class Client:
    """A client of the channel. Waiting clients are told its ``name``."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, self.uid, _gid = struct.unpack("3i", credentials)
        self.name = f"pid {pid}"
        with suppress(OSError), open(f"/proc/{pid}/comm") as comm:
            self.name += f", {comm.read().strip()}"

    def tell(self, packet: bytes) -> None:
        with suppress(OSError):  # listen() notices a client that has gone
            self.control.send(packet)


class MuxServer:
    """The channel and its clients, one of which may hold the turn."""

    def __init__(self, path: str, seconds: float, stream: int, lock: int, first: socket.socket) -> None:
        self.seconds = seconds
        self.descriptors = [stream, lock]
        self.clients = {first.fileno(): Client(first)}
        self.turn: Client | None = self.clients[first.fileno()]
        self.waiting: deque[Client] = deque()
        self.step = b""
        self.notes: dict[bytes, bytes] = {}
        self.ending = False
        # Only one mux can have the lock, so a file at this path is left by one that was killed.
        with suppress(FileNotFoundError):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(128)
        self.poller = select.poll()
        self.poller.register(self.listener, select.POLLIN)
        self.poller.register(first, select.POLLIN)
        # Nothing is read here, but the other side's end is reported all the same.
        self.poller.register(stream, select.POLLRDHUP)

    def serve(self) -> None:
        """Serve until the channel is idle for long, has ended, or a client ends the mux."""
        quiet = time.monotonic()
        while not self.ending or self.turn:
            events = self.poller.poll(self.patience(quiet))
            now = time.monotonic()
            if not events and not self.clients and now - quiet >= self.seconds:
                break
            quiet = now if events else quiet
            for descriptor, _event in events:
                if descriptor == self.descriptors[0]:
                    return
                if descriptor == self.listener.fileno():
                    self.welcome(self.listener.accept()[0])
                elif descriptor in self.clients:
                    self.listen(self.clients[descriptor])
            self.pass_on()

    def patience(self, quiet: float) -> float | None:
        """Return the milliseconds until the mux may end, if it has been idle since ``quiet``; None: never."""
        return None if self.clients else max(0.0, quiet + self.seconds - time.monotonic()) * 1000 + 1

    def welcome(self, control: socket.socket) -> None:
        client = Client(control)
        if client.uid != os.geteuid():
            control.close()
            return
        self.clients[control.fileno()] = client
        self.poller.register(control, select.POLLIN)
        with suppress(OSError):
            socket.send_fds(control, [b"\n"], self.descriptors)

    def listen(self, client: Client) -> None:
        """Read a packet from a client, or notice that it has gone."""
        try:
            packet = client.control.recv(_PACKET)
        except OSError:
            packet = b""
        if not packet:
            self.part(client, packet)
            return
        word, _space, text = packet.partition(b" ")
        words = {b"take": self.queue, b"step": self.step_on, b"end": self.end, b"note": self.note, b"noted": self.noted}
        words.get(word, self.part)(client, text)

    def queue(self, client: Client, _text: bytes) -> None:
        self.waiting.append(client)
        if self.turn:
            client.tell(b"busy " + self.turn.name.encode("utf-8", "replace"))

    def step_on(self, client: Client, text: bytes) -> None:
        if self.turn is client:
            self.turn, self.step = None, text

    def end(self, _client: Client, _text: bytes) -> None:
        self.ending = True

    def note(self, client: Client, text: bytes) -> None:
        name, _space, value = text.partition(b" ")
        self.notes.pop(name, None)
        self.notes[name] = value
        if len(self.notes) > _MOST_NOTES:
            del self.notes[next(iter(self.notes))]
        self.noted(client, name)

    def noted(self, client: Client, name: bytes) -> None:
        client.tell(b"noted " + self.notes.get(name, b""))

    def part(self, client: Client, _text: bytes) -> None:
        """Drop a client that has gone, or has sent an unknown packet."""
        self.poller.unregister(client.control)
        del self.clients[client.control.fileno()]
        client.control.close()
        if client in self.waiting:
            self.waiting.remove(client)
        if self.turn is client:
            self.turn, self.step = None, b""

    def pass_on(self) -> None:
        """Give the turn to the client that has waited longest."""
        if not self.turn and self.waiting and not self.ending:
            self.turn = self.waiting.popleft()
            self.turn.tell(b"step " + self.step)


def main(path: str, seconds: str, stream: str, lock: str, first: str) -> None:
    """Keep a channel, by the descriptors of its stream, its lock, and its first client, which holds the turn."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    # Show a meaningful name to users that look for the holder of a channel.
    with suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(_NAME)
    text = f"pid {os.getpid()}, {_NAME}".encode()
    os.truncate(int(lock), 0)
    os.pwrite(int(lock), text, 0)
    mux = MuxServer(path, float(seconds), int(stream), int(lock), socket.socket(fileno=int(first)))
    try:
        mux.serve()
    finally:
        os.unlink(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
