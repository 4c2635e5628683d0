# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest to play with: what an agent in good order answers, with the files and programs of this machine."""

from __future__ import annotations

import base64
import errno
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import GuestFileError
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError

# Where the collection keeps what does not fit, and the runner all it has; tests keep it in a directory of theirs.
PREFIX = "/run/qemu-guest."
RUNNER = "/run/qemu-guest-runner"
CAPTURE = 16 * 1024 * 1024

_FLAGS = {
    "r": os.O_RDONLY,
    "r+": os.O_RDWR,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "a+": os.O_RDWR | os.O_CREAT | os.O_APPEND,
}


def _opened(path: str, flags: int) -> int:
    """Open a file as the agent does: what it creates itself has a mode that no umask changes."""
    if flags & os.O_CREAT:
        with suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_EXCL)
            os.fchmod(descriptor, 0o666)
            return descriptor
    return os.open(path, flags & ~os.O_CREAT)


class Program:
    """A program that runs, with pipes to all that it reads and writes."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None, stdin: bytes) -> None:
        # A session of its own, so that `Guest.close` can end all that a test started.
        self.process = subprocess.Popen(
            argv,
            env=env,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.output = (b"", b"")
        # As an agent does, whatever became of its output.
        threading.Thread(target=self.process.wait, daemon=True).start()
        self.thread = threading.Thread(target=self._communicate, args=(stdin,), daemon=True)
        self.thread.start()

    def _communicate(self, stdin: bytes) -> None:
        self.output = self.process.communicate(stdin)


def without_room(execute: Callable[..., Any], *commands: str) -> Callable[..., Any]:
    """Return what ``execute`` of an agent does in a guest that has no room for these commands."""

    def executed(command: str, *arguments: Any, **how: Any) -> Any:
        if command in commands:
            if command == "guest-file-open":  # it has opened the file before it notes that down, and finds no room
                execute("guest-file-close", {"handle": execute(command, *arguments, **how)})
            raise GuestFileError("there is no room", command=command, errno=errno.ENOSPC)
        return execute(command, *arguments, **how)

    return executed


class Guest:
    """Answers for a ``Scripted`` agent.

    ``shell`` stands in for /bin/sh, and programs in the directory ``tools`` come before those of PATH. ``started`` are
    the requests to start a program. What stands at ``prefix`` here is what stands at PREFIX in the guest, and programs
    find in ``etc`` what the guest has in /etc. ``directory`` is the agent's own, where relative paths lead.
    """

    def __init__(self, directory: Path, shell: Sequence[str] = ("/bin/sh",), etc: str = "/etc") -> None:
        self.tools = directory / "tools"
        self.tools.mkdir()
        self.directory = directory / "directory of the agent"
        self.directory.mkdir()
        self.prefix = str(directory / "kept.")
        # Sockets are made in there: their paths have to be short.
        self.place = tempfile.TemporaryDirectory(prefix="runner-", ignore_cleanup_errors=True)
        self.runner = Path(self.place.name) / "runner"
        self.shell = list(shell)
        self.etc = etc
        self.files: dict[int, int] = {}
        self.capture = CAPTURE
        self.started: list[Mapping[str, Any]] = []
        self.programs: dict[int, Program] = {}
        self.handle = 1000
        """The number of the next file."""

    def answers(self, *without: str) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """Return the commands of a guest, but for those named."""
        commands = {
            "guest-file-open": self.open,
            "guest-file-close": self.close_file,
            "guest-file-read": self.read,
            "guest-file-write": self.write,
            "guest-file-seek": self.seek,
            "guest-file-flush": self.flush,
            "guest-exec": self.start,
            "guest-exec-status": self.status,
        }
        return {name: answer for name, answer in commands.items() if name not in without}

    def close(self) -> None:
        """End what is still running."""
        for pid in self.runner.glob("*/pid"):
            with suppress(ProcessLookupError, FileNotFoundError):  # one that is just ending by itself
                os.kill(int(pid.read_text()), signal.SIGTERM)
        for program in self.programs.values():
            with suppress(ProcessLookupError):
                os.killpg(program.process.pid, signal.SIGKILL)
            program.thread.join(30)
        self.place.cleanup()

    # guest-file-*

    def open(self, arguments: Mapping[str, Any]) -> int:
        path, mode = str(self.directory / self._here(arguments["path"])), arguments.get("mode", "r")
        flags = _FLAGS[mode] | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = _opened(path, flags)
        except OSError as exc:
            text = f"failed to open file '{arguments['path']}' (mode: '{mode}'): {exc.strerror}"
            raise AgentError(text) from exc
        self.handle += 1
        self.files[self.handle] = descriptor
        return self.handle

    def _file(self, arguments: Mapping[str, Any]) -> int:
        handle = arguments["handle"]
        if handle not in self.files:
            raise AgentError(f"handle '{handle}' has not been found")
        return self.files[handle]

    def close_file(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        os.close(self._file(arguments))
        del self.files[arguments["handle"]]
        return {}

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        count = arguments.get("count", 4096)
        try:
            data = os.read(self._file(arguments), count)
        except OSError as exc:
            raise AgentError(f"failed to read file: {exc.strerror}") from exc
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": len(data) < count}

    def write(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        data = base64.b64decode(arguments["buf-b64"]).replace(RUNNER.encode(), str(self.runner).encode())
        try:
            os.write(self._file(arguments), data)
            return {"count": len(base64.b64decode(arguments["buf-b64"])), "eof": False}
        except BrokenPipeError as exc:  # who read has gone since the file was opened
            raise AgentError(f"failed to write to file: {exc.strerror}") from exc

    def seek(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            position = os.lseek(self._file(arguments), arguments["offset"], arguments["whence"])
        except OSError as exc:
            raise AgentError(f"failed to seek file: {exc.strerror}") from exc
        return {"position": position, "eof": False}

    def flush(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self._file(arguments)
        return {}

    # guest-exec

    def start(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.started.append(arguments)
        program = self.shell if arguments["path"] == "/bin/sh" else [arguments["path"]]
        env = dict(self._of_login(entry).split("=", 1) for entry in arguments["env"]) if "env" in arguments else None
        if env and "PATH" in env:
            env["PATH"] = f"{self.tools}:{env['PATH']}"
        stdin = base64.b64decode(arguments.get("input-data", "")).replace(PREFIX.encode(), self.prefix.encode())
        started = Program([*program, *arguments.get("arg", ())], env, stdin)
        self.programs[started.process.pid] = started
        return {"pid": started.process.pid}

    def _here(self, text: str) -> str:
        return text.replace(PREFIX, self.prefix).replace(RUNNER, str(self.runner))

    def _of_login(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/etc/", lambda _etc: f"{self.etc}/", self._here(text))

    def status(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        pid = arguments["pid"]
        if pid not in self.programs:
            raise AgentError("Invalid parameter 'pid'")
        program = self.programs[pid]
        program.thread.join(0.01 if program.process.returncode is None else 10)
        if program.thread.is_alive():
            return {"exited": False}
        del self.programs[pid]
        rc = program.process.returncode
        return {"exited": True, **({"exitcode": rc} if rc >= 0 else {"signal": -rc}), **self._captured(program)}

    def _captured(self, program: Program) -> dict[str, Any]:
        captured: dict[str, Any] = {}
        for name, data in zip(("out", "err"), program.output, strict=True):
            if data:
                captured[f"{name}-data"] = base64.b64encode(data[: self.capture]).decode()
                captured[f"{name}-truncated"] = len(data) > self.capture
        return captured
