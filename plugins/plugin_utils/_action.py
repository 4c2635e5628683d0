# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action behind every qga_* module; plugins/action has a file of each one's name, by which ansible-core finds it.

With C(address), the module runs where the task runs: on a hypervisor. Without, the host itself is the guest, and the
operation runs here, over the agent that the host's connection has; the guest needs no Python for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase
from ansible.utils.vars import merge_hash

from ansible_collections.qemu.guest.plugins.module_utils._errors import QgaError
from ansible_collections.qemu.guest.plugins.module_utils._module import argument_spec
from ansible_collections.qemu.guest.plugins.module_utils._operation import Operation, run_operation

CONNECTION = "qemu.guest.qga"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        name = self._task.action.rpartition(".")[2]
        if self._task.args.get("address"):
            module = self._execute_module(
                module_name=f"qemu.guest.{name}", task_vars=task_vars, wrap_async=self._task.async_val
            )
            return dict(merge_hash(result, module))
        if self._connection.transport != CONNECTION:
            msg = (
                f"{name} needs an address, because this host's connection is {self._connection.transport}. Only on a "
                f"host whose connection is {CONNECTION} does it use the agent of that connection."
            )
            return {**result, "failed": True, "msg": msg}
        if self._task.async_val:
            msg = f"{name} cannot be run with async over {CONNECTION}: it runs in the controller."
            return {**result, "failed": True, "msg": msg}
        result.update(self._run_here(import_module(f"ansible_collections.qemu.guest.plugins.modules.{name}").OPERATION))
        return result

    def _run_here(self, operation: Operation) -> dict[str, Any]:
        for option in operation.local_files:
            if self._task.args.get(option):
                # As ansible.builtin.copy does: from files/ of the role or the playbook.
                try:
                    self._task.args[option] = self._find_needle("files", self._task.args[option])
                except AnsibleError as exc:  # as it is, it would end a whole loop
                    raise AnsibleActionFail(str(exc)) from exc
        validation, params = self.validate_argument_spec(argument_spec(operation), **operation.constraints)
        agent = self._connection.agent
        usual = agent.timeout, agent.frozen_timeout
        try:
            for name, option in (("timeout", "agent_timeout"), ("frozen_timeout", "frozen_timeout")):
                if params[option] is not None:
                    setattr(agent, name, params[option])
            result = run_operation(operation, agent, params, check_mode=self._task.check_mode, diff=self._task.diff)
        except QgaError as exc:
            result = {"failed": True, "msg": str(exc), **exc.as_result()}
        finally:
            agent.timeout, agent.frozen_timeout = usual  # the next item of a loop has the same agent
        return dict(remove_values(result, validation._no_log_values))
