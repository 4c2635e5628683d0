#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_fstrim
short_description: Discard the blocks that a guest's filesystems do not use
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Has the guest tell its disks which blocks no filesystem uses (C(guest-fstrim)), so that the host can reuse the
    space.
  - That takes a disk with C(discard=unmap), and an image or a storage that can give space back.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
    details:
      - Nothing is discarded. Whether the agent has the command is looked up.
  diff_mode:
    support: none
    details:
      - What is discarded shows no difference in the guest.
  idempotent:
    support: none
    details:
      - It is an action, done each time, and always reports a change.
options:
  minimum:
    description:
      - Bytes. Free ranges smaller than this may be left as they are, which is faster on badly fragmented filesystems.
      - With V(0), every free block is discarded.
      - The guest may disregard it. A filesystem smaller than this cannot be trimmed.
    type: int
    default: 0
  timeout:
    description:
      - Seconds that the guest may take. Large filesystems take minutes.
      - The command goes on in the guest when this has passed, and the agent answers nothing until it has ended.
    type: float
    default: 900
notes:
  - Filesystems that cannot be trimmed by their kind are listed with an RV(paths[].error) and are no trouble. Of others
    that failed, a warning tells. The task fails if there are filesystems, and not one was trimmed.
seealso:
  - module: qemu.guest.qga_fsfreeze
"""

EXAMPLES = r"""
- name: Give unused space back to the host
  qemu.guest.qga_fstrim:
    address: /run/vm1.qga
  register: trim

- name: The same, leaving small gaps
  qemu.guest.qga_fstrim:
    address: /run/vm1.qga
    minimum: 1048576
"""

RETURN = r"""
paths:
  description:
    - The filesystems that the guest trimmed or tried to. Empty if the agent is older than 2.4, which tells nothing.
  type: list
  elements: dict
  returned: success, not in check mode
  sample: [{"path": "/", "minimum": 0, "trimmed": 965955584}, {"path": "/boot/efi", "error": "trim not supported"}]
  contains:
    path:
      description: The mount point.
      type: str
      returned: always
    trimmed:
      description: Bytes discarded. Some filesystems leave out what they discarded before.
      type: int
      returned: if it was trimmed
    minimum:
      description: Bytes of the smallest range that was discarded.
      type: int
      returned: if it was trimmed
    error:
      description: Why it was not trimmed.
      type: str
      returned: if it was not trimmed
trimmed:
  description: Bytes discarded in all filesystems together. Null if the agent does not tell.
  type: int
  returned: success, not in check mode
  sample: 965955584
"""

from typing import Any, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect
from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import with_underscores
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "minimum": {"type": "int", "default": 0},
    "timeout": {"type": "float", "default": 900},
}

_NO_DISCARD = "trim not supported"


def read(agent: Agent, params: Params) -> None:
    if params["minimum"] < 0:
        raise OperationError("minimum is a number of bytes, so it cannot be negative.")
    agent.require("guest-fstrim")


def plan(current: None, params: Params) -> Plan:
    return Plan(changed=True, todo=params)


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    arguments = {"minimum": plan.todo["minimum"]}
    reply = with_underscores(agent.execute("guest-fstrim", arguments, timeout=plan.todo["timeout"]))
    if "paths" not in reply:
        return {"paths": [], "trimmed": None}
    paths = [expect(path, dict, "a member of paths") for path in expect(reply["paths"], list, "paths")]
    failed = [path for path in paths if "error" in path]
    result = {"paths": paths, "trimmed": sum(expect(path.get("trimmed", 0), int, "trimmed") for path in paths)}
    if failed and len(failed) == len(paths):
        raise OperationError(f"no filesystem was trimmed: {', '.join(map(_told, failed))}.", result=result)
    trouble = [f"not trimmed: {_told(path)}" for path in failed if path["error"] != _NO_DISCARD]
    return {**result, "warnings": trouble}


def _told(path: Mapping[str, Any]) -> str:
    hint = " (its disk needs discard=unmap on the host)" if path["error"] == _NO_DISCARD else ""
    return f"{path.get('path')}: {path['error']}{hint}"


OPERATION = Operation(SPEC, read, plan, apply)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
