# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

from ansible_collections.qemu.guest.plugins.plugin_utils import _action

__all__ = ("ActionModule",)


class ActionModule(_action.ActionModule):
    supports_raw_params = True  # ansible-core before 2.19 refuses them for all but its own actions

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take a command without an option's name for C(cmd), as ansible.builtin.command does."""
        if "_raw_params" in self._task.args:
            self._task.args.setdefault("cmd", self._task.args.pop("_raw_params"))
        return super().run(tmp, task_vars)
