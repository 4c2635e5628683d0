# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.release import __version__

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import ChannelLock
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec, run_module
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails, swallows

CORE = tuple(int(number) for number in __version__.split(".")[:2])


def read(agent: Any, params: Any) -> Any:
    return agent.execute("guest-get-time", timeout=None)


def plan(current: Any, params: Any) -> Plan:
    return Plan(
        before={"time": current},
        after={"time": params["time"]},
        todo=params["time"],
        subject="clock",
        warnings=["late"] if params["other"] == "late" else [],
    )


def apply(agent: Any, planned: Plan) -> dict[str, Any]:
    agent.execute("guest-set-time", {"time": planned.todo})
    if planned.todo < 0:
        raise OperationError("time does not run backwards", result={"rc": 1})
    return {"set": planned.todo, "path": "/", "warnings": ["time flies"] if planned.todo > 1000 else []}


OPERATION = Operation(
    {"time": {"type": "int", "required": True}, "secret": {"type": "str"}, "other": {"type": "str"}},
    read,
    plan,
    apply,
    constraints={"mutually_exclusive": [("secret", "other")]},
    quiet=("secret",),
)

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the operation as a module; return what it prints, and its exit status as ``exit``."""

    def as_module(**params: Any) -> dict[str, Any]:
        # Newer cores want to be asked for what the others return unasked.
        how = {"_ansible_inject_invocation": True} if CORE >= (2, 21) else {}
        arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {**how, **params}}).encode()
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", arguments)
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)  # of core 2.19 and later
        with pytest.raises(SystemExit) as caught:
            run_module(OPERATION)
        output = capsys.readouterr().out
        return {**json.loads(output), "exit": caught.value.code}

    return as_module


@pytest.fixture
def server(scripted: Callable[..., Scripted]) -> Scripted:
    return scripted({"guest-get-time": 1, "guest-set-time": {}})


def test_argument_spec() -> None:
    spec = argument_spec(OPERATION)
    assert set(spec) == {"address", "agent_timeout", "frozen_timeout", "libvirt_uri", *OPERATION.spec}
    assert spec["agent_timeout"]["type"] == "float"


def test_change(run: Run, server: Scripted) -> None:
    result = run(address=str(server.path), time=5)
    assert (result["changed"], result["set"], result["exit"]) == (True, 5, 0)
    assert "diff" not in result
    assert server.work == ["guest-get-time", "guest-set-time"]
    assert run(address=f"unix:{server.path}", time=1)["changed"] is False


def test_nothing_is_told_of_the_file_that_has_the_path_of_the_guests_here(run: Run, server: Scripted) -> None:
    result = run(address=str(server.path), time=5)
    assert set(result) == {"changed", "set", "path", "invocation", "exit"}


def test_warnings(run: Run, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda self, text: warned.append(text))
    assert "warnings" not in run(address=str(server.path), time=1001)
    assert warned == [f"unix:{server.path}: time flies"]


def test_check_mode_and_diff(run: Run, server: Scripted) -> None:
    result = run(address=str(server.path), time=5, _ansible_check_mode=True, _ansible_diff=True)
    assert result["changed"] is True and "set" not in result
    assert [(diff["before"], diff["after"]) for diff in result["diff"]] == [({"time": 1}, {"time": 5})]
    assert server.work == ["guest-get-time"]


def test_what_is_quiet_is_not_returned(run: Run, server: Scripted) -> None:
    result = run(address=str(server.path), time=1, secret="hush")
    arguments = result["invocation"]["module_args"]
    assert arguments["secret"] == "NOT_LOGGING_PARAMETER"
    assert "hush" not in json.dumps(result)
    assert arguments["time"] == 1 and arguments["other"] is None
    assert run(address=str(server.path), time=1)["invocation"]["module_args"]["secret"] is None
    failed = run(address="nowhere", time=1, secret="hush")
    assert failed["failed"] and "hush" not in json.dumps(failed)


def test_what_is_quiet_is_not_logged(run: Run, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "log", lambda self, message, log_args=None: logged.append(str(message)))
    run(address=str(server.path), time=1, secret="hush")
    assert "hush" not in str(logged)


@pytest.mark.parametrize("address", [{}, {"address": ""}])
def test_address_is_missing(run: Run, address: dict[str, str]) -> None:
    result = run(time=1, **address)
    assert result["failed"] is True and result["exit"] == 1
    assert "address is required" in result["msg"] and "qemu.guest.qga" in result["msg"]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"address": "vm1", "time": 1}, "not the address of a guest agent"),
        ({"address": "/nonexistent/vm1.qga", "time": 1}, "no such socket"),
        ({"address": "/x"}, "missing required arguments: time"),
        ({"address": "/x", "time": 1, "secret": "a", "other": "b"}, "mutually exclusive"),
        ({"address": "/x", "time": 1, "nope": 1}, "nope"),
        ({"address": "/x", "time": 1, "agent_timeout": 0}, "agent_timeout: 0 is not a number of seconds"),
    ],
)
def test_failure_before_anything_is_sent(run: Run, params: dict[str, Any], text: str) -> None:
    result = run(**params)
    assert result["failed"] is True and result["exit"] == 1
    assert text in result["msg"]


def test_error_says_what_is_known(run: Run, server: Scripted) -> None:
    server.then("guest-set-time", swallows)
    result = run(address=str(server.path), time=5)
    assert result["error"] == {"type": "OutcomeUnknownError", "command": "guest-set-time", "executed": "unknown"}
    assert str(server.path) in result["msg"] and "look at the guest" in result["msg"]
    server.then("guest-set-time", fails("hwclock failed to set hardware clock to system time"))
    result = run(address=str(server.path), time=5)
    assert "hwclock failed" in result["msg"] and result["error"]["executed"] == "yes"


def test_error_of_the_operation_carries_its_result(run: Run, server: Scripted) -> None:
    result = run(address=str(server.path), time=-1)
    msg = f"guest agent at unix:{server.path}: time does not run backwards"
    assert (result["failed"], result["msg"], result["rc"]) == (True, msg, 1)


@pytest.mark.parametrize(("given", "seconds"), [({}, 20), ({"agent_timeout": 7.5}, 7.5)])
def test_timeout(run: Run, server: Scripted, given: dict[str, float], seconds: float) -> None:
    for _attempt in range(2):  # what only reads is repeated once
        server.then("guest-get-time", swallows)
    assert f"within {seconds:g} s" in run(address=str(server.path), time=5, **given)["msg"]


@pytest.mark.parametrize("time", [5, -1])
def test_channel_is_free_afterwards(run: Run, server: Scripted, time: int) -> None:
    run(address=str(server.path), time=time)
    ChannelLock(Address("unix", path=str(server.path))).acquire(Deadline(0))


def test_nothing_else_is_printed(run: Run, tmp_path: Path) -> None:
    assert run(address=str(tmp_path / "vm1.qga"), time=1).keys() == {"failed", "msg", "error", "invocation", "exit"}


def test_warnings_of_the_plan(run: Run, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the module's own means: newer cores take them out of a result only for now."""
    warned: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda self, warning: warned.append(warning))
    result = run(address=str(server.path), time=2, other="late")
    assert warned == [f"unix:{server.path}: late"]
    assert "warnings" not in result
