# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SocketAgent: the agent's protocol on a byte channel, kept in sync.

It sends nothing but a sync until the agent has answered that sync, and syncs again after every timeout: QEMU keeps data
that is written while no agent listens and delivers it later, so a shutdown that seemed to fail today could run
tomorrow. If a request is not answered for long, only a sync is sent after it.
"""

from __future__ import annotations

import io
import itertools
import random
import time
from contextlib import suppress
from typing import Any, Callable, Iterator, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol, schema
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import DEFAULT_TIMEOUT, SECONDS_TO_FAIL, Agent, Log
from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import Channel, Connect, SyncState, open_channel
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    ChannelBusyError,
    ConnectError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import join
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_peer import other_client

__all__ = (
    "Share",
    "SocketAgent",
)

# The guest may have rebooted unnoticed while the channel was idle; a sync takes a few milliseconds and shows it.
_IDLE_SECONDS = 0.5

# Seconds of silence before the first probe, which shows whether a reply can still come; doubled after each probe.
_SILENT_SECONDS = 3.0

# Bytes per second of the slowest channel, at least: half of what a serial port carries (pace.py). A reply at that rate
# may take this many times the timeout, and no longer: the guest may mean to keep whoever reads.
_SLOWEST_RATE = 3500
_MOST_TIMEOUTS = 10

_BROKEN_OFF = "its reply broke off (the agent was restarted, or the guest went back to a snapshot)"

Share = Callable[[Address, Channel], Channel]
"""Offers the channel to this user's other processes on this machine, and returns it as a shared channel."""


class _Sync:
    """A sync, as ``data``: the first words to an agent, and the probe of one that is silent: did it lose the request?

    Agents answer in order: once the agent answers the sync, no reply to an earlier request will come.
    ``broke_silence``: it was sent into silence, so that an answer may still be to come.
    """

    def __init__(self, request_id: str, sync_id: int = 0) -> None:
        self.request_id = request_id
        self.data = protocol.SENTINEL + protocol.encode_request("guest-sync-delimited", {"id": sync_id}, request_id)
        self.broke_silence = False


class SocketAgent(Agent):
    """An agent at the other end of a byte channel.

    A channel that was idle for ``idle_seconds`` is synced before a request. After ``silent_seconds`` without a reply, a
    probe shows whether one can still come.
    """

    def __init__(
        self,
        address: Address,
        timeout: float = DEFAULT_TIMEOUT,
        log: Log | None = None,
        share: Share | None = None,
        connect: Connect | None = None,
        *,
        idle_seconds: float = _IDLE_SECONDS,
        silent_seconds: float = _SILENT_SECONDS,
        seconds_to_fail: float = SECONDS_TO_FAIL,
    ) -> None:
        super().__init__(str(address), timeout, log, seconds_to_fail)
        self._connect = connect
        self._idle_seconds = idle_seconds
        self._silent_seconds = silent_seconds
        self._address = address
        self._channel: Channel | None = None
        self._parser = protocol.ReplyParser()
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
        # To connect and sync takes `timeout` at most, also for a command that may take longer.
        channel, state = self._acquired(deadline.at_most(self.timeout))
        state_after = state  # the same object as long as nothing was sent
        try:
            request_id = self._next_id(state)
            data = protocol.encode_request(command, arguments, request_id)
            # Until the reply is here, any interruption (a signal included) leaves the channel out of sync.
            state_after = SyncState(takes_id=state.takes_id)
            self._parser.limit = schema.longest_reply(command, arguments)
            started = time.monotonic()
            channel.send(data, deadline)
            # No probe if the agent does not echo ids (its replies are ambiguous) or the command has no answer.
            probes = state.echoes_id and schema.command(command).answers
            probe = _Sync(self._next_id(state)) if probes else None
            lines = self._lines(channel, deadline, probe, once=schema.command(command).once)
            reply, size = self._reply(lines, request_id, state, probe)
            if not (probe and probe.broke_silence):  # else the probe's answer is still to come
                state_after = state._replace(since=time.monotonic())
            self.pace.note(len(data) + size, time.monotonic() - started)
        except QgaError as exc:
            # A slow agent may answer later; after other errors the channel is broken, or its content unknown.
            if state_after is not state and not (isinstance(exc, OutcomeUnknownError) and deadline.expired):
                self.close()
            raise
        finally:
            channel.release(state_after)
        return reply

    def _reply(
        self, lines: Iterator[bytes], request_id: str, state: SyncState, probe: _Sync | None
    ) -> tuple[dict[str, Any], int]:
        """Return the reply and its size in bytes."""
        for line in lines:
            try:
                reply = protocol.decode_reply(line)
            except ProtocolError:
                if probe and probe.broke_silence:  # half a reply, silence, and what was to be the answer to the probe
                    raise OutcomeUnknownError(_BROKEN_OFF) from None
                raise
            if reply.get("id") == request_id:
                return reply, len(line)
            if probe and reply.get("id") == probe.request_id:
                raise OutcomeUnknownError(
                    "the agent answers again, but not to this (it was restarted, or the guest went back to a snapshot)"
                )
            if "id" in reply or (probe and probe.broke_silence and _is_about_sentinel(reply)):
                continue  # a reply to another client, or to an abandoned request
            if state.echoes_id:
                raise _unparsed(reply)
            return reply, len(line)
        raise OutcomeUnknownError("no reply")  # not reached: _lines ends by an exception

    def _lines(self, channel: Channel, deadline: Deadline, probe: _Sync | None, *, once: bool) -> Iterator[bytes]:
        """Yield lines until one is late: the expected reply may be among many others.

        One that comes ``once`` is not late while it arrives at the pace of a serial port, for ten timeouts at most.
        """
        started, size = time.monotonic(), 0
        while True:
            if probe:
                self._break_silence(channel, deadline, probe)
            data = channel.recv(deadline)
            started, size = started if size else time.monotonic(), size + len(data)
            arriving = time.monotonic() - started
            if once and arriving * _SLOWEST_RATE <= size:
                deadline.leave(min(self.timeout, _MOST_TIMEOUTS * self.timeout - arriving))
            for line in self._parser.feed(data):
                yield line
                if deadline.expired:
                    raise OutcomeUnknownError(f"no reply within {deadline.seconds:g} s")

    def _acquired(self, deadline: Deadline) -> tuple[Channel, SyncState]:
        """Return the channel, open, acquired and in sync."""
        while True:
            fresh = self._channel is None
            channel = self._channel = self._channel or open_channel(
                self._address, deadline, lambda: join(self._address, deadline), self._connect
            )
            try:
                state = self._sync_if_idle(channel, deadline)
                break
            except ChannelBusyError:
                self.close()
                raise
            except (ConnectError, OutcomeUnknownError) as exc:
                # The mux may have given us a channel whose QEMU or agent has gone.
                if deadline.expired or (fresh and not channel.shared):
                    raise self._close_and_explain(exc, channel, deadline) from None
                self.close()  # QEMU, a listening agent or the mux was restarted: open a new channel
        share, self._share = self._share, None  # only once: after a failure it would fail again
        if share and not channel.shared:
            channel = self._channel = share(self._address, channel)
        return channel, state

    def _sync_if_idle(self, channel: Channel, deadline: Deadline) -> SyncState:
        state = channel.acquire(deadline)
        if state.since and time.monotonic() - state.since < self._idle_seconds:
            return state
        return self._sync(channel, state, deadline)

    def _sync(self, channel: Channel, state: SyncState, deadline: Deadline) -> SyncState:
        """Bring client and agent into sync: guest-sync-delimited, or guest-sync where the agent lacks it.

        An agent that echoes ids is in sync as soon as it echoes the sync's, even in an error that the command is
        disabled. An agent that refuses ids (before 4.0) gets none from then on.
        """
        self._parser.reset()
        self._parser.limit = schema.longest_reply("guest-sync")
        sync_id = random.getrandbits(62)
        request_id = self._next_id(state)
        probe = _Sync(request_id, sync_id)
        channel.send(probe.data, deadline)
        fallen_back = False
        for reply in self._replies_amid_noise(channel, deadline, probe):
            if request_id and reply.get("id") == request_id:
                state = state._replace(echoes_id=True)
                break
            if reply.get("return") == sync_id and not isinstance(reply["return"], bool):
                state = state._replace(echoes_id="id" in reply)
                break
            if state.takes_id and _refuses_id(reply):
                state, request_id = state._replace(takes_id=False), ""
                probe.data = protocol.encode_request("guest-sync-delimited", {"id": sync_id}, "")
                channel.send(probe.data, deadline)
            # Only once: the error may be left from a former client, and each sync has its own reply.
            if not fallen_back and _lacks_delimited(reply):
                fallen_back = True
                probe.data = protocol.encode_request("guest-sync", {"id": sync_id}, request_id)
                channel.send(probe.data, deadline)
        if probe.broke_silence:  # more than one answer is still to come
            return self._sync(channel, state, deadline)
        return state._replace(since=time.monotonic())

    def _replies_amid_noise(self, channel: Channel, deadline: Deadline, probe: _Sync) -> Iterator[dict[str, Any]]:
        while True:
            self._break_silence(channel, deadline, probe)
            # Line by line, so that the end of another client's giant reply does not hide the lines after it.
            for piece in io.BytesIO(channel.recv(deadline)):
                # Such a giant line, or the second half of a line whose first half another client has read.
                with suppress(ProtocolError):
                    for line in self._parser.feed(piece):
                        yield protocol.decode_reply(line)
                if deadline.expired:
                    raise OutcomeUnknownError(f"no reply within {deadline.seconds:g} s")

    def _break_silence(self, channel: Channel, deadline: Deadline, probe: _Sync) -> None:
        """Wait until there is data to read, and repeat the probe now and then, because it may get lost too.

        :raise OutcomeUnknownError: if it cannot be sent.
        """
        pause = self._silent_seconds
        while channel.is_silent(Deadline(min(pause, deadline.left()))) and not deadline.expired:
            try:
                channel.send(probe.data, deadline)
            except ConnectError as exc:  # the request itself has been sent
                raise OutcomeUnknownError(exc.message) from None
            probe.broke_silence = True
            pause *= 2

    def _close_and_explain(self, exc: QgaError, channel: Channel, deadline: Deadline) -> ConnectError:
        """Close the channel and return why a sync was not answered: a ConnectError, because a sync changes nothing."""
        taken, who = other_client(self._address.name, channel.inode) if self._address.kind == "unix" else (False, "")
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

    def _next_id(self, state: SyncState) -> str:
        return f"{self._id_prefix}-{next(self._ids)}" if state.takes_id else ""


def _is_about_sentinel(reply: Mapping[str, Any]) -> bool:
    """Return whether this is the agent's error for the byte 0xFF, which no request contains."""
    error = reply.get("error")
    return isinstance(error, dict) and "\ufffd" in str(error.get("desc"))


def _unparsed(reply: Mapping[str, Any]) -> QgaError:
    """Return the error for a reply without an id from an agent that echoes ids."""
    error = reply.get("error")
    if not isinstance(error, dict):
        return ProtocolError("the agent sent a reply that is to no request of ours")
    desc = error.get("desc")
    if "limit exceeded" in str(desc):
        too_large = ProtocolError(f"the agent could not parse the request: {desc}")
        too_large.executed, too_large.fate = "no", "was not run"
        return too_large
    # All our requests are well-formed. A parse error means that the agent got only the end of one, because the agent
    # before the restart had read its beginning.
    return OutcomeUnknownError(
        f"the agent was restarted while the request was under way (it says: {desc})",
        hint="What the guest was sent may be there in part: look at it before you repeat it.",
    )


def _refuses_id(reply: Mapping[str, Any]) -> bool:
    error = reply.get("error")
    return isinstance(error, dict) and "member 'id' is unexpected" in str(error.get("desc"))


def _lacks_delimited(reply: Mapping[str, Any]) -> bool:
    error = reply.get("error")
    return isinstance(error, dict) and "guest-sync-delimited" in str(error.get("desc"))
