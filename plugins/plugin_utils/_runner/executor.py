# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run programs in the guest through guest-file-* alone: a resident runner takes requests from files and leaves results.

``Runner`` is an Executor for agents that allow nothing else. Output is never cut, and a program survives a restart of
the agent.

The runner is a small POSIX shell program in the guest, with a spool (spool.py) in /run, which is memory.
bootstrap.py starts it.
"""

from __future__ import annotations

import functools
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    CommandError,
    CommandUnavailable,
    GuestFileError,
    HandleLostError,
    NoRunnerError,
    OutcomeUnknownError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    ABOUT_PROGRAM,
    LARGEST_OUTPUT,
    ExecResult,
    Executor,
    GuestExec,
    Limits,
    Shell,
    before_start,
    lost,
    pauses,
    unknown,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import input_of
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import (
    is_frozen,
    lacks_room,
    patiently,
    when_thawed,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.spool import Spool, is_request, new_number

__all__ = ("HOME", "IDLE_SECONDS", "SPOOL", "GuestExecOrRunner", "Runner", "program")

HOME = "/run/qemu-guest-runner"
"""The directory of all of the runner's files; only root can enter it."""
SPOOL = f"{HOME}/1"
"""The runner's spool. The number is the protocol's version. It is raised only if requests change: an installed
runner of an older release is used on."""

IDLE_SECONDS = 600
"""How long a runner that was started on demand stays without work: at least this, at most twice this."""

_LOOK_SECONDS = 1.0
# How long a runner that is there may take to take a request that it was rung for; a freeze does not count.
_TAKE_SECONDS = 60.0
# How long to wait for a program's process number, from when it is asked for.
_PID_SECONDS = 10.0
# Attempts to hand a request over: an idle runner may end just then.
_ATTEMPTS = 3
_FILE = ("guest-file-open", "guest-file-read", "guest-file-write", "guest-file-close")
_NOT_KNOWN = "the runner in the guest does not know the program (was the guest reverted to a snapshot, or rebooted?)"
# See "nothing" in runner.sh.
_NO_INPUT = "exec </dev/null"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"

Start = Callable[[Agent], None]
"""Starts a runner through the agent given; returns when its ring can be opened, or raises."""


@functools.lru_cache(maxsize=1)
def program() -> str:
    """Return the runner's program, for the guest."""
    return (Path(__file__).parent / "runner.sh").read_text(encoding="ascii")


class _Request:
    """A request that was handed over, or is asked about: its ``content``, until it is seen that a runner has taken it.

    ``is_forgotten``: nobody asks for its result. ``checked`` is when it was checked last that a result can come, and
    ``rung_since`` from when on it is rung for again, without the time of a freeze; None: it is not.
    """

    def __init__(self, content: bytes | None = None, *, is_forgotten: bool = False) -> None:
        self.content = content
        self.is_forgotten = is_forgotten
        self.checked = time.monotonic()
        self.rung_since: float | None = None


class Runner(Executor):
    """Runs programs by a runner in the guest, whatever the agent allows besides files.

    ``start`` is called to get a runner when there is none. A program that cannot be started has the exit status 127 or
    126, as in a shell, and a signal that ended one shows as 128 + N. Every ``look_seconds``, a request that is not
    taken is rung for again, and the runner is checked to live; it is lost if it is not taken in ``take_seconds``.
    """

    def __init__(
        self,
        agent: Agent,
        start: Start,
        shell: Shell | None = None,
        *,
        look_seconds: float = _LOOK_SECONDS,
        take_seconds: float = _TAKE_SECONDS,
    ) -> None:
        super().__init__(agent, shell)
        self._start_one = start
        self._look_seconds = look_seconds
        self._take_seconds = take_seconds
        self._spool = Spool(agent, SPOOL)
        self._no_runner: CommandUnavailable | NoRunnerError | None = None
        self._requests: dict[int, _Request] = {}
        self._forgetting = False  # whether results of programs started now are not asked for

    def is_available(self) -> bool:
        """Return whether there is a runner or guest-exec to start one; without either, start a runner now."""
        return self.agent.supports(*_FILE) and (GuestExec(self.agent).is_available() or self._has_runner())

    @property
    def limits(self) -> Limits:
        return Limits(sys.maxsize, sys.maxsize, pipes_input=False, output=LARGEST_OUTPUT, has_sessions=True)

    def _has_runner(self) -> bool:
        try:
            if not self._spool.is_served():
                self._start_runner()
        except (CommandUnavailable, NoRunnerError) as exc:
            if is_frozen(exc):
                raise
            return False
        return True

    def _start_runner(self) -> None:
        """Start a runner; where that failed once, it is not tried again.

        :raise NoRunnerError: see start_runner.
        :raise CommandUnavailable: see start_runner.
        """
        if self._no_runner:
            raise self._no_runner
        try:
            self._start_one(self.agent)
        except (CommandUnavailable, NoRunnerError) as exc:
            if not is_frozen(exc):
                self._no_runner = exc
            raise

    def process_id(self, number: int) -> int:
        """Return the process number of the program with this request number, once it was started.

        It is 0 if the runner does not write it within _PID_SECONDS, for lack of room.

        :raise OutcomeUnknownError: if the runner has ended.
        """
        deadline = Deadline(_PID_SECONDS)
        for pause in pauses():
            text = patiently(self.agent, lambda: self._spool.read(f"{number}.pid")) or b""
            if re.fullmatch(rb"\d{1,9}\n", text):
                return int(text)
            if deadline.expired:
                break
            self._check_now_and_then(number)
            time.sleep(pause)
        return 0

    def label(self, number: int) -> str:
        return f"program of request {number}"

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Let the runner remove all files of programs started in this context once they end: no result is asked for.

        A shell is started without a new program then, and has no session of its own. An older, installed runner
        forgets a program after some minutes without a question.
        """
        self._forgetting = True
        try:
            yield
        finally:
            self._forgetting = False

    def start(
        self, path: str, arguments: Sequence[str] = (), *, env: Sequence[str] | None = None, stdin: bytes = b""
    ) -> int:
        self.agent.require(*_FILE)
        line = _command_line(path, arguments, env, here=self._forgetting)
        command = (line if stdin else f"{_NO_INPUT}\n{line}").encode("utf-8", "surrogateescape")
        number = new_number()
        self._requests[number] = request = _Request(input_of(command, stdin), is_forgotten=self._forgetting)
        with before_start():
            self._hand_over(number, request)
        return number

    def _hand_over(self, number: int, request: _Request) -> None:
        """Give the request to the runner; start one where there is none.

        :raise AgentSilentError: if none stays.
        :raise NoRunnerError: if there is no room for the request.
        """
        for _attempt in range(_ATTEMPTS):
            request.checked = time.monotonic()
            try:
                if self._spool.write(f"{number}.in", request.content or b"") and self._rung(number, request):
                    return
            except GuestFileError as exc:
                if not lacks_room(exc):
                    raise
                # To empty it makes room, even if the agent has none to note that it is open.
                with suppress(GuestFileError):
                    self._spool.write(f"{number}.in", b"")
                with suppress(GuestFileError):
                    self._spool.forget(number)
                raise NoRunnerError("The guest's /run is full; the runner there was given nothing to run.") from exc
            self._start_runner()
        raise AgentSilentError("the runner in the guest ends as soon as it was started.", command=ABOUT_PROGRAM)

    def _rung(self, number: int, request: _Request) -> bool:
        """Ring for a request; return False if there is no runner. If the guest is frozen meanwhile, wait for the thaw.

        If it is unknown whether the ring arrived, the program may run already. A caller that waits rings again.
        """
        line = f"{number}.part\n{number}" if request.is_forgotten else str(number)
        try:
            return when_thawed(self.agent, lambda: self._spool.ring(line))
        except QgaError as exc:
            if lacks_room(exc) or (isinstance(exc, CommandError) and exc.command == "guest-file-open"):
                raise
            return True  # the agent may have the line, and write it when it closes the ring

    def status(self, number: int) -> ExecResult | None:
        try:
            content = self._spool.ended(number)
            if not content and (number in self._requests or self._spool.has(f"{number}.taken")):
                self._check_now_and_then(number)
                return None
            ended = self._spool.result(number, content) if content else None
        except OutcomeUnknownError:
            raise
        except TransferError:  # others need the room that the rest of the output takes
            self._forget(number)
            raise
        except QgaError as exc:
            # Whatever failed, the error is about the program, not the question: it was handed over.
            raise lost(exc, f"contact was lost while the {self.label(number)} ran: {exc.message}") from None
        if not ended:
            raise HandleLostError(f"the runner was given no program {number}", command="guest-exec-status")
        rc, out, err = ended
        self._forget(number)
        return ExecResult(rc, None, out, err)

    def _forget(self, number: int) -> None:
        # The result has arrived; the runner removes remaining files some minutes later.
        with suppress(QgaError):
            self._spool.forget(number)
        self._requests.pop(number, None)

    def _check_now_and_then(self, number: int) -> None:
        """Check that a result can still come, if the last check was some time ago.

        :raise OutcomeUnknownError: if none can.
        """
        request = self._requests.setdefault(number, _Request())
        if time.monotonic() - request.checked < self._look_seconds:
            return
        reason = patiently(self.agent, lambda: self._why_none(number, request))
        if reason:
            raise unknown(reason)
        request.checked = time.monotonic()

    def _why_none(self, number: int, request: _Request) -> str:
        """Return why a request will have no result; nothing as long as it may have one. Ring again if it waits.

        Check this very request each time: the guest may have been reverted to a state before it.
        """
        if self._spool.has(f"{number}.taken"):
            request.content = None
            if self._spool.is_served() or self._spool.has(f"{number}.rc"):
                return ""
            return "the runner in the guest ended while the program ran (was the guest rebooted?)"
        if self._spool.has(f"{number}.dropped"):
            raise _not_run()
        if request.content is not None and self._spool.has(f"{number}.in"):
            return self._ring_again(number, request)
        # Look for .taken again: the request may have been taken since.
        is_known = request.content is not None and self._spool.has(f"{number}.taken")
        return "" if is_known else _NOT_KNOWN

    def _ring_again(self, number: int, request: _Request) -> str:
        """Ring for a request that waits to be taken; return why that is of no use any more.

        It is not written again: it may be taken at this very moment.
        """
        began = time.monotonic()
        if request.rung_since is None:
            request.rung_since = began
        if began - request.rung_since > self._take_seconds:
            return "the runner in the guest has not taken it (does it hang, or can it not write to /run?)"
        if not self._rung(number, request):
            self._hand_over(number, request)
        request.rung_since += time.monotonic() - began
        return ""


def _not_run() -> OutcomeUnknownError:
    """Return the error for a request that the runner has dropped. It is about the program, and knows its fate."""
    error = OutcomeUnknownError(
        "the runner in the guest has dropped it, because it was not told in time to run it (was the guest frozen?)",
        command=ABOUT_PROGRAM,
    )
    error.executed, error.fate = "no", "was not run"
    return error


class GuestExecOrRunner(Executor):
    """Runs programs by guest-exec where the agent allows that, else by ``runner``.

    This is C(auto) for operations and transfers, which so learn the signal that ended a program; the connection's
    commands try the runner first, see ``Connection._run_plain``.
    """

    def __init__(self, runner: Runner, shell: Shell | None = None) -> None:
        super().__init__(runner.agent, shell)
        self._runner = runner
        self._guest_exec = GuestExec(runner.agent)

    @property
    def _used(self) -> Executor:
        return self._guest_exec if self._guest_exec.is_available() else self._runner

    @property
    def limits(self) -> Limits:
        return self._used.limits

    def is_available(self) -> bool:
        return self._used.is_available()

    def start(
        self, path: str, arguments: Sequence[str] = (), *, env: Sequence[str] | None = None, stdin: bytes = b""
    ) -> int:
        return self._used.start(path, arguments, env=env, stdin=stdin)

    def status(self, number: int) -> ExecResult | None:
        return self._used.status(number)

    def process_id(self, number: int) -> int:
        return self._used.process_id(number)

    def label(self, number: int) -> str:
        # An error is being told: to ask the agent which executor is in use may fail, too.
        return (self._runner if is_request(number) else self._guest_exec).label(number)


def _command_line(path: str, arguments: Sequence[str], env: Sequence[str] | None, *, here: bool) -> str:
    """Return the shell command that runs a program.

    With ``here``, the shell that runs that command does the work of another one, because starting a program takes an
    emulated guest 60 ms.
    """
    words = " ".join(map(shlex.quote, [path, *arguments]))
    program = f'exec ${{own:+"$own"}} {words}'
    if here and path == "/bin/sh" and list(arguments[:-1]) == ["-c"]:
        program = arguments[1]
    if env is None:
        return program
    variables = [variable.partition("=") for variable in env]
    if not all(re.fullmatch(_NAME, name) for name, _equals, _value in variables):
        return f'exec ${{own:+"$own"}} env -i {" ".join(map(shlex.quote, env))} {words}'
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, _equals, value in variables) + program
