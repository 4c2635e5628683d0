# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for an agent that is away for a while during an operation: restarted, paused, or in a frozen guest.

``when_thawed`` sits out only a freeze: the agent refuses a command then, so it was not run and may be sent again.
``when_back`` sits out an absence that was noticed before a command was sent. ``patiently`` sits out all outages, which
is right only for actions that may be done twice. Nothing waits with the first command of an operation: there, an error
at once serves the user better.
"""

from __future__ import annotations

import errno
import time
from typing import Callable, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    ChannelBusyError,
    CommandUnavailable,
    ConnectError,
    GuestFileError,
    HandleLostError,
    OutcomeUnknownError,
    QgaError,
)

__all__ = ("is_frozen", "lacks_room", "patiently", "when_back", "when_thawed")

T = TypeVar("T")

# Seconds to wait for a silent agent: a restart takes that long on a slow guest.
_GRACE_SECONDS = 120.0
# Seconds to wait for a socket, unless the agent's timeout is longer. A guest that was saved gets a new one; so does an
# agent that listens by itself. A guest that was shut down never does, and no more than this tells them apart.
_SOCKET_SECONDS = 10.0
_PAUSE = 0.2
# Asking a frozen guest takes three commands each time, so it is done less often.
_FROZEN_PAUSE = 1.0

_SILENT = (AgentSilentError, ChannelBusyError, HandleLostError, OutcomeUnknownError)


def is_frozen(exc: QgaError) -> bool:
    """Return whether a frozen guest is the reason for an error: nothing can be started in it then."""
    return isinstance(exc, CommandUnavailable) and exc.reason == "frozen"


class _Outages:
    """The outages during one action. Each kind has a time limit, counted from its first occurrence.

    An outage that an earlier action met, or an action within this one, has been waited for since then: all share one
    limit until the agent answers. An agent that answers, and not as it should, has the limit of each action.
    """

    def __init__(self, agent: Agent, grace: float = 0.0) -> None:
        self._agent = agent
        self._grace = grace
        self._frozen: Deadline | None = None
        self._ends: dict[str, Deadline] = {}

    def sit_out_freeze(self, exc: CommandUnavailable) -> None:
        """Release the channel and wait a moment: another client has to thaw the guest.

        :raise CommandUnavailable: ``exc``, if it is not about a frozen guest or the guest was frozen too long.
        """
        seconds = self._agent.patience.frozen_timeout
        if not is_frozen(exc) or exc.was_waited_for:
            raise exc
        if self._frozen is None:
            self._frozen = Deadline(seconds)
            if seconds > 0:
                self._agent.patience.warn(f"the guest is frozen; waiting up to {seconds:g} s until it is thawed.")
        if self._frozen.expired:
            exc.was_waited_for = True
            raise exc
        self._agent.step_aside()
        time.sleep(min(_FROZEN_PAUSE, self._frozen.left()))
        self._ends.clear()  # an agent that answers is not silent

    def sit_out(self, exc: QgaError) -> None:
        """Wait a moment.

        :raise QgaError: ``exc``, if it is no outage or has lasted too long.
        """
        if isinstance(exc, CommandUnavailable):
            self.sit_out_freeze(exc)
            return
        kind, seconds = "silent", self._grace
        if isinstance(exc, ConnectError) and not isinstance(exc, _SILENT):
            kind, seconds = "no socket", min(max(_SOCKET_SECONDS, self._agent.timeout), self._grace)
        elif not isinstance(exc, _SILENT) and not lacks_room(exc):
            raise exc
        now = time.monotonic()
        waited = now - self._agent.patience.outages.setdefault(kind, now)
        if self._ends.setdefault(kind, Deadline(seconds - waited)).expired:
            raise exc
        time.sleep(_PAUSE)


def lacks_room(exc: QgaError) -> bool:
    """Return whether /run is full, so that the agent cannot open files: that may pass."""
    return isinstance(exc, GuestFileError) and exc.errno == errno.ENOSPC


def when_thawed(agent: Agent, action: Callable[[], T]) -> T:
    """Return the result of ``action``. If a frozen guest refuses it, retry as ``agent.patience`` says.

    The action starts over, so it must be a single command or repeatable.

    :raise CommandUnavailable: if the guest is still frozen then.
    """
    outages = _Outages(agent)
    while True:
        try:
            return action()
        except CommandUnavailable as exc:
            outages.sit_out_freeze(exc)


def when_back(agent: Agent, action: Callable[[], T]) -> T:
    """Return the result of ``action``, a single command. If the agent is away, wait for it, for its timeout once more.

    That is if nothing of the command was sent, and the agent has answered another one before.

    :raise ConnectError: if the agent is still away then.
    """
    return patiently(agent, action, final=lambda exc: not _is_away(agent, exc), grace=agent.timeout)


def _is_away(agent: Agent, exc: QgaError) -> bool:
    return isinstance(exc, ConnectError) and agent.has_answered


def patiently(
    agent: Agent,
    action: Callable[[], T],
    *,
    final: Callable[[QgaError], bool] = lambda exc: False,
    grace: float = _GRACE_SECONDS,
) -> T:
    """Return the result of ``action``, which must be repeatable. Wait for an agent that is away meanwhile.

    A silent agent has ``grace`` seconds in all; for a frozen guest, ``agent.patience`` says. An error that is ``final``
    is raised at once.

    :raise QgaError: that of ``action``, if it is final, no outage, or the outage lasts longer.
    """
    outages = _Outages(agent, grace)
    while True:
        try:
            return action()
        except QgaError as exc:
            if final(exc):
                raise
            outages.sit_out(exc)
