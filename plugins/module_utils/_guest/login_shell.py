# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shell commands in a POSIX guest, run as in a login and without a trace in the guest's logs.

What the agent does to programs, executor.py tells. So the command is sent on stdin to a constant program that sets up
the environment of a login and can keep output of any size.
"""

from __future__ import annotations

import functools
import io
import secrets
from contextlib import suppress
from typing import Callable, Optional, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, QgaError, TransferError
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    ABOUT_PROGRAM,
    LARGEST_OUTPUT,
    ExecResult,
    Executor,
    ShellCommand,
    lost,
    lost_output,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import Limit, copy_in, copy_out, exists
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import patiently, when_thawed

__all__ = (
    "ABANDONED",
    "PATH",
    "READ_COMMAND",
    "REST",
    "begin_shell",
    "check_shell",
    "checked",
    "input_of",
    "kill",
    "login_program",
    "new_prefix",
    "remove_rest",
    "remove_rest_command",
    "run_shell",
    "shell_result",
    "start_shell",
    "usable",
)

Ended = TypeVar("Ended", ExecResult, Optional[ExecResult])

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Seconds that a program gets to end after SIGKILL (one blocked in the kernel may not end).
_SECONDS_TO_DIE = 10

_ARGUMENTS = ("-c", 'eval "$QEMU_GUEST"')

READ_COMMAND = r"""
IFS= read -r n
c=
while [ "$n" -gt 0 ]; do
    IFS= read -r l
    c=$c$l'
'
    n=$((n - 1))
done
"""
"""The shell program that reads the command at the start of ``input_of`` into C(c). `read` takes byte by byte, so the
rest is left for the command's own stdin."""

_UNUSABLE = "the guest's /bin/sh lacks [ A -ef B ]; have dash, bash or the like there"

# The guest's syslog shows `/bin/sh -c 'eval "$QEMU_GUEST"'`; the text below is in that variable (the environment is
# not logged) and the same for every command. It reads the command from stdin.
_PROLOGUE = (
    f"""
[ / -ef / ] 2>/dev/null || {{
    echo "{_UNUSABLE}" >&2
    exit 1
}}
"""
    r"""
unset QEMU_GUEST
umask 022
{ echo 0 >/proc/self/oom_score_adj; } 2>/dev/null
"""
    + READ_COMMAND
    + r"""
u=root
[ -O / ] || u=$(id -un)
eval "HOME=~$u"
case $HOME in /*) ;; *) HOME=/ ;; esac
while IFS=: read -r n f f f f f v && [ "$n" != "$u" ]; do v=; done 2>/dev/null </etc/passwd
case $v in */nologin | */false) v= ;; esac
[ -x "$v" ] || v=/bin/sh
export HOME USER="$u" LOGNAME="$u" SHELL="$v" LANG=C.UTF-8
for f in /etc/environment /etc/default/locale /etc/locale.conf; do
    [ -r "$f" ] || continue
    while IFS= read -r l || [ -n "$l" ]; do
        l=${l#export }
        v=${l%%=*}
        # No variable that this program works with, and none that is read-only in bash, which would end.
        case $v in '' | [0-9]* | *[!A-Za-z0-9_]* | [a-z] | UID | EUID | PPID | SHELLOPTS | BASHOPTS) continue ;; esac
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
)
# The program is put together by `start_shell`: _OPEN or _KEEP, _INPUT, _SPLIT, _APART, _PROLOGUE, _REPLACE.
#
# _APART is there if the agent itself starts a user's command, which would have the agent's session and process group:
# with `kill 0`, which scripts end with, it would end the agent. Over ssh, and by a runner, it has its own. What brings
# input and takes output is not in that either: it would be ended, too, and the output lost. Where the shell leads a
# group already, setsid forks, so that is looked at first. It is done once at most: a /proc of another PID namespace has
# other numbers.
_APART = r"""
{ read -r n v; } 2>/dev/null </proc/self/stat
v=${v##*) } v=${v#* } v=${v#* } v=${v%% *}
if [ ! "${QEMU_GUEST_APART:-}" ] && [ "${v:-$n}" != "$n" ] && command -v setsid >/dev/null; then
    export QEMU_GUEST_APART=1
    exec setsid /bin/sh -c 'eval "$QEMU_GUEST"'
fi
unset QEMU_GUEST_APART
"""
# Goes before the rest if the input is in a file, which is open as 8 and has no name any more. The input is passed
# on by a pipe, which cannot be read twice or written to, because it may hold a password. The waiting shell's own output
# is dropped: it would report a signal.
_INPUT = r"""
if [ "${QEMU_GUEST_INPUT:-}" ]; then
    unset QEMU_GUEST_INPUT
    exec 6>&1 7>&2 >/dev/null 2>&1
    cat <&8 6>&- 7>&- 8<&- | {
        exec >&6 2>&7 6>&- 7>&- 8<&-
        eval "$QEMU_GUEST"
    }
    exit
fi
"""
# The command takes the shell's place, so the agent reports the command's own end, a signal included.
_REPLACE = 'eval "unset c f l n u v; $c"\n'
# Goes before _INPUT: opens the file and takes its name away, also if the shell is killed between these two steps.
_OPEN = r"""
if [ "${QEMU_GUEST_INPUT:-}" ]; then
    trap 'rm -f "$QEMU_GUEST_INPUT"; exit 143' TERM
    exec 8<"$QEMU_GUEST_INPUT" || exit 1
    rm -f "$QEMU_GUEST_INPUT"
    trap - TERM
fi
"""
# In place of _OPEN: input larger than a pipe is put into such a file, if one can be created. An agent whose program
# ends while the pipe is full polls it forever, and takes a whole processor (5.2 to 11.1 do).
_KEEP = r"""
if [ "${QEMU_GUEST_KEEP:-}" ]; then
    trap 'rm -f "$QEMU_GUEST_KEEP"; exit 143' TERM
    if (umask 077 && set -C && : >"$QEMU_GUEST_KEEP") 2>/dev/null; then
        QEMU_GUEST_INPUT=$QEMU_GUEST_KEEP
        exec 8<"$QEMU_GUEST_INPUT" 9>"$QEMU_GUEST_INPUT"
        rm -f "$QEMU_GUEST_INPUT"
        if ! cat >&9; then
            cat >/dev/null
            echo "the program's input did not fit in $QEMU_GUEST_INPUT; it was not run" >&2
            exit 1
        fi
        exec 9>&-
    fi
    trap - TERM
    unset QEMU_GUEST_KEEP
fi
"""
ABANDONED = (
    "find /run/qemu-guest.*.in /run/qemu-guest.*.[0-9] /run/qemu-guest.*.[0-9][0-9] -mmin +60 -exec rm -f {} + "
    "2>/dev/null"
)
"""Shell command that removes input and pieces that were brought and never read, because their controller was killed.
While they are brought, they are never as old. A runner does the same: see runner.sh."""
REST = (
    f"m={LARGEST_OUTPUT // 512}"
    + r"""
lose() {
    (: >"$1" && : >"$2")
    cat >/dev/null
}
rest() {
    n=$(df -kP "${1%/*}" | { read -r n; read -r n n n k n; echo "$k"; })
    case $n in '' | *[!0-9]* | ????????*) n=9999999 ;; esac
    n=$((n * $3 / 4))
    [ "$n" -lt "$m" ] || n=$m
    (
        trap '' XFSZ
        ulimit -f "$n"
        exec cat >>"$1"
    ) || lose "$1" "$2"
} 2>/dev/null
"""
)
"""Shell functions: C(rest FILE LOST N) appends the rest of a stream to C(FILE); C(lose FILE LOST) drops all of it.

The file is in memory, which other programs need too. So it may have N eighths of what is free there (standard output
has 6, standard error 1), and at most LARGEST_OUTPUT. If that is not enough, all of it is dropped and the
file C(LOST) is created; the program that writes goes on. Shells count a file's size in units of 512 bytes.
"""
# Goes before the rest if long output is to be whole. Each stream passes through dd, which hands the agent _KEPT bytes;
# what is more goes to a file in /run that only root can read. A guest whose dd lacks fullblock has only what the agent
# captures.
# The shell that waits for the command would report a signal, as one of _INPUT would.
_SPLIT = (
    """
if [ "${QEMU_GUEST_OUTPUT:-}" ] && [ / -ef / ] 2>/dev/null; then
"""
    + REST
    + r"""
t=$QEMU_GUEST_OUTPUT
unset QEMU_GUEST_OUTPUT
keep() {
    n=$(dd bs=65536 count=16 iflag=fullblock 2>&1 >&7)
    case $n in
    16+0*)
        umask 077
        rest "$1" "$1.lost" "$2"
        ;;
    [0-9]*) ;;
    *) exec cat ;;
    esac
} 7>&1
exec 3>&1 4>&2
r=$({ { { (
    exec 2>&8 3>&- 4>&- 5>&- 6>&- 8>&-
    unset -f keep lose rest
    unset m t
    eval "$QEMU_GUEST"
); echo $? >&5; } 8>&1 2>/dev/null >&6 | keep "$t.err" 1 >&4 3>&- 4>&- 5>&- 6>&-; } 6>&1 |
    keep "$t.out" 6 >&3 3>&- 4>&- 5>&-; } 5>&1)
exit "$r"
fi
"""
)
# 16 blocks of 64 KiB: small enough for every transport (libvirt refuses replies above 4 MiB), large enough for what
# modules return.
_KEPT = 16 * 65536
# Bytes that a pipe holds, on Linux.
_PIPE = 65536
# Input is kept in memory, because it may hold a password. The second place is for a full /run: other users can fill it.
_PLACES = ("/run", "/dev/shm")


def run_shell(
    executor: Executor, command: bytes | ShellCommand, stdin: bytes = b"", *, whole: bool = True
) -> ExecResult:
    """Run the POSIX shell command ``command`` as in a login, without a trace of it in the guest's logs.

    HOME, USER, SHELL, PATH and locale are set as for a login of the agent's user (root), /etc/environment included, and
    the working directory is HOME. ``whole`` is for a user's command: it has a session of its own, and output of any
    size is kept. Without it the command takes the shell's place, and output beyond CAPTURE_LIMIT is dropped and marked
    as truncated.

    :raise CommandUnavailable: if the agent cannot run programs.
    :raise TransferError: if output was lost because there was no room for it in /run.
    """
    command = command if isinstance(command, ShellCommand) else ShellCommand(command)
    begun = executor.shell(command, stdin) if executor.shell else None
    result: ExecResult | None = begun() if begun else None
    if result:
        return result
    prefix = new_prefix() if whole and executor.limits.output < LARGEST_OUTPUT else ""
    return shell_result(executor, command.text, stdin, prefix, executor.finish, apart=whole)


def shell_result(
    executor: Executor,
    command: bytes,
    stdin: bytes,
    prefix: str,
    ended: Callable[[int], Ended],
    *,
    apart: bool = True,
) -> Ended:
    """Start a command like ``run_shell`` and return ``ended(number)``: how it ended, or None.

    The input is kept in the first place that has room for it. With a ``prefix``, the result is whole; for that and
    ``apart``, see ``start_shell``.

    :raise OperationError: if the command was not run, for lack of room or of a usable shell.
    """
    for place in _PLACES:
        keep = f"{new_prefix(place)}.in"
        result = ended(start_shell(executor, command, stdin, prefix=prefix, keep=keep, apart=apart))
        # The name is secret, so this message cannot be the command's own.
        words = f"{keep.rpartition('qemu-guest.')[2]}; it was not run\n".encode("ascii")
        if not result or result.rc != 1 or not result.stderr.endswith(words):
            result = usable(executor, result)
            return _with_rest(executor, result, prefix) if result and prefix else result
    raise _not_run(f"the program's input fits neither in {' nor in '.join(_PLACES)} of the guest")


def usable(executor: Executor, result: Ended) -> Ended:
    """Return the ``result`` of a command that ``start_shell`` started.

    :raise OperationError: if the guest's shell is one that can run no command. A command that has run can say the same:
        so the shell must say it where there is no command, too.
    """
    if _says_unusable(result) and _says_unusable(executor.finish(start_shell(executor, b":"))):
        raise _not_run(_UNUSABLE)
    return result


def _says_unusable(result: ExecResult | None) -> bool:
    return bool(result and (result.rc, result.stdout, result.stderr) == (1, b"", f"{_UNUSABLE}\n".encode("ascii")))


def _not_run(why: str) -> OperationError:
    error = OperationError(f"the program was not run: {why}")
    error.executed = "no"
    return error


def check_shell(executor: Executor, command: str | ShellCommand, purpose: str, stdin: bytes = b"") -> bytes:
    """Run the shell command ``command`` in the guest and return its standard output.

    :raise OperationError: if it fails: names ``purpose`` and the guest's own message.
    """
    command = command if isinstance(command, ShellCommand) else ShellCommand.of(command)
    return checked(run_shell(executor, command, stdin, whole=False), purpose)


def checked(result: ExecResult, purpose: str) -> bytes:
    """Return a program's standard output; raise OperationError if it failed, see ``check_shell``."""
    if result.shell_rc:
        reason = last_line(result.stderr) or f"exit status {result.shell_rc}"
        raise OperationError(f"cannot {purpose} in the guest: {reason}")
    return result.stdout


def begin_shell(executor: Executor, command: ShellCommand, seconds: float | None = None) -> Callable[[], ExecResult]:
    """Start a command like ``run_shell``, without input, and return a function that waits for its end.

    The command takes the shell's place, as with ``whole=False``. It is killed after ``seconds``, if given, with a
    TransferError: the file that it reads may have been replaced by a FIFO.
    """
    begun = executor.shell(command._replace(in_time=seconds is not None), b"") if executor.shell else None
    if begun:
        return lambda: begun() or _ended(executor, start_shell(executor, command.text), seconds)
    return functools.partial(_ended, executor, start_shell(executor, command.text), seconds)


def _ended(executor: Executor, number: int, seconds: float | None) -> ExecResult:
    if seconds is None:
        return usable(executor, executor.finish(number))
    result = executor.wait(number, seconds)
    if result is None:
        kill(executor, number)
        executor.wait(number, _SECONDS_TO_DIE)
        text = f"a program that reads the file in the guest did not end within {seconds:.0f} s, and was killed."
        raise TransferError(text, hint="Is the file one still, or something that programs wait for?")
    return usable(executor, result)


def start_shell(
    executor: Executor,
    command: bytes,
    stdin: bytes = b"",
    *,
    prefix: str = "",
    keep: str = "",
    apart: bool = False,
) -> int:
    """Start a command like ``run_shell`` and return its number.

    ``apart``: it is a user's, and has a session of its own, which takes the guest one program more.
    ``prefix`` is that of the paths of the files for long output; without it there are none. ``keep`` is the path of a
    file for input larger than a pipe; if there is no room for it, the program says so and exits with 1.
    """
    data = input_of(command, stdin)
    limits = executor.limits
    fits = len(data) <= limits.quick_input
    keeps = _KEEP if fits and len(data) > _PIPE and limits.pipes_input else ""
    from_file = (keeps or _OPEN) + _INPUT if keeps or not fits else ""
    session = _APART if apart and not executor.limits.has_sessions else ""
    text = from_file + (_SPLIT if prefix else "") + session + login_program()
    env = [f"PATH={PATH}", f"QEMU_GUEST={text}"]
    if prefix:
        env.append(f"QEMU_GUEST_OUTPUT={prefix}")
    if keeps:
        env.append(f"QEMU_GUEST_KEEP={keep or f'{new_prefix()}.in'}")
    if fits:
        return executor.start("/bin/sh", _ARGUMENTS, env=env, stdin=data)
    path = f"{new_prefix()}.in"
    check_shell(executor, f"{ABANDONED}; umask 077; set -C; : >{path}", "keep a program's input")
    try:
        copy_in(executor.agent, io.BytesIO(data), path, "r+")
        own = [*env, f"QEMU_GUEST_INPUT={path}"]
        return when_thawed(executor.agent, lambda: executor.start("/bin/sh", _ARGUMENTS, env=own))
    except QgaError:
        # Removing the input also keeps an abandoned program from starting later.
        with suppress(QgaError):
            run_shell(executor, f"rm -f {path}".encode("ascii"), whole=False)
        raise


def input_of(command: bytes, stdin: bytes) -> bytes:
    """Return the input of a shell that runs READ_COMMAND: the command's count of lines, its lines, and its stdin."""
    return b"%d\n%b\n%b" % (command.count(b"\n") + 1, command, stdin)


def login_program() -> str:
    """Return the shell program that reads a command from its input, as ``start_shell`` writes it, and runs it."""
    return _PROLOGUE + _REPLACE


def new_prefix(place: str = "/run") -> str:
    """Return a unique path prefix, for ``shell_result``."""
    return f"{place}/qemu-guest.{secrets.token_hex(16)}"


def _with_rest(executor: Executor, result: ExecResult, prefix: str) -> ExecResult:
    """Return ``result`` with the rest of its output, and remove the files that hold it from the guest.

    :raise OutcomeUnknownError: if it cannot be fetched.
    :raise TransferError: if a part of it is missing.
    """
    if len(result.stdout) < _KEPT and len(result.stderr) < _KEPT:
        return result
    try:
        return result._replace(
            stdout=result.stdout
            + patiently(executor.agent, lambda: _rest_of(executor, f"{prefix}.out", len(result.stdout))),
            stderr=result.stderr
            + patiently(executor.agent, lambda: _rest_of(executor, f"{prefix}.err", len(result.stderr))),
        )
    except TransferError:
        raise
    except QgaError as exc:
        raise lost(exc, f"the program has ended, and its output could not be fetched: {exc.message}") from None
    finally:
        with suppress(QgaError):  # the result, or its error, matters more
            remove_rest(executor, prefix)


def remove_rest(executor: Executor, prefix: str) -> None:
    """Remove the files whose paths begin with ``prefix`` and a dot."""
    when_thawed(executor.agent, lambda: run_shell(executor, remove_rest_command(prefix), whole=False))


def remove_rest_command(prefix: str) -> ShellCommand:
    """Return the command for ``remove_rest``."""
    return ShellCommand.of(f"rm -f {prefix}.*", "sweep", prefix)


def _rest_of(executor: Executor, path: str, kept: int) -> bytes:
    if kept != _KEPT or _keeps_nothing(executor, path):
        return b""
    if exists(executor.agent, f"{path}.lost"):
        raise lost_output()
    rest = io.BytesIO()
    try:
        copy_out(executor.agent, path, rest.write, limit=Limit(asked=LARGEST_OUTPUT))
    except TransferError:  # the shell there keeps no more
        raise lost_output() from None
    return rest.getvalue()


def _keeps_nothing(executor: Executor, path: str) -> bool:
    """Return whether there is no file at ``path`` because the guest's dd lacks fullblock.

    If it has that, the guest went back to a snapshot from before the file was there.
    """
    has_fullblock = ShellCommand(b"dd count=0 iflag=fullblock </dev/null")
    return not exists(executor.agent, path) and run_shell(executor, has_fullblock, whole=False).shell_rc != 0


# All processes of a program are found before the first is killed: an orphan has lost its parent, and a guest without
# setsid gives programs no session of their own. They are stopped meanwhile, so that they start no others. After SIGTERM
# they may start others again, so the search is repeated.
_KILL = r"""
tree=%(pid)d
for s in TERM KILL; do
    kill -s STOP $tree 2>/dev/null
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
            *" $2 "* | *" $4 "*)
                kill -s STOP $p 2>/dev/null
                tree="$tree $p" more=1
                ;;
            esac
        done
    done
    kill -s $s $tree 2>/dev/null
    kill -s CONT $tree 2>/dev/null
    i=0
    while [ $i -lt %(grace)d ]; do
        # One by one: of several, dash fails for one that is gone, bash only if all are.
        more=
        for p in $tree; do kill -0 $p 2>/dev/null && more=1; done
        [ "$more" ] || break
        sleep 1
        i=$((i + 1))
    done
done
"""


def kill(executor: Executor, number: int, grace: int = 5) -> int:
    """Kill the program ``number`` and all its descendants: SIGTERM, and after ``grace`` seconds SIGKILL.

    Return its process number. If that is 0 (unknown), nothing is killed: process 0 is the ancestor of all.

    :raise OutcomeUnknownError: if it cannot be killed.
    """
    try:
        process = patiently(
            executor.agent, lambda: executor.process_id(number), final=lambda exc: exc.command == ABOUT_PROGRAM
        )
        if process:
            command = (_KILL % {"pid": process, "grace": grace}).encode("ascii")
            when_thawed(executor.agent, lambda: run_shell(executor, command, whole=False))
        return process
    except QgaError as exc:
        raise lost(exc, f"the {executor.label(number)} could not be ended: {exc.message}") from None
