# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start relay.py on a hypervisor, remember it from task to task, and be led to a socket by it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError

__all__ = ("NO_PYTHON", "RelayGone", "RelayNote", "forget", "python_command", "started_path")

_IDLE_SECONDS = 60.0
_LONGEST_REPLY = 1024
_PYTHONS = ("python3", "python", "/usr/libexec/platform-python")
NO_PYTHON = "qga-relay: no Python"
# The first line of the input is for the program, which is the rest. -I: nothing is imported from the login's home.
_BEGIN = "import sys; i = sys.stdin.buffer; g = i.readline(); exec(compile(i.read(), 'qga-relay', 'exec')); main(g)"
_IS_NEW = "import sys; sys.exit(sys.version_info < (3, 6))"

_TROUBLE = {
    "ENOENT": "there is no such socket. QEMU makes it when the guest starts: is the guest running there?",
    "ECONNREFUSED": "nothing listens on this socket: its QEMU has exited. Start the guest.",
    "EACCES": "permission denied. The socket belongs to the user that runs QEMU, whom ansible_become_user can name.",
    "ENOTSOCK": "this is not a socket.",
    "EAGAIN": "several clients wait for this agent already.",
}


class RelayGone(Exception):
    """What replies at the relay's socket, if anything, is not the relay."""


class RelayNote(NamedTuple):
    """Which user the login is on a hypervisor, and the relay there; ``path`` is empty if there is none.

    ``ask`` is what the relay wants to be told, and ``answer`` what only the relay knows: another user may have taken
    the place of a relay that has ended.
    """

    uid: int
    user: str
    path: str = ""
    ask: str = ""
    answer: str = ""

    @classmethod
    def parse(cls, output: bytes) -> RelayNote | None:
        """Return the login that has C(id -u; id -un) print this; None if that has printed something else."""
        match = re.search(rb"(?:\A|\n)(\d+)\n([^\s]+)\s*\Z", output)
        return cls(int(match[1]), match[2].decode("utf-8", "replace")) if match else None

    @classmethod
    def load(cls, file: str) -> RelayNote | None:
        """Return what was saved; None if nothing was."""
        try:
            return cls(**json.loads(Path(file).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, file: str) -> None:
        """Write to ``file``, which is in a private directory. The caller holds its lock."""
        forget(file)
        with open(f"{file}.new", "w", encoding="ascii", opener=_private) as new:
            json.dump(self._asdict(), new)
        os.replace(f"{file}.new", file)

    def with_secrets(self) -> RelayNote:
        """Return this login with secrets for a relay that is to be started."""
        return self._replace(ask=secrets.token_hex(16), answer=secrets.token_hex(16))

    def program(self, seconds: float = _IDLE_SECONDS) -> bytes:
        """Return the input of ``python_command``: a relay that ends ``seconds`` after its last connection."""
        given = {"uid": self.uid, "ask": self.ask, "answer": self.answer, "seconds": seconds}
        return json.dumps(given).encode("ascii") + b"\n" + (Path(__file__).parent / "relay.py").read_bytes()

    def lead(self, sock: socket.socket, path: str, deadline: Deadline) -> None:
        """Have the relay that ``sock`` is connected to connect it to the UNIX socket ``path`` there.

        :raise RelayGone: if that is not the relay.
        :raise ConnectError: if the relay cannot connect to ``path``, or does not reply.
        """
        self._asked(sock, f"connect {path}", deadline)

    def listen(self, sock: socket.socket, path: str, deadline: Deadline) -> str:
        """Return the path of a socket there that leads to ``path``, as long as ``sock`` is open. It raises as ``lead``.

        Only a process that knows its name can use it.
        """
        return self._asked(sock, f"listen {path}", deadline)

    def _asked(self, sock: socket.socket, what: str, deadline: Deadline) -> str:
        try:
            sock.settimeout(max(deadline.left(), 0.001))
            sock.sendall(os.fsencode(f"{self.ask} {what}\n"))
            reply = _line(sock, deadline)
            sock.settimeout(None)
        except TimeoutError:
            raise ConnectError(f"the relay there did not reply within {deadline.seconds:g} s") from None
        except OSError as exc:
            raise RelayGone from exc
        word, _space, rest = reply.partition(" ")
        if word == "error":
            code, _space, text = rest.partition(" ")
            raise ConnectError(_TROUBLE.get(code, text))
        answer, _space, name = rest.partition(" ")
        if word != "ok" or not secrets.compare_digest(answer.encode("utf-8"), self.answer.encode("ascii")):
            raise RelayGone
        return name


def forget(file: str) -> None:
    """Remove what was saved."""
    for name in (file, f"{file}.new"):
        with suppress(FileNotFoundError):
            os.unlink(name)


def python_command(interpreter: Any) -> str:
    """Return a shell command that runs ``RelayNote.program``; ``interpreter`` is Ansible's variable, in words.

    It is one line without variables: it goes through the login's shell, which may be csh, and through sudo, which with
    -i leaves a dollar to another shell.
    """
    text = str(interpreter or "auto")
    pythons = _PYTHONS if text.startswith("auto") else (text,)
    attempts = []
    for python in (shlex.join([*each.split(), "-I", "-c"]) for each in pythons):
        is_new = f"{python} {shlex.quote(_IS_NEW)} </dev/null >/dev/null 2>&1"
        attempts.append(f"{is_new} && exec {python} {shlex.quote(_BEGIN)}")
    return "; ".join([*attempts, f"echo {shlex.quote(NO_PYTHON)} >&2", "exit 127"])


def started_path(output: bytes) -> str | None:
    """Return where the relay listens that has printed this; None if none did."""
    match = re.search(rb"^qga-relay (/\S+) \d+\r?$", output, re.MULTILINE)
    return os.fsdecode(match[1]) if match else None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _line(sock: socket.socket, deadline: Deadline) -> str:
    """Return the line that comes; nothing after it is read. It is empty at the end of input.

    :raise TimeoutError: if it does not come until the deadline.
    """
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_REPLY:
        sock.settimeout(max(deadline.left(), 0.001))
        more = sock.recv(1)
        if not more:
            return ""
        line += more
    return line[:-1].decode("utf-8", "replace")
