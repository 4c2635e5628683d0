# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thaw timer: a process that thaws a guest at a deadline, whatever has become of the task that armed it.

The process is detached: it keeps no session, terminal or lock of the task, and of its descriptors one: a line by which
it notices that the task has died while the guest was frozen for it. It thaws at once then. It does not hold the agent's
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
import socket
import sys
import syslog
import time
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, QgaError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import private_path

__all__ = ("RETRY_SECONDS", "Armed", "Timer", "arm", "disarm")

RETRY_SECONDS = 3600.0
"""Seconds after its deadline for which a timer retries, if the agent is silent or its channel is taken."""

_NAME = "qga-thaw-timer"
_TICK = 1.0
_THAW_SECONDS = 60.0
_SECONDS_TO_ARM = 10.0
_LEAVE, _END = b"leave", b"end"


class Timer(NamedTuple):
    """A timer: its process, when it will thaw at the latest, and when it has thawed; the times as text, in UTC.

    Without ``seconds``, it has no deadline.
    """

    token: str
    pid: int
    seconds: float
    deadline: str
    fired: str | None = None

    def as_result(self) -> dict[str, Any]:
        """Return the timer for a task's result."""
        return {name: value for name, value in self._asdict().items() if name != "token"}


class Armed(NamedTuple):
    """A timer, and this process's end of its line."""

    timer: Timer
    line: socket.socket

    def leave(self) -> None:
        """Have it go on without this process, to its deadline."""
        self._say(_LEAVE)

    def end(self) -> None:
        """End it, whatever its file says."""
        self._say(_END)

    def _say(self, word: bytes) -> None:
        with suppress(OSError):  # it has been replaced, and has ended
            self.line.sendall(word)
        self.line.close()


def arm(agent: Agent, seconds: float, *, tick: float = _TICK, retry_seconds: float = RETRY_SECONDS) -> Armed:
    """Start a timer that thaws ``agent``'s guest after ``seconds`` (0: no deadline), replacing an armed one.

    It thaws at once if its line is closed before that, as it is when this process dies.

    It is armed when this returns: its process runs, and the file names it. It looks at the file, and later retries,
    every ``tick`` seconds, for ``retry_seconds``.

    :raise OperationError: if it cannot be armed. Nothing has changed then.
    """
    work = _Work(
        agent.again(),
        private_path(agent.identity, "thaw"),
        _now() + seconds if seconds else float("inf"),
        tick,
        retry_seconds,
    )
    timer = Timer(os.urandom(8).hex(), 0, seconds, _words(time.time() + seconds))
    line, its_end = socket.socketpair()
    try:
        with its_end:
            answer = _fork(work, timer, line, its_end)
    except OSError as exc:
        answer = exc.strerror or str(exc)
    if not answer.isdigit():
        line.close()
        raise OperationError(f"the thaw timer could not be armed: {answer or 'its process does not answer'}.")
    return Armed(timer._replace(pid=int(answer)), line)


def disarm(agent: Agent, *, if_without_deadline: bool = False) -> Timer | None:
    """Disarm the timer of ``agent``'s guest, or only one without a deadline: it ends without thawing.

    :return: that timer, or one that has fired since it was armed, or None.
    """
    path = private_path(agent.identity, "thaw")
    timer = _read(path)
    if timer and timer.token and not (if_without_deadline and timer.seconds):
        _write(path, timer._replace(token=""))
        return timer
    return None


def _fork(work: _Work, timer: Timer, line: socket.socket, its_end: socket.socket) -> str:
    """Start the timer's process; return its pid, or its error message."""
    child = os.fork()
    if child == 0:
        _leave_home(work, timer, its_end.fileno())
    its_end.close()
    with suppress(ChildProcessError):  # other code of this process may have reaped the child
        os.waitpid(child, 0)
    return line.recv(4096).decode("utf-8", "replace") if _readable(line.fileno(), _SECONDS_TO_ARM) else ""


def _readable(descriptor: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


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
        with suppress(OSError):
            os.unlink(new)
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


def _leave_home(work: _Work, timer: Timer, line: int) -> NoReturn:
    """Run the intermediate child: its own child is adopted by init, and as no session leader never gets a terminal."""
    armed = False
    try:
        os.setsid()
        if os.fork() == 0:
            timer = timer._replace(pid=os.getpid())
            _detach(keep=line)
            _write(work.path, timer)
            os.write(line, b"%d" % timer.pid)
            armed = True
            reason = _due(work, timer, line)
            if reason:
                _thaw(work, timer, reason)
    except BaseException as exc:  # the syslog is the only place left to report it
        if not armed:
            text = str(exc).rstrip(".") if isinstance(exc, QgaError) else f"{exc}, {type(exc).__name__}"
            os.write(line, text.encode("utf-8", "replace"))
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


def _due(work: _Work, timer: Timer, line: int) -> str:
    """Wait until it is time to thaw, and return why; empty if there is nothing to thaw any more."""
    left = False
    while _now() < work.deadline:
        if not _counts(work, timer):
            return ""
        # In short steps, because waiting does not count the time for which the host is suspended.
        step = max(0.0, min(work.tick, work.deadline - _now()))
        if left:
            time.sleep(step)
        elif _readable(line, step):
            word = os.read(line, len(_LEAVE))
            if word == _END:
                return ""
            left = word == _LEAVE
            if not left:
                return "because the task that had it frozen ended" if _counts(work, timer) else ""
    return f"{timer.seconds:g} s after arming"


def _thaw(work: _Work, timer: Timer, reason: str) -> None:
    deadline = _now() + work.retry_seconds
    trouble = ""
    sent = thawed = False
    while _now() < deadline:
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
                if not frozen or agent.execute("guest-fsfreeze-status") != "frozen":
                    break
                raise OperationError("its status is frozen after a thaw, too.")
        except QgaError as exc:
            if str(exc) != trouble:
                trouble = str(exc)
                syslog.syslog(syslog.LOG_WARNING, f"it cannot thaw the guest yet: {trouble}")
        time.sleep(work.tick)
    else:
        syslog.syslog(syslog.LOG_ERR, f"{work.agent.name}: gave up; the guest may still be frozen")
        return
    if thawed:
        syslog.syslog(syslog.LOG_WARNING, f"{work.agent.name}: thawed the guest's filesystems, {reason}")
        with suppress(QgaError):
            _write(work.path, timer._replace(fired=_words(time.time())))


def _counts(work: _Work, timer: Timer) -> bool:
    current = _read(work.path)
    return current is None or current.token == timer.token
