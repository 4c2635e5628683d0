# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: runner_program
author: The qemu.guest authors (!UNKNOWN)
short_description: The program that runs commands in a guest for the qga connection
version_added: 0.1.0
description:
  - Returns the runner of the connection P(qemu.guest.qga#connection), a POSIX shell program, to install it in a guest.
    The role R(qemu.guest.guest_prep, ansible_collections.qemu.guest.guest_prep_role) does so.
  - The program's arguments are the directory of its spool, C(/run/qemu-guest-runner/1), the seconds without work after
    which it ends (C(0) for never), and, if it is to take the place of one that runs already, C(over).
options:
  _terms:
    description: There are none.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Have the runner in the image of a guest
  ansible.builtin.copy:
    content: "{{ lookup('qemu.guest.runner_program') }}"
    dest: /mnt/image/usr/local/lib/qemu-guest/runner.sh
    mode: "0755"
"""

RETURN = r"""
_raw:
  description: The program.
  type: list
  elements: str
"""

from typing import Any

from ansible.plugins.lookup import LookupBase

from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import program


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        self.set_options(var_options=variables, direct=kwargs)
        return [program()]
