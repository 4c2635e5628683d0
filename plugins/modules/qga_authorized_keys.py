#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_authorized_keys
short_description: Manage the SSH keys that may log in as a guest's user
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Adds lines to the file C(.ssh/authorized_keys) in the home of a guest's user, or removes them
    (C(guest-ssh-add-authorized-keys), C(guest-ssh-remove-authorized-keys)).
  - The agent makes the directory and the file where they are missing, with the right owner and modes.
  - Lines are compared as the agent does, whole, with options and comment. The same key with another comment is another
    line. Blanks around a line do not count.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  user:
    description:
      - The user's name. The user must exist, in check mode too.
    type: str
    required: true
  keys:
    description:
      - Lines as in C(authorized_keys), such as V(ssh-ed25519 AAAAC3Nza… alice), each of one key. Options before the key
        are allowed.
      - Empty lines, comments, and several keys in one item are refused, and with O(state=present) what does not look
        like a public key.
      - Give a list. A single text is split at its commas, which options may have.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(present) adds the lines that are missing. V(absent) removes those that are there.
    type: str
    choices: [present, absent]
    default: present
  exclusive:
    description:
      - Whether to make the file consist of exactly O(keys), in their order. All else is removed, comments and empty
        lines included.
      - With an empty list, nobody can log in as the user by a key. Not with O(state=absent).
    type: bool
    default: false
notes:
  - The agent came to know these commands with version 5.2.
  - It looks in the user's home alone, whatever C(AuthorizedKeysFile) says in the guest's C(sshd_config).
  - It writes no line break after the last key. What another program then appends without looking ends up on that line.
seealso:
  - module: qemu.guest.qga_info
    description: Its option O(qemu.guest.qga_info#module:authorized_keys_of) returns them.
  - module: ansible.posix.authorized_key
"""

EXAMPLES = r"""
- name: Let Alice in
  qemu.guest.qga_authorized_keys:
    address: /run/vm1.qga
    user: alice
    keys:
      - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXmEmVbE6rHhFYg7l1lVZrZ0pTnXWDFbKsNDhPcFGDD alice@example.com

- name: Let in the keys of a file, and no others
  qemu.guest.qga_authorized_keys:
    address: /run/vm1.qga
    user: root
    keys: "{{ lookup('ansible.builtin.file', 'admins.pub').splitlines() }}"
    exclusive: true

- name: Shut Alice out
  qemu.guest.qga_authorized_keys:
    address: /run/vm1.qga
    user: alice
    keys:
      - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXmEmVbE6rHhFYg7l1lVZrZ0pTnXWDFbKsNDhPcFGDD alice@example.com
    state: absent
"""

RETURN = r"""
user:
  description: The user.
  type: str
  returned: success
  sample: alice
authorized_keys:
  description: The user's keys afterwards, or as they would be in check mode, in the order of the file.
  type: list
  elements: str
  returned: success
  sample: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXmEmVbE6rHhFYg7l1lVZrZ0pTnXWDFbKsNDhPcFGDD alice@example.com]
"""

import errno
import re
from typing import Any, List, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent import Agent
from ansible_collections.qemu.guest.plugins.module_utils._errors import CommandError, GuestFileError, OperationError
from ansible_collections.qemu.guest.plugins.module_utils._module import run_module
from ansible_collections.qemu.guest.plugins.module_utils._operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._wire import expect

SPEC: dict[str, dict[str, Any]] = {
    "user": {"type": "str", "required": True},
    "keys": {"type": "list", "elements": "str", "required": True, "no_log": False},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "exclusive": {"type": "bool", "default": False},
}

GET = "guest-ssh-get-authorized-keys"
ADD = "guest-ssh-add-authorized-keys"
REMOVE = "guest-ssh-remove-authorized-keys"

Keys = List[str]

# sshd(8): options, type, base64, comment. The base64 of any type begins with the length of its name, a 32-bit number.
_KEY = re.compile(r"(^|\s)[a-z][a-z0-9@.-]+[ \t]+AAAA[0-9A-Za-z+/]+=*(\s|$)")


def read(agent: Agent, params: Params) -> Keys:
    agent.require(GET, REMOVE if params["state"] == "absent" else ADD)
    return keys_of(agent, params["user"])


def keys_of(agent: Agent, user: str) -> Keys:
    """Return the user's keys in the order of the file; a file that does not exist has none."""
    try:
        reply = agent.execute(GET, {"username": user})
    except GuestFileError as exc:
        if exc.errno == errno.ENOENT:
            return []
        raise
    except CommandError as exc:
        # Agents end this one in ": Success".
        if exc.message.startswith("failed to lookup user"):
            exc.hint = "Is there such a user in the guest?"
        raise
    keys = expect(reply.get("keys"), list, "keys")
    # Agents list the last line first.
    return [expect(key, str, "a key") for key in reversed(keys)]


def plan(current: Keys, params: Params) -> Plan:
    keys = wanted(params)
    arguments: dict[str, Any] = {"username": params["user"]}
    if params["state"] == "absent":
        after = [key for key in current if key not in keys]
        todo = (REMOVE, {**arguments, "keys": [key for key in keys if key in current]})
    elif params["exclusive"]:
        after = keys
        todo = (ADD, {**arguments, "keys": keys, "reset": True})
    else:
        missing = [key for key in keys if key not in current]
        after = current + missing
        todo = (ADD, {**arguments, "keys": missing})
    return Plan(
        before={"authorized_keys": current},
        after={"authorized_keys": after},
        todo=todo,
        result={"user": params["user"], "authorized_keys": after},
        subject=f"authorized keys of {params['user']}",
    )


def wanted(params: Params) -> Keys:
    """Return the keys that the task names, each once.

    :raise OperationError: if one cannot be what is meant. It is not shown: it may be a private key.
    """
    if params["exclusive"] and params["state"] == "absent":
        raise OperationError("exclusive: to have exactly these keys, or none, use it with state=present.")
    keys = [key.strip() for key in params["keys"]]
    for number, key in enumerate(keys):
        if not key or key.startswith("#") or re.search(r"[\n\r\0]", key):
            raise OperationError(
                f"keys[{number}] is not one line with a key: it is empty, a comment, or several lines. The lines of a "
                "file are a list after .splitlines()."
            )
        if params["state"] == "present" and not _KEY.search(key):
            raise OperationError(
                f"keys[{number}] is no public key such as 'ssh-ed25519 AAAA… comment'. A text in place of a list is "
                "split at its commas."
            )
    return list(dict.fromkeys(keys))


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    command, arguments = plan.todo
    agent.execute(command, arguments)
    now = keys_of(agent, arguments["username"])
    if sorted(now) != sorted(plan.after["authorized_keys"]):
        raise OperationError(
            "the agent reported success, but the user's keys are not what they should be. It removes only lines "
            "without blanks around them (exclusive=true rewrites the file), or another program changed the file.",
            result={"authorized_keys": now},
        )
    return {}


OPERATION = Operation(SPEC, read, plan, apply)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
