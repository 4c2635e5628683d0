# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Confirm a guest's shutdown, reboot or suspend: by the agent's silence, QEMU's events, or a new boot."""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any, Collection, ContextManager, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    ChannelBusyError,
    CommandError,
    ConnectError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    QmpLostError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile
from ansible_collections.qemu.guest.plugins.module_utils._module.qmp import Qmp

__all__ = ("USUAL", "Boot", "Presence", "Timing", "boot_of", "monitor", "qemu_tells")

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# An uptime that is shorter than expected by this many seconds belongs to another boot.
_LAG = 5.0


def monitor(qmp_address: str | None) -> ContextManager[Qmp | None]:
    """Return QEMU's monitor, connected, as a context manager; one that yields None if there is no address."""
    return Qmp(qmp_address) if qmp_address else contextlib.nullcontext()


def qemu_tells(qmp: Qmp, events: Collection[str], status: str, deadline: Deadline) -> str:
    """Wait for one of QEMU's ``events`` or for ``status``; return which came, empty at the deadline.

    The result is C(event), C(status), or C(eof) if QEMU exited, which confirms only C(shutdown). The status is queried
    after an event too: only the reply (or QEMU's exit) shows that a machine that shuts down is off.

    :raise QmpLostError: if QEMU exited, and ``status`` is not C(shutdown).
    """
    event = ""
    try:
        event = qmp.wait(events, deadline)
        now = qmp.status()
    except QmpLostError as exc:
        if exc.closed and status != "shutdown":
            raise
        return "event" if event else "eof" if exc.closed else ""
    return "event" if event else "status" if now == status else ""


class Timing(NamedTuple):
    """Seconds that the confirmation of a guest's new state may take.

    ``pause``: between polls. ``answer``: that an agent has to answer a poll; in a busy guest it may need some.
    ``silent``: without an answer, after which an agent counts as gone. ``gone``: the same if its socket is gone or has
    no listener, which may also be an agent that restarts. ``failed``: in which a guest may still go down after its
    agent reported a failure. The agent runs a program that asks systemd to shut down, and that program reports a
    failure when systemd's answer is lost in the shutdown.
    """

    pause: float = 1.0
    answer: float = 5.0
    silent: float = 15.0
    gone: float = 2.0
    failed: float = 15.0


USUAL = Timing()


class Presence:
    """Whether an agent answers, over several polls. Polls are syncs and pings: harmless whenever they run.

    ``gone``: it has not answered for so long that it counts as gone. ``was_away``: some poll had no answer.
    """

    def __init__(self, agent: Agent, timing: Timing = USUAL) -> None:
        self._agent = agent
        self._timing = timing
        self._away_since: float | None = None
        self.gone = False
        self.was_away = False

    def look(self, deadline: Deadline) -> bool:
        """Return whether the agent answers to one poll."""
        started = time.monotonic()
        try:
            self._agent.execute("guest-ping", timeout=max(0.1, min(self._timing.answer, deadline.left())))
        except ChannelBusyError:
            return False  # unknown whether it would answer
        except CommandError:
            pass  # a refusal is an answer
        except (AgentSilentError, OutcomeUnknownError, ProtocolError):
            return self._no_answer(started, self._timing.silent)
        except ConnectError:
            return self._no_answer(started, self._timing.gone)
        self._away_since, self.gone = None, False
        return True

    def moment(self, deadline: Deadline) -> Deadline:
        """Return when the next poll is due: by ``deadline`` at the latest."""
        return Deadline(min(self._timing.pause, deadline.left()))

    def goes(self) -> bool:
        """Return whether the agent, which answered a moment ago, stops answering soon."""
        deadline = Deadline(self._timing.failed)
        while not self.was_away and not deadline.expired:
            self.look(Deadline(self._timing.answer))
            time.sleep(self.moment(deadline).left())
        return self.was_away

    def in_words(self) -> str:
        """Poll once more, and return the agent's state in words, for the error after a vain wait."""
        if self.look(Deadline(self._timing.answer)):
            return "its agent was away for a while, and answers now" if self.was_away else "its agent still answers"
        return "its agent does not answer"

    def _no_answer(self, since: float, patience: float) -> bool:
        self.was_away = True
        if self._away_since is None:
            self._away_since = since
        self.gone = time.monotonic() - self._away_since >= patience
        return False


class Boot(NamedTuple):
    """Identifies a boot, as far as the agent's commands allow: a Linux guest's boot ``id``, its ``uptime``.

    ``uptime`` is in seconds, None if unknown; ``at`` is the host's clock at that moment.
    """

    id: str = ""
    uptime: float | None = None
    at: float = 0.0

    def proven_new(self, before: Boot) -> str:
        """Return the proof that this is a later boot than ``before``: C(boot_id), C(uptime), or empty."""
        if self.id and before.id:
            return "boot_id" if self.id != before.id else ""
        if self.uptime is not None and before.uptime is not None:
            return "uptime" if self.uptime + _LAG < before.uptime + self.at - before.at else ""
        return ""

    def comparable(self, before: Boot) -> bool:
        """Return whether the two can be compared."""
        return bool(self.id and before.id) or (self.uptime is not None and before.uptime is not None)


def boot_of(agent: Agent) -> Boot:
    """Return the identity of the guest's present boot; empty if the agent gives none, or is gone."""
    with contextlib.suppress(QgaError):
        if agent.supports("guest-file-open", "guest-file-read", "guest-file-close"):
            with contextlib.suppress(CommandError), GuestFile(agent, _BOOT_ID) as guest_file:
                match = re.fullmatch(rb"([0-9a-f-]{36})\s*", guest_file.read(64))
                if match:
                    return Boot(id=match.group(1).decode("ascii"))
        # For guests that block guest-file-*, such as Red Hat's distributions.
        if agent.supports("guest-get-cpustats"):
            return Boot(uptime=_uptime(agent.execute("guest-get-cpustats")), at=time.monotonic())
    return Boot()


def _uptime(cpus: Any) -> float | None:
    """Return the seconds that the guest's first processor has been up, idle time included.

    :raise ProtocolError: for an invalid time.
    """
    first = next((cpu for cpu in cpus if isinstance(cpu, dict) and cpu.get("cpu") == 0), {})
    spent = [expect(value, int, name) for name, value in first.items() if name not in ("cpu", "type")]
    return sum(spent) / 1000 if spent else None
