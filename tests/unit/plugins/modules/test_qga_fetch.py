# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    GuestFileError,
    OperationError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import CHUNK
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Plan, run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_fetch
from ansible_collections.qemu.guest.plugins.modules.qga_fetch import OPERATION, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails

DATA = os.urandom(CHUNK + CHUNK // 4)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("here", "there", "changes"), [("", "a", True), ("b", "a", True), ("a", "a", False)], ids=["new", "other", "same"]
)
def test_plan(here: str, there: str, changes: bool) -> None:
    planned = plan({"dest": "/d/s", "here": here, "there": there}, {"src": "/s", "dest": "/d/", "max_size": None})
    assert planned.changes is changes
    assert planned.result == {"src": "/s", "dest": "/d/s", "sha256": "a"}
    assert planned.diff() == (
        [
            {
                "before": {"sha256": here or None},
                "after": {"sha256": "a"},
                "before_header": "/d/s",
                "after_header": "/d/s",
            }
        ]
        if changes
        else []
    )


@pytest.fixture(params=[True, False], ids=["programs", "no programs"])
def server(request: pytest.FixtureRequest, scripted: Callable[..., Scripted], guest: Guest) -> Scripted:
    return scripted(guest.answers(*(() if request.param else ("guest-exec", "guest-exec-status"))))


@pytest.fixture
def agent(server: Scripted, connect: Callable[..., SocketAgent]) -> SocketAgent:
    return connect(server)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "guest" / "a file"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


def planned_for(agent: SocketAgent, src: Path, dest: Path) -> Plan:
    params = {"src": str(src), "dest": str(dest), "recurse": False, "max_size": None}
    return plan(OPERATION.read(GuestExec(agent), params), params)


def run(
    agent: SocketAgent, src: Path, dest: str | Path, check_mode: bool = False, max_size: int | None = None
) -> dict[str, Any]:
    params = {"src": str(src), "dest": str(dest), "recurse": False, "max_size": max_size}
    result = run_operation(OPERATION, agent, params, check_mode=check_mode)
    assert set(result) - {"changed"} <= returned("qga_fetch")
    return result


def test_fetch(agent: SocketAgent, source: Path, here: Path) -> None:
    dest = here / "copy"
    assert run(agent, source, dest, check_mode=True)["changed"] is True
    assert list(here.iterdir()) == []
    result = run(agent, source, dest)
    assert result == {"changed": True, "src": str(source), "dest": str(dest), "sha256": sha256(DATA), "size": len(DATA)}
    assert dest.read_bytes() == DATA
    assert dest.stat().st_mode & 0o777 == 0o600
    again = run(agent, source, dest)
    assert again == {"changed": False, "src": str(source), "dest": str(dest), "sha256": sha256(DATA)}
    assert list(here.iterdir()) == [dest]


def test_file_that_is_the_same_is_not_copied(agent: SocketAgent, server: Scripted, source: Path, here: Path) -> None:
    (here / "copy").write_bytes(DATA)
    inode = (here / "copy").stat().st_ino
    assert run(agent, source, here / "copy")["changed"] is False
    assert (here / "copy").stat().st_ino == inode


@pytest.mark.parametrize("dest", ["", "/", "/new/", "/new/deeper/"])
def test_directory(agent: SocketAgent, source: Path, here: Path, dest: str) -> None:
    result = run(agent, source, f"{here}{dest}")
    assert Path(result["dest"]) == Path(f"{here}{dest}") / "a file"
    assert Path(result["dest"]).read_bytes() == DATA


def test_existing_file_keeps_its_mode(agent: SocketAgent, source: Path, here: Path) -> None:
    (here / "copy").write_bytes(b"old")
    (here / "copy").chmod(0o644)
    run(agent, source, here / "copy")
    assert (here / "copy").read_bytes() == DATA
    assert (here / "copy").stat().st_mode & 0o777 == 0o644


def test_empty_file(agent: SocketAgent, source: Path, here: Path) -> None:
    source.write_bytes(b"")
    assert run(agent, source, here / "copy")["size"] == 0
    assert (here / "copy").read_bytes() == b""


def test_no_such_file(agent: SocketAgent, source: Path, here: Path) -> None:
    with pytest.raises(GuestFileError, match="No such file"):
        run(agent, source.parent / "nope", here / "copy")
    assert list(here.iterdir()) == []


def test_destination_that_cannot_be_written(agent: SocketAgent, source: Path) -> None:
    with pytest.raises(OperationError, match="cannot write /proc/nope/copy here"):
        run(agent, source, "/proc/nope/copy")


def test_destination_that_cannot_be_read(agent: SocketAgent, source: Path, here: Path) -> None:
    (here / "file").touch()
    with pytest.raises(OperationError, match=r"cannot read .*/file/copy here: Not a directory"):
        run(agent, source, here / "file" / "copy")


def test_file_appears_whole_or_not_at_all(agent: SocketAgent, server: Scripted, source: Path, here: Path) -> None:
    (here / "copy").write_bytes(b"old")
    planned = planned_for(agent, source, here / "copy")
    server.then("guest-file-read", fails("failed to read file: Input/output error"))
    with pytest.raises(GuestFileError):
        OPERATION.apply(GuestExec(agent), planned)
    assert [(path.name, path.read_bytes()) for path in here.iterdir()] == [("copy", b"old")]


def test_file_that_changes_meanwhile(
    agent: SocketAgent, server: Scripted, guest: Guest, source: Path, here: Path
) -> None:
    planned = planned_for(agent, source, here / "copy")

    def changes(arguments: Any) -> Any:
        reply = guest.read(arguments)
        source.write_bytes(os.urandom(len(DATA)))
        return reply

    server.answers["guest-file-read"] = changes
    with pytest.raises(TransferError, match=r"was written to each time|changed while it was read"):
        OPERATION.apply(GuestExec(agent), planned)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("check_mode", [True, False])
def test_file_that_there_is_no_room_for_is_not_read(
    agent: SocketAgent,
    server: Scripted,
    guest: Guest,
    source: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    check_mode: bool,
) -> None:
    """A guest may have files of any size that it likes to say."""
    monkeypatch.setattr(qga_fetch, "free_space", lambda where: len(DATA) - 1)
    with pytest.raises(TransferError, match=rf"more than {len(DATA) - 1} bytes: no more space is free here"):
        run(agent, source, here / "new" / "copy", check_mode=check_mode)
    assert server.work.count("guest-file-read") == 1
    (here / "copy").write_bytes(DATA)
    assert run(agent, source, here / "copy", check_mode=check_mode)["changed"] is False, "it has its room"


@pytest.mark.parametrize("max_size", [len(DATA) - 1, len(DATA)])
def test_file_that_is_larger_than_it_may_be(agent: SocketAgent, source: Path, here: Path, max_size: int) -> None:
    if max_size == len(DATA):
        assert run(agent, source, here / "copy", max_size=max_size)["size"] == len(DATA)
        return
    with pytest.raises(TransferError, match=rf"more than {max_size} bytes: .*Raise it by max_size"):
        run(agent, source, here / "copy", max_size=max_size)
    assert list(here.iterdir()) == []
