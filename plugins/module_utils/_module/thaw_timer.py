# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thaw timer: a process that thaws a guest at a deadline, whatever has become of the task that armed it.

The process is detached: it keeps no session, terminal, descriptor or lock of the task. It does not hold the agent's
channel while it waits. A file names the armed timer, so a timer is disarmed by changing that file; the file is written
and read while the channel is held, so that no timer thaws a guest that was frozen after it was disarmed. The timer
checks the file once a second. If the file is gone (a user's runtime directory ends with the last login), the timer
stays armed: better one thaw too many than a guest that stays frozen.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import syslog
import time
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, QgaError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import private_path

__all__ = ("RETRY_SECONDS", "Timer", "arm", "disarm")

RETRY_SECONDS = 3600.0
"""Seconds after its deadline for which a timer retries, if the agent is silent or its channel is taken."""

_NAME = "qga-thaw-timer"
_TICK = 1.0
_THAW_SECONDS = 60.0
_SECONDS_TO_ARM = 10.0


class Timer(NamedTuple):
    """A timer: its process, when it will thaw, and when it has thawed; the times as text, in UTC."""

    token: str
    pid: int
    seconds: float
    deadline: str
    fired: str | None = None

    def as_result(self) -> dict[str, Any]:
        """Return the timer for a task's result."""
        return {name: value for name, value in self._asdict().items() if name != "token"}


def arm(agent: Agent, seconds: float, *, tick: float = _TICK, retry_seconds: float = RETRY_SECONDS) -> Timer:
    """Start a timer that thaws ``agent``'s guest after ``seconds``, replacing an armed one.

    It is armed when this returns: its process runs, and the file names it. It looks at the file, and later retries,
    every ``tick`` seconds, until ``retry_seconds`` after its deadline.

    :raise OperationError: if it cannot be armed. Nothing has changed then.
    """
    work = _Work(agent.again(), private_path(agent.identity, "thaw"), _now() + seconds, tick, retry_seconds)
    timer = Timer(os.urandom(8).hex(), 0, seconds, _words(time.time() + seconds))
    try:
        answer = _fork(work, timer)
    except OSError as exc:
        answer = exc.strerror or str(exc)
    if not answer.isdigit():
        raise OperationError(f"the thaw timer could not be armed: {answer or 'its process does not answer'}.")
    return timer._replace(pid=int(answer))


def disarm(agent: Agent) -> Timer | None:
    """Disarm the timer of ``agent``'s guest: it ends without thawing.

    :return: that timer, or one that has fired since it was armed, or None.
    """
    path = private_path(agent.identity, "thaw")
    timer = _read(path)
    if timer and timer.token:
        _write(path, timer._replace(token=""))
        return timer
    return None


def _fork(work: _Work, timer: Timer) -> str:
    """Start the timer's process; return its pid, or its error message."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as answer:
        with open(writer, "wb", buffering=0):
            child = os.fork()
            if child == 0:
                _leave_home(work, timer, writer)
        with suppress(ChildProcessError):  # other code of this process may have reaped the child
            os.waitpid(child, 0)
        poller = select.poll()
        poller.register(answer, select.POLLIN)
        return answer.read(4096).decode("utf-8", "replace") if poller.poll(_SECONDS_TO_ARM * 1000) else ""


# The file


def _read(path: str) -> Timer | None:
    try:
        with open(path, encoding="utf-8") as file:
            return Timer(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: str, timer: Timer) -> None:
    new = f"{path}.{os.getpid()}"
    try:
        with open(new, "w", encoding="utf-8") as file:
            json.dump(timer._asdict(), file)
        os.replace(new, path)
    except OSError as exc:
        raise OperationError(f"cannot write {path}: {exc.strerror}.") from exc


# Times


def _now() -> float:
    # Time for which the host is suspended counts: the guest's applications wait meanwhile.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _words(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


# The process. It is forked from a module, whose code is in an archive that is deleted when the module ends, or from an
# Ansible worker. So it imports nothing, and it never returns from here.


class _Work(NamedTuple):
    agent: Agent
    path: str
    deadline: float
    tick: float
    retry_seconds: float


def _leave_home(work: _Work, timer: Timer, writer: int) -> NoReturn:
    """Run the intermediate child: its own child is adopted by init, and as no session leader never gets a terminal."""
    armed = False
    try:
        os.setsid()
        if os.fork() == 0:
            timer = timer._replace(pid=os.getpid())
            _detach(keep=writer)
            _write(work.path, timer)
            os.write(writer, b"%d" % timer.pid)
            os.close(writer)
            armed = True
            _watch(work, timer)
    except BaseException as exc:  # the syslog is the only place left to report it
        if not armed:
            os.write(writer, f"{exc}, {type(exc).__name__}".encode("utf-8", "replace"))
        syslog.syslog(syslog.LOG_ERR, f"{work.agent.name}: the thaw timer failed: {exc!r}")
    finally:
        os._exit(0)


def _detach(keep: int) -> None:
    """Detach from the task: signals, directory, descriptors, name."""
    # Finalising an inherited object would close its descriptor's number, which may be one of ours by then.
    gc.disable()
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.chdir("/")
    os.umask(0o077)
    # Else the C library could write log lines to the agent, if its descriptor's number were reused for the channel.
    syslog.openlog(_NAME)
    syslog.closelog()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for descriptor in _descriptors():
        if descriptor > 2 and descriptor != keep:
            with suppress(OSError):
                os.close(descriptor)
    syslog.openlog(_NAME, syslog.LOG_PID, syslog.LOG_DAEMON)
    # A search for the holder of the channel then finds a telling name.
    sys.argv = [_NAME]
    with suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(_NAME)


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return list(range(os.sysconf("SC_OPEN_MAX")))


def _watch(work: _Work, timer: Timer) -> None:
    while _now() < work.deadline:
        if not _counts(work, timer):
            return
        # In short steps, because sleep does not count the time for which the host is suspended.
        time.sleep(max(0.0, min(work.tick, work.deadline - _now())))
    trouble = ""
    sent = thawed = False
    while _now() < work.deadline + work.retry_seconds:
        try:
            with work.agent as agent:
                frozen = agent.execute("guest-fsfreeze-status") == "frozen"
                if not _counts(work, timer):
                    return
                if sent and not frozen:
                    break  # only the hook failed, or only the reply got lost
                # Thaw whatever the status is: it does not cover all filesystems that may be frozen.
                sent, thawed = True, thawed or frozen
                thawed = agent.execute("guest-fsfreeze-thaw", timeout=_THAW_SECONDS) > 0 or thawed
                break
        except QgaError as exc:
            if str(exc) != trouble:
                trouble = str(exc)
                syslog.syslog(syslog.LOG_WARNING, f"it cannot thaw the guest yet: {trouble}")
        time.sleep(work.tick)
    else:
        syslog.syslog(syslog.LOG_ERR, f"{work.agent.name}: gave up; the guest may still be frozen")
        return
    if thawed:
        syslog.syslog(
            syslog.LOG_WARNING, f"{work.agent.name}: thawed the guest's filesystems, {timer.seconds:g} s after arming"
        )
        with suppress(QgaError):
            _write(work.path, timer._replace(fired=_words(time.time())))


def _counts(work: _Work, timer: Timer) -> bool:
    current = _read(work.path)
    return current is None or current.token == timer.token
