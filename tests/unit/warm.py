# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of warm Python share: modules as ansible-core sends them, and a guest with an interpreter."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ExecResult, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import run_shell
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import client
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import (
    fingerprint,
    frames,
    interpreter,
    shell_runner,
    wire,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.payload import Archive, read_archive
from ansible_collections.qemu.guest.tests.unit.guest import Guest

COMMAND = sys.executable
SPOOL = Path(client._spool()).name
# What is there as long as the server is.
STAYS = {"ring", "pid"}
LIBRARIES = {
    "ansible/__init__.py": "",
    "ansible/module_utils/__init__.py": "",
    "ansible/module_utils/library.py": "VALUE = 'first'\nSTATE = []\n",
    "ansible/module_utils/other.py": "from ansible.module_utils.library import VALUE\nOTHER = VALUE.upper()\n",
    "ansible/modules/__init__.py": "",
    "ansible/modules/work.py": "from ansible.module_utils import library, other\n",
}
# As ansible-core's own does it: the archive is written to a file that comes first in sys.path.
WRAPPER = """
import base64, os, runpy, shutil, sys, tempfile
def main(zip_data):
    sys.path = [entry for entry in sys.path if entry not in ('', '.')]
    directory = tempfile.mkdtemp()
    path = os.path.join(directory, "ansible_work_payload.zip")
    try:
        with open(path, "wb") as file:
            file.write(base64.b64decode(zip_data))
        sys.path.insert(0, path)
        from ansible.module_utils import library
        runpy.run_module("ansible.modules.work", run_name="__main__", alter_sys=True)
    finally:
        shutil.rmtree(directory)
if __name__ == "__main__":
    main(
zip_data='{}',
)
"""


def module(
    work: str,
    libraries: Mapping[str, str] | None = None,
    when: tuple[int, int, int, int, int, int] = (2026, 1, 2, 3, 4, 6),
) -> bytes:
    """Return what ansible-core would pipe to Python for a module with this program."""
    libraries = libraries or LIBRARIES
    content = {**libraries, "ansible/modules/work.py": libraries["ansible/modules/work.py"] + work}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, source in content.items():
            file.writestr(zipfile.ZipInfo(name, when), source)
    return WRAPPER.format(base64.b64encode(archive.getvalue()).decode()).encode()


def warmed(warm: WarmPython, command: str = COMMAND, program: bytes = b"") -> None:
    """Have an interpreter for the command."""
    until(lambda: warm.run(command, program or module("")))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "that is not so after 60 s"
        time.sleep(0.05)


def plain(agent: Runner, program: bytes, command: str = COMMAND) -> ExecResult:
    return run_shell(agent, command.encode(), program)


def shell_warmed(warm: WarmPython) -> None:
    """Wait until shell commands are run beside the interpreters."""
    warmed(warm)
    until(lambda: warm.run(":", b""))


def with_archive(program: bytes) -> tuple[re.Match[bytes], Archive]:
    """Return where a module's program has its archive, and that."""
    payload = client._ARCHIVE.search(program)
    assert payload
    archive = read_archive(payload.group(1))
    assert archive
    return payload, archive


def server_pid(guest: Guest) -> int:
    return int((guest.runner / SPOOL / "pid").read_text())


def a_request(**said: Any) -> wire.ClientRequest:
    """Return a request as a server takes it."""
    return wire.ClientRequest(b"program", **{"key": "k", **said})


def an_interpreter(*, ready: bool = True, **how: Any) -> tuple[interpreter.Interpreter, socket.socket]:
    """Return one that is at work at nothing, and the zygote's end of its socket."""
    ours, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    errors, theirs = os.pipe()
    os.close(theirs)
    login_files = fingerprint.LoginFiles([])
    one = interpreter.Interpreter((ours, errors, os.getpid()), login_files, "", "/bin", **how)
    if ready:
        zygote.sendall(frames.READY + bytes([frames.STAYS]))
        one.listen()
        assert one.ready
    return one, zygote


def full(*_arguments: object) -> int:
    raise OSError(errno.ENOSPC, "there is no room")


def called_here(command: ShellCommand, stdin: bytes = b"") -> bytes | None:
    """Return what the call prints that stands for a command; None if it takes a shell."""
    if not command.function:
        return None
    header = {"serial": 1, "archive": "", "split_at": 0, "forget": [], "in_time": False}
    call = [command.function, *command.arguments]
    return shell_runner.called(
        frames.InterpreterRequest(json.dumps({**header, "call": call}).encode(), b"", b""), stdin
    )
