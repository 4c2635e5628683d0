# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's own tests. They boot each release once: some minutes under emulation."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import accel, host, image
from lab.__main__ import main
from lab.agent import DANGEROUS, LooseAgent
from lab.host import LabError
from lab.vm import Guest


def ask(path: Path, command: str, **arguments: Any) -> Any:
    """Send one command to an agent that nobody else uses; return the whole reply."""
    number = secrets.randbits(31)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        lines = connection.makefile("rb")
        connection.sendall(b"\xff" + json.dumps({"execute": "guest-sync", "arguments": {"id": number}}).encode() + b"\n")
        while json.loads(lines.readline()).get("return") != number:
            pass
        connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        return json.loads(lines.readline())


def shell(path: Path, command: str) -> str:
    """Run a shell command through an agent and return its output."""
    argv = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
    pid = ask(path, "guest-exec", **argv)["return"]["pid"]
    while not (status := ask(path, "guest-exec-status", pid=pid)["return"])["exited"]:
        time.sleep(0.01)
    return base64.b64decode(status.get("out-data", "")).decode()


def gone(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture(scope="module", params=list(image.RELEASES))
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with Guest(request.param) as running:
        running.wait_agent()
        running.wait_booted()
        yield running


@pytest.fixture(scope="module", params=list(image.RELEASES))
def loose(request: pytest.FixtureRequest) -> Iterator[LooseAgent]:
    with LooseAgent(request.param, block=["guest-get-users"]) as running:
        yield running
