# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's filesystems, as a scripted agent freezes and thaws them, and timers that only note what is asked."""

from __future__ import annotations

import socket
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._module.thaw_timer import Armed, Timer
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Scripted

STATUS, FREEZE, LIST, THAW = (f"guest-fsfreeze-{name}" for name in ("status", "freeze", "freeze-list", "thaw"))


class Disks:
    """The filesystems of a guest, as its agent freezes and thaws them."""

    def __init__(self, *points: str) -> None:
        self.points = points or ("/", "/srv")
        self.frozen: list[str] = []

    def answers(self) -> dict[str, Any]:
        return {
            STATUS: lambda arguments: "frozen" if self.frozen else "thawed",
            FREEZE: lambda arguments: self.freeze(self.points),
            LIST: lambda arguments: self.freeze(arguments["mountpoints"]),
            THAW: lambda arguments: self.thaw(),
        }

    def freeze(self, points: Any) -> int:
        if self.frozen:
            raise AgentError(f"Command {FREEZE} has been disabled: the agent is in frozen state", "CommandNotFound")
        self.frozen = [point for point in self.points if point in points]
        return len(self.frozen)

    def thaw(self) -> int:
        count, self.frozen = len(self.frozen), []
        return count


def armed_for_nothing(agent: Agent, seconds: float) -> Armed:
    """Stand in for a timer, where no process is to be left that waits for an agent which is gone."""
    return Armed(Timer("token", 1, seconds, "then"), socket.socketpair()[0])


class Timers:
    """Stands in for the timers: notes what is done with them, among the commands that the agent gets."""

    def __init__(self, server: Scripted) -> None:
        self.server = server
        self.armed: Timer | None = None
        self.line = socket.socketpair()[0]
        self.notes: list[tuple[str, tuple[str, ...]]] = []

    def arm(self, agent: Agent, seconds: float) -> Armed:
        self.notes.append((f"arm {seconds:g}", tuple(self.server.work)))
        self.armed = Timer("token", 4711, seconds, "2026-11-24T19:30:00Z")
        ours, self.line = socket.socketpair()
        return Armed(self.armed, ours)

    def disarm(self, agent: Agent, *, if_without_deadline: bool = False) -> Timer | None:
        if if_without_deadline and self.armed and self.armed.seconds:
            return None
        self.notes.append(("disarm", tuple(self.server.work)))
        armed, self.armed = self.armed, None
        return armed

    @property
    def told(self) -> bytes:
        """What the timer was told last; nothing if it is to thaw at once."""
        with self.line:
            return self.line.recv(100)

    @property
    def done(self) -> list[str]:
        return [what for what, _when in self.notes]
