# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
    QmpCommandError,
    QmpError,
    QmpLostError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules.qga_suspend import OPERATION, Current, apply, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.machine import HURRY, TO_FAIL, Machine
from ansible_collections.qemu.guest.tests.unit.scripted import fails
from ansible_collections.qemu.guest.tests.unit.scripted_qmp import Refusal

Machines = Callable[..., Machine]
Connect = Callable[..., SocketAgent]

MODES = ("ram", "disk", "hybrid")
IN_A_HURRY = OPERATION._replace(
    apply=functools.partial(apply, timing=HURRY, seconds_to_fail=dict.fromkeys(MODES, TO_FAIL))
)


def defaults(**given: Any) -> dict[str, Any]:
    return {**{name: option.get("default") for name, option in OPERATION.spec.items()}, **given}


def run(agent: SocketAgent, machine: Machine, qmp: bool = True, how: Any = None, **given: Any) -> dict[str, Any]:
    params = defaults(qmp_address=str(machine.qmp.path) if qmp else None, **{"timeout": 20, **given})
    result = run_operation(IN_A_HURRY, agent, params, **(how or {}))
    assert set(result) - {"changed", "diff"} <= returned("qga_suspend")
    return result


# plan


@pytest.mark.parametrize(("mode", "asleep"), [("ram", "suspended"), ("hybrid", "suspended"), ("disk", "shutdown")])
def test_plan(mode: str, asleep: str) -> None:
    planned = plan(Current("running"), defaults(mode=mode))
    assert planned.changes
    assert list(planned.diff()) == [{"before": {"status": "running"}, "after": {"status": asleep}}]
    assert planned.result == {"state": "suspended", "status": "running"}
    planned = plan(Current(asleep), defaults(mode=mode))
    assert not planned.changes
    assert planned.result == {"state": "suspended", "status": asleep}


def test_plan_to_wake() -> None:
    planned = plan(Current("suspended"), defaults(state="awake"))
    assert list(planned.diff()) == [{"before": {"status": "suspended"}, "after": {"status": "running"}}]
    assert not plan(Current("running"), defaults(state="awake")).changes


@pytest.mark.parametrize(
    ("state", "mode", "status", "first"),
    [
        ("suspended", "ram", "shutdown", "running"),
        ("suspended", "disk", "suspended", "running"),
        ("suspended", "hybrid", "paused", "running"),
        ("awake", "ram", "shutdown", "suspended"),
        ("awake", "ram", "paused", "suspended"),
    ],
)
def test_plan_for_what_is_not_possible_from_there(state: str, mode: str, status: str, first: str) -> None:
    with pytest.raises(OperationError, match=f"status is {status}; to become .* have to be {first} first"):
        plan(Current(status), defaults(state=state, mode=mode))


@pytest.mark.parametrize(("state", "status"), [("suspended", "running"), ("awake", "suspended")])
def test_plan_where_qemu_cannot_wake(state: str, status: str) -> None:
    with pytest.raises(OperationError, match="it has no command system_wakeup"):
        plan(Current(status, "it has no command system_wakeup"), defaults(state=state, wakeup_verified=True))


def test_plan_that_needs_no_wakeup() -> None:
    assert plan(Current("running", "why"), defaults(mode="disk")).changes
    assert not plan(Current("suspended", "why"), defaults()).changes
    assert not plan(Current("running", "why"), defaults(state="awake")).changes


# Suspend


@pytest.mark.parametrize("mode", MODES)
def test_event(machines: Machines, connect: Connect, mode: str) -> None:
    machine = machines()
    event, status = ("SUSPEND_DISK", "shutdown") if mode == "disk" else ("SUSPEND", "suspended")
    machine.suspend = machine.stops(event, status)
    agent = connect(machine)
    result = run(agent, machine, mode=mode)
    assert machine.commands[-1] == f"guest-suspend-{mode}"
    assert 0 < result.pop("elapsed") < 10
    assert result == {"changed": True, "state": "suspended", "status": status, "confirmed_by": "event"}
    asked = len(machine.requests)
    assert run(agent, machine, mode=mode) == {"changed": False, "state": "suspended", "status": status}
    assert len(machine.requests) == asked, "the agent of a guest that sleeps is not asked"


@pytest.mark.parametrize("mode", MODES)
def test_status(machines: Machines, connect: Connect, mode: str) -> None:
    machine = machines()
    machine.suspend = machine.stops(status="shutdown" if mode == "disk" else "suspended")
    assert run(connect(machine), machine, mode=mode)["confirmed_by"] == "status"


def test_end_of_qemu(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.suspend = machine.ends()
    assert run(connect(machine), machine, mode="disk")["confirmed_by"] == "eof"


def test_end_of_qemu_is_no_suspend_to_ram(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.suspend = machine.ends()
    with pytest.raises(QmpLostError, match="QEMU closed the connection"):
        run(connect(machine), machine)


@pytest.mark.parametrize("mode", MODES)
def test_agent_that_stops(machines: Machines, connect: Connect, mode: str) -> None:
    machine = machines()
    machine.suspend = machine.stops()
    result = run(connect(machine), machine, qmp=False, mode=mode, wakeup_verified=True)
    assert (result["confirmed_by"], result["changed"]) == ("agent", True)
    assert machine.qmp.commands == []


@pytest.mark.parametrize("qmp", [True, False])
def test_nothing_happens(machines: Machines, connect: Connect, qmp: bool) -> None:
    machine = machines()
    with pytest.raises(OperationError, match=r"guest-suspend-ram was sent, .* within 0.7 s; its agent still answers"):
        run(connect(machine), machine, qmp=qmp, wakeup_verified=True, timeout=0.7)


# What is refused, and what fails


@pytest.mark.parametrize("mode", ["ram", "hybrid"])
def test_nobody_knows_whether_it_could_be_woken(machines: Machines, connect: Connect, mode: str) -> None:
    machine = machines()
    with pytest.raises(OperationError, match=f"qmp_address is required for mode {mode}: .* set wakeup_verified"):
        run(connect(machine), machine, qmp=False, mode=mode)
    assert machine.commands == []


def test_disk_needs_no_monitor(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.suspend = machine.stops()
    assert run(connect(machine), machine, qmp=False, mode="disk")["changed"]


@pytest.mark.parametrize("mode", ["ram", "hybrid"])
@pytest.mark.parametrize("check_mode", [True, False])
def test_qemu_that_cannot_wake(machines: Machines, connect: Connect, mode: str, check_mode: bool) -> None:
    machine = machines()
    del machine.qmp.answers["system_wakeup"]
    with pytest.raises(OperationError, match="this QEMU cannot wake"):
        run(connect(machine), machine, mode=mode, wakeup_verified=True, how={"check_mode": check_mode})
    assert not any(command.startswith("guest-suspend") for command in machine.commands)


@pytest.mark.parametrize(
    ("mode", "text", "hint"),
    [
        ("ram", "child process has failed to suspend", "disable_s3"),
        ("disk", "child process has failed to suspend", "swap space"),
        ("hybrid", "unknown guest suspend mode", "pm-utils"),
    ],
)
def test_agent_that_fails(machines: Machines, connect: Connect, mode: str, text: str, hint: str) -> None:
    machine = machines()
    machine.then(f"guest-suspend-{mode}", fails(text))
    with pytest.raises(CommandError, match=f"guest-suspend-{mode} failed: {text}. The guest refused. .*{hint}"):
        run(connect(machine), machine, mode=mode)


def test_command_that_is_blocked(machines: Machines, connect: Connect) -> None:
    machine = machines(without=("guest-suspend-ram",))
    agent = connect(machine)
    with pytest.raises(CommandUnavailable, match="guest-suspend-ram was not run: disabled"):
        run(agent, machine)
    machine.suspend = machine.stops("SUSPEND_DISK", "shutdown")
    assert run(agent, machine, mode="disk")["changed"], "another command"


def test_command_that_is_blocked_meanwhile(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.then("guest-suspend-ram", fails("Command guest-suspend-ram has been disabled", "CommandNotFound"))
    with pytest.raises(CommandUnavailable) as caught:
        run(connect(machine), machine)
    assert "The guest refused" not in str(caught.value)


def test_monitor_that_is_not_there(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.qmp.end()
    with pytest.raises(QmpError, match=f"^QMP at unix:{machine.qmp.path}: .*no such socket"):
        run(connect(machine), machine)
    assert machine.commands == []


@pytest.mark.parametrize("state", ["suspended", "awake"])
def test_check_mode(machines: Machines, connect: Connect, state: str) -> None:
    machine = machines()
    machine.qmp.status = before = "running" if state == "suspended" else "suspended"
    result = run(connect(machine), machine, state=state, how={"check_mode": True, "diff": True})
    after = "suspended" if state == "suspended" else "running"
    assert result == {
        "changed": True,
        "state": state,
        "status": before,
        "diff": [{"before": {"status": before}, "after": {"status": after}}],
    }
    assert not any(command.startswith("guest-suspend") for command in machine.commands)
    assert "system_wakeup" not in machine.qmp.commands


# Wake


def sleeping(machine: Machine) -> Machine:
    machine.qmp.status = "suspended"
    machine.listens = False
    return machine


def wakes(machine: Machine, event: str = "WAKEUP") -> dict[str, Any]:
    machine.qmp.status = "running"
    if event:
        machine.qmp.emit(event)
    machine.later(lambda: setattr(machine, "listens", True), 0.4)
    return {}


@pytest.mark.parametrize("event", ["WAKEUP", ""])
def test_wake(machines: Machines, connect: Connect, event: str) -> None:
    machine = sleeping(machines())
    machine.qmp.answers["system_wakeup"] = lambda: wakes(machine, event)
    agent = connect(machine)
    result = run(agent, machine, state="awake")
    assert result.pop("elapsed") >= 0.4, "its agent must answer"
    assert result == {
        "changed": True,
        "state": "awake",
        "status": "running",
        "confirmed_by": "event" if event else "status",
    }
    assert machine.work == ["guest-ping"]
    assert run(agent, machine, state="awake") == {"changed": False, "state": "awake", "status": "running"}


def test_wake_needs_a_monitor(machines: Machines, connect: Connect) -> None:
    with pytest.raises(OperationError, match="qmp_address is required for state awake"):
        run(connect(machine := machines()), machine, qmp=False, state="awake", wakeup_verified=True)


def test_wake_that_qemu_refuses(machines: Machines, connect: Connect) -> None:
    def refuse() -> Any:
        raise Refusal("Unable to wake up: guest is not in suspended state")

    machine = sleeping(machines())
    machine.qmp.answers["system_wakeup"] = refuse
    with pytest.raises(QmpCommandError, match=r"QMP at .*: system_wakeup failed: Unable to wake up"):
        run(connect(machine), machine, state="awake")


def test_wake_that_does_not_happen(machines: Machines, connect: Connect) -> None:
    machine = sleeping(machines())
    machine.qmp.answers["system_wakeup"] = {}
    with pytest.raises(OperationError, match=r"told to wake up, and after 0.5 s it sleeps"):
        run(connect(machine), machine, state="awake", timeout=0.5)


def test_agent_that_does_not_wake(machines: Machines, connect: Connect) -> None:
    machine = sleeping(machines())
    with pytest.raises(OperationError, match=r"it is awake \(by QEMU's event\), but its agent does not answer"):
        run(connect(machine), machine, state="awake", timeout=0.5)
