# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deadlines: all waits of one command share one limit."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, TypeVar

__all__ = ("Deadline", "Stuck", "within")

T = TypeVar("T")

# No caller needs to wait longer, and poll() cannot.
_LONGEST_SECONDS = 1_000_000.0


class Deadline:
    """A point in time, so that several waits share one limit. It is at most 11 days away."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()
        self._end = self._began + min(seconds, _LONGEST_SECONDS)

    def left(self) -> float:
        """Return the seconds left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    def at_most(self, seconds: float) -> Deadline:
        """Return this deadline, or one after ``seconds`` if that is sooner."""
        return Deadline(seconds) if seconds < self.left() else self

    def leave(self, seconds: float) -> None:
        """Have at least ``seconds`` left."""
        end = time.monotonic() + seconds
        if end > self._end:
            self._end, self.seconds = end, round(end - self._began, 1)

    @property
    def expired(self) -> bool:
        return self.left() <= 0.0


class Stuck(Exception):
    """A call did not return in time."""


def within(seconds: float, call: Callable[[], T], name: str = "") -> T:
    """Return the result of ``call``, run in a thread of that ``name``, because it may wait without limit.

    :raise Stuck: if it takes longer than ``seconds``. The thread goes on then, and keeps nothing from ending.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except BaseException as exc:  # raised in the caller's thread
            outcome["error"] = exc

    thread = threading.Thread(target=run, name=name or None, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise Stuck
    return outcome["value"]  # type: ignore[no-any-return]
