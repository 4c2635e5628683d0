# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for an agent that is away for a while, in the middle of something: restarted, paused, or in a frozen guest.

``when_thawed`` sits out a freeze alone: the agent refuses a command then, so it was not run and may be sent again.
``patiently`` sits out the other outages too, which is right only for what may be done twice. Neither is for a command
that begins something new: the user is better told at once why that cannot be.
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

__all__ = ("patiently", "when_thawed")

T = TypeVar("T")

# Seconds for which a silent agent is waited for: a restart takes as long on a slow guest.
_GRACE_SECONDS = 120.0
# An agent that listens by itself (not at QEMU's socket) has no socket for a moment. A machine that ended never has one.
_SOCKET_SECONDS = 10.0
_PAUSE = 0.2
# Asking a frozen guest takes three commands each time, so it is done less often.
_FROZEN_PAUSE = 1.0

_SILENT = (AgentSilentError, ChannelBusyError, HandleLostError, OutcomeUnknownError)


class _Outages:
    """The outages that one action meets. Each kind may last so long, from when it is met first."""

    def __init__(self, agent: Agent, grace: float = 0.0) -> None:
        self._agent = agent
        self._grace = grace
        self._frozen: Deadline | None = None
        self._ends: dict[str, Deadline] = {}

    def sit_out_freeze(self, exc: CommandUnavailable) -> None:
        """Wait a moment, while others may have the channel: one of them is to thaw the guest.

        :raise CommandUnavailable: ``exc``, if it is not about a frozen guest or that was frozen too long.
        """
        seconds = self._agent.frozen_timeout
        if exc.reason != "frozen" or exc.was_waited_for:
            raise exc
        if self._frozen is None:
            self._frozen = Deadline(seconds)
            if seconds > 0:
                self._agent.warn(f"the guest is frozen; waiting up to {seconds:g} s until it is thawed.")
        if self._frozen.expired:
            exc.was_waited_for = True
            raise exc
        self._agent.step_aside()
        time.sleep(min(_FROZEN_PAUSE, self._frozen.left()))
        self._ends.clear()  # an agent that answers is not silent

    def sit_out(self, exc: QgaError) -> None:
        """Wait a moment.

        :raise QgaError: ``exc``, if that is no outage or has lasted too long.
        """
        if isinstance(exc, CommandUnavailable):
            self.sit_out_freeze(exc)
            return
        kind, seconds = "silent", self._grace
        if isinstance(exc, ConnectError) and not isinstance(exc, _SILENT):
            kind, seconds = "no socket", min(_SOCKET_SECONDS, self._grace)
        elif not isinstance(exc, _SILENT) and not _lacks_room(exc):
            raise exc
        if self._ends.setdefault(kind, Deadline(seconds)).expired:
            raise exc
        time.sleep(_PAUSE)


def _lacks_room(exc: QgaError) -> bool:
    """Return whether /run is full, without which the agent opens no file: what fills it may be about to end."""
    return isinstance(exc, GuestFileError) and exc.errno == errno.ENOSPC


def when_thawed(agent: Agent, action: Callable[[], T]) -> T:
    """Return what ``action`` returns. Where a frozen guest refuses it, try again, for ``agent.frozen_timeout`` seconds.

    It is done anew from its beginning, so what it consists of may be done twice or is one command.

    :raise CommandUnavailable: if the guest is still frozen then.
    """
    outages = _Outages(agent)
    while True:
        try:
            return action()
        except CommandUnavailable as exc:
            outages.sit_out_freeze(exc)


def patiently(
    agent: Agent,
    action: Callable[[], T],
    *,
    final: Callable[[QgaError], bool] = lambda exc: False,
    grace: float = _GRACE_SECONDS,
) -> T:
    """Return what ``action`` returns, which may be done twice. An agent that is away meanwhile is waited for.

    A silent one has ``grace`` seconds, and a frozen guest ``agent.frozen_timeout``. An error that is ``final`` is
    raised at once.

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
