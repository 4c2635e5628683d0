# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import grp
import hashlib
import os
import pwd
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Patience
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    ConnectError,
    GuestFileError,
    OperationError,
    OutcomeUnknownError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import CHUNK, SIZES, Sizes
from ansible_collections.qemu.guest.plugins.module_utils._module.modes import mode_of
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import DIFF_LIMIT, run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_file
from ansible_collections.qemu.guest.plugins.modules.qga_file import OPERATION, Current, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest.test_login_shell import tool
from ansible_collections.qemu.guest.tests.unit.scripted import (
    AgentError,
    Clock,
    Request,
    Scripted,
    Session,
    answers,
    fails,
    swallows,
)

PROGRAMS = ("guest-exec", "guest-exec-status")


def options(**given: Any) -> dict[str, Any]:
    """Return the parameters of a task, as the argument spec completes them."""
    return {**{name: option.get("default") for name, option in OPERATION.spec.items()}, "path": "/etc/app", **given}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# plan: what is, what is asked for, what is to be

OLD, NEW = b"old\n", b"new\n"
OWNED = {"mode": 0o640, "owner": "app", "group": "adm", "uid": "1001", "gid": "4"}
SHOWN = {"mode": "0640", "owner": "app", "group": "adm"}


def current(content: bytes | None = OLD, wanted: bytes | None = None, programs: bool = True, **more: Any) -> Current:
    """Return the file with ``content`` (None: there is none) as ``read`` describes it."""
    about: dict[str, Any] = {"path": "/etc/app", "programs": programs, "wanted": wanted}
    if wanted is not None:
        about.update(wanted_size=len(wanted), wanted_sha256=sha256(wanted))
    if content is None:
        return Current(kind="absent", **{**about, **more})
    about.update(size=len(content), sha256=sha256(content), text=content)
    if wanted is not None:
        about["ends_with_wanted"] = content.endswith(wanted)
    return Current(kind="file", **{**about, **(OWNED if programs else {}), **more})


def file(content: bytes, **more: Any) -> dict[str, Any]:
    return {"state": "file", "size": len(content), "sha256": sha256(content), **more}


ABSENT = {"state": "absent"}
NEW_FILE = file(NEW, mode="0644")

CASES = [
    # what is, what is asked for, what is to be (None: no change)
    pytest.param(current(None, NEW), options(content="new\n"), NEW_FILE, id="new"),
    pytest.param(current(None), options(), file(b"", mode="0644"), id="new and empty"),
    pytest.param(current(None, b""), options(content=""), file(b"", mode="0644"), id="new with empty content"),
    pytest.param(current(None, NEW), options(src="/x", mode="0600"), file(NEW, mode="0600"), id="new with mode"),
    pytest.param(current(None, NEW), options(mode=0o4755), file(NEW, mode="4755"), id="new with mode as a number"),
    pytest.param(current(None, NEW), options(owner="a"), {**NEW_FILE, "owner": "a"}, id="new with owner"),
    pytest.param(current(None, NEW), options(group="b"), {**NEW_FILE, "group": "b"}, id="new with group"),
    pytest.param(current(None, NEW), options(append=True), NEW_FILE, id="new by appending"),
    pytest.param(current(None, NEW), options(backup=True), NEW_FILE, id="new with backup"),
    pytest.param(current(OLD, OLD), options(content="old\n"), None, id="same content"),
    pytest.param(current(OLD, NEW), options(content="new\n"), file(NEW, **SHOWN), id="other content"),
    pytest.param(current(OLD, b""), options(content=""), file(b"", **SHOWN), id="no content"),
    pytest.param(current(b"", b""), options(content=""), None, id="no content as before"),
    pytest.param(current(OLD), options(), None, id="there"),
    pytest.param(current(OLD), options(backup=True), None, id="there, with backup"),
    pytest.param(current(OLD), options(mode="0640"), None, id="same mode"),
    pytest.param(current(OLD), options(mode="640"), None, id="same mode with three digits"),
    pytest.param(current(OLD), options(mode=0o640), None, id="same mode as a number"),
    pytest.param(current(OLD), options(mode="0600"), file(OLD, **{**SHOWN, "mode": "0600"}), id="other mode"),
    pytest.param(current(OLD), options(mode="2640"), file(OLD, **{**SHOWN, "mode": "2640"}), id="special mode"),
    pytest.param(current(OLD), options(owner="app", group="adm"), None, id="same owner"),
    pytest.param(current(OLD), options(owner="1001", group="4"), None, id="same owner by number"),
    pytest.param(current(OLD), options(owner="root"), file(OLD, **{**SHOWN, "owner": "root"}), id="other owner"),
    pytest.param(current(OLD), options(group="0"), file(OLD, **{**SHOWN, "group": "0"}), id="other group"),
    pytest.param(
        current(OLD, NEW), options(mode="0600", owner="me"), file(NEW, mode="0600", owner="me", group="adm"), id="all"
    ),
    pytest.param(
        current(OLD, NEW), options(append=True), {"state": "file", "size": 8, **SHOWN}, id="append"
    ),
    pytest.param(current(OLD + NEW, NEW), options(append=True), None, id="append what is there"),
    pytest.param(current(OLD, b""), options(append=True), None, id="append nothing"),
    pytest.param(current(OLD), options(append=True), None, id="append without content"),
    pytest.param(
        current(OLD + NEW, NEW), options(append=True, mode="0600"), file(OLD + NEW, **{**SHOWN, "mode": "0600"}),
        id="append what is there, other mode",
    ),
    pytest.param(current(None, NEW, programs=False), options(mode="0666"), file(NEW), id="new without programs"),
    pytest.param(current(OLD, NEW, programs=False), options(), file(NEW), id="other content without programs"),
    pytest.param(current(OLD, OLD, programs=False), options(), None, id="same content without programs"),
    pytest.param(current(OLD, NEW, programs=False), options(append=True), {"state": "file", "size": 8}, id="append so"),
    pytest.param(current(OLD), options(state="absent"), ABSENT, id="remove"),
    pytest.param(current(None), options(state="absent"), None, id="remove what is not there"),
    pytest.param(current(None, programs=False), options(state="absent"), None, id="remove without programs"),
]  # fmt: skip


@pytest.mark.parametrize(("now", "params", "then"), CASES)
def test_plan(now: Current, params: dict[str, Any], then: dict[str, Any] | None) -> None:
    planned = plan(now, params)
    assert planned.changes is (then is not None)
    if params["state"] == "absent":
        assert planned.before == {"state": now.kind}
    else:
        assert planned.before == now.described()
    assert planned.after == (then if then is not None else planned.before)
    assert planned.result["path"] == "/etc/app" == planned.subject
    assert {name: planned.result[name] for name in planned.after} == planned.after
    assert set(planned.result) <= returned("qga_file")


@pytest.mark.parametrize(("now", "params", "then"), CASES)
def test_second_run_changes_nothing(now: Current, params: dict[str, Any], then: dict[str, Any] | None) -> None:
    """The plan for the file as the first run has left it."""
    if params["state"] == "absent":
        after = current(None, now.wanted, now.programs)
    elif plan(now, params).changes:
        written = (now.text or b"") + (now.wanted or b"") if params["append"] else now.wanted
        if written is None:
            written = now.text or b""
        about = plan(now, params).after
        after = current(written, now.wanted, now.programs)
        if now.programs:
            after = after._replace(
                mode=int(about["mode"], 8),
                **{name: about.get(name, "root") for name in ("owner", "group")},
                uid=about.get("owner", "0") if about.get("owner", "0").isdigit() else "1001",
                gid=about.get("group", "0") if about.get("group", "0").isdigit() else "4",
            )
    else:
        return
    assert not plan(after, params).changes


@pytest.mark.parametrize("state", ["present", "absent"])
def test_plan_for_what_is_no_file(state: str) -> None:
    with pytest.raises(OperationError, match="/etc/app exists and is not a file"):
        plan(Current("/etc/app", "other", True, None), options(state=state))


@pytest.mark.parametrize(
    ("now", "params", "texts"),
    [
        (current(None, NEW), options(), ("", "new\n")),
        (current(OLD, NEW), options(), ("old\n", "new\n")),
        (current(OLD, NEW), options(append=True), ("old\n", "old\nnew\n")),
        (current(OLD), options(mode="0600"), ("old\n", "old\n")),
        (current(OLD, b"\xff"), options(), None),
        (current(b"\xff", NEW), options(), None),
        (current(b"\xff", b"x"), options(append=True), None),
        (current(OLD, b"x" * (DIFF_LIMIT + 1)), options(), None),
        (current(OLD, b"x" * DIFF_LIMIT), options(), ("old\n", "x" * DIFF_LIMIT)),
        (current(OLD, NEW)._replace(text=None), options(), None),
        (current(OLD, NEW)._replace(text=None), options(append=True), None),
        (current(OLD), options(state="absent"), None),
    ],
)
def test_plan_shows_content(now: Current, params: dict[str, Any], texts: Any) -> None:
    assert plan(now, params).texts == texts


@pytest.mark.parametrize(
    ("mode", "number"), [("0644", 0o644), ("644", 0o644), (0o644, 0o644), ("0", 0), ("7777", 0o7777), ("0o600", 0o600)]
)
def test_mode(mode: Any, number: int) -> None:
    assert mode_of(mode, 0) == number


@pytest.mark.parametrize(
    ("mode", "present", "number"),
    [
        ("u=rw,g=r,o=", 0o777, 0o640),
        ("u+x", 0o644, 0o744),
        ("a-w", 0o666, 0o444),
        ("go=u", 0o640, 0o666),
        ("u=rwX,go=rX", 0o700, 0o755),
        ("u=rwX,go=rX", 0o600, 0o644),
        ("u+s,g+s,+t", 0o755, 0o7755),
        ("=", 0o777, 0),
        # Without u, g, o or a, the umask of a login in the guest applies, whatever that of this process is.
        ("+w", 0o444, 0o644),
        ("+x", 0o644, 0o755),
    ],
)
def test_mode_in_symbols(mode: str, present: int, number: int) -> None:
    umask = os.umask(0o077)
    try:
        assert mode_of(mode, present) == number
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)


@pytest.mark.parametrize(
    "mode", ["", "0888", "u=rwz", "z+r", "u=rw,", "u", "-1", "10000", 0o10000, -1, 6.44, None, [], "0644x"]
)
def test_mode_that_is_none(mode: Any) -> None:
    with pytest.raises(OperationError, match=r"mode: .* should be an octal number"):
        mode_of(mode, 0o644)


# read, plan, apply: in a guest that is this machine

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


@pytest.fixture
def bare(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], guest: Guest) -> SocketAgent:
    """An agent that may not run programs."""
    blocked = {name: f"Command {name} has been disabled" for name in PROGRAMS}
    return connect(scripted(guest.answers(*PROGRAMS), blocked=blocked))


def run(
    agent: SocketAgent, path: Path | str, check_mode: bool = False, sizes: Sizes = SIZES, **given: Any
) -> dict[str, Any]:
    params, executor = options(path=str(path), **given), GuestExec(agent, sizes=sizes)
    result = run_operation(OPERATION, agent, params, executor=executor, check_mode=check_mode, diff=True)
    result.pop("diff", None)
    return result


def twice(agent: SocketAgent, path: Path, **given: Any) -> dict[str, Any]:
    """Run a task in check mode, for real, and again; return the second's result."""
    before = snapshot(path)
    predicted = run(agent, path, check_mode=True, **given)
    assert snapshot(path) == before, "check mode changes nothing"
    result = run(agent, path, **given)
    assert {**predicted, **result} == {**result, **predicted}, "check mode predicts what is"
    assert result["changed"] is True
    assert set(result) - {"changed"} <= returned("qga_file")
    assert run(agent, path, **given)["changed"] is False, "a second run changes nothing"
    assert not [name for name in path.parent.iterdir() if name.name.startswith(".")], "nothing of ours is left"
    return result


def snapshot(path: Path) -> Any:
    listing = sorted(item.name for item in path.parent.iterdir())
    if not path.is_file():
        return listing
    status = path.stat()
    return listing, status.st_mode, status.st_ino, status.st_uid, status.st_gid, status.st_mtime_ns, path.read_bytes()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / "it's a $(directory)"
    directory.mkdir()
    return directory


@pytest.fixture
def theirs(home: Path) -> Path:
    """A directory of another user's."""
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(home, 54321, 54321)
    return home


def test_new_file(agent: SocketAgent, home: Path) -> None:
    result = twice(agent, home / "file ü", content="ü\n")
    assert (home / "file ü").read_bytes() == b"\xc3\xbc\n"
    assert (home / "file ü").stat().st_mode & 0o7777 == 0o644
    assert {name: result[name] for name in ("size", "sha256", "mode")} == {
        "size": 3,
        "sha256": sha256(b"\xc3\xbc\n"),
        "mode": "0644",
    }


def test_new_file_with_content_that_is_not_utf8(agent: SocketAgent, home: Path) -> None:
    twice(agent, home / "file", content="\udcff")
    assert (home / "file").read_bytes() == b"\xff"


def test_file_from_src(agent: SocketAgent, home: Path, tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(bytes(range(256)) * 10)
    twice(agent, home / "file", src=str(tmp_path / "src"), mode="0600")
    assert (home / "file").read_bytes() == bytes(range(256)) * 10
    assert (home / "file").stat().st_mode & 0o7777 == 0o600


def test_src_that_cannot_be_read(agent: SocketAgent, home: Path) -> None:
    with pytest.raises(OperationError, match="src: cannot read /nope here: No such file"):
        run(agent, home / "file", src="/nope")


def test_large_file(agent: SocketAgent, home: Path) -> None:
    (home / "file").write_bytes(b"y" * (DIFF_LIMIT + 1))
    twice(agent, home / "file", content="x" * (DIFF_LIMIT + 5))
    assert (home / "file").read_bytes() == b"x" * (DIFF_LIMIT + 5)


def test_replaced_file_keeps_mode_and_owner(agent: SocketAgent, home: Path) -> None:
    (home / "file").write_text("old")
    (home / "file").chmod(0o751)
    if os.getuid() == 0:
        os.chown(home / "file", 54321, 54322)
    twice(agent, home / "file", content="new")
    status = (home / "file").stat()
    assert status.st_mode & 0o7777 == 0o751
    if os.getuid() == 0:
        assert (status.st_uid, status.st_gid) == (54321, 54322)


def test_mode_and_owner_alone(agent: SocketAgent, home: Path) -> None:
    (home / "file").write_text("content")
    (home / "file").chmod(0o600)
    twice(agent, home / "file", mode="2755", **ME)
    assert (home / "file").stat().st_mode & 0o7777 == 0o2755
    assert (home / "file").read_text() == "content"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ({"owner": "nobody", "group": "daemon"}, (pwd.getpwnam("nobody").pw_uid, grp.getgrnam("daemon").gr_gid)),
        ({"owner": "54321", "group": "54322"}, (54321, 54322)),
        ({"group": "54322"}, (0, 54322)),
        ({"owner": "daemon"}, (pwd.getpwnam("daemon").pw_uid, 0)),
        ({"owner": "54321"}, (54321, 0)),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_owner(
    agent: SocketAgent,
    home: Path,
    given: dict[str, str],
    ids: tuple[int, int],
    there: bool,
) -> None:
    if there:
        (home / "file").write_text("old")
    twice(agent, home / "file", content="new", **given)
    status = (home / "file").stat()
    assert (status.st_uid, status.st_gid) == ids


def test_owner_that_does_not_exist(agent: SocketAgent, home: Path) -> None:
    with pytest.raises(OperationError, match=r"cannot write .*nobody-has-this-name"):
        run(agent, home / "file", content="new", owner="nobody-has-this-name")
    assert list(home.iterdir()) == []


def test_append(agent: SocketAgent, home: Path) -> None:
    (home / "file").write_text("old\n")
    (home / "file").chmod(0o640)
    inode = (home / "file").stat().st_ino
    result = twice(agent, home / "file", content="new\n", append=True, mode="0600")
    assert (home / "file").read_text() == "old\nnew\n"
    assert result["size"] == 8 and "sha256" not in result
    status = (home / "file").stat()
    assert (status.st_mode & 0o7777, status.st_ino) == (0o600, inode)


@pytest.mark.parametrize("there", [b"", b"ew\n", b"new\n\n", b"new", b"x" * (DIFF_LIMIT + 1)])
def test_append_unless_it_ends_with_it(agent: SocketAgent, home: Path, there: bytes) -> None:
    (home / "file").write_bytes(there)
    twice(agent, home / "file", content="new\n", append=True)
    assert (home / "file").read_bytes() == there + b"new\n"


def test_backup(agent: SocketAgent, home: Path) -> None:
    (home / "file").write_text("old")
    (home / "file").chmod(0o600)
    result = run(agent, home / "file", content="new", backup=True)
    backup = Path(result["backup_file"])
    assert backup.parent == home
    assert (backup.read_text(), backup.stat().st_mode & 0o7777) == ("old", 0o600)
    assert "backup_file" not in run(agent, home / "file", content="new", backup=True)
    assert "backup_file" not in run(agent, home / "file", mode="0640", backup=True), "its content does not change"
    assert "backup_file" not in run(agent, home / "other", content="new", backup=True)
    assert len(list(home.iterdir())) == 3


def test_absent(agent: SocketAgent, home: Path) -> None:
    (home / "file").write_text("old")
    assert twice(agent, home / "file", state="absent")["state"] == "absent"
    assert list(home.iterdir()) == []


def test_link_is_followed_if_asked_and_removed_itself(agent: SocketAgent, home: Path) -> None:
    (home / "file").write_text("old")
    (home / "link").symlink_to("file")
    assert run(agent, home / "link", content="new", follow=True)["path"] == str(home / "file")
    assert (home / "link").is_symlink() and (home / "file").read_text() == "new"
    run(agent, home / "link", state="absent", follow=True)
    assert [path.name for path in home.iterdir()] == ["file"]


@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_link_is_replaced(agent: SocketAgent, home: Path, target: str) -> None:
    (home / "file").write_text("old")
    (home / "link").symlink_to(target)
    result = twice(agent, home / "link", content="old")
    assert result["path"] == str(home / "link")
    assert not (home / "link").is_symlink() and (home / "link").read_text() == "old"
    assert (home / "file").read_text() == "old" and not (home / "nowhere").exists()


@pytest.mark.parametrize("given", [{"mode": "0600"}, {}, {"content": "new", "append": True}])
def test_link_that_must_be_followed(agent: SocketAgent, home: Path, given: dict[str, Any]) -> None:
    (home / "file").write_text("old")
    (home / "link").symlink_to("file")
    with pytest.raises(OperationError, match=r"is a symbolic link\. It is followed with follow=true"):
        run(agent, home / "link", **given)
    assert (home / "file").read_text() == "old"


def test_link_to_a_directory_is_not_replaced(agent: SocketAgent, home: Path) -> None:
    (home / "link").symlink_to(".")
    with pytest.raises(OperationError, match="is not a file"):
        run(agent, home / "link", content="new")
    assert (home / "link").is_symlink()


def test_link_that_leads_nowhere(agent: SocketAgent, home: Path) -> None:
    (home / "link").symlink_to("file")
    run(agent, home / "link", content="new", follow=True)
    assert (home / "file").read_text() == "new"
    (home / "file").unlink()
    run(agent, home / "link", state="absent")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("target", ["link", "nope/file"])
def test_link_that_cannot_be_followed(agent: SocketAgent, guest: Guest, home: Path, target: str) -> None:
    (home / "link").symlink_to(target)
    with pytest.raises(OperationError):
        run(agent, home / "link", content="new", follow=True)
    assert [path.name for path in home.iterdir()] == ["link"]
    assert list(guest.directory.iterdir()) == []


# In a directory of somebody else's


@pytest.mark.parametrize("content", ["new\n", "new\n" * 80_000], ids=len)
def test_file_in_a_directory_of_others(agent: SocketAgent, theirs: Path, content: str) -> None:
    path = theirs / "file"
    twice(agent, path, content=content, mode="0640", owner="54321")
    assert path.read_text() == content
    status = path.stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o640, 54321)
    twice(agent, path, content="other")
    inode = path.stat().st_ino
    twice(agent, path, content=content, append=True)
    twice(agent, path, mode="0600", owner="0", group="54321")
    status = path.stat()
    assert path.read_text() == "other" + content
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_ino) == (0o600, 0, 54321, inode)
    twice(agent, path, state="absent")
    assert list(theirs.iterdir()) == []


@pytest.mark.parametrize("append", [True, False])
def test_backup_in_a_directory_of_others(agent: SocketAgent, theirs: Path, append: bool) -> None:
    (theirs / "file").write_text("old")
    (theirs / "file").chmod(0o640)
    backup = Path(run(agent, theirs / "file", content="new", backup=True, append=append)["backup_file"])
    assert (backup.read_text(), backup.stat().st_mode & 0o777) == ("old", 0o640)
    assert (theirs / "file").read_text() == ("oldnew" if append else "new")
    assert len(list(theirs.iterdir())) == 2


@pytest.mark.parametrize(
    "given", [{"append": True}, {"content": None, "mode": "0666"}, {"append": True, "backup": True}]
)
def test_link_that_comes_between(agent: SocketAgent, theirs: Path, given: dict[str, Any]) -> None:
    """The file was looked at; then it is a link to another one."""
    (theirs / "file").write_text("old")
    victim = theirs.parent / "victim"
    victim.write_text("secret")
    victim.chmod(0o600)
    wanted = options(path=str(theirs / "file"), **{"content": "new", **given})
    planned = plan(qga_file.read(GuestExec(agent), wanted), wanted)
    (theirs / "file").unlink()
    (theirs / "file").symlink_to(victim)
    with pytest.raises(OperationError, match="is not a regular file"):
        qga_file.apply(GuestExec(agent), planned)
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("secret", 0o600)
    assert [path.name for path in theirs.iterdir()] == ["file"]


def test_directory_that_becomes_a_link(agent: SocketAgent, theirs: Path) -> None:
    wanted = options(path=str(theirs / "sub" / "file"), content="new", owner="54321")
    (theirs / "sub").mkdir()
    victim = theirs.parent / "victim"
    victim.mkdir()
    planned = plan(qga_file.read(GuestExec(agent), wanted), wanted)
    (theirs / "sub").rename(theirs / "gone")
    (theirs / "sub").symlink_to(victim)
    os.lchown(theirs / "sub", 54321, 54321)
    for again in (planned, None):
        with pytest.raises(OperationError, match=r"a link on the way to .* which an unprivileged user can exchange"):
            qga_file.apply(GuestExec(agent), again or plan(qga_file.read(GuestExec(agent), wanted), wanted))
    assert not list(victim.iterdir())
    os.chown(victim, 54321, 54321)
    run(agent, theirs / "sub" / "file", content="new")
    assert (victim / "file").read_text() == "new", "it is that user's too"


def test_link_of_root_s_on_the_way(agent: SocketAgent, theirs: Path) -> None:
    """It is followed where root alone can exchange it, and nowhere else."""
    ours = theirs.parent / "root's"
    (ours / "victim").mkdir(parents=True)
    for place in (theirs, ours):
        (place / "link").symlink_to(ours / "victim")
    (ours / "way").symlink_to(ours)
    (ours / "theirs").symlink_to(theirs)
    for way in (theirs, ours / "theirs", ours / "way" / "theirs"):
        with pytest.raises(OperationError, match="a link on the way"):
            run(agent, way / "link" / "file", content="new")
        assert not (ours / "victim" / "file").exists()
        run(agent, way / "file", content=str(way))
        assert (theirs / "file").read_text() == str(way)
    for way in (ours, ours / "way", ours / "victim" / ".." / "way"):
        run(agent, way / "link" / "file", content=str(way))
        assert (ours / "victim" / "file").read_text() == str(way)
        (ours / "victim" / "file").unlink()


def test_owner_whose_name_has_spaces(agent: SocketAgent, guest: Guest, home: Path) -> None:
    """As users of a domain have."""
    tool(guest, "stat", 'PATH=${PATH#*:} stat "$@" | sed "s,[^ ]*/[^ ]*$,some body/domain users,"')
    (home / "file").write_text("x")
    result = run(agent, home / "file", content="x", mode="0644")
    assert (result["owner"], result["group"], result["mode"]) == ("some body", "domain users", "0644")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "x",
        "safe\nabsent",
        "safe\n\n/\0/x",
        "safe\n81a4 644 0 0 1 root\n/\0/x",
        f"safe\n81a4 644 0 0 {'9' * 5000} root/root\n/\0/x",
        "safe\n81a4 999 0 0 1 root/root\n/\0/x",
        "safe\n\u0661 644 0 0 1 root/root\n/\0/x",
        "safe\nabsent\n\0/x",
        "safe\nabsent\nhere\0/x",
        "safe\nabsent\n/\0x",
    ],
)
def test_nonsense_of_the_guest_s_programs(agent: SocketAgent, server: Scripted, home: Path, said: str) -> None:
    ended = {"exited": True, "exitcode": 0, "out-data": base64.b64encode(said.encode()).decode()}
    server.answers.update({"guest-exec": {"pid": 1}, "guest-exec-status": ended})
    with pytest.raises(OperationError, match="makes no sense"):
        run(agent, home / "file", content="x")


def test_file_that_cannot_be_removed_is_named(agent: SocketAgent, server: Scripted, guest: Guest, home: Path) -> None:
    """As in a guest that was frozen in the middle."""
    wanted = options(path=str(home / "file"), content=LONG)
    planned = plan(qga_file.read(GuestExec(agent), wanted), wanted)

    def frozen(session: Any, request: Any) -> None:
        server.answers["guest-exec"] = refused
        answers(session, request)

    def refused(arguments: Any) -> Any:
        raise AgentError("Command guest-exec has been disabled: the agent is in frozen state", "CommandNotFound")

    server.answers["guest-file-write"] = refused
    server.then("guest-file-write", frozen)
    with pytest.raises(CommandUnavailable) as caught:
        qga_file.apply(GuestExec(agent), planned)
    left = list(home.iterdir())
    assert len(left) == 1
    assert f"{left[0]} may be left in the guest: remove it." in str(caught.value)


@pytest.mark.parametrize("state", ["present", "absent"])
def test_directory(agent: SocketAgent, home: Path, state: str) -> None:
    with pytest.raises(OperationError, match="is not a file"):
        run(agent, home, state=state)
    assert home.is_dir()


@pytest.mark.parametrize("path", ["etc/app", "~/app", "", "./x"])
def test_path_that_is_not_absolute(agent: SocketAgent, server: Scripted, path: str) -> None:
    with pytest.raises(OperationError, match="absolute"):
        run(agent, path, content="x")
    assert server.commands == []


def test_directory_that_does_not_exist(agent: SocketAgent, home: Path) -> None:
    with pytest.raises(OperationError, match=r"cannot create .*nope.*No such file"):
        run(agent, home / "nope" / "file", content="x")


# More than a program is given to write, and does not shrink.
LONG = base64.b85encode(os.urandom(250_000)).decode("ascii")


@pytest.mark.parametrize(
    ("command", "step", "error"),
    [
        ("guest-file-write", fails("failed to write to file: No space left on device"), GuestFileError),
        ("guest-file-close", fails("failed to close handle: No space left on device"), GuestFileError),
        ("guest-file-close", swallows, OutcomeUnknownError),
    ],
)
def test_file_is_replaced_whole_or_not_at_all(
    agent: SocketAgent, server: Scripted, home: Path, command: str, step: Any, error: type[Exception]
) -> None:
    (home / "file").write_text("old")
    wanted = options(path=str(home / "file"), content=LONG)
    planned = plan(qga_file.read(GuestExec(agent), wanted), wanted)
    server.then(command, step)
    with pytest.raises(error):
        qga_file.apply(GuestExec(agent), planned)
    assert [(path.name, path.read_text()) for path in home.iterdir()] == [("file", "old")]


def test_file_that_stays_behind_is_named(agent: SocketAgent, server: Scripted, clock: Clock, home: Path) -> None:
    """A guest that is frozen for too long does not let it be removed."""
    wanted = options(path=str(home / "file"), content=LONG)
    planned = plan(qga_file.read(GuestExec(agent), wanted), wanted)
    server.answers["guest-fsfreeze-status"] = "thawed"
    agent.refresh_info()
    agent.patience = Patience(30)

    def freezes(session: Session, request: Request) -> None:
        server.freeze(1000)
        answers(session, request)

    server.then("guest-file-write", freezes)
    with pytest.raises(CommandUnavailable, match="frozen") as caught:
        qga_file.apply(GuestExec(agent), planned)
    (left,) = home.iterdir()
    assert f"{left} may be left in the guest: remove it." in str(caught.value)


def test_file_on_its_way_is_open_to_nobody(agent: SocketAgent, server: Scripted, guest: Guest, home: Path) -> None:
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> Any:
        modes.extend(path.stat().st_mode & 0o777 for path in home.iterdir())
        return guest.write(arguments)

    server.answers["guest-file-write"] = watched
    run(agent, home / "file", content=LONG, mode="0640")
    assert modes == [0o600]


# Where the agent may not run programs


def test_existing_file_without_programs(bare: SocketAgent, home: Path) -> None:
    (home / "file").write_text("old")
    (home / "file").chmod(0o640)
    result = twice(bare, home / "file", content="new")
    assert (home / "file").read_text() == "new"
    assert (home / "file").stat().st_mode & 0o7777 == 0o640
    assert "mode" not in result


@pytest.mark.parametrize("more", [0, 5])
def test_guest_says_later_that_the_file_is_larger(
    scripted: Callable[..., Scripted],
    connect: Callable[..., SocketAgent],
    guest: Guest,
    home: Path,
    more: int,
) -> None:
    """It would be read without end. One that has another size than what is to be there is not read."""
    sizes = Sizes()
    sizes.growth = 3 * CHUNK
    (home / "file").write_bytes(b"y" * (DIFF_LIMIT + 5))
    seeks: list[int] = []

    def seek(arguments: Mapping[str, Any]) -> dict[str, Any]:
        seeks.append(arguments["whence"])
        size = DIFF_LIMIT + 5 if seeks.count(2) == 1 else 1 << 62
        return {"position": size if arguments["whence"] == 2 else arguments["offset"], "eof": False}

    def read(arguments: Mapping[str, Any]) -> dict[str, Any]:
        count = arguments["count"]
        return {"count": count, "buf-b64": base64.b64encode(bytes(count)).decode(), "eof": False}

    server = scripted({**guest.answers(*PROGRAMS), "guest-file-seek": seek, "guest-file-read": read})
    bare = connect(server)
    if more:
        assert run(bare, home / "file", True, sizes, content="x" * (DIFF_LIMIT + 5 + more))["changed"]
        assert server.work.count("guest-file-read") == 1
    else:
        with pytest.raises(TransferError, match=f"it had {DIFF_LIMIT + 5} when it was opened"):
            run(bare, home / "file", True, sizes, content="x" * (DIFF_LIMIT + 5))


def test_append_without_programs(bare: SocketAgent, home: Path) -> None:
    (home / "file").write_text("old\n")
    twice(bare, home / "file", content="new\n", append=True)
    assert (home / "file").read_text() == "old\nnew\n"


def test_new_file_that_all_may_write_without_programs(bare: SocketAgent, home: Path) -> None:
    run(bare, home / "file", content="new", mode="0666")
    assert (home / "file").read_text() == "new"


def test_contact_is_lost_after_a_file_was_made_without_programs(
    bare: SocketAgent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(agent: SocketAgent) -> bool:
        raise ConnectError("gone", command="guest-file-open")

    monkeypatch.setattr(qga_file, "enforces_selinux", gone)
    with pytest.raises(OperationError, match="guest-file-write was run, and then guest-file-open was not sent: gone"):
        run(bare, home / "file", content="new", mode="0666")
    assert (home / "file").read_text() == "new"


def test_new_file_without_programs_is_refused(bare: SocketAgent, home: Path) -> None:
    with pytest.raises(OperationError, match=r"every user .* mode: '0666'"):
        run(bare, home / "file", content="new")
    assert list(home.iterdir()) == []


def test_absent_without_programs_if_it_is_so(bare: SocketAgent, home: Path) -> None:
    assert run(bare, home / "file", state="absent")["changed"] is False


@pytest.mark.parametrize(
    "given",
    [
        {"mode": "0600"},
        {"mode": "0666"},
        {"owner": "root"},
        {"group": "root"},
        {"content": "new", "backup": True},
        {"state": "absent"},
    ],
)
@pytest.mark.parametrize("check_mode", [True, False])
def test_what_needs_programs_is_refused(bare: SocketAgent, home: Path, given: dict[str, Any], check_mode: bool) -> None:
    (home / "file").write_text("old")
    with pytest.raises(CommandUnavailable) as caught:
        run(bare, home / "file", check_mode, **given)
    assert caught.value.command == "guest-exec"
    assert "guest-exec" in caught.value.hint
    assert (home / "file").read_text() == "old"


def test_directory_without_programs(bare: SocketAgent, home: Path) -> None:
    with pytest.raises(OperationError, match="is not a file"):
        run(bare, home, content="x")


def test_content_is_not_logged() -> None:
    assert "content" in OPERATION.quiet
    assert OPERATION.local_files == ("src",)
