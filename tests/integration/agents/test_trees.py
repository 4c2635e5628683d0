# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories that are copied and fetched whole, with what real guests have for it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_fetch, qga_file
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import HERE, guest_variables, look
from lab.agent import LooseAgent
from lab.sshd import Sshd

NAMES = [b"a b", b"-rf", b"new\nline", b"back\\slash", b"carriage\rreturn", b"\xff\xfe", b"'\"$(x)`", b"*", b".hidden"]
OTHERS = [pytest.param(name, marks=pytest.mark.whole) for name in ("sid-uutils", "sid-mksh")]


@pytest.fixture(scope="module", params=["bullseye", "sid", "sid-busybox", *OTHERS])
def guest(request: pytest.FixtureRequest) -> Iterator[LooseAgent]:
    with LooseAgent(request.param) as agent:
        yield agent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A thousand small files, and what else a directory may have in it."""
    top = tmp_path / "source"
    for number in range(1000):
        path = top / f"{number % 20}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number))
        path.chmod((0o644, 0o600, 0o755, 0o400)[number % 4])
    deep = top / "/".join(["deep" * 10] * 50)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    (top / "odd").mkdir()
    (top / "odd").chmod(0o2711)
    for name in NAMES:
        with open(os.path.join(bytes(top / "odd"), name), "wb") as file:
            file.write(name)
        os.symlink(name, os.path.join(bytes(top), b"link to " + name))
        os.mkdir(os.path.join(bytes(top), b"empty " + name))
    (top / "odd" / "up").symlink_to("../0")
    return top


def describe(top: bytes, private: bool = False) -> dict[bytes, Any]:
    """Return all that is in a directory of this machine; ``private``: modes as fetched files have them."""
    found: dict[bytes, Any] = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            shown = stat.S_IMODE(mode)
            if private:
                shown = 0o700 if mode & 0o100 else 0o600
            if stat.S_ISLNK(mode):
                what: Any = os.readlink(path)
            elif stat.S_ISDIR(mode):
                what = shown
            else:
                with open(path, "rb") as file:
                    what = shown, file.read()
            found[path[len(top) :]] = what
    return found


def run(agent: LooseAgent, operation: Operation, *, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    params = {name: option.get("default") for name, option in operation.spec.items()}
    with open_agent(str(agent.agent_socket)) as client:
        return run_operation(operation, client, {**params, "recurse": True, **given}, check_mode=check_mode)


def put(agent: LooseAgent, src: object, path: str, **given: Any) -> dict[str, Any]:
    given = {"mode": "preserve", "local_follow": False, **given}
    return run(agent, qga_file.OPERATION, src=str(src), path=path, **given)


def fetch(agent: LooseAgent, src: str, dest: Path, **given: Any) -> dict[str, Any]:
    return run(agent, qga_fetch.OPERATION, src=src, dest=str(dest), **given)


def test_there_and_back(guest: LooseAgent, source: Path, tmp_path: Path) -> None:
    place = "/srv/it's a tree"
    look(guest, f'rm -rf "{place}"')
    left = look(guest, "ls -A /run /var/tmp")
    assert put(guest, source, place, check_mode=True)["changed"]
    assert look(guest, f'ls -d "{place}" 2>/dev/null || :') == ""
    assert put(guest, source, place, owner="daemon", group="adm")["changed"]
    assert look(guest, "ls -A /run /var/tmp") == left
    assert look(guest, f'find "{place}" ! -type l ! -user daemon -o ! -type l ! -group adm | wc -l') == "0\n"
    modes = {0o644: 250, 0o600: 250, 0o755: 250, 0o400: 250}
    for mode, count in modes.items():
        assert int(look(guest, f"find \"{place}\" -name 'file *' -perm {mode:o} | wc -l")) == count
    assert look(guest, f'stat -c %a "{place}/source/odd"') == "2711\n"
    for _time in range(2):
        again = put(guest, source, place, owner="daemon", group="adm")
        assert (again["changed"], again["files"]) == (False, [])
    assert fetch(guest, f"{place}/source", tmp_path, check_mode=True)["changed"] is False
    back = tmp_path / "back"
    fetched = fetch(guest, f"{place}/source", back)
    assert (fetched["changed"], fetched["left_out"], "warnings" in fetched) == (True, [], False)
    assert describe(bytes(back / "source")) == describe(bytes(source), private=True)
    assert fetch(guest, f"{place}/source", back)["changed"] is False
    assert look(guest, "ls -A /run /var/tmp") == left


def test_only_what_differs(guest: LooseAgent, source: Path, tmp_path: Path) -> None:
    look(guest, "rm -rf /srv/tree")
    put(guest, f"{source}/", "/srv/tree")
    look(guest, "echo mine >/srv/tree/0/mine; echo x >'/srv/tree/1/file 1'; rm '/srv/tree/2/file 2'; rm -r /srv/tree/3")
    look(guest, "cd /srv/tree; chmod 0666 '4/file 4'; ln -sf ../0/mine '5/file 5'; chmod 0700 5; chown daemon 5")
    (source / "6" / "new").mkdir()
    (source / "6" / "new" / "file").write_text("new")
    result = put(guest, f"{source}/", "/srv/tree")
    wanted = {f"/srv/tree/{number}/file {number}" for number in (1, 2, 4, 5)} | {"/srv/tree/6/new/file"}
    wanted |= {f"/srv/tree/3/file {number}" for number in range(3, 1000, 20)}
    assert set(result["files"]) == wanted
    assert look(guest, "cat /srv/tree/0/mine; stat -c '%a %U' /srv/tree/5") == "mine\n700 daemon\n"
    back = tmp_path / "back"
    fetch(guest, "/srv/tree/", back)
    assert describe(bytes(back)) == {**describe(bytes(source), private=True), b"/0/mine": (0o600, b"mine\n")}
    look(guest, "echo y >'/srv/tree/1/file 1'; ln -sf 'file 0' /srv/tree/0/mine")
    assert set(fetch(guest, "/srv/tree/", back)["files"]) == {"1/file 1", "0/mine"}
    assert (back / "1" / "file 1").read_text() == "y\n" and os.readlink(back / "0" / "mine") == "file 0"


def test_what_cannot_be_fetched(guest: LooseAgent, tmp_path: Path) -> None:
    look(
        guest,
        "rm -rf /srv/odd; mkdir -p /srv/odd/sub; cd /srv/odd; mkfifo fifo; ln -s /etc/passwd out; ln -s ../.. sub/up",
    )
    look(guest, "cd /srv/odd; ln -s /etc directory; echo 1 >file; ln file sub/hard; echo 2 >sub/2")
    result = fetch(guest, "/srv/odd/", tmp_path / "back")
    assert set(result["left_out"]) == {"fifo", "out", "sub/up", "directory"}
    assert len(result["warnings"]) == 4
    assert describe(bytes(tmp_path / "back")) == {
        b"/file": (0o600, b"1\n"),
        b"/sub": 0o700,
        b"/sub/hard": (0o600, b"1\n"),
        b"/sub/2": (0o600, b"2\n"),
    }


def test_other_filesystems(guest: LooseAgent, source: Path, tmp_path: Path) -> None:
    """Files are moved within each of them, also where a link of root's leads to another."""
    look(guest, "rm -rf /srv/top /run/other; mkdir -p /srv/top/0 /srv/top/odd /run/other; ln -s /run/other /srv/top/1")
    look(guest, "mount -t tmpfs none /srv/top/odd && mount -t tmpfs none /run/other")
    left = look(guest, "ls -A /run /var/tmp")
    try:
        put(guest, f"{source}/", "/srv/top")
        assert look(guest, "ls /run/other | wc -l") == "50\n"
        assert look(guest, "find /srv/top/odd -print0 | tr -dc '\\0' | wc -c") == f"{1 + len(NAMES) + 1}\n"
        assert put(guest, f"{source}/", "/srv/top")["changed"] is False
        assert look(guest, "ls -A /run /var/tmp") == left
    finally:
        look(guest, "umount /srv/top/odd /run/other")


def test_root_of_the_guest(guest: LooseAgent, tmp_path: Path) -> None:
    """A tree such as distributions' packages have: /bin is a link to usr/bin in a guest."""
    for path in ("bin/tree-tool", "etc/tree.d/conf", "srv/new/deep/file"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(f"{path}\n")
    result = put(guest, f"{tmp_path}/", "/", owner="0")
    assert set(result["files"]) == {"/bin/tree-tool", "/etc/tree.d/conf", "/srv/new/deep/file"}
    assert look(guest, "cat /usr/bin/tree-tool /etc/tree.d/conf /srv/new/deep/file; readlink /bin").endswith(
        "usr/bin\n"
    )
    assert look(guest, "stat -c '%a %U' / /etc /bin/.").splitlines() == ["755 root"] * 3
    look(guest, "rm -r /usr/bin/tree-tool /etc/tree.d /srv/new")


def test_guest_without_tar(guest: LooseAgent, source: Path, tmp_path: Path) -> None:
    look(guest, "mkdir -p /srv/from; echo 1 >/srv/from/file")
    tars = look(guest, "for d in /usr/local/sbin /usr/bin /bin; do [ ! -e $d/tar ] || echo $d/tar; done").split()
    look(guest, f"for f in {' '.join(tars)}; do [ ! -e $f ] || mv $f $f.away; done")
    try:
        with pytest.raises(OperationError, match="the guest has no tar; install it there"):
            put(guest, source, "/srv/none")
        with pytest.raises(OperationError, match="the guest has no tar; install it there"):
            fetch(guest, "/srv/from", tmp_path)
    finally:
        look(guest, f"for f in {' '.join(tars)}; do [ ! -e $f.away ] || mv $f.away $f; done")
    assert look(guest, "ls -A /srv/none 2>/dev/null || :") == ""


@pytest.mark.parametrize("way", ["guest-exec", "runner"])
def test_on_a_guest(way: str, agents: dict[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    """The source is the role's, on the controller, and what is fetched comes to be beside the playbook."""
    agent = agents["bookworm"]
    ansible = make_ansible({"vm": {**guest_variables(agent), "ansible_qga_exec_method": way}})
    look(agent, "rm -rf /srv/role /srv/content")
    files = ansible.directory / "roles" / "app" / "files" / "conf" / "sub"
    files.mkdir(parents=True)
    (files / "file").write_text("content\n")
    tasks = ansible.directory / "roles" / "app" / "tasks" / "main.yml"
    tasks.parent.mkdir()
    copy = {"src": "conf", "path": "/srv/role", "recurse": True}
    of_role = [
        {"name": "Copy", "qemu.guest.qga_file": copy},
        {"name": "Copy the content", "qemu.guest.qga_file": {**copy, "src": "conf/", "path": "/srv/content"}},
        {"name": "By its whole path", "qemu.guest.qga_file": {**copy, "src": f"{files.parent}/", "path": "/srv/whole"}},
        {
            "name": "Fetch",
            "qemu.guest.qga_fetch": {"src": "/srv/role", "dest": "back/", "recurse": True},
        },
    ]
    tasks.write_text(json.dumps(of_role), encoding="utf-8")
    play = [{"hosts": "all", "gather_facts": False, "roles": ["app"]}]
    (ansible.directory / "play.json").write_text(json.dumps(play), encoding="utf-8")
    environment = {"ANSIBLE_ROLES_PATH": str(ansible.directory / "roles")}
    first = ansible.playbook(ansible.directory / "play.json", environment=environment)
    again = ansible.playbook(ansible.directory / "play.json", environment=environment)
    assert (first.recap["vm"]["changed"], again.recap["vm"]["changed"]) == (4, 0)
    seen = look(agent, "cd /srv; cat role/conf/sub/file content/sub/file whole/sub/file; rm -r role content whole")
    assert seen == "content\n" * 3
    assert (ansible.directory / "back" / "role" / "conf" / "sub" / "file").read_text() == "content\n"


def test_thousand_files_take_less_than_twenty_by_copy_over_ssh(
    agents: dict[str, LooseAgent], make_ansible: MakeAnsible, tmp_path: Path
) -> None:
    """Each of which takes as long as the others."""
    for name, files in (("thousand", 1000), ("twenty", 20)):
        (tmp_path / name).mkdir()
        for number in range(files):
            (tmp_path / name / f"{number}").write_bytes(os.urandom(300))
    archive = {"src": f"{tmp_path}/thousand", "path": "/srv", "recurse": True, "mode": "preserve"}
    copy = {"src": f"{tmp_path}/twenty", "dest": f"{tmp_path}/there/", "mode": "preserve"}
    play = [
        {"hosts": "vm", "gather_facts": False, "tasks": [{"name": "thousand", "qemu.guest.qga_file": archive}]},
        {"hosts": "server", "gather_facts": False, "tasks": [{"name": "twenty", "ansible.builtin.copy": copy}]},
    ]
    with Sshd() as sshd:
        ansible = make_ansible({"vm": guest_variables(agents["bookworm"]), "server": sshd.variables()})
        (ansible.directory / "play.json").write_text(json.dumps(play), encoding="utf-8")
        seconds = ansible.directory / "seconds.json"
        environment = {
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "task_seconds",
            "TASK_SECONDS": str(seconds),
        }
        ansible.playbook(ansible.directory / "play.json", environment=environment)
    assert look(agents["bookworm"], "ls /srv/thousand | wc -l; rm -r /srv/thousand") == "1000\n"
    assert len(list((tmp_path / "there" / "twenty").iterdir())) == 20
    taken = dict(json.loads(seconds.read_text()))
    print({name: f"{each:.2f} s" for name, each in taken.items()})
    assert taken["thousand"] < taken["twenty"]
