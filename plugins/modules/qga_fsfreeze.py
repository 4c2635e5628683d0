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
    type: float
  allow_stacked:
    description:
      - Freezes even where the task would refuse to, because a filesystem may lie in a file of another one that is
        frozen before it. Then the guest can hang in its kernel, frozen, for minutes, and O(thaw_after) cannot help.
      - Agents older than 10.0 freeze a filesystem at the mount point that was mounted last. So the file of a loop
        device is on a frozen filesystem, if that was mounted once more (a bind mount) after the loop device's was.
      - The error message names mount points for O(mountpoints) that freeze the same filesystems without that. Set this
        if you know that the file is elsewhere.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that the guest may take to freeze or to thaw, in place of O(agent_timeout). To freeze, it runs the hooks
        of its administrator and writes all unsaved data to its disks, which may take minutes.
    type: float
    default: 300
notes:
  - See C(docs/snapshots.md) of the collection for a pattern that thaws the guest in any case.
  - Windows thaws by itself after 10 seconds.
  - The timer does not survive its machine. Where Ansible runs in a container, it ends with the container. Where
    systemd-logind has C(KillUserProcesses=yes), it ends with the login of a user other than root.
seealso:
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
  # Thawed by somebody else before, or not all of it was still frozen: then do not trust the snapshot.
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

from contextlib import suppress
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module
from ansible_collections.qemu.guest.plugins.module_utils._module.thaw_timer import RETRY_SECONDS, Timer, arm, disarm

SPEC: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["frozen", "thawed"], "required": True},
    "mountpoints": {"type": "list", "elements": "str"},
    "thaw_after": {"type": "float"},
    "allow_stacked": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 300},
}

_BY_HAND = (
    "By hand: ansible HOST -m qemu.guest.qga_fsfreeze -a state=thawed (on a hypervisor with address=… too); or on the "
    "guest's console, fsfreeze --unfreeze with each mount point."
)

# From this version on, agents freeze each filesystem once, at the mount point that was mounted first.
_ONCE_EACH = (10,)

# These are never written to, so they cannot wait for a frozen filesystem.
_READ_ONLY = ("squashfs", "iso9660", "erofs", "cramfs", "romfs")


class _NothingFrozenError(OperationError):
    """The agent froze nothing, so there is nothing of ours to thaw."""


class Filesystem(NamedTuple):
    """A mounted filesystem from guest-get-fsinfo. ``on_disk``: its device is on a disk that the agent knows.

    ``name`` is the device's, so it is the same for all mount points of one filesystem.
    """

    name: str
    mountpoint: str
    type: str
    on_disk: bool


def read(agent: Agent, params: Params) -> str:
    _check(params)
    status = _status(agent)
    if params["state"] == "frozen":
        agent.refresh_info()  # the cached reply may be from a time when the guest was frozen
        agent.require("guest-fsfreeze-thaw")
        if status == "thawed":
            agent.require(_freeze_command(params))
            if not params["allow_stacked"]:
                _refuse_stacked(agent, params["mountpoints"])
    return status


def _check(params: Params) -> None:
    if params["state"] == "thawed" and (params["mountpoints"] is not None or params["thaw_after"] is not None):
        raise OperationError("mountpoints and thaw_after are for state=frozen; state=thawed thaws everything now.")
    if params["mountpoints"] is not None and not params["mountpoints"]:
        raise OperationError("mountpoints is empty, so nothing would be frozen. Without it, all filesystems are.")


def _refuse_stacked(agent: Agent, points: Sequence[str] | None) -> None:
    """Refuse to freeze filesystems on which an older agent would hang.

    :raise OperationError: with the mount points to name instead.
    """
    if agent.info.version_tuple >= _ONCE_EACH or not agent.supports("guest-get-fsinfo"):
        return
    try:
        listed = filesystems(agent.execute("guest-get-fsinfo"))
    except CommandError:
        return  # the agent fails for devices that it does not understand, but can still freeze
    found = stacked(listed, points)
    if found:
        upper, lower = found
        raise OperationError(
            f"nothing was frozen, because the guest may hang in it: {upper.mountpoint} is on {upper.name}, which may "
            f"lie in a file of {lower.name}, and the guest's agent (version {agent.info.version}) freezes that before "
            f"it, at {lower.mountpoint}. Name each filesystem once: mountpoints={first_mounted(listed, points)}. If "
            f"you know that no file of {lower.name} is below {upper.name}, set allow_stacked=true."
        )


def filesystems(reply: Sequence[Any]) -> list[Filesystem]:
    """Return the filesystems from guest-get-fsinfo, in its order: last mounted first, the order of freezing.

    :raise ProtocolError: if the reply does not match the schema.
    """
    found = []
    for entry in reply:
        entry = expect(entry, dict, "a filesystem")
        name, point, kind = (expect(entry.get(member), str, member) for member in ("name", "mountpoint", "type"))
        found.append(Filesystem(name, point, kind, bool(expect(entry.get("disk", []), list, "disk"))))
    return found


def stacked(listed: Sequence[Filesystem], points: Sequence[str] | None = None) -> tuple[Filesystem, Filesystem] | None:
    """Return a filesystem that may lie in a file of one that is frozen before it, and the latter; None if none does.

    ``listed`` is in the order of freezing; with ``points``, only those mount points are frozen. A filesystem may lie in
    a file if its device is on no disk; the file is on a filesystem that was mounted earlier.
    """
    for position, upper in enumerate(listed):
        if upper.on_disk or upper.type in _READ_ONLY or not _frozen_at(upper, points):
            continue
        before = {other.name for other in listed[position + 1 :]} - {upper.name}
        for lower in listed[:position]:
            if lower.name in before and _frozen_at(lower, points):
                return upper, lower
    return None


def first_mounted(listed: Sequence[Filesystem], points: Sequence[str] | None = None) -> list[str]:
    """Return the first mount point of each filesystem to freeze, in the order of mounting."""
    wanted = {filesystem.name for filesystem in listed if _frozen_at(filesystem, points)}
    first = {filesystem.name: filesystem.mountpoint for filesystem in listed if filesystem.name in wanted}
    return [f.mountpoint for f in reversed(listed) if first.get(f.name) == f.mountpoint]


def _frozen_at(filesystem: Filesystem, points: Sequence[str] | None) -> bool:
    return points is None or filesystem.mountpoint in points


def _status(agent: Agent) -> str:
    status = agent.execute("guest-fsfreeze-status")
    if status not in ("thawed", "frozen"):
        raise ProtocolError(f"the agent says that the status is {status[:80]!r}.", command="guest-fsfreeze-status")
    return str(status)


def _freeze_command(params: Params) -> str:
    return "guest-fsfreeze-freeze" if params["mountpoints"] is None else "guest-fsfreeze-freeze-list"


def plan(current: str, params: Params) -> Plan:
    wanted = params["state"]
    warnings = []
    if params["mountpoints"] is not None and current == "frozen":
        warnings.append("the guest was frozen already; the agent does not tell whether these mount points are.")
    return Plan(
        before={"status": current},
        after={"status": wanted},
        # The timer is not part of the guest's state, and the status does not cover all filesystems that may be frozen.
        always=wanted == "thawed" or params["thaw_after"] is not None,
        todo=params,
        result={"count": 0, "status_before": current, "status_after": wanted},
        warnings=warnings,
    )


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    params = plan.todo
    if params["state"] == "thawed":
        return _thaw(agent, plan.before["status"], params["timeout"])
    return _freeze(agent, params) if plan.changes else _shown(arm(agent, params["thaw_after"]))


def _freeze(agent: Agent, params: Params) -> dict[str, Any]:
    seconds = params["thaw_after"]
    # Armed before the freeze is sent: after that, only the timer may be left to thaw.
    timer = arm(agent, seconds) if seconds else None
    if not timer:
        disarm(agent)  # a timer left from an earlier freeze must not end this one
    try:
        count = _frozen(agent, params, min(params["timeout"], seconds or params["timeout"]))
    except QgaError as exc:
        if exc.command == _freeze_command(params) and exc.executed == "no":
            # Not ours to thaw: if the guest is frozen, another client was faster.
            disarm(agent)
            raise
        raise _undone(agent, exc, timer) from exc
    return {"count": count, **_shown(timer)}


def _frozen(agent: Agent, params: Params, timeout: float) -> int:
    """Freeze, and return the number of frozen filesystems.

    :raise QgaError: if the guest is not frozen as asked, or may not be.
    """
    points = params["mountpoints"]
    arguments = None if points is None else {"mountpoints": points}
    count = int(agent.execute(_freeze_command(params), arguments, timeout=timeout))
    if points is not None and count < len(set(points)):
        raise (OperationError if count else _NothingFrozenError)(
            f"the guest froze {count} of {len(set(points))} mount points ({', '.join(points)}). Each must be the mount "
            "point of a filesystem that can be frozen and is not frozen already."
        )
    if count == 0:
        raise _NothingFrozenError("the guest found no filesystem to freeze.")
    if _status(agent) != "frozen":
        raise OperationError(f"the guest froze {count} filesystems, and they did not stay so: its status is thawed.")
    return count


def _undone(agent: Agent, exc: QgaError, timer: Timer | None) -> OperationError:
    """Thaw after a freeze that failed, or may have failed; return an error with the outcome."""
    # If nothing was frozen, do not thaw: that would thaw filesystems frozen by other means than the agent. Else thaw
    # whatever the status is: it need not cover all frozen filesystems.
    if not isinstance(exc, _NothingFrozenError) or _status_if_told(agent) != "thawed":
        with suppress(QgaError):  # the status below shows whether it worked
            agent.execute("guest-fsfreeze-thaw")
    status = _status_if_told(agent)
    result = {"status_before": "thawed", "status_after": status, **exc.as_result()}
    if status == "thawed":
        disarm(agent)
        exc.hint = "The guest's filesystems are thawed."
        return OperationError(str(exc), result=result)
    exc.hint = f"THE GUEST MAY BE FROZEN: its status is {status}."
    try:
        timer = timer or arm(agent, 0)
    except QgaError as no_timer:
        return OperationError(f"{exc} Nothing goes on trying to thaw it: {no_timer} {_BY_HAND}", result=result)
    return OperationError(
        f"{exc} The process {timer.pid} on this machine tries to thaw it from {timer.deadline} on, for "
        f"{RETRY_SECONDS / 60:g} minutes. {_BY_HAND}",
        result={**result, **_shown(timer)},
    )


def _thaw(agent: Agent, before: str, timeout: float) -> dict[str, Any]:
    count, trouble = None, None
    try:
        count = int(agent.execute("guest-fsfreeze-thaw", timeout=timeout))
    except QgaError as exc:
        trouble = exc
    status = _status_if_told(agent)
    changed = before == "frozen" or bool(count)
    result = {"changed": changed, "count": count, "status_before": before, "status_after": status}
    if status != "thawed":
        trouble = trouble or OperationError(f"the guest thawed {count} filesystems, and its status is {status}.")
        trouble.hint = f"THE GUEST MAY BE FROZEN: its status is {status}. A timer that is armed stays so. {_BY_HAND}"
        raise OperationError(str(trouble), result={**result, **trouble.as_result()})
    timer = disarm(agent)
    result.update(_shown(timer))
    if trouble and not isinstance(trouble, OutcomeUnknownError):
        if not isinstance(trouble, CommandUnavailable):
            trouble.hint = "The guest's filesystems are thawed, but a hook of its administrator may not have run."
        raise OperationError(str(trouble), result={**result, **trouble.as_result()})
    warnings = [f"{trouble.message}; the guest's status is thawed"] if trouble else []
    return {**result, "warnings": [*warnings, *([] if changed else _too_late(timer))]}


def _status_if_told(agent: Agent) -> str:
    try:
        return _status(agent)
    except QgaError:
        return "unknown"


def _too_late(timer: Timer | None) -> list[str]:
    """Return a warning if the timer had thawed the guest already."""
    if not timer or not timer.fired:
        return []
    return [f"the timer thawed the guest at {timer.fired}: what was done after that, was not done to a frozen guest."]


def _shown(timer: Timer | None) -> dict[str, Any]:
    return {"thaw_timer": timer.as_result()} if timer else {}


OPERATION = Operation(SPEC, read, plan, apply)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
