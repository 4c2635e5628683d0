# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
    OutcomeUnknownError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_user_password import COMMAND, OPERATION, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails, swallows

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]

SHA512 = "$6$saltsalt$" + "q" * 86


def options(**given: Any) -> dict[str, Any]:
    return {"user": "alice", "password": "s3cret", "crypted": False, **given}


# plan


@pytest.mark.parametrize("password", ["s3cret", "x", " a b ", "ä€", "a:b", "$6$abc$def", "!", "'\"$(id)"])
def test_plain(password: str) -> None:
    planned = plan(None, options(password=password))
    assert planned.changes
    assert base64.b64decode(planned.todo["password"]).decode() == password
    assert {**planned.todo, "password": None} == {"username": "alice", "password": None, "crypted": False}
    assert not planned.warnings
    assert not planned.diff()


@pytest.mark.parametrize(
    "crypted",
    [
        SHA512,
        "$6$rounds=656000$saltsalt$" + "q" * 86,
        "$5$saltsalt$" + "q" * 43,
        "$1$saltsalt$" + "q" * 22,
        "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$" + "q" * 43,
        "$2b$12$" + "q" * 53,
        "$md5,rounds=904$saltsalt$$" + "q" * 22,
        "!" + SHA512,
        "!!" + SHA512,
        "!",
        "!!",
        "*",
    ],
)
def test_crypted(crypted: str) -> None:
    planned = plan(None, options(password=crypted, crypted=True))
    assert base64.b64decode(planned.todo["password"]).decode() == crypted
    assert planned.todo["crypted"] is True
    assert not planned.warnings


@pytest.mark.parametrize(
    "crypted",
    ["s3cret", "$6$abc$def", "$6$", "$$" + "q" * 40, "abcdefghijklm", f" {SHA512}", f"{SHA512}:", "*!", f"*{SHA512}"],
)
def test_what_is_no_hash_is_refused_and_not_shown(crypted: str) -> None:
    with pytest.raises(OperationError, match="no hash of the form") as caught:
        plan(None, options(password=crypted, crypted=True))
    assert crypted not in str(caught.value)


@pytest.mark.parametrize("crypted", [False, True])
@pytest.mark.parametrize("password", ["", "two\nlines", "end\n", "x\r", "x\0y"])
def test_what_no_agent_takes_is_refused_and_not_shown(password: str, crypted: bool) -> None:
    with pytest.raises(OperationError, match="empty, or has a line break") as caught:
        plan(None, options(password=password, crypted=crypted))
    assert not password or password not in str(caught.value)


def test_hash_that_is_set_as_a_plain_password() -> None:
    (warning,) = plan(None, options(password=SHA512)).warnings
    assert "crypted=true is not given" in warning and SHA512 not in warning


# With an agent


def run(agent: SocketAgent, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    result = run_operation(OPERATION, agent, options(**given), check_mode=check_mode, diff=True)
    assert set(result) <= returned("qga_user_password") | {"changed"}
    return result


def test_set(scripted: Start, connect: Connect) -> None:
    server = scripted({COMMAND: {}})
    assert run(connect(server)) == {"changed": True, "user": "alice"}
    assert server.work == ["guest-info", COMMAND]
    assert server.requests[-1].arguments == {"username": "alice", "password": "czNjcmV0", "crypted": False}


def test_check_mode(scripted: Start, connect: Connect) -> None:
    server = scripted({COMMAND: {}})
    assert run(connect(server), check_mode=True) == {"changed": True, "user": "alice"}
    assert server.work == ["guest-info"]


def test_refused_before_it_is_sent(scripted: Start, connect: Connect) -> None:
    server = scripted({COMMAND: {}})
    with pytest.raises(OperationError):
        run(connect(server), crypted=True)
    assert COMMAND not in server.work


@pytest.mark.parametrize("check_mode", [False, True])
def test_blocked(scripted: Start, connect: Connect, check_mode: bool) -> None:
    server = scripted(blocked={COMMAND: f"Command {COMMAND} has been disabled"})
    with pytest.raises(CommandUnavailable, match="disabled by the guest's administrator"):
        run(connect(server), check_mode=check_mode)
    assert COMMAND not in server.work


def test_user_that_does_not_exist(scripted: Start, connect: Connect) -> None:
    server = scripted({COMMAND: {}})
    server.then(COMMAND, fails("child process has failed to set user password\n"))
    with pytest.raises(CommandError, match=r"failed to set user password\. Does the user exist in the guest"):
        run(connect(server))


def test_lost_reply_is_not_repeated(scripted: Start, connect: Connect) -> None:
    server = scripted({COMMAND: {}})
    server.then(COMMAND, swallows)
    with pytest.raises(OutcomeUnknownError) as caught:
        run(connect(server))
    assert server.work.count(COMMAND) == 1
    assert "within 60 s" in str(caught.value)  # longer than chpasswd waits for a lock
    assert "s3cret" not in str(caught.value) and "czNjcmV0" not in str(caught.value)


def test_nothing_is_logged(scripted: Start, connect: Connect) -> None:
    lines: list[str] = []
    run(connect(scripted({COMMAND: {}}), log=lines.append))
    assert lines and not [line for line in lines if "s3cret" in line or "czNjcmV0" in line]
