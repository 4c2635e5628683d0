# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agent: run the guest agent's commands, one at a time, and say what is known when that fails.

``Agent`` is what all else builds on; where its requests travel is the business of its subclasses. ``SocketAgent``
speaks the protocol on a byte channel. It sends nothing but a sync until the agent has answered that sync, and syncs
again after every timeout: QEMU keeps what is written while no agent listens and delivers it later, so a shutdown that
seemed to fail today could run tomorrow. A sync is all that is sent behind a request, where that has no answer for long.
"""

from __future__ import annotations

import io
import itertools
import random
import re
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, Callable, Iterator, Mapping, Sequence

from ansible_collections.qemu.guest.plugins.module_utils import _commands, _errors, _wire
from ansible_collections.qemu.guest.plugins.module_utils._capabilities import AgentInfo, refusal
from ansible_collections.qemu.guest.plugins.module_utils._channel import (
    Address,
    Channel,
    Connect,
    Deadline,
    Step,
    open_channel,
    parse_address,
    seat_holder,
)
from ansible_collections.qemu.guest.plugins.module_utils._errors import (
    AgentSilentError,
    ChannelBusyError,
    CommandError,
    CommandUnavailable,
    ConnectError,
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._pace import Pace
from ansible_collections.qemu.guest.plugins.module_utils._shared import join

__all__ = ("DEFAULT_FROZEN_TIMEOUT", "DEFAULT_TIMEOUT", "Agent", "AgentInfo", "Share", "SocketAgent", "open_agent")

DEFAULT_TIMEOUT = 20.0
"""Seconds that one agent command may take, connecting and waiting for the seat included."""

DEFAULT_FROZEN_TIMEOUT = 300.0
"""Seconds for which a frozen guest is waited for in the middle of something; see _patience.py."""

# Commands that answer only when they fail are given this long to fail, unless the caller knows better (a bad mode is
# refused at once; a shutdown helper that cannot be run is reported when it has ended).
_SECONDS_TO_FAIL = 5.0

# The guest may have rebooted unnoticed while the channel was idle; a sync takes a few milliseconds and shows it.
_IDLE_SECONDS = 0.5

# After so long a silence it is found out whether there is an answer still to come: first, and then twice as long.
_SILENT_SECONDS = 3.0

_DISABLED = r"(The c|C)ommand \S+ has been disabled\b"

Log = Callable[[str], None]
Share = Callable[[Address, Channel], Channel]
"""Offers the channel to others of this user on this machine, and returns it as one that is shared with them."""


def _tell_nobody(text: str) -> None:
    """Take a line of log that nobody wants."""


class Agent(ABC):
    """A guest's agent. Not thread-safe: an agent runs one command at a time.

    ``timeout`` is the limit of one command in seconds; ``log`` takes a line per command, without its arguments.
    ``frozen_timeout`` is how long, in seconds, a frozen guest is waited for in the middle of something, and ``warn``
    tells the user about that.
    """

    largest_payload = 48 * 1000 * 1000
    """Bytes that one request can carry. The agent's parser takes 64 MiB, in base64 and with what is around it."""

    shell: Callable[[bytes, bytes], Callable[[], Any] | None] | None = None
    """Starts a shell command with an input, as run_shell() of _shell.py does, and returns what waits for its end: that
    returns its ExecResult, or None if it was not run. It returns None if it started nothing. Whoever has a shell in the
    guest that is ready for work (the connection plugin) puts it here."""

    def __init__(self, name: str, timeout: float = DEFAULT_TIMEOUT, log: Log | None = None) -> None:
        self.name = name
        self.timeout = timeout
        self.frozen_timeout = DEFAULT_FROZEN_TIMEOUT
        self.warn: Log = log or _tell_nobody
        self.pace = Pace()
        self._log = log
        self._info: AgentInfo | None = None
        self._has_answered = False
        # How long it may still be asked why it has refused a command: as long as that command might have taken.
        self._explaining: Deadline | None = None

    @abstractmethod
    def _request(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        """Send one command and return the agent's reply object.

        :raise ConnectError: nothing was sent.
        :raise OutcomeUnknownError: it was sent, and no reply came.
        :raise ProtocolError: what came is no reply.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the channel up. The next command opens it again."""

    def step_aside(self) -> None:
        """Let other clients have the channel until the next command, where it has a single seat."""
        return

    @property
    def largest_input(self) -> int:
        """How many bytes of standard input a program may be given."""
        return self.largest_payload

    @property
    def quick_input(self) -> int:
        """How many bytes of it arrive well within the timeout; more had better go by way of a file, in pieces.

        While nothing is known of that, it goes at once, and has longer: see start() of _exec.py.
        """
        if not self.pace.rate:
            return self.largest_input
        return self.pace.carries(self.timeout / 2, self.largest_input)

    @property
    def pipes_input(self) -> bool:
        """Whether a program's standard input is a pipe, which the agent fills while the program reads it."""
        return True

    @property
    def passes_long_replies(self) -> bool:
        """Whether all that the agent may keep of a program's output can be had in one reply."""
        return True

    @property
    def captures_all(self) -> bool:
        """Whether guest-exec keeps all output of a program, however long."""
        return False

    def process_id(self, pid: int) -> int:
        """Return the process number in the guest of the program that guest-exec called ``pid``; 0 if nobody tells."""
        return pid

    @property
    def identity(self) -> str:
        """A name by which this machine knows the same agent again, where it goes by several."""
        return self.name

    def again(self) -> Agent:
        """Return another Agent for the same guest, which shares nothing with this one and is not connected yet.

        It is for a process that outlives this one. Nothing is imported or looked up later for it to work.

        :raise OperationError: if this channel is gone when this process is.
        """
        raise OperationError(f"the agent at {self.name} cannot be reached when this task has ended.")

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Run the schema command ``command`` and return its return value.

        The value is of the type that the schema names; None for commands that answer only when they fail (shutdown,
        suspend) and did not. A command that only reads is repeated once when the channel broke before its reply came.
        Without a ``timeout`` in seconds it has the agent's, or the least that _commands.py knows for it. That limits
        all that the command causes: the wait for the channel, the repetition, and what the agent is asked about a
        refusal.

        :raise QgaError: one of the tree in _errors.py.
        """
        known = _commands.command(command)
        seconds = self.patience(command) if timeout is None else timeout
        started = time.monotonic()
        try:
            deadline = _deadline(seconds)
            reply = self._request_reading_twice(command, arguments, deadline)
            self._has_answered = True
            value = self._value(command, reply, deadline)
        except OutcomeUnknownError as exc:
            if known.answers:
                raise self._told(exc, command) from None
            value = None
        except QgaError as exc:
            raise self._told(exc, command) from None
        if self._log:
            self._log(f"{command} took {(time.monotonic() - started) * 1000:.1f} ms")
        return value

    def patience(self, command: str) -> float:
        """Return how many seconds ``command`` has, where nobody says."""
        known = _commands.command(command)
        seconds = max(self.timeout, known.least_seconds) if known.answers else min(self.timeout, _SECONDS_TO_FAIL)
        return min(seconds, self._explaining.left()) if self._explaining else seconds

    def _request_reading_twice(
        self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline
    ) -> dict[str, Any]:
        try:
            return self._request(command, arguments, deadline)
        except OutcomeUnknownError:
            if not _commands.command(command).read_only or deadline.expired:
                raise
            return self._request(command, arguments, deadline)

    def _value(self, command: str, reply: Mapping[str, Any], deadline: Deadline) -> Any:
        if "error" in reply:
            error = _wire.expect(reply["error"], dict, "the error")
            desc = _wire.expect(error.get("desc", ""), str, "the error's desc").strip()
            # Agents before 4.0 give what is disabled the class GenericError.
            if error.get("class") == "CommandNotFound" or re.match(_DISABLED, desc):
                raise self._unavailable([command], desc, deadline)
            raise _errors.command_error(command, str(error.get("class", "")), desc)
        if "return" not in reply:
            raise ProtocolError("the reply has neither a return value nor an error")
        return _wire.expect(reply["return"], _commands.command(command).returns, "the return value")

    def _told(self, exc: QgaError, command: str) -> QgaError:
        exc.command = exc.command or command
        if isinstance(exc, ConnectError) and not self._has_answered:
            exc.at_first = True
        exc.address = exc.address or self.name
        if isinstance(exc, OutcomeUnknownError) and not exc.hint:
            exc.hint = "It may still run when the agent is back: look at the guest before you repeat it."
        return exc

    # Capabilities

    @property
    def info(self) -> AgentInfo:
        """What guest-info says, asked once, and again as long as the guest is frozen."""
        return self._info or self.refresh_info()

    def refresh_info(self) -> AgentInfo:
        """Ask guest-info again."""
        value = self.execute("guest-info")
        commands = _wire.expect(value.get("supported_commands"), list, "supported_commands")
        table = {}
        for entry in commands:
            entry = _wire.expect(entry, dict, "a member of supported_commands")
            table[_wire.expect(entry.get("name"), str, "the command's name")] = entry.get("enabled") is True
        info = AgentInfo(_wire.expect(value.get("version"), str, "version"), table)
        if not info.looks_frozen:
            self._info = info
        return info

    def supports(self, *commands: str) -> bool:
        """Return whether the agent has all of ``commands`` and has them enabled."""
        return all(self.info.commands.get(command, False) for command in commands)

    def require(self, *commands: str) -> None:
        """Find out before anything is done whether ``commands`` can be run.

        :raise CommandUnavailable: if some cannot. It names all of them, with the reasons and what to do.
        """
        missing = [command for command in commands if not self.supports(command)]
        if missing:
            raise self._told(self._unavailable(missing, "", Deadline(self.timeout)), missing[0])

    def _unavailable(self, commands: Sequence[str], desc: str, deadline: Deadline) -> CommandUnavailable:
        """Return the error that tells why the agent does not run ``commands``; agents word all reasons alike."""
        unexplained = CommandUnavailable(desc or "the agent does not say why", command=commands[0])
        if self._explaining:  # the agent refuses what it is asked about its refusal
            return unexplained
        self._explaining = deadline
        try:
            # In this order: a guest that is thawed meanwhile is then seen to have the command enabled.
            status = self._if_told("guest-fsfreeze-status")
            info = self.refresh_info()
            was_thawed = status == "thawed" and any(info.commands.get(command) for command in commands)
            return refusal(commands, info, self._system(), frozen=status == "frozen" or was_thawed)
        except QgaError:
            return unexplained
        finally:
            self._explaining = None

    def _system(self) -> str:
        """Return the id of the guest's operating system, as os-release has it; empty if it is not told."""
        with suppress(QgaError):  # a worse hint is no reason to hide the error that it belongs to
            return str((self._if_told("guest-get-osinfo") or {}).get("id", ""))
        return ""

    def _if_told(self, command: str) -> Any:
        """Return what ``command`` returns, which only reads; None if the agent refuses it."""
        if not self.info.commands.get(command):
            return None
        try:
            return self.execute(command)
        except CommandError:
            return None


class _Probe:
    """A sync, as ``data``, for a time when the agent says nothing: it may have lost what it was asked.

    Agents answer in order. Where this one answers the sync, nothing more comes of what was asked before.
    """

    def __init__(self, request_id: str, sync_id: int = 0) -> None:
        self.request_id = request_id
        self.data = _wire.SENTINEL + _wire.encode_request("guest-sync-delimited", {"id": sync_id}, request_id)
        self.was_sent = False


class SocketAgent(Agent):
    """An agent at the other end of a byte channel."""

    def __init__(
        self,
        address: Address,
        timeout: float = DEFAULT_TIMEOUT,
        log: Log | None = None,
        share: Share | None = None,
        connect: Connect | None = None,
    ) -> None:
        super().__init__(str(address), timeout, log)
        self._connect = connect
        self._address = address
        self._channel: Channel | None = None
        self._parser = _wire.ReplyParser()
        self._share = share
        self._ids = itertools.count(1)
        self._id_prefix = f"{random.getrandbits(64):x}"

    def close(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    def step_aside(self) -> None:
        self.close()

    @property
    def identity(self) -> str:
        return self._address.identity

    def again(self) -> Agent:
        return SocketAgent(self._address, self.timeout, connect=self._connect)

    def _request(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        channel, step = self._in_step(deadline)
        left = step
        try:
            request_id = self._next_id(step)
            data = _wire.encode_request(command, arguments, request_id)
            # Until its reply is here, whatever interrupts this (a signal included) leaves the channel out of step.
            left = Step(takes_id=step.takes_id)
            self._parser.limit = _commands.longest_reply(command, arguments)
            started = time.monotonic()
            channel.send(data, deadline)
            # One that does not echo ids leaves open what is answered, and others have no answer.
            probes = step.echoes_id and _commands.command(command).answers
            probe = _Probe(self._next_id(step)) if probes else None
            reply, size = self._reply(channel, request_id, step, deadline, probe)
            if not (probe and probe.was_sent):  # else its answer is still to come
                left = step._replace(since=time.monotonic())
            self.pace.note(len(data) + size, time.monotonic() - started)
        except QgaError as exc:
            # What is slow may answer later; else the channel is gone, or nobody knows what is in it.
            if left is not step and not (isinstance(exc, OutcomeUnknownError) and deadline.expired):
                self.close()
            raise
        finally:
            channel.give(left)
        return reply

    def _reply(
        self, channel: Channel, request_id: str, step: Step, deadline: Deadline, probe: _Probe | None
    ) -> tuple[dict[str, Any], int]:
        """Return the reply and its size in bytes."""
        for line, _flushed in self._lines(channel, deadline, probe):
            reply = _wire.decode_reply(line)
            if reply.get("id") == request_id:
                return reply, len(line)
            if probe and reply.get("id") == probe.request_id:
                raise OutcomeUnknownError(
                    "the agent answers again, but not to this (it was restarted, or the guest went back to a snapshot)"
                )
            if "id" in reply or (probe and probe.was_sent and _is_about_sentinel(reply)):
                continue  # somebody else's, or of a request given up before
            if step.echoes_id:
                raise _unparsed(reply)
            return reply, len(line)
        raise OutcomeUnknownError("no reply")  # not reached: _lines ends by an exception

    def _lines(self, channel: Channel, deadline: Deadline, probe: _Probe | None) -> Iterator[tuple[bytes, bool]]:
        """Yield lines until one is late: what was awaited may be among many that were not."""
        while True:
            if probe:
                _break_silence(channel, deadline, probe)
            for line in self._parser.feed(channel.recv(deadline)):
                yield line
                if deadline.expired:
                    raise OutcomeUnknownError(f"no reply within {deadline.seconds:g} s")

    def _in_step(self, deadline: Deadline) -> tuple[Channel, Step]:
        """Return the channel, open and ours alone, with nothing of anybody's left in it."""
        while True:
            fresh = self._channel is None
            channel = self._channel = self._channel or open_channel(
                self._address, deadline, lambda: join(self._address, deadline), self._connect
            )
            try:
                step = self._synced(channel, deadline)
                break
            except ChannelBusyError:
                self.close()
                raise
            except (ConnectError, OutcomeUnknownError) as exc:
                if deadline.expired or (fresh and not channel.shared):
                    raise self._silence(exc, channel, deadline) from None
                self.close()  # QEMU, a listening agent or who kept the channel was restarted: a new one may be had
        share, self._share = self._share, None  # once: where it does not work, it would not work the next time either
        if share and not channel.shared:
            channel = self._channel = share(self._address, channel)
        return channel, step

    def _synced(self, channel: Channel, deadline: Deadline) -> Step:
        step = channel.take(deadline)
        if step.since and time.monotonic() - step.since < _IDLE_SECONDS:
            return step
        return self._sync(channel, step, deadline)

    def _sync(self, channel: Channel, step: Step, deadline: Deadline) -> Step:
        """Bring client and agent into step: guest-sync-delimited, or guest-sync where the agent lacks it.

        An agent that echoes ids is in step as soon as it echoes the sync's, even if only to say that the command is
        disabled. One that refuses ids (before 4.0) gets none from then on.
        """
        self._parser.reset()
        self._parser.limit = _commands.longest_reply("guest-sync")
        sync_id = random.getrandbits(62)
        request_id = self._next_id(step)
        probe = _Probe(request_id, sync_id)
        channel.send(probe.data, deadline)
        fallen_back = False
        for reply in self._replies_amid_noise(channel, deadline, probe):
            if request_id and reply.get("id") == request_id:
                step = step._replace(echoes_id=True)
                break
            if reply.get("return") == sync_id and not isinstance(reply["return"], bool):
                step = step._replace(echoes_id="id" in reply)
                break
            if step.takes_id and _refuses_id(reply):
                step, request_id = step._replace(takes_id=False), ""
                probe.data = _wire.encode_request("guest-sync-delimited", {"id": sync_id}, "")
                channel.send(probe.data, deadline)
            # Once: a former client may have left the same error, and each sync has a reply.
            if not fallen_back and _lacks_delimited(reply):
                fallen_back = True
                probe.data = _wire.encode_request("guest-sync", {"id": sync_id}, request_id)
                channel.send(probe.data, deadline)
        if probe.was_sent:  # so there is more to come than the answer to one
            return self._sync(channel, step, deadline)
        return step._replace(since=time.monotonic())

    def _replies_amid_noise(self, channel: Channel, deadline: Deadline, probe: _Probe) -> Iterator[dict[str, Any]]:
        while True:
            _break_silence(channel, deadline, probe)
            # Line by line, so that the end of somebody's giant reply does not hide what comes after it.
            for piece in io.BytesIO(channel.recv(deadline)):
                # That, or the second half of a line that somebody else read the first half of.
                with suppress(ProtocolError):
                    for line, _flushed in self._parser.feed(piece):
                        yield _wire.decode_reply(line)
                if deadline.expired:
                    raise OutcomeUnknownError(f"no reply within {deadline.seconds:g} s")

    def _silence(self, exc: QgaError, channel: Channel, deadline: Deadline) -> ConnectError:
        """Close the channel and return why a sync was not answered. A sync changes nothing: nothing was sent."""
        taken, who = seat_holder(self._address.path, channel.inode) if self._address.kind == "unix" else (False, "")
        self.close()
        if not deadline.expired and self._address.kind == "ssh":
            return ConnectError(
                "the socket there cannot be reached, or was closed.",
                hint="Is the guest running there, may that user use the socket, and does its sshd allow "
                "AllowStreamLocalForwarding?",
            )
        if not deadline.expired:
            return ConnectError(f"{exc.message}.")
        if taken:
            return ChannelBusyError(
                f"another client ({who or 'unknown'}) uses the channel and did not leave it within "
                f"{deadline.seconds:g} s.",
                hint="A guest agent serves one client at a time: end the other (a backup, libvirtd, a second "
                "controller), or wait with a larger timeout.",
            )
        return AgentSilentError(
            f"no answer to a sync within {deadline.seconds:g} s.",
            hint="Is the guest booted and not paused, and does qemu-guest-agent run in it?",
        )

    def _next_id(self, step: Step) -> str:
        return f"{self._id_prefix}-{next(self._ids)}" if step.takes_id else ""


def _break_silence(channel: Channel, deadline: Deadline, probe: _Probe) -> None:
    """Wait until there is something to read, and send the probe now and then: it may get lost, too.

    :raise OutcomeUnknownError: if it cannot be sent.
    """
    pause = _SILENT_SECONDS
    while channel.is_silent(Deadline(min(pause, deadline.left()))) and not deadline.expired:
        try:
            channel.send(probe.data, deadline)
        except ConnectError as exc:  # what was asked before has been sent
            raise OutcomeUnknownError(exc.message) from None
        probe.was_sent = True
        pause *= 2


def _is_about_sentinel(reply: Mapping[str, Any]) -> bool:
    """Return whether this is what the agent says to the byte 0xFF, which no request has in it."""
    error = reply.get("error")
    return isinstance(error, dict) and "\ufffd" in str(error.get("desc"))


def _unparsed(reply: Mapping[str, Any]) -> QgaError:
    """Return what it means that the agent answers without the id of the request, which it echoes otherwise."""
    error = reply.get("error")
    if not isinstance(error, dict):
        return ProtocolError("the agent sent a reply that is to no request of ours")
    desc = error.get("desc")
    if "limit exceeded" in str(desc):
        too_large = ProtocolError(f"the agent could not parse the request: {desc}")
        too_large.executed, too_large.fate = "no", "was not run"
        return too_large
    # All requests are well-formed. What is not, to the agent, is the end of one whose beginning another has read.
    return OutcomeUnknownError(
        f"the agent was restarted while the request was under way (it says: {desc})",
        hint="What the guest was sent may be there in part: look at it before you repeat it.",
    )


def _deadline(seconds: float) -> Deadline:
    """Return the deadline of a command that has so many seconds.

    :raise OperationError: if it has none.
    """
    if not seconds > 0:
        error = OperationError(f"it was given {seconds:g} seconds. A timeout is more than 0.")
        error.executed = "no"
        raise error
    return Deadline(seconds)


def _refuses_id(reply: Mapping[str, Any]) -> bool:
    error = reply.get("error")
    return isinstance(error, dict) and "member 'id' is unexpected" in str(error.get("desc"))


def _lacks_delimited(reply: Mapping[str, Any]) -> bool:
    error = reply.get("error")
    return isinstance(error, dict) and "guest-sync-delimited" in str(error.get("desc"))


def open_agent(
    address: str | Address,
    timeout: float = DEFAULT_TIMEOUT,
    log: Log | None = None,
    libvirt_uri: str | None = None,
    share: Share | None = None,
    connect: Connect | None = None,
) -> Agent:
    """Return the Agent at ``address``. Nothing is connected before its first command.

    ``share`` is called with a channel that was opened here; libvirt's is shared anyway. ``connect``: see open_channel.

    :raise AddressError: if the address has none of the known forms, or needs a library that is missing.
    """
    if isinstance(address, str):
        address = parse_address(address)
    if address.kind == "libvirt":
        # Here, because it builds on this module, and because hardly anybody needs to load the library.
        from ansible_collections.qemu.guest.plugins.module_utils._libvirt import LibvirtAgent

        return LibvirtAgent(address, libvirt_uri, timeout, log)
    return SocketAgent(address, timeout, log, share, connect)
