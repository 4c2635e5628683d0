# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OperationError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Plan, run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec
from ansible_collections.qemu.guest.tests.unit.documentation import MODULES
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails, returns, swallows

PACKAGE = "ansible_collections.qemu.guest.plugins.modules"


class Mute(Agent):
    """An agent that nobody talks to."""

    def _request(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        raise AssertionError("not here")

    def close(self) -> None:
        pass


AGENT = Mute("mute")


class Recorder:
    """An operation that plans ``plan`` and notes what is asked of it."""

    def __init__(self, plan: Plan) -> None:
        self.calls: list[str] = []
        self._plan = plan
        self.operation = Operation({}, self.read, self.plan, self.apply)

    def read(self, agent: Agent, params: Mapping[str, Any]) -> str:
        assert agent is AGENT
        self.calls.append("read")
        return "state"

    def plan(self, current: str, params: Mapping[str, Any]) -> Plan:
        assert (current, params) == ("state", {"p": 1})
        self.calls.append("plan")
        return self._plan

    def apply(self, agent: Agent, plan: Plan) -> dict[str, Any]:
        assert plan is self._plan
        self.calls.append("apply")
        return {"learned": 1}

    def run(self, **how: bool) -> dict[str, Any]:
        return run_operation(self.operation, AGENT, {"p": 1}, **how)


SAME = {"a": 1}
OTHER = {"a": 2}


@pytest.mark.parametrize(
    ("plan", "changed"),
    [
        pytest.param(Plan(), False, id="nothing"),
        pytest.param(Plan(before=SAME, after=dict(SAME)), False, id="as it should be"),
        pytest.param(Plan(before=SAME, after=OTHER), True, id="not as it should be"),
        pytest.param(Plan(before={}, after=SAME), True, id="new"),
        pytest.param(Plan(before=SAME, after={}), True, id="gone"),
        pytest.param(Plan(before=SAME, after=dict(SAME), changed=True), True, id="done whatever is"),
        pytest.param(Plan(before=SAME, after=OTHER, changed=False), False, id="left as it is"),
        pytest.param(Plan(changed=True), True, id="action"),
    ],
)
@pytest.mark.parametrize("diff", [False, True])
def test_changed(plan: Plan, changed: bool, diff: bool) -> None:
    real, dry = Recorder(plan), Recorder(plan)
    result = real.run(diff=diff)
    assert result["changed"] is changed
    assert dry.run(check_mode=True, diff=diff)["changed"] is changed, "check mode says the same"
    assert real.calls == ["read", "plan", *(["apply"] if changed else [])]
    assert dry.calls == ["read", "plan"], "check mode changes nothing"
    assert ("learned" in result) is changed


def test_result() -> None:
    plan = Plan(changed=True, result={"path": "/x", "learned": 0}, warnings=["beware"])
    assert Recorder(plan).run() == {"changed": True, "path": "/x", "learned": 1, "warnings": [f"{AGENT.name}: beware"]}
    assert Recorder(plan).run(check_mode=True)["learned"] == 0
    assert Recorder(Plan()).run() == {"changed": False}


def test_apply_where_nothing_changes() -> None:
    """What it does is no change of the guest, so it is none in the result."""
    recorder = Recorder(Plan(before=SAME, after=dict(SAME), always=True))
    assert recorder.run(check_mode=True) == {"changed": False}
    assert recorder.run() == {"changed": False, "learned": 1}
    assert recorder.calls == ["read", "plan", "read", "plan", "apply"]


@pytest.mark.parametrize(("planned", "applied"), [([], []), (["a"], []), ([], ["b"]), (["a"], ["b"])])
def test_warnings(planned: list[str], applied: list[str]) -> None:
    operation = Operation(
        {},
        lambda agent, params: 1,
        lambda current, params: Plan(changed=True, warnings=planned),
        lambda agent, plan: {"warnings": applied},
    )
    named = [f"{AGENT.name}: {warning}" for warning in planned + applied]
    assert run_operation(operation, AGENT, {}).get("warnings", []) == named
    assert run_operation(operation, AGENT, {}, check_mode=True).get("warnings", []) == named[: len(planned)]


@pytest.mark.parametrize("check_mode", [False, True])
def test_diff(check_mode: bool) -> None:
    plan = Plan(before=SAME, after=OTHER, subject="/x", texts=("a\n", "b\n"))
    headers = {"before_header": "/x", "after_header": "/x"}
    assert Recorder(plan).run(diff=True, check_mode=check_mode)["diff"] == [
        {"before": "a\n", "after": "b\n", **headers},
        {"before": SAME, "after": OTHER, **headers},
    ]
    assert "diff" not in Recorder(plan).run(check_mode=check_mode)


def test_diff_of_what_is_the_same() -> None:
    assert "diff" not in Recorder(Plan(before=SAME, after=SAME, texts=("a", "a"))).run(diff=True)
    assert "diff" not in Recorder(Plan(changed=True)).run(diff=True)
    assert Recorder(Plan(before=SAME, after=OTHER, texts=("a", "a"))).run(diff=True)["diff"] == [
        {"before": SAME, "after": OTHER}
    ]


def test_operation_that_only_reads() -> None:
    operation = Operation({}, lambda agent, params: 1, lambda current, params: Plan(result={"one": current}))
    assert run_operation(operation, AGENT, {}) == {"changed": False, "one": 1}


def test_error_of_apply_passes() -> None:
    def apply(agent: Agent, plan: Plan) -> dict[str, Any]:
        raise OperationError("it failed", result={"rc": 1})

    operation = Operation({}, lambda agent, params: 1, lambda current, params: Plan(changed=True), apply)
    with pytest.raises(OperationError, match="it failed"):
        run_operation(operation, AGENT, {})


# Trouble after a change


@pytest.mark.parametrize("trouble", ["no channel", "no reply", "no sense", "refused"])
@pytest.mark.parametrize("command", ["guest-get-vcpus", "guest-set-vcpus"])
def test_what_was_done_before_an_error_is_told(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], command: str, trouble: str
) -> None:
    """The next command was not run, and the one before was: to repeat the task is not to begin it."""

    def lose(agent: Agent) -> None:
        agent.close()
        server.path.unlink()

    def apply(agent: Agent, plan: Plan) -> dict[str, Any]:
        agent.execute("guest-set-time", {})
        if trouble == "no channel":
            lose(agent)
        if trouble == "refused":
            server.then(command, fails("disabled", "CommandNotFound"))
        if trouble in ("no reply", "no sense"):
            server.then(command, *[swallows if trouble == "no reply" else returns("no sense")] * 2)
        agent.execute(command)
        return {}

    server = scripted({"guest-set-time": {}, command: []})
    operation = Operation({}, lambda agent, params: 1, lambda current, params: Plan(changed=True), apply)
    with pytest.raises(QgaError) as caught:
        run_operation(operation, connect(server), {})
    told = caught.value
    assert not told.__cause__, "ansible-core would tell that, too"
    if command == "guest-set-vcpus" and trouble in ("no reply", "no sense"):
        assert told.command == command and told.executed == "unknown", "it is the one to look for"
        return
    assert isinstance(told, OperationError), "the host was reached"
    assert re.search(rf": guest-set-time was run, and then {command} (was not|may have)", str(told)), str(told)
    assert str(told).count(server.path.name) == 1
    assert told.as_result()["error"]["command"] == "guest-set-time"
    assert (told.as_result()["error"]["executed"], told.as_result()["changed"]) == ("yes", True)


def test_what_an_earlier_task_has_done_is_not_told(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    server = scripted({"guest-set-time": {}})
    agent = connect(server)
    agent.execute("guest-set-time", {})
    server.then("guest-set-vcpus", fails("disabled", "CommandNotFound"))
    operation = Operation(
        {},
        lambda agent, params: 1,
        lambda current, params: Plan(changed=True),
        lambda agent, plan: agent.execute("guest-set-vcpus") or {},
    )
    with pytest.raises(CommandUnavailable):
        run_operation(operation, agent, {})


# Numbers of seconds


@pytest.mark.parametrize("operation", [import_module(f"{PACKAGE}.{name}").OPERATION for name in MODULES], ids=MODULES)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_seconds_that_make_no_sense(operation: Operation, value: float) -> None:
    """Nothing is sent: the agent is mute."""
    spec = argument_spec(operation)
    usual = {name: option.get("default") for name, option in spec.items()}
    floats = [name for name, option in spec.items() if option["type"] == "float"]
    assert "agent_timeout" in floats
    for name in floats:
        if value == 0 and name in ("frozen_timeout", "wait", "tolerance"):
            continue
        with pytest.raises(OperationError, match=rf"^{name}: \S+ is not a number of seconds"):
            run_operation(operation, AGENT, {**usual, name: value})
