# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OperationError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module import freeze
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.stacked import filesystems, first_mounted, stacked
from ansible_collections.qemu.guest.plugins.module_utils._module.thaw_timer import Armed, Timer
from ansible_collections.qemu.guest.plugins.modules.qga_fsfreeze import OPERATION, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.filesystems import FREEZE, LIST, STATUS, THAW, Disks, Timers
from ansible_collections.qemu.guest.tests.unit.scripted import (
    Scripted,
    Step,
    answers,
    answers_late,
    closes,
    fails,
    returns,
    swallows,
)

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]
FSINFO = "guest-get-fsinfo"


@pytest.fixture
def disks() -> Disks:
    return Disks()


@pytest.fixture
def server(scripted: Start, disks: Disks) -> Scripted:
    return scripted(disks.answers())


@pytest.fixture(autouse=True)
def timers(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Timers:
    timers = Timers(server)
    monkeypatch.setattr(freeze, "arm", timers.arm)
    monkeypatch.setattr(freeze, "disarm", timers.disarm)
    return timers


def params(state: str, **given: Any) -> dict[str, Any]:
    return {**{name: option.get("default") for name, option in OPERATION.spec.items()}, "state": state, **given}


def run(agent: Agent, state: str, check_mode: bool = False, diff: bool = False, **given: Any) -> dict[str, Any]:
    result = run_operation(OPERATION, agent, params(state, **given), check_mode=check_mode, diff=diff)
    assert set(result) - {"changed", "diff"} <= returned("qga_fsfreeze")
    return result


def failure(agent: Agent, state: str, **given: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the message and the result of a task that fails."""
    with pytest.raises(QgaError) as caught:
        run(agent, state, **given)
    return str(caught.value), caught.value.as_result()


@pytest.mark.parametrize(
    ("current", "wanted", "given", "changes"),
    [
        ("thawed", "frozen", {}, True),
        ("thawed", "frozen", {"thaw_after": 5.0}, True),
        ("frozen", "frozen", {}, False),
        ("frozen", "frozen", {"thaw_after": 5.0}, False),
        ("frozen", "thawed", {}, True),
        ("thawed", "thawed", {}, False),
    ],
)
def test_plan(current: str, wanted: str, given: dict[str, Any], changes: bool) -> None:
    planned = plan(current, params(wanted, **given))
    assert (planned.changes, planned.always) == (changes, True)
    assert (planned.before, planned.after) == ({"status": current}, {"status": wanted})
    assert planned.result == {"count": 0, "status_before": current, "status_after": wanted}
    assert not planned.warnings


def test_plan_for_mount_points() -> None:
    assert not plan("thawed", params("frozen", mountpoints=["/srv"])).warnings
    assert "frozen already" in plan("frozen", params("frozen", mountpoints=["/srv"])).warnings[0]


def test_freeze_and_thaw(agent: SocketAgent, disks: Disks, server: Scripted) -> None:
    frozen = {"changed": True, "count": 2, "status_before": "thawed", "status_after": "frozen"}
    assert run(agent, "frozen") == frozen
    assert disks.frozen == ["/", "/srv"]
    same = {"changed": False, "count": 0, "status_before": "frozen", "status_after": "frozen"}
    assert run(agent, "frozen") == same
    assert server.work.count(FREEZE) == 1
    thawed = {"changed": True, "count": 2, "status_before": "frozen", "status_after": "thawed"}
    assert run(agent, "thawed") == thawed
    assert disks.frozen == []
    same = {"changed": False, "count": 0, "status_before": "thawed", "status_after": "thawed"}
    assert run(agent, "thawed") == same
    assert server.work.count(THAW) == 2, "it is always sent"


def test_something_is_frozen_though_the_status_says_thawed(
    agent: SocketAgent, server: Scripted, timers: Timers
) -> None:
    timers.armed = Timer("token", 4711, 5, "2026-11-24T19:30:00Z", "2026-11-24T19:30:01Z")
    server.then(THAW, returns(1))
    result = run(agent, "thawed")
    assert (result["changed"], result["count"], result["status_before"]) == (True, 1, "thawed")
    assert "warnings" not in result, "the timer has not thawed all of it"


@pytest.mark.parametrize("state", ["frozen", "thawed"])
def test_check_mode(agent: SocketAgent, disks: Disks, server: Scripted, timers: Timers, state: str) -> None:
    disks.frozen = ["/"] if state == "thawed" else []
    before = list(disks.frozen)
    more = {"thaw_after": 5.0} if state == "frozen" else {}
    result = run(agent, state, check_mode=True, diff=True, **more)
    other = "thawed" if state == "frozen" else "frozen"
    assert result["changed"] is True
    assert (result["status_before"], result["status_after"], result["count"]) == (other, state, 0)
    assert result["diff"] == [{"before": {"status": other}, "after": {"status": state}}]
    assert disks.frozen == before
    assert not {FREEZE, LIST, THAW} & set(server.work)
    assert timers.notes == []


def test_mount_points(agent: SocketAgent, disks: Disks, server: Scripted) -> None:
    assert run(agent, "frozen", mountpoints=["/srv"])["count"] == 1
    assert disks.frozen == ["/srv"]
    assert server.requests[-2].arguments == {"mountpoints": ["/srv"]}
    again = run(agent, "frozen", mountpoints=["/"])
    assert again["changed"] is False and "frozen already" in again["warnings"][0]
    assert disks.frozen == ["/srv"]


def test_mount_point_named_twice(agent: SocketAgent) -> None:
    assert run(agent, "frozen", mountpoints=["/srv", "/srv"])["count"] == 1


def test_not_all_mount_points(agent: SocketAgent, disks: Disks, timers: Timers) -> None:
    message, result = failure(agent, "frozen", mountpoints=["/srv", "/svr"], thaw_after=5.0)
    assert "froze 1 of 2 mount points (/srv, /svr)" in message
    assert "The guest's filesystems are thawed." in message
    assert result["status_after"] == "thawed"
    assert disks.frozen == []
    assert timers.done == ["arm 5", "disarm"]


@pytest.mark.parametrize("given", [{"mountpoints": ["/svr"]}, {}])
def test_nothing_frozen(agent: SocketAgent, server: Scripted, given: dict[str, Any]) -> None:
    """Then nothing is thawed, because others may have frozen it by other means."""
    server.then(FREEZE, returns(0))
    message, result = failure(agent, "frozen", **given)
    assert "froze 0 of 1" in message or "no filesystem to freeze" in message
    assert "The guest's filesystems are thawed." in message
    assert result["status_after"] == "thawed"
    assert THAW not in server.work


def test_agent_without_a_list(agent: SocketAgent, server: Scripted) -> None:
    del server.answers[LIST]
    message, result = failure(agent, "frozen", mountpoints=["/"])
    assert f"{LIST} was not run: this agent (version 7.2.22) does not know the command" in message
    assert "version 2.2" in message
    assert result["error"]["executed"] == "no"


@pytest.mark.parametrize("blocked", [THAW, STATUS, FREEZE, "guest-info"])
@pytest.mark.parametrize("check_mode", [False, True])
def test_never_frozen_if_it_could_not_be_thawed(
    scripted: Start, connect: Connect, disks: Disks, server: Scripted, timers: Timers, blocked: str, check_mode: bool
) -> None:
    texts = {blocked: f"Command {blocked} has been disabled"}
    other = scripted(disks.answers(), path=server.path.with_suffix(".2"), blocked=texts)
    with pytest.raises(CommandUnavailable, match=blocked):
        run(connect(other), "frozen", check_mode=check_mode, thaw_after=5.0)
    assert not {FREEZE, THAW} & set(other.work)
    assert timers.notes == []


def test_what_was_known_while_it_was_frozen_is_asked_again(agent: SocketAgent, server: Scripted, disks: Disks) -> None:
    server.blocked[FREEZE] = "Command has been disabled: the agent is in frozen state"
    disks.frozen = ["/"]
    run(agent, "frozen")
    del server.blocked[FREEZE]
    run(agent, "thawed")
    assert run(agent, "frozen")["changed"] is True


@pytest.mark.parametrize(
    ("state", "given", "text"),
    [
        ("frozen", {"mountpoints": []}, "mountpoints is empty"),
        ("frozen", {"thaw_after": 0.0}, "thaw_after: 0 is not a number of seconds greater than 0"),
        ("frozen", {"thaw_after": -1.0}, "greater than 0"),
        ("thawed", {"thaw_after": 1.0}, "state=frozen"),
        ("thawed", {"mountpoints": ["/"]}, "state=frozen"),
    ],
)
def test_options_that_make_no_sense(
    agent: SocketAgent, server: Scripted, state: str, given: dict[str, Any], text: str
) -> None:
    assert text in failure(agent, state, **given)[0]
    assert server.commands == []


def test_status_that_the_schema_does_not_know(agent: SocketAgent, server: Scripted) -> None:
    server.then(STATUS, returns("lukewarm"))
    with pytest.raises(ProtocolError, match="lukewarm"):
        run(agent, "frozen")


# Freezes that fail


def test_freeze_that_fails(agent: SocketAgent, server: Scripted, timers: Timers) -> None:
    """A hook may have stopped a program before the agent gave up, so thawing is asked for all the same."""
    server.then(FREEZE, fails("fsfreeze hook has failed with status 1"))
    message, result = failure(agent, "frozen", thaw_after=5.0)
    assert f"{FREEZE} failed: fsfreeze hook has failed with status 1" in message
    assert message.endswith("The guest's filesystems are thawed.")
    assert result["error"] == {"type": "CommandError", "command": FREEZE, "executed": "yes"}
    assert (result["status_before"], result["status_after"]) == ("thawed", "thawed")
    assert "thaw_timer" not in result
    assert server.work[-2:] == [THAW, STATUS]
    assert timers.done == ["arm 5", "disarm"]


@pytest.mark.parametrize("loss", [answers_late, swallows, closes()])
def test_reply_to_the_freeze_is_lost(agent: SocketAgent, server: Scripted, disks: Disks, loss: Step) -> None:
    server.then(FREEZE, loss)
    message, result = failure(agent, "frozen")
    assert f"{FREEZE} may have run" in message
    assert "look at the guest" not in message
    assert message.endswith("The guest's filesystems are thawed.")
    assert result["error"]["executed"] == "unknown"
    assert result["status_after"] == "thawed"
    assert disks.frozen == []


def test_nonsense_in_place_of_a_count(agent: SocketAgent, server: Scripted, disks: Disks) -> None:
    server.then(FREEZE, returns("two"))
    message, _result = failure(agent, "frozen")
    assert "should be int" in message and message.endswith("The guest's filesystems are thawed.")
    assert THAW in server.work


@pytest.mark.parametrize("thaw_after", [None, 60.0])
def test_undoing_fails_too(agent: SocketAgent, server: Scripted, disks: Disks, timers: Timers, thaw_after: Any) -> None:
    server.then(FREEZE, answers_late)
    server.then(THAW, fails("failed to open /srv: Input/output error"))
    message, result = failure(agent, "frozen", thaw_after=thaw_after)
    assert "THE GUEST MAY BE FROZEN: its status is frozen." in message
    assert "The process 4711 on this machine goes on trying to thaw it" in message
    assert "-a state=thawed" in message and "fsfreeze --unfreeze" in message
    assert result["status_after"] == "frozen"
    assert result["thaw_timer"]["pid"] == 4711
    assert timers.done == ["arm 60" if thaw_after else "arm 0"]
    assert timers.armed and not timers.told, "it is needed more than ever"


def test_agent_is_silent_afterwards(agent: SocketAgent, server: Scripted, timers: Timers) -> None:
    server.then(FREEZE, swallows)
    server.then("guest-sync-delimited", answers, swallows, swallows, swallows)
    message, result = failure(agent, "frozen")
    assert "THE GUEST MAY BE FROZEN: its status is unknown." in message
    assert result["status_after"] == "unknown"
    assert timers.done == ["arm 0"] and not timers.told


@pytest.mark.parametrize("reached", [True, False])
def test_agent_is_silent_once_it_is_frozen(agent: SocketAgent, server: Scripted, reached: bool) -> None:
    """It is frozen, whatever became of the question whether it is."""
    silent = [swallows] * (1 if reached else 20)
    server.then(STATUS, answers, fails("no") if reached else swallows)
    server.then("guest-sync-delimited", answers, *silent)
    message, result = failure(agent, "frozen")
    assert (result["error"]["command"], result["error"]["executed"]) == (FREEZE, "yes")
    assert message.count("guest agent at") == 1


@pytest.mark.parametrize("thaw_after", [None, 5.0])
def test_no_timer_for_want_of_processes(
    agent: SocketAgent, server: Scripted, monkeypatch: pytest.MonkeyPatch, thaw_after: Any
) -> None:
    def arm(agent: Agent, seconds: float) -> Armed:
        raise OperationError("the thaw timer could not be armed: no more processes.")

    monkeypatch.setattr(freeze, "arm", arm)
    assert "no more processes" in failure(agent, "frozen", thaw_after=thaw_after)[0]
    assert FREEZE not in server.work, "without its timer it is not frozen"


def test_somebody_else_froze_it_meanwhile(agent: SocketAgent, server: Scripted, disks: Disks, timers: Timers) -> None:
    """What is not ours is not thawed."""
    server.then(STATUS, returns("thawed"))
    disks.frozen = ["/"]
    with pytest.raises(CommandUnavailable, match="frozen"):
        run(agent, "frozen", thaw_after=5.0)
    assert disks.frozen == ["/"]
    assert THAW not in server.work
    assert timers.done == ["arm 5", "disarm"] and timers.told == b"end"


def test_reply_says_frozen_and_the_status_does_not(agent: SocketAgent, server: Scripted) -> None:
    """Then something may be frozen of which the status does not tell."""
    server.then(FREEZE, returns(2))
    assert "froze 2 filesystems, and they did not stay so" in failure(agent, "frozen")[0]
    assert THAW in server.work


@pytest.mark.parametrize(("given", "seconds"), [({}, 300), ({"timeout": 50.0}, 50), ({"thaw_after": 8.0}, 8)])
def test_timeout_of_the_freeze(agent: SocketAgent, server: Scripted, given: dict[str, Any], seconds: float) -> None:
    """It may take longer than other commands, but not longer than the timer waits."""
    server.then(FREEZE, swallows)
    assert f"no reply within {seconds} s" in failure(agent, "frozen", **given)[0]


# The timer


def test_timer_is_armed_before_anything_is_frozen(agent: SocketAgent, timers: Timers) -> None:
    result = run(agent, "frozen", thaw_after=60.0)
    assert result["thaw_timer"] == {"seconds": 60, "pid": 4711, "deadline": "2026-11-24T19:30:00Z", "fired": None}
    ((what, commands),) = timers.notes
    assert what == "arm 60" and FREEZE not in commands
    assert timers.told == b"leave"


def test_timer_of_a_guest_that_is_frozen_already(agent: SocketAgent, disks: Disks, timers: Timers) -> None:
    disks.frozen = ["/"]
    result = run(agent, "frozen", thaw_after=60.0)
    assert result["changed"] is False
    assert result["thaw_timer"]["seconds"] == 60
    assert timers.done == ["arm 60"] and timers.told == b"leave"


@pytest.mark.parametrize(("seconds", "disarmed"), [(0.0, True), (60.0, False)])
def test_guest_that_an_interrupted_task_froze_stays_frozen(
    agent: SocketAgent, disks: Disks, timers: Timers, seconds: float, disarmed: bool
) -> None:
    """Its timer has no deadline. One that has, was asked for."""
    disks.frozen = ["/"]
    timers.arm(agent, seconds)
    assert run(agent, "frozen")["changed"] is False
    assert (timers.armed is None) is disarmed


def test_freeze_without_a_deadline(agent: SocketAgent, timers: Timers) -> None:
    """It takes an earlier timer's place, and ends once the guest is frozen."""
    result = run(agent, "frozen")
    assert "thaw_timer" not in result
    (armed, before), (disarmed, after) = timers.notes
    assert armed == "arm 0" and FREEZE not in before
    assert disarmed == "disarm" and after[-2:] == (FREEZE, STATUS)
    assert timers.told == b"end"


def test_freeze_when_there_is_no_room_for_the_timers_file_any_more(
    agent: SocketAgent, disks: Disks, timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disarm(agent: Agent) -> Timer | None:
        raise OperationError("cannot write")

    monkeypatch.setattr(freeze, "disarm", disarm)
    assert run(agent, "frozen")["changed"] is True
    assert disks.frozen and timers.told == b"end"


def test_timer_is_disarmed_after_thawing(agent: SocketAgent, timers: Timers) -> None:
    run(agent, "frozen", thaw_after=60.0)
    result = run(agent, "thawed")
    assert result["thaw_timer"]["pid"] == 4711
    assert timers.done == ["arm 60", "disarm"]
    assert timers.notes[-1][1][-2:] == (THAW, STATUS)


def test_thaw_that_is_not_allowed(agent: SocketAgent, server: Scripted) -> None:
    """Whether something is frozen is not known then, and how to find out is said."""
    server.blocked[THAW] = f"Command {THAW} has been disabled"
    message, _result = failure(agent, "thawed")
    assert f"{THAW} was not run: disabled by the guest's administrator" in message
    assert "a hook" not in message


def test_guest_was_thawed_without_us(agent: SocketAgent, disks: Disks, timers: Timers) -> None:
    run(agent, "frozen", thaw_after=60.0)
    disks.thaw()
    result = run(agent, "thawed")
    assert result["changed"] is False and "warnings" not in result
    assert result["thaw_timer"]["fired"] is None
    assert timers.armed is None


def test_timer_has_fired(agent: SocketAgent, timers: Timers) -> None:
    timers.armed = Timer("token", 4711, 5, "2026-11-24T19:30:00Z", "2026-11-24T19:30:01Z")
    result = run(agent, "thawed")
    assert result["changed"] is False
    assert result["thaw_timer"]["fired"] == "2026-11-24T19:30:01Z"
    assert "the timer thawed the guest at 2026-11-24T19:30:01Z" in result["warnings"][0]


# Thaws that fail


def test_reply_to_the_thaw_is_lost(agent: SocketAgent, server: Scripted, disks: Disks, timers: Timers) -> None:
    disks.frozen = ["/"]
    server.then(THAW, answers_late)
    result = run(agent, "thawed")
    assert (result["changed"], result["count"], result["status_after"]) == (True, None, "thawed")
    assert "no reply within 300 s" in result["warnings"][0]
    assert timers.done == ["disarm"]


@pytest.mark.parametrize("loss", [swallows, fails("failed to thaw"), returns(1)])
def test_thaw_does_not_thaw(agent: SocketAgent, server: Scripted, disks: Disks, timers: Timers, loss: Step) -> None:
    disks.frozen = ["/"]
    server.then(THAW, loss)
    message, result = failure(agent, "thawed")
    assert "THE GUEST MAY BE FROZEN: its status is frozen." in message
    assert "fsfreeze --unfreeze" in message
    assert result["status_after"] == "frozen"
    assert timers.done == [], "it is needed more than ever"


def test_thaw_with_a_hook_that_fails(agent: SocketAgent, server: Scripted, disks: Disks, timers: Timers) -> None:
    def step(session: Any, request: Any) -> None:
        disks.frozen = []
        fails("fsfreeze hook has failed with status 1")(session, request)

    disks.frozen = ["/"]
    server.then(THAW, step)
    message, result = failure(agent, "thawed")
    assert "hook has failed" in message and "are thawed" in message
    assert result["status_after"] == "thawed"
    assert timers.done == ["disarm"]


# Filesystems in files of others


def fs(name: str, mountpoint: str, kind: str = "ext4") -> dict[str, Any]:
    """Return a filesystem as an agent lists it; whether its device is on a disk shows in its name."""
    disks = [{"bus-type": "virtio", "dev": f"/dev/{name}"}] if name.startswith("vd") else []
    return {"name": name, "mountpoint": mountpoint, "type": kind, "disk": disks}


ROOT, SMALL, LOOP, BIND = fs("vda", "/"), fs("vdb", "/small"), fs("loop0", "/loop"), fs("vda", "/b1")
# As bookworm's agent listed it, where /srv was mounted at /b1 after the loop device.
HANGS = [BIND, LOOP, SMALL, ROOT]


@pytest.mark.parametrize(
    ("listed", "points", "found"),
    [
        (HANGS, None, ("/loop", "/b1")),
        (HANGS, ["/b1", "/loop"], ("/loop", "/b1")),
        (HANGS, ["/", "/small", "/loop"], None),
        (HANGS, ["/", "/b1"], None),
        (HANGS, ["/loop"], None),
        ([LOOP, BIND, SMALL, ROOT], None, None),
        ([LOOP, SMALL, ROOT], None, None),
        ([SMALL, LOOP, ROOT], None, None),  # /small was mounted after: the file cannot be there
        ([BIND, SMALL, ROOT], None, None),
        ([BIND, fs("loop0", "/snap/core/1", "squashfs"), ROOT], None, None),
        ([BIND, fs("dm-0", "/crypt"), ROOT], None, ("/crypt", "/b1")),
        ([BIND, fs("md0", "/raid"), ROOT], None, ("/raid", "/b1")),
        # Subvolumes are one filesystem, of one device.
        ([fs("vda", "/home", "btrfs"), LOOP, fs("vda", "/", "btrfs")], None, ("/loop", "/home")),
        ([fs("loop0", "/again"), LOOP, ROOT], None, None),
        ([fs("loop0", "/again"), fs("loop1", "/inner"), LOOP, ROOT], None, ("/inner", "/again")),
    ],
)
def test_stacked(listed: list[Any], points: Any, found: Any) -> None:
    hit = stacked(filesystems(listed), points)
    assert (hit and tuple(filesystem.mountpoint for filesystem in hit)) == found


def test_what_to_name_instead_is_not_stacked() -> None:
    listed = filesystems(HANGS)
    assert first_mounted(listed) == ["/", "/small", "/loop"]
    assert first_mounted(listed, ["/b1", "/loop"]) == ["/", "/loop"]
    assert stacked(listed, first_mounted(listed)) is None


@pytest.mark.parametrize("check_mode", [False, True])
def test_stacked_filesystems_are_not_frozen(
    agent: SocketAgent, server: Scripted, timers: Timers, check_mode: bool
) -> None:
    server.answers[FSINFO] = HANGS
    message, _result = failure(agent, "frozen", thaw_after=5.0, check_mode=check_mode)
    assert "/loop is on loop0, which may lie in a file of vda" in message and "(version 7.2.22)" in message
    assert "mountpoints=['/', '/small', '/loop']" in message and "allow_stacked=true" in message
    assert not {FREEZE, LIST, THAW} & set(server.work)
    assert timers.notes == []


def test_stacked_filesystems_that_may_be_frozen(agent: SocketAgent, server: Scripted, disks: Disks) -> None:
    server.answers[FSINFO] = HANGS
    disks.points = ("/", "/small", "/loop")
    assert run(agent, "frozen", mountpoints=["/", "/small", "/loop"])["count"] == 3
    run(agent, "thawed")
    assert run(agent, "frozen", allow_stacked=True)["changed"] is True
    assert server.work.count(FSINFO) == 1


def test_newer_agent_is_not_asked(scripted: Start, connect: Connect, disks: Disks, server: Scripted) -> None:
    answers = {**disks.answers(), FSINFO: HANGS}
    newer = scripted(answers, path=server.path.with_suffix(".2"), release="11.1")
    assert run(connect(newer), "frozen")["changed"] is True
    assert FSINFO not in newer.work


def test_agent_that_cannot_tell_freezes_all_the_same(agent: SocketAgent, server: Scripted) -> None:
    server.answers[FSINFO] = []
    server.then(FSINFO, fails("failed to get sysfs path"))
    assert run(agent, "frozen")["changed"] is True


@pytest.mark.parametrize("garbage", ["x", 5, [None], [{}], [{**ROOT, "name": 1}], [{**ROOT, "disk": "vda"}]])
def test_garbage_in_place_of_filesystems(agent: SocketAgent, server: Scripted, garbage: Any) -> None:
    server.answers[FSINFO] = garbage
    with pytest.raises(ProtocolError):
        run(agent, "frozen")
    assert FREEZE not in server.work
