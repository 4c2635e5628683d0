# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A spool: a directory in the guest, of root's alone, through which a resident program takes requests and answers.

A request is a file NUMBER.in, written whole before its number is written to a FIFO, the ring, at which the program
sleeps. Opening the ring for writing tells at once whether somebody is there: with nobody at the other end it fails. A
result is a file NUMBER.rc: a line with exit status, where standard output and standard error are (C(o), C(e): in
NUMBER.out and NUMBER.err; C(=N): N bytes behind the line; C(-): there is none), and a dot if nothing was lost. The line
C(-NUMBER) on the ring has all of that removed.

A program that takes it finds short requests on the ring itself: C(=NUMBER REQUEST), the latter by zlib and in base64.
See Line for one that keeps a client's ring and results open.
"""

from __future__ import annotations

import base64
import errno
import random
import re
import time
from contextlib import suppress
from typing import Any, Callable, Mapping, Sequence, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent import Agent
from ansible_collections.qemu.guest.plugins.module_utils._channel import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._errors import (
    AgentSilentError,
    ChannelBusyError,
    ConnectError,
    GuestFileError,
    HandleLostError,
    OutcomeUnknownError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._files import GuestFile, exists

__all__ = ("LONGEST_RING", "Line", "Spool", "new_number", "patiently")

T = TypeVar("T")

# A program outlives a restart of the agent. Its result is waited for as long as that can take.
_GRACE_SECONDS = 120.0
# An agent that listens by itself (not at QEMU's socket) has none for a moment. A machine that ended has none any more.
_SOCKET_SECONDS = 10.0
_PAUSE = 0.2


LONGEST_RING = 4000
"""Bytes: what is written to a FIFO at once, whole and with nothing of others between (POSIX has 4096 on Linux)."""

# What tells that nobody reads the ring: there is none, it has no reader, or none any more.
_NOBODY = (errno.ENOENT, errno.ENXIO, errno.EPIPE)
# Bytes of answers after which a Line begins another file. They are in the guest's memory.
_LONGEST_FILE = 256 << 10
_BEGUN = b"0\n"
# What is read at once: the agent makes room for as much each time that it is asked.
_ANSWER = 64 << 10
# Kinds of requests of which is known how long they take. They are left to other clients.
_MOST_KINDS = 40
_MOST_KNOWN = 200


def new_number() -> int:
    """Return the number of a request: nobody else's, and larger than any process's."""
    return random.SystemRandom().randrange(10**15, 10**16)


class Spool:
    """The spool at ``path``, through ``agent``."""

    def __init__(self, agent: Agent, path: str) -> None:
        self._agent = agent
        self.path = path

    def bell(self) -> GuestFile:
        """Return the ring, open for writing.

        :raise GuestFileError: with an errno of `_NOBODY` if nobody is there.
        """
        return GuestFile(self._agent, f"{self.path}/ring", "w")

    def ring(self, line: str) -> bool:
        """Write a line to the ring, at most LONGEST_RING bytes; return whether somebody is there to read it."""
        try:
            with self.bell() as bell:
                bell.write(f"{line}\n".encode("ascii"))
        except GuestFileError as exc:
            if exc.errno in _NOBODY:
                return False
            raise
        return True

    def write(self, name: str, data: bytes) -> bool:
        """Write a file; return whether there is a spool to write to."""
        try:
            return self._write(name, data)
        except HandleLostError:  # the agent was restarted; nobody reads the file before it is rung for
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

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none. It is not compared: it is small, or its writer has ended."""
        try:
            with GuestFile(self._agent, f"{self.path}/{name}") as file:
                return file.read_all()
        except GuestFileError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise

    def ended(self, number: int) -> bytes:
        """Return what tells how a request ended, its first line whole; empty as long as it has not."""
        content = patiently(lambda: self.read(f"{number}.rc")) or b""
        return content if b"\n" in content else b""

    def result(self, number: int, content: bytes) -> tuple[int, bytes, bytes]:
        """Return exit status, standard output and standard error of a request that ended so; see ``forget``.

        :raise TransferError: if output was lost.
        """
        line, _newline, rest = content.partition(b"\n")
        match = re.fullmatch(rb"(\d{1,3}) (o|-|=\d+) (e|-|=\d+) \.", line)
        if match is None:
            raise TransferError("the program's output did not fit in the guest's /run; what is missing is lost")
        streams = []
        for suffix, where in (("out", match.group(2)), ("err", match.group(3))):
            if where.startswith(b"="):
                streams.append(rest[: int(where[1:])])
                rest = rest[int(where[1:]) :]
            else:
                streams.append(b"" if where == b"-" else self._output(f"{number}.{suffix}"))
        return int(match.group(1)), streams[0], streams[1]

    def forget(self, number: int) -> None:
        """Have all that there is of a request removed."""
        self.ring(f"-{number}")

    def _output(self, name: str) -> bytes:
        output = patiently(lambda: self.read(name))
        if output is None:
            raise OutcomeUnknownError("the program's output vanished from the guest", command="guest-exec")
        return output

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        return exists(self._agent, f"{self.path}/{name}")


class Line:
    """A client's way to a resident program: the spool's ring, and a file NUMBER.rc, to which answers are added.

    Both are held open. The agent writes each file that it opens to the guest's log, and what is asked again and again
    whether a file is there makes the guest's journal work harder than its task; reading leaves no trace. An answer is
    its size in bytes, a newline, and that; an empty one tells that a request is at work. There is one request at a
    time: a line whose request was given up is not to be used again.
    """

    def __init__(self, agent: Agent, spool: Spool) -> None:
        self.number = new_number()
        self.used = 0.0
        """When the last request was made, or it was opened for the first (monotonic)."""
        self.quick: dict[str, float] = {}
        """Seconds that a request of each kind takes; see ``note``."""
        self.known: list[str] = []
        """What the other end is known to have, the last of it."""
        self.is_begun = False
        """Whether the last request is at work, or was."""
        self.is_lost = False
        """Whether the answers have vanished: with who answers, or the guest is as it was before they were there."""
        self._agent = agent
        self._spool = spool
        self._ring: GuestFile | None = None
        self._answers: GuestFile | None = None
        self._position = 0
        self._unread = b""

    @classmethod
    def found(cls, agent: Agent, spool: Spool) -> Line:
        """Return the line that another client has left, or a new one."""
        line = cls(agent, spool)
        left = agent.find(spool.path, "guest-file-open")
        if left:
            line.number, line.used, line.quick = left["number"], left["used"], left["quick"]
            line.known = left["known"]
            line._ring = GuestFile(agent, f"{spool.path}/ring", handle=left["ring"])
            line._answers = GuestFile(agent, line._path, handle=left["answers"])
            line._position = left["position"]
        return line

    def leave(self) -> bool:
        """Leave it to another client as it is, open; return False if there can be none."""
        if not self._ring or not self._answers or self._unread:
            return False
        left = {
            "number": self.number,
            "used": self.used,
            "quick": self.quick,
            "known": self.known,
            "ring": self._ring.handle,
            "answers": self._answers.handle,
            "position": self._position,
        }
        gone = base64.b64encode(self._gone).decode("ascii")
        farewell: list[tuple[str, Mapping[str, Any]]] = [
            ("guest-file-write", {"handle": self._ring.handle, "buf-b64": gone}),
            ("guest-file-close", {"handle": self._ring.handle}),
            ("guest-file-close", {"handle": self._answers.handle}),
        ]
        if not self._agent.leave(self._spool.path, left, farewell):
            return False
        self._begin()
        return True

    @property
    def is_open(self) -> bool:
        """Whether there was somebody the last time."""
        return self._answers is not None

    def open(self) -> bool:
        """Return whether somebody is there, as far as can be told; open the files for that if they are not open."""
        if self._position >= _LONGEST_FILE:
            self.close()
        if self.is_open:
            return True
        try:
            self._ring = self._spool.bell()
            self._answers = GuestFile(self._agent, self._path, "w+")
        except GuestFileError as exc:
            return self._nobody(exc)
        self.used = time.monotonic()
        return True

    @property
    def _path(self) -> str:
        return f"{self._spool.path}/{self.number}.rc"

    def _nobody(self, exc: GuestFileError) -> bool:
        """Close the files, if ``exc`` says that nobody is there."""
        if exc.errno not in _NOBODY:
            raise exc
        self.close()
        return False

    def ask(self, line: str) -> bool:
        """Write a line to the ring, at most LONGEST_RING bytes; return whether somebody is there to read it."""
        try:
            self._write(f"{line}\n".encode("ascii"))
        except GuestFileError as exc:
            return self._nobody(exc)
        return True

    def is_heard(self) -> bool:
        """Return whether somebody is there, and leave everything as it is."""
        try:
            self._write(b"\n")
        except GuestFileError as exc:
            if exc.errno not in _NOBODY:
                raise
            return False
        return True

    def _write(self, text: bytes) -> None:
        ring = self._ring or self._spool.bell()
        try:
            ring.write(text)
        except HandleLostError:  # the agent was restarted: nothing was written
            ring = self._spool.bell()
            ring.write(text)
        self._ring = ring
        ring.flush()

    def remember(self, what: Sequence[str]) -> None:
        """Note what the other end has."""
        self.known = [*[one for one in self.known if one not in what], *what][-_MOST_KNOWN:]

    def note(self, kind: str, seconds: float) -> None:
        """Note how long a request of this kind takes."""
        self.quick[kind] = round(seconds, 3)
        if len(self.quick) > _MOST_KINDS:
            self.quick.pop(next(iter(self.quick)))

    def answer(self) -> bytes:
        """Return what was answered; nothing as long as that is not there, all of it."""
        self._unread += self._read()
        if self._unread.startswith(_BEGUN):
            self.is_begun = True
            self._unread = self._unread[len(_BEGUN) :]
        size, newline, rest = self._unread.partition(b"\n")
        if not newline or len(rest) < int(size):
            return b""
        self._unread = b""
        return rest

    def _read(self) -> bytes:
        try:
            data = self._answers.read(_ANSWER) if self._answers else self._read_anew()
        except (AgentSilentError, ChannelBusyError, ConnectError, HandleLostError, OutcomeUnknownError):
            data = patiently(self._read_anew)
        self._position += len(data)
        return data

    def _read_anew(self) -> bytes:
        """Read with an agent that was restarted, or that may have read what did not arrive."""
        try:
            self._answers = answers = GuestFile(self._agent, self._path)
        except GuestFileError as exc:
            if exc.errno != errno.ENOENT:
                raise
            self.is_lost = True
            return b""
        answers.seek(self._position)
        return answers.read(_ANSWER)

    def close(self) -> None:
        """Leave nothing in the guest, neither handles nor answers."""
        if self._ring and self._answers:
            with suppress(GuestFileError, HandleLostError):
                self._ring.write(self._gone)
        for file in (self._ring, self._answers):
            if file:
                with suppress(GuestFileError, HandleLostError):
                    file.close()
        if self._ring or self._answers:  # else nobody knows its number
            self._begin()

    @property
    def _gone(self) -> bytes:
        return f"-{self.number}\n".encode("ascii")

    def _begin(self) -> None:
        self._ring = self._answers = None
        self._position, self._unread = 0, b""
        self.number = new_number()


def patiently(action: Callable[[], T]) -> T:
    """Return what ``action`` returns, which only reads. An agent that is restarted meanwhile is waited for.

    So is room in /run, without which the agent opens no file: who fills it may be about to end.
    """
    grace, no_socket = Deadline(_GRACE_SECONDS), Deadline(_SOCKET_SECONDS)
    while True:
        try:
            return action()
        except (AgentSilentError, ChannelBusyError, HandleLostError, OutcomeUnknownError):
            if grace.expired:
                raise
        except ConnectError:
            if no_socket.expired:
                raise
        except GuestFileError as exc:
            if exc.errno != errno.ENOSPC or grace.expired:
                raise
        time.sleep(_PAUSE)
