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
  - The same key with other options or another comment is the same key, so a line that has it is replaced. It keeps its
    place, unless there are comments of their own lines in the file, or the agent cannot read it; then it becomes the
    last. Blanks around a line do not count.
  - Where the file is changed, its last line ends with a line break, and empty lines are removed.
  - The agent cannot remove lines that are not UTF-8, or, among comments, have blanks around them. Where such a line has
    one of the O(keys), the file is replaced as a whole by a program, so the agent must be allowed to run programs.
    Nothing is changed before all that is needed is known to be allowed.
  - Where SELinux is enforced, what the agent makes gets its label by C(restorecon), without which C(sshd) may not read
    it. Where the agent may not run programs, a warning says so.
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
  - Lines that are no keys are not written back, except for comments. They are an error, unless they are to be removed
    or O(exclusive=true) rewrites the file. Where the agent may run programs, it is an error as well if a link leads out
    of what is the user's. A user could otherwise have the agent read or write files of others.
  - The agent came to know these commands with version 5.2.
  - It looks in the user's home alone, whatever C(AuthorizedKeysFile) says in the guest's C(sshd_config).
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
  description: The user's keys afterwards, or as they would be in check mode, in the order of the file.
  type: list
  elements: str
  returned: success
  sample: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXmEmVbE6rHhFYg7l1lVZrZ0pTnXWDFbKsNDhPcFGDD alice@example.com]
"""

import errno
import re
import shlex
from typing import Any, List, Mapping, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    GuestFileError,
    OperationError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import sha256_of
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor, GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import ENTER, Attributes, place, variables
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile, enforces_selinux
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import check_shell
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
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

WRITE = "write"  # no command of the agent's: replace the file by programs

LARGEST = 1 << 20  # most bytes of a file with keys, or of /etc/passwd

Keys = List[str]

# sshd(8): options, type, base64, comment. The base64 of any type begins with the length of its name, a 32-bit number.
_KEY = re.compile(r"(?:^|\s)([a-z][a-z0-9@.-]+)[ \t]+(AAAA[0-9A-Za-z+/]+=*)(?:\s|$)")
# Quoted values in options. Quotes in a comment come after the key, so they do not matter.
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
# The agent writes line breaks only between lines, so an empty last line makes the one at the end.
END = ""
# The agent follows links: a user could have keys put elsewhere, or be given what a file of another user has. Where
# there is no directory, the agent makes it; where stat is another program than on Linux, that is not looked at.
_OWN = (
    r"""
stat -c %u / >/dev/null 2>&1 || exit 0
[ -e "$d" ] || [ -L "$d" ] || exit 0
"""
    + ENTER
    + r"""
if [ -L "./$n" ] && [ "$(stat -L -c %u -- "./$n")" != "$i" ]; then
    echo "$d/$n is a link to what is not that user's" >&2
    exit 1
fi
"""
)
# What agents list in the place of bytes that are not UTF-8.
SUBSTITUTE = "\ufffd"


class Current(NamedTuple):
    """The user's ``keys``, in the order of the file, and the possible changes to it.

    ``exists``: there is a file. ``whole``: it is known to have nothing but these lines, so it may be rewritten.
    ``adds`` and ``removes``: the agent may add and remove keys. ``path``, ``owner`` and ``text`` are the file's, if the
    agent can read it; bytes that are not UTF-8 are surrogates. ``programs``: the file has lines that the agent lists
    otherwise, and it may run programs.
    """

    keys: Keys
    exists: bool = True
    whole: bool = False
    adds: bool = True
    removes: bool = True
    path: str = ""
    owner: str = ""
    text: str | None = None
    programs: bool = False


def read(executor: Executor, params: Params) -> Current:
    agent = executor.agent
    agent.require(GET, REMOVE if params["state"] == "absent" else ADD)
    keys = keys_of(agent, params["user"])
    home, owner = _login(agent, params["user"])
    path = f"{home}/.ssh/authorized_keys" if home else ""
    text = _content(agent, path) if path else None
    differs = text is not None and not set(keys) <= set(text.split("\n"))
    current = Current(
        keys,
        exists=bool(keys) or text is not None,
        whole=text is not None and [line.strip() for line in text.split("\n") if line.strip()] == keys,
        adds=agent.supports(ADD),
        removes=agent.supports(REMOVE),
        path=path,
        owner=owner,
        text=text,
        programs=differs and executor.is_available(),
    )
    # All of what is to come, before any of it is done.
    planned = plan(current, params)
    if planned.changes:
        agent.require(*[command for command, _arguments in planned.todo[2] if command != WRITE])
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


def _login(agent: Agent, user: str) -> tuple[str, str]:
    """Return the user's home and C(UID:GID); empty if /etc/passwd does not have the user."""
    for line in (_content(agent, "/etc/passwd") or "").split("\n"):
        fields = line.split(":")
        if fields[0] == user and len(fields) == 7:
            return fields[5], f"{fields[2]}:{fields[3]}"
    return "", ""


def _content(agent: Agent, path: str) -> str | None:
    try:
        with GuestFile(agent, path) as file:
            return file.read_all(LARGEST).decode("utf-8", "surrogateescape")
    except (CommandError, TransferError):
        return None


def plan(current: Current, params: Params) -> Plan:
    keys = wanted(params)
    user = {"username": params["user"]}
    todo: list[tuple[str, dict[str, Any]]] = []
    if params["exclusive"]:
        after = list(keys.values())
        todo.append((ADD, {**user, "keys": [*after, END], "reset": True}))
    elif current.whole and current.adds:
        after = _after(current.keys, keys, params["state"])
        todo.append((ADD, {**user, "keys": [*after, END], "reset": True}))
    else:
        after, todo = _by_lines(current, keys, params["state"], user)
    if not params["exclusive"] and after != current.keys:
        _refuse_others(after)
    return Plan(
        before={"authorized_keys": current.keys},
        after={"authorized_keys": after},
        todo=(params["user"], after, todo),
        result={"user": params["user"], "authorized_keys": after},
        subject=f"authorized keys of {params['user']}",
    )


def _refuse_others(lines: Keys) -> None:
    """Refuse to write lines that are no keys: the file may be a link to what the user must not read, and would get.

    :raise OperationError: if there are such lines. They are not shown.
    """
    others = [line for line in lines if not line.startswith("#") and not _KEY.search(_QUOTED.sub('""', line))]
    if others:
        raise OperationError(
            f"{len(others)} lines of the file are no public keys. It may be a link to what the user must not read, and "
            "is left as it is. Look at it in the guest; exclusive=true rewrites it."
        )


def identity(line: str) -> str:
    """Return the identity of a key: its type and base64, without options and comment."""
    match = _KEY.search(_QUOTED.sub('""', line))
    return " ".join(match.groups()) if match else line


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


def _by_lines(
    current: Current, keys: Mapping[str, str], state: str, user: Mapping[str, str]
) -> tuple[Keys, list[tuple[str, dict[str, Any]]]]:
    """Return the desired lines, and the commands that leave the rest of the file as it is.

    New keys are added first, so that a lost second command locks no user out.
    """
    gone = [line for line in current.keys if identity(line) in keys and line != keys[identity(line)]]
    if state == "absent":
        gone = [line for line in current.keys if identity(line) in keys]
    if gone and not _agent_knows(current, gone):
        return _by_content(current, keys, state)
    after = [line for line in current.keys if line not in gone]
    missing = [] if state == "absent" else [line for line in keys.values() if line not in after]
    commands: list[tuple[str, dict[str, Any]]] = []
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


def _by_content(current: Current, keys: Mapping[str, str], state: str) -> tuple[Keys, list[tuple[str, dict[str, Any]]]]:
    """Return the desired lines, and what replaces the file; all other lines stay as they are, byte by byte.

    :raise OperationError: if that cannot be done.
    """
    raw = (current.text or "").split("\n")
    listed = [line for line in raw if line.strip() and not line.strip().startswith("#")]
    if not current.programs or len(listed) != len(current.keys):
        raise OperationError(
            "the file has a line for one of these keys that the agent cannot remove, because it is not UTF-8 or has "
            "blanks around it, and the agent may not read the file and run programs. exclusive=true rewrites the file."
        )
    names = iter(current.keys)
    lines: Keys = []
    after: Keys = []
    for line in raw:
        name = next(names) if line.strip() and not line.strip().startswith("#") else ""
        if name and identity(name) in keys:
            line = name = "" if state == "absent" else keys[identity(name)]
            if not name or name in after:
                continue
        lines += [line] if line.strip() else []
        after += [name] if name else []
    missing = [] if state == "absent" else [line for line in keys.values() if line not in after]
    text = "\n".join([*lines, *missing, END])
    write = {"path": current.path, "owner": current.owner, "old": current.text, "new": text}
    return after + missing, [(WRITE, write)]


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
        if params["state"] == "present" and not _KEY.search(key):
            raise OperationError(f"keys[{number}] is not a public key (expected 'ssh-ed25519 AAAA… comment').")
    return {identity(key): key for key in keys}


def _lines(keys: Any) -> list[str]:
    """Return the items of a list, or the lines of a text without those that are empty or a comment.

    :raise OperationError: if it is neither, or a text without any line. Who wants no key at all gives an empty list.
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
    user, after, commands = plan.todo
    _check_links(executor, user)
    for command, arguments in commands:
        if command == WRITE:
            _write(executor, **arguments)
        else:
            agent.execute(command, arguments)
    now = keys_of(agent, user)
    if sorted(now) != sorted(after):
        raise OperationError(
            "the agent reported success, but the user's keys are not what they should be. It removes only lines "
            "without blanks around them (exclusive=true rewrites the file), or another program changed the file.",
            result={"authorized_keys": now},
        )
    return {"warnings": _label(executor, user)} if enforces_selinux(agent) else {}


def _check_links(executor: Executor, user: str) -> None:
    """Check where the user's file leads, if the agent may run programs.

    :raise OperationError: if it is not in the user's home.
    """
    home, owner = _login(executor.agent, user)
    if home and executor.is_available():
        own = variables(f"{home}/.ssh/authorized_keys", i=owner.partition(":")[0]) + _OWN
        check_shell(executor, own, f"change the keys of {user}")


def _write(executor: Executor, path: str, owner: str, old: str, new: str) -> None:
    """Replace the file at once, if it is still what it was, with the owner and mode that the agent gives it, too."""
    if _content(executor.agent, path) != old:
        raise OperationError(f"{path} was changed meanwhile; nothing was written.")
    content = new.encode("utf-8", "surrogateescape")
    place(executor, content, path, Attributes(owner, mode="600"), sha256=sha256_of([content]))


def _label(executor: Executor, user: str) -> list[str]:
    """Set the SELinux labels of the files that the agent made; return warnings if that fails."""
    home, _owner = _login(executor.agent, user)
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
