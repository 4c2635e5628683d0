# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A spool: a directory in the guest, root's only, through which a resident program takes requests and answers.

A request is a file NUMBER.in, written whole before its number is written to a FIFO, the ring, which the program reads.
Opening the ring for writing fails at once if no program reads it. A result is a file NUMBER.rc: a line with exit
status, where standard output and standard error are (C(o), C(e): in NUMBER.out and NUMBER.err; C(=N): N bytes after the
line; C(-): there is none), and a dot if nothing was lost. The line C(-NUMBER) on the ring has all of these removed.

A program that supports it finds short requests on the ring itself: C(=NUMBER REQUEST), packed by zlib and in base64.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    GuestFileError,
    HandleLostError,
    OutcomeUnknownError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    ABOUT_PROGRAM,
    LARGEST_OUTPUT,
    lost_output,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile, exists
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import lacks_room, patiently

__all__ = ("LARGEST_NOTE", "LONGEST_RING", "NOBODY", "Spool", "is_request", "new_number")

LONGEST_RING = 4000
"""Bytes that are written to a FIFO atomically (PIPE_BUF is 4096 on Linux)."""

LARGEST_NOTE = 64 << 10
"""Bytes of a small file: how a program ended, its process number, why something failed."""

# Errors that mean that no program reads the ring: there is none, it has no reader, or none any more.
NOBODY = (errno.ENOENT, errno.ENXIO, errno.EPIPE)


_LEAST_NUMBER = 10**15


def new_number() -> int:
    """Return a random number for a request, larger than any process number."""
    return random.SystemRandom().randrange(_LEAST_NUMBER, 10 * _LEAST_NUMBER)


def is_request(number: int) -> bool:
    """Return whether a number is that of a request, and not of a process."""
    return number >= _LEAST_NUMBER


class Spool:
    """The spool at ``path``, through ``agent``. Programs keep ``largest_output`` bytes of each output stream there."""

    def __init__(self, agent: Agent, path: str, largest_output: int = LARGEST_OUTPUT) -> None:
        self._agent = agent
        self.path = path
        self._largest_output = largest_output

    def bell(self) -> GuestFile:
        """Return the ring, open for writing.

        :raise GuestFileError: with an errno of `NOBODY` if no program reads it.
        """
        return GuestFile(self._agent, f"{self.path}/ring", "w")

    def ring(self, line: str) -> bool:
        """Write a line to the ring, at most LONGEST_RING bytes; return whether a program reads it."""
        try:
            with self.bell() as bell:
                bell.write(f"{line}\n".encode("ascii"))
        except GuestFileError as exc:
            if exc.errno in NOBODY:
                return False
            raise
        return True

    def is_served(self) -> bool:
        """Return whether a program reads the ring."""
        try:
            self.bell().close()
        except GuestFileError as exc:
            if exc.errno in NOBODY:
                return False
            if not lacks_room(exc):  # the agent has opened it, but has no room to record that
                raise
        return True

    def write(self, name: str, data: bytes) -> bool:
        """Write a file; return whether there is a spool to write to."""
        try:
            return self._write(name, data)
        except HandleLostError:  # the agent was restarted; the file is not read before it is rung for
            return self._write(name, data)

    def _write(self, name: str, data: bytes) -> bool:
        try:
            with GuestFile(self._agent, f"{self.path}/{name}", "w") as file:
                file.write_all(data)
        except GuestFileError as exc:
            if exc.errno == errno.ENOENT:
                return False
            raise
        return True

    def read(self, name: str, limit: int = LARGEST_NOTE) -> bytes | None:
        """Return a file's content, None if there is no file. It is not verified: it is small, or its writer has ended.

        :raise TransferError: if it is longer than ``limit`` bytes.
        """
        try:
            with GuestFile(self._agent, f"{self.path}/{name}") as file:
                return file.read_all(limit)
        except GuestFileError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise

    def ended(self, number: int) -> bytes:
        """Return the result file of a request, with its first line whole; empty as long as the request runs.

        :raise TransferError: if it is longer than any can be.
        """
        try:
            content = patiently(self._agent, lambda: self.read(f"{number}.rc")) or b""
        except TransferError as exc:
            raise TransferError(f"how it ended cannot be read: {exc.message}", command=ABOUT_PROGRAM) from None
        return content if b"\n" in content else b""

    def result(self, number: int, content: bytes) -> tuple[int, bytes, bytes]:
        """Return exit status, standard output and standard error from a request's result file; see ``forget``.

        :raise TransferError: if output was lost.
        """
        line, _newline, rest = content.partition(b"\n")
        # To compile a regular expression would take each task's process a millisecond.
        words = line.split(b" ")
        if not _is_result(words):
            raise lost_output()
        streams = []
        for suffix, where in (("out", words[1]), ("err", words[2])):
            if where.startswith(b"="):
                size = int(where[1:])
                if size > len(rest):
                    raise lost_output()
                streams.append(rest[:size])
                rest = rest[size:]
            else:
                streams.append(b"" if where == b"-" else self._output(f"{number}.{suffix}"))
        return int(words[0]), streams[0], streams[1]

    def forget(self, number: int) -> None:
        """Have all files of a request removed."""
        self.ring(f"-{number}")

    def _output(self, name: str) -> bytes:
        try:
            output = patiently(self._agent, lambda: self.read(name, self._largest_output))
        except TransferError:
            raise lost_output() from None
        if output is None:
            raise OutcomeUnknownError("the program's output vanished from the guest", command=ABOUT_PROGRAM)
        return output

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        return exists(self._agent, f"{self.path}/{name}")


def _is_result(words: Sequence[bytes]) -> bool:
    """Return whether these are the words of a result's first line."""
    if len(words) != 4:
        return False
    status, out, err, end = words
    return _is_number(status, 3) and _is_place(out, b"o") and _is_place(err, b"e") and end == b"."


def _is_place(word: bytes, file: bytes) -> bool:
    return word in (file, b"-") or (word[:1] == b"=" and _is_number(word[1:], 12))


def _is_number(word: bytes, most_digits: int) -> bool:
    return word.isdigit() and len(word) <= most_digits
