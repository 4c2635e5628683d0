# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How to log in to a machine, and as whom: with ansible-core's own plugins for ssh and become."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import shlex
import threading
from collections.abc import Mapping
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import become_loader, connection_loader

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError

__all__ = ("PYTHON", "Login", "become_method", "wants_become")

PYTHON = "ansible_python_interpreter"
_BECOME = "ansible_become"
_METHOD = "ansible_become_method"

# Seconds for which the connection stays when nothing goes through it any more: what Ansible's ssh_args say, too.
_PERSIST_SECONDS = 60
_OPTIONS = (
    "-oControlMaster=auto",
    f"-oControlPersist={_PERSIST_SECONDS}",
    "-oStreamLocalBindMask=0177",
    "-oServerAliveInterval=15",  # notice a hypervisor that has gone
)
_NOBODY_TO_ASK = "-oBatchMode=yes"

# ansible-core's loaders are not made for threads: a plugin that another thread imports is there half, and fails.
_LOADING = threading.Lock()

_SECRETS = re.compile(r"ansible_\w*(pass|password|passphrase)")
# What decides about the login besides: the configuration, the environment and the command line.
_ENVIRONMENT = re.compile(r"ANSIBLE_(SSH_\w+|HOST_KEY_CHECKING|REMOTE_\w+|PRIVATE_KEY_FILE|BECOME\w*|PIPELINING)")
_COMMAND_LINE = ("remote_user", "private_key_file", "ssh_common_args", "ssh_extra_args")


class Login:
    """The login to a machine that the user calls ``name``.

    ``variables`` say how, as ansible.builtin.ssh and the become plugins know them; C(ansible_host) is the destination.
    ``is_host``: the machine is an inventory host.
    """

    def __init__(self, name: str, variables: Mapping[str, Any], *, is_host: bool) -> None:
        self.name = name
        self._variables = variables
        self._is_host = is_host

    @functools.cached_property
    def identity(self) -> str:
        """A name that is the same for the same login: only those share a connection."""
        told = [
            {k: value for k, value in self._variables.items() if not _SECRETS.fullmatch(k) and k != PYTHON},
            {key: value for key, value in os.environ.items() if _ENVIRONMENT.fullmatch(key)},
            {key: context.CLIARGS.get(key) for key in _COMMAND_LINE if self._is_host},
            C.CONFIG_FILE,
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode("utf-8")).hexdigest()[:32]

    @property
    def program(self) -> str:
        """The program ssh."""
        return str(self._variables.get("ansible_ssh_executable") or "ssh")

    @property
    def python(self) -> Any:
        """The Python there, as Ansible's variable names it; None if it does not."""
        return self._variables.get(PYTHON)

    @property
    def becomes(self) -> bool:
        """Whether another user is wanted there."""
        return wants_become(self._variables)

    @property
    def become_there(self) -> str:
        """The beginning of a message about become."""
        user = self.become().get_option("become_user") or "the other user"
        return f"become on {self.name} ({become_method(self._variables)}, {user})"

    def become(self) -> Any:
        """Return the become plugin, with this machine's variables.

        :raise ConnectError: if there is no such plugin.
        """
        method = self._variables.get(_METHOD) or C.DEFAULT_BECOME_METHOD
        with _LOADING:
            plugin = become_loader.get(method)
            if plugin:
                plugin.set_options(var_options=dict(self._variables))
                return plugin
        raise ConnectError(
            f"become on {self.name}: there is no become plugin {method}. Set {_METHOD} of {self.name}, or install the "
            "plugin's collection."
        )

    def ssh(self, control_path: str, deadline: Deadline) -> Any:
        """Return ansible.builtin.ssh, ready to connect and to leave a connection behind at ``control_path``."""
        play = PlayContext()
        play.remote_addr = self._variables["ansible_host"]
        # A destination of ssh's has ssh's own user, not the one for the guests. For inventory hosts,
        # that of the command line (-u) counts less than variables, as a play's keyword.
        direct = {} if self._is_host else {"remote_user": ""}
        keywords = {"remote_user": context.CLIARGS.get("remote_user")}
        with _LOADING:
            plugin = connection_loader.get("ansible.builtin.ssh", play, os.devnull)
            plugin.set_options(task_keys=keywords, var_options=dict(self._variables), direct=direct)
        own = [*_OPTIONS, f"-oControlPath={control_path}"]
        if not plugin.get_option("password"):
            own.append(_NOBODY_TO_ASK)
        # ssh takes the first value of each option that it is given.
        plugin.set_option("ssh_args", f"{shlex.join(own)} {plugin.get_option('ssh_args') or ''}")
        plugin.set_option("timeout", max(1, math.ceil(min(deadline.left(), plugin.get_option("timeout")))))
        return plugin


def wants_become(login: Mapping[str, Any]) -> bool:
    """Return whether the variables of a login ask for become."""
    return bool(boolean(login.get(_BECOME), strict=False))


def become_method(login: Mapping[str, Any]) -> str:
    """Return the name of the become method without that of its collection."""
    return str(login.get(_METHOD) or C.DEFAULT_BECOME_METHOD).rpartition(".")[2]
