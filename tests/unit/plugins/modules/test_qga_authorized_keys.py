# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    GuestFileError,
    OperationError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Plan, run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_authorized_keys
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


# plan

ABSENT = {"state": "absent"}
EXCLUSIVE = {"exclusive": True}


OTHER_A, FREE_A = f"{A} at work", f'command="ssh-rsa AAAAB3NzaC1yc2E= x" {A}'


@pytest.mark.parametrize(
    ("current", "keys", "given", "after"),
    [
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
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_plan(current: list[str], keys: list[str], given: dict[str, Any], after: list[str], whole: bool) -> None:
    planned = plan(current, *keys, whole=whole, **given)
    assert planned.changes and planned.before == {NAME: current}
    if whole or given is EXCLUSIVE:
        assert planned.todo == ("alice", after, [(ADD, {"username": "alice", "keys": [*after, ""], "reset": True})])
        assert planned.after == {NAME: after}
    # Without knowing all of the file, what is new comes last.
    assert sorted(planned.after[NAME]) == sorted(after)
    assert planned.result == {"user": "alice", NAME: planned.after[NAME]}
    assert not plan(planned.after[NAME], *keys, whole=whole, **given).changes
    file = File(*current)
    for command, arguments in planned.todo[2]:
        file.answers()[command](arguments)
    assert file.lines and [line for line in file.lines if line] == planned.after[NAME]
    assert file.lines[-1] == "", "it ends with a line break"


@pytest.mark.parametrize(
    ("current", "keys", "given"),
    [
        ([A, B], [B], {}),
        ([A], [], {}),
        ([A], [B], ABSENT),
        ([], [], ABSENT),
        ([A, B], [A, B], EXCLUSIVE),
        ([], [], EXCLUSIVE),
    ],
)
def test_nothing_to_do(current: list[str], keys: list[str], given: dict[str, Any]) -> None:
    planned = plan(current, *keys, **given)
    assert not planned.changes
    assert planned.result[NAME] == current


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

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            **self.keys.answers(),
            "guest-file-open": self.opened,
            "guest-file-read": self.read,
            "guest-file-close": lambda arguments: {},
        }

    def opened(self, arguments: Mapping[str, Any]) -> int:
        path = arguments["path"]
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
    """The authorized_keys of alice in a directory here, as agents manage it: byte by byte, but for what they list."""

    def __init__(self, guest: Guest, content: bytes) -> None:
        self.guest = guest
        home = guest.directory / "home"
        (home / ".ssh").mkdir(parents=True)
        self.path = home / ".ssh" / "authorized_keys"
        self.path.write_bytes(content)
        self.passwd = guest.directory / "passwd"
        self.passwd.write_text(f"alice:x:{os.getuid()}:{os.getgid()}::{home}:/bin/sh\n")

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {**self.guest.answers(), "guest-file-open": self.open, GET: self.get, ADD: self.add, REMOVE: self.remove}

    def open(self, arguments: Mapping[str, Any]) -> int:
        is_passwd = arguments["path"] == "/etc/passwd"
        return self.guest.open({**arguments, "path": str(self.passwd)} if is_passwd else arguments)

    @property
    def lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")

    def get(self, arguments: Mapping[str, Any]) -> Any:
        lines = [line.decode("utf-8", "replace").strip() for line in self.lines]
        return {"keys": [line for line in reversed(lines) if line and not line.startswith("#")]}

    def add(self, arguments: Mapping[str, Any]) -> Any:
        kept = [] if arguments.get("reset") else self.lines
        new = [key.encode() for key in arguments["keys"]]
        self.path.write_bytes(b"\n".join(kept + [key for key in new if key not in kept]))
        return {}

    def remove(self, arguments: Mapping[str, Any]) -> Any:
        gone = [key.encode() for key in arguments["keys"]]
        self.path.write_bytes(b"\n".join(line for line in self.lines if line not in gone))
        return {}


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
    ],
)
def test_lines_that_the_agent_does_not_know(
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
    agent = connect(scripted(file.answers()))
    result = run(agent, *keys, **given)
    assert result["changed"] and len(result[NAME]) == len([line for line in after if not line.startswith(b"#")])
    assert file.lines == [*after, b""]
    assert file.path.stat().st_mode & 0o777 == (0o600 if guest.started else 0o644)
    assert not run(agent, *keys, **given)["changed"]


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("without", ["guest-exec", "guest-file-open"])
def test_lines_that_the_agent_does_not_know_and_may_not_change(
    scripted: Start, connect: Connect, guest: Guest, without: str, check_mode: bool
) -> None:
    file = RealFile(guest, LATIN + b"\n")
    answers = file.answers()
    del answers[without]
    agent = connect(scripted(answers))
    for given in ({}, ABSENT):
        with pytest.raises(OperationError, match=r"not UTF-8 .* exclusive=true rewrites the file"):
            run(agent, A, check_mode=check_mode, **given)
    assert file.path.read_bytes() == LATIN + b"\n"


@pytest.mark.parametrize("check_mode", [True, False])
def test_all_that_is_needed_is_known_to_be_allowed_first(
    scripted: Start, connect: Connect, guest: Guest, check_mode: bool
) -> None:
    file = RealFile(guest, f"# comment\n{OTHER_A}".encode())
    answers = file.answers()
    del answers[REMOVE]
    agent = connect(scripted(answers, blocked={REMOVE: f"Command {REMOVE} has been disabled"}))
    with pytest.raises(CommandUnavailable, match=f"{REMOVE} was not run"):
        run(agent, A, check_mode=check_mode)
    assert file.lines == [b"# comment", OTHER_A.encode()]
    assert run(agent, C)["changed"], "that needs no removal"


def test_file_that_is_changed_meanwhile_is_left_alone(
    scripted: Start, connect: Connect, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RealFile(guest, LATIN)
    agent = connect(scripted(file.answers()))
    planned = OPERATION.plan(OPERATION.read(GuestExec(agent), options(A)), options(A))
    file.path.write_bytes(LATIN_B)
    with pytest.raises(OperationError, match="was changed meanwhile; nothing was written"):
        OPERATION.apply(GuestExec(agent), planned)
    assert file.path.read_bytes() == LATIN_B


def enforcing(file: File) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    return Disk(file, **{"/sys/fs/selinux/enforce": "1"}).answers()


def test_what_the_agent_makes_is_labelled(scripted: Start, connect: Connect, guest: Guest) -> None:
    """sshd may not read it until then, where SELinux is enforced."""
    (guest.tools / "restorecon").write_text(f"#!/bin/sh\nprintf '%s|' \"$@\" >>'{guest.directory}/labelled'\n")
    (guest.tools / "restorecon").chmod(0o755)
    programs = {"guest-exec": guest.start, "guest-exec-status": guest.status}
    agent = connect(scripted({**enforcing(File()), **programs}))
    run(agent, A)
    assert (guest.directory / "labelled").read_text() == "-R|/home/it's alice/.ssh|"
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
    (guest.tools / "restorecon").write_text("#!/bin/sh\nexit 127\n")
    (guest.tools / "restorecon").chmod(0o755)
    more = {"guest-exec": guest.start, "guest-exec-status": guest.status} if programs else {}
    agent = connect(scripted({**enforcing(File()), **more}))
    (warning,) = run(agent, A)["warnings"]
    assert "SELinux is enforced in the guest" in warning
    assert "Run restorecon -R '/home/it'\"'\"'s alice'/.ssh there" in warning
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
