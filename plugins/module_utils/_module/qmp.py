# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's monitor (QMP): its commands, and the events that confirm a shutdown or a suspend.

A QMP socket serves one client, like an agent's. QEMU greets the client that it serves, and nothing is sent before that
greeting: QEMU runs the commands of a waiting client even after that client has given up.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any, Collection, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import FORMS, parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import open_channel
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    ChannelBusyError,
    ConnectError,
    OutcomeUnknownError,
    ProtocolError,
    QmpCommandError,
    QmpError,
    QmpLostError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_peer import other_client

__all__ = ("Qmp",)

SECONDS = 10.0
"""Seconds that QEMU may take for its greeting, the wait for the socket included, and for each reply."""

# The reply to query-commands has 20 KiB. That to query-block has about 600 bytes for each image in each disk's chain.
_MAX_REPLY = 1024 * 1024

# The events used here. Others are dropped, so that a guest that causes events cannot fill the memory.
_EVENTS = ("SHUTDOWN", "RESET", "SUSPEND", "SUSPEND_DISK", "WAKEUP")
_MAX_EVENTS = 100

_ONE_SEAT = (
    "QMP serves one client per socket: give this QEMU a second one (-chardev socket,… with -mon mode=control), or end "
    "the other client."
)


class Qmp:
    """QEMU's monitor at ``address``, connected. A context manager; events are kept from its creation on.

    ``seconds`` limits the greeting and each reply.

    :raise AddressError: if the address has none of the known forms.
    :raise QmpError: if QMP cannot be reached there.
    """

    def __init__(self, address: str, seconds: float = SECONDS) -> None:
        try:
            where = parse_address(address)
        except AddressError:
            raise AddressError(f"qmp_address: {address!r} is no address. It should be {FORMS}.") from None
        self._name = str(where)
        self._path = where.name
        self._seconds = seconds
        self._parser = protocol.ReplyParser(_MAX_REPLY)
        self._received: deque[bytes] = deque()
        self._events: deque[str] = deque(maxlen=_MAX_EVENTS)
        self._ids = itertools.count(1)
        deadline = Deadline(seconds)
        try:
            self._channel = open_channel(where, deadline)
        except ConnectError as exc:
            hint = _ONE_SEAT if isinstance(exc, ChannelBusyError) else ""
            raise self.told(QmpError(exc.message, hint=hint)) from exc
        try:
            self._greeting(deadline)
            self.execute("qmp_capabilities")
        except BaseException:  # KeyboardInterrupt included: the lock must not stay taken
            self.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, and so leave the socket to other clients."""
        self._channel.close()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, seconds: float | None = None) -> Any:
        """Run the QMP command ``command`` and return its return value. ``seconds`` replaces the usual limit.

        :raise QmpCommandError: if QEMU replies with an error.
        :raise QmpLostError: if it does not reply.
        """
        deadline = Deadline(self._seconds if seconds is None else seconds)
        request_id = f"qga-{next(self._ids)}"
        try:
            self._channel.send(protocol.encode_request(command, arguments, request_id), deadline)
        except (ConnectError, OutcomeUnknownError) as exc:
            raise self.told(QmpLostError(exc.message, command=command, closed=not deadline.expired)) from exc
        while True:
            message = self._next(deadline, command)
            if message is None:
                raise self.told(QmpLostError(f"no reply within {deadline.seconds:g} s.", command=command))
            # A message without this id is an event, or the reply to an abandoned command.
            if message.get("id") == request_id:
                return self._value(message, command)

    def status(self) -> str:
        """Return the status from query-status: C(running), C(suspended), C(shutdown), …"""
        return str(self.member(self.execute("query-status"), "status", str, "query-status"))

    def why_not_wake(self) -> str:
        """Return why this QEMU cannot wake a guest that suspends to RAM; empty if it can."""
        listed = self.checked(self.execute("query-commands"), list, "query-commands")
        commands = {self.member(entry, "name", str, "query-commands") for entry in listed}
        if "system_wakeup" not in commands:
            return "it has no command system_wakeup"
        # From QEMU 4.0 on; older versions do not report it.
        if "query-current-machine" in commands:
            machine = self.checked(self.execute("query-current-machine"), dict, "query-current-machine")
            if machine.get("wakeup-suspend-support") is False:
                return "its query-current-machine says that this machine does not support wakeup-suspend"
        return ""

    def wait(self, events: Collection[str], deadline: Deadline) -> str:
        """Return the name of the first of ``events`` that came since the last wait; empty at the deadline.

        Earlier events that are not among ``events`` are dropped.

        :raise QmpLostError: if QEMU closes the connection.
        """
        while True:
            while self._events:
                event = self._events.popleft()
                if event in events:
                    return event
            if self._next(deadline, None) is None:
                return ""

    def _greeting(self, deadline: Deadline) -> None:
        try:
            message = self._next(deadline, None)
        except QmpLostError as exc:
            raise self.told(QmpError(f"no greeting: {exc.message}", hint="Is this a QMP socket?")) from exc
        if message is None:
            taken, who = other_client(self._path, self._channel.inode) if self._path else (False, "")
            if taken:
                text = f"another client ({who or 'unknown'}) has it and did not leave it within {deadline.seconds:g} s."
                raise self.told(QmpError(text, hint=_ONE_SEAT))
            hint = f"Is it a QMP socket, and does nobody else use it? {_ONE_SEAT}"
            raise self.told(QmpError(f"no greeting within {deadline.seconds:g} s.", hint=hint))
        if not isinstance(message.get("QMP"), dict):
            raise self.told(QmpError("what greets there is not QMP."))

    def _next(self, deadline: Deadline, command: str | None) -> dict[str, Any] | None:
        """Return the next message, and keep it if it is an event; None at the deadline."""
        while not self._received:
            try:
                data = self._channel.recv(deadline)
                self._received.extend(self._parser.feed(data))
            except OutcomeUnknownError as exc:
                if deadline.expired:
                    return None
                raise self.told(QmpLostError("QEMU closed the connection.", command=command, closed=True)) from exc
            except ProtocolError as exc:
                raise self.told(QmpLostError(exc.message, command=command)) from exc
        if deadline.expired:  # what has arrived at once may be more lines than can be read by then
            return None
        try:
            message = protocol.decode_reply(self._received.popleft())
        except ProtocolError as exc:
            raise self.told(QmpLostError(exc.message, command=command)) from exc
        if message.get("event") in _EVENTS:
            self._events.append(message["event"])
        return message

    def _value(self, message: Mapping[str, Any], command: str) -> Any:
        if "error" in message:
            error = self.checked(message["error"], dict, command)
            raise self.told(QmpCommandError(str(error.get("desc", "")), command=command))
        if "return" not in message:
            raise self.told(QmpLostError("the reply has neither a return value nor an error.", command=command))
        return message["return"]

    def member(self, value: Any, name: str, kind: type, command: str) -> Any:
        """Return the member ``name`` of ``value``, from the reply to ``command``; see ``checked``."""
        return self.checked(self.checked(value, dict, command).get(name), kind, command, name)

    def checked(self, value: Any, kind: type, command: str, what: str = "the reply") -> Any:
        """Return ``value``, from the reply to ``command``, if it is of this type.

        :raise QmpLostError: otherwise.
        """
        try:
            return protocol.expect(value, kind, what)
        except ProtocolError as exc:
            raise self.told(QmpLostError(exc.message, command=command)) from exc

    def told(self, exc: QmpError) -> QmpError:
        """Return ``exc`` with the monitor's name."""
        exc.address = self._name
        return exc
