# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest says of its files, and what it could say."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, TransferError
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest import tree
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree import Found, find_below, find_paths
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest.test_login_shell import tool
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted

NAMES = [b"a b", b"-rf", b"new\nline", b"back\\slash", b"carriage\rreturn", b"\xff\xfe", b"'\"$(x)`", b"*", b"\\n\n\\"]


@pytest.fixture
def executor(guest: Guest, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> GuestExec:
    return GuestExec(connect(scripted(guest.answers())))


@pytest.fixture
def there(tmp_path: Path) -> bytes:
    """A directory with files of all names."""
    top = bytes(tmp_path / "a tree")
    os.makedirs(top + b"/empty/deeper")
    for name in NAMES:
        with open(os.path.join(top, name), "wb") as file:
            file.write(name)
        os.symlink(name, top + b"/empty/" + name)
    os.symlink("empty", top + b"/directory")
    os.mkfifo(top + b"/fifo")
    return top


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_all_that_is_in_a_directory(executor: GuestExec, there: bytes) -> None:
    found = {one.path: one for one in find_below(executor, there.decode())}
    assert found == {
        b".": Found(b".", "d"),
        b"./empty": Found(b"./empty", "d"),
        b"./empty/deeper": Found(b"./empty/deeper", "d"),
        b"./directory": Found(b"./directory", "D", target=b"empty"),
        b"./fifo": Found(b"./fifo", "o"),
        **{b"./" + name: Found(b"./" + name, "f", sha256(name)) for name in NAMES},
        **{b"./empty/" + name: Found(b"./empty/" + name, "l", target=name) for name in NAMES},
    }


def test_directories_come_before_what_is_in_them(executor: GuestExec, there: bytes) -> None:
    seen = set()
    for one in find_below(executor, there.decode()):
        assert one.path == b"." or os.path.dirname(one.path) in seen
        seen.add(one.path)


def test_paths(executor: GuestExec, there: bytes) -> None:
    paths = [b"/", there, there + b"/directory", there + b"/missing", *(os.path.join(there, name) for name in NAMES)]
    os.chmod(there + b"/a b", 0o4751)
    found, ids = find_paths(executor, paths, "")
    assert ids is None
    assert set(paths) - set(found) == {there + b"/missing"}
    one = found[there + b"/a b"]
    about = os.stat(one.path)
    assert one == Found(one.path, "f", sha256(b"a b"), b"", 0o4751, about.st_uid, about.st_gid, str(about.st_dev))
    assert (found[there].kind, found[there].device) == ("d", str(about.st_dev))
    assert found[there + b"/directory"].kind == "D"


def test_numbers_of_an_owner(executor: GuestExec) -> None:
    assert find_paths(executor, [b"/"], f"{os.getuid()}:{os.getgid()}")[1] == (os.getuid(), os.getgid())
    with pytest.raises(OperationError, match=r"cannot find the owner nobody-here in the guest: .*invalid user"):
        find_paths(executor, [b"/"], "nobody-here")


@pytest.mark.parametrize("path", ["/missing", "/a tree/a b"])
def test_no_directory(executor: GuestExec, there: bytes, path: str) -> None:
    with pytest.raises(OperationError, match=r"cannot look at .* in the guest: .*(No such file|Not a directory)"):
        find_below(executor, os.path.dirname(there.decode()) + path)


@pytest.mark.parametrize("name", ["find", "sha256sum", "readlink"])
def test_programs_that_fail(executor: GuestExec, guest: Guest, there: bytes, name: str) -> None:
    """Without find, nothing is known. What other programs do not say is not known."""
    tool(guest, name, f"echo {name} is broken >&2; exit 1")
    if name == "find":
        with pytest.raises(OperationError, match="find is broken"):
            find_below(executor, there.decode())
        return
    found = {one.path: one for one in find_below(executor, there.decode())}
    assert found[b"./a b"].sha256 == ("" if name == "sha256sum" else sha256(b"a b"))
    assert found[b"./directory"].target == (b"" if name == "readlink" else b"empty")


def test_checksum_that_is_missing_is_that_of_no_other_file(executor: GuestExec, guest: Guest, there: bytes) -> None:
    tool(guest, "sha256sum", 'PATH=${PATH#*:}; n=$#; for f; do [ "$f" = ./-rf ] || sha256sum -- "$f"; done')
    found = {one.path: one.sha256 for one in find_below(executor, there.decode()) if one.kind == "f"}
    assert found == {b"./" + name: sha256(name) if name != b"-rf" else "" for name in NAMES}


HOSTILE = {
    "absolute": r"d . /etc '' f /etc/passwd ''",
    "upwards": r"d . ./.. '' f ./../passwd ''",
    "upwards within": r"d . ./a ./a/.. ''",
    "a directory that is not there": r"d . '' f ./a/b ''",
    "in a link": r"d . '' l ./a '' l/etc f ./a/b ''",
    "a link and a directory": r"d . ./a '' l ./a '' l/etc",
    "twice": r"d . ./a ./a ''",
    "no name": r"d . ./ ''",
    "no slash": r"d . a ''",
    "no kind": r"d . '' x ./a ''",
    "a link of no kind": r"d . '' l ./a '' x/etc",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_elsewhere(executor: GuestExec, guest: Guest, there: bytes, name: str) -> None:
    tool(guest, "find", rf"printf '%s\0' {HOSTILE[name]}")
    with pytest.raises(TransferError, match=r"not in the directory, or names it twice|makes no sense"):
        find_below(executor, there.decode())


def test_more_files_than_are_copied(executor: GuestExec, guest: Guest, there: bytes) -> None:
    tool(guest, "find", r"printf '%s\0' d . ''; printf 'f\0'; seq -f './%.0f' 200000 | tr '\n' '\0'; printf '\0\0'")
    with pytest.raises(OperationError, match="has more than 200000 files and directories"):
        find_below(executor, there.decode())


def test_more_names_than_the_memory_holds_are_not_even_looked_at(
    executor: GuestExec, guest: Guest, there: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(guest, "find", "head -c 1000002 /dev/zero")
    monkeypatch.setattr(tree, "_parse", lambda *_arguments, **_how: pytest.fail("it was"))
    with pytest.raises(OperationError, match="has more than 200000 files and directories"):
        find_below(executor, there.decode())


@pytest.mark.parametrize("stat", ["", "81a4 0 0", "81a4 0 0 1\n81a4 0 0 1", "x 0 0 1"])
def test_attributes_that_make_no_sense(executor: GuestExec, guest: Guest, stat: str) -> None:
    tool(guest, "stat", f"printf '%s\\n' {shlex.quote(stat)}")
    with pytest.raises(TransferError, match="makes no sense"):
        find_paths(executor, [b"/"])


def test_paths_that_were_not_asked_for(executor: GuestExec, guest: Guest) -> None:
    tool(guest, "find", r"printf '%s\0' d / /etc '' '41ed 0 0 1" + "\n41ed 0 0 1'")
    assert list(find_paths(executor, [b"/"])[0]) == [b"/"]
