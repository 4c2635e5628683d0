# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in the guest through guest-exec: start, wait, collect.

The agent writes the arguments of every guest-exec to the guest's syslog, gives a child its own bare environment, and
keeps 16 MiB of each output stream. ``run_shell`` is the way around all three: the command travels on stdin, behind a
constant program that gives it the environment of a login and can keep output whole.
"""

from __future__ import annotations

import base64
import errno
import io
import secrets
import shlex
import time
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional, Sequence

from ansible_collections.qemu.guest.plugins.module_utils import _wire
from ansible_collections.qemu.guest.plugins.module_utils._agent import Agent
from ansible_collections.qemu.guest.plugins.module_utils._channel import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._errors import (
    CommandError,
    GuestFileError,
    HandleLostError,
    OperationError,
    OutcomeUnknownError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._files import copy_out

__all__ = ("CAPTURE_LIMIT", "ExecResult", "can_run_programs", "check_shell", "kill", "run", "run_shell", "sha256", "start", "start_shell", "wait")

CAPTURE_LIMIT = 16 * 1024 * 1024
"""Bytes of each output stream that the agent keeps; it drops the rest."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDED = ("guest-exec", "guest-exec-status")

# How often a running program is asked after, in seconds: at once for a quick one, seldom for a long one.
_FIRST_POLL = 0.002
_LONGEST_POLL = 0.25


@dataclass(frozen=True)
class ExecResult:
    """How a program ended: by ``rc`` or by ``signal``, the other being None; what it wrote.

    ``stdout_truncated`` and ``stderr_truncated`` tell that the program wrote more than the agent kept.
    """

    rc: Optional[int]
    signal: Optional[int]
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
    env: Optional[Sequence[str]] = None,
    stdin: bytes = b"",
) -> int:
    """Start a program with guest-exec and return its pid. Its arguments end in the guest's syslog.

    ``env`` is a list of ``NAME=value`` that replaces the agent's environment; None leaves that as it is.

    :raise CommandUnavailable: if the agent cannot run programs.
    :raise CommandError: if the program cannot be run; ``desc`` says why.
    """
    request: Dict[str, Any] = {"path": path, "arg": list(arguments), "capture-output": True}
    if env is not None:
        request["env"] = list(env)
    if stdin:
        request["input-data"] = base64.b64encode(stdin).decode("ascii")
    reply = agent.execute("guest-exec", request)
    return int(_wire.expect(reply.get("pid"), int, "pid"))


def wait(agent: Agent, pid: int, seconds: Optional[float] = None) -> Optional[ExecResult]:
    """Wait until the program ``pid`` has ended, for at most ``seconds``; None if it has not.

    The agent tells the end of a program once, so the result is taken by this call.

    :raise OutcomeUnknownError: if the agent was restarted meanwhile: it ends its programs and forgets them.
    """
    deadline = Deadline(float("inf") if seconds is None else seconds)
    interval = _FIRST_POLL
    while True:
        try:
            reply = agent.execute("guest-exec-status", {"pid": pid})
        except HandleLostError as exc:
            error = OutcomeUnknownError(
                f"the agent does not know the program with pid {pid} any more: it was restarted, and ended what it ran",
                command="guest-exec",
            )
            error.address = exc.address
            raise error from exc
        if _wire.expect(reply.get("exited"), bool, "exited"):
            return _result(reply)
        if deadline.expired:
            return None
        time.sleep(min(interval, deadline.left()))
        interval = min(interval * 1.25, _LONGEST_POLL)


def _result(reply: Dict[str, Any]) -> ExecResult:
    rc, signal = reply.get("exitcode"), reply.get("signal")
    stdout, stderr = (_output(reply, name) for name in ("out-data", "err-data"))
    return ExecResult(
        rc=None if rc is None else _wire.expect(rc, int, "exitcode"),
        signal=None if signal is None else _wire.expect(signal, int, "signal"),
        stdout=stdout,
        stderr=stderr,
        stdout_truncated=_truncated(reply, "out-truncated", stdout),
        stderr_truncated=_truncated(reply, "err-truncated", stderr),
    )


def _output(reply: Dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(_wire.expect(reply.get(name, ""), str, name), validate=True)
    except ValueError as exc:
        raise TransferError(f"the agent sent invalid base64 as {name}") from exc


def _truncated(reply: Dict[str, Any], name: str, data: bytes) -> bool:
    # Agents before 7.2.20 say "truncated: false" when they truncate, and nothing otherwise; newer ones say it right and
    # always. So the flag means what it says only if it says true, and a full buffer is never taken for a whole one.
    return reply.get(name) is True or len(data) >= CAPTURE_LIMIT


def run(
    agent: Agent,
    path: str,
    arguments: Sequence[str] = (),
    *,
    env: Optional[Sequence[str]] = None,
    stdin: bytes = b"",
) -> ExecResult:
    """Start a program and wait for its end, however long that takes."""
    pid = start(agent, path, arguments, env=env, stdin=stdin)
    result = wait(agent, pid)
    if result is None:  # not reached: an unbounded wait ends by a result or an exception
        raise OutcomeUnknownError(f"lost the program with pid {pid}", command="guest-exec")
    return result


# The program that stands in the guest's syslog is `/bin/sh -c 'eval "$QEMU_GUEST"'`; the text below is in that
# variable (the environment is not logged) and the same for every command. It reads the command, a count of lines and
# then the lines, from stdin: `read` takes byte by byte, so what follows is left for the command's own stdin.
_PROLOGUE = r"""
unset QEMU_GUEST
IFS= read -r n
c=
while [ "$n" -gt 0 ]; do
    IFS= read -r l
    c=$c$l'
'
    n=$((n - 1))
done
u=root
[ -O / ] || u=$(id -un)
eval "HOME=~$u"
case $HOME in /*) ;; *) HOME=/ ;; esac
export HOME USER="$u" LOGNAME="$u" SHELL=/bin/sh LANG=C.UTF-8
for f in /etc/environment /etc/default/locale /etc/locale.conf; do
    [ -r "$f" ] || continue
    while IFS= read -r l || [ -n "$l" ]; do
        l=${l#export }
        v=${l%%=*}
        case $v in '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
        case $l in *=*) ;; *) continue ;; esac
        l=${l#*=}
        l=${l#[\"\']}
        l=${l%[\"\']}
        export "$v=$l"
    done <"$f"
done
cd "$HOME" 2>/dev/null || cd /
unset OLDPWD
"""
# The command takes the shell's place: what ends it, a signal included, is what the agent tells.
_REPLACE = 'eval "unset c f l n u v; $c"\n'
# Each stream passes a filter that hands the agent what it can keep and writes the rest, if there is any, to files in
# /run that only root can read: split makes no file for an empty rest.
_SPOOL = r"""
t=$QEMU_GUEST_SPOOL
unset QEMU_GUEST_SPOOL f l n u v
keep() {
    head -c %(limit)d
    umask 077
    exec split -a 3 -b 1024m - "$1"
}
exec 3>&1 4>&2
r=$({ { { (
    exec 3>&- 4>&- 5>&- 6>&-
    eval "unset c t; $c"
); echo $? >&5; } 2>&1 >&6 | keep "$t.err." >&4 3>&- 4>&- 5>&- 6>&-; } 6>&1 | keep "$t.out." >&3 3>&- 4>&- 5>&-; } 5>&1)
exit "$r"
"""
# Small enough for every transport (libvirt refuses replies above 4 MiB), large enough for what modules return.
_SPOOL_LIMIT = 1024 * 1024


def run_shell(agent: Agent, command: bytes, stdin: bytes = b"", *, whole: bool = True) -> ExecResult:
    """Run the POSIX shell command ``command`` as a login would, without a trace of it in the guest's logs.

    HOME, USER, PATH and locale are set as for a login of the agent's user (root), /etc/environment included, and the
    working directory is HOME. ``whole`` keeps output of any size; without it the command takes the shell's place, so
    that ``signal`` is exact, and output beyond CAPTURE_LIMIT is dropped, and marked as truncated.

    :raise CommandUnavailable: if the agent cannot run programs.
    """
    token = f"/run/qemu-guest.{secrets.token_hex(16)}"
    pid = start_shell(agent, command, stdin, spool=token if whole else "")
    result = wait(agent, pid)
    if result is None:  # not reached: an unbounded wait ends by a result or an exception
        raise OutcomeUnknownError(f"lost the program with pid {pid}", command="guest-exec")
    return _with_spooled(agent, result, token) if whole else result


def check_shell(agent: Agent, command: str, purpose: str) -> bytes:
    """Run the shell command ``command`` in the guest and return what it wrote to its standard output.

    :raise OperationError: if it fails: that ``purpose`` could not be done, and the guest's own words why.
    """
    result = run_shell(agent, command.encode("utf-8", "surrogateescape"), whole=False)
    if result.shell_rc:
        reason = result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise OperationError(f"cannot {purpose} in the guest: {reason or f'exit status {result.shell_rc}'}")
    return result.stdout


def start_shell(agent: Agent, command: bytes, stdin: bytes = b"", *, spool: str = "") -> int:
    """Start what ``run_shell`` runs and return its pid. ``spool`` is the path that output beyond the limit begins with."""
    env = [f"PATH={_PATH}", "QEMU_GUEST=" + _PROLOGUE + (_SPOOL % {"limit": _SPOOL_LIMIT} if spool else _REPLACE)]
    if spool:
        env.append(f"QEMU_GUEST_SPOOL={spool}")
    lines = command.count(b"\n") + 1
    return start(
        agent, "/bin/sh", ["-c", 'eval "$QEMU_GUEST"'], env=env, stdin=b"%d\n%b\n%b" % (lines, command, stdin)
    )


def _with_spooled(agent: Agent, result: ExecResult, spool: str) -> ExecResult:
    """Return ``result`` with the output that did not fit, and remove that from the guest."""
    streams = {name: getattr(result, name) for name in ("stdout", "stderr")}
    spooled = {"stdout": f"{spool}.out.", "stderr": f"{spool}.err."}
    full = [name for name, data in streams.items() if len(data) >= _SPOOL_LIMIT]
    if not full:
        return result
    try:
        for name in full:
            streams[name] += _read_pieces(agent, spooled[name])
    finally:
        run_shell(agent, f"rm -f {spool}.*".encode("ascii"), whole=False)
    return replace(result, **streams)


def _read_pieces(agent: Agent, prefix: str) -> bytes:
    """Return the content of ``split``'s output files, in the order of their names; empty if there is none."""
    data = io.BytesIO()
    for number in range(26**3):
        name = prefix + "".join(chr(ord("a") + number // 26**place % 26) for place in (2, 1, 0))
        try:
            copy_out(agent, name, data.write)
        except GuestFileError as exc:
            if exc.errno == errno.ENOENT:
                break
            raise
    return data.getvalue()


# Who belongs to a program is found before the first is ended: an orphan is nobody's child any more.
_KILL = r"""
tree=%(pid)d
more=1
while [ "$more" ]; do
    more=
    for f in /proc/[0-9]*/stat; do
        { IFS= read -r l <"$f"; } 2>/dev/null || continue
        p=${f#/proc/}
        p=${p%%/stat}
        set -- ${l##*) }
        case " $tree " in
        *" $p "*) ;;
        *" $2 "*) tree="$tree $p" more=1 ;;
        esac
    done
done
for s in TERM KILL; do
    kill -s $s $tree 2>/dev/null
    i=0
    while [ $i -lt %(grace)d ]; do
        kill -0 $tree 2>/dev/null || exit 0
        sleep 1
        i=$((i + 1))
    done
done
"""


def kill(agent: Agent, pid: int, grace: int = 5) -> None:
    """End the program ``pid`` and all that it started: SIGTERM, and after ``grace`` seconds SIGKILL."""
    run_shell(agent, (_KILL % {"pid": pid, "grace": grace}).encode("ascii"), whole=False)


def sha256(agent: Agent, path: str, size: Optional[int] = None) -> Optional[str]:
    """Return the SHA-256, in hex, of a regular file in the guest or of its first ``size`` bytes, computed there.

    None if that cannot be told: no sha256sum in the guest, or a file such as those of /proc that has no size.
    """
    name = shlex.quote(path)
    source = f"cat {name}" if size is None else f"head -c {size} {name}"
    command = f"[ -f {name} ] && [ -s {name} ] && {source} | sha256sum"
    try:
        result = run_shell(agent, command.encode("utf-8", "surrogateescape"), whole=False)
    except CommandError:
        return None
    digest = result.stdout.split(b" ")[0].decode("ascii", "replace")
    return digest if result.rc == 0 and len(digest) == 64 else None
