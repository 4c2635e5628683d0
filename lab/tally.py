# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count what travels to an agent and back: a socket to use in place of the agent's, which passes everything on."""

from __future__ import annotations

import math
import re
import select
import socket
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

REFUSED = re.compile(rb'"error":\s*\{')
# A client has one request in flight and starts it with this; requests are single lines.
EXECUTE = re.compile(rb'"execute":\s*"([^"]*)"')
# In a string, these quotes would have a backslash before them.
RETURN = b'"return": '
SIZE = 1024 * 1024


@dataclass
class Count:
    """Requests of one command, how many were answered and refused, and the bytes of them and of their replies."""

    requests: int = 0
    returned: int = 0
    refused: int = 0
    sent: int = 0
    received: int = 0


class Tally:
    """A proxy on the UNIX socket `path` in front of an agent's socket.

    `counts` has a Count for each command, and `clients` is how many have connected. The agent's replies pass at `rate`,
    and what is for the agent at `rate_there`, in bytes per second. `longest` is how many seconds the longest request
    took, from its first byte to the last of its reply.
    """

    def __init__(self, path: Path, agent_socket: Path) -> None:
        self.path = path
        self.clients = 0
        self.rate = math.inf
        self.rate_there = math.inf
        self.longest = 0.0
        self.counts: dict[str, Count] = defaultdict(Count)
        self._agent_socket = agent_socket
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Tally:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing would not wake the thread that waits for a client; shutting down does.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)  # a client may still be there
        self._listener.close()
        self.path.unlink()

    def _serve(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            self.clients += 1
            # Whichever side breaks the connection, the next client is served.
            with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent, suppress(OSError):
                agent.connect(str(self._agent_socket))
                self._pass_on(client, agent)

    def _pass_on(self, client: socket.socket, agent: socket.socket) -> None:
        """Pass bytes both ways until one side closes."""
        command = "nothing asked"
        line = b""
        answered = True
        began = time.monotonic()
        while True:
            for source in select.select([client, agent], [], [])[0]:
                data = source.recv(SIZE)
                if not data:
                    return
                if source is agent:
                    self.counts[command].received += len(data)
                    self.counts[command].returned += RETURN in data
                    # Before the answer to a sync, there is a complaint about the byte that announces it.
                    if not answered and not command.startswith("guest-sync") and REFUSED.search(data[:200]):
                        self.counts[command].refused += 1
                    answered = True
                    _send_slowly(data, self.rate, client)
                    self.longest = max(self.longest, time.monotonic() - began)
                    continue
                started = not line
                began = time.monotonic() if started else began
                line += data
                if started and (match := EXECUTE.search(line)):
                    command = match.group(1).decode("ascii", "replace")
                    self.counts[command].requests += 1
                    answered = False
                self.counts[command].sent += len(data)
                if line.endswith(b"\n"):
                    line = b""
                _send_slowly(data, self.rate_there, agent)


def _send_slowly(data: bytes, rate: float, to: socket.socket) -> None:
    """Send at ``rate`` bytes per second, as a serial port does: all the time, and not all of it in the end."""
    step = min(len(data), max(1, int(min(rate, SIZE))))
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        time.sleep(len(piece) / rate)
        to.sendall(piece)
