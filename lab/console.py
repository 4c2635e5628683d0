# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run shell commands in a guest through its serial console: the path that does not depend on the agent.

The console is a root shell that reads from a terminal (recipe.sh sets it up). A command travels to it as base64 in
short lines, its output comes back as base64 between two marks with a random name, so both are exact to the byte.
"""

from __future__ import annotations

import base64
import math
import re
import secrets
import socket
import time
from pathlib import Path

from lab.host import LabError

# The guest's terminal keeps about 64 KiB that no program has read yet, and drops the rest.
MAX_COMMAND = 32 * 1024
# Everything is in /run, because a test may fill or freeze the root filesystem; `mkdir -p` tries to make /run, and that
# alone would wait until it is thawed. The inner sh records the exit status, so
# no record means that timeout killed it. A mark is a name typed with "" in its middle, so that it appears only where
# the shell printed it, never where the terminal echoes what was typed, nor a part of that with a < or > beside it, as
# the shell's line editor shows long lines.
TYPED = """
[ -d /run/lab ] || mkdir /run/lab; cd /run/lab; base64 -d >{name}.in <<'END'
{encoded}END
timeout -k 5 {seconds} sh -c 'cd /; sh $1.in >$1.out 2>&1 </dev/null; echo $? >$1.rc' sh /run/lab/{name}
echo "<{mark} $(cat {name}.rc || echo none)"; base64 {name}.out; echo "{mark}>"; rm -f {name}.*
"""
# Typed to see whether the shell is at its prompt. Control-U first removes what an earlier client left of a line.
PROBE = '\x15echo "<{mark}>"\n'
INTERRUPT = "\x03"
# How much longer than the guest's own timeout to wait for the rest of the output.
SLACK = 15.0


def run(path: Path, command: str, timeout: float) -> tuple[int, str]:
    """Run `command` with sh in the guest whose console is the socket `path`; return its exit status and its output.

    Output is standard output and standard error in the order they were written; bytes that are not UTF-8 are in it as
    surrogate escapes. A command that takes longer than `timeout` seconds is killed in the guest.
    """
    script = command.encode("utf-8", "surrogateescape")
    if len(script) > MAX_COMMAND:
        raise LabError(f"a command on the console is limited to {MAX_COMMAND} bytes, this one has {len(script)}")
    name, mark = secrets.token_hex(8), secrets.token_hex(8)
    encoded = base64.encodebytes(script).decode("ascii")
    with _Terminal(path) as terminal:
        # A shell that an earlier client left in the middle of something does not answer until it is interrupted.
        if not terminal.answers(SLACK):
            terminal.type(INTERRUPT)
            if not terminal.answers(SLACK):
                raise LabError(f"no shell answers on the console {path}; it printed {bytes(terminal.printed)!r}")
        seconds = max(1, math.ceil(timeout))
        terminal.type(TYPED.format(name=name, mark=typed(mark), encoded=encoded, seconds=seconds))
        if not terminal.wait_for(f"{mark}>", timeout + SLACK):
            raise LabError(f"not finished after {timeout:g} s, and the guest did not end it: {command}")
        printed = bytes(terminal.printed)
    match = re.search(rf"<{mark} (\d+|none)\s(.*){mark}>".encode(), printed, re.DOTALL)
    if match is None:
        raise LabError(f"the console printed something unexpected: {printed!r}")
    output = base64.b64decode(match.group(2)).decode("utf-8", "surrogateescape")
    if match.group(1) == b"none":
        raise LabError(f"not finished after {timeout:g} s in the guest: {command}\nOutput so far: {output}")
    return int(match.group(1)), output


def typed(mark: str) -> str:
    """Return what is typed within double quotes for the shell to print ``mark``."""
    return f'{mark[:8]}""{mark[8:]}'


def answers(path: Path, timeout: float) -> bool:
    """Say whether a shell answers on the console within `timeout` seconds.

    If none does, it is interrupted: a guest that boots may take half a line, and with a quote open nothing would end
    it.
    """
    with _Terminal(path) as terminal:
        if terminal.answers(timeout):
            return True
        terminal.type(INTERRUPT)
        return False


class _Terminal:
    """A connection to the console, which serves one at a time; others wait."""

    def __init__(self, path: Path) -> None:
        self.printed = bytearray()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> _Terminal:
        try:
            self._connect()
        except OSError as error:
            self._socket.close()
            raise LabError(f"no console at {self._path}: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _connect(self) -> None:
        """Connect; wait for a place in the queue, which has room for one."""
        self._socket.settimeout(SLACK)
        deadline = time.monotonic() + SLACK
        while True:
            try:
                return self._socket.connect(str(self._path))
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def type(self, text: str) -> None:
        try:
            self._socket.settimeout(SLACK)
            self._socket.sendall(text.encode("ascii"))
        except OSError as error:
            raise LabError(f"the console {self._path} takes no input: {error}") from error

    def answers(self, timeout: float) -> bool:
        """Ask again and again: a guest that boots drops what is typed before it listens."""
        mark = secrets.token_hex(8)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.type(PROBE.format(mark=typed(mark)))
            if self.wait_for(f"<{mark}>", 0.5):
                return True
        return False

    def wait_for(self, mark: str, timeout: float) -> bool:
        """Collect what is printed until `mark` is in it; say whether it came in time."""
        wanted = mark.encode("ascii")
        deadline = time.monotonic() + timeout
        # Look only at the end: the output may be megabytes, and it comes in small pieces.
        while wanted not in self.printed[-8192:]:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                received = self._socket.recv(4096)
            except OSError:
                return False
            if not received:
                raise LabError(f"the console {self._path} closed after it printed {bytes(self.printed)!r}")
            self.printed += received
            if time.monotonic() > deadline:
                return wanted in self.printed[-8192:]
        return True
