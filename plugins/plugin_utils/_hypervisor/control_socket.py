# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reach UNIX sockets of another machine through an ssh that is connected to it: ssh(1), -O forward and -O cancel.

A forward is there for a moment only: what has been connected through it stays, as a channel of the one connection.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError, ConnectError

__all__ = ("ControlSocket",)

_SECONDS_TO_CONNECT = 1.0
_MOST_WORDS = 4096  # bytes of ssh's messages that are read, from the end


class ControlSocket(NamedTuple):
    """The socket at ``path`` by which a connected ssh takes requests; ``program`` is an ssh that can make them."""

    path: str
    program: str

    def listens(self) -> bool:
        """Return whether an ssh is there."""
        sock = _connected(self.path)
        if sock:
            sock.close()
        return sock is not None

    @contextmanager
    def forward(self, path: str, local: str, deadline: Deadline) -> Iterator[None]:
        """Have ssh listen at the path ``local`` for ``path`` there. What has been connected by then stays.

        ssh takes a connection before it tries to reach ``path``: if it cannot, the connection's other side is closed.

        :raise ConnectError: if ssh does not forward.
        """
        forward = f"{_escaped(local)}:{_escaped(path)}"
        with suppress(FileNotFoundError):
            os.unlink(local)
        self._request("forward", forward, deadline)
        try:
            yield
        finally:
            with suppress(ConnectError):  # it has ended, and its forwards with it
                self._request("cancel", forward, deadline)
            with suppress(FileNotFoundError):
                os.unlink(local)

    def connect(self, path: str, local: str, deadline: Deadline) -> socket.socket:
        """Return a socket that leads to ``path`` there, by way of ``local``; see ``forward``.

        :raise ConnectError: if ssh does not forward.
        """
        with self.forward(path, local, deadline):
            sock = _connected(local)
        if not sock:
            raise ConnectError("ssh ended before it forwarded the socket")
        return sock

    def _request(self, what: str, forward: str, deadline: Deadline) -> None:
        # ssh's configuration is for connecting; this only talks to an ssh that is connected.
        command = [self.program, "-F", "none", "-S", self.path, "-O", what, "-L", forward, "--", "hypervisor"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
                timeout=max(deadline.left(), 0.001),
            )
        except subprocess.TimeoutExpired:
            raise ConnectError(f"ssh did not forward the socket within {deadline.seconds:g} s") from None
        except OSError as exc:
            raise ConnectError(f"cannot start {self.program}: {exc.strerror or exc}") from exc
        if done.returncode:
            words = done.stderr[-_MOST_WORDS:].decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ConnectError(f"ssh does not forward the socket: {words or f'exit status {done.returncode}'}")


def _connected(path: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a timeout, connect fails at once where an ssh that hangs has too many clients.
        sock.settimeout(_SECONDS_TO_CONNECT)
        sock.connect(path)
        sock.settimeout(None)
    except OSError:
        sock.close()
        return None
    return sock


def _escaped(path: str) -> str:
    """Return ``path`` as ssh reads it in a forward, where C(%) and C(${) stand for other text.

    :raise AddressError: if it cannot be written there.
    """
    if "${" in path or "\n" in path:
        raise AddressError(f"{path!r} is no path that ssh can forward.")
    return re.sub(r"([\\:])", r"\\\1", path).replace("%", "%%")
