# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and directories of a guest whose agent is in good order, but for the reply to one of the requests."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ProtocolError, QgaError, TransferError
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec
from ansible_collections.qemu.guest.plugins.modules import qga_fetch, qga_file
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.plugins.modules.test_garbage import INFO, damaged
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Clock

SEEDS = int(os.environ.get("QEMU_GUEST_SEEDS", "2"))
# In place of what a program writes, or a file has. No path is among them: what is there is this machine's.
OUTPUT = (b"", b"\0", b"\n", b"x\n", b"\xff\xfe\n", b"-1\n", b"9" * 5000 + b"\n", b"1 " * 500)


class Garbling(Agent):
    """The agent of ``guest``; its reply to the request ``number`` is garbage.

    How often a program is asked after before it ends depends on this machine's load, so that does not count.
    """

    def __init__(self, guest: Guest, number: int, draw: random.Random) -> None:
        super().__init__("unix:/run/vm1.qga")
        self.count = 0
        self._answers: dict[str, Callable[[Mapping[str, Any]], Any]] = guest.answers()
        self._number = number
        self._draw = draw

    def _request(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        try:
            value = self._answer(command, arguments or {})
        except AgentError as exc:
            return {"error": exc.error}
        if command == "guest-exec-status" and not value["exited"]:
            return {"return": value}
        self.count += 1
        return {"return": self._garbled(value) if self.count == self._number else value}

    def _answer(self, command: str, arguments: Mapping[str, Any]) -> Any:
        if command == "guest-info":
            table = [{"name": name, "enabled": True} for name in [*self._answers, "guest-info"]]
            return {**INFO, "supported_commands": table}
        return self._answers[command](arguments)

    def _garbled(self, value: Any) -> Any:
        name = next((name for name in ("out-data", "buf-b64") if name in value), "") if isinstance(value, dict) else ""
        if not name or self._draw.random() < 0.3:
            return self._draw.choice(list(damaged(value)))
        data = self._draw.choice(OUTPUT)
        return {**value, name: base64.b64encode(data).decode(), **({"count": len(data)} if "count" in value else {})}

    def close(self) -> None:
        pass


def new(place: Path) -> tuple[Operation, dict[str, Any]]:
    return qga_file.OPERATION, {"path": f"{place}/guest/new", "content": "new", "mode": "0640"}


def old(place: Path) -> tuple[Operation, dict[str, Any]]:
    (place / "guest" / "old").write_bytes(b"old")
    return qga_file.OPERATION, {"path": f"{place}/guest/old", "content": "new", "backup": True}


def removed(place: Path) -> tuple[Operation, dict[str, Any]]:
    (place / "guest" / "old").write_bytes(b"old")
    return qga_file.OPERATION, {"path": f"{place}/guest/old", "state": "absent"}


def tree(place: Path) -> tuple[Operation, dict[str, Any]]:
    return qga_file.OPERATION, {"path": f"{place}/guest/tree", "src": f"{place}/here/", "recurse": True}


def fetched(place: Path) -> tuple[Operation, dict[str, Any]]:
    (place / "guest" / "old").write_bytes(bytes(3000))
    return qga_fetch.OPERATION, {"src": f"{place}/guest/old", "dest": f"{place}/back"}


def fetched_tree(place: Path) -> tuple[Operation, dict[str, Any]]:
    (place / "guest" / "sub").mkdir(exist_ok=True)
    (place / "guest" / "sub" / "file").write_bytes(bytes(3000))
    (place / "guest" / "link").unlink(missing_ok=True)
    (place / "guest" / "link").symlink_to("sub")
    return qga_fetch.OPERATION, {"src": f"{place}/guest/", "dest": f"{place}/back", "recurse": True}


@pytest.mark.parametrize("task", [new, old, removed, tree, fetched, fetched_tree])
def test_garbage_in_the_middle(
    task: Callable[[Path], tuple[Operation, dict[str, Any]]],
    guest: Guest,
    clock: Clock,
    tmp_path: Path,
) -> None:
    place = tmp_path / "place"
    for name in ("guest", "here/sub"):
        (place / name).mkdir(parents=True)
    (place / "here" / "sub" / "file").write_bytes(b"here")
    for number in itertools.count(1):
        for seed in range(SEEDS):
            operation, given = task(place)
            options = {**{name: option.get("default") for name, option in argument_spec(operation).items()}, **given}
            agent = Garbling(guest, number, random.Random(f"{number} {seed}"))
            with suppress(QgaError):
                ended_well(operation, agent, options)
        if agent.count < number:
            break
    assert number > 3


def ended_well(operation: Operation, agent: Garbling, options: dict[str, Any]) -> None:
    try:
        json.dumps(run_operation(operation, agent, options, diff=True), allow_nan=False)
    except QgaError as exc:
        json.dumps([str(exc), exc.as_result()], allow_nan=False)
        assert str(exc).startswith(f"guest agent at {agent.name}: ")
        if isinstance(exc, (ProtocolError, TransferError)):
            assert exc.as_result()["error"]["executed"] in ("yes", "no", "unknown")
        raise
