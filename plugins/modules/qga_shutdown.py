#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_shutdown
short_description: Shut a guest down, halt it or reboot it, and make sure that it did
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Has the guest shut itself down in good order, through C(guest-shutdown) of its QEMU Guest Agent.
  - The agent does not answer that command. So the task waits until QEMU says what became of the guest (O(qmp_address)),
    or else until the agent has gone. It fails if neither happens within O(timeout).
  - After a reboot it waits until the agent is back, and makes sure that it is the agent of a new boot.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
    details:
      - The agent is asked whether it may shut the guest down.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - A guest that is off already is no change for O(mode=powerdown), where O(qmp_address) can tell so because QEMU
        still runs (its option C(-no-shutdown)). In all other cases nobody is there to ask, and the task fails.
      - A reboot always is a change.
options:
  mode:
    description:
      - V(powerdown), or V(poweroff), turns the machine off. QEMU ends then, or has the status V(shutdown) if it was
        started with C(-no-shutdown).
      - V(halt) stops the guest's system but leaves the machine on. QEMU goes on and tells nothing of it.
      - V(reboot) starts the guest's system anew.
    type: str
    choices: [powerdown, poweroff, halt, reboot]
    default: powerdown
  qmp_address:
    description:
      - Where a QMP socket of the guest's QEMU is, seen from the machine that the task runs on; on a host whose
        connection is P(qemu.guest.qga#connection), from the controller. It has the forms that O(address) has.
      - QMP serves one client per socket. The socket of a guest that libvirt runs belongs to libvirt.
      - Without it, that the agent has gone is all that is known. It proves that the guest is going down, not that it
        is off.
    type: str
  timeout:
    description:
      - Seconds in which the guest must have gone down and, if O(wait_for_agent), come back.
    type: float
    default: 300
  wait_for_agent:
    description:
      - After a reboot, wait until the agent answers again. Has no effect on the other modes.
    type: bool
    default: true
notes:
  - What a guest does that is told to shut down is for the guest to decide. One that has not been seen to do it within
    O(timeout) may do it later.
  - An agent may say that it failed while its guest goes down, because systemd's answer got lost in that. The task then
    looks whether the agent goes away, fails after 15 seconds if it does not, and else warns.
  - Where the agent allows neither C(guest-file-read) nor C(guest-get-cpustats), and O(qmp_address) is not given, that a
    guest has rebooted cannot be proven. The task warns then.
seealso:
  - module: qemu.guest.qga_suspend
  - module: qemu.guest.qga_ping
"""

EXAMPLES = r"""
- name: Turn a guest off and make sure that it is
  qemu.guest.qga_shutdown:
    address: /run/vm1.qga
    qmp_address: /run/vm1.qmp

- name: Reboot a guest and wait until it can be configured again
  qemu.guest.qga_shutdown:
    address: /run/vm1.qga
    mode: reboot
    timeout: 120
"""

RETURN = r"""
mode:
  description: The mode that was asked for.
  type: str
  returned: success
  sample: reboot
confirmed_by:
  description:
    - What confirmed it. V(event), V(status) and V(eof) were told by QEMU, by an event, by its status, or by ending.
    - V(boot_id) and V(uptime) were told by the agent after a reboot.
    - V(agent) means that the agent has gone, and after a reboot with O(wait_for_agent) that it is back.
  type: str
  returned: when the guest was told to shut down
  sample: event
elapsed:
  description: Seconds from the command to its confirmation or, after a reboot, to the agent's return.
  type: float
  returned: when the guest was told to shut down
  sample: 9.2
boot_id_before:
  description: What a Linux guest's C(/proc/sys/kernel/random/boot_id) was, where the agent may read files.
  type: str
  returned: when known
  sample: f7dcfde2-f6bb-4a45-8205-5f342231e913
boot_id_after:
  description: What it is after a reboot.
  type: str
  returned: when known
  sample: 95c65bab-52b6-4ca3-9db1-a7e55dda45b7
"""

import time
from typing import Any, Mapping, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
    QmpLostError,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.power import (
    USUAL,
    Boot,
    Presence,
    Timing,
    boot_of,
    monitor,
    qemu_tells,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.qmp import Qmp
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "mode": {"type": "str", "choices": ["powerdown", "poweroff", "halt", "reboot"], "default": "powerdown"},
    "qmp_address": {"type": "str"},
    "timeout": {"type": "float", "default": 300},
    "wait_for_agent": {"type": "bool", "default": True},
}

_UNPROVEN = (
    "The agent went away and is back, but that the guest has rebooted cannot be proven: this agent allows neither "
    "guest-file-read nor guest-get-cpustats. Give qmp_address, and QEMU tells."
)


class Current(NamedTuple):
    """The machine's ``status`` in QMP's terms (C(running) if its agent answers), and its present boot."""

    status: str
    boot: Boot = Boot()


def read(agent: Agent, params: Params) -> Current:
    with monitor(params["qmp_address"]) as qmp:
        status = qmp.status() if qmp else "running"
    if status != "running":
        return Current(status)
    agent.require("guest-shutdown")
    return Current(status, boot_of(agent))


def plan(current: Current, params: Params) -> Plan:
    # The agent's word, and that of systemctl.
    mode, boot_id = params["mode"].replace("poweroff", "powerdown"), current.boot.id
    off = current.status == "shutdown" and mode == "powerdown"
    if current.status != "running" and not off:
        raise OperationError(
            f"the machine's status is {current.status}: nobody in the guest can take the command for a {mode}. "
            "It must be running first."
        )
    result = {"mode": mode, **({"boot_id_before": boot_id} if boot_id else {})}
    if mode == "reboot":
        before, after = {"status": "running", "boot": boot_id or "this"}, {"status": "running", "boot": "another"}
    else:
        before, after = {"status": current.status}, {"status": "halted" if mode == "halt" else "shutdown"}
    return Plan(before=before, after=after, todo=(current.boot, {**params, "mode": mode}), result=result)


def apply(agent: Agent, plan: Plan, timing: Timing = USUAL) -> Mapping[str, Any]:
    before, params = plan.todo
    presence = Presence(agent, timing)
    # Connected before the command, so that no QEMU event is missed.
    with monitor(params["qmp_address"]) as qmp:
        started = time.monotonic()
        deadline = Deadline(params["timeout"])
        failure = _send(agent, params["mode"], timing)
        if params["mode"] == "reboot":
            result: dict[str, Any] = _Reboot(agent, qmp, before, params["wait_for_agent"], presence).follow(deadline)
        else:
            result = {"confirmed_by": _goes_down(presence, qmp, params["mode"], deadline)}
    result["elapsed"] = round(time.monotonic() - started, 3)
    if failure:
        result["warnings"] = [*result.get("warnings", ()), f"The guest did it, though its agent said: {failure}"]
    return result


def _send(agent: Agent, mode: str, timing: Timing) -> str:
    """Send the command; return the agent's message if it reported a failure although its guest went down."""
    try:
        agent.execute("guest-shutdown", {"mode": mode})
    except CommandUnavailable:
        raise
    except CommandError as exc:
        if not Presence(agent, timing).goes():
            raise
        return exc.message.strip()
    return ""


def _goes_down(presence: Presence, qmp: Qmp | None, mode: str, deadline: Deadline) -> str:
    while not deadline.expired:
        moment = presence.moment(deadline)
        if qmp:
            confirmed_by = qemu_tells(qmp, ("SHUTDOWN",), "shutdown", moment)
            if confirmed_by:
                return confirmed_by
        if not qmp or mode == "halt":  # QEMU has no event for a halt
            presence.look(deadline)
            if presence.gone:
                return "agent"
        time.sleep(moment.left())
    raise _unconfirmed(mode, deadline, presence)


class _Reboot:
    """Follows a reboot until it is confirmed and, if wanted, until the agent is back."""

    def __init__(self, agent: Agent, qmp: Qmp | None, before: Boot, wait_for_agent: bool, presence: Presence) -> None:
        self._agent = agent
        self._qmp = qmp
        self._before = before
        self._wait_for_agent = wait_for_agent
        self._presence = presence
        self._confirmed_by = ""

    def follow(self, deadline: Deadline) -> dict[str, Any]:
        while not deadline.expired:
            self._listen(self._presence.moment(deadline))
            if self._confirmed_by and not self._wait_for_agent:
                return {"confirmed_by": self._confirmed_by}
            if self._presence.look(deadline):
                result = self._returned()
                if result:
                    return result
                # The agent was slow, not gone: this is still the old boot.
                self._confirmed_by = ""
            elif self._presence.gone and not self._qmp:
                self._confirmed_by = "agent"
        if not self._confirmed_by:
            raise _unconfirmed("reboot", deadline, self._presence)
        raise OperationError(
            f"the guest went down to reboot (confirmed by {self._confirmed_by}), and its agent was not back "
            f"{deadline.seconds:g} s after the command. It may still be booting."
        )

    def _listen(self, moment: Deadline) -> None:
        """Wait until ``moment`` has passed or QEMU reports a reset.

        :raise OperationError: if QEMU reports a shutdown instead.
        """
        if not self._qmp:
            time.sleep(moment.left())
            return
        try:
            event = self._qmp.wait(("RESET", "SHUTDOWN"), moment)
        except QmpLostError as exc:
            if not exc.closed:
                raise
            event = "SHUTDOWN"
        if event == "SHUTDOWN":
            raise OperationError(
                "the guest was told to reboot, and QEMU shut the machine down. Was it started with -no-reboot, or did "
                "somebody end it?"
            )
        if event:
            self._confirmed_by = "event"

    def _returned(self) -> dict[str, Any]:
        """Return the result if the agent, which answers, runs in a new boot."""
        now = boot_of(self._agent)
        proof = now.proven_new(self._before)
        result: dict[str, Any] = {"boot_id_after": now.id} if now.id else {}
        if self._confirmed_by == "event" or proof == "boot_id" or (proof and self._presence.was_away):
            return {**result, "confirmed_by": self._confirmed_by if self._confirmed_by == "event" else proof}
        if self._presence.was_away and not self._qmp and not now.comparable(self._before):
            return {**result, "confirmed_by": "agent", "warnings": [_UNPROVEN]}
        return {}


def _unconfirmed(mode: str, deadline: Deadline, presence: Presence) -> OperationError:
    return OperationError(
        f"guest-shutdown was sent, and the guest was not seen to {mode} within {deadline.seconds:g} s; "
        f"{presence.in_words()}. It may still do so: look at it before you repeat the command."
    )


OPERATION = Operation(SPEC, read, plan, apply)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
