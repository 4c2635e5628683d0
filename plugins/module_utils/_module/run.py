# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run an Operation as a module, on the machine that has the agent's address: usually the hypervisor."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import DEFAULT_TIMEOUT, Patience
from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import QgaError
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import (
    COMMON,
    Operation,
    Params,
    run_operation,
)

__all__ = ("argument_spec", "run_module")


def argument_spec(operation: Operation) -> dict[str, Any]:
    """Return the operation's argument spec together with the COMMON options."""
    return {**COMMON, **operation.spec}


class _Module(AnsibleModule):  # type: ignore[misc]  # ansible-core has no types
    def add_path_info(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Add nothing: C(path) is in the guest. AnsibleModule would tell of the file that has that path here."""
        return kwargs


def run_module(operation: Operation) -> None:
    """Run as a module: read the parameters, run the operation, print its result or its failure, exit."""
    module = _Module(
        argument_spec=argument_spec(operation),
        supports_check_mode=True,
        no_log=bool(operation.quiet),  # keeps the whole invocation out of syslog: there is nothing finer
        **operation.constraints,
    )
    params = module.params
    invocation = {"module_args": _shown(operation, params)}
    if not params["address"]:
        module.fail_json(
            msg="address is required: where is the guest agent's socket? It can be left out only on a host whose "
            "connection is qemu.guest.qga.",
            invocation=invocation,
        )
    try:
        timeout = DEFAULT_TIMEOUT if params["agent_timeout"] is None else params["agent_timeout"]
        with open_agent(params["address"], timeout, libvirt_uri=params["libvirt_uri"]) as agent:
            agent.patience = Patience(warn=module.warn)
            if params["frozen_timeout"] is not None:
                agent.patience = Patience(params["frozen_timeout"], module.warn)
            result = run_operation(
                operation, agent, params, check_mode=module.check_mode, diff=getattr(module, "_diff", False)
            )
    except QgaError as exc:
        module.fail_json(msg=str(exc), invocation=invocation, **exc.as_result())
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(invocation=invocation, **result)


def _shown(operation: Operation, params: Params) -> dict[str, Any]:
    return {
        name: "NOT_LOGGING_PARAMETER" if name in operation.quiet and value is not None else value
        for name, value in params.items()
    }
