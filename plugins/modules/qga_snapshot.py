#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_snapshot
short_description: Take a consistent snapshot of a guest's disks
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Freezes the guest's filesystems, takes a snapshot of its disks, all at the same moment, and thaws the filesystems.
  - It is an external snapshot. Each disk gets a new file in the format qcow2, to which the guest writes from then on.
    The image that the disk had before stays as it is, and you can copy it.
  - The task fails unless the filesystems were frozen all the time. It thaws the guest whatever fails, and removes the
    new files or names them.
  - All that can be done before the freeze is done before it. The guest is frozen for a moment.
  - The hook of the guest's administrator (C(fsfreeze-hook)) runs before the freeze and after the thaw, also with
    O(mountpoints).
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
  - qemu.guest.freeze
attributes:
  check_mode:
    support: full
    details:
      - RV(disks) lists the files that would be made. QEMU is asked whether they exist already. Nothing is frozen.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - Where all the disks have a snapshot of that name, nothing is done, also if there are newer ones. A snapshot that
        was merged into its image does not exist any more.
options:
  name:
    description:
      - What the snapshot is called. It becomes the ending of the new files, in place of the present one. A guest whose
        disk is C(/var/lib/images/vm1.qcow2) goes on in C(/var/lib/images/vm1.monday) after the snapshot V(monday).
    type: str
    required: true
  disks:
    description:
      - The disks to take a snapshot of. The default is all that the guest can write to, without the firmware's
        variables.
      - A disk of QEMU's is called by the name of its drive (C(-drive id=)), its device (C(-device id=)) or its node
        (C(-blockdev node-name=)), as C(query-block) has them, a disk of libvirt's by its target, such as V(vda).
      - libvirt's disks that are transient, shareable, or have C(snapshot='no') must be named to be part of it.
    type: list
    elements: str
  files:
    description:
      - The new files of some disks, by the names of these disks, where O(name) does not give a fitting one. They are
        absolute paths on the machine where QEMU runs.
      - This is needed for a disk that is not a file, such as a logical volume.
    type: dict
    default: {}
  qmp_address:
    description:
      - Where a QMP socket of the guest's QEMU is, seen from the machine that the task runs on; on a host whose
        connection is P(qemu.guest.qga#connection), from the controller. It has the forms that O(address) has.
      - QMP serves one client per socket.
      - Required, except for a domain of libvirt's. There, libvirt takes the snapshot.
    type: str
  mountpoints:
    description:
      - The mount points of the filesystems to freeze, as the guest has them. The default is all local filesystems.
      - The others are on the snapshot as after a power cut, if they are on disks that are part of it.
      - The task fails if fewer filesystems were frozen than are listed here. This needs an agent that has
        C(guest-fsfreeze-freeze-list), 2.2 or newer.
    type: list
    elements: str
  thaw_after:
    description:
      - The guest is frozen for this many seconds at most. A timer thaws it then, even if the play, the module or the
        controller have died; M(qemu.guest.qga_fsfreeze) describes it. It counts from before the freeze.
      - If the task dies before the guest is thawed (Ctrl-C, SIGKILL), the timer thaws it at once.
    type: float
    default: 60
notes:
  - A guest that is frozen already is left alone, and the task fails. A backup may be at work there.
  - The next start of the guest must be with the new files. libvirt sees to that; the command line of a QEMU that you
    start yourself names the old ones still.
  - It needs QEMU 3.0 or newer. C(docs/snapshots.md) of the collection says how to copy and merge snapshots, and how to
    go back to one.
  - Proxmox VE and other programs that manage disks themselves do not know of such snapshots. Use their own there.
seealso:
  - module: qemu.guest.qga_fsfreeze
"""

EXAMPLES = r"""
- name: Take a snapshot of all disks
  qemu.guest.qga_snapshot:
    address: /run/vm1.qga
    qmp_address: /run/vm1.qmp
    name: monday

- name: Take a snapshot of one disk of a libvirt domain, with the filesystem of a database frozen
  qemu.guest.qga_snapshot:
    address: libvirt:vm1
    name: before-upgrade
    disks: [vdb]
    mountpoints: [/var/lib/postgresql]
    thaw_after: 20
"""

RETURN = r"""
disks:
  description: The disks that are part of the snapshot. In check mode, those that would be.
  type: list
  elements: dict
  returned: always, unless it failed before they were known
  sample:
    - name: virtio0
      image: /var/lib/images/vm1.qcow2
      format: qcow2
      overlay: /var/lib/images/vm1.monday
  contains:
    name:
      description: What the disk is called.
      type: str
      returned: always
    image:
      description: The image that has the disk as it was when the snapshot was taken. Nothing writes to it any more.
      type: str
      returned: always
    format:
      description: The format of RV(disks[].image), in QEMU's words.
      type: str
      returned: always
    overlay:
      description: The new file, to which the guest writes since. Its format is qcow2.
      type: str
      returned: always
consistent:
  description:
    - Whether all filesystems that were frozen stayed so until the snapshot was taken. The task fails if not.
    - Null if no snapshot was taken, because it was there already or in check mode.
  type: bool
  returned: always, unless it failed before it began
  sample: true
frozen_seconds:
  description: For how many seconds the guest was frozen at most, its hooks included.
  type: float
  returned: when it was frozen
  sample: 0.214
filesystems:
  description: How many filesystems were frozen.
  type: int
  returned: when some were
  sample: 2
thaw_timer:
  description: The timer that was armed, as M(qemu.guest.qga_fsfreeze) returns it.
  type: dict
  returned: when there was one
  sample: {"seconds": 60, "pid": 4711, "deadline": "2026-11-24T19:30:00Z", "fired": null}
status_after:
  description: Whether the guest is V(frozen) or V(thawed) after a freeze or a thaw that failed; V(unknown) if the agent
    does not tell.
  type: str
  returned: when one failed
  sample: thawed
"""

import time
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, QgaError, QmpLostError
from ansible_collections.qemu.guest.plugins.module_utils._module import freeze
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module
from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot import (
    Overlay,
    Snapshots,
    choose,
    overlays,
)

SPEC: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "disks": {"type": "list", "elements": "str"},
    "files": {"type": "dict", "default": {}},
    "qmp_address": {"type": "str"},
    **freeze.SPEC,
    "thaw_after": {"type": "float", "default": 60},
}


class Current(NamedTuple):
    """The overlays of the snapshot, and the guest's status: C(frozen) or C(thawed)."""

    overlays: Sequence[Overlay]
    status: str


def read(agent: Agent, params: Params) -> Current:
    status = freeze.ready_to_freeze(agent, params)
    files = {str(disk): str(file) for disk, file in params["files"].items()}
    with snapshots(agent, params["qmp_address"]) as host:
        found = overlays(choose(host.disks(), params["disks"]), params["name"], files)
        if not any(overlay.exists for overlay in found):
            host.refuse_existing(found)
    return Current(found, status)


def snapshots(agent: Agent, qmp_address: str | None) -> Snapshots:
    """Return what takes snapshots of the agent's guest, connected.

    :raise OperationError: if nothing is known that does.
    """
    by_libvirt = agent.name.startswith("libvirt:")
    if by_libvirt and qmp_address:
        raise OperationError("qmp_address is not for a domain of libvirt's, which takes its snapshots itself.")
    # Imported here because a task needs only one of them.
    if by_libvirt:
        from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot_libvirt import LibvirtSnapshots

        return LibvirtSnapshots(agent)
    if not qmp_address:
        raise OperationError(
            "qmp_address is required, except for libvirt's domains: QEMU takes the snapshot. Its option "
            "-qmp unix:/run/vm1.qmp,server=on,wait=off makes that socket."
        )
    from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot_qmp import QmpSnapshots

    return QmpSnapshots(qmp_address)


def plan(current: Current, params: Params) -> Plan:
    new = [overlay for overlay in current.overlays if not overlay.exists]
    if new and len(new) < len(current.overlays):
        raise OperationError(
            f"some of the disks have a snapshot {params['name']}, and these have none: "
            f"{', '.join(overlay.disk.name for overlay in new)}. Nothing was done: choose another name."
        )
    if new and current.status == "frozen":
        raise OperationError(
            "the guest is frozen already. Its freeze is not this task's to end, and may end at any moment. Nothing was "
            "done: repeat the task when it is thawed (by a backup that is at work, or by qga_fsfreeze)."
        )
    return Plan(
        before={"files": {overlay.disk.name: overlay.disk.chain[0].file for overlay in current.overlays}},
        after={"files": {o.disk.name: o.file if new else o.disk.chain[0].file for o in current.overlays}},
        todo=(current.overlays, params),
        result={"disks": [overlay.as_result() for overlay in current.overlays], "consistent": None},
    )


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    new, params = plan.todo
    with snapshots(agent, params["qmp_address"]) as host:
        try:
            host.prepare(new)
            started = time.monotonic()
            with freeze.frozen(agent, params) as frozen:
                thawed = _take_and_thaw(agent, host, new, params)
        except QgaError as exc:
            _name_files(exc, host.discard())
            result = {**plan.result, "consistent": False, **exc.as_result()}
            raise OperationError(exc.text_at(agent.name), result=result) from exc
    result = {
        "filesystems": frozen.filesystems,
        "frozen_seconds": round(time.monotonic() - started, 3),
        "thaw_timer": thawed.get("thaw_timer", frozen.armed.timer.as_result()),
    }
    doubt = _doubt(frozen, thawed)
    if doubt:
        raise OperationError(
            f"the snapshot was taken, but it is not consistent: {doubt}. The guest goes on in its new files. Take "
            "another snapshot, with another name.",
            result={**plan.result, **result, "changed": True, "consistent": False},
        )
    return {**result, "consistent": True, "warnings": thawed.get("warnings", ())}


def _take_and_thaw(agent: Agent, host: Snapshots, new: Sequence[Overlay], params: Params) -> Mapping[str, Any]:
    """Take the snapshot of a frozen guest and thaw it; return the results of thawing."""
    try:
        host.take(new, params["thaw_after"])
    except BaseException as exc:  # KeyboardInterrupt included: the guest must not stay frozen
        outcome = _thawed(agent, params["timeout"])
        if isinstance(exc, QgaError):
            exc.hint = f"{exc.hint} {outcome}".lstrip()
        raise
    try:
        return freeze.thaw(agent, "frozen", params["timeout"])
    except OperationError as exc:
        text = f"{exc} The snapshot was taken, and the guest goes on in its new files."
        raise OperationError(text, result={**exc.result, "changed": True}) from exc


def _thawed(agent: Agent, timeout: float) -> str:
    """Thaw after a failure; return the outcome in words."""
    try:
        freeze.thaw(agent, "frozen", timeout)
    except QgaError as exc:
        return str(exc)
    return "The guest's filesystems are thawed."


def _name_files(exc: QgaError, left: Sequence[str]) -> None:
    """Have the error name the files that are left."""
    if left and isinstance(exc, QmpLostError):
        exc.hint += f" These files were made, and may be in use or not: {', '.join(left)}. Ask query-block which."
    elif left:
        exc.hint += f" These files were made and are not in use: {', '.join(left)}. Remove them."
    exc.hint = exc.hint.lstrip()


def _doubt(frozen: freeze.Frozen, thawed: Mapping[str, Any]) -> str:
    """Return why the filesystems may not have been frozen all the time; empty if they were."""
    fired = thawed.get("thaw_timer", {}).get("fired")
    if fired:
        return f"the timer thawed the guest at {fired}"
    if thawed["count"] is None:
        return "the agent's reply to the thaw got lost, which would have told how many filesystems were frozen still"
    if thawed["count"] != frozen.filesystems:
        return (
            f"{frozen.filesystems} filesystems were frozen, and {thawed['count']} of them were still when it was taken"
        )
    return ""


OPERATION = Operation(SPEC, read, plan, apply)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
