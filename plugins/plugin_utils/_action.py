# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action behind every qga_* module; plugins/action has a file for each, by which ansible-core finds it.

With C(address), the module runs where the task runs: on a hypervisor. Without it, the host itself is the guest, and the
operation runs here, over the agent of the host's connection; the guest needs no Python for it. A guest's task that is
delegated to its hypervisor has the guest's own address.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.vars import merge_hash

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation
from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec
from ansible_collections.qemu.guest.plugins.plugin_utils._bytecode import kept_bytecode
from ansible_collections.qemu.guest.plugins.plugin_utils._facts_as_options import told_by_facts
from ansible_collections.qemu.guest.plugins.plugin_utils._load_ahead import CONNECTION, load_ahead
from ansible_collections.qemu.guest.plugins.plugin_utils._run_here import is_own, run_here

# The main process of ansible-core loads this file for each task that is one of this collection's, so it forks the
# processes of all the play's tasks, whatever modules they are of.
load_ahead()

# From 2.22 on, ansible-core hides the secrets that validate_argument_spec found.
_CORE_HIDES_SECRETS = find_spec("ansible.module_utils.secrets") is not None

# The options that say where the agent is, and the variables that say it for a guest.
_WHERE = ("address", "libvirt_uri")
_VARIABLES = ("ansible_qga_address", "ansible_host", "ansible_qga_hypervisor", "ansible_qga_libvirt_uri")

_INSIDE = (
    f"This host's connection is {CONNECTION}, so the address was looked for inside the guest. To use the agent of that "
    "connection, leave address out; to use a socket of the hypervisor, delegate_to the hypervisor."
)


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        name = self._task.action.rpartition(".")[2]
        if self._task.delegate_to and self._connection.transport != CONNECTION:
            self._take_address_of_guest(task_vars or {})
        if self._is_own_address():
            self._task.args = {key: value for key, value in self._task.args.items() if key not in _WHERE}
        if self._task.args.get("address"):
            module = self._execute_module(
                module_name=f"qemu.guest.{name}", task_vars=task_vars, wrap_async=self._task.async_val
            )
            if self._connection.transport == CONNECTION and _found_no_agent(module):
                module["msg"] = f"{module.get('msg', '')} {_INSIDE}".lstrip()
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
        with kept_bytecode():
            operation: Operation = import_module(f"ansible_collections.qemu.guest.plugins.modules.{name}").OPERATION
        user = self._become_user() if operation.runs_programs else None
        if user not in (None, "root"):
            msg = (
                f"{name} cannot become {user} over {CONNECTION}: it runs programs as the user that the agent runs as. "
                f"Nothing was run. Use ansible.builtin.command, or argv: [runuser, -u, {user}, --, PROGRAM], with "
                "become: false for this task."
            )
            return {**result, "failed": True, "msg": msg}
        if operation.runs_programs:
            self._connection._connect()  # warns if the task names another user than the one that programs run as
        result.update(self._run_here(operation))
        return result

    def _take_address_of_guest(self, task_vars: dict[str, Any]) -> None:
        """Give a task of a guest that is delegated to its hypervisor the agent's address, unless it has one."""
        if self._task.args.get("address"):
            return
        told = told_by_facts(task_vars)
        if told:
            raise AnsibleActionFail(told)
        variables = {name: self._templar.template(task_vars[name]) for name in _VARIABLES if task_vars.get(name)}
        address = variables.get("ansible_qga_address") or variables.get("ansible_host")
        try:
            kind = parse_address(str(address)).kind
        except AddressError:
            return
        hypervisor, there = variables.get("ansible_qga_hypervisor", "localhost"), self._task.delegate_to
        # A destination of ssh's may be the same machine as an inventory host of another name.
        is_known = self._connection.transport == "local" or hypervisor in task_vars.get("hostvars", {})
        if hypervisor not in ("localhost", there) and is_known:
            raise AnsibleActionFail(
                f"the agent {address} is on {hypervisor}, and this task is delegated to {there}, where that may be "
                f"another guest's. Delegate it to {hypervisor}, run it on the guest, or give it an address."
            )
        given = {"address": address}
        if kind == "libvirt" and variables.get("ansible_qga_libvirt_uri"):
            given["libvirt_uri"] = self._uri_there(variables["ansible_qga_libvirt_uri"])
        self._task.args = {**given, **self._task.args}

    def _uri_there(self, uri: str) -> str:
        """Return the URI, on the machine that the task is delegated to, of the libvirt that has ``uri`` from here."""
        parts = urlsplit(uri)
        if self._connection.transport == "local" or not parts.hostname:
            return uri
        return f"{parts.scheme.partition('+')[0]}://{parts.path}"

    def _is_own_address(self) -> bool:
        """Return whether the task names the agent of this host's connection."""
        given = self._task.args.get("address")
        if not given or self._connection.transport != CONNECTION:
            return False
        uri = self._task.args.get("libvirt_uri")
        return is_own(self._connection, str(given)) and uri in (None, self._connection.get_option("libvirt_uri"))

    def _become_user(self) -> str | None:
        """Return the user that the task is to become; None without become."""
        become = self._connection.become
        return become.get_option("become_user", playcontext=self._play_context) if become else None

    def _find_local_paths(self, operation: Operation) -> None:
        """Make paths of this machine absolute: as ansible.builtin.copy finds its source, and fetch its destination."""
        args = self._task.args
        for option in filter(args.get, operation.local_files):
            given = str(args[option])
            try:
                args[option] = _like(given, self._find_needle("files", given))
            except AnsibleError as exc:  # as AnsibleError, it would end a whole loop
                raise AnsibleActionFail(str(exc)) from exc
        for option in filter(args.get, operation.local_targets):
            args[option] = _like(str(args[option]), self._loader.path_dwim(str(args[option])))

    def _run_here(self, operation: Operation) -> dict[str, Any]:
        """Run the operation over the connection's agent, and return the task's result.

        :raise AnsibleConnectionFailure: if the agent cannot be reached: the host is unreachable.
        """
        self._find_local_paths(operation)
        validation, params = self.validate_argument_spec(argument_spec(operation), **operation.constraints)
        modes = {"check_mode": self._task.check_mode, "diff": self._task.diff}
        result = run_here(operation, self._connection, params, **modes)
        return _without_secrets(_with_lines(result), validation)


def _like(given: str, path: str) -> str:
    """Return ``path`` with a slash at its end if ``given`` has one."""
    return path.rstrip("/") + "/" if given.endswith("/") else path


def _without_secrets(result: dict[str, Any], validation: Any) -> dict[str, Any]:
    if _CORE_HIDES_SECRETS:
        return result
    from ansible.module_utils.common.parameters import remove_values  # newer cores deprecate it

    return dict(remove_values(result, validation._no_log_values))


def _found_no_agent(result: dict[str, Any]) -> bool:
    """Return whether a module failed because there is nothing at the address, or could not even start."""
    error = result.get("error")
    if isinstance(error, dict):
        return error.get("type") in ("AddressError", "ConnectError")
    return bool(result.get("failed")) and "module_stdout" in result


def _with_lines(result: dict[str, Any]) -> dict[str, Any]:
    """Return ``result`` with stdout_lines and stderr_lines, which ansible-core adds for modules only."""
    lines = {f"{name}_lines": result[name].splitlines() for name in ("stdout", "stderr") if name in result}
    return {**result, **lines}
