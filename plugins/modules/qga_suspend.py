#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_suspend
short_description: Suspend a guest to RAM or to disk, and wake it
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Has the guest suspend itself, through the C(guest-suspend-*) commands of its QEMU Guest Agent, and wakes it through
    QEMU's C(system_wakeup).
  - The agent does not answer those commands. So the task waits until QEMU says that the guest sleeps
    (O(qmp_address)), or else until the agent has gone. It fails if neither happens within O(timeout).
  - A guest that sleeps in RAM needs QEMU to wake it. Before it is suspended, QEMU is asked whether it can.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
    details:
      - QEMU is asked whether it can wake the guest, the agent whether it may suspend it.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - Full with O(qmp_address), because the agent of a guest that sleeps cannot be asked. Without, the task fails on a
        guest that sleeps already. To find a guest suspended to disk, QEMU must still run (its option C(-no-shutdown)).
options:
  state:
    description:
      - V(suspended) suspends the guest, V(awake) wakes one that is suspended to RAM and waits until its agent answers.
      - V(awake) needs O(qmp_address). A guest that is suspended to disk wakes when its QEMU is started again.
    type: str
    choices: [suspended, awake]
    default: suspended
  mode:
    description:
      - V(ram) keeps the guest in QEMU's memory. V(disk) saves it to the guest's disk and turns the machine off.
        V(hybrid) does the former and saves it as well.
      - Guests often allow V(ram) only. V(disk) and V(hybrid) need swap space in the guest, and V(hybrid) needs systemd
        or pm-utils.
    type: str
    choices: [ram, disk, hybrid]
    default: ram
  qmp_address:
    description:
      - Where a QMP socket of the guest's QEMU is, seen from the machine that the task runs on; on a host whose
        connection is P(qemu.guest.qga#connection), from the controller. It has the forms that O(address) has.
      - QMP serves one client per socket. The socket of a guest that libvirt runs belongs to libvirt.
      - Required for O(state=awake), and for O(mode=ram) and O(mode=hybrid) unless O(wakeup_verified) is set.
    type: str
  wakeup_verified:
    description:
      - Suspend to RAM without O(qmp_address). You have made sure that this QEMU has C(system_wakeup), and you can send
        it by other means, such as C(virsh dompmwakeup). A guest that nobody can wake is lost.
      - Where O(qmp_address) is given, QEMU is asked all the same.
    type: bool
    default: false
  timeout:
    description:
      - Seconds in which the guest must be asleep, or awake with its agent answering.
    type: float
    default: 60
seealso:
  - module: qemu.guest.qga_shutdown
"""

EXAMPLES = r"""
- name: Suspend a guest to RAM
  qemu.guest.qga_suspend:
    address: /run/vm1.qga
    qmp_address: /run/vm1.qmp

- name: Wake it
  qemu.guest.qga_suspend:
    address: /run/vm1.qga
    qmp_address: /run/vm1.qmp
    state: awake
"""

RETURN = r"""
state:
  description: The state that was asked for.
  type: str
  returned: success
  sample: suspended
status:
  description:
    - The machine's status in QMP's words, after what was done. In check mode, where nothing is done, the present one.
  type: str
  returned: success
  sample: suspended
confirmed_by:
  description:
    - What confirmed it. V(event), V(status) and V(eof) were told by QEMU, by an event, by its status, or by ending.
    - V(agent) means that the agent has gone.
  type: str
  returned: when the guest was suspended or woken
  sample: event
elapsed:
  description: Seconds from the command to its confirmation or, when the guest was woken, to the agent's answer.
  type: float
  returned: when the guest was suspended or woken
  sample: 5.1
"""

import time
from types import MappingProxyType
from typing import Any, Mapping, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.power import (
    USUAL,
    Presence,
    Timing,
    monitor,
    qemu_tells,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.qmp import Qmp
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["suspended", "awake"], "default": "suspended"},
    "mode": {"type": "str", "choices": ["ram", "disk", "hybrid"], "default": "ram"},
    "qmp_address": {"type": "str"},
    "wakeup_verified": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 60},
}

# The machine's status after each mode, and the events that announce it.
_STATUS = {"ram": "suspended", "hybrid": "suspended", "disk": "shutdown"}
_EVENTS = {"ram": ("SUSPEND",), "hybrid": ("SUSPEND",), "disk": ("SUSPEND_DISK", "SHUTDOWN")}

# The agent tries several ways one after the other before it reports that none worked: 5 s in an emulated guest.
# Suspending to RAM mostly works, and then the wait is lost time.
_SECONDS_TO_FAIL = MappingProxyType({"ram": 5.0, "hybrid": 20.0, "disk": 20.0})

_HINTS = {
    "ram": "The guest refused. Its machine may have S3 turned off (disable_s3), or its log says why.",
    "disk": "The guest refused. It needs swap space as large as its memory, and a machine that has S4 (disable_s4).",
    "hybrid": "The guest refused. It needs systemd or pm-utils for this mode, and swap space as large as its memory.",
}


_COMMANDS = {"ram": "guest-suspend-ram", "disk": "guest-suspend-disk", "hybrid": "guest-suspend-hybrid"}


class Current(NamedTuple):
    """The machine's ``status`` in QMP's terms, and why QEMU cannot wake the guest: empty if it can."""

    status: str
    why_not_wake: str = ""


def read(agent: Agent, params: Params) -> Current:
    mode, suspend = params["mode"], params["state"] == "suspended"
    if not suspend and not params["qmp_address"]:
        raise OperationError("qmp_address is required for state awake: it is QEMU that wakes a guest.")
    if suspend and mode != "disk" and not params["qmp_address"] and not params["wakeup_verified"]:
        raise OperationError(
            f"qmp_address is required for mode {mode}: QEMU must be asked whether it can wake the guest, which would "
            "be lost otherwise. If you know that it can, and have other means to wake it, set wakeup_verified."
        )
    # QEMU first, because the agent of a suspended guest does not answer.
    with monitor(params["qmp_address"]) as qmp:
        current = Current(qmp.status(), qmp.why_not_wake()) if qmp else Current("running")
    if suspend and current.status == "running":
        agent.require(_COMMANDS[mode])
    return current


def plan(current: Current, params: Params) -> Plan:
    state, mode = params["state"], params["mode"]
    wanted = _STATUS[mode] if state == "suspended" else "running"
    from_status = "running" if state == "suspended" else "suspended"
    if current.status not in (from_status, wanted):
        raise OperationError(
            f"the machine's status is {current.status}; to become {wanted}, it would have to be {from_status} first."
        )
    changes = current.status != wanted
    if changes and current.why_not_wake and "suspended" in (current.status, wanted):
        raise OperationError(
            f"this QEMU cannot wake a guest that is suspended to RAM: {current.why_not_wake}. Nothing was done."
        )
    return Plan(
        before={"status": current.status},
        after={"status": wanted},
        todo=params,
        result={"state": state, "status": current.status},
    )


def apply(
    agent: Agent,
    plan: Plan,
    timing: Timing = USUAL,
    seconds_to_fail: Mapping[str, float] = _SECONDS_TO_FAIL,
) -> Mapping[str, Any]:
    params = plan.todo
    presence = Presence(agent, timing)
    # Connected before the command, so that no QEMU event is missed.
    with monitor(params["qmp_address"]) as qmp:
        started = time.monotonic()
        deadline = Deadline(params["timeout"])
        if qmp and params["state"] == "awake":
            confirmed_by = _wake(presence, qmp, deadline)
        else:
            _send(agent, params["mode"], min(seconds_to_fail[params["mode"]], deadline.seconds))
            confirmed_by = _falls_asleep(presence, qmp, params["mode"], deadline)
        elapsed = round(time.monotonic() - started, 3)
    return {"status": plan.after["status"], "confirmed_by": confirmed_by, "elapsed": elapsed}


def _send(agent: Agent, mode: str, seconds: float) -> None:
    try:
        agent.execute(_COMMANDS[mode], timeout=seconds)
    except CommandUnavailable:
        raise
    except CommandError as exc:
        exc.hint = exc.hint or _HINTS[mode]
        raise


def _falls_asleep(presence: Presence, qmp: Qmp | None, mode: str, deadline: Deadline) -> str:
    while not deadline.expired:
        moment = presence.moment(deadline)
        if qmp:
            confirmed_by = qemu_tells(qmp, _EVENTS[mode], _STATUS[mode], moment)
            if confirmed_by:
                return confirmed_by
            continue
        presence.look(deadline)
        if presence.gone:
            return "agent"
        time.sleep(moment.left())
    raise OperationError(
        f"{_COMMANDS[mode]} was sent, and the guest was not seen to suspend within {deadline.seconds:g} s; "
        f"{presence.in_words()}. It may still do so: look at it before you repeat the command."
    )


def _wake(presence: Presence, qmp: Qmp, deadline: Deadline) -> str:
    qmp.execute("system_wakeup")
    confirmed_by = ""
    while not deadline.expired:
        moment = presence.moment(deadline)
        confirmed_by = confirmed_by or qemu_tells(qmp, ("WAKEUP",), "running", moment)
        if confirmed_by and presence.look(deadline):
            return confirmed_by
        time.sleep(moment.left())
    outcome = f"it is awake (by QEMU's {confirmed_by}), but its agent does not answer" if confirmed_by else "it sleeps"
    raise OperationError(f"the guest was told to wake up, and after {deadline.seconds:g} s {outcome}.")


OPERATION = Operation(SPEC, read, plan, apply)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
