# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user of the guest who owns a directory exchanges what is in there, as fast as that goes, while root works in it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import QgaError
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_authorized_keys
from ansible_collections.qemu.guest.plugins.modules.qga_file import OPERATION
from ansible_collections.qemu.guest.tests.integration.agents.test_process_state import warm_up
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, look
from lab.agent import LooseAgent

ROUNDS = 30
UID = 12345

# What each does, again and again. "file" and "sub/file" are what root is about to manage, "root's" is of root's, too.
ATTACKS = {
    # The file, and whatever appears beside it, becomes a link to a file of root's.
    "names": """
for name in os.listdir("."):
    if name not in ("sub", "away"):
        quietly(os.rename, name, "away")
        quietly(os.symlink, VICTIM, name)
quietly(os.unlink, "file")
quietly(os.close, quietly(os.open, "file", os.O_CREAT | os.O_WRONLY))
""",
    # So it does, and is a file for the moments in between.
    "flicker": """
quietly(os.symlink, VICTIM, "new")
quietly(os.rename, "new", "file")
quietly(os.close, quietly(os.open, "new", os.O_CREAT | os.O_WRONLY))
quietly(os.rename, "new", "file")
""",
    # The directory becomes a link to one of root's, and the file is there or not.
    "directory": """
quietly(os.close, quietly(os.open, "sub/file", os.O_CREAT | os.O_WRONLY))
quietly(os.rename, "sub", "real")
quietly(os.symlink, VICTIMS, "sub")
quietly(os.unlink, "sub")
quietly(os.rename, "real", "sub")
""",
    # It becomes that, and what is root's takes the place of the link whenever somebody may ask whose that is.
    "impostor": """
os.path.exists("real") or quietly(os.rename, "sub", "real")
quietly(os.symlink, VICTIMS, "link")
quietly(os.rename, "link", "sub")
for pause in range(2000):
    pass
quietly(os.rename, "sub", "link")
quietly(os.rename, "root's", "sub")
for pause in range(2000):
    pass
quietly(os.rename, "sub", "root's")
""",
}
# What a user does in their home while root changes who may log in.
HOME_ATTACKS = {
    "file": """
quietly(os.mkdir, ".ssh")
quietly(os.symlink, VICTIM, "new")
quietly(os.rename, "new", ".ssh/authorized_keys")
quietly(os.unlink, ".ssh/authorized_keys")
quietly(os.close, quietly(os.open, ".ssh/authorized_keys", os.O_CREAT | os.O_WRONLY))
""",
    "directory": """
quietly(os.mkdir, ".ssh")
quietly(os.rename, ".ssh", "real")
quietly(os.symlink, VICTIMS, ".ssh")
quietly(os.unlink, ".ssh")
quietly(os.rename, "real", ".ssh")
""",
    # Root makes it anew each time, and has a directory of its own there.
    "new": """
for name in quietly(os.listdir, ".ssh") or ():
    quietly(os.unlink, f".ssh/{name}")
quietly(os.rmdir, ".ssh")
quietly(os.rename, "root's", ".ssh")
quietly(os.rename, ".ssh", "root's")
quietly(os.symlink, VICTIMS, ".ssh")
quietly(os.unlink, ".ssh")
""",
    "fifo": """
quietly(os.mkdir, ".ssh")
quietly(os.close, quietly(os.open, "new", os.O_CREAT | os.O_WRONLY))
quietly(os.rename, "new", ".ssh/authorized_keys")
quietly(os.mkfifo, "pipe")
quietly(os.rename, "pipe", ".ssh/authorized_keys")
""",
}
ATTACKER = """
import os
VICTIM, VICTIMS = "/etc/victims/file", "/etc/victims"
def quietly(action, *arguments):
    try:
        return action(*arguments)
    except (OSError, TypeError):
        return None
os.chdir("/srv/theirs")
while True:
"""
SECRET = "/etc/victims/file"
KEPT = "cd /etc/victims && stat -c '%n %f %u:%g %s' . * .[!.]* 2>/dev/null; cat file"

TASKS: dict[str, dict[str, Any]] = {
    "create": {"content": "new\n", "owner": str(UID), "mode": "0666"},
    "large": {"content": "new\n" * 80_000, "owner": str(UID), "mode": "0666"},
    "append": {"content": "new\n", "append": True, "mode": "0666"},
    "backup": {"content": "new\n", "backup": True, "owner": str(UID), "mode": "0666"},
    "follow": {"content": "new\n", "follow": True, "owner": str(UID), "mode": "0666"},
    "follow mode": {"follow": True, "owner": str(UID), "mode": "0666"},
    "owner": {"owner": str(UID)},
    "mode": {"mode": "0666"},
    "absent": {"state": "absent"},
}


@pytest.fixture(scope="module")
def agent() -> Iterator[LooseAgent]:
    with LooseAgent("bookworm") as agent:
        yield agent


@contextmanager
def attacked(agent: LooseAgent, attack: str) -> Iterator[None]:
    """Have a user do that meanwhile, in a directory of theirs; afterwards, what is root's is as it was."""
    look(agent, f"rm -rf /etc/victims /srv/theirs; install -d -o {UID} /srv/theirs /srv/theirs/sub")
    look(agent, "mkdir -m 700 /etc/victims; umask 077; echo secret >/etc/victims/file")
    look(agent, f'cd /srv/theirs && touch "root\'s" file && chown {UID} file')
    before = look(agent, KEPT)
    body = "\n".join(f"    {line}" for line in {**ATTACKS, **HOME_ATTACKS}[attack].splitlines())
    user = f"exec setpriv --reuid={UID} --regid={UID} --clear-groups python3 -c {shlex.quote(ATTACKER + body)}"
    with subprocess.Popen([*agent.shell, user], start_new_session=True, stderr=subprocess.PIPE) as process:
        try:
            look(agent, "until [ -e /srv/theirs/file ] || [ -e /srv/theirs/sub/file ]; do sleep 0.05; done", check=True)
            yield
            assert process.poll() is None, process.stderr and process.stderr.read()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert look(agent, KEPT) == before
    # What the user has called so themselves, of what is root's, is not left by a task.
    assert look(agent, "find /srv/theirs -user root -name '.*' ! -exec test -e {}/mine ';' -print") == ""


def path_of(attack: str) -> str:
    return "/srv/theirs/sub/file" if attack in ("directory", "impostor") else "/srv/theirs/file"


def does(action: Callable[[], Any]) -> bool:
    """Do it; return whether it succeeded. The user may well see to it that it fails."""
    try:
        action()
    except (QgaError, AnsibleError):
        return False
    return True


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("task", TASKS)
def test_file(agent: LooseAgent, attack: str, task: str) -> None:
    params = {name: option.get("default") for name, option in OPERATION.spec.items()}
    params.update(TASKS[task], path=path_of(attack))
    with open_agent(str(agent.agent_socket)) as client, attacked(agent, attack):
        for _round in range(ROUNDS):
            does(lambda: run_operation(OPERATION, client, params))


LEADING = {
    "mine": f"touch mine; chown {UID} mine; ln -s mine file; chown -h {UID} file",
    "mine, by two": f"touch mine; ln -s mine other; ln -s /srv/theirs/other file; chown -h {UID} mine other file",
    "mine, by root": f"touch mine; chown {UID} mine; cd /srv; rm -f file; ln -s theirs/mine file",
    "root's, by root": "cd /srv; touch root; rm -f file; ln -s root file",
    "nothing yet": f"ln -s mine file; chown -h {UID} file",
}


@pytest.mark.parametrize("links", LEADING)
def test_link_that_leads_where_its_user_may_write_is_followed(agent: LooseAgent, links: str) -> None:
    look(agent, f"rm -rf /srv/theirs; install -d -o {UID} /srv/theirs; cd /srv/theirs; {LEADING[links]}")
    path = "/srv/file" if "by root" in links else "/srv/theirs/file"
    params = {name: option.get("default") for name, option in OPERATION.spec.items()}
    with open_agent(str(agent.agent_socket)) as client:
        result = run_operation(OPERATION, client, {**params, "path": path, "content": "new\n", "follow": True})
    target = "/srv/root" if "root's" in links else "/srv/theirs/mine"
    assert result["path"] == target
    assert look(agent, f"test -L {path} && cat {target}") == "new\n"


# Whether root's link in a directory of root's stays what it is: its mode, and its group.
SHARED = {"0755 0": True, "1777 0": True, "2775 0": True, "0777 0": False, f"2775 {UID}": False, f"3775 {UID}": True}


def manage(agent: LooseAgent, follow: bool) -> bool:
    """Have root manage a file of root's, through a link there or on the way; return whether that is done."""
    path = "/srv/theirs/file" if follow else "/srv/theirs/sub/file"
    params = {name: option.get("default") for name, option in OPERATION.spec.items()}
    params.update(path=path, content="new\n", owner=str(UID), follow=follow)
    with open_agent(str(agent.agent_socket)) as client:
        return does(lambda: run_operation(OPERATION, client, params))


def plant(agent: LooseAgent, links: str) -> None:
    look(agent, "rm -rf /etc/victims /srv/theirs; mkdir -m 700 /etc/victims; umask 077; echo secret >/etc/victims/file")
    look(agent, links, check=True)


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("shared", SHARED)
def test_link_of_root_s_where_others_may_write(agent: LooseAgent, shared: str, follow: bool) -> None:
    """They cannot make one of root's, and put it in place, or another, by rename."""
    mode, group = shared.split()
    link = "ln -s /etc/victims/file file" if follow else "ln -s /etc/victims sub"
    plant(agent, f"install -d -m {mode} -g {group} /srv/theirs; cd /srv/theirs; {link}")
    assert manage(agent, follow) == SHARED[shared]
    assert ("secret" in look(agent, KEPT)) != SHARED[shared]


@pytest.mark.parametrize(
    "user_s", ["sub -> /etc/victims", "sub -> other, other -> /etc/victims", "sub -> ../../../etc/victims"]
)
def test_link_of_root_s_that_leads_through_a_user_s(agent: LooseAgent, user_s: str) -> None:
    links = "; ".join("ln -s {1} {0}; chown -h {2} {0}".format(*link.split(" -> "), UID) for link in user_s.split(", "))
    plant(agent, f"mkdir /srv/theirs; cd /srv/theirs; install -d -o {UID} home; ln -s home/sub sub; cd home; {links}")
    before = look(agent, KEPT)
    assert not manage(agent, follow=False)
    assert look(agent, KEPT) == before


VANISHING = """#!/bin/sh
/usr/bin/stat "$@"
s=$?
case "$*" in *./file | *./sub) rm -f /srv/theirs/file ;; esac
exit "$s"
"""


def test_link_that_vanishes_when_it_was_looked_at(agent: LooseAgent) -> None:
    """Where users may put links, as in /tmp: whose it was, nobody has said then."""
    plant(agent, f"install -d -m 1777 /srv/theirs; cd /srv/theirs; ln -s {SECRET} file; chown -h {UID} file")
    before = look(agent, KEPT)
    look(agent, f"printf %s {shlex.quote(VANISHING)} >/usr/local/bin/stat; chmod 755 /usr/local/bin/stat", check=True)
    try:
        assert not manage(agent, follow=True)
    finally:
        look(agent, "rm /usr/local/bin/stat", check=True)
    assert look(agent, KEPT) == before


NO_FOLLOWING = """#!/bin/sh
case $1 in -f) exit 1 ;; esac
exec /usr/bin/readlink "$@"
"""


def test_link_is_resolved_by_the_kernel(agent: LooseAgent) -> None:
    """A user's links can keep `readlink -f` of coreutils for ever, and it takes all memory. The kernel follows 40."""
    plant(agent, f"install -d -o {UID} /srv/theirs; cd /srv/theirs; touch mine; ln -s mine file; chown -h {UID} *")
    readlink = "/usr/local/bin/readlink"
    look(agent, f"printf %s {shlex.quote(NO_FOLLOWING)} >{readlink}; chmod 755 {readlink}", check=True)
    try:
        assert manage(agent, follow=True)
    finally:
        look(agent, f"rm {readlink}", check=True)
    assert look(agent, "cat /srv/theirs/mine") == "new\n"
    look(agent, "cd /srv/theirs; rm mine; ln -s file mine", check=True)
    assert not manage(agent, follow=True)


@pytest.mark.parametrize("attack", ATTACKS)
def test_tree(agent: LooseAgent, attack: str, tmp_path: Path) -> None:
    """Into the user's directory, and into a directory of the user's in there, which is there or not."""
    params = {name: option.get("default") for name, option in OPERATION.spec.items()}
    params.update(src=f"{tmp_path}/", path="/srv/theirs", recurse=True, owner=str(UID), mode="0666")
    (tmp_path / "sub" / "new").mkdir(parents=True)
    with open_agent(str(agent.agent_socket)) as client, attacked(agent, attack):
        for number in range(ROUNDS):
            for path in (tmp_path / "file", tmp_path / "sub" / "file", tmp_path / "sub" / "new" / f"{number}"):
                path.write_bytes(b"%d\n" % number)
            does(lambda: run_operation(OPERATION, client, params))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("size", [3000, 400_000])
@pytest.mark.parametrize("warm", [True, False])
def test_copy(agent: LooseAgent, attack: str, size: int, warm: bool, tmp_path: Path, make_ansible: MakeAnsible) -> None:
    if warm:
        warm_up(make_ansible({"vm": guest_variables(agent)}))
    (tmp_path / "source").write_bytes(os.urandom(size))
    connection = connection_loader.get("qemu.guest.qga", PlayContext(), os.devnull)
    connection.set_options(direct={"address": str(agent.agent_socket), "warm_python": warm, "persist": 0})
    try:
        with attacked(agent, attack):
            for _round in range(ROUNDS):
                does(lambda: connection.put_file(str(tmp_path / "source"), path_of(attack)))
    finally:
        connection.reset()
        connection.close()


LINKS = {
    "file": f"ln -s {SECRET} ~qgakeys/.ssh/authorized_keys",
    "keys": f"echo {{key}} >{SECRET}; ln -s {SECRET} ~qgakeys/.ssh/authorized_keys",
    "directory": "rmdir ~qgakeys/.ssh; ln -s /etc/victims ~qgakeys/.ssh",
}


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("link", LINKS)
def test_authorized_keys(agent: LooseAgent, link: str, exclusive: bool) -> None:
    """The agent itself would follow the link, and give the user what it writes."""
    key, other = (f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{name * 20} {name}" for name in "ab")
    look(agent, "userdel -r qgakeys 2>/dev/null; useradd -m qgakeys; install -d -o qgakeys -m 700 ~qgakeys/.ssh")
    look(agent, f"rm -rf /etc/victims; mkdir -m 700 /etc/victims; umask 077; echo secret >{SECRET}")
    look(agent, f"{LINKS[link].format(key=other)}; chown -hR qgakeys ~qgakeys")
    before = look(agent, KEPT)
    params = {"user": "qgakeys", "keys": [key], "state": "present", "exclusive": exclusive}
    with open_agent(str(agent.agent_socket)) as client:
        with pytest.raises(QgaError, match=r"no public keys|is a link to what is not|a link on the way"):
            run_operation(qga_authorized_keys.OPERATION, client, params)
        assert look(agent, KEPT) == before
        assert look(agent, "find -L ~qgakeys/.ssh -type f -user qgakeys") == ""
        own = "rm -r ~qgakeys/.ssh; mkdir ~qgakeys/keys; ln -s keys ~qgakeys/.ssh; touch ~qgakeys/mine"
        look(agent, f"{own}; ln -s ../mine ~qgakeys/keys/authorized_keys; chown -hR qgakeys ~qgakeys")
        assert run_operation(qga_authorized_keys.OPERATION, client, params)["changed"], (
            "what is theirs may be elsewhere"
        )


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("attack", HOME_ATTACKS)
def test_keys_in_a_home_whose_user_exchanges_what_is_there(agent: LooseAgent, attack: str, exclusive: bool) -> None:
    key = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'a' * 20} a"
    present = {"user": "qgathief", "keys": [key], "state": "present", "exclusive": exclusive}
    absent = {**present, "state": "absent", "exclusive": False}
    look(agent, f"id qgathief >/dev/null || useradd -M -u {UID} -d /srv/theirs qgathief", check=True)
    with open_agent(str(agent.agent_socket), timeout=3) as client, attacked(agent, attack):
        look(agent, "cd /srv/theirs; mkdir -m 700 made && touch made/mine", check=True)
        # The user may put a file there again, which is the one of the other attacks.
        look(agent, """cd /srv/theirs; until mv -T made "root's" 2>&1; do rm -f "root's"; done""", check=True)
        for _round in range(ROUNDS):
            does(lambda: run_operation(qga_authorized_keys.OPERATION, client, present))
            does(lambda: run_operation(qga_authorized_keys.OPERATION, client, absent))
    assert look(agent, f"find /srv/theirs -name mine -user root -execdir find . -maxdepth 0 -user {UID} \\;") == ""
