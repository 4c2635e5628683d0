#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_time
short_description: Set a guest's clock
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Measures how far a guest's clock is off (C(guest-get-time)) and sets it (C(guest-set-time)) if that is more than
    tolerated, as after a guest was paused or restored from a file.
  - The measure is the clock of the machine that the task runs on, usually the hypervisor. Where O(address) is left out,
    that is the controller.
  - The agent then sets the guest's hardware clock (RTC) too, by C(/sbin/hwclock). Where the guest has no such program,
    there is a warning. Older agents (5.2 and 7.2 are) refuse to set anything then, and the task fails.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
    details:
      - The agent cannot read the RTC, so O(state=from_rtc) always reports a change.
  diff_mode:
    support: partial
    details:
      - It shows the offset. What O(state=from_rtc) will make of it is not known before.
  idempotent:
    support: partial
    details:
      - With O(state=synced), the second run reports no change.
      - With O(state=set), each run means the same instant, so time that has passed in between counts as an offset.
      - With O(state=from_rtc), the clock is set every time, and reported as changed if that moved it by more than
        O(tolerance).
options:
  state:
    description:
      - V(synced) makes the guest's clock agree with that of the machine that the task runs on.
      - V(set) makes it show O(time) at the moment when the task begins.
      - V(from_rtc) makes the guest set its clock from its RTC, which is as precise as a second.
    type: str
    choices: [synced, set, from_rtc]
    default: synced
  time:
    description:
      - The instant for O(state=set), as ISO 8601 with a time zone, such as V(2030-01-31T12:00:00Z) or
        V(2030-01-31 12:00:00.25+02:00), or in seconds since 1970-01-01 UTC, such as V(1896091200).
      - Agents take the years 1970 to 2069. Linux refuses an instant that would mean that it booted before 1970.
    type: str
  tolerance:
    description:
      - How many seconds the clock may be off. What is within the uncertainty of the measurement is tolerated as well.
    type: float
    default: 1.0
notes:
  - The uncertainty is half of the time that the agent takes to answer, at best of five times. Over virtio-serial that
    is about a millisecond.
  - A service in the guest that sets the clock as well, such as chrony, may set it otherwise.
seealso:
  - module: qemu.guest.qga_info
"""

EXAMPLES = r"""
- name: Set the clock of a guest that was paused
  qemu.guest.qga_time:
    address: /run/vm1.qga
    tolerance: 0.5

- name: See what the guest does in 2038
  qemu.guest.qga_time:
    address: /run/vm1.qga
    state: set
    time: "2038-01-19T03:14:00Z"

- name: Only measure
  qemu.guest.qga_time:
    address: /run/vm1.qga
  check_mode: true
  register: clock
"""

RETURN = r"""
before:
  description: What was measured first.
  type: dict
  returned: when the clock could be measured
  contains:
    time:
      description: The guest's time in nanoseconds since 1970-01-01 UTC.
      type: int
      returned: always
      sample: 1767225600000000000
    offset:
      description:
        - Seconds that the guest's clock is ahead, negative if it is behind. With O(state=set), it is compared with the
          wanted instant plus the time that passed since the task began, otherwise with the clock of the machine that
          the task runs on.
      type: float
      returned: always
      sample: -3600.004217
    uncertainty:
      description: Seconds by which the offset may be wrong in either direction.
      type: float
      returned: always
      sample: 0.000412
after:
  description: The same, measured again after the clock was set.
  type: dict
  returned: when the clock was set
  sample: {"time": 1767229201000000000, "offset": 0.000204, "uncertainty": 0.000398}
rtc_set:
  description: Whether the agent says that it set the RTC as well.
  type: bool
  returned: when the clock was set, unless it was from the RTC
  sample: true
"""

import calendar
import re
import time
from decimal import Decimal
from typing import Any, Callable, Mapping, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["synced", "set", "from_rtc"], "default": "synced"},
    "time": {"type": "str"},
    "tolerance": {"type": "float", "default": 1.0},
}

_SECOND = 1_000_000_000
_SAMPLES = 5
# The first attempt may be imprecise, because parts of the agent are read from the guest's disk; the second is not.
_ATTEMPTS = 2

_HWCLOCK = (
    "The agent needs /sbin/hwclock in the guest: package util-linux-extra in Debian 13 and later, else util-linux. "
    "Older agents (5.2 and 7.2 are) look for it only once: restart them after that."
)
_REFUSED = "Agents take the years 1970 to 2069, and Linux no instant that would mean that it booted before 1970."

Clock = Callable[[], int]


class Measurement(NamedTuple):
    """How far the guest's clock is off; all in nanoseconds."""

    time: int
    offset: int
    uncertainty: int

    def exceeds(self, tolerance: float) -> bool:
        return abs(self.offset) - self.uncertainty > tolerance * _SECOND

    def described(self) -> dict[str, Any]:
        return {"time": self.time, "offset": self.offset / _SECOND, "uncertainty": self.uncertainty / _SECOND}


class Current(NamedTuple):
    """The clock that the guest's should agree with, and the measured offset of the guest's."""

    wanted: Clock
    measured: Measurement


# read


def read(agent: Agent, params: Params) -> Current:
    wanted = _wanted_clock(params)
    return Current(wanted, _measure(agent, wanted))


def _wanted_clock(params: Params) -> Clock:
    if params["state"] == "set":
        # The wanted clock starts now, and runs like ours.
        ahead = instant(params["time"]) - time.monotonic_ns()
        return lambda: time.monotonic_ns() + ahead
    if params["time"] is not None:
        raise OperationError("time: is for state: set only")
    return time.time_ns


_ISO = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d)?([.,]\d{1,9})? ?(Z|[+-]\d\d:?\d\d)", re.IGNORECASE)
_EPOCH = re.compile(r"\d{1,10}(\.\d{1,18})?")
_LARGEST = 2**63 - 1  # the agent's integers have 64 bits


def instant(text: str) -> int:
    """Return an instant in nanoseconds since the epoch.

    :raise OperationError: if it is neither ISO 8601 with a time zone nor a number of seconds.
    """
    try:
        value = int(Decimal(text) * _SECOND) if _EPOCH.fullmatch(text) else _of_iso(text)
        if abs(value) > _LARGEST:
            raise ValueError("agents know no time before 1678 or after 2262")
        return value
    except ValueError as exc:
        raise OperationError(
            f"time: {text!r} should be like 2030-01-31T12:00:00Z or 2030-01-31T12:00:00+02:00, or a number of seconds "
            f"since 1970-01-01 UTC ({exc})"
        ) from exc


def _of_iso(text: str) -> int:
    match = _ISO.fullmatch(text)
    if not match:
        raise ValueError("no time zone, or another form")
    day, minutes, seconds, fraction, zone = match.groups()
    parsed = time.strptime(f"{day} {minutes}{seconds or ':00'}", "%Y-%m-%d %H:%M:%S")
    return (calendar.timegm(parsed) - _zone_seconds(zone)) * _SECOND + int((fraction or ".")[1:].ljust(9, "0"))


def _zone_seconds(zone: str) -> int:
    if zone in "Zz":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[-2:])
    if hours > 23 or minutes > 59:
        raise ValueError(f"{zone} is no time zone")
    seconds = hours * 3600 + minutes * 60
    return -seconds if zone[0] == "-" else seconds


def _measure(agent: Agent, wanted: Clock) -> Measurement:
    """Return the best of several measurements: the one with the shortest round trip."""
    samples = []
    for _sample in range(_SAMPLES):
        asked, wanted_then = time.monotonic_ns(), wanted()
        guest_time = agent.execute("guest-get-time")
        half = (time.monotonic_ns() - asked) // 2
        samples.append(Measurement(guest_time, guest_time - (wanted_then + half), half))
    return min(samples, key=lambda sample: sample.uncertainty)


# plan


def plan(current: Current, params: Params) -> Plan:
    before = current.measured.described()
    todo = (current, params)
    if params["state"] == "from_rtc":
        return Plan(changed=True, todo=todo, result={"before": before})
    if not current.measured.exceeds(params["tolerance"]):
        return Plan(result={"before": before})
    return Plan(
        before={"offset": before["offset"]},
        after={"offset": 0.0},
        todo=todo,
        result={"before": before},
        subject="clock",
    )


# apply


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    current, params = plan.todo
    if params["state"] == "from_rtc":
        return _set_from_rtc(agent, current, params["tolerance"])
    return _set_to_wanted(agent, current, params["tolerance"])


def _set_to_wanted(agent: Agent, current: Current, tolerance: float) -> Mapping[str, Any]:
    for _attempt in range(_ATTEMPTS):
        # The request is assumed to take as long as the one for the time did.
        value = current.wanted() + current.measured.uncertainty
        error = _set_time(agent, {"time": value})
        after = _measure(agent, current.wanted)
        if not after.exceeds(tolerance):
            break
    result = {**_moved(current.measured, after, tolerance), "rtc_set": error is None}
    if after.exceeds(tolerance):
        raise _failure("was not set", error, result)
    if error:
        # Agents set the clock first, then the RTC, and report only that the RTC failed.
        reason = error.message.strip()
        result["warnings"] = [
            f"The guest's clock is set; its RTC is not, so the guest may boot with a wrong time: {reason}. {_HWCLOCK}"
        ]
    return {**result, "changed": True}


def _set_from_rtc(agent: Agent, current: Current, tolerance: float) -> Mapping[str, Any]:
    error = _set_time(agent, None)
    result = _moved(current.measured, _measure(agent, current.wanted), tolerance)
    if error:
        raise _failure("was not set from its RTC", error, result)
    return result


def _set_time(agent: Agent, arguments: Mapping[str, Any] | None) -> CommandError | None:
    """Ask the agent to set the time; return its error, after which the clock may be set all the same."""
    try:
        agent.execute("guest-set-time", arguments)
    except CommandUnavailable:
        raise
    except CommandError as exc:
        return exc
    return None


def _moved(before: Measurement, after: Measurement, tolerance: float) -> dict[str, Any]:
    step = Measurement(after.time, after.offset - before.offset, before.uncertainty + after.uncertainty)
    return {"before": before.described(), "after": after.described(), "changed": step.exceeds(tolerance)}


def _failure(what: str, error: CommandError | None, result: Mapping[str, Any]) -> OperationError:
    offset = f"{result['after']['offset']:.6f} s off"
    if not error:
        return OperationError(
            f"The guest's clock was set, and is {offset} all the same. Does something else in the guest set it, or is "
            "the tolerance too small?",
            result=result,
        )
    reason = error.message.strip()
    hint = _REFUSED if "Invalid" in reason else _HWCLOCK
    return OperationError(
        f"The guest's clock {what}: {reason}. It is {offset}. {hint}", result={**result, **error.as_result()}
    )


OPERATION = Operation(
    SPEC, read, plan, apply, {"required_if": [("state", "set", ["time"])]}, may_be_zero=("tolerance",)
)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
