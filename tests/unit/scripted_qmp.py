# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's monitor that follows a script, on a real UNIX socket, in the words of QEMU 7.2.

One client is served, the others wait in the backlog without a greeting, as behind QEMU's chardev.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}
NOTHING = object()
"""As an answer: no reply."""


class Refusal(Exception):
    """Raised by an answer: QEMU replies with this error."""


class ScriptedQmp:
    """QEMU's monitor at ``path``; a context manager that runs it in a thread.

    ``status`` is what query-status tells. ``answers`` maps commands to what they return: a value, bytes to send in
    place of a reply, NOTHING, or a function that returns one of these; it finds the command's arguments in
    ``arguments``. ``greeting`` is what a client gets first.
    """

    def __init__(self, path: Path, answers: Mapping[str, Any] | None = None, greeting: bytes | None = None) -> None:
        self.path = path
        self.status = "running"
        self.answers: dict[str, Any] = {
            "qmp_capabilities": {},
            "query-status": lambda: {"status": self.status, "singlestep": False, "running": self.status == "running"},
            "query-commands": lambda: [{"name": name} for name in self.answers],
            "query-current-machine": {"wakeup-suspend-support": True},
            "system_wakeup": self.wake,
            **(answers or {}),
        }
        self.greeting = line(GREETING) if greeting is None else greeting
        self.commands: list[str] = []
        self.arguments: Mapping[str, Any] = {}
        self.clients = 0
        self._ending = False
        self._client: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, name="scripted QMP", daemon=True)

    @property
    def work(self) -> list[str]:
        """The commands received, those left out that every client sends."""
        return [command for command in self.commands if command not in ("qmp_capabilities", "query-status")]

    def note(self, command: str, arguments: Mapping[str, Any]) -> None:
        self.commands.append(command)
        self.arguments = arguments

    def emit(self, event: str, **data: Any) -> None:
        """Send an event to the client, if there is one."""
        stamp = {"timestamp": {"seconds": 1, "microseconds": 2}}
        if self._client:
            with suppress(OSError):
                self._client.sendall(line({**stamp, "event": event, **({"data": data} if data else {})}))

    def wake(self) -> Any:
        if self.status != "suspended":
            raise Refusal("Unable to wake up: guest is not in suspended state")
        self.status = "running"
        self.emit("WAKEUP")
        return {}

    def end(self) -> None:
        """Be gone, as a QEMU that exits is."""
        self._ending = True
        self.path.unlink(missing_ok=True)
        for sock in (self._listener, self._client):
            with suppress(OSError):
                if sock:
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> ScriptedQmp:
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()
        self._thread.join(30)
        self._listener.close()

    def _serve(self) -> None:
        while not self._ending:
            with suppress(OSError):
                client, _address = self._listener.accept()
                with client:
                    self.clients += 1
                    client.sendall(self.greeting)
                    self._client = client
                    self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        with client.makefile("rb") as requests:
            for text in requests:
                request = json.loads(text)
                self.note(request["execute"], request.get("arguments", {}))
                reply = self._reply(request["execute"])
                if reply is NOTHING:
                    continue
                client.sendall(reply if isinstance(reply, bytes) else line({**reply, "id": request["id"]}))

    def _reply(self, command: str) -> Any:
        if command not in self.answers:
            error = {"class": "CommandNotFound", "desc": f"The command {command} has not been found"}
            return {"error": error}
        answer: Callable[[], Any] | Any = self.answers[command]
        try:
            value = answer() if callable(answer) else answer
        except Refusal as exc:
            return {"error": {"class": "GenericError", "desc": str(exc)}}
        return value if value is NOTHING or isinstance(value, bytes) else {"return": value}


def line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"
