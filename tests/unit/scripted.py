# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest agent that follows a script, on a real UNIX socket.

It behaves as QEMU's chardev and the agent behind it do, as measured on agents 5.2, 7.2 and 11.1: one client is served,
the others wait in the backlog; each byte 0xFF is answered by a parse-error line and makes the agent forget half a
request; replies come in order. What it replies to a command stands in ``answers``; ``then`` says what it does instead,
once. No test waits for a deadline: a ``Clock`` stands still until a step of the script lets time pass.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SENTINEL = b"\xff"
SYNCS = ("guest-sync-delimited", "guest-sync")
STATUS = "guest-fsfreeze-status"
WHILE_FROZEN = (*SYNCS, "guest-ping", "guest-info", STATUS, "guest-fsfreeze-thaw")
# Longer than any deadline of a test.
LONG = 3600.0


class Clock:
    """Stands in for the time module: time passes by ``sleep`` and ``advance`` alone."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.on_sleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()  # files have that, too

    def sleep(self, seconds: float) -> None:
        self.on_sleep()
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Release:
    """The words of one release of the agent."""

    version: str
    stray: str = "JSON parse error, stray '\ufffd'"
    unknown: str = "The command {} has not been found"
    disabled: str = "Command {} has been disabled"
    frozen: str = "Command {} has been disabled: the agent is in frozen state"


RELEASES = {
    "5.2": Release(
        "5.2.0",
        disabled="The command {} has been disabled for this instance",
        frozen="The command {} has been disabled for this instance",
    ),
    "7.2": Release("7.2.22"),
    "11.1": Release(
        "11.1.3",
        stray="6:1: JSON parse error, stray '\ufffd'",
        disabled="Command {} has been disabled: the command is not allowed",
        frozen="Command {} has been disabled: the command is not allowed",
    ),
}


class AgentError(Exception):
    """Raised by an answer: the agent replies with this error."""

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.error = {"class": error_class, "desc": desc}


@dataclass(frozen=True)
class Request:
    """A request as it arrived. ``line`` is all of it, newline included, without the 0xFF before it."""

    line: bytes
    command: str
    arguments: Mapping[str, Any]
    ids: Mapping[str, Any]


class Scripted:
    """The agent at ``path``; a context manager that runs it in a thread.

    ``answers`` maps commands to what they return: a value, or a function of the arguments. ``blocked`` names commands
    that guest-info lists as disabled, and the text of the error they get. An agent from 4.0 on ``echoes_id``; one
    before that refuses it (``takes_id``). ``piece`` is the number of bytes in which replies are delivered at once,
    ``before`` is what a former client left unread.
    """

    def __init__(
        self,
        path: Path,
        answers: Mapping[str, Any] | None = None,
        *,
        clock: Clock | None = None,
        release: str = "7.2",
        echoes_id: bool = True,
        takes_id: bool = True,
        blocked: Mapping[str, str] | None = None,
        piece: int = 0,
        before: bytes = b"",
    ) -> None:
        self.path = path
        self.answers: dict[str, Any] = {"guest-ping": {}, **(answers or {})}
        self.release = RELEASES[release]
        self.blocked = dict(blocked or {})
        self.echoes_id = echoes_id and takes_id
        self.takes_id = takes_id
        self.piece = piece
        self.before = before
        self.requests: list[Request] = []
        self.received: list[bytes] = []  # by each client
        self.half = b""  # of a request; it stays when its client leaves
        self.hears = threading.Event()
        self._clock = clock
        self._script: dict[str, deque[Step]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._trouble: list[BaseException] = []
        self._thaws = 0.0
        self._ending = False
        self._client: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, name="scripted agent", daemon=True)

    # What tests use

    def then(self, command: str, *steps: Step) -> None:
        """Do ``steps`` in place of the next replies to ``command``, one each."""
        self._script[command].extend(steps)

    @property
    def commands(self) -> list[str]:
        return [request.command for request in self.requests]

    @property
    def work(self) -> list[str]:
        """The commands received, syncs left out."""
        return [command for command in self.commands if command not in SYNCS]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is looked at whenever a request has arrived."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout=30):
                raise AssertionError("the scripted agent has never got what the test waits for")

    def freeze(self, seconds: float) -> None:
        """Have the guest frozen until so much time has passed."""
        assert self._clock is not None
        self._thaws = self._clock.now + seconds
        self.answers[STATUS] = lambda arguments: "frozen" if self.is_frozen else "thawed"

    @property
    def is_frozen(self) -> bool:
        return self._clock is not None and self._clock.now < self._thaws

    def let_time_pass(self) -> None:
        if self._clock:
            self._clock.advance(LONG)

    # The agent

    def __enter__(self) -> Scripted:
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending = True
        self.hears.set()
        for sock in (self._listener, self._client):
            try:
                if sock:
                    sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
        self._thread.join(30)
        self._listener.close()
        if self._trouble:
            raise AssertionError("the scripted agent failed") from self._trouble[0]

    def _serve(self) -> None:
        while not self._ending:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            self._client = client
            try:
                Session(self, client).run()
            except OSError:
                pass  # the client left
            except BaseException as exc:  # whatever it was: the test must hear of it
                self._trouble.append(exc)
            finally:
                client.close()

    def note(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def step(self, command: str) -> Step:
        return self._script[command].popleft() if self._script[command] else answers

    def value(self, request: Request) -> Any:
        """Return what ``request`` returns by itself."""
        command = request.command
        if command in self.blocked:
            raise AgentError(self.blocked[command], "CommandNotFound")
        if self.is_frozen and command not in WHILE_FROZEN:
            raise AgentError(self.release.frozen.format(command), "CommandNotFound")
        if command in self.answers:
            value = self.answers[command]
            return value(request.arguments) if callable(value) else value
        if command in SYNCS:
            return request.arguments["id"]
        if command == "guest-info":
            names = sorted({*self.answers, *self.blocked, *SYNCS, command})
            off = {*self.blocked, *(n for n in names if self.is_frozen and n not in WHILE_FROZEN)}
            table = [{"name": n, "enabled": n not in off, "success-response": True} for n in names]
            return {"version": self.release.version, "supported_commands": table}
        raise AgentError(self.release.unknown.format(command), "CommandNotFound")


class Session:
    """The agent's talk with one client."""

    def __init__(self, server: Scripted, client: socket.socket) -> None:
        self.server = server
        self._client = client
        self._index = len(server.received)
        server.received.append(b"")

    def run(self) -> None:
        self.flush()
        while True:
            data = self._client.recv(1 << 18)
            if not data:
                return
            self.server.received[self._index] += data
            self.server.half = self._take(self.server.half + data)

    def _take(self, pending: bytes) -> bytes:
        while True:
            newline, sentinel = pending.find(b"\n"), pending.find(SENTINEL)
            if sentinel >= 0 and (newline < 0 or sentinel < newline):
                pending = pending[sentinel + 1 :]
                self.send(line({"error": {"class": "GenericError", "desc": self.server.release.stray}}))
            elif newline >= 0:
                self._handle(pending[: newline + 1])
                pending = pending[newline + 1 :]
            else:
                return pending

    def _handle(self, text: bytes) -> None:
        try:
            message = json.loads(text)
        except ValueError:
            self.send(line({"error": {"class": "GenericError", "desc": "JSON parse error, invalid keyword"}}))
            return
        if "id" in message and not self.server.takes_id:
            desc = "QMP input object member 'id' is unexpected"
            self.send(line({"error": {"class": "GenericError", "desc": desc}}))
            return
        ids = {"id": message["id"]} if "id" in message and self.server.echoes_id else {}
        request = Request(text, message["execute"], message.get("arguments", {}), ids)
        self.server.note(request)
        self.flush()
        self.server.step(request.command)(self, request)

    def flush(self) -> None:
        """Deliver what is still to be delivered from before."""
        before, self.server.before = self.server.before, b""
        self.send(before)

    def send(self, data: bytes) -> None:
        piece = self.server.piece or len(data)
        for start in range(0, len(data), piece or 1):
            self._client.sendall(data[start : start + piece])

    def close(self) -> None:
        self._client.shutdown(socket.SHUT_RDWR)

    def listens_for(self, seconds: float) -> bytes:
        """Return what more arrives within ``seconds``."""
        self._client.settimeout(seconds)
        try:
            return self._client.recv(1 << 16)
        except TimeoutError:
            return b""
        finally:
            self._client.settimeout(None)


def line(reply: Mapping[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"


# Steps of a script: what the agent does with one request.

Step = Callable[[Session, Request], None]


def reply_to(session: Session, request: Request) -> bytes:
    """Return the reply as an agent in good order writes it."""
    try:
        reply = {"return": session.server.value(request)}
    except AgentError as exc:
        reply = {"error": exc.error}
    mark = SENTINEL if request.command == "guest-sync-delimited" and "return" in reply else b""
    return mark + line({**reply, **request.ids})


def answers(session: Session, request: Request) -> None:
    session.send(reply_to(session, request))


def returns(value: Any) -> Step:
    return lambda session, request: session.send(line({"return": value, **request.ids}))


def fails(desc: str, error_class: str = "GenericError") -> Step:
    error = {"class": error_class, "desc": desc}
    return lambda session, request: session.send(line({"error": error, **request.ids}))


def sends(data: bytes) -> Step:
    """Send ``data`` in place of a reply."""
    return lambda session, request: session.send(data)


def swallows(session: Session, request: Request) -> None:
    """Never answer, and let the client's deadline pass; the newline makes it look at the clock."""
    session.server.let_time_pass()
    session.send(b"\n")


def answers_late(session: Session, request: Request) -> None:
    """Answer when the next request arrives, or to the next client."""
    session.server.before += reply_to(session, request)
    swallows(session, request)


def answers_in_halves(session: Session, request: Request) -> None:
    """Send half of the reply, and the rest when the next request arrives, or to the next client."""
    reply = reply_to(session, request)
    half = len(reply) // 2
    session.server.before += reply[half:]
    session.server.let_time_pass()
    session.send(reply[:half])


def closes(data: bytes = b"") -> Step:
    """Send ``data`` and close the connection."""

    def step(session: Session, request: Request) -> None:
        session.send(data)
        session.close()

    return step


def closes_afterwards(session: Session, request: Request) -> None:
    answers(session, request)
    session.close()


def turns_deaf(session: Session, request: Request) -> None:
    """Answer, then take nothing more until the test sets ``hears``."""
    answers(session, request)
    session.server.hears.wait(30)


def interrupts(session: Session, request: Request) -> None:
    """Send the test's thread a signal in place of a reply; the reply comes before the next one."""
    session.server.before += reply_to(session, request)
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGUSR1)


def in_turn(values: Iterable[Any]) -> Callable[[Mapping[str, Any]], Any]:
    """Return an answer that returns each of ``values`` once."""
    left = iter(values)

    def answer(arguments: Mapping[str, Any]) -> Any:
        value = next(left)
        if isinstance(value, AgentError):
            raise value
        return value

    return answer
