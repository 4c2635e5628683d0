#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_fsfreeze
short_description: Freeze or thaw a guest's filesystems
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Has the guest write all its data to its disks and stop writing, so that a snapshot of the disks is consistent.
  - While it is frozen, programs in the guest that write wait, and the agent takes no other commands than thawing.
  - A freeze that fails leaves everything thawed, and the message says so. Where that cannot be made sure, the message
    says that, and a process goes on trying.
  - Nothing is frozen unless the agent allows C(guest-fsfreeze-thaw) and C(guest-fsfreeze-status).
  - Nothing is frozen either where that would hang an agent older than 10.0 and the guest with it (see
    O(allow_stacked)).
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
  - qemu.guest.freeze
attributes:
  check_mode:
    support: full
    details:
      - Nothing is frozen, thawed, armed or disarmed. O(state=thawed) reports a change if C(guest-fsfreeze-status) says
        V(frozen); what is frozen although it says V(thawed) shows only when thawing.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - A guest that is frozen already is not frozen again, whoever froze it. O(thaw_after) arms a timer all the same,
        in place of the one that may be armed. That is not reported as a change, since the guest does not change.
options:
  state:
    description:
      - V(frozen) freezes all local filesystems of the guest, or those of O(mountpoints).
      - V(thawed) thaws all, and disarms the timer. The command is sent whatever C(guest-fsfreeze-status) says, because
        filesystems can be frozen of which that does not tell. RV(count) tells how many were.
      - At each thaw the agent runs the guest administrator's hook (C(fsfreeze-hook)) with C(thaw), also where nothing
        was frozen.
    type: str
    choices: [frozen, thawed]
    required: true
  mountpoints:
    description:
      - The mount points of the filesystems to freeze, as the guest has them. Each must be a filesystem of its own.
      - The task fails, and thaws, if fewer filesystems were frozen than are listed here.
      - On a guest that is frozen already, nothing more is frozen, and a warning says so.
      - This needs an agent that has C(guest-fsfreeze-freeze-list), 2.2 or newer. Only for O(state=frozen).
    type: list
    elements: str
  thaw_after:
    description:
      - Arms a timer before the guest is frozen. After this many seconds it thaws the guest, even if the play, the
        module or the controller have died.
      - The timer is a process of its own on the machine that runs the operation. With O(address), that is the machine
        where the task runs, usually the hypervisor. On a host whose connection is P(qemu.guest.qga#connection), it is
        the controller.
      - O(state=thawed) disarms it, if that runs on the same machine as the same user. So does any later freeze.
      - While the agent does not answer, or another client has the channel, the timer goes on trying, for an hour. It
        writes to syslog what it did.
      - A freeze that takes longer than this has failed. Only for O(state=frozen).
      - Without it, a frozen guest stays frozen until something thaws it, however long that is.
      - There is such a process then, too, but only until the agent has told that the guest is frozen. It thaws the
        guest if the task is interrupted before that, with Ctrl-C for example. A task that another machine runs over ssh
        is not, where the run is ended by other means than Ctrl-C; it leaves the guest frozen.
    type: float
notes:
  - M(qemu.guest.qga_snapshot) freezes, takes a snapshot by QEMU or libvirt, and thaws. For other snapshots, see
    C(docs/snapshots.md) of the collection for a pattern that thaws the guest in any case.
  - Windows thaws by itself after 10 seconds.
  - The timer does not survive its machine. Where Ansible runs in a container, it ends with the container. Where
    systemd-logind has C(KillUserProcesses=yes), it ends with the login of a user other than root.
seealso:
  - module: qemu.guest.qga_snapshot
  - module: qemu.guest.qga_fstrim
  - module: qemu.guest.qga_info
"""

EXAMPLES = r"""
- name: Freeze all filesystems, for two minutes at most
  qemu.guest.qga_fsfreeze:
    address: /run/vm1.qga
    state: frozen
    thaw_after: 120
  register: frozen

- name: Thaw them
  qemu.guest.qga_fsfreeze:
    address: /run/vm1.qga
    state: thawed
  register: thawed
  # Thawed by another client before, or not all of it was still frozen: then do not trust the snapshot.
  failed_when: thawed is failed or thawed is not changed or thawed.count != frozen.count

- name: Freeze the filesystems of a database only
  qemu.guest.qga_fsfreeze:
    address: /run/vm1.qga
    state: frozen
    mountpoints: [/var/lib/postgresql, /var/log]
    thaw_after: 30
"""

RETURN = r"""
count:
  description:
    - Number of filesystems that this task froze or thawed. Null if they were thawed and the agent's reply got lost.
  type: int
  returned: success
  sample: 2
status_before:
  description:
    - What C(guest-fsfreeze-status) said before, V(thawed) or V(frozen). A thaw can find filesystems frozen even where
      it said V(thawed); then RV(count) is not 0, and the task reports a change.
  type: str
  returned: always, if the agent told it
  sample: thawed
status_after:
  description:
    - What it says now; in check mode, what it would. V(unknown) if the task failed and the agent does not tell.
  type: str
  returned: always, if the agent told it
  sample: frozen
thaw_timer:
  description: The timer that was armed, or the one that O(state=thawed) disarmed.
  type: dict
  returned: when there is one
  sample: {"seconds": 120, "pid": 4711, "deadline": "2026-11-24T19:30:00Z", "fired": null}
  contains:
    seconds:
      description: Seconds from arming it to thawing.
      type: float
      returned: always
    pid:
      description: The timer's process, on the machine that ran the operation.
      type: int
      returned: always
    deadline:
      description: When it thaws, by that machine's clock.
      type: str
      returned: always
    fired:
      description: When it has thawed the guest; null if it has not.
      type: str
      returned: always
"""

from typing import Any, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._module import freeze
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["frozen", "thawed"], "required": True},
    **freeze.SPEC,
}


def read(agent: Agent, params: Params) -> str:
    if params["state"] == "frozen":
        return freeze.ready_to_freeze(agent, params)
    if params["mountpoints"] is not None or params["thaw_after"] is not None:
        raise OperationError("mountpoints and thaw_after are for state=frozen; state=thawed thaws everything now.")
    return freeze.freeze_status(agent)


def plan(current: str, params: Params) -> Plan:
    wanted = params["state"]
    warnings = []
    if params["mountpoints"] is not None and current == "frozen":
        warnings.append("the guest was frozen already; the agent does not tell whether these mount points are.")
    return Plan(
        before={"status": current},
        after={"status": wanted},
        # The timer is not part of the guest's state, and the status does not cover all filesystems that may be frozen.
        always=True,
        todo=params,
        result={"count": 0, "status_before": current, "status_after": wanted},
        warnings=warnings,
    )


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    params = plan.todo
    if params["state"] == "thawed":
        return freeze.thaw(agent, plan.before["status"], params["timeout"])
    return freeze.freeze(agent, params) if plan.changes else freeze.keep_frozen(agent, params["thaw_after"])


OPERATION = Operation(SPEC, read, plan, apply)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
