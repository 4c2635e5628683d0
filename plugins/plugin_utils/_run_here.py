# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module's operation in the controller, over the agent of a host's connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ansible.errors import AnsibleConnectionFailure, AnsibleError

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address, parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent, Patience
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    ConnectError,
    OutcomeUnknownError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import is_read_only
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, run_operation

__all__ = ("Connected", "is_own", "run_here")


class Connected(Protocol):
    """What the connection to a guest has."""

    @property
    def agent(self) -> Agent: ...

    @property
    def executor(self) -> Executor: ...

    @property
    def own_address(self) -> Address: ...


def is_own(connection: Connected, address: str) -> bool:
    """Return whether an address that a task has is that of the connection's agent."""
    try:
        return parse_address(address).identity == connection.own_address.identity
    except (AddressError, AnsibleError):
        return False


def run_here(operation: Operation, connection: Connected, params: Mapping[str, Any], **modes: bool) -> dict[str, Any]:
    """Run the operation and return the task's result. ``modes`` are those of run_operation().

    :raise AnsibleConnectionFailure: if the agent cannot be reached: the host is unreachable.
    """
    agent = connection.agent
    usual = agent.timeout, agent.patience
    try:
        if params["agent_timeout"] is not None:
            agent.timeout = params["agent_timeout"]
        if params["frozen_timeout"] is not None:
            agent.patience = Patience(params["frozen_timeout"], agent.patience.warn)
        return run_operation(operation, agent, params, executor=connection.executor, **modes)
    except QgaError as exc:
        if _means_unreachable(exc):
            raise AnsibleConnectionFailure(str(exc)) from exc
        return {"failed": True, "msg": str(exc), **exc.as_result()}
    finally:
        agent.timeout, agent.patience = usual  # the next item of a loop has the same agent


def _means_unreachable(exc: QgaError) -> bool:
    # A read-only command without a reply has changed nothing: only its answer is unknown.
    unanswered = isinstance(exc, OutcomeUnknownError) and is_read_only(exc.command or "")
    return unanswered or isinstance(exc, ConnectError)
