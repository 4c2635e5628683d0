# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    ConnectError,
    GuestFileError,
    OperationError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._module.key_file import KeyFile
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Plan, run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.public_keys import HIDDEN, listed, shown
from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec
from ansible_collections.qemu.guest.plugins.modules import qga_authorized_keys, qga_info
from ansible_collections.qemu.guest.plugins.modules.qga_authorized_keys import (
    ADD,
    GET,
    OPERATION,
    REMOVE,
    Current,
    wanted,
)
from ansible_collections.qemu.guest.tests.unit.documentation import examples, returned
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Request, Scripted, Session, answers

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]

NAME = "authorized_keys"
A, B, C = (f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{name * 20} {name}" for name in "abc")


def options(*keys: str, **given: Any) -> dict[str, Any]:
    return {"user": "alice", "keys": list(keys), "state": "present", "exclusive": False, **given}


def plan(current: list[str], *keys: str, whole: bool = False, **given: Any) -> Plan:
    return qga_authorized_keys.plan(Current(current, whole=whole), options(*keys, **given))


def plan_file(text: str | None, *keys: str, **given: Any) -> Plan:
    file = KeyFile("alice", "/home/alice", "1:1", text)
    there = [line for line in map(listed, (text or "").split("\n")) if line]
    return qga_authorized_keys.plan(Current(there, file=file), options(*keys, **given))


# plan

ABSENT = {"state": "absent"}
EXCLUSIVE = {"exclusive": True}


OTHER_A, FREE_A = f"{A} at work", f'command="ssh-rsa AAAAB3NzaC1yc2E= x" {A}'


PLANS: list[tuple[list[str], list[str], dict[str, Any], list[str]]] = [
    ([], [A, B], {}, [A, B]),
    ([A], [B, A, C], {}, [A, B, C]),
    (["# garbage"], [f"  {A}\n", A], {}, ["# garbage", A]),
    ([A, B, A, C], [A, "other"], ABSENT, [B, C]),
    (["garbage"], ["garbage"], ABSENT, []),
    ([A, B], [C, A], EXCLUSIVE, [C, A]),
    ([A, B], [B, A], EXCLUSIVE, [B, A]),
    ([A, A], [A], EXCLUSIVE, [A]),
    ([A], [], EXCLUSIVE, []),
    # The same key, with other options and another comment
    ([A, B], [OTHER_A], {}, [OTHER_A, B]),
    ([FREE_A, B, OTHER_A], [A, C], {}, [A, B, C]),
    ([A, B, OTHER_A], [A], {}, [A, B]),
    ([A], [A, OTHER_A], {}, [OTHER_A]),
    ([FREE_A, B, A], [OTHER_A], ABSENT, [B]),
    ([B, A], [OTHER_A, B], EXCLUSIVE, [OTHER_A, B]),
]


@pytest.mark.parametrize(("current", "keys", "given", "after"), PLANS)
@pytest.mark.parametrize("whole", [True, False])
def test_plan(current: list[str], keys: list[str], given: dict[str, Any], after: list[str], whole: bool) -> None:
    planned = plan(current, *keys, whole=whole, **given)
    assert planned.changes and planned.before == {NAME: shown(current)}
    if whole or given is EXCLUSIVE:
        assert planned.todo.commands == [(ADD, {"username": "alice", "keys": [*after, ""], "reset": True})]
        assert planned.todo.after == after
    # Without knowing all of the file, what is new comes last.
    assert sorted(planned.todo.after) == sorted(after)
    assert planned.after == {NAME: planned.todo.after}
    assert planned.result == {"user": "alice", NAME: planned.todo.after}
    assert not plan(planned.todo.after, *keys, whole=whole, **given).changes
    file = File(*current)
    for command, arguments in planned.todo.commands:
        file.answers()[command](arguments)
    assert file.lines and [line for line in file.lines if line] == planned.todo.after
    assert file.lines[-1] == "", "it ends with a line break"


@pytest.mark.parametrize(("current", "keys", "given", "after"), PLANS)
def test_plan_of_a_file_that_programs_replace(
    current: list[str], keys: list[str], given: dict[str, Any], after: list[str]
) -> None:
    planned = plan_file("\n".join(current), *keys, **given)
    assert planned.changes and planned.todo.commands == []
    assert planned.todo.text == "\n".join([*after, ""])
    assert not plan_file(planned.todo.text, *keys, **given).changes


@pytest.mark.parametrize(
    ("current", "keys", "given"),
    [
        ([A, B], [B], {}),
        ([A, B, A], [A], {}),
        ([A], [], {}),
        ([A], [B], ABSENT),
        ([], [], ABSENT),
        ([A, B], [A, B], EXCLUSIVE),
        ([], [], EXCLUSIVE),
    ],
)
def test_nothing_to_do(current: list[str], keys: list[str], given: dict[str, Any]) -> None:
    for planned in (plan(current, *keys, **given), plan_file("\n".join(["", *current]), *keys, **given)):
        assert not planned.changes
        assert planned.result[NAME] == current


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("keys", "given"), [([B], {}), ([A], ABSENT)])
def test_lines_that_are_no_keys_are_not_written(keys: list[str], given: dict[str, Any], whole: bool) -> None:
    """The file was a link to /etc/shadow, and what is written is the user's."""
    with pytest.raises(OperationError, match="1 lines of the file are no public keys") as caught:
        plan(["root:$6$x:1:::::", A], *keys, whole=whole, **given)
    assert "$6$" not in str(caught.value)
    assert not plan(["root:$6$x:1:::::", A], A, whole=whole).changes
    rewritten = plan(["root:$6$x:1:::::", A], A, whole=whole, exclusive=True)
    assert rewritten.after == {NAME: [A]} and rewritten.before == {NAME: [HIDDEN, A]}
    assert "$6$" not in str(plan(["root:$6$x:1:::::", A], A, whole=whole).result)


@pytest.mark.parametrize(
    "key",
    [
        "ssh-rsa AAAAB3NzaC1yc2E=",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNh comment of some words",
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t",
        "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5",
        f'from="10.0.0.0/8,192.0.2.1",command="echo \\"x\\" y" {A}',
        f"restrict,pty\t{A}",
    ],
)
def test_what_is_a_key(key: str) -> None:
    assert plan([], key).after == {NAME: [key]}


@pytest.mark.parametrize(
    "key",
    ["garbage", "ssh-rsa", "AAAAB3NzaC1yc2E=", "ssh-rsa QUFB", 'from="10.0.0.0/8', "PuTTY-User-Key-File-2: ssh-rsa"],
)
def test_what_is_none(key: str) -> None:
    with pytest.raises(OperationError, match=r"keys\[1\] is not a public key") as caught:
        plan([], A, key)
    assert key not in str(caught.value)
    plan([], A, key, state="absent")


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("key", ["", "  \n", "# comment", f"{A}\n{B}", f"{A}\r{B}", f"{A}\0"])
def test_what_is_not_one_line(key: str, state: str) -> None:
    with pytest.raises(OperationError, match=r"keys\[0\] is not one line with a key"):
        plan([], key, state=state)


def test_none_exclusively() -> None:
    with pytest.raises(OperationError, match="exclusive"):
        plan([], A, state="absent", exclusive=True)


def test_text_of_a_file_of_keys() -> None:
    text = f"# admins\n{A}\r\n\n  {FREE_A.replace('x', 'x,y')} \n{B}"
    assert wanted({**options(), "keys": text}) == wanted(options(A, FREE_A.replace("x", "x,y"), B))


@pytest.mark.parametrize("text", ["", "\n", "# none\n"])
def test_text_without_a_key_removes_none(text: str) -> None:
    with pytest.raises(OperationError, match="there is no key in the text"):
        wanted({**options(exclusive=True), "keys": text})


def test_text_of_a_private_key_is_not_shown() -> None:
    with pytest.raises(OperationError, match=r"keys\[0\] is not a public key") as caught:
        wanted({**options(), "keys": "-----BEGIN KEY-----\nc2VjcmV0\n-----END KEY-----\n"})
    assert "c2Vj" not in str(caught.value)


@pytest.mark.parametrize("keys", [{"a": 1}, 5, [5], [A, None], [[A]]])
def test_keys_that_are_neither_list_nor_text(keys: Any) -> None:
    with pytest.raises(OperationError, match="a list of lines, or a text"):
        wanted({**options(), "keys": keys})


def test_examples_can_be_planned() -> None:
    for task in examples("qga_authorized_keys"):
        given = task["qemu.guest.qga_authorized_keys"]
        if isinstance(given.get("keys"), list):
            qga_authorized_keys.plan(Current([]), {**options(), **given})


# With an agent


class File:
    """The authorized_keys of alice, as agents 5.2 to 11.1 manage it; None: there is none."""

    def __init__(self, *lines: str) -> None:
        self.lines: list[str] | None = list(lines) or None
        """What there is between line breaks: the last is empty if the file ends with one."""

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {GET: self.get, ADD: self.add, REMOVE: self.remove}

    def _check(self, arguments: Mapping[str, Any]) -> None:
        if arguments["username"] != "alice":
            raise AgentError(f"failed to lookup user '{arguments['username']}': Success")

    def get(self, arguments: Mapping[str, Any]) -> Any:
        self._check(arguments)
        if self.lines is None:
            path = "/home/alice/.ssh/authorized_keys"
            cause = f"Failed to open file \u201c{path}\u201d: No such file or directory"
            raise AgentError(f"failed to read '{path}': {cause}")
        lines = [line.strip() for line in self.lines]
        return {"keys": [line for line in reversed(lines) if line and not line.startswith("#")]}

    def add(self, arguments: Mapping[str, Any]) -> Any:
        self._check(arguments)
        kept = [] if arguments.get("reset") else self.lines or []
        self.lines = kept + [key for key in arguments["keys"] if key not in kept]
        return {}

    def remove(self, arguments: Mapping[str, Any]) -> Any:
        self._check(arguments)
        self.lines = [line for line in self.lines or [] if line not in arguments["keys"]]
        return {}


def run(agent: SocketAgent, *keys: str, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    result = run_operation(OPERATION, agent, options(*keys, **given), check_mode=check_mode, diff=True)
    assert set(result) <= returned("qga_authorized_keys") | {"changed", "diff", "warnings"}
    return result


def test_add(scripted: Start, connect: Connect) -> None:
    file = File()
    server = scripted(file.answers())
    agent = connect(server)
    checked = run(agent, A, B, check_mode=True)
    assert ADD not in server.work
    result = run(agent, A, B)
    assert result == checked
    assert result["changed"] and result[NAME] == [A, B]
    assert file.lines == [A, B, ""]
    header = "authorized keys of alice"
    assert result["diff"] == [
        {"before": {NAME: []}, "after": {NAME: [A, B]}, "before_header": header, "after_header": header}
    ]
    assert run(agent, B, A) == {"changed": False, "user": "alice", NAME: [A, B]}
    assert server.work.count(ADD) == 1


def test_remove_and_replace(scripted: Start, connect: Connect) -> None:
    file = File("# comment", A, f"  {B}")
    agent = connect(scripted(file.answers()))
    assert run(agent, A, state="absent")[NAME] == [B]
    assert file.lines == ["# comment", f"  {B}", ""]
    assert not run(agent, A, state="absent")["changed"]
    assert not run(agent, B)["changed"]
    assert run(agent, C, B, exclusive=True)[NAME] == [C, B]
    assert file.lines == [C, B, ""]
    assert not run(agent, C, B, exclusive=True)["changed"]


def test_line_that_the_agent_does_not_remove(scripted: Start, connect: Connect) -> None:
    agent = connect(scripted(File(f"  {A}", B).answers()))
    with pytest.raises(OperationError, match="blanks around them") as caught:
        run(agent, A, state="absent")
    assert caught.value.result == {NAME: [A, B]}


class Disk:
    """The files of a guest as guest-file-* reads them: /etc/passwd, alice's keys, and what the kernel tells."""

    def __init__(self, keys: File, **others: str) -> None:
        self.keys = keys
        self.others = {"/etc/passwd": "root:x:0:0::/root:/bin/sh\nalice:x:1:1::/home/it's alice:/bin/sh\n"}
        self.others.update(others)
        self.open: dict[int, bytes] = {}
        self.opens: Counter[str] = Counter()

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            **self.keys.answers(),
            "guest-file-open": self.opened,
            "guest-file-read": self.read,
            "guest-file-close": lambda arguments: {},
        }

    def opened(self, arguments: Mapping[str, Any]) -> int:
        path = arguments["path"]
        self.opens[path] += 1
        if path == "/home/it's alice/.ssh/authorized_keys" and self.keys.lines is not None:
            text = "\n".join(self.keys.lines)
        elif path in self.others:
            text = self.others[path]
        else:
            raise AgentError(f"failed to open file '{path}' (mode: 'r'): No such file or directory")
        self.open[len(self.open)] = text.encode()
        return len(self.open) - 1

    def read(self, arguments: Mapping[str, Any]) -> Any:
        data = self.open[arguments["handle"]][: arguments["count"]]
        self.open[arguments["handle"]] = self.open[arguments["handle"]][len(data) :]
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": not data}


def test_file_that_is_known_is_written_anew(scripted: Start, connect: Connect) -> None:
    file = File(f"  {FREE_A}", "", B)
    agent = connect(scripted(Disk(file).answers()))
    assert run(agent, OTHER_A)[NAME] == [OTHER_A, B]
    assert file.lines == [OTHER_A, B, ""]
    assert run(agent, C)[NAME] == [OTHER_A, B, C]
    assert file.lines == [OTHER_A, B, C, ""], "no empty line either"
    assert run(agent, A, state="absent")[NAME] == [B, C]
    assert file.lines == [B, C, ""]


def test_comments_are_kept(scripted: Start, connect: Connect) -> None:
    file = File("# my keys", A, B, "")
    agent = connect(scripted(Disk(file).answers()))
    assert run(agent, OTHER_A)[NAME] == [B, OTHER_A]
    assert file.lines == ["# my keys", B, OTHER_A, ""]


class RealFile:
    """The authorized_keys of alice in a directory here; programs find alice, and the agent has no commands for keys."""

    def __init__(self, guest: Guest, content: bytes | None) -> None:
        self.guest = guest
        self.home = guest.directory / "it's home"
        self.home.mkdir()
        self.path = self.home / ".ssh" / "authorized_keys"
        if content is not None:
            self.path.parent.mkdir()
            self.path.write_bytes(content)
        self.uid = os.getuid() or 12345
        self.give()
        alice = f"alice:x:{self.uid}:{os.getgid()}:A:{self.home}:/bin/sh"
        getent = guest.tools / "getent"
        getent.write_text(f"#!/bin/sh\necho {shlex.quote(alice)}\n")
        getent.chmod(0o755)

    def give(self) -> None:
        """Have all that is there be alice's."""
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, self.uid, -1, follow_symlinks=False)

    @property
    def lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")


LATIN = f"{A} m\xfcller".encode("latin-1")
LATIN_B = f"{B} stra\xdfe".encode("latin-1")


@pytest.mark.parametrize(
    ("before", "keys", "given", "after"),
    [
        ([LATIN], [A], ABSENT, []),
        ([LATIN], [A], {}, [A.encode()]),
        (
            [b"# \xfc", b" " + LATIN, LATIN_B, LATIN],
            [OTHER_A, C],
            {},
            [b"# \xfc", OTHER_A.encode(), LATIN_B, C.encode()],
        ),
        ([b"#", LATIN_B, LATIN], [A], ABSENT, [b"#", LATIN_B]),
        ([b"# blanks", b"  " + A.encode(), LATIN_B], [A], ABSENT, [b"# blanks", LATIN_B]),
        ([LATIN], [C], {}, [LATIN, C.encode()]),
        ([b"# \xfc", LATIN], [C], EXCLUSIVE, [C.encode()]),
    ],
)
def test_lines_that_agents_list_otherwise(
    scripted: Start,
    connect: Connect,
    guest: Guest,
    before: list[bytes],
    keys: list[str],
    given: dict[str, Any],
    after: list[bytes],
) -> None:
    """The others stay as they are."""
    file = RealFile(guest, b"\n".join(before))
    agent = connect(scripted(guest.answers()))
    result = run(agent, *keys, **given)
    assert result["changed"] and len(result[NAME]) == len([line for line in after if not line.startswith(b"#")])
    assert file.lines == [*after, b""]
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert not run(agent, *keys, **given)["changed"]


def test_contact_is_lost_after_a_file_was_written(
    scripted: Start, connect: Connect, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(agent: SocketAgent) -> bool:
        raise ConnectError("gone", command="guest-file-open")

    monkeypatch.setattr(qga_authorized_keys, "enforces_selinux", gone)
    file = RealFile(guest, None)
    with pytest.raises(OperationError, match="guest-exec was run, and then guest-file-open was not sent: gone"):
        run(connect(scripted(guest.answers())), A)
    assert file.path.read_text() == f"{A}\n"


def test_directory_is_made(scripted: Start, connect: Connect, guest: Guest) -> None:
    file = RealFile(guest, None)
    server = scripted(guest.answers())
    agent = connect(server)
    assert run(agent, A, state="absent") == {"changed": False, "user": "alice", NAME: []}
    assert run(agent, A, check_mode=True)["changed"] and os.listdir(file.home) == []
    before = len(server.work)
    assert run(agent, A)["changed"]
    assert file.path.read_text() == f"{A}\n"
    assert [path.stat().st_mode & 0o777 for path in (file.path.parent, file.path)] == [0o700, 0o600]
    assert os.listdir(file.home) == [".ssh"] and os.listdir(file.path.parent) == [NAME]
    assert {path.stat().st_uid for path in (file.path.parent, file.path)} == {file.uid}
    sent = [command for command in server.work[before:] if command != "guest-exec-status"]
    assert sent == ["guest-exec"] * 4 + ["guest-file-open"], "look, look again, make the directory, write; SELinux"
    assert not run(agent, A)["changed"]
    assert server.work[before:].count("guest-exec") == 5


@pytest.mark.parametrize("there", ["directory", "link"])
def test_directory_that_is_exchanged_when_it_is_made(
    scripted: Start, connect: Connect, guest: Guest, there: str
) -> None:
    """The user puts another directory of root's in its place, or a link to one."""
    file = RealFile(guest, None)
    (other := guest.directory / "other").mkdir(mode=0o700)
    (file.home / "inner").mkdir(mode=0o700)
    (file.home / "inner" / "theirs").touch()
    puts = "mv inner .ssh" if there == "directory" else "ln -s ../other .ssh"
    (guest.tools / "mkdir").write_text(f'#!/bin/sh\n/bin/mkdir "$@" && /bin/rmdir .ssh && {puts}\n')
    (guest.tools / "mkdir").chmod(0o755)
    with pytest.raises(OperationError, match=r"cannot make .*/\.ssh in the guest"):
        run(connect(scripted(guest.answers())), A)
    assert os.listdir(other) == [] and not file.path.exists()
    if there == "directory":
        assert file.path.parent.stat().st_uid == os.getuid(), "it was not given away"


@pytest.mark.parametrize("what", ["link", "other's", "directory", "fifo", "large"])
def test_file_that_is_not_the_users(scripted: Start, connect: Connect, guest: Guest, what: str) -> None:
    file = RealFile(guest, b"x" * ((1 << 20) + 1) if what == "large" else f"{A}\n".encode())
    if what != "large":
        file.path.unlink()
    if what == "link":
        file.path.symlink_to("/etc/passwd")
    elif what == "other's":
        file.path.parent.rmdir()
        file.path.parent.symlink_to("/etc")
    elif what == "directory":
        file.path.mkdir()
    elif what == "fifo":
        os.mkfifo(file.path)
    file.give()
    agent = connect(scripted(guest.answers()))
    there = file.path if what != "other's" else file.path.parent
    before = os.lstat(there).st_ino
    for given in ({}, EXCLUSIVE):
        with pytest.raises(OperationError, match=r"is a link to what|which an unprivileged|not a regular|more than"):
            run(agent, A, **given)
    assert os.lstat(there).st_ino == before


@pytest.mark.parametrize("what", ["file", "fifo", "link", "nothing"])
def test_keys_that_qga_info_tells(scripted: Start, connect: Connect, guest: Guest, what: str) -> None:
    """By a program: the agent's own command would wait at a FIFO, and follow a link."""
    file = RealFile(guest, f"# alice's\n{A}\n\nsecret\n {B}\n".encode())
    if what != "file":
        file.path.unlink()
    if what == "fifo":
        os.mkfifo(file.path)
    elif what == "link":
        file.path.symlink_to("/etc/passwd")
    file.give()
    server = scripted(guest.answers())
    spec = argument_spec(qga_info.OPERATION)
    given = {**{name: option.get("default") for name, option in spec.items()}, "authorized_keys_of": ["alice"]}
    result = run_operation(qga_info.OPERATION, connect(server), {**given, "gather_subset": ["!all"]})
    expected = {"file": [B, HIDDEN, A], "nothing": []}.get(what)
    assert result.get(NAME, {}).get("alice") == expected
    reason = {"fifo": "is not a regular file", "link": "is a link to what is not that user's"}.get(what, "")
    assert reason in result["unavailable"].get(f"{NAME} of alice", "")
    assert (expected is None) == bool(result["unavailable"])


def test_file_of_the_user_that_is_elsewhere(scripted: Start, connect: Connect, guest: Guest) -> None:
    """A link to it is replaced, as the agent does, too."""
    file = RealFile(guest, f"{A}\n".encode())
    file.path.rename(file.home / "mine")
    file.path.symlink_to("../mine")
    file.give()
    assert run(connect(scripted(guest.answers())), B)[NAME] == [A, B]
    assert not file.path.is_symlink() and (file.home / "mine").read_text() == f"{A}\n"


def test_user_whom_no_program_finds(scripted: Start, connect: Connect, guest: Guest) -> None:
    with pytest.raises(OperationError, match=r"keys of no-such-user .* Is there such a user in the guest"):
        run(connect(scripted(guest.answers())), A, user="no-such-user")


@pytest.mark.parametrize("check_mode", [True, False])
def test_lines_that_the_agent_does_not_know_and_may_not_change(
    scripted: Start, connect: Connect, check_mode: bool
) -> None:
    file = File(f"{A} m\ufffdller")
    agent = connect(scripted(file.answers()))
    for given in ({}, ABSENT):
        with pytest.raises(OperationError, match=r"not UTF-8 .* exclusive=true rewrites the file"):
            run(agent, A, check_mode=check_mode, **given)
    assert file.lines == [f"{A} m\ufffdller"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_all_that_is_needed_is_known_to_be_allowed_first(scripted: Start, connect: Connect, check_mode: bool) -> None:
    file = File("# comment", OTHER_A)
    answers = {name: answer for name, answer in Disk(file).answers().items() if name != REMOVE}
    agent = connect(scripted(answers, blocked={REMOVE: f"Command {REMOVE} has been disabled"}))
    with pytest.raises(CommandUnavailable, match=f"{REMOVE} was not run"):
        run(agent, A, check_mode=check_mode)
    assert file.lines == ["# comment", OTHER_A]
    assert run(agent, C)["changed"], "that needs no removal"


def test_file_that_is_changed_meanwhile_is_left_alone(scripted: Start, connect: Connect, guest: Guest) -> None:
    file = RealFile(guest, LATIN)
    agent = connect(scripted(guest.answers()))
    planned = OPERATION.plan(OPERATION.read(GuestExec(agent), options(A)), options(A))
    file.path.write_bytes(LATIN_B)
    with pytest.raises(OperationError, match="was changed meanwhile; nothing was written"):
        OPERATION.apply(GuestExec(agent), planned)
    assert file.path.read_bytes() == LATIN_B


def elsewhere(arguments: Mapping[str, Any], guest: Guest) -> Any:
    """Start a program where there is no /proc/version."""
    data = base64.b64decode(arguments["input-data"]).replace(b"/proc/version", b"/nonexistent")
    return guest.start({**arguments, "input-data": base64.b64encode(data).decode()})


@pytest.mark.parametrize("link", ["", "directory", "file"])
def test_programs_that_are_not_those_of_linux(
    scripted: Start, connect: Connect, guest: Guest, tmp_path: Path, link: str
) -> None:
    """The agent does it, unless there is a link that it would follow."""
    RealFile(guest, None)
    (home := tmp_path / "home").mkdir()
    if link == "directory":
        (home / ".ssh").symlink_to("..")
    elif link == "file":
        (home / ".ssh").mkdir()
        (home / ".ssh" / NAME).symlink_to("../mine")
    disk = Disk(File(), **{"/etc/passwd": f"alice:x:1:1::{home}:/bin/sh\n"})
    server = scripted(
        {
            **disk.answers(),
            "guest-exec": lambda arguments: elsewhere(arguments, guest),
            "guest-exec-status": guest.status,
        }
    )
    if link:
        with pytest.raises(OperationError, match=r"cannot change the keys of alice in the guest: .* is a link"):
            run(connect(server), A)
    else:
        assert run(connect(server), A)["changed"]
    assert server.work.count(ADD) == (0 if link else 1)
    assert disk.opens["/etc/passwd"] == 1


@pytest.mark.parametrize(
    "said", ["a", "", "0:0", "x:0:/root\nfile\n", "0:-1:/root\nfile\n", "0:0:root\nbare\n", "0:0:/\0\nbare\n"]
)
def test_nonsense_of_the_guest_s_programs(scripted: Start, connect: Connect, said: str) -> None:
    ended = {"exited": True, "exitcode": 0, "out-data": base64.b64encode(said.encode()).decode()}
    agent = connect(scripted({"guest-exec": {"pid": 1}, "guest-exec-status": ended}))
    with pytest.raises(OperationError, match="makes no sense"):
        run(agent, A)


def test_guest_without_a_shell(scripted: Start, connect: Connect) -> None:
    """Windows: the agent does it."""

    def start(arguments: Mapping[str, Any]) -> Any:
        raise AgentError("Failed to execute helper program (No such file or directory)")

    file = File()
    assert run(connect(scripted({**file.answers(), "guest-exec": start, "guest-exec-status": {}})), A)["changed"]
    assert file.lines == [A, ""]


def enforcing(file: File) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    return Disk(file, **{"/sys/fs/selinux/enforce": "1"}).answers()


def labels(guest: Guest, script: str) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """Return the answers of a guest that enforces SELinux, where restorecon does that."""
    (guest.tools / "restorecon").write_text(f"#!/bin/sh\n{script}\n")
    (guest.tools / "restorecon").chmod(0o755)
    (enforce := guest.directory / "enforce").write_text("1")
    opens = guest.answers()["guest-file-open"]

    def opened(arguments: Mapping[str, Any]) -> Any:
        return opens({**arguments, "path": arguments["path"].replace("/sys/fs/selinux/enforce", str(enforce))})

    return {**guest.answers(), "guest-file-open": opened}


def test_what_is_made_is_labelled(scripted: Start, connect: Connect, guest: Guest) -> None:
    """sshd may not read it until then, where SELinux is enforced."""
    file = RealFile(guest, None)
    agent = connect(scripted(labels(guest, f"printf '%s|' \"$@\" >>{shlex.quote(f'{guest.directory}/labelled')}")))
    run(agent, A)
    assert (guest.directory / "labelled").read_text() == f"-R|{file.home}/.ssh|"
    assert "warnings" not in run(agent, B)


def test_guest_that_is_frozen_before_it_tells_whether_it_labels(scripted: Start, connect: Connect) -> None:
    server = scripted({**enforcing(File()), "guest-fsfreeze-status": "thawed"})

    def freezes(session: Session, request: Request) -> None:
        answers(session, request)
        server.freeze(10)

    server.then(GET, answers, freezes)  # the second time to see whether the key is there
    assert "SELinux is enforced" in run(connect(server), A)["warnings"][0]


@pytest.mark.parametrize("programs", [True, False])
def test_what_cannot_be_labelled(scripted: Start, connect: Connect, guest: Guest, programs: bool) -> None:
    file = RealFile(guest, None)
    home = file.home if programs else "/home/it's alice"
    agent = connect(scripted(labels(guest, "exit 127") if programs else enforcing(File())))
    (warning,) = run(agent, A)["warnings"]
    assert "SELinux is enforced in the guest" in warning
    assert f"Run restorecon -R {shlex.quote(str(home))}/.ssh there" in warning
    assert ("exit status 127" if programs else "may not run programs") in warning


def test_agent_that_lists_in_another_order(scripted: Start, connect: Connect) -> None:
    file = File(A)
    answers = {**file.answers(), GET: lambda arguments: {"keys": [line for line in file.lines or [] if line]}}
    assert run(connect(scripted(answers)), B, C)["changed"]


def test_user_that_does_not_exist(scripted: Start, connect: Connect) -> None:
    agent = connect(scripted(File().answers()))
    for check_mode in (True, False):
        with pytest.raises(CommandError, match=r"Success\. Is there such a user in the guest"):
            run(agent, A, user="nosuch", check_mode=check_mode)


def test_file_that_cannot_be_read(scripted: Start, connect: Connect) -> None:
    def get(arguments: Mapping[str, Any]) -> Any:
        raise AgentError("failed to read '/x': Error reading file \u201c/x\u201d: Is a directory")

    with pytest.raises(GuestFileError, match="Is a directory"):
        run(connect(scripted({**File().answers(), GET: get})), A)


@pytest.mark.parametrize(("state", "command"), [("present", ADD), ("absent", REMOVE)])
def test_blocked(scripted: Start, connect: Connect, state: str, command: str) -> None:
    answers = {name: answer for name, answer in File().answers().items() if name != command}
    server = scripted(answers, blocked={command: f"Command {command} has been disabled"})
    with pytest.raises(CommandUnavailable, match=f"{command} was not run"):
        run(connect(server), A, state=state, check_mode=True)
    assert GET not in server.work


def test_agent_that_is_too_old(scripted: Start, connect: Connect) -> None:
    with pytest.raises(CommandUnavailable, match=r"came with version 5\.2"):
        run(connect(scripted()), A)


@pytest.mark.parametrize("reply", [{}, {"keys": "x"}, {"keys": [1]}])
def test_reply_that_is_not_as_in_the_schema(scripted: Start, connect: Connect, reply: Any) -> None:
    with pytest.raises(ProtocolError):
        run(connect(scripted({**File().answers(), GET: reply})), A)
