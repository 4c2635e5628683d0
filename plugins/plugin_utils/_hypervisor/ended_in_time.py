# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for ssh no longer than a deadline, and leave none behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline, Stuck, within

__all__ = ("ended_in_time",)

T = TypeVar("T")


def ended_in_time(deadline: Deadline, control_path: str, call: Callable[[], T]) -> T:
    """Return the result of ``call``, which starts an ssh with that control path. At the deadline, the ssh is ended.

    :raise Stuck: at the deadline.
    """
    try:
        return within(deadline.left(), call, "ssh")
    except Stuck:
        _end_below(control_path)
        raise


def _end_below(control_path: str) -> None:
    """End the processes below this one that have the argument ``control_path``, and all below those.

    These are ssh, sshpass around it, and what leads to the machine: a ProxyCommand, or the ssh of a ProxyJump.
    """
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
            parents[int(name)] = int(stat.read().rpartition(b")")[2].split()[1])
    concerned = {pid for pid in _below({os.getpid()}, parents) if _has_argument(pid, control_path)}
    for pid in concerned | _below(concerned, parents):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _below(uppers: set[int], parents: Mapping[int, int]) -> set[int]:
    """Return the descendants of the processes ``uppers``."""
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in uppers | found} - found:
        found |= more
    return found


def _has_argument(pid: int, argument: str) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as command:
        return os.fsencode(argument) in command.read()
    return False
