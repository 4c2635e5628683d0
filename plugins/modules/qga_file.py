#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_file
short_description: Manage a file in a guest through its agent
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Makes sure that a file is in the guest with the given content, mode and owner, or that it is not there.
  - The content is compared first, so nothing is written where nothing is to change. What was written is verified.
  - Where the agent may run programs, a file is replaced whole or not at all, and nobody else can read it on the way.
  - Where it may not, content is written in place, which keeps the mode and owner of an existing file, and O(mode),
    O(owner), O(group), O(backup) and O(state=absent) are refused with what to change in the guest.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Content is shown if it is UTF-8 text of up to 104448 bytes. Set C(no_log) on tasks whose content is secret.
  idempotent:
    support: full
options:
  path:
    description:
      - The file's absolute path in the guest. A symbolic link is followed when content is written, and removed itself
        with O(state=absent).
    type: str
    required: true
  state:
    description:
      - V(present) makes the file have the given content, mode and owner. Without O(content) and O(src), a file that
        does not exist is made empty.
      - V(absent) removes it. Directories are not removed.
    type: str
    choices: [present, absent]
    default: present
  content:
    description:
      - The file's content. It is not logged.
    type: str
  src:
    description:
      - A file with the content, on the machine that the task runs on. Where O(address) is left out, that is the
        controller, and a relative path is looked for in C(files/) of the role or playbook.
    type: path
  append:
    description:
      - Whether the content is added to the end of the file, unless the file ends with it already.
    type: bool
    default: false
  mode:
    description:
      - The file's mode in octal, quoted, such as V("0644").
      - By default, a new file has V("0644") and an existing one keeps its mode.
    type: raw
  owner:
    description:
      - The name or number of the user who is to own the file. By default an existing file keeps its owner.
    type: str
  group:
    description:
      - The name or number of the file's group. By default an existing file keeps its group.
    type: str
  backup:
    description:
      - Whether a file whose content is to change is copied first, beside itself.
    type: bool
    default: false
notes:
  - A file that the agent creates by itself can be written by every user of the guest (mode 0666). Where it may not run
    programs, a new file is therefore only made if O(mode) is V("0666").
"""

EXAMPLES = r"""
- name: Configure an application
  qemu.guest.qga_file:
    address: /run/vm1.qga
    path: /etc/app.conf
    content: |
      listen = /run/app.sock
    mode: "0640"
    owner: root
    group: app
    backup: true

- name: Remove it
  qemu.guest.qga_file:
    address: /run/vm1.qga
    path: /etc/app.conf
    state: absent
"""

RETURN = r"""
path:
  description: The path in the guest, links followed.
  type: str
  returned: success
  sample: /etc/app.conf
state:
  description: V(file) or V(absent), as it is or would be.
  type: str
  returned: success
  sample: file
size:
  description: The file's size in bytes.
  type: int
  returned: when there is or will be a file
  sample: 23
sha256:
  description: The SHA-256 of the file's content in hex.
  type: str
  returned: when there is or will be a file, unless it is appended to
  sample: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
mode:
  description: The file's mode in octal.
  type: str
  returned: when there is or will be a file, and the agent may run programs
  sample: "0640"
owner:
  description: The name of the file's owner.
  type: str
  returned: when there is or will be a file, and the agent may run programs
  sample: root
group:
  description: The name of the file's group.
  type: str
  returned: when there is or will be a file, and the agent may run programs
  sample: app
backup_file:
  description: The path in the guest that the previous content has now.
  type: str
  returned: when a copy was made
  sample: /etc/app.conf.1234.2026-01-01@12:00:00~
"""

import errno
import hashlib
import io
import os
import secrets
import shlex
import time
from typing import Any, BinaryIO, Mapping, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent import Agent
from ansible_collections.qemu.guest.plugins.module_utils._errors import GuestFileError, OperationError, QgaError
from ansible_collections.qemu.guest.plugins.module_utils._exec import can_run_programs
from ansible_collections.qemu.guest.plugins.module_utils._files import GuestFile, copy_in
from ansible_collections.qemu.guest.plugins.module_utils._module import run_module
from ansible_collections.qemu.guest.plugins.module_utils._operation import DIFF_LIMIT, Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._patience import when_thawed
from ansible_collections.qemu.guest.plugins.module_utils._shell import check_shell, run_shell
from ansible_collections.qemu.guest.plugins.module_utils._transfer import digest, put

SPEC: dict[str, dict[str, Any]] = {
    "path": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "content": {"type": "str"},
    "src": {"type": "path"},
    "append": {"type": "bool", "default": False},
    "mode": {"type": "raw"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "backup": {"type": "bool", "default": False},
}

DEFAULT_MODE = 0o644
# What guest-file-open gives to a file that it creates.
AGENTS_MODE = 0o666


class Current(NamedTuple):
    """The file as it is, and the content that it is to have.

    ``kind`` is ``file``, ``absent`` or ``other``; ``programs`` tells whether the agent may run programs, without which
    mode and owner are not known. ``text`` is the content where it is small enough for a diff, ``ends_with_wanted``
    matters for ``append``.
    """

    path: str
    kind: str
    programs: bool
    wanted: bytes | None
    wanted_size: int = 0
    wanted_sha256: str = ""
    size: int = 0
    sha256: str = ""
    text: bytes | None = None
    ends_with_wanted: bool = False
    mode: int | None = None
    owner: str = ""
    group: str = ""
    uid: str = ""
    gid: str = ""

    def described(self) -> dict[str, Any]:
        if self.kind != "file":
            return {"state": "absent"}
        about = {"state": "file", "size": self.size, "sha256": self.sha256}
        if self.mode is not None:
            about.update(mode=f"{self.mode:04o}", owner=self.owner, group=self.group)
        return about


# read


def read(agent: Agent, params: Params) -> Current:
    path = params["path"]
    if not path.startswith("/"):
        raise OperationError(f"path: {path} is not an absolute path")
    state: dict[str, Any] = {"programs": can_run_programs(agent), **_wanted(params)}
    state.update(
        _look(agent, path, params["state"] == "present") if state["programs"] else _look_by_reading(agent, path)
    )
    if state["kind"] == "file" and params["state"] == "present":
        state.update(_content(agent, state, params["append"]))
    current = Current(**state)
    if not current.programs:
        _refuse_without_programs(agent, current, params)
    return current


def _wanted(params: Params) -> dict[str, Any]:
    """Return the content that is asked for."""
    if params["content"] is not None:
        data = params["content"].encode("utf-8", "surrogateescape")
    elif params["src"]:
        try:
            with open(params["src"], "rb") as source:
                data = source.read()
        except OSError as exc:
            raise OperationError(f"src: cannot read {params['src']} here: {exc.strerror}") from exc
    else:
        return {"wanted": None}
    return {"wanted": data, "wanted_size": len(data), "wanted_sha256": hashlib.sha256(data).hexdigest()}


_LOOK = r"""
p=%(path)s
if [ "%(follow)s" ] && [ -L "$p" ]; then
    p=$(readlink -f -- "$p") && [ "$p" ] || { echo "the link leads nowhere" >&2; exit 1; }
fi
if [ -f "$p" ] || [ -L "$p" ]; then
    stat -c 'file %%a %%U %%G %%u %%g %%s' -- "$p"
elif [ -e "$p" ]; then
    echo other
else
    echo absent
fi
printf %%s "$p"
"""


def _look(agent: Agent, path: str, follow: bool) -> dict[str, Any]:
    command = _LOOK % {"path": shlex.quote(path), "follow": "yes" if follow else ""}
    output = check_shell(agent, command, f"look at {path}").decode("utf-8", "surrogateescape")
    about, _newline, real = output.partition("\n")
    kind, *words = about.split(" ")
    if kind != "file":
        return {"path": real, "kind": kind}
    mode, owner, group, uid, gid, size = words
    return {
        **{"path": real, "kind": kind, "size": int(size), "mode": int(mode, 8)},
        **{"owner": owner, "group": group, "uid": uid, "gid": gid},
    }


def _look_by_reading(agent: Agent, path: str) -> dict[str, Any]:
    try:
        with GuestFile(agent, path) as guest_file:
            guest_file.read(1)
            return {"path": path, "kind": "file", "size": guest_file.seek(0, 2)}
    except GuestFileError as exc:
        if exc.errno == errno.ENOENT:
            return {"path": path, "kind": "absent"}
        if exc.errno == errno.EISDIR:
            return {"path": path, "kind": "other"}
        raise


def _content(agent: Agent, state: Mapping[str, Any], append: bool) -> dict[str, Any]:
    """Return what is to be known of the content: all of it if it is small, else its checksum."""
    path, size, wanted = state["path"], state["size"], state["wanted"]
    content: dict[str, Any] = {}
    if append and wanted is not None and size >= len(wanted):
        with GuestFile(agent, path) as guest_file:
            guest_file.seek(-len(wanted), 2)
            content["ends_with_wanted"] = _read_all(guest_file) == wanted
    if size > DIFF_LIMIT:
        return {**content, "sha256": digest(agent, path)}
    with GuestFile(agent, path) as guest_file:
        text = _read_all(guest_file)
    return {**content, "text": text, "size": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def _read_all(guest_file: GuestFile) -> bytes:
    return b"".join(iter(guest_file.read, b""))


def _refuse_without_programs(agent: Agent, current: Current, params: Params) -> None:
    """Raise for what guest-file-* alone cannot do."""
    exists = current.kind != "absent"
    agents_mode = not exists and params["mode"] is not None and octal(params["mode"]) == AGENTS_MODE
    needs_programs = (
        (exists if params["state"] == "absent" else False)
        or (params["mode"] is not None and not agents_mode)
        or params["owner"] is not None
        or params["group"] is not None
        or params["backup"]
    )
    if needs_programs:
        agent.require("guest-exec", "guest-exec-status")
    if params["state"] == "present" and not exists and not agents_mode:
        raise OperationError(
            f"{current.path} does not exist, and this agent may not run programs: all it can make is a file that every "
            "user of the guest can write to. Allow guest-exec in the guest, or accept that with mode: '0666'."
        )


# plan


def plan(current: Current, params: Params) -> Plan:
    if current.kind == "other":
        raise OperationError(f"{current.path} exists and is not a file; this module manages files only")
    before = current.described()
    if params["state"] == "absent":
        return Plan(
            before={"state": before["state"]},
            after={"state": "absent"},
            todo=(current, params, {}),
            result={"path": current.path, "state": "absent"},
            subject=current.path,
        )
    after = _after(current, params)
    written = current.text if not _writes(current, params) else _new_content(current, params)
    return Plan(
        before=before,
        after=after,
        todo=(current, params, after),
        result={"path": current.path, **after},
        subject=current.path,
        texts=_texts(current.text if current.kind == "file" else b"", written),
    )


def _writes(current: Current, params: Params) -> bool:
    if current.kind == "absent":
        return True
    if current.wanted is None:
        return False
    return not current.ends_with_wanted if params["append"] else current.sha256 != current.wanted_sha256


def _after(current: Current, params: Params) -> dict[str, Any]:
    after: dict[str, Any] = current.described() if current.kind == "file" else {"state": "file"}
    if _writes(current, params):
        if params["append"] and current.kind == "file":
            after["size"] = current.size + current.wanted_size
            after.pop("sha256")
        else:
            content = current.wanted or b""
            after.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    if not current.programs:
        return after
    default = current.mode if current.mode is not None else DEFAULT_MODE
    after["mode"] = f"{octal(params['mode']) if params['mode'] is not None else default:04o}"
    # A number that is the present owner's is no change of the name that is shown.
    if params["owner"] is not None and params["owner"] != current.uid:
        after["owner"] = params["owner"]
    if params["group"] is not None and params["group"] != current.gid:
        after["group"] = params["group"]
    return after


def octal(mode: Any) -> int:
    """Return a mode as a number; YAML has made one of C(0644) already.

    :raise OperationError: if it is not an octal mode.
    """
    try:
        value = mode if isinstance(mode, int) else int(str(mode), 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:
        raise OperationError(f"mode: {mode!r} should be an octal number in quotes, such as '0644'")
    return value


def _new_content(current: Current, params: Params) -> bytes | None:
    wanted = current.wanted or b""
    if params["append"] and current.kind == "file":
        return None if current.text is None else current.text + wanted
    return wanted


def _texts(before: bytes | None, after: bytes | None) -> Any:
    """Return content as a diff can show it, None if it cannot."""
    if before is None or after is None or max(len(before), len(after)) > DIFF_LIMIT:
        return None
    try:
        return before.decode("utf-8"), after.decode("utf-8")
    except UnicodeDecodeError:
        return None


# apply


def apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    current, params, after = plan.todo
    if params["state"] == "absent":
        check_shell(agent, f"rm -f -- {shlex.quote(current.path)}", f"remove {current.path}")
        return {}
    if not _writes(current, params):
        check_shell(agent, _set_attributes(current.path, current, after), f"set mode and owner of {current.path}")
        return {}
    result = {}
    if params["backup"] and current.kind == "file":
        result["backup_file"] = f"{current.path}.{time.strftime('%Y-%m-%d@%H:%M:%S~')}"
        copy = f"cp -p -- {shlex.quote(current.path)} {shlex.quote(result['backup_file'])}"
        check_shell(agent, copy, f"copy {current.path}")
    source = io.BytesIO(current.wanted or b"")
    if not current.programs:
        copy_in(agent, source, current.path, append=params["append"])
    elif params["append"] and current.kind == "file":
        copy_in(agent, source, current.path, append=True)
        check_shell(agent, _set_attributes(current.path, current, after), f"set mode and owner of {current.path}")
    else:
        _replace(agent, source, current, after)
    return result


def _replace(agent: Agent, source: BinaryIO, current: Current, after: Mapping[str, Any]) -> None:
    """Write the content beside the file, then put it in the file's place: whole or not at all."""
    directory, name = os.path.split(current.path)
    new = os.path.join(directory, f".{name[:100]}.{secrets.token_hex(8)}")
    path, beside = shlex.quote(current.path), shlex.quote(new)
    try:
        put(agent, source, new)
        # A file that is a mount point of its own cannot be replaced.
        move = f"mv -f -- {beside} {path} 2>/dev/null || {{ cat -- {beside} >{path} && rm -f -- {beside}; }}"
        label = f"if command -v restorecon >/dev/null; then restorecon {path}; fi"
        script = f"{_set_attributes(new, current, after)} && {{ {move}; }} && {label}"
        when_thawed(agent, lambda: check_shell(agent, script, f"write {current.path}"))
    except BaseException as exc:  # whatever it was: nothing of ours is left in the guest, if the guest lets us
        try:
            run_shell(agent, f"rm -f -- {beside}".encode("utf-8", "surrogateescape"), whole=False)
        except QgaError:
            if isinstance(exc, QgaError):
                exc.hint = f"{exc.hint} {new} may be left in the guest.".lstrip()
        raise


def _set_attributes(path: str, current: Current, after: Mapping[str, Any]) -> str:
    """Return the shell command that gives ``path`` the mode and owner that the file is to have."""
    name = shlex.quote(path)
    owner = after["owner"] if after.get("owner", current.owner) != current.owner else current.uid
    group = after["group"] if after.get("group", current.group) != current.group else current.gid
    # chown clears the set-user-id bits that chmod may set, so it comes first.
    # "chown OWNER:" would mean the group that the owner logs in with, and takes no numbers.
    commands = [f"chgrp -- {shlex.quote(group)} {name}"] if group else []
    commands += [f"chown -- {shlex.quote(owner)} {name}"] if owner else []
    return " && ".join([*commands, f"chmod -- {after['mode']} {name}"])


# Not a secret to hide in results, or its diff would be hidden too; but never logged.
OPERATION = Operation(
    SPEC,
    read,
    plan,
    apply,
    constraints={"mutually_exclusive": [("content", "src")]},
    quiet=("content",),
    local_files=("src",),
)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
