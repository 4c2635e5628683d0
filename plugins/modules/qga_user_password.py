#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_user_password
short_description: Set the password of a guest's user
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Sets the password of a user that exists in the guest (C(guest-set-user-password)).
  - No agent can tell which password a user has, so every run sets it and reports a change.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
    details:
      - Makes sure that the agent allows the command and that the password can be sent, and says that it would be set.
        Whether the user exists is not looked at.
  diff_mode:
    support: none
    details:
      - Neither the old nor the new password is to be shown.
  idempotent:
    support: none
    details:
      - The agent cannot read a password back.
options:
  user:
    description:
      - The user's name. The user must exist.
    type: str
    required: true
    aliases: [name]
  password:
    description:
      - The new password, or the hash of it with O(crypted=true). Not empty, and without line breaks.
      - It is neither logged nor returned.
    type: str
    required: true
  crypted:
    description:
      - Whether O(password) is a hash as crypt(3) makes it, which is stored as it is. The filter
        P(ansible.builtin.password_hash#filter) makes one.
      - It has the form V($id$salt$hash), and the guest must know its kind. V(!) before it locks the password, as V(!)
        or V(*) without a hash do. Anything else is refused, because older guests store whatever they get.
      - Only guests with Linux and the BSDs take hashes.
    type: bool
    default: false
notes:
  - The agent has at least 60 seconds for this, whatever O(agent_timeout) says. The guest hashes slowly on purpose, and
    waits while somebody else changes passwords.
  - A plain password reaches the guest unencrypted, through the hypervisor's socket. A hash does not tell it.
  - To set a password once, let a task before this find out whether it was set, and put a C(when) on this one.
seealso:
  - module: qemu.guest.qga_authorized_keys
"""

EXAMPLES = r"""
- name: Set root's password to log in on the console
  qemu.guest.qga_user_password:
    address: /run/vm1.qga
    user: root
    password: "{{ vault_root_password }}"

- name: Set a password that the hypervisor does not get to know
  qemu.guest.qga_user_password:
    address: /run/vm1.qga
    user: alice
    password: "{{ vault_alice_password | password_hash('sha512') }}"
    crypted: true

- name: Lock root's password
  qemu.guest.qga_user_password:
    address: /run/vm1.qga
    user: root
    password: "!"
    crypted: true
"""

RETURN = r"""
user:
  description: The user whose password was set, or would be.
  type: str
  returned: success
  sample: alice
"""

import base64
import re
from typing import Any, Mapping

from ansible.module_utils.common.text.converters import to_bytes

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandError, OperationError
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "user": {"type": "str", "required": True, "aliases": ["name"]},
    "password": {"type": "str", "required": True, "no_log": True},
    "crypted": {"type": "bool", "default": False},
}

COMMAND = "guest-set-user-password"

# crypt(5), without the methods that have no $: a DES hash looks like any word of 13 letters. The shortest hashes, those
# of MD5, end in 22 characters.
_HASH = r"\$[0-9a-z]+[$,][./0-9A-Za-z$=,+-]*[./0-9A-Za-z]{22}"
_CRYPTED = re.compile(rf"!*{_HASH}|!+|\*")


def read(agent: Agent, params: Params) -> None:
    agent.require(COMMAND)


def plan(current: None, params: Params) -> Plan:
    password = params["password"]
    # The agent silently truncates a password at a NUL.
    if not password or re.search(r"[\n\r\0]", password):
        raise OperationError("password: it is empty, or has a line break or a NUL byte in it.")
    looks_crypted = bool(_CRYPTED.fullmatch(password))
    if params["crypted"] and not looks_crypted:
        raise OperationError(
            "password: this is no hash of the form $id$salt$hash, which crypted=true calls for. The filter "
            "password_hash makes one; leave crypted out to set a plain password."
        )
    warnings = []
    if not params["crypted"] and re.fullmatch(_HASH, password):
        warnings.append("The password looks like a hash, but is set as a plain password: crypted=true is not given.")
    return Plan(
        changed=True,
        todo={
            "username": params["user"],
            "password": base64.b64encode(to_bytes(password)).decode("ascii"),
            "crypted": params["crypted"],
        },
        result={"user": params["user"]},
        warnings=warnings,
    )


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    try:
        agent.execute(COMMAND, plan.todo)
    except CommandError as exc:
        exc.hint = exc.hint or "Does the user exist in the guest, and do the guest's rules allow this password?"
        raise
    return {}


OPERATION = Operation(SPEC, read, plan, apply)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
