# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A channel that fails once: a socket in front of an agent's, where one fault hits one message.

It is to its clients what QEMU's socket is: it serves one at a time and others wait; a client is not told that the agent
was restarted; what the agent still had to say to one client goes to the next.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from lab.tally import EXECUTE

SIZE = 1 << 20
POLL = "guest-exec-status"
CLOSE = object()
"""In place of bytes to send: close the client's connection."""

Reply = Callable[[bytes, bytes], Sequence[object]]
"""What to do in place of passing a reply on, by that reply and the one before: send bytes, wait seconds, CLOSE."""


def _with(line: bytes, **members: object) -> bytes:
    try:
        reply = json.loads(line.lstrip(b"\xff"))
    except ValueError:
        reply = {}
    return json.dumps({**reply, **members}).encode() + b"\n"


REPLIES: dict[str, Reply] = {
    "delayed": lambda line, before: [0.7, line],
    "doubled": lambda line, before: [line, line],
    "stale": lambda line, before: [before, line],
    "another's": lambda line, before: [_with(line, id="another-1"), line],
    "cut": lambda line, before: [line[: len(line) // 2], CLOSE],
    "garbage": lambda line, before: [b"\x00\x1b[2J\xfe}{ none of this is JSON\n"],
    "too long": lambda line, before: [b'{"return": "', *[b"A" * SIZE] * 100, b'"}\n'],
    "deep": lambda line, before: [_with(line, **{"return": 0}).replace(b"0", b"[" * 5000 + b"]" * 5000, 1)],
    "wrong type": lambda line, before: [_with(line, **{"return": 0.5})],
    "never": lambda line, before: [],
    "client disconnected": lambda line, before: [CLOSE],
}


class ChannelFault:
    """What hits the message ``number``, from 1 on: ``reply`` in place of its reply, or ``injection``.

    That is done before the agent gets the request, or, ``late``, when it has replied. Where the agent ``dies`` of it,
    that reply dies with it.
    """

    def __init__(
        self,
        number: int,
        reply: Reply | None = None,
        injection: Callable[[], object] | None = None,
        late: bool = False,
        dies: bool = False,
    ) -> None:
        self.number = number
        self.reply = reply
        self.injection = injection
        self.late = late
        self.dies = dies
        self.hit = ""
        """The command that it hit."""


class FaultyChannel:
    """A proxy on the UNIX socket ``path`` in front of the one at ``agent_socket()``, which may come and go.

    ``commands`` are the requests since the last ``begin``, and ``messages`` is their number, where a question for the
    end of a program counts once, however often it is asked: that depends on how quick the guest is.
    """

    def __init__(self, path: Path, agent_socket: Callable[[], Path]) -> None:
        self.path = path
        self.commands: list[str] = []
        self.messages = 0
        self.taken = False
        """Whether another client has the channel: who connects now waits."""
        self.trouble: BaseException | None = None
        self._agent_socket = agent_socket
        self._fault = ChannelFault(0)
        self._agent: socket.socket | None = None
        self._client: socket.socket | None = None
        self._half = b""  # of the agent's reply
        self._request = b""
        self._before = b"\n"
        self._ending = False
        self._hung_up = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, name="faulty channel", daemon=True)

    def __enter__(self) -> FaultyChannel:
        self._listener.bind(str(self.path))
        self.path.chmod(0o666)
        self._listener.listen(64)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._thread.join(10)
        for sock in (self._listener, self._client, self._agent):
            if sock:
                sock.close()
        self.path.unlink()

    def begin(self, fault: ChannelFault | None = None) -> None:
        """Count messages from here on, and let that befall one of them."""
        self.commands = []
        self.messages = 0
        self._fault = fault or ChannelFault(0)

    def hang_up(self) -> None:
        """Drop the client and the agent, as a QEMU that ends does; from any thread."""
        self._hung_up = True

    def _serve(self) -> None:
        try:
            while not self._ending:
                self._step()
        except BaseException as exc:  # the test must hear of it
            self.trouble = exc

    def _step(self) -> None:
        if self._hung_up:
            self._drop_client()
            self._drop_agent()
            self._hung_up = False
        if self._client is None and not self.taken and select.select([self._listener], [], [], 0)[0]:
            self._client = self._listener.accept()[0]
            self._request = b""
        if self._agent is None:
            self._agent = self._connected()
        sources = [sock for sock in (self._client, self._agent) if sock]
        for source in select.select(sources, [], [], 0.01)[0]:
            try:
                data = source.recv(SIZE)
            except OSError:
                data = b""
            if source is self._client:
                self._from_client(data)
            elif source is self._agent:
                self._from_agent(data)

    def _connected(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self._agent_socket()))
        except OSError:
            sock.close()
            return None
        return sock

    def _drop_client(self) -> None:
        if self._client:
            self._client.close()
            self._client = None

    def _drop_agent(self) -> None:
        if self._agent:
            self._agent.close()
        self._agent, self._half = None, b""

    def _from_client(self, data: bytes) -> None:
        if not data:
            self._drop_client()
        self._request += data
        while b"\n" in self._request:
            line, _newline, self._request = self._request.partition(b"\n")
            self._pass_request(line + b"\n")

    def _pass_request(self, line: bytes) -> None:
        command = EXECUTE.search(line[:200])
        self.commands.append(command.group(1).decode("ascii", "replace") if command else "?")
        self.messages += self.commands[-2:] != [POLL, POLL]
        fault = self._fault
        if fault.number == self.messages and fault.injection and not fault.late and not fault.hit:
            self._inject(fault.injection)
        # What is written while no agent listens is kept for it, for as long as its client stays.
        end = time.monotonic() + 60
        while self._agent is None and time.monotonic() < end and not self._ending and self._is_there():
            self._agent = self._connected()
            time.sleep(0.01)
        if self._agent and not self._hung_up:
            with suppress(OSError):
                self._agent.sendall(line)

    def _inject(self, injection: Callable[[], object]) -> None:
        self._fault.hit = self.commands[-1]
        injection()
        if self._fault.dies:
            self._drop_agent()

    def _is_there(self) -> bool:
        """Return whether the client still is."""
        if not self._client or self._hung_up:
            return False
        with suppress(BlockingIOError):
            return bool(self._client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return True

    def _from_agent(self, data: bytes) -> None:
        if not data:
            self._drop_agent()
        self._half += data
        while b"\n" in self._half:
            line, _newline, self._half = self._half.partition(b"\n")
            self._pass_reply(line + b"\n")

    def _pass_reply(self, line: bytes) -> None:
        fault = self._fault
        # Before the answer to a sync, there is a complaint about the byte that announces it: no reply of its own.
        is_complaint = b"\\uFFFD" in line or "\ufffd".encode() in line
        if is_complaint or self.messages != fault.number or fault.hit:
            self._send([line])
        elif fault.reply:
            fault.hit = self.commands[-1]
            self._send(fault.reply(line, self._before))
        elif fault.injection and fault.late:
            self._inject(fault.injection)
            if not fault.dies:
                self._send([line])
        else:
            self._send([line])
        self._before = line

    def _send(self, steps: Sequence[object]) -> None:
        for step in steps:
            if step is CLOSE or (self.taken and self._client):
                self._drop_client()
            elif isinstance(step, float):
                time.sleep(step)
            elif isinstance(step, bytes) and self._client:
                try:
                    self._client.settimeout(5)
                    self._client.sendall(step)
                except OSError:  # it has left in the middle
                    self._drop_client()
