# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandUnavailable, OperationError
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_time
from ansible_collections.qemu.guest.plugins.modules.qga_time import OPERATION, Current, Measurement, instant, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Scripted

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]

SECOND = 1_000_000_000
MS = 1_000_000
NOW = 1_767_225_600 * SECOND
NO_HWCLOCK = "hwclock failed to set hardware clock to system time"


class Clocks:
    """The clocks of this machine and of a guest, and what the guest's agent answers.

    They run while requests travel (``delays``, in turn, each way) and while hwclock does (a second). ``error`` is what
    the agent reports after it has set the clock, ``refusal`` what it reports in place of that.
    """

    def __init__(self, offset: float = 0, rtc_offset: float = 0, error: str = "", refusal: str = "") -> None:
        self.now = 5 * SECOND
        self.offset = int(offset * SECOND)
        self.rtc_offset = int(rtc_offset * SECOND)
        self.error = error
        self.refusal = refusal
        self.delays = [50 * MS, 3 * MS, 1 * MS, 2 * MS, 9 * MS]
        self.asymmetry = 0
        self.set_to: list[Any] = []

    def time_ns(self) -> int:
        return NOW + self.now

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {"guest-get-time": self.get, "guest-set-time": self.set}

    def get(self, arguments: Mapping[str, Any]) -> int:
        delay = self.delays.pop(0)
        self.delays.append(delay)
        self.now += delay
        guest_time = self.time_ns() + self.offset
        self.now += delay
        return guest_time

    def set(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.set_to.append(arguments.get("time"))
        if self.refusal:
            raise AgentError(self.refusal)
        self.now += 1 * MS
        if "time" in arguments:
            self.offset = arguments["time"] - self.time_ns()
        elif not self.error:
            self.offset = self.rtc_offset
        self.now += SECOND
        if self.error:
            raise AgentError(self.error)
        return {}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, scripted: Start, connect: Connect) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the operation with a guest that has these clocks."""
    agents: dict[int, SocketAgent] = {}

    def run(clocks: Clocks, check_mode: bool = False, **given: Any) -> dict[str, Any]:
        stand_in = SimpleNamespace(time_ns=clocks.time_ns, monotonic_ns=lambda: clocks.now, strptime=time.strptime)
        monkeypatch.setattr(qga_time, "time", stand_in)
        if id(clocks) not in agents:
            agents[id(clocks)] = connect(scripted(clocks.answers()))
        params = {**{name: option.get("default") for name, option in OPERATION.spec.items()}, **given}
        result = run_operation(OPERATION, agents[id(clocks)], params, check_mode=check_mode, diff=True)
        assert set(result) - {"changed", "diff"} <= returned("qga_time")
        return result

    return run


Run = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("offset", "uncertainty", "tolerance", "changes"),
    [
        (0, 0.001, 1, False),
        (0.9, 0.001, 1, False),
        (1.0005, 0.001, 1, False),
        (-1.0005, 0.001, 1, False),
        (1.002, 0.001, 1, True),
        (-1.002, 0.001, 1, True),
        (3, 2.5, 1, False),
        (0.01, 0.001, 0, True),
        (0.001, 0.001, 0, False),
    ],
)
def test_plan(offset: float, uncertainty: float, tolerance: float, changes: bool) -> None:
    measured = Measurement(NOW, int(offset * SECOND), int(uncertainty * SECOND))
    planned = plan(Current(lambda: NOW, measured), {"state": "synced", "time": None, "tolerance": tolerance})
    assert planned.changes is changes
    assert planned.before == ({"offset": offset} if changes else {})
    assert planned.after == ({"offset": 0.0} if changes else {})
    assert planned.result == {"before": {"time": NOW, "offset": offset, "uncertainty": uncertainty}}


def test_plan_from_rtc() -> None:
    current = Current(lambda: NOW, Measurement(NOW, 0, 0))
    planned = plan(current, {"state": "from_rtc", "time": None, "tolerance": 1})
    assert planned.changes
    assert planned.diff() == []


def test_synced(run: Run) -> None:
    clocks = Clocks(offset=-3600.25)
    checked = run(clocks, check_mode=True)
    assert clocks.set_to == []
    assert checked["changed"] is True
    assert "after" not in checked
    result = run(clocks)
    assert result["changed"] is True
    assert result["rtc_set"] is True
    assert result["before"]["offset"] == -3600.25
    assert result["before"]["uncertainty"] == 0.001, "of the best of all measurements"
    assert result["after"]["offset"] == 0, "the request took as long as the question for the time"
    assert result["diff"] == checked["diff"]
    assert result["diff"][0]["before"] == {"offset": -3600.25}
    assert result["diff"][0]["after"] == {"offset": 0.0}
    assert "warnings" not in result
    again = run(clocks)
    assert again["changed"] is False
    assert "after" not in again
    assert len(clocks.set_to) == 1


def test_in_a_second_attempt(run: Run) -> None:
    clocks = Clocks(offset=10)
    set_time = clocks.set
    slow = [30 * MS, 0]

    def slowly(arguments: Mapping[str, Any]) -> dict[str, Any]:
        clocks.now += slow.pop(0)
        return set_time(arguments)

    clocks.set = slowly  # type: ignore[method-assign]
    result = run(clocks, tolerance=0.005)
    assert len(clocks.set_to) == 2
    assert abs(result["after"]["offset"]) < 0.001


def test_without_hwclock(run: Run) -> None:
    clocks = Clocks(offset=100, error=NO_HWCLOCK + "\n")
    result = run(clocks)
    assert result["changed"] is True
    assert result["rtc_set"] is False
    assert result["after"]["offset"] == 0
    assert f"its RTC is not, so the guest may boot with a wrong time: {NO_HWCLOCK}. The" in result["warnings"][0]
    assert "util-linux-extra" in result["warnings"][0]


def test_agent_that_sets_nothing_without_hwclock(run: Run) -> None:
    clocks = Clocks(offset=100, refusal="this feature or command is not currently supported")
    with pytest.raises(OperationError, match=r"was not set: this.*100\.000000 s off.*util-linux-extra") as caught:
        run(clocks)
    result = caught.value.as_result()
    assert result["changed"] is False
    assert result["before"]["offset"] == result["after"]["offset"] == 100
    assert result["error"]["type"] == "CommandError"


def test_agent_that_refuses_the_instant(run: Run) -> None:
    with pytest.raises(OperationError, match=r"Invalid time.*Agents take the years 1970 to 2069"):
        run(Clocks(refusal="Invalid time"), state="set", time="2100-01-01T00:00:00Z")


def test_clock_that_is_set_by_somebody_else(run: Run) -> None:
    clocks = Clocks(offset=100)
    clocks.set = lambda arguments: {}  # type: ignore[method-assign]
    with pytest.raises(OperationError, match=r"was set, and is 100\.000000 s off all the same\. Does"):
        run(clocks)


def test_set(run: Run) -> None:
    clocks = Clocks()
    result = run(clocks, state="set", time="2030-01-31T12:00:00Z")
    assert result["changed"] is True
    assert result["before"]["offset"] < -1e8
    assert result["after"]["offset"] == 0
    begun = instant("2030-01-31T12:00:00Z")
    assert begun < clocks.set_to[0] < begun + SECOND, "the time since the task began is in it"
    assert run(clocks, state="set", time="2030-01-31T12:00:00Z", tolerance=5)["changed"] is False


def test_from_rtc(run: Run) -> None:
    clocks = Clocks(offset=500, rtc_offset=0.5)
    assert run(clocks, check_mode=True, state="from_rtc")["changed"] is True
    assert clocks.set_to == []
    result = run(clocks, state="from_rtc")
    assert result["changed"] is True
    assert (result["before"]["offset"], result["after"]["offset"]) == (500, 0.5)
    assert "rtc_set" not in result
    again = run(clocks, state="from_rtc")
    assert again["changed"] is False, "it was not moved"
    assert clocks.set_to == [None, None]


def test_from_rtc_without_hwclock(run: Run) -> None:
    with pytest.raises(OperationError, match=f"was not set from its RTC: {NO_HWCLOCK}.*needs /sbin/hwclock"):
        run(Clocks(offset=500, error=NO_HWCLOCK), state="from_rtc")


def test_agent_that_may_not(scripted: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(offset=100)
    answers = clocks.answers()
    del answers["guest-set-time"]
    server = scripted(answers, blocked={"guest-set-time": "Command guest-set-time has been disabled"})
    params = {"state": "synced", "time": None, "tolerance": 1.0}
    with pytest.raises(CommandUnavailable, match="guest-set-time was not run: disabled"):
        run_operation(OPERATION, connect(server), params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tolerance": -1}, "tolerance: -1 is not a number of seconds of at least 0"),
        ({"time": "0"}, "time: is for state: set only"),
        ({"time": "0", "state": "from_rtc"}, "time: is for state: set only"),
    ],
)
def test_options_that_make_no_sense(run: Run, params: Any, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        run(Clocks(), **params)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1896091200", 1896091200),
        ("1896091200.000000001", 1896091200 + 1e-9),
        ("1970-01-01T00:00Z", 0),
        ("2030-01-31T12:00:00Z", 1896091200),
        ("2030-01-31t12:00:00z", 1896091200),
        ("2030-01-31 12:00:00 +00:00", 1896091200),
        ("2030-01-31T14:30:00+02:30", 1896091200),
        ("2030-01-31T04:00:00-0800", 1896091200),
        ("2030-01-31T12:00:00.5Z", 1896091200.5),
        ("2030-01-31T12:00:00,250Z", 1896091200.25),
        # What YAML makes of an instant without quotes.
        (str(datetime(2030, 1, 31, 12, tzinfo=timezone.utc)), 1896091200),
        (datetime(2030, 1, 31, 12, 0, 0, 250000, tzinfo=timezone.utc).isoformat(), 1896091200.25),
    ],
)
def test_instant(text: str, seconds: float) -> None:
    assert instant(text) == pytest.approx(seconds * SECOND, abs=200)


def test_instant_is_exact() -> None:
    assert instant("1896091200.123456789") == 1896091200_123456789
    assert instant("2030-01-31T12:00:00.123456789Z") == 1896091200_123456789


@pytest.mark.parametrize(
    "text", ["", "now", "-1", "1e9", "2030-01-31", "2030-01-31T12:00:00", "2030-02-30T12:00:00Z", "2030-01-31T25:00Z"]
)
def test_no_instant(text: str) -> None:
    with pytest.raises(OperationError, match=r"time: .* should be like 2030-01-31T12:00:00Z"):
        instant(text)
