# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run operations in processes of their own, which can be killed: worker.py SOCKET serves there.

A client sends a task as a line of JSON; it is told the process, and then what became of the operation. One that sends a
list of directories is told what is there on this controller. Each process is a fork of one that has imported all that
tasks need: thousands of runs take minutes.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Seconds for which a task waits for an agent that is away, and after which it asks whether one has lost a request.
GRACE_SECONDS = 3.0
SILENT_SECONDS = 0.5
# How long a runner may take to start.
READY_SECONDS = 6.0


def serve(path: str) -> None:
    """Serve until the process that started this ends."""
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader([str(Path(__file__).resolve().parents[2] / ".dev" / "collections")])
    from ansible_collections.qemu.guest.tests.faults import operations

    _hurry()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(64)
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:  # the latter ends
            client = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _one(client, operations)
            client.close()


def _one(client: socket.socket, operations: object) -> None:
    """Serve a client, and end."""
    from ansible_collections.qemu.guest.tests.faults.operations import Task, perform

    try:
        with client, client.makefile("rwb") as stream:
            asked = json.loads(stream.readline())
            if isinstance(asked, list):
                stream.write(json.dumps([*_processes(), *_files(asked)]).encode("ascii"))
                return
            task = Task(**asked)
            with suppress(OSError):  # the disk may be full
                os.mkdir(task.directory)
            tempfile.tempdir = task.directory
            os.environ.update(TMPDIR=task.directory, ANSIBLE_HOME=task.directory)
            stream.write(b"%d\n" % os.getpid())
            stream.flush()
            began = time.monotonic()
            outcome = perform(task)
            # The guest's text may not be UTF-8.
            text = json.dumps(outcome._replace(seconds=time.monotonic() - began))
            shutil.rmtree(task.directory, ignore_errors=True)
            stream.write(text.encode("ascii") + b"\n")
            stream.flush()
    finally:
        os._exit(0)


def _processes() -> Iterator[str]:
    """Yield a line for each process of this mount namespace but this one: its number and name."""
    here = os.readlink("/proc/self/ns/mnt")
    for pid in {*filter(str.isdigit, os.listdir("/proc"))} - {str(os.getpid())}:
        with suppress(OSError):  # it has ended meanwhile
            if os.readlink(f"/proc/{pid}/ns/mnt") == here:
                yield f"process {pid} {Path(f'/proc/{pid}/comm').read_text(encoding='utf-8').strip()}"


def _files(directories: list[str]) -> Iterator[str]:
    for top in directories:
        for directory, _names, files in os.walk(top):
            yield from (f"file {directory}/{name}" for name in files)


def _hurry() -> None:
    """Have what waits for minutes wait for seconds; a worker does nothing else."""
    from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import COMMANDS
    from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
    from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import patiently
    from ansible_collections.qemu.guest.plugins.plugin_utils._runner import bootstrap

    assert patiently.__kwdefaults__ and SocketAgent.__init__.__kwdefaults__
    patiently.__kwdefaults__["grace"] = GRACE_SECONDS
    SocketAgent.__init__.__kwdefaults__["silent_seconds"] = SILENT_SECONDS
    bootstrap._READY_SECONDS = READY_SECONDS
    for name, command in COMMANDS.items():
        COMMANDS[name] = command._replace(least_seconds=min(command.least_seconds, GRACE_SECONDS))


if __name__ == "__main__":
    serve(sys.argv[1])
