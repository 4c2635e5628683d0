# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How quick the way to an agent is: from 7 kB/s behind an emulated serial port to 100 MB/s."""

from __future__ import annotations

import math

__all__ = ("Pace",)

# A request of fewer bytes tells more of how soon the agent looks than of how quick the way is.
_TELLING = 4096
# What is risked while nothing is known: two seconds behind a serial port.
_UNKNOWN = 16 * 1024


class Pace:
    """What was seen: ``rate`` is in bytes per second, base64 included, and 0 before the first request."""

    def __init__(self) -> None:
        self.rate = 0.0

    def note(self, size: int, seconds: float) -> None:
        """Note that a request and its reply, ``size`` bytes together, took that long."""
        rate = size / seconds if seconds > 0 else math.inf
        self.rate = rate if size >= _TELLING else max(rate, self.rate)

    def carries(self, seconds: float, largest: int) -> int:
        """Return how many bytes of content, ``largest`` at most, one request carries in that time."""
        if not self.rate:
            return min(largest, _UNKNOWN)
        return int(min(largest, max(_TELLING, self.rate * seconds * 3 / 4)))
