# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run modules in warm interpreters, and shell commands beside them: the controller's side of _warm/guest/server.py.

A module that ansible-core pipes to Python is a short program around an archive of its libraries. Parts of the archive
that the guest lacks are sent once, by their digests (payload.py). In doubt, a method returns None and leaves the
command to the plain path.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import shlex
import sys
import time
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    GuestFileError,
    OutcomeUnknownError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    LARGEST_OUTPUT,
    ExecResult,
    ShellCommand,
    lost,
    pauses,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import exists
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import PATH, login_program, start_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import lacks_room, when_thawed
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import HOME, Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.spool import Spool, new_number
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import bundle
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.call import Call, ended_meanwhile
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.wire import (
    LOST,
    MISSING,
    NO_ROOM,
    PARTS_SUFFIX,
    PLAIN,
    QUIT,
    ClientRequest,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.payload import Archive, MalformedArchive, read_archive

__all__ = ("WarmPython",)

P = ParamSpec("P")
T = TypeVar("T")
Log = Callable[[str], None]


# The line with the archive, in payloads of ansible-core 2.16 to 2.21.
_ARCHIVE = re.compile(rb"^ *(?:ZIPDATA = |zip_data=)'([A-Za-z0-9+/=]+)',?$", re.MULTILINE)
# The interpreter at the end of a command line, whatever become puts around it.
_PYTHON = re.compile(r"(?<![\w/.-])(/[\w./+-]*python[\w.]*)['\"\s]*$")
# Commands that may remove or change a user, which fails while the user has processes, such as an interpreter.
_USERS = re.compile(rb"'ansible\.modules\.user'|AnsiballZ_user\.py|\b(?:userdel|deluser|usermod)\b")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_MARKER = re.compile(r"BECOME-SUCCESS-[a-z]{16,64}")

# Options of sudo, su and the like that make a login shell read unknown files.
_LOGIN = re.compile(r"-|--login|-[A-Za-z]*[il][A-Za-z]*")

# Starts a server. Descriptors: 3 has the loader and its sources; 4 and 5 are the file .err, to write and to read; 6 is
# the runner's standard input; 7 has the interpreter's program. In some shells (mksh), a descriptor above 2 that `exec`
# has opened is inherited only under another number.
# The file .pid has the number of the shell that waits, which the client looks for: nothing else tells of a start whose
# shell was killed, too.
# The file {failed} tells the client that this start failed. Its first line is the number of the start. The error comes
# after that only if it will come again: then the plain path is taken until a reboot. Signals, a missing interpreter
# (126, 127) and NO_ROOM pass, so they write the first line only.
_START = """
exec 6<&0
{{
    exec 4>{prefix}.err 5<{prefix}.err
    read -r p r </proc/self/stat && echo "$p" >{prefix}.pid
    {launch}
    cd /
    wait "$!"
    r=$?
    umask 077
    if [ -e {prefix}.err ]; then
        case $r in
        0) ;;
        {no_room} | 12[6-9] | 1[3-9]? | 2??) echo {number} >{failed} ;;
        *) {{ echo {number}; cat <&5; }} >{failed} ;;
        esac
    fi
    rm -f {prefix}.*
}} </dev/null >/dev/null 2>&1 &
"""
# The interpreter takes its program from standard input. The shell waits in the root directory, because the directory
# that the interpreter is started in may be on a filesystem that is to be unmounted.
_BY_COMMAND_LINE = """eval {command}' <&7 7<&- &' 7<<'QEMU_GUEST' 3<&6 6<&- >&4 2>&4 4>&- 5<&-
{program}
QEMU_GUEST"""
_BY_PLAIN_PYTHON = "{python} -IS -c {program} 3<&6 6<&- >&4 2>&4 4>&- 5<&- &"
_PROGRAM = (
    "import json, os, zlib; s = b''.join(iter(lambda: os.read(3, 1 << 16), b'')); os.close(3); exec(s[:{size}]); "
    "given = json.loads(zlib.decompress(s[{size}:]).decode()); loader, module = begin(given.pop('sources'), 'start'); "
    "module.start(loader, given, {spool!r}, {prefix!r}, {forkable!r})"
)

# Larger output, in bytes, is removed from the guest's memory at once, not by its sweep.
_FORGOTTEN_AT_ONCE = 64 << 10
# How long to wait for a server to start.
_START_SECONDS = 10.0
_SERVER_LOOK = 0.05
# The requests that start a server take longer than this in an emulated guest: 37 to 74 ms there, 5 to 24 ms in others,
# the longer ones on slow machines.
_QUICK_START_SECONDS = 0.03
_LOOKS = 4  # for a server, before each look for a reason why there is none
# Pauses while an interpreter starts and imports, some seconds at most.
_WHILE_STARTING = (*itertools.takewhile(lambda pause: pause < _SERVER_LOOK, pauses(0.01)), *[_SERVER_LOOK] * 60)
# How often a server may ask for missing parts of an archive: for the list of them, for them, and for what was lost
# meanwhile.
_ATTEMPTS = 4

# When to look for the answer of a module that has not run over this connection: asking sooner would only delay it.
_FIRST_LOOK_UNKNOWN = 0.005
# If the first look found the answer, it may have been late: look a fifth sooner the next time. Later looks are a share
# of that time apart.
_AFTER_HIT = 0.8
_PAUSE_SHARE = 0.08
_LEAST_PAUSE = 0.002
# A loop's next item may take no time at all: then this is how much later its end is noticed.
_MOST_PAUSE = 0.25

# Longer commands do not fit into a variable.
_LONGEST_COMMAND = 100_000


def _with_room(method: Callable[P, T]) -> Callable[P, T | None]:
    """Make a method that runs before a task return None if the guest's /run is full."""

    @functools.wraps(method)
    def tried(*arguments: P.args, **keywords: P.kwargs) -> T | None:
        try:
            return method(*arguments, **keywords)
        except GuestFileError as exc:
            if not lacks_room(exc):
                raise
            return None

    return tried


class _Answer:
    """What became of a request: it has a ``result``, or was not run.

    It was not run if there is no server (``no_server``), if the server lacks parts of the archive (``there`` are the
    short checksums of those that it has), or for a reason of the server's own.
    """

    def __init__(
        self, result: ExecResult | None = None, *, no_server: bool = False, there: Sequence[str] | None = None
    ) -> None:
        self.result = result
        self.no_server = no_server
        self.there = there


class WarmPython:
    """Warm interpreters in a guest, beside its ``runner``.

    ``log`` takes messages on progress, ``tell`` those for users. A server is waited for ``start_seconds``. If the
    requests that start it take no longer than ``quick_seconds``, the guest is quick, and compiles by itself. A task has
    at most ``largest_output`` bytes of each output stream.
    """

    def __init__(
        self,
        runner: Runner,
        log: Log,
        tell: Log | None = None,
        *,
        start_seconds: float = _START_SECONDS,
        quick_seconds: float = _QUICK_START_SECONDS,
        largest_output: int = LARGEST_OUTPUT,
    ) -> None:
        self._runner = runner
        self._log = log
        self._tell = tell or log
        self._start_seconds = start_seconds
        self._quick_seconds = quick_seconds
        self._spool = Spool(runner.agent, _spool(), largest_output)
        self._first_looks: dict[str, float] = {}  # by archive: seconds after which to look for an answer

    def run(self, command: str, stdin: bytes) -> ExecResult | None:
        """Run a shell command, as run_shell() of _guest/login_shell.py does; None if it was not run.

        :raise OutcomeUnknownError: if the interpreter or its server ended while it ran.
        """
        python, payload = _PYTHON.search(command), _ARCHIVE.search(stdin)
        archive = read_archive(payload.group(1)) if python and payload else None
        if python and payload and archive and not _is_login(command):
            without_site = f"{command[: python.end(1)]} -S{command[python.end(1) :]}"
            before, after = stdin[: payload.start(1)], stdin[payload.end(1) :]
            try:
                request = _module_request(without_site, archive.digest, before, after)
                return self._run_module(request, archive, python.group(1))
            except MalformedArchive:  # it was not run; the plain path has Python's own error
                return None
        begun = self.begin_shell(ShellCommand.of(command), stdin)
        return begun() if begun else None

    def begin_shell(self, command: ShellCommand, stdin: bytes) -> Callable[[], ExecResult | None] | None:
        """Start any shell command; see ``Shell`` in _guest/executor.py."""
        if len(command.text) > _LONGEST_COMMAND or b"\0" in command.text:
            return None
        # Never start a server for a shell command, which may be there to install Python.
        call = self._send(_shell_request(command, stdin), new_number())
        return (lambda: self._answer_of(call).result) if call else None

    def _run_module(self, request: ClientRequest, archive: Archive, python: str) -> ExecResult | None:
        """Return a module's result; None if it was not run.

        Ask the server that is there. If there is none, start one and ask it, under the same number: nobody has taken
        it, and a server that starts reads the parts that were brought from a file with that number. While the server
        lacks parts, bring them and ask under a new number, because a number is taken once.
        """
        number = new_number()
        answer = self._try_running_server(request, number, archive)
        if answer.no_server and self._start(request, python, archive, number):
            answer = self._ask(request, number, itertools.chain(_WHILE_STARTING, pauses()))
        for _attempt in range(_ATTEMPTS):
            there = answer.there
            if there is None:
                break
            number = new_number()
            missing = [part for part in archive.remembered() if part not in there]
            if not self._bring(archive, missing, python, number):
                break
            answer = self._ask(request, number)
        return answer.result

    def _try_running_server(self, request: ClientRequest, number: int, archive: Archive) -> _Answer:
        """Ask a server that is there, as ``_ask`` does.

        A module that has run over this connection probably takes as long again, so look for its answer at that age.
        """
        call = self._send(request, number)
        if not call:
            return _Answer(no_server=True)
        known = self._first_looks.get(archive.digest)
        first = min(known or _FIRST_LOOK_UNKNOWN, _MOST_PAUSE)
        later = pauses(min(max(known * _PAUSE_SHARE, _LEAST_PAUSE), _MOST_PAUSE)) if known else pauses()
        answer = self._answer_of(call, itertools.chain([first], later))
        self._first_looks[archive.digest] = call.last_miss or first * _AFTER_HIT
        return answer

    @_with_room
    def _bring(self, archive: Archive, missing: Container[str], python: str, number: int) -> bool:
        """Write the missing parts of an archive; return whether that could be done."""
        # A file that is not whole is no harm: the server verifies its checksum.
        brought = archive.brought(missing, code=_is_ours(python))
        return when_thawed(self._runner.agent, lambda: self._spool.write(f"{number}.{PARTS_SUFFIX}", brought))

    def end(self) -> None:
        """End all warm interpreters, if any, as soon as they are idle."""
        self._spool.ring(QUIT.decode())

    def _ask(self, request: ClientRequest, number: int, waits: Iterable[float] | None = None) -> _Answer:
        """Give a request to the server and return its answer.

        For ``waits``, see Call.answer; the usual ones are `pauses`.
        """
        call = when_thawed(self._runner.agent, lambda: self._send(request, number))
        return self._answer_of(call, waits) if call else _Answer(no_server=True)

    @_with_room
    def _send(self, request: ClientRequest, number: int) -> Call | None:
        """Give a request to the server, if there is one."""
        call = Call(self._runner.agent, self._spool, number)
        return call if call.ask(request) else None

    def _answer_of(self, call: Call, waits: Iterable[float] | None = None) -> _Answer:
        """Return the answer to a request that the server was given; see ``_ask``."""
        content = call.answer(pauses() if waits is None else waits)
        if content.startswith(MISSING):
            return _Answer(there=content.decode("ascii", "replace").split()[1:])
        if content.startswith(PLAIN):
            return _Answer()
        if content.startswith(LOST):
            raise ended_meanwhile(content[len(LOST) :])
        return _Answer(self._result_of(call, content))

    def _result_of(self, call: Call, content: bytes) -> ExecResult:
        """Return the result in an answer. C(full) is none either: ``Spool.result`` takes it for lost output."""
        try:
            rc, out, err = self._spool.result(call.number, content)
        except TransferError:  # others need the room that the rest of the output takes
            with suppress(QgaError):
                call.forget()
            raise
        except OutcomeUnknownError:
            raise
        except QgaError as exc:  # never one that says that nothing was run: it would be run again
            raise lost(exc, f"the task has ended, and its output could not be fetched: {exc.message}") from None
        if len(out) + len(err) > _FORGOTTEN_AT_ONCE:
            with suppress(QgaError):  # the server removes the files some minutes later
                call.forget()
        return ExecResult(rc, None, out, err)

    @_with_room
    def _start(self, request: ClientRequest, python: str, archive: Archive, number: int) -> bool:
        """Start a server with an interpreter for a request; return whether there is a server now."""
        home, server = Spool(self._runner.agent, HOME), Path(_spool()).name
        failed = f"{server}.{request.key[:16]}.failed"
        why = (home.read(failed) or b"").partition(b"\n")[2].strip()
        if why:
            last = why.rpartition(b"\n")[2].decode("utf-8", "replace")
            self._tell(f"warm Python could not be started by this command line, and runs nothing of it: {last}")
            return False
        self._log("starting warm Python in the guest")
        prefix = f"{server}.{number}"
        began = time.monotonic()
        with self._runner.forgetting():
            start_shell(self._runner, *_starter(_spool(), request, python, number, failed))
        is_slow = time.monotonic() - began > self._quick_seconds
        # Use the wait for the start to compile. A guest as quick as this machine compiles as soon by itself.
        code = is_slow and _is_ours(python)
        brought = archive.brought(archive.remembered(), code=code, programs=bundle.code() if code else b"")
        when_thawed(self._runner.agent, lambda: home.write(f"{prefix}.{PARTS_SUFFIX}", brought))
        for looks, pause in enumerate(pauses(_SERVER_LOOK), 1):
            time.sleep(pause if looks > 1 else max(0.0, pause - (time.monotonic() - began)))
            if when_thawed(self._runner.agent, self._spool.is_served):
                return True
            # Look seldom: the agent writes each file that it opens to the guest's log.
            if looks % _LOOKS == 0 and (home.read(failed) or b"").startswith(b"%d\n" % number):
                break
            if looks % (2 * _LOOKS) == 0 and not self._may_start(home, prefix):
                break
            if time.monotonic() - began > self._start_seconds:
                return False  # it may start yet, and removes its files then
        # The shell that waited may have removed its files before the parts were there.
        with suppress(QgaError), self._runner.forgetting():
            start_shell(self._runner, f"rm -f {HOME}/{prefix}.*".encode("ascii"))
        return False

    def _may_start(self, home: Spool, prefix: str) -> bool:
        """Return whether the shell that waits for a start is there, or has not begun.

        It has ended, and has removed its files, if the server had started and was killed since.
        """
        shell = home.read(f"{prefix}.pid")
        if not (shell or b"").strip().isdigit():
            return home.has(f"{prefix}.{PARTS_SUFFIX}")
        return exists(self._runner.agent, f"/proc/{int(shell or 0)}/stat")


def _spool() -> str:
    """Return the path of the server's spool. Each version of the server has its own."""
    return f"{HOME}/warm-{bundle.digest()}"


def _is_ours(python: str) -> bool:
    """Return whether an interpreter probably compiles as this one does, by its path. Otherwise it compiles itself."""
    version = re.search(r"python(3\.\d+)$", python)
    return not version or version.group(1) == f"3.{sys.version_info.minor}"


def _forkable(python: str, command: str) -> list[str]:
    """Return the programs for which a fork can replace this command line of the interpreter ``python``.

    That needs a command line which is known to be an interpreter and its environment, and nothing more.
    """
    try:
        *environment, program, _without_site = shlex.split(command)
    except ValueError:
        return []
    if program != python or not all(map(_ASSIGNMENT.match, environment)):
        return []
    # Shell commands have the environment of a login.
    return ["module_runner"] if environment else ["module_runner", "shell_runner"]


def _is_login(command: str) -> bool:
    """Return whether a command line makes a login shell read its files before it starts an interpreter."""
    try:
        words = shlex.split(command)
    except ValueError:
        return True
    if len(words) == 1:
        return False
    return any(map(_LOGIN.fullmatch, words)) or (" " in words[-1] and _is_login(words[-1]))


def _starter(spool: str, request: ClientRequest, python: str, number: int, failed: str) -> tuple[bytes, bytes]:
    """Return the shell command that starts a server in ``spool`` for a request, and its standard input.

    The names of its files begin with that of the spool and the ``number``; it removes all of them at the end. If the
    server does not start, it writes the file ``failed``.
    """
    prefix = f"{spool}.{number}"
    size, stdin = bundle.start_input(
        {
            "prologue": login_program(),
            "command": request.command,
            "path": request.path,
            "first": request.header(),
        }
    )
    forkable = _forkable(python, request.command)
    program = _PROGRAM.format(
        size=size,
        spool=spool,
        prefix=prefix,
        forkable=" ".join(forkable or ["shell_runner"]),
    )
    if forkable:
        launch = _BY_COMMAND_LINE.format(command=shlex.quote(request.command), program=program)
    else:
        launch = _BY_PLAIN_PYTHON.format(python=shlex.quote(python), program=shlex.quote(program))
    failed = f"{HOME}/{failed}"
    command = _START.format(launch=launch, no_room=NO_ROOM, prefix=prefix, number=number, failed=failed)
    return command.encode("utf-8", "surrogateescape"), stdin


def _module_request(command: str, archive: str, before: bytes, after: bytes) -> ClientRequest:
    """Return the request to run a module by the command line ``command``: the archive with text around it."""
    marker = _MARKER.search(command)
    key = _MARKER.sub("BECOME-SUCCESS-", command)
    return ClientRequest(
        before + after,
        key=hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest(),
        command=command,
        marker=marker.group() if marker else "",
        path=PATH,
        archive=archive,
        split_at=len(before),
        users=_may_change_users(before, after),
    )


def _shell_request(command: ShellCommand, stdin: bytes) -> ClientRequest:
    """Return the request to run a shell command."""
    return ClientRequest(
        command.text + stdin,
        path=PATH,
        split_at=len(command.text),
        call=[command.function, *command.arguments] if command.function else [],
        in_time=command.in_time,
        users=_may_change_users(command.text, stdin),
    )


def _may_change_users(*texts: bytes) -> bool:
    return any(map(_USERS.search, texts))
