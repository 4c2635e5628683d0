# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in the guest through guest-exec: start, wait, collect.

The agent writes the arguments of every guest-exec to the guest's syslog, gives a child its own bare environment, and
keeps 16 MiB of each output stream. login_shell.py is the way around all three.
"""

from __future__ import annotations

import base64
import math
import time
from typing import Any, Iterator, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    HandleLostError,
    OutcomeUnknownError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import patiently

__all__ = (
    "CAPTURE_LIMIT",
    "LARGEST_OUTPUT",
    "ExecResult",
    "can_run_programs",
    "finish",
    "lost",
    "lost_output",
    "pauses",
    "start",
    "unknown",
    "wait",
)

CAPTURE_LIMIT = 16 * 1024 * 1024
"""Bytes of each output stream that the agent keeps; it drops the rest."""

LARGEST_OUTPUT = 256 << 20
"""Bytes of each output stream of a program that are kept in the guest, and read from there: a program may never end,
nor a guest."""

_EXEC, _STATUS = _NEEDED = ("guest-exec", "guest-exec-status")

# How often a running program is asked after, in seconds: at once for a quick one, seldom for a long one.
# A question takes a few milliseconds of a slow guest, and on average the answer comes half a pause late.
_FIRST_POLL = 0.004
_LONGER = 1.12
_LONGEST_POLL = 0.25
_LONG = 24 * 3600.0
# What a question takes beyond this, the guest was away, or frozen: that is not the program's time.
_QUESTION_SECONDS = 1.0
# Bytes per second of the slowest way to an agent, and for how long it is thought to be such.
_SERIAL = 4000
_SERIAL_SECONDS = 60


class ExecResult(NamedTuple):
    """How a program ended: by ``rc`` or by ``signal``, the other being None; what it wrote.

    ``stdout_truncated`` and ``stderr_truncated`` tell that the program wrote more than the agent kept.
    """

    rc: int | None
    signal: int | None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False

    @property
    def shell_rc(self) -> int:
        """The exit status as a shell shows it: 128 + N for a program that signal N ended."""
        return self.rc if self.rc is not None else 128 + (self.signal or 0)


def can_run_programs(agent: Agent) -> bool:
    """Return whether the agent has guest-exec and may use it."""
    return agent.supports(*_NEEDED)


def start(
    agent: Agent,
    path: str,
    arguments: Sequence[str] = (),
    *,
    env: Sequence[str] | None = None,
    stdin: bytes = b"",
) -> int:
    """Start a program with guest-exec and return its pid. Its arguments end in the guest's syslog.

    ``env`` is a list of ``NAME=value`` that replaces the agent's environment; None leaves that as it is.

    :raise CommandUnavailable: if the agent cannot run programs.
    :raise CommandError: if the program cannot be run; its message says why.
    :raise TransferError: if ``stdin`` is larger than what one request can carry.
    """
    if len(stdin) > agent.largest_input:
        limit = agent.largest_input
        error = TransferError(f"{len(stdin)} bytes are more standard input than one request can carry ({limit}).")
        error.executed = "no"
        raise error
    request: dict[str, Any] = {"path": path, "arg": list(arguments), "capture-output": True}
    if env is not None:
        request["env"] = list(env)
    if stdin:
        request["input-data"] = protocol.Base64(base64.b64encode(stdin).decode("ascii"))
    # A slow guest takes a megabyte per second; what takes longer for its size is not to be taken for a dead one.
    seconds = len(stdin) // 1_000_000
    if not agent.pace.rate:  # the first request, and it may go by way of a serial port
        seconds = max(seconds, min(_SERIAL_SECONDS, len(stdin) // _SERIAL))
    reply = agent.execute(_EXEC, request, timeout=agent.timeout + seconds)
    return int(protocol.expect(reply.get("pid"), int, "pid"))


def wait(agent: Agent, pid: int, seconds: float) -> ExecResult | None:
    """Wait until the program ``pid`` has ended, for at most ``seconds``; None if it has not.

    The agent tells the end of a program once, so the result is taken by this call. While the agent is away or the guest
    is frozen, it is waited for, and that time does not count.

    :raise OutcomeUnknownError: if nothing more can be learned of the program, whatever the reason.
    :raise TransferError: if it has ended, and its output is damaged.
    """
    end = time.monotonic() + seconds
    for pause in pauses():
        asked = time.monotonic()
        result = _look(agent, pid)
        if result is not None:
            return result
        now = time.monotonic()
        end += max(0.0, now - asked - _QUESTION_SECONDS)
        if now >= end:
            return None
        time.sleep(min(pause, end - now))
    return None  # not reached: pauses never end


def _look(agent: Agent, pid: int) -> ExecResult | None:
    """Return how the program ``pid`` ended; None if it runs.

    An answer that was lost is asked for again. If it told that the program ended, the agent knows no such program now.

    :raise OutcomeUnknownError: if the agent says nothing that can be understood. It has no cause: ansible-core shows
        that too, and the fate of a question is not the program's.
    :raise TransferError: if the program has ended, and its output is damaged.
    """
    try:
        reply = patiently(agent, lambda: agent.execute(_STATUS, {"pid": pid}), final=_is_final)
        if not protocol.expect(reply.get("exited"), bool, "exited"):
            return None
        return _result(reply, math.inf if agent.captures_all else CAPTURE_LIMIT)
    except HandleLostError as exc:
        causes = "it was restarted, the guest went back to a snapshot, or the answer that the program ended was lost"
        raise lost(exc, f"the agent knows no program with pid {pid} any more: {causes}") from None
    except TransferError:
        raise  # the program has ended, and a part of its output is missing
    except QgaError as exc:
        raise lost(exc, f"contact was lost while the program with pid {pid} ran: {exc.message}") from None


def _is_final(exc: QgaError) -> bool:
    return isinstance(exc, HandleLostError) or _is_about_program(exc)


def _is_about_program(exc: QgaError) -> bool:
    """Return whether ``exc`` tells the fate of a program, and not that of a question after it."""
    return isinstance(exc, OutcomeUnknownError) and exc.command == _EXEC


def lost(exc: QgaError, message: str) -> OutcomeUnknownError:
    """Return what ``exc`` means for a program that was started before: it may have run, whatever became of ``exc``.

    ``message`` says what happened. An error that speaks of the program already is returned as it is.
    """
    if isinstance(exc, OutcomeUnknownError) and _is_about_program(exc):
        return exc
    error = unknown(message, hint="" if isinstance(exc, OutcomeUnknownError) else exc.hint)
    error.address = exc.address
    return error


def unknown(message: str, *, hint: str = "") -> OutcomeUnknownError:
    """Return the error of a program that was started, and of which nobody can tell what became; ``message`` says why.

    A ``hint`` is about that, not about the program.
    """
    return OutcomeUnknownError(message, command=_EXEC, hint=f"{hint} Look at the guest before you repeat it.".lstrip())


def lost_output() -> TransferError:
    """Return the error of a program that wrote more than the guest can keep until it is fetched."""
    return TransferError(
        f"the program's output did not fit in the guest's /run, where a task may have half of what is free, and "
        f"{LARGEST_OUTPUT >> 20} MiB of each stream; what is missing is lost.",
        hint="Have it write to a file on a disk of the guest, and fetch that.",
    )


def pauses(first: float = _FIRST_POLL) -> Iterator[float]:
    """Yield how many seconds to wait before each next question after a program."""
    pause = first
    while True:
        yield pause
        pause = min(pause * _LONGER, _LONGEST_POLL)


def finish(agent: Agent, pid: int) -> ExecResult:
    """Wait until the program ``pid`` has ended, however long that takes."""
    while True:
        result = wait(agent, pid, _LONG)
        if result is not None:
            return result


def _result(reply: dict[str, Any], limit: float) -> ExecResult:
    rc, signal = reply.get("exitcode"), reply.get("signal")
    stdout, stderr = (_output(reply, name) for name in ("out-data", "err-data"))
    return ExecResult(
        rc=None if rc is None else protocol.expect(rc, int, "exitcode"),
        signal=None if signal is None else protocol.expect(signal, int, "signal"),
        stdout=stdout,
        stderr=stderr,
        stdout_truncated=_truncated(reply, "out-truncated", stdout, limit),
        stderr_truncated=_truncated(reply, "err-truncated", stderr, limit),
    )


def _output(reply: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(protocol.expect(reply.get(name, ""), str, name), validate=True)
    except ValueError as exc:
        raise TransferError(f"the agent sent invalid base64 as {name}") from exc


def _truncated(reply: dict[str, Any], name: str, data: bytes, limit: float) -> bool:
    # Agents before 7.2.20 say "truncated: false" when they truncate, and nothing otherwise; newer ones say it right and
    # always. So the flag means what it says only if it says true, and a full buffer is never taken for a whole one.
    return reply.get(name) is True or len(data) >= limit
