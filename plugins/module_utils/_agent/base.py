# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agent: run the guest agent's commands, one at a time, and report precisely when one fails.

Its subclasses carry the requests: ``SocketAgent`` and ``LibvirtAgent``.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping, Sequence, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent import errors, protocol, schema
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    CommandUnavailable,
    ConnectError,
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.pace import Pace
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import printable
from ansible_collections.qemu.guest.plugins.module_utils._agent.unavailable import (
    AgentInfo,
    Situation,
    look_around,
    refusal,
)

__all__ = ("DEFAULT_TIMEOUT", "SECONDS_TO_FAIL", "Agent", "Log", "Patience", "value_of")

DEFAULT_TIMEOUT = 20.0
"""Seconds that one agent command may take, connecting and waiting for the channel included."""

SECONDS_TO_FAIL = 5.0
"""Seconds to wait for an error of a command that answers only when it fails, unless the caller sets a timeout. A bad
mode is refused at once; a shutdown helper that cannot be run is reported when it has ended."""

_DISABLED = r"(The c|C)ommand \S+ has been disabled\b"

Log = Callable[[str], None]
E = TypeVar("E", bound=QgaError)


def _tell_nobody(text: str) -> None:
    """Drop a log line."""


class Patience:
    """How many seconds a frozen guest is waited for during an operation, and how the user is told of it.

    ``outages``: since when the agent has been away, by kind of outage; it has answered nothing since. All this is here
    for _guest/patience.py, which knows the agent and not the task's options.
    """

    def __init__(self, frozen_timeout: float = 300.0, warn: Log = _tell_nobody) -> None:
        self.frozen_timeout = frozen_timeout
        self.warn = warn
        self.outages: dict[str, float] = {}


class Agent(ABC):
    """A guest's agent. Not thread-safe: an agent runs one command at a time.

    ``timeout`` is the limit of one command in seconds; ``log`` takes a line per command, without its arguments. A
    command that answers only when it fails has ``seconds_to_fail``.
    """

    largest_content = 48 * 1000 * 1000
    """Bytes of content that one request can carry. The agent's parser takes 64 MiB, with base64 and JSON around it."""

    largest_output = 16 << 20
    """Bytes of each output stream of a program that one reply can carry: all that the agent keeps."""

    def __init__(
        self,
        name: str,
        timeout: float = DEFAULT_TIMEOUT,
        log: Log | None = None,
        seconds_to_fail: float = SECONDS_TO_FAIL,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.patience = Patience()
        self.pace = Pace()
        self.changed_by = ""
        """The last command that changed the guest; errors of what follows tell it. Commands for files and programs are
        not noted here: what they change, only their callers know, and note it."""
        self._seconds_to_fail = seconds_to_fail
        self._log = log
        self._info: AgentInfo | None = None
        self.last_command = ""
        """The last command that was to be run: an error of a value in its reply tells it."""
        self.has_answered = False
        """Whether the agent has replied to a command."""

    @abstractmethod
    def _request(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        """Send one command and return the agent's reply object.

        :raise ConnectError: nothing was sent.
        :raise OutcomeUnknownError: it was sent, and no reply came.
        :raise ProtocolError: the data received is not a reply.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the channel. The next command opens it again."""

    def step_aside(self) -> None:
        """Leave a channel that serves one client to other clients until the next command."""
        return

    @property
    def identity(self) -> str:
        """A name that identifies the agent on this machine, whichever of its addresses is used."""
        return self.name

    def again(self) -> Agent:
        """Return another Agent for the same guest, which shares nothing with this one and is not connected yet.

        It is for a process that goes on when this one has ended and its files may be gone: it imports and looks up
        nothing later.

        :raise OperationError: if this channel ends with this process.
        """
        raise OperationError(f"the agent at {self.name} cannot be reached when this task has ended.")

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Run the schema command ``command`` and return its return value.

        The value is of the type that the schema names; None for commands that answer only when they fail (shutdown,
        suspend) and did not. A read-only command is repeated once when the channel broke before its reply came. The
        default ``timeout`` in seconds is the agent's, or schema.py's minimum for the command if that is more. It covers
        the wait for the channel, the repetition, and the questions to the agent about a refusal.

        :raise QgaError: one of the tree in errors.py.
        """
        try:
            self.last_command = command
            deadline = _deadline(self._default_timeout(command) if timeout is None else timeout)
            try:
                return self._executed(command, arguments, deadline)
            except CommandUnavailable as exc:
                situation = self._situation(deadline)
                together = _missing_together(command, arguments, situation)
                raise refusal(together, exc.message, situation) from None
        except QgaError as exc:
            raise self._completed(exc, command) from None

    def _default_timeout(self, command: str) -> float:
        known = schema.command(command)
        return max(self.timeout, known.least_seconds) if known.answers else min(self.timeout, self._seconds_to_fail)

    def _executed(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> Any:
        """Do as ``execute``, but tell a refusal in the agent's own words, which are alike for all reasons."""
        started = time.monotonic()
        try:
            reply = self._request_with_retry(command, arguments, deadline)
            self.has_answered = True
            self.patience.outages.clear()
            value = value_of(command, reply)
            if schema.is_change(command):
                self.changed_by = command
        except OutcomeUnknownError:
            if schema.command(command).answers:
                raise
            value = None
        if self._log:
            self._log(f"{command} took {(time.monotonic() - started) * 1000:.1f} ms")
        return value

    def _request_with_retry(
        self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline
    ) -> dict[str, Any]:
        try:
            return self._request(command, arguments, deadline)
        except OutcomeUnknownError as exc:
            if not schema.command(command).read_only or deadline.expired:
                raise
            first = exc
        try:
            return self._request(command, arguments, deadline)
        except ConnectError as exc:  # the second time only: it was sent before
            raise OutcomeUnknownError(f"{first.message}, and then: {exc.message}", hint=exc.hint) from None

    def _completed(self, exc: E, command: str) -> E:
        """Return an error that names its command and its agent, and tells what to do."""
        exc.command = exc.command or command
        if isinstance(exc, ConnectError) and not self.has_answered:
            exc.at_first = True
        exc.address = exc.address or self.name
        if isinstance(exc, OutcomeUnknownError) and not exc.hint:
            exc.hint = "It may still run when the agent is back: look at the guest before you repeat it."
        return exc

    @contextmanager
    def named(self, path: str = "") -> Iterator[None]:
        """Have all errors name this agent, and ``path``: those of a value in a reply or of a program's end too.

        They tell their causes: ansible-core would add those, and repeat the message.
        """
        try:
            yield
        except QgaError as exc:
            if not isinstance(exc, AddressError):  # that is about another address
                exc.address = exc.address or self.name
            if isinstance(exc, ProtocolError):  # of a value in the last reply
                exc.command = exc.command or self.last_command
            if printable(path) not in exc.without_address:
                exc.hint = f"{exc.hint} The file is {path}.".lstrip()
            raise exc from None

    # Capabilities

    @property
    def info(self) -> AgentInfo:
        """The reply to guest-info, asked once, and again as long as the guest is frozen."""
        return self._info or self.refresh_info()

    def refresh_info(self) -> AgentInfo:
        """Ask guest-info again and return its reply."""
        try:
            return self._kept(self.execute("guest-info"))
        except ProtocolError as exc:
            raise self._completed(exc, "guest-info") from None

    def _kept(self, reply: dict[str, Any]) -> AgentInfo:
        """Return the reply to guest-info; keep it unless it is that of a frozen guest, which shows few commands."""
        info = AgentInfo.of(reply)
        if not info.looks_frozen:
            self._info = info
        return info

    def supports(self, *commands: str) -> bool:
        """Return whether the agent has all of ``commands`` and has them enabled.

        :raise CommandUnavailable: if that is unknown, because the guest is frozen.
        """
        info = self.info
        missing = info.missing(commands)
        if missing and info.looks_frozen:
            refused = self._refusal(missing)
            if refused.reason == "frozen":
                raise refused
        return not missing

    def require(self, *commands: str) -> None:
        """Check, before an operation begins, that all ``commands`` can be run.

        :raise CommandUnavailable: if some cannot. It names all of them, with the reasons and what to do.
        """
        missing = self._missing(commands)
        if missing:
            raise self._refusal(missing)

    def refusals(self, *commands: str) -> dict[str, CommandUnavailable]:
        """Return what ``require`` raises for each of ``commands`` by itself; those that can be run are not in it."""
        missing = self._missing(commands)
        situation = self._situation(Deadline(self.timeout)) if missing else None
        return {name: self._completed(refusal([name], "", situation), name) for name in missing}

    def _missing(self, commands: Sequence[str]) -> list[str]:
        return self.info.missing(commands) if commands else []  # the agent is not asked for nothing

    def _refusal(self, commands: Sequence[str]) -> CommandUnavailable:
        """Return the error for commands that guest-info does not list as enabled."""
        return self._completed(refusal(commands, "", self._situation(Deadline(self.timeout))), commands[0])

    def _situation(self, deadline: Deadline) -> Situation | None:
        """Return what explains refusals; None if the agent does not tell."""

        def ask(command: str) -> Any:
            # Without time left, _deadline raises, and nothing is asked.
            return self._executed(command, None, _deadline(min(self.timeout, deadline.left())))

        return look_around(self._info, lambda: self._kept(ask("guest-info")), ask)


def _missing_together(command: str, arguments: Mapping[str, Any] | None, situation: Situation | None) -> Sequence[str]:
    """Return a command that was refused, and those that would be refused next: they are to be allowed at once."""
    if situation is None or situation[0].commands.get(command):
        return [command]
    return [command, *situation[0].missing(schema.companions(command, arguments))]


def value_of(command: str, reply: Mapping[str, Any]) -> Any:
    """Return the value in the reply to ``command``.

    :raise CommandError: if it is an error.
    :raise ProtocolError: if it is not what the schema says.
    """
    if "error" in reply:
        error = protocol.expect(reply["error"], dict, "the error")
        desc = protocol.expect(error.get("desc", ""), str, "the error's desc").strip()
        # Agents before 4.0 report disabled commands with the class GenericError.
        if error.get("class") == "CommandNotFound" or re.match(_DISABLED, desc):
            raise CommandUnavailable(desc, command=command)
        raise errors.command_error(command, str(error.get("class", "")), desc)
    if "return" not in reply:
        raise ProtocolError("the reply has neither a return value nor an error")
    return protocol.expect(reply["return"], schema.command(command).returns, "the return value")


def _deadline(seconds: float) -> Deadline:
    """Return the deadline of a command with a timeout of ``seconds``.

    :raise OperationError: if that is not above 0.
    """
    if not seconds > 0:
        error = OperationError(f"it was given {seconds:g} seconds. A timeout is more than 0.")
        error.executed = "no"
        raise error
    return Deadline(seconds)
