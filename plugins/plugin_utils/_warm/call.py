# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One request to the server of warm interpreters, and its answer (_warm/guest/server.py).

A request has a number of its own that cannot be guessed, and every line about it has that number. A guest may be
reverted to a snapshot while a task waits: so nothing is matched by its place in a file, and no handle of the agent
is used for a second request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    ConnectError,
    GuestFileError,
    HandleLostError,
    OutcomeUnknownError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import before_start, lost, unknown
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import (
    lacks_room,
    patiently,
    when_thawed,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.spool import LONGEST_RING, NOBODY, Spool
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.wire import (
    ANSWER,
    BEGUN,
    LONGEST_ANSWER,
    PLAIN,
    TAKEN,
    ClientRequest,
    ring_line,
)

__all__ = ("Call", "ended_meanwhile")

# Bytes beside a request on the ring.
_ROOM = 64
# Bytes per read: the agent allocates as many each time.
_PER_READ = 64 << 10
_MOST_DIGITS = 10  # of the size of an answer
# How often to check that an answer can still come, and how long a server may take to take a request.
_LOOK_SECONDS = 1.0
_TAKE_SECONDS = 5.0
# Attempts to hand a request over to an agent that is restarted meanwhile.
_ATTEMPTS = 3


class Call:
    """A request with this ``number``: ``ask`` hands it over, and ``answer`` waits for its answer.

    ``last_miss`` is the request's age in seconds at the last look that found no answer; 0 if the first look found it.
    """

    def __init__(self, agent: Agent, spool: Spool, number: int) -> None:
        self.number = number
        self._agent = agent
        self._spool = spool
        self._file: GuestFile | None = None
        self._text = b""
        self._half: bytes | None = None  # an answer that was incomplete at the last look, and since when
        self._half_seen = 0.0
        self._since = self.last_miss = 0.0

    def ask(self, request: ClientRequest, attempts: int = _ATTEMPTS) -> bool:
        """Hand the request to the server; return False if there is none.

        If the guest is frozen once the ring is open, wait for the thaw. If it is unknown whether the server was rung,
        ``answer`` finds out.

        :raise GuestFileError: with errno ENOSPC if there is no room for it.
        :raise QgaError: if nothing was handed over for another reason; the error says that nothing was run.
        """
        is_rung = False
        try:
            with before_start():
                bell = self._spool.bell()  # which fails if there is no server
            with bell:
                with before_start():
                    line = self._prepared(request.packed())
                is_rung = True
                bell.write(line + b"\n")
        except CommandUnavailable as exc:
            if exc.command in ("guest-file-open", "guest-file-write"):
                self._drop_handle()  # to close it would be waited for, too
                raise
            # The agent may have the line, and write it when it closes the ring.
        except HandleLostError:  # the agent was restarted: nothing was rung
            self.close()
            if attempts == 1:
                raise
            return self.ask(request, attempts - 1)
        except QgaError as exc:
            if isinstance(exc, GuestFileError) and exc.errno in NOBODY:
                self.close()
                return False
            unsent = isinstance(exc, ConnectError) and exc.command == "guest-file-write"
            if not is_rung or unsent or lacks_room(exc):
                self.close()
                raise
            # The server may have the line all the same: ``answer`` finds out whether it has taken the request.
        self._since = time.monotonic()
        return True

    def _prepared(self, packed: bytes) -> bytes:
        """Open the file for the answer; return the ring's line. A request that is too long for that is in a file."""
        self._file = when_thawed(self._agent, lambda: GuestFile(self._agent, self._path, "w+"))
        line = ring_line(self.number, packed)
        if len(line) + _ROOM <= LONGEST_RING:
            return line
        when_thawed(self._agent, lambda: self._spool.write(f"{self.number}.in", packed))
        return ring_line(self.number)

    def answer(self, waits: Iterable[float]) -> bytes:
        """Wait for the answer and return it. ``waits`` has the pauses before looks for it, in seconds, without end.

        :raise OutcomeUnknownError: if there will be none, or that is unknown.
        """
        looked = self._since
        try:
            for pause in waits:
                time.sleep(pause)
                looked_at = time.monotonic()
                answer = self._read()
                if answer is None and time.monotonic() - looked > _LOOK_SECONDS:
                    looked = time.monotonic()
                    answer = self._check()
                if answer is not None:
                    return answer
                self.last_miss = looked_at - self._since
        except QgaError as exc:  # a question failed; the task may have run, or may run yet
            raise lost(exc, f"contact was lost while the task ran: {exc.message}") from None
        finally:
            self.close()
        raise unknown("there is no answer")  # not reached: the pauses never end

    def forget(self) -> None:
        """Have all files of the request removed in the guest."""
        self._spool.forget(self.number)

    def close(self) -> None:
        """Close the file with the answer."""
        file, self._file = self._file, None
        if file:
            with suppress(QgaError):  # the guest was restarted or reverted; the task does not depend on this
                file.close()

    @property
    def _path(self) -> str:
        return f"{self._spool.path}/{self.number}.rc"

    def _read(self) -> bytes | None:
        """Return the answer; None as long as it is incomplete."""
        if not self._file:
            return None
        try:
            self._text += self._file.read(_PER_READ)
        except QgaError:  # the agent was restarted, or is silent for a while
            self._file = None
            return self._check()
        if self._text and not self._text.startswith(b"%d " % self.number):
            self._drop_handle()
            return self._check()
        return self._answer_in(self._text)

    def _drop_handle(self) -> None:
        """Drop the handle without closing it: after a snapshot, another client may be using it."""
        self._file, self._text = None, b""

    def _check(self) -> bytes | None:
        """Open the file anew, by its name, and check that an answer can still come; return it if it is there.

        If the server has ended before BEGUN, the request was not run (PLAIN); after that, its outcome is unknown. So it
        is if the server knows no file of the request (the guest was put back to a snapshot), has not TAKEN the request
        after some seconds, or has written half an answer by two looks that are a second apart.

        :raise OutcomeUnknownError: if no answer can come.
        """
        there = patiently(self._agent, self._spool.is_served)
        text = patiently(self._agent, self._all)
        answer = self._answer_in(text or b"")
        if answer is not None:
            return answer
        # The server removes the spool when it ends; what the open handle has read still counts.
        known = text if text is not None else self._text if self._file else None
        if not there and known is not None and not self._has_line(known, BEGUN):
            return PLAIN  # the server has ended before it ran the request
        if not there:
            raise unknown("what serves the interpreters in the guest ended while the task ran (was it rebooted?)")
        if text is None:
            self._drop_handle()
            raise unknown("the guest knows nothing of the task any more (was it put back to a snapshot, or rebooted?)")
        if not self._has_line(text, TAKEN) and time.monotonic() - self._since > _TAKE_SECONDS:
            raise unknown("the guest has not taken the task (was it put back to a snapshot, or does it hang?)")
        if b"\n%d %b " % (self.number, ANSWER) in b"\n" + text:
            if text == self._half and time.monotonic() - self._half_seen > _LOOK_SECONDS / 2:
                raise unknown("the task's answer is damaged")
            if text != self._half:
                self._half, self._half_seen = text, time.monotonic()
        return None

    def _all(self) -> bytes | None:
        """Return the whole content of the file, by its name; None if there is no such file."""
        try:
            return self._spool.read(f"{self.number}.rc", LONGEST_ANSWER)
        except GuestFileError as exc:
            if lacks_room(exc) and self._file:  # without room in /run, the agent opens no other file
                return self._text
            raise

    def _has_line(self, text: bytes | None, word: bytes) -> bool:
        return b"\n%d %b\n" % (self.number, word) in b"\n" + (text or b"")

    def _answer_in(self, text: bytes) -> bytes | None:
        """Return the answer in the file's content, if all of it is there.

        :raise OutcomeUnknownError: if it is larger than any can be.
        """
        # To compile a regular expression would take each task's process a millisecond.
        _before, _found, rest = (b"\n" + text).partition(b"\n%d %b " % (self.number, ANSWER))
        digits, newline, rest = rest.partition(b"\n")
        size = int(digits) if newline and digits.isdigit() and len(digits) < _MOST_DIGITS else None
        if max(size or 0, len(text)) > LONGEST_ANSWER:
            raise unknown("the task's answer makes no sense")
        return None if size is None or len(rest) < size else rest[:size]


def ended_meanwhile(words: bytes) -> OutcomeUnknownError:
    """Return the error for a task whose interpreter ended, with the interpreter's last ``words``."""
    why = words.decode("utf-8", "replace") or "was it killed?"  # the server is there, so the guest was not rebooted
    return unknown(f"the interpreter in the guest ended while the task ran ({why})")
