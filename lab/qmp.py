# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One QMP command to a running QEMU."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.host import LabError


def call(path: Path, command: str, arguments: Mapping[str, Any], timeout: float = 10.0) -> Any:
    """Run `command` through the QMP socket `path` and return its result.

    Each call has a connection of its own, because the socket serves one client at a time.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            messages = _messages(connection)
            next(messages)  # the greeting
            _execute(connection, messages, {"execute": "qmp_capabilities"})
            return _execute(connection, messages, {"execute": command, "arguments": arguments})
    except (OSError, ValueError, StopIteration) as error:
        raise LabError(f"QMP {command} through {path}: {error or 'connection closed'}") from error


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    with connection.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _execute(connection: socket.socket, messages: Iterator[dict[str, Any]], request: Mapping[str, Any]) -> Any:
    connection.sendall(json.dumps(request).encode() + b"\n")
    while True:
        message = next(messages)
        if "error" in message:
            raise LabError(f"QMP {request['execute']}: {message['error']['desc']}")
        if "return" in message:
            return message["return"]
        # Anything else is an event.
