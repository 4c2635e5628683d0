# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qga_file with recurse: what is planned, and what is done in a guest that is this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    ConnectError,
    OperationError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest import tree_put
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree import Found
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree_put import New
from ansible_collections.qemu.guest.plugins.module_utils._module import copy_tree
from ansible_collections.qemu.guest.plugins.module_utils._module.copy_tree import Current, Wanted
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_file import OPERATION, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest.test_login_shell import tool
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted
from ansible_collections.qemu.guest.tests.unit.trees import tree

OLD, NEW = "0" * 64, "1" * 64


def options(**given: Any) -> dict[str, Any]:
    """Return the parameters of a task, as the argument spec completes them."""
    defaults = {name: option.get("default") for name, option in OPERATION.spec.items()}
    return {**defaults, "src": "/here/", "path": "/d", "recurse": True, **given}


# plan

ROOT, D, E = Wanted(b"/", "d"), Wanted(b"/d", "d", b"/here", 0o700), Wanted(b"/d/e", "d", b"/here/e", 0o2750)
F = Wanted(b"/d/e/f", "f", b"/here/e/f", 0o4711, NEW)
L = Wanted(b"/d/l", "l", b"/here/l", target=b"e/f")
IS_ROOT, IS_D, IS_E = (Found(path, "d", mode=0o755, device="1") for path in (b"/", b"/d", b"/d/e"))
IS_F = Found(b"/d/e/f", "f", OLD, mode=0o640, uid=5, gid=6, device="1")


def planned(*there: Found, ids: tuple[int, int] | None = None, wanted: Any = (ROOT, D, E, F, L), **given: Any) -> Any:
    current = Current(wanted, {one.path: one for one in (IS_ROOT, *there)}, ids)
    return plan(current, options(**given))


def changes(*there: Found, **given: Any) -> list[tuple[bytes, int, int, int, bytes]]:
    return [(one.path, one.mode, one.uid, one.gid, one.into) for one in planned(*there, **given).todo[1]]


def test_all_is_new() -> None:
    """A new directory is moved with all that is in it."""
    assert changes() == [
        (b"/d", 0o755, 0, 0, b"/"),
        (b"/d/e", 0o755, 0, 0, b"/"),
        (b"/d/e/f", 0o644, 0, 0, b"/"),
        (b"/d/l", 0o644, 0, 0, b"/"),
    ]
    assert changes(owner="x", group="y", ids=(7, 8))[2:] == [
        (b"/d/e/f", 0o644, 7, 8, b"/"),
        (b"/d/l", 0o644, 0, 0, b"/"),
    ]
    assert planned().todo[1][2] == New(b"/d/e/f", "f", 0o644, 0, 0, b"/", b"/here/e/f")
    assert planned().result == {"path": "/d", "state": "directory", "files": ["/d/e/f", "/d/l"]}


IS_L = Found(b"/d/l", "l", target=b"e/f")
SAME_F = IS_F._replace(sha256=NEW)
F_WITH: dict[str, Any] = {
    "content": ((IS_F,), {}, (0o640, 5, 6)),
    "nothing": ((SAME_F,), {}, None),
    "mode": ((SAME_F,), {"mode": "0600"}, (0o600, 5, 6)),
    "same mode": ((SAME_F,), {"mode": "0640"}, None),
    "mode in symbols": ((SAME_F,), {"mode": "u+x,o="}, (0o740, 5, 6)),
    "mode of the source": ((SAME_F,), {"mode": "preserve"}, (0o4711, 5, 6)),
    "mode of directories": ((SAME_F,), {"directory_mode": "0700"}, None),
    "owner": ((SAME_F,), {"owner": "x", "ids": (7, 0)}, (0o640, 7, 6)),
    "group": ((SAME_F,), {"group": "x", "ids": (0, 8)}, (0o640, 5, 8)),
    "both": ((SAME_F,), {"owner": "x", "group": "y", "ids": (7, 8)}, (0o640, 7, 8)),
    "same owner": ((SAME_F,), {"owner": "x", "group": "y", "ids": (5, 6)}, None),
    "link": ((Found(b"/d/e/f", "l", target=b"x"),), {}, (0o644, 0, 0)),
    "link to a directory": ((Found(b"/d/e/f", "D", target=b"x"),), {}, (0o644, 0, 0)),
    "missing": ((), {}, (0o644, 0, 0)),
}


@pytest.mark.parametrize("name", F_WITH)
def test_file(name: str) -> None:
    """It is replaced if its content or an attribute that was asked for differs, and keeps the others."""
    there, given, expected = F_WITH[name]
    of_file = [(b"/d/e/f", *expected, b"/d/e")] if expected else []
    assert changes(IS_D, IS_E, IS_L, *there, **given) == of_file
    assert planned(IS_D, IS_E, IS_L, *there, **given).changes is bool(of_file)


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, 0o755),
        ({"mode": "0600"}, 0o755),
        ({"mode": "preserve"}, 0o2750),
        ({"directory_mode": "0711"}, 0o711),
        ({"directory_mode": 0o711, "mode": "preserve"}, 0o711),
    ],
)
def test_new_directory(given: dict[str, Any], mode: int) -> None:
    assert changes(IS_D, IS_L, **given)[0] == (b"/d/e", mode, 0, 0, b"/d")


def test_directory_that_exists_stays_as_it_is() -> None:
    assert changes(IS_D, IS_E, IS_L, SAME_F, directory_mode="0700", owner="x", ids=(5, 6)) == []
    assert changes(IS_D, Found(b"/d/e", "D", target=b"/x", device="2"), IS_L, SAME_F) == []


@pytest.mark.parametrize("kind", "lDf")
def test_link(kind: str) -> None:
    other = Found(b"/d/l", kind, target=b"other")
    assert [change[0] for change in changes(IS_D, IS_E, SAME_F, other)] == [b"/d/l"]
    assert changes(IS_D, IS_E, SAME_F, other._replace(target=b"e/f")) == (
        [] if kind in "lD" else changes(IS_D, IS_E, SAME_F, other)
    )


@pytest.mark.parametrize(
    ("there", "what"),
    [
        (Found(b"/d/e", "f"), "not a directory"),
        (Found(b"/d/e", "l"), "not a directory"),
        (Found(b"/d/e", "o"), "not a directory"),
        (Found(b"/d/e/f", "d"), "a directory"),
        (Found(b"/d/e/f", "o"), "not a file"),
        (Found(b"/d/l", "d"), "a directory"),
        (Found(b"/d", "f"), "not a directory"),
    ],
)
def test_what_is_in_the_way_is_not_replaced(there: Found, what: str) -> None:
    with pytest.raises(OperationError, match=f"{there.path.decode()} exists in the guest and is {what}"):
        planned(*(one for one in (IS_D, IS_E, IS_F, IS_L) if one.path != there.path), there)


def test_diff_says_what_changes() -> None:
    diff = planned(IS_D, IS_E, IS_F, mode="0600").diff()
    assert [(d["before"], d["after"]) for d in diff] == [
        (
            {"files": {"/d/e/f": {"sha256": OLD, "mode": "0640", "uid": 5, "gid": 6}, "/d/l": None}},
            {"files": {"/d/e/f": {"sha256": NEW, "mode": "0600", "uid": 5, "gid": 6}, "/d/l": {"link": "e/f"}}},
        )
    ]


@pytest.mark.parametrize("mode", ["u+y", "9", "10000"])
def test_mode_that_is_none(mode: str) -> None:
    for option in ("mode", "directory_mode"):
        with pytest.raises(OperationError, match="should be an octal number"):
            planned(wanted=(ROOT, D, E, F, L), **dict[str, Any]({option: mode}))


# In a guest


@pytest.fixture
def here(tmp_path: Path) -> Path:
    top = tmp_path / "here" / "app"
    (top / "bin").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "bin" / "run").write_text("#!/bin/sh\n")
    (top / "bin" / "run").chmod(0o750)
    (top / "new\nline").write_text("1\n")
    (top / "link").symlink_to("bin/run")
    (top / "directory").symlink_to("bin")
    return top


def run(agent: SocketAgent, src: Path | str, path: Path | str, *, check_mode: bool = False, **more: Any) -> Any:
    result = run_operation(
        OPERATION, agent, options(src=str(src), path=str(path), **more), check_mode=check_mode, diff=True
    )
    assert set(result) - {"changed", "diff"} <= returned("qga_file")
    return result


FOLLOWED = {
    "bin": "755",
    "empty": "755",
    "directory": "755",
    "bin/run": ("#!/bin/sh\n", "644"),
    "directory/run": ("#!/bin/sh\n", "644"),
    "link": ("#!/bin/sh\n", "644"),
    "new\nline": ("1\n", "644"),
}
AS_LINKS = {
    "bin": "755",
    "empty": "755",
    "bin/run": ("#!/bin/sh\n", "644"),
    "directory": "-> bin",
    "link": "-> bin/run",
    "new\nline": ("1\n", "644"),
}


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("exists", [True, False])
def test_copy(agent: SocketAgent, here: Path, tmp_path: Path, slash: str, exists: bool, follow: bool) -> None:
    dest = tmp_path / "guest's" / "a" / "b"
    if exists:
        dest.mkdir(parents=True)
    at = dest if slash else dest / "app"
    checked = run(agent, f"{here}{slash}", dest, check_mode=True, local_follow=follow)
    assert not (dest / "app").exists() and dest.exists() == exists
    result = run(agent, f"{here}{slash}", dest, local_follow=follow)
    assert tree(at) == (FOLLOWED if follow else AS_LINKS)
    assert result == checked and result["changed"]
    again = run(agent, f"{here}{slash}", dest, local_follow=follow)
    assert (again["changed"], again["files"]) == (False, [])
    assert [name for name in os.listdir(dest) if name.startswith(".")] == []


def test_only_what_differs_is_replaced(agent: SocketAgent, here: Path, tmp_path: Path) -> None:
    run(agent, here, tmp_path, mode="preserve")
    at = tmp_path / "app"
    (at / "mine").write_text("mine")
    (at / "link").unlink()
    (at / "link").symlink_to("mine")
    inode = (at / "bin" / "run").stat().st_ino
    (here / "new\nline").write_text("2\n")
    (here / "bin" / "more").mkdir()
    result = run(agent, here, tmp_path, mode="preserve")
    assert set(result["files"]) == {f"{at}/new\nline", f"{at}/link"}
    assert (at / "mine").read_text() == "mine"
    assert (at / "bin" / "run").stat().st_ino == inode
    assert (at / "bin" / "more").is_dir() and not (at / "link").is_symlink()
    assert (at / "new\nline").read_text() == "2\n"


@pytest.mark.parametrize("size", [10, 700_000])
def test_size(agent: SocketAgent, server: Scripted, here: Path, tmp_path: Path, size: int) -> None:
    (here / "file").write_bytes(os.urandom(size))
    run(agent, here, tmp_path)
    assert (tmp_path / "app" / "file").read_bytes() == (here / "file").read_bytes()


@pytest.mark.parametrize(
    ("broken", "why"),
    [("tar", "tar is broken"), ("gzip", "tar: "), ("sha256sum", "not what was sent"), ("mv", "mv is broken|rmdir")],
)
def test_guest_whose_programs_fail(
    agent: SocketAgent, guest: Guest, here: Path, tmp_path: Path, broken: str, why: str
) -> None:
    tool(guest, broken, f"echo {broken} is broken >&2; exit 1")
    with pytest.raises(OperationError, match=rf"cannot put the files in place in the guest: .*({why})"):
        run(agent, here, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_what_was_not_moved_is_told_where_find_does_not_tell(
    agent: SocketAgent, guest: Guest, here: Path, tmp_path: Path
) -> None:
    """busybox's find does not."""
    tool(guest, "mv", "exit 1")
    tool(guest, "find", f'{shutil.which("find")} "$@"; exit 0')
    with pytest.raises(OperationError, match="not empty"):
        run(agent, here, tmp_path / "new")


def test_content_that_was_damaged_is_not_put_in_place(
    agent: SocketAgent, guest: Guest, here: Path, tmp_path: Path
) -> None:
    tool(guest, "tar", 'PATH=${PATH#*:}; tar "$@"; for f in */*/*/bin/run; do echo >"$f"; done')
    with pytest.raises(OperationError, match="what arrived is not what was sent"):
        run(agent, here, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size", [10, 700_000])
@pytest.mark.parametrize("placed", [True, False])
def test_contact_is_lost(
    agent: SocketAgent, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placed: bool, size: int
) -> None:
    """Once files are in place, that is told; an archive that was only sent is nothing to tell of."""
    (here / "file").write_bytes(os.urandom(size))

    def lost(*given: Any, **how: Any) -> Any:
        raise ConnectError("gone", command="guest-exec")

    def put(executor: GuestExec, new: Any) -> None:
        tree_put.put_trees(executor, new)
        lost()

    if not placed:
        monkeypatch.setattr(tree_put, "run_change", lost)
    monkeypatch.setattr(copy_tree, "put_trees", put)
    with pytest.raises(OperationError if placed else ConnectError) as caught:
        run(agent, here, tmp_path)
    assert ("guest-exec was run, and then guest-exec was not sent: gone" in str(caught.value)) == placed
    assert (tmp_path / "app").exists() == placed


def test_source_that_is_in_itself(agent: SocketAgent, here: Path, tmp_path: Path) -> None:
    (here / "bin" / "up").symlink_to("..")
    with pytest.raises(OperationError, match="bin/up leads to a directory that it is in"):
        run(agent, here, tmp_path)
    assert run(agent, here, tmp_path, local_follow=False)["changed"]


@pytest.mark.parametrize(
    ("src", "why"),
    [("nope", "cannot read .*nope here: No such file"), ("new\nline", "is not a directory"), ("fifo", "is not a")],
)
def test_source_that_is_no_directory(agent: SocketAgent, here: Path, tmp_path: Path, src: str, why: str) -> None:
    os.mkfifo(here / "fifo")
    with pytest.raises(OperationError, match=why):
        run(agent, here / src, tmp_path)


def test_source_with_what_cannot_be_copied(agent: SocketAgent, here: Path, tmp_path: Path) -> None:
    os.mkfifo(here / "fifo")
    with pytest.raises(OperationError, match="fifo is not a file, a directory or a link"):
        run(agent, here, tmp_path)
    (here / "fifo").unlink()
    (here / "dangling").symlink_to("nowhere")
    with pytest.raises(OperationError, match=r"cannot read .*/dangling here: No such file"):
        run(agent, here, tmp_path)


@pytest.mark.parametrize("given", [{"append": True}, {"backup": True}, {"follow": True}, {"state": "absent"}])
def test_options_that_do_not_go_together(agent: SocketAgent, here: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(OperationError, match=f"recurse cannot be had with {next(iter(given))}"):
        run(agent, here, tmp_path, **given)


@pytest.mark.parametrize("path", ["relative", "/a/../b"])
def test_path(agent: SocketAgent, here: Path, path: str) -> None:
    with pytest.raises(OperationError, match=r"path: .* (is not an absolute path|has \.\. in it)"):
        run(agent, here, path)


def test_guest_without_programs(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], guest: Guest, here: Path, tmp_path: Path
) -> None:
    agent = connect(scripted(guest.answers("guest-exec", "guest-exec-status")))
    with pytest.raises(CommandUnavailable, match="guest-exec"):
        run(agent, here, tmp_path)
