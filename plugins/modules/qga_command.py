#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_command
short_description: Run any command of a guest's agent
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Sends a command of the QEMU Guest Agent's schema with its arguments, and returns what the agent returns.
  - This is the way to commands for which this collection has no module. Where there is one, it knows more than this.
  - The arguments are checked by the agent alone.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
    details:
      - Commands that only read are run, all others are not.
  diff_mode:
    support: none
    details:
      - What a command changes is known to the agent only.
  idempotent:
    support: partial
    details:
      - Commands that only read report no change, all others always do.
options:
  command:
    description:
      - The command's name in the schema, such as V(guest-get-osinfo).
    type: str
    required: true
  arguments:
    description:
      - The command's arguments by their names in the schema.
      - Numbers must be numbers. Templates make strings of them, unless the whole dictionary is made by one template.
    type: dict
    default: {}
notes:
  - C(guest-shutdown) and the C(guest-suspend-*) commands answer only when they fail. No answer counts as success.
seealso:
  - module: qemu.guest.qga_info
  - module: qemu.guest.qga_fsfreeze
  - name: QEMU Guest Agent Protocol Reference
    description: All commands with their arguments.
    link: https://www.qemu.org/docs/master/interop/qemu-ga-ref.html
"""

EXAMPLES = r"""
- name: Read the host name that the guest has
  qemu.guest.qga_command:
    address: /run/vm1.qga
    command: guest-get-host-name
  register: answer

- name: Remove an SSH key
  qemu.guest.qga_command:
    address: /run/vm1.qga
    command: guest-ssh-remove-authorized-keys
    arguments:
      username: admin
      keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXmEmVbE6rHhFYg7l1lVZrZ0pTnXWDFbKsNDhPcFGDD alice@example.com]
"""

RETURN = r"""
return:
  description:
    - What the agent returned, with V(_) in place of V(-) in names. An empty dictionary where the schema says that
      nothing is returned, null for commands that answer only when they fail.
  type: raw
  returned: when the command was run
  sample: {"host_name": "vm1"}
"""

from typing import Any, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import is_read_only, with_underscores
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "command": {"type": "str", "required": True},
    "arguments": {"type": "dict", "default": {}},
}


def read(agent: Agent, params: Params) -> dict[str, Any]:
    return _execute(agent, params) if is_read_only(params["command"]) else {}


def _execute(agent: Agent, params: Params) -> dict[str, Any]:
    return {"return": with_underscores(agent.execute(params["command"], params["arguments"]))}


def plan(current: dict[str, Any], params: Params) -> Plan:
    return Plan(changed=not is_read_only(params["command"]), todo=params, result=current)


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    return _execute(agent, plan.todo)


# The arguments of agent commands may include passwords.
OPERATION = Operation(SPEC, read, plan, apply, quiet=("arguments",))


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
