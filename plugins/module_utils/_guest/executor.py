# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in the guest: start, wait, collect, through guest-exec or another Executor.

The agent writes the arguments of every guest-exec to the guest's syslog, gives a child its own bare environment, and
keeps 16 MiB of each output stream. login_shell.py works around all three.
"""

from __future__ import annotations

import base64
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import Any, Callable, Iterator, NamedTuple, Optional, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    HandleLostError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import SIZES, Sizes
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import patiently, when_back

__all__ = (
    "ABOUT_PROGRAM",
    "CAPTURE_LIMIT",
    "EXEC_COMMANDS",
    "LARGEST_OUTPUT",
    "ExecResult",
    "Executor",
    "GuestExec",
    "Limits",
    "Shell",
    "ShellCommand",
    "before_start",
    "lost",
    "lost_output",
    "pauses",
    "unknown",
)

CAPTURE_LIMIT = Agent.largest_output
"""Bytes of each output stream that the agent keeps; it drops the rest."""

LARGEST_OUTPUT = 256 << 20
"""Bytes of each output stream that are kept in the guest and read from there. There must be a limit, because a program
may run forever."""

EXEC_COMMANDS = _EXEC, _STATUS = "guest-exec", "guest-exec-status"
"""The agent's commands that running programs takes."""

ABOUT_PROGRAM = _EXEC
"""The command of errors that are about a program itself, not about a question; whichever Executor has started it."""

# Poll intervals in seconds: short for a quick program, growing for a long one.
# A poll takes a few milliseconds of a slow guest, and on average the result comes half an interval late.
_FIRST_POLL = 0.004
_LONGER = 1.12
_LONGEST_POLL = 0.25
_LONG = 24 * 3600.0
# The guest was away or frozen for the time that a poll takes beyond this: it does not count as the program's time.
_QUESTION_SECONDS = 1.0
# Bytes of content per second on the slowest channel (serial, see pace.py), and the most seconds added for it.
_SERIAL = 4000
_SERIAL_SECONDS = 60


class ExecResult(NamedTuple):
    """How a program ended (``rc`` or ``signal``, the other being None) and its output.

    ``stdout_truncated`` and ``stderr_truncated``: the program wrote more than the agent kept.
    """

    rc: int | None
    signal: int | None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False

    @property
    def shell_rc(self) -> int:
        """The exit status as a shell shows it: 128 + N for a program that signal N killed."""
        return self.rc if self.rc is not None else 128 + (self.signal or 0)


class ShellCommand(NamedTuple):
    """A shell command, and the equivalent call for an executor that needs no shell for it.

    ``function`` is one of CALLS in _warm/guest/shell_runner.py, which gets ``arguments``; without one it takes a shell.
    ``in_time``: the command may have to be killed, which is impossible for a shell that an interpreter has become.
    """

    text: bytes
    function: str = ""
    arguments: Sequence[str | int] = ()
    in_time: bool = False

    @classmethod
    def of(cls, text: str, function: str = "", *arguments: str | int) -> ShellCommand:
        """Return the ShellCommand whose shell text is ``text``."""
        return cls(text.encode("utf-8", "surrogateescape"), function, arguments)


Shell = Callable[[ShellCommand, bytes], Optional[Callable[[], Optional[ExecResult]]]]
"""Starts a command with an input, as run_shell() of login_shell.py does, and returns a function that waits for its end
and returns its ExecResult, or None if it was not run. Returns None if it started nothing."""


class Limits:
    """What an Executor takes and returns, in bytes.

    ``input`` is the most standard input that a program can be given, ``quick_input`` as much as arrives well within the
    timeout: more is sent through a file, in pieces. ``pipes_input``: it is a pipe, filled while the program reads it.
    ``output`` is how much of each output stream can be fetched: LARGEST_OUTPUT where all is kept in a file.
    ``has_sessions``: each program has a session of its own, as each command over ssh.
    """

    def __init__(
        self, input: int, quick_input: int, *, pipes_input: bool, output: int, has_sessions: bool = False
    ) -> None:
        self.input = input
        self.quick_input = quick_input
        self.pipes_input = pipes_input
        self.output = output
        self.has_sessions = has_sessions


class Executor(ABC):
    """Runs programs in the guest of ``agent``.

    ``number`` is this executor's own for a program; see ``process_id``. ``shell`` runs shell commands without a
    program, if one is ready in the guest. ``sizes`` is how content is cut that these programs are given or compare.
    """

    def __init__(self, agent: Agent, shell: Shell | None = None, *, sizes: Sizes = SIZES) -> None:
        self.agent = agent
        self.shell = shell
        self.sizes = sizes

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """What this executor takes and returns now."""

    @abstractmethod
    def is_available(self) -> bool:
        """Return whether programs can be run.

        :raise CommandUnavailable: if that is unknown, because the guest is frozen.
        """

    @abstractmethod
    def start(
        self, path: str, arguments: Sequence[str] = (), *, env: Sequence[str] | None = None, stdin: bytes = b""
    ) -> int:
        """Start a program and return its number.

        ``env`` is a list of ``NAME=value`` that replaces the agent's environment; None keeps it.

        :raise CommandUnavailable: if programs cannot be run.
        :raise CommandError: if this program cannot be run; its message says why.
        :raise TransferError: if ``stdin`` is longer than ``limits.input``.
        """

    @abstractmethod
    def status(self, number: int) -> ExecResult | None:
        """Return how a program ended; None while it runs. The end is reported once.

        :raise HandleLostError: if there is no such program.
        :raise TransferError: if the program has ended, and its output is damaged.
        """

    @abstractmethod
    def process_id(self, number: int) -> int:
        """Return the process number in the guest of a started program; 0 if unknown."""

    @abstractmethod
    def label(self, number: int) -> str:
        """Return what messages call a program, after the article."""

    def wait(self, number: int, seconds: float) -> ExecResult | None:
        """Wait up to ``seconds`` for the program ``number`` to end; return None if it has not.

        An agent that is away or a frozen guest is waited for, and that time does not count.

        :raise OutcomeUnknownError: if nothing more can be learned of the program, whatever the reason.
        :raise TransferError: if it has ended, and its output is damaged.
        """
        end = time.monotonic() + seconds
        for pause in pauses():
            asked = time.monotonic()
            result = self._look(number)
            if result is not None:
                return result
            now = time.monotonic()
            end += max(0.0, now - asked - _QUESTION_SECONDS)
            if now >= end:
                return None
            time.sleep(min(pause, end - now))
        return None  # not reached: pauses never end

    def finish(self, number: int) -> ExecResult:
        """Wait without limit until the program ``number`` has ended."""
        while True:
            result = self.wait(number, _LONG)
            if result is not None:
                return result

    def _look(self, number: int) -> ExecResult | None:
        """Return how the program ``number`` ended; None while it runs.

        A poll whose reply was lost is repeated. If that reply reported the end, the agent no longer knows the program.

        :raise OutcomeUnknownError: if the agent gives no usable reply. It has no cause: ansible-core would show the
            cause too, and a poll's fate is not the program's.
        :raise TransferError: if the program has ended, and its output is damaged.
        """
        try:
            return patiently(self.agent, lambda: self.status(number), final=_is_final)
        except HandleLostError as exc:
            causes = (
                "it was restarted, the guest went back to a snapshot, or the answer that the program ended was lost"
            )
            raise lost(exc, f"the agent knows no {self.label(number)} any more: {causes}") from None
        except TransferError:
            raise  # the program has ended, and a part of its output is missing
        except QgaError as exc:
            raise lost(exc, f"contact was lost while the {self.label(number)} ran: {exc.message}") from None


class GuestExec(Executor):
    """Programs through guest-exec. Their arguments end up in the guest's syslog.

    The agent keeps ``capture_limit`` bytes of each output stream.
    """

    def __init__(
        self,
        agent: Agent,
        shell: Shell | None = None,
        *,
        sizes: Sizes = SIZES,
        capture_limit: int = CAPTURE_LIMIT,
    ) -> None:
        super().__init__(agent, shell, sizes=sizes)
        self._capture_limit = capture_limit

    def is_available(self) -> bool:
        return self.agent.supports(*EXEC_COMMANDS)

    @property
    def limits(self) -> Limits:
        """While the channel's pace is unknown, all input goes at once, with a longer timeout: see ``start``."""
        most, pace = self.agent.largest_content, self.agent.pace
        quick = pace.carries(self.agent.timeout / 2, most) if pace.rate else most
        return Limits(most, quick, pipes_input=True, output=self.agent.largest_output)

    def start(
        self, path: str, arguments: Sequence[str] = (), *, env: Sequence[str] | None = None, stdin: bytes = b""
    ) -> int:
        limit = self.limits.input
        if len(stdin) > limit:
            error = TransferError(f"{len(stdin)} bytes are more standard input than one request can carry ({limit}).")
            error.executed, error.fate = "no", "was not run"
            raise error
        request: dict[str, Any] = {"path": path, "arg": list(arguments), "capture-output": True}
        if env is not None:
            request["env"] = list(env)
        if stdin:
            request["input-data"] = protocol.Base64(base64.b64encode(stdin).decode("ascii"))
        # A slow guest takes a megabyte per second: a large request must not make it look dead.
        more = len(stdin) // 1_000_000
        if not self.agent.pace.rate:  # the first request, and it may go by way of a serial port
            more = max(more, min(_SERIAL_SECONDS, len(stdin) // _SERIAL))
        timeout = self.agent.timeout + more
        reply = when_back(self.agent, lambda: self.agent.execute(_EXEC, request, timeout=timeout))
        return int(protocol.expect(reply.get("pid"), int, "pid"))

    def status(self, number: int) -> ExecResult | None:
        reply = self.agent.execute(_STATUS, {"pid": number})
        ended = protocol.expect(reply.get("exited"), bool, "exited")
        return _result(reply, self._capture_limit) if ended else None

    def process_id(self, number: int) -> int:
        return number

    def label(self, number: int) -> str:
        return f"program with pid {number}"


def _is_final(exc: QgaError) -> bool:
    return isinstance(exc, HandleLostError) or _is_about_program(exc)


def _is_about_program(exc: QgaError) -> bool:
    """Return whether ``exc`` is about a program itself, not about a poll of its status."""
    return isinstance(exc, OutcomeUnknownError) and exc.command == ABOUT_PROGRAM


def lost(exc: QgaError, message: str) -> OutcomeUnknownError:
    """Return the error for a program that was started before ``exc`` happened: it may have run.

    ``message`` says what happened. An error that is already about the program is returned as it is.
    """
    if isinstance(exc, OutcomeUnknownError) and _is_about_program(exc):
        return exc
    error = unknown(message, hint="" if isinstance(exc, OutcomeUnknownError) else exc.hint)
    error.address = exc.address
    return error


@contextmanager
def before_start() -> Iterator[None]:
    """Let errors of what comes before the start of a program say that the program was not run."""
    try:
        yield
    except (OutcomeUnknownError, ProtocolError, TransferError) as exc:
        exc.command, exc.executed, exc.fate, exc.hint = ABOUT_PROGRAM, "no", "was not run", ""
        raise


def unknown(message: str, *, hint: str = "") -> OutcomeUnknownError:
    """Return the error for a started program whose outcome is unknown; ``message`` says why.

    ``hint`` is about that reason, not about the program.
    """
    hint = f"{hint} Look at the guest before you repeat it.".lstrip()
    return OutcomeUnknownError(message, command=ABOUT_PROGRAM, hint=hint)


def lost_output() -> TransferError:
    """Return the error for a program that wrote more output than the guest can keep until it is fetched."""
    return TransferError(
        "the program's output did not fit in the guest's /run, where a task may have three quarters of what is free, "
        f"and {LARGEST_OUTPUT >> 20} MiB of each stream; what is missing is lost.",
        command=ABOUT_PROGRAM,
        hint="Have it write to a file on a disk of the guest, and fetch that.",
    )


def pauses(first: float = _FIRST_POLL) -> Iterator[float]:
    """Yield the seconds to wait before each next poll of a program."""
    pause = first
    while True:
        yield pause
        pause = min(pause * _LONGER, _LONGEST_POLL)


def _result(reply: dict[str, Any], capture_limit: int) -> ExecResult:
    rc, signal = reply.get("exitcode"), reply.get("signal")
    stdout, stderr = (_output(reply, name) for name in ("out-data", "err-data"))
    return ExecResult(
        rc=None if rc is None else protocol.expect(rc, int, "exitcode"),
        signal=None if signal is None else protocol.expect(signal, int, "signal"),
        stdout=stdout,
        stderr=stderr,
        stdout_truncated=_truncated(reply, "out-truncated", stdout, capture_limit),
        stderr_truncated=_truncated(reply, "err-truncated", stderr, capture_limit),
    )


def _output(reply: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(protocol.expect(reply.get(name, ""), str, name), validate=True)
    except ValueError as exc:
        raise TransferError(f"the agent sent invalid base64 as {name}", command=ABOUT_PROGRAM) from exc


def _truncated(reply: dict[str, Any], name: str, data: bytes, capture_limit: int) -> bool:
    # Agents before 7.2.20 say "truncated: false" when they truncate, and nothing otherwise; newer ones always say it,
    # and right. So only "true" is trusted, and a full buffer always counts as truncated.
    return reply.get(name) is True or len(data) >= capture_limit
