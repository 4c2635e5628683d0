# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OperationError,
    OutcomeUnknownError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ExecResult, GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_exec import OPERATION, described, plan, program, shell_command
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._guest.test_login_shell import tool
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted, answers, swallows

NO_DIRECTORY = b"{ echo 'qga_exec: the program was not run, because of chdir' >&2; exit 1; }"


def options(**given: Any) -> dict[str, Any]:
    """Return the options of a task, with the exact output unless they say otherwise."""
    defaults = {name: option.get("default") for name, option in OPERATION.spec.items()}
    return {**defaults, "strip_empty_ends": False, **given}


# plan


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ({"shell": "ls -l | wc"}, b"ls -l | wc"),
        ({"shell": ""}, b""),
        ({"argv": ["ls"]}, b"exec ls"),
        ({"argv": ["ls", "-l", "a b", "", "it's", "$x", "\n"]}, b"exec ls -l 'a b' '' 'it'\"'\"'s' '$x' '\n'"),
        ({"argv": ["\u00fc", "\udcff"]}, b"exec '\xc3\xbc' '\xff'"),
        ({"cmd": "uname  -a"}, b"exec uname -a"),
        ({"cmd": "echo 'a b' \"it's\" c\\ d $HOME | *"}, b"exec echo 'a b' 'it'\"'\"'s' 'c d' '$HOME' '|' '*'"),
        ({"shell": "x", "chdir": "/a b"}, b"cd '/a b' || " + NO_DIRECTORY + b"\nx"),
        ({"shell": "x", "env": {"A": "1 2", "_b3": "'"}}, b"export A='1 2'\nexport _b3=''\"'\"''\nx"),
        ({"shell": "x", "env": {"N": 5, "T": True}}, b"export N=5\nexport T=True\nx"),
        ({"argv": ["x"], "env": {"A": "1"}, "chdir": "/d"}, b"export A=1\ncd /d || " + NO_DIRECTORY + b"\nexec x"),
    ],
)
def test_command(given: dict[str, Any], command: bytes) -> None:
    params = options(**given)
    assert shell_command(params, program(params)) == command


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A\n", "Ü", "$(id)"])
def test_environment_variable_that_cannot_be(name: str) -> None:
    with pytest.raises(OperationError, match="cannot be the name"):
        shell_command(options(shell="x", env={name: "1"}), None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"argv": []}, "argv: there is no program in it"),
        ({"cmd": ""}, "cmd: there is no program in it"),
        ({"cmd": " \t"}, "cmd: there is no program in it"),
        ({"cmd": "echo 'a"}, 'cmd: No closing quotation in "echo \'a"'),
        ({"cmd": "echo \\"}, "cmd: No escaped character"),
    ],
)
def test_no_program(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OperationError, match=message):
        program(options(**given))


@pytest.mark.parametrize(
    ("current", "message"),
    [
        ({}, None),
        ({"creates": False}, None),
        ({"removes": True}, None),
        ({"creates": False, "removes": True}, None),
        ({"creates": True}, "not run, since /c exists"),
        ({"removes": False}, "not run, since /r does not exist"),
        ({"creates": True, "removes": True}, "not run, since /c exists"),
        ({"creates": False, "removes": False}, "not run, since /r does not exist"),
    ],
)
def test_plan(current: dict[str, bool], message: str | None) -> None:
    planned = plan(current, options(shell="x", creates="/c", removes="/r"))
    assert planned.changes is (message is None)
    not_run = {"msg": message, "rc": 0, "stdout": "", "stderr": ""}
    assert planned.result == {"cmd": "x", **({} if message is None else not_run)}
    assert planned.unforeseeable is (not current)


# described


def test_described() -> None:
    assert described(ExecResult(3, None, b"out\n", b"\xc3\xbc"), strips=False) == {
        "rc": 3,
        "signal": None,
        "stdout": "out\n",
        "stdout_truncated": False,
        "stderr": "ü",
        "stderr_truncated": False,
    }


@pytest.mark.parametrize(
    ("output", "text"),
    [(b"a\n", "a"), (b"\n a \r\n\n", "\n a "), (b"a\nb", "a\nb"), (b"\n", ""), (b"", ""), (b"a ", "a ")],
)
def test_line_breaks_at_the_end(output: bytes, text: str) -> None:
    answer = described(ExecResult(0, None, output, output), strips=True)
    assert (answer["stdout"], answer["stderr"]) == (text, text)
    assert "stdout_b64" not in answer


def test_output_that_is_not_utf8_comes_in_base64_too() -> None:
    answer = described(ExecResult(None, 9, b"a\xff\n", b"\xfe"), strips=True)
    assert (answer["stdout"], answer["stderr"]) == ("a\ufffd", "\ufffd")
    assert base64.b64decode(answer["stdout_b64"]) == b"a\xff\n"
    assert base64.b64decode(answer["stderr_b64"]) == b"\xfe"
    assert "warnings" not in answer


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_truncation_is_never_silent(stream: str) -> None:
    answer = described(ExecResult(0, None, **{f"{stream}_truncated": True}), strips=True)  # type: ignore[arg-type]
    assert answer[f"{stream}_truncated"] is True
    (warning,) = answer["warnings"]
    assert stream in warning


# In a guest that is this machine


def run(agent: SocketAgent, check_mode: bool = False, **given: Any) -> dict[str, Any]:
    result = run_operation(OPERATION, agent, options(**given), check_mode=check_mode)
    assert set(result) - {"changed", "skipped"} <= returned("qga_exec")
    return result


def failure(agent: SocketAgent, **given: Any) -> OperationError:
    with pytest.raises(OperationError) as caught:
        run(agent, **given)
    assert set(caught.value.result) - {"changed"} <= returned("qga_exec")
    return caught.value


def test_run(agent: SocketAgent, tmp_path: Path) -> None:
    result = run(agent, shell='echo "$A"; pwd; cat >&2', env={"A": "a\nb"}, chdir=str(tmp_path), stdin="in")
    assert result.pop("elapsed") >= 0
    assert result == {
        "changed": True,
        "cmd": 'echo "$A"; pwd; cat >&2',
        "rc": 0,
        "signal": None,
        "stdout": f"a\nb\n{tmp_path}\n",
        "stdout_truncated": False,
        "stderr": "in\n",
        "stderr_truncated": False,
    }


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        ({}, ""),
        ({"stdin": ""}, "\n"),
        ({"stdin": "a"}, "a\n"),
        ({"stdin": "a\n"}, "a\n\n"),
        ({"stdin": "a", "stdin_add_newline": False}, "a"),
        ({"stdin": "", "stdin_add_newline": False}, ""),
        ({"stdin": "ü\n\n b", "stdin_add_newline": False}, "ü\n\n b"),
    ],
)
def test_input(agent: SocketAgent, given: dict[str, Any], arrives: str) -> None:
    assert run(agent, argv=["cat"], **given)["stdout"] == arrives


@pytest.mark.parametrize("timeout", [None, 60])
def test_input_that_there_is_no_room_for_in_run(agent: SocketAgent, guest: Guest, timeout: float | None) -> None:
    """It is kept in /dev/shm, and the program is run once."""
    tool(guest, "cat", f"case $(readlink /proc/$$/fd/1) in {guest.prefix}*) exit 1 ;; esac; exec /bin/cat")
    ran = f"echo ran >>{guest.tools}/ran; wc -c"
    assert run(agent, shell=ran, stdin="x" * 300_000, stdin_add_newline=False, timeout=timeout)["stdout"] == "300000\n"
    assert (guest.tools / "ran").read_text() == "ran\n"


def test_arguments_are_not_interpreted(agent: SocketAgent) -> None:
    assert run(agent, argv=["printf", "%s|", "$HOME", "a b", "*", "it's"])["stdout"] == "$HOME|a b|*|it's|"


def test_program_that_fails(agent: SocketAgent) -> None:
    error = failure(agent, shell="echo out; echo err >&2; exit 3")
    assert str(error) == f"guest agent at {agent.name}: the program failed: exit status 3: err"
    assert error.result["changed"] is True, "as ansible.builtin.command says, whatever failed_when makes of it"
    assert (error.result["rc"], error.result["stdout"], error.result["stderr"]) == (3, "out\n", "err\n")


def test_output_as_of_ansible_builtin_command(agent: SocketAgent) -> None:
    assert run(agent, cmd="printf 'a b\n\n'", strip_empty_ends=True)["stdout"] == "a b"
    error = failure(agent, cmd="ls /nonexistent", strip_empty_ends=True)
    assert error.result["cmd"] == ["ls", "/nonexistent"] and not error.result["stderr"].endswith("\n")


def test_program_that_a_signal_ends(agent: SocketAgent) -> None:
    error = failure(agent, shell="kill -9 $$")
    assert "signal 9" in str(error)
    assert (error.result["rc"], error.result["signal"]) == (None, 9)


def test_program_that_does_not_exist(agent: SocketAgent) -> None:
    error = failure(agent, argv=["/nonexistent/program"])
    assert error.result["rc"] == 127
    assert "exit status 127: " in str(error) and "/nonexistent/program: not found" in str(error)


@pytest.mark.parametrize(
    ("stderr", "shown"),
    [
        ("", ""),
        ("\n \n", ""),
        ("a\nb\n\n", ": b"),
        ("\x1b[2J\x07bad", r": \x1b[2J\x07bad"),
        ("x" * 999, f": {150 * 'x'} … {150 * 'x'}"),
    ],
)
def test_last_words_of_a_program(agent: SocketAgent, stderr: str, shown: str) -> None:
    error = failure(agent, shell="cat >&2; exit 5", stdin=stderr, stdin_add_newline=False)
    assert error.message == f"the program failed: exit status 5{shown}"


def test_directory_that_does_not_exist(agent: SocketAgent) -> None:
    error = failure(agent, argv=["true"], chdir="/nonexistent")
    assert error.message.startswith("chdir: the guest cannot change to /nonexistent (")
    assert str(error).endswith("). The program was not run.")
    assert error.result["rc"] == 1 and error.result["changed"] is False


def test_program_that_fails_as_a_missing_directory_does(agent: SocketAgent, tmp_path: Path) -> None:
    assert "exit status 1" in str(failure(agent, shell="exit 1", chdir=str(tmp_path)))


def test_program_that_takes_too_long(agent: SocketAgent, guest: Guest, clock: Clock) -> None:
    (guest.tools / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.05\n")
    (guest.tools / "sleep").chmod(0o755)
    error = failure(agent, shell="echo begun; exec /bin/sleep 60", timeout=3)
    assert "more than 3 s" in str(error) and "was killed" in str(error)
    assert error.result["signal"] == 15
    assert error.result["stdout"] == "begun\n"
    assert error.result["elapsed"] >= 3
    assert guest.programs == {}


def test_agent_that_is_gone_when_the_program_is_to_be_ended(
    agent: SocketAgent, server: Scripted, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not sent is the command that ends it; the program was started."""

    def some_time_later(_executor: GuestExec, pid: int) -> int:
        clock.advance(1)
        return pid

    monkeypatch.setattr(GuestExec, "process_id", some_time_later)
    server.answers.update({"guest-exec": {"pid": 4711}, "guest-exec-status": {"exited": False}})
    server.then("guest-sync-delimited", answers, swallows, swallows)
    with pytest.raises(OutcomeUnknownError) as caught:
        run(agent, shell="x", timeout=3)
    assert "guest-exec may have run: the program with pid 4711 could not be ended" in str(caught.value)
    assert server.work.count("guest-exec") == 1


def test_program_that_cannot_be_ended(agent: SocketAgent, server: Scripted, clock: Clock) -> None:
    server.answers["guest-exec"] = {"pid": 4711}
    server.answers["guest-exec-status"] = lambda arguments: (
        {"exited": False} if arguments["pid"] == 4711 else {"exited": True, "exitcode": 0}
    )
    starts = iter([{"pid": 4711}, {"pid": 4712}])
    server.answers["guest-exec"] = lambda arguments: next(starts)
    error = failure(agent, shell="x", timeout=3)
    assert "could not be ended; its pid is 4711" in str(error)
    assert "rc" not in error.result


def test_program_whose_pid_nobody_tells(
    agent: SocketAgent, server: Scripted, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 0 is no program: everything has been started by it."""
    server.answers.update({"guest-exec": {"pid": 4711}, "guest-exec-status": {"exited": False}})
    monkeypatch.setattr(GuestExec, "process_id", lambda _executor, pid: 0)
    error = failure(agent, shell="x", timeout=3)
    assert "could not be ended; nothing tells its pid" in str(error)
    assert server.work.count("guest-exec") == 1


def test_creates_and_removes(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    path = str(tmp_path / "it")
    assert run(agent, shell=f"touch '{path}'", creates=path)["changed"] is True
    assert run(agent, shell=f"touch '{path}'", creates=path) == {
        "changed": False,
        "cmd": f"touch '{path}'",
        "msg": f"not run, since {path} exists",
        "rc": 0,
        "stdout": "",
        "stderr": "",
    }
    assert run(agent, shell=f"rm '{path}'", removes=path)["changed"] is True
    assert run(agent, shell=f"rm '{path}'", removes=path)["changed"] is False
    assert server.work.count("guest-exec") == 2


def test_check_mode_runs_nothing(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    assert run(agent, check_mode=True, cmd="x y") == {"changed": False, "skipped": True, "cmd": ["x", "y"]}
    assert run(agent, check_mode=True, shell="x", creates=str(tmp_path))["changed"] is False
    assert run(agent, check_mode=True, shell="x", removes=str(tmp_path)) == {"changed": True, "cmd": "x"}
    assert "guest-exec" not in server.work


def test_agent_that_may_not_run_programs(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    server = scripted(blocked={"guest-exec": "Command guest-exec has been disabled"})
    with pytest.raises(CommandUnavailable, match="guest-exec"):
        run_operation(OPERATION, connect(server), options(shell="x"))


def test_secrets_are_not_logged() -> None:
    assert set(OPERATION.quiet) == {"stdin", "env"}
