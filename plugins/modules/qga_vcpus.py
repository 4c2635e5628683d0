#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_vcpus
short_description: Take a guest's processors online and offline
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Makes sure that logical processors of a running guest are online or offline (C(guest-set-vcpus)), by their
    numbers or by how many are to be online.
  - This switches what the guest's kernel has. It plugs no processor in or out, and nothing of it outlasts a reboot.
  - Processors that cannot go offline are never asked to. On Linux and x86 that is processor 0.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  online:
    description:
      - Numbers (C(logical-id)) of processors that are to be online. Those in neither list stay as they are.
    type: list
    elements: int
  offline:
    description:
      - Numbers of processors that are to be offline. They are switched after those of O(online).
      - One that cannot go offline fails the task before anything is changed.
    type: list
    elements: int
  count:
    description:
      - How many processors are to be online. The lowest numbers come online first, the highest go offline first.
      - One of O(count), O(online) and O(offline) is required. O(count) excludes the others.
    type: int
notes:
  - The agent switches one processor after the other and stops at the first that it cannot switch. The task fails then
    with RV(processed), RV(not_processed), and the agent's reason. What was switched stays so.
seealso:
  - module: qemu.guest.qga_info
  - module: qemu.guest.qga_memory_blocks
"""

EXAMPLES = r"""
- name: Leave a guest two of its processors
  qemu.guest.qga_vcpus:
    address: /run/vm1.qga
    count: 2

- name: Exchange one for another
  qemu.guest.qga_vcpus:
    address: /run/vm1.qga
    online: [3]
    offline: [1]
"""

RETURN = r"""
before:
  description: The numbers of processors that were online and of those that were offline.
  type: dict
  returned: when the options make sense for this guest
  sample: {"online": [0, 1], "offline": []}
after:
  description: The same afterwards, as the guest says when asked again. In check mode, as it would be.
  type: dict
  returned: when the options make sense for this guest
  sample: {"online": [0], "offline": [1]}
vcpus:
  description: The guest's processors afterwards, in the shape of C(guest-get-vcpus), by number.
  type: list
  elements: dict
  returned: when the options make sense for this guest
  sample:
    - {"logical_id": 0, "online": true, "can_offline": false}
    - {"logical_id": 1, "online": false, "can_offline": true}
processed:
  description: The numbers of processors that were switched, in that order.
  type: list
  elements: int
  returned: when the agent was asked to switch any
  sample: [1]
not_processed:
  description: The numbers of processors that were to be switched and were not. The first is the one that failed.
  type: list
  elements: int
  returned: when the agent could not switch one
  sample: [2, 3]
"""

from typing import Any, Mapping, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
    ProtocolError,
)
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


def read(agent: Agent, params: Params) -> list[Unit]:
    return units(agent.execute("guest-get-vcpus"), "logical-id")


def plan(current: list[Unit], params: Params) -> Plan:
    switches = choose(current, params, "processor").planned
    before, shown = described(current), _shown(apply_switches(current, switches))
    return Plan(
        before=before,
        after=shown["after"],
        todo=(before, switches),
        result={"before": before, **shown},
        subject="processors",
    )


def _shown(current: list[Unit]) -> dict[str, Any]:
    vcpus = [{"logical_id": u.number, "online": u.online, "can_offline": u.can_offline} for u in current]
    return {"after": described(current), "vcpus": vcpus}


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    before, switches = plan.todo
    processed, error = _switch(agent, switches)
    current = read(agent, {})
    result = {
        "before": before,
        **_shown(current),
        "processed": [number for number, _online in switches[:processed]],
    }
    result["changed"] = result["after"] != before
    if error:
        left = [number for number, _online in switches[processed:]]
        raise OperationError(
            _complaint(switches, processed, error),
            result={**result, "not_processed": left, **error.as_result()},
        )
    wrong = wrongly(current, switches)
    if wrong:
        raise OperationError(
            f"The agent says that it switched processor {listed(wrong)}, and the guest says that it did not.",
            result=result,
        )
    return result


def _switch(agent: Agent, switches: Sequence[tuple[int, bool]]) -> tuple[int, CommandError | None]:
    """Switch processors in order; return how many were switched, and the error that stopped it.

    The agent returns a count. By the schema, the reason why it stopped comes from asking for the rest again.
    """
    done = 0
    while done < len(switches):
        nodes = [{"logical-id": number, "online": online} for number, online in switches[done:]]
        try:
            count = agent.execute("guest-set-vcpus", {"vcpus": nodes})
        except CommandError as exc:
            if isinstance(exc, CommandUnavailable) and not done:
                raise  # the error is complete as it is
            return done, exc
        if not 0 < count <= len(nodes):
            raise ProtocolError(f"guest-set-vcpus says that it did {count} of {len(nodes)} processors")
        done += count
    return done, None


def _complaint(switches: Sequence[tuple[int, bool]], processed: int, error: CommandError) -> str:
    number, online = switches[processed]
    done, left = (listed(n for n, _online in part) for part in (switches[:processed], switches[processed + 1 :]))
    return (
        f"Processor {number} could not be taken {'online' if online else 'offline'}: {error.message.strip()}. "
        f"Switched before that: {done}; not tried: {left}."
    )


OPERATION = Operation(SPEC, read, plan, apply, CONSTRAINTS)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
