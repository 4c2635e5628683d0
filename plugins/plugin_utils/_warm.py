# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run modules in warm interpreters, and shell commands beside them: the controller's side of _warm_server.py.

A module that ansible-core pipes to Python is a short program around an archive of its libraries. Of that, what the
guest has not got is sent once, by digests of what is in it (_archive.py). Whatever is in doubt is left to the plain
path, by returning None.
"""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import itertools
import json
import re
import shlex
import sys
import time
import zlib
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._errors import GuestFileError, OutcomeUnknownError
from ansible_collections.qemu.guest.plugins.module_utils._exec import ExecResult, pauses
from ansible_collections.qemu.guest.plugins.module_utils._patience import patiently
from ansible_collections.qemu.guest.plugins.module_utils._runner import HOME, RunnerAgent
from ansible_collections.qemu.guest.plugins.module_utils._shell import PATH, login_program, start_shell
from ansible_collections.qemu.guest.plugins.module_utils._spool import LONGEST_RING, Line, Spool
from ansible_collections.qemu.guest.plugins.plugin_utils import _kind
from ansible_collections.qemu.guest.plugins.plugin_utils._archive import Archive, read_archive

__all__ = ("WarmPython",)

P = ParamSpec("P")
T = TypeVar("T")


def _program(*names: str) -> bytes:
    """Return the text of these modules, each behind what it imports of the others, as one program.

    They are read, not imported: they are for the guest, and a connection is made anew for each task.
    """
    texts = [(Path(__file__).parent / f"{name}.py").read_bytes() for name in names]
    return b"from __future__ import annotations\n" + b"".join(_ELSEWHERE.sub(b"", text) for text in texts)


# From a newline on, not at the beginning of a line: looking for that would take each task's process a millisecond more.
_ELSEWHERE = re.compile(rb"\n *from (?:ansible_collections|__future__)\b[^\n(]*(?:\([^)]*\))?(?=\n)")
_START_PROGRAM = _program("_kind", "_warm_start")
# An interpreter that is started for one of them has a last line behind that.
_PROGRAMS = {
    "server.py": _program("_warm_surroundings", "_warm_tasks", "_warm_archives", "_warm_interpreters", "_warm_server"),
    "modules.py": _program(
        "_warm_zygote", "_kind", "_compiled", "_warm_payload", "_warm_importer", "_warm_memory", "_warm_modules"
    ),
    "commands.py": _program("_warm_zygote", "../module_utils/_zstd", "_warm_commands"),
}
_LAST_LINES = {"modules.py": b"\n\nmain(Modules())\n", "commands.py": b"\n\nmain(Commands())\n"}
# Another version of them has a spool of its own.
_SPOOL = f"{HOME}/warm-{hashlib.sha256(b''.join([_START_PROGRAM, *_PROGRAMS.values()])).hexdigest()[:16]}"

# The line with the archive, in what ansible-core 2.16 to 2.21 send.
_ARCHIVE = re.compile(rb"^ *(?:ZIPDATA = |zip_data=)'([A-Za-z0-9+/=]+)',?$", re.MULTILINE)
# The interpreter at the end of a command line, whatever become puts around it.
_PYTHON = re.compile(r"(?<![\w/.-])(/[\w./+-]*python[\w.]*)['\"\s]*$")
# What may remove or change a user. That fails as long as the user has processes, and an interpreter is one.
_USERS = re.compile(rb"'ansible\.modules\.user'|AnsiballZ_user\.py|\b(?:userdel|deluser|usermod)\b")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_MARKER = re.compile(r"BECOME-SUCCESS-[a-z]{16,64}")

# What cannot run at all tells why in a file, and is not tried again until a reboot. The file is empty where there was
# no room, or something has ended it, before it served: somebody waits for that then.
_START = """
exec 3<&0
{{
    exec 4>{beside}.err 5<{beside}.err
    {launch}
    r=$?
    umask 077
    case $r in
    0) ;;
    {no_room} | 12[89] | 1[3-9]? | 2??) [ ! -e {beside}.err ] || : >{spool}.failed ;;
    *) cat <&5 >{spool}.failed ;;
    esac
    rm -f {beside}.*
}} </dev/null >/dev/null 2>&1 &
"""
# The command line of an interpreter takes its program from standard input; what is read here by the shell, it reads
# byte by byte.
_BY_ITSELF = """eval {command} <<'QEMU_GUEST' >&4 2>&4 4>&- 5<&-
{program}
QEMU_GUEST"""
_BY_ANOTHER = "{python} -IS -c {program} >&4 2>&4 4>&- 5<&-"
_PROGRAM = "import os; exec(os.read(3, {size})); start({spool!r}, {sizes!r}, {beside!r}, {copies!r})"
_NO_ROOM = 75
_FAILED = f"{Path(_SPOOL).name}.failed"

# Bytes beside a request on the ring.
_ROOM = 64
# Answers that nobody has read for long are swept away, and the file with them.
_LINE_SECONDS = 60.0
# Bytes of output that do not stay in the guest's memory until the next request.
_FORGOTTEN_AT_ONCE = 64 << 10
# How long a server that starts is waited for.
_START_SECONDS = 10.0
_FIRST_LOOK = 0.05
# What tells a guest that is emulated from others: how long the requests take that start a server. Emulated ones took 37
# to 74 ms, others 5 to 24 ms, the longer ones on slow machines.
_QUICK_START_SECONDS = 0.03
_LOOKS = 4  # for a server, before one for why there is none
# Pauses while an interpreter starts and imports, some seconds at most.
_WHILE_STARTING = (*itertools.takewhile(lambda pause: pause < _FIRST_LOOK, pauses(0.01)), *[_FIRST_LOOK] * 60)
# How often a server may ask for what it has not got of an archive: the recipe, its parts, what it has lost meanwhile.
_ATTEMPTS = 4
# Answers, or what they begin with, that say why something was not run.
_NOT_RUN = (b"archive", b"plain\n")
# Letters of an archive's digest: requests whose archives are the same take about as long.
_SAME = 12
# Seconds without a question after a request; and after which one is not waited for at once, but beside other work.
_LONGEST_SLEEP = 0.1
_AT_ONCE = 0.01
# How often somebody who waits makes sure that the server lives.
_LOOK_SECONDS = 1.0


# Longer ones do not fit into a variable.
_LONGEST_COMMAND = 100_000


def _with_room(method: Callable[P, T]) -> Callable[P, T | None]:
    """Have a method that comes before a task return None where the guest's /run is full."""

    @functools.wraps(method)
    def tried(*arguments: P.args, **keywords: P.kwargs) -> T | None:
        try:
            return method(*arguments, **keywords)
        except GuestFileError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return None

    return tried


class WarmPython:
    """Warm interpreters in the guest of ``agent``."""

    def __init__(self, agent: RunnerAgent, log: Callable[[str], None]) -> None:
        self._agent = agent
        self._log = log
        self._spool = Spool(agent, _SPOOL)
        self._line = Line(agent, self._spool)

    def run(self, command: str, stdin: bytes, *, password: bool = False) -> ExecResult | None:
        """Run a shell command, as run_shell() of _shell.py does; None if it was not run.

        With ``password``, something comes before the module in ``stdin``, and only a new process reads that.

        :raise OutcomeUnknownError: if the interpreter or its server ended while it ran.
        """
        python, payload = _PYTHON.search(command), _ARCHIVE.search(stdin)
        archive = read_archive(payload.group(1)) if python and payload and not password else None
        if python and payload and archive:
            request = _request(command, archive.digest, stdin[: payload.start(1)], stdin[payload.end(1) :])
            return self._run_module(request, archive, python.group(1))
        begun = self.begin_shell(command.encode("utf-8", "surrogateescape"), stdin)
        return begun() if begun else None

    def begin_shell(self, command: bytes, stdin: bytes) -> Callable[[], ExecResult | None] | None:
        """Start a shell command, whatever it is; see ``shell`` of Agent in _agent.py."""
        if len(command) > _LONGEST_COMMAND or b"\0" in command:
            return None
        # Never what a server is started for: it may be there to install Python.
        line = self._begun(_request("", "", command, stdin))
        return functools.partial(self._shell_ended, line) if line else None

    def _shell_ended(self, line: Line) -> ExecResult | None:
        result = self._ended(line, "")
        return result if isinstance(result, ExecResult) else None

    @_with_room
    def _opened(self) -> bool:
        """Have a line that can be used, another's if that has left one; return False if there is nobody to ask."""
        if not self._line.is_open:
            self._line = Line.found(self._agent, self._spool)
        if time.monotonic() - self._line.used > _LINE_SECONDS:
            self._line.close()
        return self._line.open()

    def _run_module(self, request: bytes, archive: Archive, python: str) -> ExecResult | None:
        kind, parts = archive.digest[:_SAME], archive.remembered()
        answer: ExecResult | str = "none"
        if self._opened():
            if self._line.known and kind not in self._line.quick:
                began = time.monotonic()
                self._bring(archive, [part for part in parts if part not in self._line.known], python)
                # To run it takes longer than to bring it. That it is asked after then, see `_answered`.
                self._line.note(kind, 2 * (time.monotonic() - began))
            answer = self._handled(request, kind)
        if answer == "none" and self._start(request, python, archive):
            answer = self._handled(request, kind, starts=True)
        for _attempt in range(_ATTEMPTS):
            if not isinstance(answer, str) or not answer.startswith("archive"):
                break
            if not self._bring(archive, answer.split()[1:], python):
                break
            answer = self._handled(request, kind)
        if isinstance(answer, str):
            return None
        self._line.remember(parts)
        return answer

    @_with_room
    def _bring(self, archive: Archive, missing: Container[str], python: str) -> bool:
        """Write what is missing of an archive; return whether that could be done."""
        # Whole under its name or not: the server looks whether its checksum is right.
        return self._spool.write(f"{self._line.number}.archive", archive.brought(missing, code=_is_ours(python)))

    def rest(self) -> None:
        """Leave what the next task can use, which is gone some seconds later: see Line in _spool.py; or nothing."""
        if not self._line.leave():
            self.forget()

    def forget(self) -> None:
        """Leave nothing of what was run."""
        self._line.close()

    def end(self) -> None:
        """End all warm interpreters, if there are any, when they have nothing to do."""
        self.forget()
        self._spool.ring("quit")

    def _handled(self, request: bytes, kind: str, *, starts: bool = False) -> ExecResult | str:
        """Return the result of a request, or the word that tells why it has none; it was not run then.

        C(none) is the word if there is no server; see _warm_server.py for others. Requests of the same ``kind`` take
        about as long, but for one for which an interpreter ``starts``.
        """
        line = self._begun(request)
        return self._ended(line, kind, starts) if line else "none"

    @_with_room
    def _begun(self, request: bytes) -> Line | None:
        """Give a request to the server, if there is one, and return the line by which it will answer."""
        if not self._opened():
            return None
        # Whatever interrupts this: nobody takes a late answer for that to another request.
        line, self._line = self._line, Line(self._agent, self._spool)
        # One that has ended since the last request may have been followed by another.
        if not (self._asked(line, request) or self._asked(line, request)):
            return None
        line.used = time.monotonic()
        return line

    def _ended(self, line: Line, kind: str, starts: bool = False) -> ExecResult | str:
        """Return the result of the request that was given to the server by ``line``, see ``_handled``."""
        content = self._answered(line, kind, _WHILE_STARTING if starts else ())
        if starts:
            line.note(kind, 0.0)  # how long it takes where nothing starts, nobody knows
        if content.startswith(_NOT_RUN):
            self._keep(line)
            return content.decode("ascii").strip()
        rc, out, err = self._spool.result(line.number, content)
        if len(out) + len(err) > _FORGOTTEN_AT_ONCE:
            line.close()
        self._keep(line)
        return ExecResult(rc, None, out, err)

    def _keep(self, line: Line) -> None:
        """Have the next request use this line, unless there is one from another that was at work meanwhile."""
        if self._line.is_open:
            line.close()
        else:
            self._line = line

    def _asked(self, line: Line, request: bytes) -> bool:
        """Give a request to the server; return whether there is one."""
        if not line.open():
            return False
        line.is_begun = False
        packed = base64.b64encode(zlib.compress(request)).decode("ascii")
        if len(packed) + _ROOM < LONGEST_RING:
            return line.ask(f"={line.number} {packed}")
        return self._spool.write(f"{line.number}.in", request) and line.ask(str(line.number))

    def _answered(self, line: Line, kind: str, first: Sequence[float]) -> bytes:
        """Wait for the answer to a request, with these pauses at ``first``.

        :raise OutcomeUnknownError: if there will be none.
        """
        began = looked = time.monotonic()
        alone = False  # nobody will answer any more
        what, why = "the interpreter in the guest ended", "was the guest rebooted?"
        # Nobody asks while a task as quick as the last one is at work: that would only delay it.
        time.sleep(max(0.0, min(line.quick.get(kind, 0.0) / 2, _LONGEST_SLEEP) - (began - line.used)))
        for pause in itertools.chain(first, pauses()):
            content = line.answer()
            if content.startswith(b"lost\n"):
                why = content[len(b"lost\n") :].decode("utf-8", "replace") or why
                break
            if content:
                if began - line.used < _AT_ONCE and not content.startswith(_NOT_RUN):  # else nobody knows when it ended
                    line.note(kind, time.monotonic() - line.used)
                return content
            if alone and not (line.is_begun or line.is_lost):
                line.close()
                return b"plain\n"
            if alone:
                what = "what serves the interpreters in the guest ended"
                break
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                alone = not patiently(self._agent, line.is_heard)
                if alone:
                    continue  # it may have answered since
                if line.is_lost:
                    what = "the file for the answer vanished"
                    break
            time.sleep(pause)
        line.close()
        raise OutcomeUnknownError(
            f"{what} while the task ran ({why})",
            command="guest-exec",
            hint="Look at the guest before you repeat it.",
        )

    @_with_room
    def _start(self, request: bytes, python: str, archive: Archive) -> bool:
        """Start a server that gets an interpreter ready for a request; return whether there is one now."""
        runners = Spool(self._agent, HOME)
        before = runners.read(_FAILED)
        if before:
            return False
        self._log("starting warm Python in the guest")
        beside = f"{Path(_SPOOL).name}.{self._line.number}"
        began = time.monotonic()
        with self._agent.forgetting():
            start_shell(self._agent, *_starter(_SPOOL, request, python, f"{HOME}/{beside}"))
        is_slow = time.monotonic() - began > _QUICK_START_SECONDS
        # Nothing else is to be done meanwhile. A guest that is as quick as this machine compiles by itself as soon.
        code = is_slow and _is_ours(python)
        brought = archive.brought(archive.remembered(), code=code, programs=_code_of_programs() if code else b"")
        runners.write(f"{beside}.archive", brought)
        for looks, pause in enumerate(pauses(_FIRST_LOOK), 1):
            time.sleep(pause if looks > 1 else max(0.0, pause - (time.monotonic() - began)))
            if self._line.open():
                return True
            # The agent writes each file that it opens to the guest's log.
            if looks % _LOOKS == 0 and runners.read(_FAILED) != before:
                break
            if time.monotonic() - began > _START_SECONDS:
                break
        return False


def _code_of_programs() -> bytes:
    return _kind.packed({name: compile(text, "<stdin>", "exec") for name, text in _PROGRAMS.items()})


def _is_ours(python: str) -> bool:
    """Return whether an interpreter may well compile as this one does, by its path. Otherwise it compiles itself."""
    version = re.search(r"python(3\.\d+)$", python)
    return not version or version.group(1) == f"3.{sys.version_info.minor}"


def _copies(python: str, command: str) -> list[str]:
    """Return the programs that a command line of the interpreter ``python`` starts as a copy of this would.

    Nobody knows what more there is to some of them than an interpreter, and its environment.
    """
    try:
        *environment, program = shlex.split(command)
    except ValueError:
        return []
    if program != python or not all(map(_ASSIGNMENT.match, environment)):
        return []
    # Shell commands have the environment of a login.
    return ["modules.py"] if environment else ["modules.py", "commands.py"]


def _starter(spool: str, request: bytes, python: str, beside: str) -> tuple[bytes, bytes]:
    """Return the shell command that starts a server in ``spool`` for a request, and its standard input.

    It has files whose names begin with ``beside``, and removes all of them at the end.
    """
    first = request.partition(b"\n")[0]
    header = json.loads(first)
    parts = {
        **{name: program + _LAST_LINES.get(name, b"") for name, program in _PROGRAMS.items()},
        "prologue": login_program().encode("utf-8"),
        "command": header["command"].encode("utf-8", "surrogateescape"),
        "path": header["path"].encode("ascii"),
        "first": first,
    }
    sizes = ",".join(f"{name}:{len(content)}" for name, content in parts.items())
    copies = _copies(python, header["command"])
    program = _PROGRAM.format(
        size=len(_START_PROGRAM),
        spool=spool,
        sizes=sizes,
        beside=beside,
        copies=" ".join(copies or ["commands.py"]),
    )
    if copies:
        launch = _BY_ITSELF.format(command=shlex.quote(header["command"]), program=program)
    else:
        launch = _BY_ANOTHER.format(python=shlex.quote(python), program=shlex.quote(program))
    command = _START.format(launch=launch, spool=spool, no_room=_NO_ROOM, beside=beside)
    return command.encode("utf-8", "surrogateescape"), _START_PROGRAM + zlib.compress(b"".join(parts.values()))


def _request(python: str, archive: str, before: bytes, after: bytes) -> bytes:
    """Return a request, as _warm_server.Request reads it."""
    marker = _MARKER.search(python)
    key = _MARKER.sub("BECOME-SUCCESS-", python)
    header = {
        "key": hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest() if python else "",
        "command": python,
        "marker": marker.group() if marker else "",
        "path": PATH,
        "archive": archive,
        "before": len(before),
        "users": bool(_USERS.search(before) or _USERS.search(after)),
    }
    return json.dumps(header).encode("ascii") + b"\n" + before + after
