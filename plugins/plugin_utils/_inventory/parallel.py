# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the same for many items at the same time, and wait no longer than a deadline for any of them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline

__all__ = ("end_children_of_threads", "in_parallel")

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(
    work: Callable[[T], R], items: Sequence[T], seconds: float, threads: int = 128
) -> list[R | Exception | None]:
    """Return the result of ``work`` for each item, or what it raised; None where that was not there in time.

    ``seconds`` is for one item. The threads are daemons, so one that hangs keeps nothing from ending.
    """
    threads = min(threads, len(items))
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | Exception]] = queue.SimpleQueue()
    for index in range(len(items)):
        waiting.put(index)

    def run() -> None:
        with suppress(queue.Empty):
            while True:
                index = waiting.get_nowait()
                try:
                    done.put((index, work(items[index])))
                except Exception as exc:  # the caller's, who knows which are to be expected
                    done.put((index, exc))

    for _number in range(threads):
        threading.Thread(target=run, name="inventory", daemon=True).start()
    results: list[R | Exception | None] = [None] * len(items)
    # Each thread may have to wait for several items in turn.
    deadline = Deadline(seconds * -(-len(items) // threads) if items else 0)
    with suppress(queue.Empty):
        for _item in items:
            index, result = done.get(timeout=max(deadline.left(), 0.001))
            results[index] = result
    return results


def end_children_of_threads(name: str) -> None:
    """Kill the processes that still running threads called ``name`` have started: a library waits for them."""
    for thread in threading.enumerate():
        if thread.name == name and thread.native_id:
            with suppress(OSError, ValueError):
                children = Path(f"/proc/self/task/{thread.native_id}/children").read_text(encoding="ascii")
                for pid in children.split():
                    os.kill(int(pid), 9)
