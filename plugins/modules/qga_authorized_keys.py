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
  - Adds lines to the file C(.ssh/authorized_keys) in the home of a guest's user, or removes them.
  - The directory and the file are made where they are missing, with the right owner and modes.
  - The same key with other options or another comment is the same key, so a line that has it is replaced, in its
    place. Blanks around a line do not count.
  - Where the file is changed, its last line ends with a line break, and empty lines are removed.
  - In a Linux guest whose agent may run programs, they read the file and replace it as a whole. So no link that the
    user plants leads them elsewhere, at whatever moment that is.
  - Elsewhere the agent does it (C(guest-ssh-add-authorized-keys), C(guest-ssh-remove-authorized-keys)), and follows
    links. If there are comments of their own lines in the file, or the agent cannot read it, a line that is replaced
    becomes the last. Lines that are not UTF-8, or, among comments, have blanks around them, cannot be removed. Nothing
    is changed before all that is needed is known to be allowed.
  - Where SELinux is enforced, what is made gets its label by C(restorecon), without which C(sshd) may not read it.
    Where the agent may not run programs, a warning says so.
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
      - A list of lines as in C(authorized_keys), such as V(ssh-ed25519 AAAAC3Nza… alice), each of one key. Options
        before the key are allowed.
      - In a list, empty lines, comments, and several keys in one item are refused, and with O(state=present) what does
        not look like a public key.
      - Or one text of such lines, as a file of public keys has them. Empty lines and comments in it are left out.
    type: raw
    required: true
    aliases: [key]
  state:
    description:
      - V(present) adds the lines that are missing, and replaces those that have the same key and differ. V(absent)
        removes all that have one of the keys, whatever their options and comments.
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
  - Lines that are no keys are neither shown nor written back, except for comments. They are an error, unless they are
    to be removed or O(exclusive=true) rewrites the file. Where the agent may run programs, it is an error as well if a
    link leads out of what is the user's.
  - Where the agent itself writes, a user of the guest who makes C(.ssh) or the file a link can have it read or replace
    files of others. What it reads has to look like keys, or it is neither shown nor written. In a guest that is not
    Linux and may run programs, a link is refused if it is there when the task begins.
  - The agent came to know these commands with version 5.2. Where programs do it, they are not needed.
  - Only the user's home is looked at, whatever C(AuthorizedKeysFile) says in the guest's C(sshd_config).
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
    key: "{{ lookup('ansible.builtin.file', 'admins.pub') }}"
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
  description:
    - The user's keys afterwards, or as they would be in check mode, in the order of the file. A text stands in the
      place of lines that are no keys.
  type: list
  elements: str
  returned: success
  sample: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXmEmVbE6rHhFYg7l1lVZrZ0pTnXWDFbKsNDhPcFGDD alice@example.com]
"""

import errno
import re
import shlex
from typing import Any, List, Mapping, NamedTuple, Tuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    GuestFileError,
    OperationError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor, GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import variables
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile, enforces_selinux
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import check_shell
from ansible_collections.qemu.guest.plugins.module_utils._module.key_file import (
    LARGEST,
    KeyFile,
    look,
    write,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.public_keys import identity, is_key, listed, shown
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "user": {"type": "str", "required": True},
    "keys": {"type": "raw", "required": True, "no_log": False, "aliases": ["key"]},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "exclusive": {"type": "bool", "default": False},
}

GET = "guest-ssh-get-authorized-keys"
ADD = "guest-ssh-add-authorized-keys"
REMOVE = "guest-ssh-remove-authorized-keys"

Keys = List[str]
Commands = List[Tuple[str, Mapping[str, Any]]]

# The agent writes line breaks only between lines, so an empty last line makes the one at the end.
END = ""
# The agent follows links. Where programs are not those of Linux, a link is refused whatever it leads to.
_NO_LINKS = r"""
for f in "$d" "$d/$n"; do
    if [ -L "$f" ]; then echo "$f is a link" >&2; exit 1; fi
done
"""
# What agents list in the place of bytes that are not UTF-8.
SUBSTITUTE = "\ufffd"


class Current(NamedTuple):
    """The user's ``keys``, in the order of the file, and the possible changes to it.

    ``file`` is what programs read and replace; None: the agent does. Then ``exists``: there is a file; ``whole``: it is
    known to have nothing but these lines, so it may be rewritten; ``adds`` and ``removes``: the agent may add and
    remove keys. ``text`` is what the agent can read of the file, where bytes that are not UTF-8 are surrogates;
    ``home`` is the user's, if /etc/passwd has the user.
    """

    keys: Keys
    exists: bool = True
    whole: bool = False
    adds: bool = True
    removes: bool = True
    home: str = ""
    text: str | None = None
    file: KeyFile | None = None


class Todo(NamedTuple):
    """The agent's ``commands``, or the ``text`` of the file, by which the user's keys become ``after``."""

    user: str
    current: Current
    after: Keys
    commands: Commands
    text: str = ""


def read(executor: Executor, params: Params) -> Current:
    file = look(executor, params["user"]) if executor.is_available() else None
    if file:
        return Current([name for name in map(listed, (file.text or "").split("\n")) if name], file=file)
    agent = executor.agent
    agent.require(GET, REMOVE if params["state"] == "absent" else ADD)
    keys = keys_of(agent, params["user"])
    home = _home(agent, params["user"])
    text = _content(agent, f"{home}/.ssh/authorized_keys") if home else None
    current = Current(
        keys,
        exists=bool(keys) or text is not None,
        whole=text is not None and [line.strip() for line in text.split("\n") if line.strip()] == keys,
        adds=agent.supports(ADD),
        removes=agent.supports(REMOVE),
        home=home,
        text=text,
    )
    # All of what is to come, before any of it is done.
    planned = plan(current, params)
    if planned.changes:
        agent.require(*[command for command, _arguments in planned.todo.commands])
    return current


def keys_of(agent: Agent, user: str) -> Keys:
    """Return the user's keys in the order of the file; none if there is no file."""
    try:
        reply = agent.execute(GET, {"username": user})
    except GuestFileError as exc:
        if exc.errno == errno.ENOENT:
            return []
        raise
    except CommandError as exc:
        # Agents end this message in ": Success".
        if exc.message.startswith("failed to lookup user"):
            exc.hint = "Is there such a user in the guest?"
        raise
    keys = expect(reply.get("keys"), list, "keys")
    # Agents list the last line first.
    return [expect(key, str, "a key") for key in reversed(keys)]


def _home(agent: Agent, user: str) -> str:
    """Return the user's home; empty if /etc/passwd does not have the user."""
    for line in (_content(agent, "/etc/passwd") or "").split("\n"):
        fields = line.split(":")
        if fields[0] == user and len(fields) == 7:
            return fields[5]
    return ""


def _content(agent: Agent, path: str) -> str | None:
    try:
        with GuestFile(agent, path) as file:
            return file.read_all(LARGEST).decode("utf-8", "surrogateescape")
    except (CommandError, TransferError):
        return None


def plan(current: Current, params: Params) -> Plan:
    keys = wanted(params)
    user = {"username": params["user"]}
    after, text, commands = list(keys.values()), "", []
    if current.file and params["exclusive"]:
        text = "\n".join([*after, END])
    elif current.file:
        after, text = _rewritten(current.file, keys, params["state"])
    elif params["exclusive"]:
        commands = [_rewrite(user, after)]
    elif current.whole and current.adds:
        after = _after(current.keys, keys, params["state"])
        commands = [_rewrite(user, after)]
    else:
        after, commands = _by_lines(current, keys, params["state"], user)
    if not params["exclusive"] and after != current.keys:
        _refuse_others(after)
    changes = after != current.keys
    return Plan(
        before={"authorized_keys": shown(current.keys)},
        after={"authorized_keys": shown(after)},
        changed=changes,
        todo=Todo(params["user"], current, after, commands, text),
        result={"user": params["user"], "authorized_keys": shown(after)},
        subject=f"authorized keys of {params['user']}",
    )


def _rewrite(user: Mapping[str, Any], after: Keys) -> tuple[str, Mapping[str, Any]]:
    """Return the command that makes the file consist of these lines."""
    return ADD, {**user, "keys": [*after, END], "reset": True}


def _refuse_others(lines: Keys) -> None:
    """Refuse to write lines that are no keys: the file may be a link to what the user must not read, and would get.

    :raise OperationError: if there are such lines. They are not shown.
    """
    others = [line for line in lines if not line.startswith("#") and not is_key(line)]
    if others:
        raise OperationError(
            f"{len(others)} lines of the file are no public keys. It may be a link to what the user must not read, and "
            "is left as it is. Look at it in the guest; exclusive=true rewrites it."
        )


def _after(current: Keys, keys: Mapping[str, str], state: str) -> Keys:
    """Return the desired lines, each in its place."""
    if state == "absent":
        return [line for line in current if identity(line) not in keys]
    after: Keys = []
    for line in current:
        line = keys.get(identity(line), line)
        if line not in after or current.count(line) > 1:
            after.append(line)
    return after + [line for line in keys.values() if line not in after]


def _by_lines(current: Current, keys: Mapping[str, str], state: str, user: Mapping[str, str]) -> tuple[Keys, Commands]:
    """Return the desired lines, and the commands that leave the rest of the file as it is.

    New keys are added first, so that a lost second command locks no user out.

    :raise OperationError: if the agent cannot remove what has to go.
    """
    gone = [line for line in current.keys if identity(line) in keys and line != keys[identity(line)]]
    if state == "absent":
        gone = [line for line in current.keys if identity(line) in keys]
    if gone and not _agent_knows(current, gone):
        raise OperationError(
            "the file has a line for one of these keys that the agent cannot remove, because it is not UTF-8 or has "
            "blanks around it, and no programs can be run to do it. exclusive=true rewrites the file."
        )
    after = [line for line in current.keys if line not in gone]
    missing = [] if state == "absent" else [line for line in keys.values() if line not in after]
    commands: Commands = []
    if current.exists and current.removes and current.adds:
        commands.append((REMOVE, {**user, "keys": [END]}))
    if current.adds:
        commands.append((ADD, {**user, "keys": [*missing, END]}))
    if gone:
        commands.append((REMOVE, {**user, "keys": gone}))
    return after + missing, commands


def _agent_knows(current: Current, lines: Keys) -> bool:
    """Return whether the agent can remove these lines: the file has them as the agent has listed them.

    It lists them without the blanks around them, and with a substitute for what is not UTF-8.
    """
    if current.text is None:
        return not any(SUBSTITUTE in line for line in lines)
    return set(lines) <= set(current.text.split("\n"))


def _rewritten(file: KeyFile, keys: Mapping[str, str], state: str) -> tuple[Keys, str]:
    """Return the desired keys, and the text of the file; all other lines stay as they are, byte by byte."""
    lines: Keys = []
    after: Keys = []
    raw = (file.text or "").split("\n")
    there = [listed(line) for line in raw]
    for line, name in zip(raw, there):
        if name and identity(name) in keys:
            if state == "absent":
                continue
            line = name = keys[identity(name)]
            if name in after and there.count(name) < 2:
                continue
        lines += [line] if line.strip() else []
        after += [name] if name else []
    missing = [] if state == "absent" else [line for line in keys.values() if line not in after]
    return after + missing, "\n".join([*lines, *missing, END])


def wanted(params: Params) -> Mapping[str, str]:
    """Return the lines that the task names, by `identity`; of duplicates, the last.

    :raise OperationError: if a line is not a public key. It is not shown, because it may be a private key.
    """
    if params["exclusive"] and params["state"] == "absent":
        raise OperationError("exclusive: to have exactly these keys, or none, use it with state=present.")
    keys = _lines(params["keys"])
    for number, key in enumerate(keys):
        if not key or key.startswith("#") or re.search(r"[\n\r\0]", key):
            raise OperationError(
                f"keys[{number}] is not one line with a key: it is empty, a comment, or several lines."
            )
        if params["state"] == "present" and not is_key(key):
            raise OperationError(f"keys[{number}] is not a public key (expected 'ssh-ed25519 AAAA… comment').")
    return {identity(key): key for key in keys}


def _lines(keys: Any) -> list[str]:
    """Return the items of a list, or the lines of a text without those that are empty or a comment.

    :raise OperationError: if it is neither, or a text without any line. No key at all is an empty list.
    """
    if isinstance(keys, str):
        lines = [line.strip() for line in keys.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise OperationError("keys: there is no key in the text.")
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
        raise OperationError("keys: it should be a list of lines, or a text of them.")
    return [key.strip() for key in keys]


def apply(executor: Executor, plan: Plan) -> Mapping[str, Any]:
    agent = executor.agent
    todo: Todo = plan.todo
    file = todo.current.file
    home = file.home if file else todo.current.home
    if file:
        write(executor, file, todo.text)
    else:
        _by_the_agent(executor, todo)
    return {"warnings": _label(executor, todo.user, home)} if enforces_selinux(agent) else {}


def _by_the_agent(executor: Executor, todo: Todo) -> None:
    """Run the commands.

    :raise OperationError: if the file is not what it should be then, or there is a link that shows before.
    """
    if todo.current.home and executor.is_available():
        script = variables(f"{todo.current.home}/.ssh/authorized_keys") + _NO_LINKS
        check_shell(executor, script, f"change the keys of {todo.user}")
    for command, arguments in todo.commands:
        executor.agent.execute(command, arguments)
    now = keys_of(executor.agent, todo.user)
    if sorted(now) != sorted(todo.after):
        raise OperationError(
            "the agent reported success, but the user's keys are not what they should be. It removes only lines "
            "without blanks around them (exclusive=true rewrites the file), or another program changed the file.",
            result={"authorized_keys": shown(now)},
        )


def _label(executor: Executor, user: str, home: str) -> list[str]:
    """Set the SELinux labels of the files that were made; return warnings if that fails."""
    home = shlex.quote(home) if home else f"~{user}"  # unquoted, but the agent has found a user of that name
    reason = "the agent may not run programs"
    if executor.is_available():
        try:
            check_shell(executor, f"restorecon -R {home}/.ssh", f"label the keys of {user}")
            return []
        except OperationError as exc:
            reason = exc.message
    return [
        f"SELinux is enforced in the guest, and sshd may not be allowed to read the keys of {user}: {reason}. Run "
        f"restorecon -R {home}/.ssh there."
    ]


OPERATION = Operation(SPEC, read, plan, apply, executor=GuestExec)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
