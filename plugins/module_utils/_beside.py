# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work beside the requests: who waits for an agent can sum up, compress and write what came before.

Python's digests, its zlib and its files let other threads run, so that this takes no time of the transfer.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Generic, TypeVar

__all__ = ("Beside",)

T = TypeVar("T")


class Beside(Generic[T]):
    """One call at a time, on a thread of its own. A context manager: leaving it waits for the call's end.

    There is no thread before the first call, so having one costs nothing. (concurrent.futures takes longer to import
    than a small file to copy.)
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: T | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._thread:
            self._thread.join()

    def do(self, action: Callable[..., T], *arguments: Any) -> None:
        """Begin a call when the last has ended.

        :raise BaseException: what the last call raised.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(action, *arguments), daemon=True)
        self._thread.start()

    def wait(self) -> T | None:
        """Return what the last call returned, once; None if there is none.

        :raise BaseException: what it raised.
        """
        if self._thread:
            self._thread.join()
        self._thread = None
        result, self._result = self._result, None
        error, self._error = self._error, None
        if error:
            raise error
        return result

    def _run(self, action: Callable[..., T], *arguments: Any) -> None:
        try:
            self._result = action(*arguments)
        except BaseException as exc:  # pylint: disable=broad-exception-caught  # wait() raises it
            self._error = exc
