# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throughput of a channel: from 7 kB/s behind an emulated serial port to 100 MB/s."""

from __future__ import annotations

import math

__all__ = ("Pace",)

# A smaller request measures the agent's latency rather than the throughput.
_TELLING = 4096
# Bytes sent while the rate is unknown: two seconds behind a serial port.
_UNKNOWN = 16 * 1024


class Pace:
    """The measured ``rate`` in bytes per second, base64 included; 0 before the first request."""

    def __init__(self) -> None:
        self.rate = 0.0

    def note(self, size: int, seconds: float) -> None:
        """Record that a request and its reply, ``size`` bytes together, took ``seconds``."""
        rate = size / seconds if seconds > 0 else math.inf
        self.rate = rate if size >= _TELLING else max(rate, self.rate)

    def carries(self, seconds: float, largest: int) -> int:
        """Return how many bytes of content, at most ``largest``, one request carries in ``seconds``."""
        if not self.rate:
            return min(largest, _UNKNOWN)
        return int(min(largest, max(_TELLING, self.rate * seconds * 3 / 4)))
