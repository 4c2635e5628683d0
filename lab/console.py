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
# Everything is in /run, because a test may fill or freeze the root filesystem. The inner sh records the exit status, so
# no record means that timeout killed it. A mark is typed with "" in its middle, so that it appears only where the shell
# printed it, never where the terminal echoes what was typed.
TYPED = """
mkdir -p /run/lab; cd /run/lab; base64 -d >{name}.in <<'END'
{encoded}END
timeout -k 5 {seconds} sh -c 'cd /; sh $1.in >$1.out 2>&1 </dev/null; echo $? >$1.rc' sh /run/lab/{name}
echo "<""{name} $(cat {name}.rc || echo none)"; base64 {name}.out; echo "{name}"">"; rm -f {name}.*
"""
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
    name = secrets.token_hex(8)
    encoded = base64.encodebytes(script).decode("ascii")
    typed = TYPED.format(name=name, encoded=encoded, seconds=max(1, math.ceil(timeout)))
    printed = _exchange(path, typed, f"{name}>".encode(), timeout + SLACK)
    match = re.search(rf"<{name} (\d+|none)\s(.*){name}>".encode(), printed, re.DOTALL)
    if match is None:
        raise LabError(f"the console printed something unexpected: {printed!r}")
    output = base64.b64decode(match.group(2)).decode("utf-8", "surrogateescape")
    if match.group(1) == b"none":
        raise LabError(f"not finished after {timeout:g} s in the guest: {command}\nOutput so far: {output}")
    return int(match.group(1)), output


def answers(path: Path, timeout: float) -> bool:
    """Say whether a shell answers on the console within `timeout` seconds."""
    name = secrets.token_hex(8)
    try:
        _exchange(path, f'\necho "{name}"">"\n', f"{name}>".encode(), timeout)
    except LabError:
        return False
    return True


def _exchange(path: Path, typed: str, end: bytes, timeout: float) -> bytes:
    """Type a text, and return what is printed up to and including `end`."""
    deadline = time.monotonic() + timeout
    printed = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(typed.encode("ascii"))
            while end not in printed[-len(end) - 4096 :]:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError("timed out")
                connection.settimeout(remaining)
                received = connection.recv(4096)
                if not received:
                    raise LabError(f"the console closed after it printed {bytes(printed)!r}")
                printed += received
    except OSError as error:
        raise LabError(f"no answer from the console {path}: {error}; it printed {bytes(printed)!r}") from error
    return bytes(printed)
