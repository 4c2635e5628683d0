# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine a name means: an inventory host, a destination of ssh's, or this machine."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.login import PYTHON, become_method, wants_become

__all__ = ("THIS_MACHINE", "find_hypervisor", "host_variables")

THIS_MACHINE = "localhost"

# The variables of an inventory host that say how to log in there, and as whom. The facts about its keys do not.
_LOGIN = re.compile(
    r"ansible_(host|port|user|password|pass|private_key_file|private_key|pkcs11_provider|host_key_checking|timeout"
    r"|ssh_(?!host_key_\w+_public)\w+|sshpass_\w+|(become|sudo|su|doas)(_\w+)?)"
)
_SSH = ("ssh", "smart", "paramiko", "paramiko_ssh", "ansible.builtin.ssh", "ansible.builtin.paramiko_ssh")


def find_hypervisor(
    name: str, variables: Mapping[str, Any] | None, options: Mapping[str, Any] | None = None
) -> Hypervisor | None:
    """Return the hypervisor ``name``; None if it is this machine.

    ``variables`` are those of the inventory host of that name, templated; None if there is none. The name is a
    destination of ssh's then, and ``options`` are variables such as C(ansible_ssh_common_args).

    :raise AddressError: if it is neither, or its connection is not ssh.
    """
    if variables is None:
        if name == THIS_MACHINE:
            return None
        _check_destination(name)
        return Hypervisor(name, {**(options or {}), "ansible_host": name}, is_host=False)
    connection = variables.get("ansible_connection") or _SSH[0]
    if connection in ("local", "ansible.builtin.local"):
        return None
    if connection not in _SSH:
        raise AddressError(
            f"{name} has the connection {connection}. The sockets of a hypervisor are reached by ssh, or by local if "
            "it is this machine."
        )
    login = {key: variables[key] for key in variables if _LOGIN.fullmatch(key)}
    if wants_become(login):
        own = f"ansible_{become_method(login)}_"
        login |= {key: variables[key] for key in variables if key.startswith(own) or key == PYTHON}
    login.setdefault("ansible_host", name)
    _check_destination(str(login["ansible_host"]))
    return Hypervisor(name, login, is_host=True)


def host_variables(name: str, hostvars: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the variables of the inventory host ``name``; None if there is none.

    ``hostvars`` is the variable of that name. A connection plugin is not given it by every core: without it, the
    variables of the task that this process was started for are looked at.
    """
    if hostvars is None:
        hostvars = getattr(multiprocessing.current_process(), "_task_vars", {}).get("hostvars")
    return hostvars[name] if hostvars is not None and name in hostvars else None


def _check_destination(name: str) -> None:
    if name.startswith("-") or not name.strip() or not name.isprintable():
        raise AddressError(
            f"{name!r} is not a hypervisor: neither an inventory host nor a destination of ssh's ([USER@]HOST or "
            "ssh://[USER@]HOST[:PORT])."
        )
