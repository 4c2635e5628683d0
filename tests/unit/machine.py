# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine to shut down and to suspend: a scripted agent and a scripted QMP that know of each other, in real time."""

from __future__ import annotations

import base64
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._module.power import Timing
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Request, Scripted, Session, Step
from ansible_collections.qemu.guest.tests.unit.scripted_qmp import ScriptedQmp

# How long the machine needs for what it is told, and how long it is waited for.
SECONDS = 0.1
HURRY = Timing(pause=0.05, answer=0.2, silent=1.0, gone=0.1, failed=1.0)
TO_FAIL = 0.2

FILES = ("guest-file-open", "guest-file-read", "guest-file-close")


class Machine(Scripted):
    """The guest's agent, and in ``qmp`` the QEMU around it.

    ``shutdown`` and ``suspend`` are what it does when it is told to, in place of an answer; tests set them. ``listens``
    is False while nobody in the guest listens. ``milliseconds_up`` is what guest-get-cpustats tells.
    """

    def __init__(self, directory: Path, without: tuple[str, ...] = ()) -> None:
        answers = {
            "guest-file-open": self._open,
            "guest-file-read": lambda arguments: self._boot_id_read(),
            "guest-file-close": {},
            "guest-get-cpustats": lambda arguments: self._cpustats(),
            "guest-shutdown": {},
            **{f"guest-suspend-{mode}": {} for mode in ("ram", "disk", "hybrid")},
        }
        super().__init__(
            directory / "agent.sock",
            {name: answer for name, answer in answers.items() if name not in without},
            blocked={name: f"Command {name} has been disabled" for name in without},
        )
        self.qmp = ScriptedQmp(directory / "qmp.sock")
        self.boot_id = str(uuid.uuid4())
        self.milliseconds_up = 60_000
        self.listens = True
        self.shutdown: Callable[[], object] = lambda: None
        self.suspend: Callable[[], object] = lambda: None
        self._timers: list[threading.Timer] = []

    def __enter__(self) -> Machine:
        super().__enter__()
        self.qmp.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for timer in self._timers:
            timer.join()
        self.qmp.__exit__()
        super().__exit__(*exc_info)

    def step(self, command: str) -> Step:
        if not self.listens:
            return _nothing
        if self._script[command]:
            return super().step(command)
        if command == "guest-shutdown" or command.startswith("guest-suspend"):
            action = self.shutdown if command == "guest-shutdown" else self.suspend
            return lambda session, request: self.later(action)
        return super().step(command)

    # What it does

    def later(self, action: Callable[[], object], seconds: float = SECONDS) -> None:
        timer = threading.Timer(seconds, action)
        self._timers.append(timer)
        timer.start()

    def stops(self, event: str = "", status: str = "") -> Callable[[], object]:
        """Return what a guest does whose agent stops; QEMU sends ``event`` and has ``status`` from then on."""

        def action() -> None:
            self.listens = False
            self.qmp.status = status or self.qmp.status
            if event:
                self.qmp.emit(event)

        return action

    def ends(self, event: str = "") -> Callable[[], object]:
        """Return what a machine does that ends with its QEMU."""

        def action() -> None:
            self.stops(event)()
            self.qmp.end()

        return action

    def reboots(self, event: str = "RESET", seconds: float = SECONDS) -> Callable[[], object]:
        """Return what a guest does that reboots, and has its agent back after ``seconds``."""

        def action() -> None:
            self.stops(event)()
            self.later(self.boots, seconds)

        return action

    def boots(self) -> None:
        self.boot_id = str(uuid.uuid4())
        self.milliseconds_up = 100
        self.listens = True

    # What it answers

    def _open(self, arguments: Mapping[str, Any]) -> int:
        if arguments["path"] != "/proc/sys/kernel/random/boot_id" or not self.boot_id:
            raise AgentError(f"failed to open file '{arguments['path']}' (mode: 'r'): No such file or directory")
        return 1000

    def _boot_id_read(self) -> dict[str, Any]:
        data = self.boot_id.encode() + b"\n"
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": True}

    def _cpustats(self) -> list[dict[str, Any]]:
        first = {"type": "linux", "cpu": 0, "user": 100, "system": 0, "idle": self.milliseconds_up - 100}
        return [{"type": "linux", "cpu": 1, "user": 1}, first]


def _nothing(session: Session, request: Request) -> None:
    pass
