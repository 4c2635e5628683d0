#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_memory_blocks
short_description: Take blocks of a guest's memory online and offline
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Makes sure that memory blocks of a running guest are online or offline (C(guest-set-memory-blocks)), by
    their numbers or by how many are to be online. RV(memory_block_info.size) tells how large they are.
  - This switches what the guest's kernel has. It plugs no memory in or out, and nothing of it outlasts a reboot.
  - A kernel can take a block offline only if it can move what the block holds. Whether it can, it finds out by trying;
    current Linux kernels call every block C(can_offline).
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
    details:
      - It cannot tell whether the kernel will be able to take a block offline.
  diff_mode:
    support: full
    details:
      - With O(count), the diff shows how many blocks are online. Which, RV(after) tells.
  idempotent:
    support: full
options:
  online:
    description:
      - Numbers (C(phys-index)) of blocks that are to be online. Those in neither list stay as they are.
    type: list
    elements: int
  offline:
    description:
      - Numbers of blocks that are to be offline. They are switched after those of O(online).
      - One of which the guest says that it cannot go offline fails the task before anything is changed.
    type: list
    elements: int
  count:
    description:
      - How many blocks are to be online. The lowest numbers come online first. The highest go offline first, and in
        place of a block that the kernel cannot take offline, the next is tried.
      - One of O(count), O(online) and O(offline) is required. O(count) excludes the others.
    type: int
notes:
  - To move what a block holds can take long. Each block is a command of its own that must end within O(agent_timeout).
  - When blocks could not be switched, the others still are. The task then fails, and RV(responses) tells what became of
    each block.
  - What holds a block may let it go soon, such as a write to a disk. C(until) and C(retries) help then.
seealso:
  - module: qemu.guest.qga_info
  - module: qemu.guest.qga_vcpus
"""

EXAMPLES = r"""
- name: Bring four blocks that were plugged in online
  qemu.guest.qga_memory_blocks:
    address: /run/vm1.qga
    online: [32, 33, 34, 35]

- name: Take one of eight blocks offline, whichever can be
  qemu.guest.qga_memory_blocks:
    address: /run/vm1.qga
    count: 7
    agent_timeout: 120
"""

RETURN = r"""
before:
  description: The numbers of blocks that were online and of those that were offline.
  type: dict
  returned: when the options make sense for this guest
  sample: {"online": [0, 1, 2, 3], "offline": []}
after:
  description: The same afterwards, as the guest says when asked again. In check mode, as it would be.
  type: dict
  returned: when the options make sense for this guest
  sample: {"online": [0, 2, 3], "offline": [1]}
memory_blocks:
  description: The guest's memory blocks afterwards, in the shape of C(guest-get-memory-blocks), by number.
  type: list
  elements: dict
  returned: when the options make sense for this guest
  sample: [{"phys_index": 0, "online": true, "can_offline": true}]
memory_block_info:
  description: What C(guest-get-memory-block-info) tells.
  type: dict
  returned: when the options make sense for this guest
  contains:
    size:
      description: The size of a block in bytes.
      type: int
      returned: always
      sample: 134217728
responses:
  description: What the agent said of each block that it was asked to switch, in that order.
  type: list
  elements: dict
  returned: when the agent was asked to switch any
  contains:
    phys_index:
      description: The block's number.
      type: int
      returned: always
      sample: 2
    response:
      description: V(success), V(not-found), V(operation-not-supported), or V(operation-failed).
      type: str
      returned: always
      sample: operation-failed
    error_code:
      description: The guest's C(errno).
      type: int
      returned: when the agent tells
      sample: 16
"""

import errno
import os
from typing import Any, Mapping, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    OperationError,
    ProtocolError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect
from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import with_underscores
from ansible_collections.qemu.guest.plugins.module_utils._module.hotplug import (
    CONSTRAINTS,
    SPEC,
    Unit,
    apply_switches,
    choose,
    described,
    listed,
    units,
    wrongly,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module


class Current(NamedTuple):
    """The guest's memory blocks, and the agent's information on all of them."""

    blocks: list[Unit]
    info: Mapping[str, Any]


def read(agent: Agent, params: Params) -> Current:
    blocks = _read_blocks(agent)
    if not blocks:
        raise OperationError(
            "This guest's kernel has no memory blocks to switch (Linux has them in /sys/devices/system/memory, if it "
            "was built with CONFIG_MEMORY_HOTPLUG)."
        )
    return Current(blocks, with_underscores(agent.execute("guest-get-memory-block-info")))


def _read_blocks(agent: Agent) -> list[Unit]:
    try:
        return units(agent.execute("guest-get-memory-blocks"), "phys-index")
    except CommandError as exc:
        if "zero memory blocks" not in exc.message:
            raise
        return []


def plan(current: Current, params: Params) -> Plan:
    switches = choose(current.blocks, params, "memory block")
    before, shown = described(current.blocks), _shown(apply_switches(current.blocks, switches.planned))
    by_count = params["count"] is not None
    return Plan(
        # With count, a block other than planned may replace one that cannot go offline.
        before={"count": len(before["online"])} if by_count else before,
        after={"count": params["count"]} if by_count else shown["after"],
        todo=(before, switches),
        result={"before": before, **shown, "memory_block_info": current.info},
        subject="memory blocks",
    )


def _shown(blocks: list[Unit]) -> dict[str, Any]:
    shape = [{"phys_index": u.number, "online": u.online, "can_offline": u.can_offline} for u in blocks]
    return {"after": described(blocks), "memory_blocks": shape}


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    before, switches = plan.todo
    responses: list[dict[str, Any]] = []
    done: list[tuple[int, bool]] = []
    for number, online in switches.candidates:
        if len(done) == switches.needed:
            break
        responses.append(_switch(agent, number, online))
        if responses[-1]["response"] == "success":
            done.append((number, online))
    blocks = _read_blocks(agent)
    result = {**plan.result, **_shown(blocks), "responses": responses}
    result["changed"] = result["after"] != before
    if len(done) < switches.needed:
        raise OperationError(_complaint(done, responses, dict(switches.candidates)), result=result)
    wrong = wrongly(blocks, done)
    if wrong:
        raise OperationError(
            f"The agent says that it switched memory block {listed(wrong)}, and the guest says that it did not.",
            result=result,
        )
    return result


def _switch(agent: Agent, number: int, online: bool) -> dict[str, Any]:
    """Switch a block; return the agent's response."""
    wanted = {"phys-index": number, "online": online}
    responses = agent.execute("guest-set-memory-blocks", {"mem-blks": [wanted]})
    response = expect(responses[0], dict, "a response") if len(responses) == 1 else {}
    if response.get("phys-index") != number or not isinstance(response.get("response"), str):
        raise ProtocolError(f"the agent was asked to switch memory block {number} and responded {str(responses)[:200]}")
    if "error-code" in response:
        expect(response["error-code"], int, "error-code")
    return dict(with_underscores(response))


def _complaint(done: list[tuple[int, bool]], responses: list[dict[str, Any]], wanted: Mapping[int, bool]) -> str:
    failures = []
    for response in responses:
        if response["response"] != "success":
            code = response.get("error_code", 0)
            cause = f" (errno {code}, {os.strerror(code)})" if code in errno.errorcode else ""
            number = response["phys_index"]
            failures.append(f"{number} {'online' if wanted[number] else 'offline'}: {response['response']}{cause}")
    return (
        f"The guest could not take these memory blocks: {'; '.join(failures)}. "
        f"Switched: {listed(number for number, _online in done)}. A block cannot go offline while it holds memory of "
        "the kernel, or what the guest has no room for elsewhere."
    )


OPERATION = Operation(SPEC, read, plan, apply, CONSTRAINTS)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
