# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypervisor: another machine, which has the sockets of guests' agents, and needs nothing but sshd and sh.

All guests of that machine and all tasks use one connection (ssh.py), with the login that ansible-core has for it
(login.py). Where that asks for become, a relay of that user (relay.py) is started there through the same connection.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from ansible import constants as C

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import FORWARD, RELAY, private_path
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.login import PYTHON, Login
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.relay_client import (
    NO_PYTHON,
    RelayGone,
    RelayNote,
    forget,
    python_command,
    started_path,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.ssh import Ssh, last_words

__all__ = ("Hypervisor",)

T = TypeVar("T")

_SERIAL = itertools.count()  # tells the forwards of one process apart
_LINES_OF_BECOME = 3  # that are shown if it fails; sudo's last one is not the one that tells


class Hypervisor:
    """A machine that is reached by ssh. Several threads may use it. ``name`` is what the user calls it.

    ``login`` has the variables that say how to log in, as ansible.builtin.ssh knows them. C(ansible_host) is the
    destination. ``is_host``: the machine is an inventory host.
    """

    def __init__(self, name: str, login: Mapping[str, Any], *, is_host: bool) -> None:
        self.name = name
        self._login = Login(name, login, is_host=is_host)

    @property
    def identity(self) -> str:
        """A name that is the same for the same login: only those share a connection."""
        return self._login.identity

    @functools.cached_property
    def _ssh(self) -> Ssh:
        # A machine that is logged in to may have been started anew: its relay has gone then.
        return Ssh(self._login, lambda: forget(self._note_path))

    def address(self, path: str) -> Address:
        """Return the address of the UNIX socket ``path`` there."""
        return Address("ssh", path=path, host=self.name, login=self.identity)

    def connect(self, path: str, deadline: Deadline) -> socket.socket:
        """Return a socket that leads to the UNIX socket ``path`` there.

        :raise ConnectError: with ssh's own message. If only ``path`` cannot be reached, the socket is closed by ssh, or
            the relay says why.
        """
        local = private_path(self.address(path).identity, FORWARD)
        if self._needs_become(deadline):
            return self._at_relay(local, deadline, lambda note, sock: note.lead(sock, path, deadline))[0]
        return self._forwarded(path, local, deadline)

    def _at_relay(
        self, local: str, deadline: Deadline, ask: Callable[[RelayNote, socket.socket], T]
    ) -> tuple[socket.socket, T]:
        """Return a socket that leads to the relay there, and what it replied to ``ask``.

        :raise ConnectError: with the relay's words, or become's, or ssh's.
        """
        gone = ""
        for _attempt in range(2):  # one that was used before may have ended
            note = self._noted(deadline, relay=True, gone=gone)
            sock = self._forwarded(note.path, local, deadline)
            try:
                return sock, ask(note, sock)
            except RelayGone:
                sock.close()
                gone = note.path
            except ConnectError as exc:
                sock.close()
                raise ConnectError(f"{self._login.become_there}: {exc.message}") from exc
        raise ConnectError(
            f"{self._login.become_there}: the relay that was started cannot be reached through ssh. Does sshd allow "
            "forwards (AllowStreamLocalForwarding), and do processes go on there when their session has ended?"
        )

    def _forwarded(self, path: str, local: str, deadline: Deadline) -> socket.socket:
        control = self._ssh.connected(deadline)
        try:
            return control.connect(path, local, deadline)
        except ConnectError:
            if control.listens() or deadline.expired:
                raise
        return self._ssh.connected(deadline).connect(path, local, deadline)  # it had just ended

    def connector(self, address: Address, deadline: Deadline) -> socket.socket:
        """Connect to an ``address`` there, for open_agent; see ``connect``."""
        return self.connect(address.path, deadline)

    @contextmanager
    def forward(self, path: str, deadline: Deadline) -> Iterator[str]:
        """Give the path of a socket here that leads to the UNIX socket ``path`` there, for clients that need a path.

        :raise ConnectError: as ``connect`` does.
        """
        local = private_path(f"{self.address(path).identity} {os.getpid()} {next(_SERIAL)}", FORWARD)
        with ExitStack() as stack:
            if self._needs_become(deadline):
                sock, path = self._at_relay(local, deadline, lambda note, sock: note.listen(sock, path, deadline))
                stack.callback(sock.close)
            stack.enter_context(self._ssh.connected(deadline).forward(path, local, deadline))
            yield local

    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
        """Run a shell command there and return C((rc, stdout, stderr)).

        :raise ConnectError: if that machine cannot be reached, or the command does not end within ``seconds``.
        """
        deadline = Deadline(seconds)
        if not self._needs_become(deadline):
            self._ssh.connected(deadline)
            return self._ssh.execute(command, stdin, deadline)
        if not stdin:  # the input is never empty, since become's password may be before it
            command = f"exec </dev/null; {command}"
        return self._ssh.execute(command, stdin or b"\n", deadline, self._login.become())

    def _needs_become(self, deadline: Deadline) -> bool:
        """Return whether the login there is to become another user, as ansible-core sees it."""
        if not self._login.becomes:
            return False
        note = self._noted(deadline)
        if note.path or C.BECOME_ALLOW_SAME_USER:
            return True
        return bool(self._login.become().get_option("become_user") != note.user)

    def _noted(self, deadline: Deadline, *, relay: bool = False, gone: str = "") -> RelayNote:
        """Return the note on the login there. ``relay``: with a relay, at another path than that of an ended one."""
        self._ssh.connected(deadline)

        def usable() -> RelayNote | None:
            note = RelayNote.load(self._note_path)
            return note if note and (not relay or note.path not in ("", gone)) else None

        note = usable()
        if note:
            return note
        with self._ssh.locked(deadline):
            note = usable()
            if not note:
                note = RelayNote.load(self._note_path) or self._ask_who(deadline)
                if relay:
                    note = self._start_relay(note.with_secrets(), deadline)
                note.save(self._note_path)
            return note

    @property
    def _note_path(self) -> str:
        return private_path(self.identity, RELAY)

    def _ask_who(self, deadline: Deadline) -> RelayNote:
        _status, stdout, stderr = self._ssh.execute("id -u; id -un", b"", deadline)
        note = RelayNote.parse(stdout)
        if not note:
            words = last_words(stderr) or last_words(stdout)
            raise ConnectError(f"become on {self.name}: id there does not say who the login is: {words}")
        return note

    def _start_relay(self, note: RelayNote, deadline: Deadline) -> RelayNote:
        python = self._login.python
        status, stdout, stderr = self._ssh.execute(
            python_command(python), note.program(), deadline, self._login.become()
        )
        path = started_path(stdout)
        if path:
            return note._replace(path=path)
        words = last_words(stderr, _LINES_OF_BECOME) or last_words(stdout) or f"exit status {status}"
        if words.endswith(NO_PYTHON):
            raise ConnectError(
                f"{self._login.become_there}: become on a hypervisor needs Python 3 there, 3.6 or later. There is "
                f"none; {PYTHON} of {self.name} (now {python or 'not set'}) can name it."
            )
        raise ConnectError(f"{self._login.become_there}: no relay could be started: {words}")
