# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one call on a background thread, so that hashing and file I/O overlap with the agent's reply.

Python's digests, zlib and file I/O release the interpreter lock, so this takes no time from the transfer.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any, Callable, Generic, Optional, Tuple, TypeVar

__all__ = ("Beside",)

T = TypeVar("T")

Outcome = Tuple[Optional[T], Optional[BaseException]]


class Beside(Generic[T]):
    """Run one call at a time on a thread of its own. A context manager: leaving it waits for the call's end.

    The thread starts at the first call, so an unused object costs nothing. (concurrent.futures takes longer to import
    than a small file takes to copy.) The thread is kept between calls: a new thread takes the interpreter from its
    caller, which could not send its next request until code that keeps the lock (base64, for one) is done.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._calls: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome[T]] = SimpleQueue()
        self._busy = False

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._thread:
            self._calls.put(None)
            self._thread.join()

    def do(self, action: Callable[..., T], *arguments: Any) -> None:
        """Begin a call once the last call has ended.

        :raise BaseException: the error that the last call raised.
        """
        self.wait()
        if not self._thread:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._busy = True
        self._calls.put(lambda: action(*arguments))

    def wait(self) -> T | None:
        """Wait for the last call and return its result, once; None if there is none.

        :raise BaseException: the error that it raised.
        """
        if not self._busy:
            return None
        self._busy = False
        result, error = self._outcomes.get()
        if error:
            raise error
        return result

    def _work(self) -> None:
        for call in iter(self._calls.get, None):
            try:
                self._outcomes.put((call(), None))
            except BaseException as exc:  # pylint: disable=broad-exception-caught  # wait() raises it
                self._outcomes.put((None, exc))
