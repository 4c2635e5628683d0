# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    CommandError,
    CommandUnavailable,
    OperationError,
    QmpError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.power import Boot
from ansible_collections.qemu.guest.plugins.modules.qga_shutdown import OPERATION, Current, apply, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.machine import FILES, HURRY, TO_FAIL, Machine
from ansible_collections.qemu.guest.tests.unit.scripted import fails

Machines = Callable[..., Machine]
Connect = Callable[..., SocketAgent]

IN_A_HURRY = OPERATION._replace(apply=functools.partial(apply, timing=HURRY))
ID = "f7dcfde2-f6bb-4a45-8205-5f342231e913"


@pytest.fixture
def connect(connect: Connect) -> Connect:
    return functools.partial(connect, seconds_to_fail=TO_FAIL)


def defaults(**given: Any) -> dict[str, Any]:
    return {**{name: option.get("default") for name, option in OPERATION.spec.items()}, **given}


def run(agent: SocketAgent, machine: Machine, qmp: bool = True, how: Any = None, **given: Any) -> dict[str, Any]:
    params = defaults(qmp_address=str(machine.qmp.path) if qmp else None, **{"timeout": 20, **given})
    result = run_operation(IN_A_HURRY, agent, params, **(how or {}))
    assert set(result) - {"changed", "diff"} <= returned("qga_shutdown")
    return result


# plan


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        ("powerdown", {"status": "running"}, {"status": "shutdown"}),
        ("halt", {"status": "running"}, {"status": "halted"}),
        ("reboot", {"status": "running", "boot": ID}, {"status": "running", "boot": "another"}),
    ],
)
def test_plan(mode: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    planned = plan(Current("running", Boot(id=ID)), defaults(mode=mode))
    assert planned.changes
    assert list(planned.diff()) == [{"before": before, "after": after}]
    assert planned.result == {"mode": mode, "boot_id_before": ID}


def test_plan_for_a_guest_whose_boot_is_not_known() -> None:
    planned = plan(Current("running"), defaults(mode="reboot"))
    assert planned.changes
    assert planned.before == {"status": "running", "boot": "this"}
    assert planned.result == {"mode": "reboot"}


def test_plan_for_a_guest_that_is_off() -> None:
    planned = plan(Current("shutdown"), defaults())
    assert not planned.changes
    assert not planned.diff()


@pytest.mark.parametrize(
    ("mode", "status"),
    [("reboot", "shutdown"), ("halt", "shutdown"), *[(m, "suspended") for m in ("powerdown", "reboot", "halt")]],
)
def test_plan_for_a_guest_that_hears_nothing(mode: str, status: str) -> None:
    with pytest.raises(OperationError, match=f"status is {status}: nobody in the guest can take the command"):
        plan(Current(status), defaults(mode=mode))


# Down, as QEMU tells


def test_poweroff_is_what_the_agent_calls_powerdown(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.stops("SHUTDOWN", "shutdown")
    assert run(connect(machine), machine, mode="poweroff")["mode"] == "powerdown"
    assert machine.requests[-1].arguments == {"mode": "powerdown"}


@pytest.mark.parametrize("mode", ["powerdown", "halt"])
def test_event(machines: Machines, connect: Connect, mode: str) -> None:
    machine = machines()
    machine.shutdown = machine.stops("SHUTDOWN", "shutdown")
    result = run(connect(machine), machine, mode=mode)
    assert machine.requests[-1].command == "guest-shutdown"
    assert machine.requests[-1].arguments == {"mode": mode}
    assert 0 < result.pop("elapsed") < 10
    assert result == {"changed": True, "mode": mode, "confirmed_by": "event", "boot_id_before": machine.boot_id}


def test_second_run_changes_nothing(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.stops("SHUTDOWN", "shutdown")
    agent = connect(machine)
    run(agent, machine)
    asked = len(machine.requests)
    assert run(agent, machine) == {"changed": False, "mode": "powerdown"}
    assert len(machine.requests) == asked, "the agent of a guest that is off is not asked"


def test_event_and_the_end_of_qemu(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.ends("SHUTDOWN")
    assert run(connect(machine), machine)["confirmed_by"] == "event"


def test_event_that_comes_before_the_agent_is_given_up(machines: Machines, connect: Connect) -> None:
    machine = machines()

    def ends(session: Any, request: Any) -> None:
        machine.ends("SHUTDOWN")()

    machine.then("guest-shutdown", ends)
    assert run(connect(machine), machine)["confirmed_by"] == "event"


def test_end_of_qemu(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.ends()
    assert run(connect(machine), machine)["confirmed_by"] == "eof"


def test_status(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.stops(status="shutdown")
    assert run(connect(machine), machine)["confirmed_by"] == "status"


def test_agent_that_is_silent_is_no_proof_where_qemu_is_asked(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.stops()
    with pytest.raises(OperationError, match=r"was not seen to powerdown within 1.5 s"):
        run(connect(machine), machine, timeout=1.5)


def test_halt_of_which_qemu_tells_nothing(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.stops()
    assert run(connect(machine), machine, mode="halt")["confirmed_by"] == "agent"


def test_nothing_happens(machines: Machines, connect: Connect) -> None:
    machine = machines()
    started = time.monotonic()
    with pytest.raises(OperationError, match=r"its agent still answers\. It may still do so"):
        run(connect(machine), machine, timeout=0.5)
    assert time.monotonic() - started < 5
    assert machine.work.count("guest-shutdown") == 1


# Down, as far as the agent tells


@pytest.mark.parametrize("mode", ["powerdown", "halt"])
def test_agent_that_stops(machines: Machines, connect: Connect, mode: str) -> None:
    machine = machines()
    machine.shutdown = machine.stops()
    result = run(connect(machine), machine, qmp=False, mode=mode)
    assert result["confirmed_by"] == "agent"
    assert result["elapsed"] >= 1, "it must be silent for a while"
    assert machine.qmp.commands == []


def test_agent_whose_socket_goes(machines: Machines, connect: Connect) -> None:
    machine = machines()

    def vanish(session: Any, request: Any) -> None:
        machine.path.unlink()
        session.close()

    machine.then("guest-shutdown", vanish)
    assert run(connect(machine), machine, qmp=False)["confirmed_by"] == "agent"


def test_agent_that_is_slow_is_not_gone(machines: Machines, connect: Connect) -> None:
    machine = machines()

    def pauses() -> None:
        machine.listens = False
        machine.later(lambda: setattr(machine, "listens", True), 0.3)

    machine.shutdown = pauses
    with pytest.raises(OperationError, match="its agent was away for a while, and answers now"):
        run(connect(machine), machine, qmp=False, timeout=1.5)


def test_channel_that_another_client_takes_proves_nothing(machines: Machines, connect: Connect) -> None:
    machine = machines()
    with socket.socket(socket.AF_UNIX) as other:

        def leaves(session: Any, request: Any) -> None:
            other.connect(str(machine.path))
            session.close()

        machine.then("guest-shutdown", leaves)
        with pytest.raises(OperationError, match="its agent does not answer"):
            run(connect(machine), machine, qmp=False, timeout=1.5)


# Reboot


def test_reboot(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.reboots()
    before = machine.boot_id
    result = run(connect(machine), machine, mode="reboot")
    del result["elapsed"]
    assert result == {
        "changed": True,
        "mode": "reboot",
        "confirmed_by": "event",
        "boot_id_before": before,
        "boot_id_after": machine.boot_id,
    }
    assert before != machine.boot_id


@pytest.mark.parametrize("seconds", [0.1, 1.8])
def test_reboot_as_the_agent_tells(machines: Machines, connect: Connect, seconds: float) -> None:
    machine = machines()
    machine.shutdown = machine.reboots(seconds=seconds)
    result = run(connect(machine), machine, qmp=False, mode="reboot")
    assert (result["confirmed_by"], result["boot_id_after"]) == ("boot_id", machine.boot_id)
    assert result["boot_id_before"] != machine.boot_id


def test_reboot_that_qemu_does_not_notice(machines: Machines, connect: Connect) -> None:
    """As with kexec."""
    machine = machines()
    machine.shutdown = machine.reboots(event="")
    assert run(connect(machine), machine, mode="reboot")["confirmed_by"] == "boot_id"


@pytest.mark.parametrize("qmp", [True, False])
def test_reboot_not_waited_for(machines: Machines, connect: Connect, qmp: bool) -> None:
    machine = machines()
    machine.shutdown = machine.stops("RESET")
    result = run(connect(machine), machine, qmp=qmp, mode="reboot", wait_for_agent=False)
    assert result["confirmed_by"] == ("event" if qmp else "agent")
    assert "boot_id_after" not in result


def test_reboot_of_a_guest_whose_files_cannot_be_read(machines: Machines, connect: Connect) -> None:
    machine = machines(without=FILES)
    machine.shutdown = machine.reboots(seconds=0.4)
    result = run(connect(machine), machine, qmp=False, mode="reboot")
    assert result["confirmed_by"] == "uptime"
    assert not {"boot_id_before", "boot_id_after", "warnings"} & set(result)


def test_reboot_of_a_guest_that_is_not_linux(machines: Machines, connect: Connect) -> None:
    machine = machines(without=("guest-get-cpustats",))
    machine.boot_id = ""
    machine.boots = lambda: setattr(machine, "listens", True)  # type: ignore[method-assign]
    machine.shutdown = machine.reboots(seconds=0.6)
    result = run(connect(machine), machine, qmp=False, mode="reboot")
    assert result["confirmed_by"] == "agent"
    assert "cannot be proven" in result["warnings"][0]


def test_reboot_that_only_qemu_can_prove(machines: Machines, connect: Connect) -> None:
    machine = machines(without=(*FILES, "guest-get-cpustats"))
    machine.shutdown = machine.reboots(seconds=0.4)
    result = run(connect(machine), machine, mode="reboot")
    assert result["confirmed_by"] == "event"
    assert "warnings" not in result


@pytest.mark.parametrize("qmp", [True, False])
@pytest.mark.parametrize("without", [(), FILES])
def test_same_boot_is_no_reboot(machines: Machines, connect: Connect, qmp: bool, without: tuple[str, ...]) -> None:
    machine = machines(without=without)

    def pauses() -> None:
        machine.listens = False
        machine.later(lambda: setattr(machine, "listens", True), 1.4)

    machine.shutdown = pauses
    with pytest.raises(OperationError, match="to reboot within 3 s; its agent was away for a while, and answers"):
        run(connect(machine), machine, qmp=qmp, mode="reboot", timeout=3)


def test_agent_that_does_not_come_back(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.shutdown = machine.stops("RESET")
    with pytest.raises(OperationError, match=r"confirmed by event\), and its agent was not back 1 s after"):
        run(connect(machine), machine, mode="reboot", timeout=1)


@pytest.mark.parametrize("event", ["SHUTDOWN", ""])
def test_machine_that_does_not_start_again(machines: Machines, connect: Connect, event: str) -> None:
    machine = machines()
    machine.shutdown = machine.ends(event)
    with pytest.raises(OperationError, match="Was it started with -no-reboot"):
        run(connect(machine), machine, mode="reboot")


# What is refused, and what fails


@pytest.mark.parametrize("mode", ["powerdown", "halt", "reboot"])
def test_check_mode(machines: Machines, connect: Connect, mode: str) -> None:
    machine = machines()
    result = run(connect(machine), machine, how={"check_mode": True, "diff": True}, mode=mode)
    assert result["changed"] is True
    assert result["diff"][0]["before"]["status"] == "running"
    assert "confirmed_by" not in result
    assert "guest-shutdown" not in machine.commands
    assert machine.qmp.work == []


def test_command_that_is_blocked(machines: Machines, connect: Connect) -> None:
    machine = machines(without=("guest-shutdown",))
    with pytest.raises(CommandUnavailable, match="guest-shutdown was not run: disabled by the guest's administrator"):
        run(connect(machine), machine)
    assert "guest-shutdown" not in machine.commands


@pytest.mark.parametrize("qmp", [True, False])
@pytest.mark.parametrize("mode", ["powerdown", "reboot"])
def test_agent_that_says_it_fails(machines: Machines, connect: Connect, qmp: bool, mode: str) -> None:
    """systemd's answer may get lost in the shutdown that it began."""
    text = "child process has terminated abnormally: Call to PowerOff failed: Connection reset by peer\n"
    machine = machines()
    happens = machine.reboots(seconds=0.6) if mode == "reboot" else machine.stops("SHUTDOWN", "shutdown")

    def says(session: Any, request: Any) -> None:
        fails(text)(session, request)
        machine.later(happens)

    machine.then("guest-shutdown", says)
    agent = connect(machine)
    result = run(agent, machine, qmp=qmp, mode=mode)
    assert result["confirmed_by"] == ("event" if qmp else "boot_id" if mode == "reboot" else "agent")
    assert result["warnings"] == [f"{agent.name}: The guest did it, though its agent said: {text.strip()}"]
    assert machine.work.count("guest-shutdown") == 1


def test_agent_that_fails(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.then("guest-shutdown", fails("child process has failed to shutdown"))
    with pytest.raises(CommandError, match="guest-shutdown failed: child process has failed to shutdown"):
        run(connect(machine), machine)


def test_agent_that_is_silent_gets_no_command_for_later(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.listens = False
    with pytest.raises(AgentSilentError):
        run(connect(machine, timeout=0.3), machine)
    assert set(machine.commands) == {"guest-sync-delimited"}


def test_monitor_that_is_not_there(machines: Machines, connect: Connect) -> None:
    machine = machines()
    machine.qmp.end()
    with pytest.raises(QmpError, match=f"^QMP at unix:{machine.qmp.path}: .*no such socket"):
        run(connect(machine), machine)
    assert machine.commands == [], "nothing is sent where it could not be confirmed"
