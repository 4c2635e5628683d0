#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_ping
short_description: Check that a guest's agent answers, or wait until it does
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Asks the QEMU Guest Agent for a sign of life. That a guest runs does not mean that its agent does.
  - With O(wait) it waits for an agent that is not up yet, and with O(commands) also makes sure that the agent has what
    later tasks need.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
  - qemu.guest.attributes.reads
options:
  wait:
    description:
      - Seconds to wait for the agent to answer. With V(0) it is asked once, and may take O(agent_timeout) to answer.
    type: float
    default: 0
  commands:
    description:
      - Commands that the agent must have and must allow, such as V(guest-exec).
      - One that is missing or disabled fails the task at once, with what to change in the guest.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Wait until the guest can be configured
  qemu.guest.qga_ping:
    address: /run/vm1.qga
    wait: 300
    commands: [guest-exec, guest-exec-status, guest-file-open]
"""

RETURN = r"""
ping:
  description: The answer.
  type: str
  returned: success
  sample: pong
version:
  description: The agent's version, where the agent may tell it.
  type: str
  returned: success
  sample: 7.2.22
elapsed:
  description: Seconds until the agent answered.
  type: float
  returned: success
  sample: 12.5
"""

import time
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    ConnectError,
    OutcomeUnknownError,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "wait": {"type": "float", "default": 0},
    "commands": {"type": "list", "elements": "str", "default": []},
}

_PAUSE = 0.5


def read(agent: Agent, params: Params) -> dict[str, Any]:
    started = time.monotonic()
    _ping(agent, Deadline(params["wait"]))
    elapsed = time.monotonic() - started
    agent.require(*params["commands"])
    return {"ping": "pong", "version": _version(agent), "elapsed": round(elapsed, 3)}


def _ping(agent: Agent, deadline: Deadline) -> None:
    while True:
        # The last attempt of a long wait must not exceed it by a whole timeout.
        patience = min(agent.timeout, max(deadline.left(), 1)) if deadline.seconds else agent.timeout
        try:
            agent.execute("guest-ping", timeout=patience)
            return
        except (ConnectError, OutcomeUnknownError):
            if deadline.expired:
                raise
        time.sleep(min(_PAUSE, deadline.left()))


def _version(agent: Agent) -> str:
    try:
        return agent.info.version
    except CommandUnavailable:
        return ""


def plan(current: dict[str, Any], params: Params) -> Plan:
    return Plan(result=current)


OPERATION = Operation(SPEC, read, plan, may_be_zero=("wait",))


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
