# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deadlines: all waits of one command share one limit."""

from __future__ import annotations

import time

__all__ = ("Deadline",)
# No caller needs to wait longer, and poll() cannot.
_LONGEST_SECONDS = 1_000_000.0


class Deadline:
    """A point in time, so that several waits share one limit. It is at most 11 days away."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + min(seconds, _LONGEST_SECONDS)

    def left(self) -> float:
        """Return the seconds left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.left() <= 0.0
