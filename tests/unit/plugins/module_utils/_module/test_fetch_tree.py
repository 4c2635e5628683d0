# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qga_fetch with recurse, of a guest that is this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OperationError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_fetch import OPERATION
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest.test_login_shell import tool
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted
from ansible_collections.qemu.guest.tests.unit.trees import tree


@pytest.fixture
def there(tmp_path: Path) -> Path:
    top = tmp_path / "guest" / "logs"
    (top / "old" / "older").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "app.log").write_text("new\n")
    (top / "old" / "older" / "app.log").write_text("old\n" * 1000)
    (top / "old" / "run").write_text("#!/bin/sh\n")
    (top / "old" / "run").chmod(0o4755)
    (top / "last").symlink_to("old/older/app.log")
    return top


def run(agent: SocketAgent, src: Path | str, dest: Path | str, *, check_mode: bool = False, **more: Any) -> Any:
    given = {"src": str(src), "dest": str(dest), "recurse": True, "max_size": None, **more}
    result = run_operation(OPERATION, agent, given, check_mode=check_mode, diff=True)
    assert set(result) - {"changed", "diff"} <= returned("qga_fetch")
    return result


CAME = {
    "empty": "700",
    "old": "700",
    "old/older": "700",
    "app.log": ("new\n", "600"),
    "old/older/app.log": ("old\n" * 1000, "600"),
    "old/run": ("#!/bin/sh\n", "700"),
    "last": "-> old/older/app.log",
}
FILES = {"app.log", "old/older/app.log", "old/run", "last"}


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("exists", [True, False])
def test_directory(agent: SocketAgent, there: Path, tmp_path: Path, slash: str, exists: bool) -> None:
    dest = tmp_path / "a" / "b"
    if exists:
        dest.mkdir(parents=True)
    at = dest if slash else dest / "logs"
    checked = run(agent, f"{there}{slash}", dest, check_mode=True)
    assert not (dest / "logs").exists() and dest.exists() == exists
    result = run(agent, f"{there}{slash}", dest)
    assert tree(at) == CAME
    assert set(result["files"]) == FILES and result["left_out"] == []
    assert (result["changed"], result["dest"], result["size"]) == (True, str(at), 4 + 4000 + 10)
    assert {name: value for name, value in result.items() if name != "size"} == checked
    assert "warnings" not in result
    again = run(agent, f"{there}{slash}", dest)
    assert (again["changed"], again["files"]) == (False, [])


def test_what_is_the_same_is_not_sent(agent: SocketAgent, guest: Guest, there: Path, tmp_path: Path) -> None:
    run(agent, there, tmp_path)
    tool(guest, "tar", "echo tar was started >&2; exit 1")
    assert run(agent, there, tmp_path)["changed"] is False
    (there / "app.log").write_text("newer\n")
    with pytest.raises(TransferError, match=r"found none of the files of .*: tar was started"):
        run(agent, there, tmp_path)


def test_what_differs_is_replaced_and_the_rest_stays(agent: SocketAgent, there: Path, tmp_path: Path) -> None:
    run(agent, there, tmp_path)
    here = tmp_path / "logs"
    (here / "mine").write_text("mine\n")
    (here / "mine").chmod(0o640)
    (here / "app.log").write_text("changed here\n")
    (here / "app.log").chmod(0o644)
    (here / "last").unlink()
    (here / "last").write_text("no link\n")
    (here / "old" / "run").unlink()
    (here / "old" / "run").symlink_to("../mine")
    inode = (here / "old" / "older" / "app.log").stat().st_ino
    result = run(agent, there, tmp_path)
    assert set(result["files"]) == {"app.log", "last", "old/run"}
    assert tree(here) == {**CAME, "mine": ("mine\n", "640"), "app.log": ("new\n", "644")}
    assert (here / "old" / "older" / "app.log").stat().st_ino == inode


OUT = ["/etc/passwd", "..", "../x", "old/../../x", "old/older/../../x", "./../x"]
WITHIN = ["app.log", "./old/run", "old//older", "missing", "old/older/missing/x"]


@pytest.mark.parametrize("target", [*OUT, *WITHIN])
def test_links_that_lead_out_are_left_out(agent: SocketAgent, there: Path, tmp_path: Path, target: str) -> None:
    (there / "link").symlink_to(target)
    result = run(agent, there, tmp_path)
    assert result["left_out"] == (["link"] if target in OUT else [])
    assert tree(tmp_path / "logs") == {**CAME, **({} if target in OUT else {"link": f"-> {target}"})}
    if target in OUT:
        assert any(f"link was not fetched: it is a link that leads out, to {target}" in w for w in result["warnings"])


@pytest.mark.parametrize(("target", "within"), [("../..", True), ("../../app.log", True), ("../../..", False)])
def test_links_upwards(agent: SocketAgent, there: Path, tmp_path: Path, target: str, within: bool) -> None:
    (there / "old" / "older" / "link").symlink_to(target)
    assert run(agent, there, tmp_path)["left_out"] == ([] if within else ["old/older/link"])


def test_what_is_no_file_is_left_out(agent: SocketAgent, there: Path, tmp_path: Path) -> None:
    os.mkfifo(there / "old" / "fifo")
    result = run(agent, there, tmp_path)
    assert result["left_out"] == ["old/fifo"]
    assert any(
        "old/fifo was not fetched: it is no file, directory or link" in warning for warning in result["warnings"]
    )
    assert tree(tmp_path / "logs") == CAME


@pytest.mark.parametrize("name", ["old", "app.log", "last", "old/older"])
@pytest.mark.parametrize("kind", ["link", "other"])
def test_what_is_in_the_way_here(agent: SocketAgent, there: Path, tmp_path: Path, name: str, kind: str) -> None:
    """Nothing is written through a link that is here already, whoever made it: an earlier fetch may have."""
    (tmp_path / "out").mkdir()
    (tmp_path / "logs" / "old").mkdir(parents=True)
    place = tmp_path / "logs" / name
    is_directory = (there / name).is_dir() and not (there / name).is_symlink()
    if place.exists():
        place.rmdir()
    if kind == "link":
        place.symlink_to(tmp_path / "out")
    elif is_directory:
        place.write_text("a file")
    else:
        place.mkdir()
    if kind == "link" and not is_directory:
        run(agent, there, tmp_path)
        assert tree(tmp_path / "logs") == CAME | {"old": tree(tmp_path / "logs")["old"]}
    else:
        before = tree(tmp_path / "logs")
        with pytest.raises(OperationError, match=f"{name} is in the way here: the guest has (a|no) directory"):
            run(agent, there, tmp_path)
        assert tree(tmp_path / "logs") == before
    assert tree(tmp_path / "out") == {}


def test_file_that_is_gone_meanwhile(agent: SocketAgent, guest: Guest, there: Path, tmp_path: Path) -> None:
    tool(guest, "tar", f'case $1 in --help) ;; *) rm -f {there}/app.log ;; esac; PATH=${{PATH#*:}} exec tar "$@"')
    result = run(agent, there, tmp_path)
    assert set(result["files"]) == FILES - {"app.log"}
    assert any("app.log was not fetched: it is gone, or cannot be read" in warning for warning in result["warnings"])
    assert tree(tmp_path / "logs") == {name: what for name, what in CAME.items() if name != "app.log"}


def test_file_that_is_written_to_meanwhile(agent: SocketAgent, guest: Guest, there: Path, tmp_path: Path) -> None:
    script = f'case $1 in --help) ;; *) echo more >>{there}/app.log ;; esac; PATH=${{PATH#*:}} exec tar "$@"'
    tool(guest, "tar", script)
    result = run(agent, there, tmp_path)
    assert [w.partition(": ")[2] for w in result["warnings"]] == [
        "app.log was written to meanwhile: what came may be parts of two versions"
    ]
    assert (tmp_path / "logs" / "app.log").read_text() == "new\nmore\n"


def test_archive_that_is_larger_than_it_may_be(agent: SocketAgent, guest: Guest, there: Path, tmp_path: Path) -> None:
    (there / "large").write_bytes(os.urandom(300_000))
    with pytest.raises((TransferError, OperationError), match="max_size"):
        run(agent, there, tmp_path, max_size=100_000)
    assert [path for path in tree(tmp_path / "logs").values() if isinstance(path, tuple)] == []


@pytest.mark.parametrize("named", ["../../out/file", "/out/file"])
def test_guest_that_lies(agent: SocketAgent, guest: Guest, there: Path, tmp_path: Path, named: str) -> None:
    tool(guest, "find", f"printf '%s\\0' d . '' f {named} '' ''")
    with pytest.raises(TransferError, match="not in the directory"):
        run(agent, there, tmp_path)
    assert not (tmp_path / "logs").exists()


def test_guest_without_programs(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], guest: Guest, there: Path, tmp_path: Path
) -> None:
    agent = connect(scripted(guest.answers("guest-exec", "guest-exec-status")))
    with pytest.raises(CommandUnavailable, match="guest-exec"):
        run(agent, there, tmp_path)
