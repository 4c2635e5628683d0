#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_file
short_description: Manage a file in a guest, or copy a directory there, through its agent
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
      - The file's absolute path in the guest. A symbolic link there is replaced when content is written, unless
        O(follow=true), and removed itself with O(state=absent).
      - In a directory that an unprivileged user may write to, nothing that the user does meanwhile leads anywhere else.
        Where such a user made a link on the way, or can exchange it, and it leads to what is not that user's, that is
        refused.
    type: str
    required: true
    aliases: [dest]
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
      - The file's content. It is not logged. Not with O(src).
    type: str
  src:
    description:
      - A file with the content, on the machine that the task runs on. Where O(address) is left out, that is the
        controller, and a relative path is looked for in C(files/) of the role or playbook.
    type: path
  recurse:
    description:
      - Whether O(src) is a directory that is copied with all that is in it. What is in the guest's directory and not in
        O(src) stays. Not with O(content), O(append), O(backup), O(follow) and O(state=absent).
      - If O(src) ends with C(/), O(path) gets what is in it; otherwise the directory itself is made in O(path). Missing
        directories are made.
      - What differs is sent in one archive, for each of the guest's filesystems, which the guest's C(tar) unpacks in a
        directory that only root can enter; the content is compared, and then each file is replaced whole. The guest
        needs C(tar), C(gzip), C(find), C(xargs) and C(sha256sum), which busybox has, and an agent that may run programs
        or a connection with a runner.
      - A file or link in the guest is replaced by a file or link. A directory is not replaced, and nothing by one.
        Directories that exist keep their mode and owner. Times are not kept.
    type: bool
    default: false
  local_follow:
    description:
      - With O(recurse), whether a link in O(src) is copied as what it leads to. Otherwise it is a link in the guest.
    type: bool
    default: true
  directory_mode:
    description:
      - With O(recurse), the mode of directories that are made, as O(mode), by default V("0755").
    type: raw
  append:
    description:
      - Whether the content is added to the end of the file, unless the file ends with it already.
    type: bool
    default: false
  mode:
    description:
      - The file's mode in octal, quoted, such as V("0644"), or in symbols, such as V(u=rw,g=r,o=) or V(u+x).
      - By default, a new file has V("0644") and an existing one keeps its mode. Symbols change that.
      - With O(recurse), this is for files, symbols change V("0644"), and V(preserve) gives files, and directories that
        are made, the modes that they have in O(src).
    type: raw
  owner:
    description:
      - The name or number of the user who is to own the file. By default an existing file keeps its owner.
      - With O(recurse), this and O(group) are for files, and directories that are made.
    type: str
  group:
    description:
      - The name or number of the file's group. By default an existing file keeps its group.
    type: str
  follow:
    description:
      - Whether a symbolic link at O(path) is followed, so that the file that it leads to is managed. A link that an
        unprivileged user can exchange is followed to what is that user's, and refused otherwise.
      - Otherwise it is replaced by a file with O(content) or O(src), as M(ansible.builtin.copy) does, and refused with
        O(append) or without content. Where the agent may not run programs, links are always followed.
    type: bool
    default: false
  backup:
    description:
      - Whether a file whose content is to change is copied first, beside itself.
    type: bool
    default: false
notes:
  - A file that the agent creates by itself can be written by every user of the guest (mode 0666). Where it may not run
    programs, a new file is therefore only made if O(mode) is V("0666").
  - In a directory that others than root may write to, content of more than 256 KiB is in C(/var/tmp) of the guest
    first, where only root can read it.
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

- name: Copy what is in the role's files/app, modes included
  qemu.guest.qga_file:
    src: app/
    path: /opt/app
    recurse: true
    mode: preserve
    owner: app
    group: app

- name: Remove the configuration of an application
  qemu.guest.qga_file:
    address: /run/vm1.qga
    path: /etc/app.conf
    state: absent
"""

RETURN = r"""
path:
  description: The path in the guest, or that of the file that a link there leads to with O(follow=true).
  type: str
  returned: success
  sample: /etc/app.conf
state:
  description: V(file), V(directory) or V(absent), as it is or would be.
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
files:
  description: The paths in the guest of files and links that were or would be made or replaced.
  type: list
  elements: str
  returned: with O(recurse)
  sample: [/opt/app/bin/run]
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
import re
import stat
import time
from typing import Any, Mapping, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import GuestFileError, OperationError
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import EXEC_COMMANDS, Executor, GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import (
    ENTER,
    SAFE,
    Attributes,
    change_in_place,
    unlink,
    variables,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import (
    GuestFile,
    Limit,
    content_size,
    copy_in,
    enforces_selinux,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import check_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import file_sha256, put, sent
from ansible_collections.qemu.guest.plugins.module_utils._module import copy_tree
from ansible_collections.qemu.guest.plugins.module_utils._module.modes import FILE_MODE, mode_of
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import DIFF_LIMIT, Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "path": {"type": "str", "required": True, "aliases": ["dest"]},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "content": {"type": "str"},
    "src": {"type": "path"},
    "recurse": {"type": "bool", "default": False},
    "local_follow": {"type": "bool", "default": True},
    "directory_mode": {"type": "raw"},
    "append": {"type": "bool", "default": False},
    "mode": {"type": "raw"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "backup": {"type": "bool", "default": False},
    "follow": {"type": "bool", "default": False},
}

# The mode that guest-file-open gives to a new file.
AGENTS_MODE = 0o666


class Current(NamedTuple):
    """The present file, and the wanted content.

    ``kind`` is ``file``, ``link``, ``absent`` or ``other``; ``programs``: the agent may run programs, without which
    mode and owner are not known. ``real`` is the path with all links resolved except the last name, as far as programs
    can tell; ``safe``: root alone can change what it leads to. ``text`` is the content if it is small enough for a
    diff; ``ends_with_wanted`` matters for ``append``.
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
    real: str = ""
    safe: bool = False

    def described(self) -> dict[str, Any]:
        if self.kind != "file":
            return {"state": self.kind}
        about: dict[str, Any] = {"state": "file", "size": self.size}
        if self.sha256:
            about["sha256"] = self.sha256
        if self.mode is not None:
            about.update(mode=f"{self.mode:04o}", owner=self.owner, group=self.group)
        return about


# read


def read(executor: Executor, params: Params) -> Any:
    if params["recurse"]:
        _refuse_with_recurse(params)
        return copy_tree.read(executor, params)
    path = params["path"]
    if not path.startswith("/"):
        raise OperationError(f"path: {path} is not an absolute path")
    state: dict[str, Any] = {"programs": executor.is_available(), **_wanted(params)}
    state.update(
        _look(executor, path, params["follow"] and params["state"] == "present")
        if state["programs"]
        else _look_by_reading(executor, path)
    )
    if state["kind"] == "file" and params["state"] == "present":
        state.update(_content(executor, state, params["append"]))
    current = Current(**state)
    if not current.programs:
        _refuse_without_programs(executor, current, params)
    return current


def _refuse_with_recurse(params: Params) -> None:
    given = [name for name in ("append", "backup", "follow") if params[name]]
    if params["state"] == "absent":
        given.append("state=absent")
    if given:
        raise OperationError(f"recurse cannot be had with {', '.join(given)}")


def _wanted(params: Params) -> dict[str, Any]:
    """Return the wanted content."""
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


# A link that is followed is trusted as ENTER trusts one on the way, and read again then: it stays what it is.
#
# q: the path; d and n: its directory and name; f: whether to follow links; i: a 1 for each link that was followed. Of
# such a link: w: what is in it; v: where it leads. For `kept` of ENTER: l: the link's name; y: the owner of what it
# leads to, or of the directory of that. The kernel resolves it: a user's links can keep `readlink -f` for ever.
_LOOK = (
    r"""
enter() {
"""
    + ENTER
    + r"""
}
target() {
    readlink -n -- "./$n"
    echo .
}
i=
while [ "$f" ] && [ -L "$q" ]; do
    enter
    w=$(target) l=$n i=1$i
    v=${w%.}
    case $v in /*) ;; *) v=${PWD%/}/$v ;; esac
    y=$(stat -L -c %u -- "$v" 2>/dev/null || stat -c %u -- "${v%/*}/") && [ "${#i}" -lt 40 ] || {
        echo "the link leads nowhere" >&2
        exit 1
    }
    kept && [ "$(target)" = "$w" ] || {
        echo "$q is a link that an unprivileged user can exchange, to what is not that user's" >&2
        exit 1
    }
    q=$v d=${v%/*} n=${v##*/}
    d=${d:-/}
done
if [ ! -d "$d" ]; then
    printf 'unsafe\nabsent\n%s\0%s' "$d" "$q"
    exit
fi
enter
[ ! "$i" ] || q=${PWD%/}/$n
"""
    + SAFE
    + r"""
if safe; then echo safe; else echo unsafe; fi
if [ -d "./$n" ]; then
    echo directory
elif [ -e "./$n" ] || [ -L "./$n" ]; then
    stat -c '%f %a %u %g %s %U/%G' -- "./$n" || echo absent
else
    echo absent
fi
printf '%s\0%s' "$PWD" "$q"
"""
)
# Names of a domain's users and groups may have spaces.
_SEEN = re.compile(
    r"(?P<safe>safe|unsafe)\n"
    r"(?:(?P<other>absent|directory)|(?P<raw>[0-9a-f]{1,8}) (?P<mode>[0-7]{1,5}) (?P<uid>\d{1,10}) (?P<gid>\d{1,10}) "
    r"(?P<size>\d{1,19}) (?P<owner>[^/\n]+)/(?P<group>[^/\n]+))\n"
    r"(?P<directory>/[^\0]*)\0(?P<path>/[^\0]*)",
    re.ASCII,
)


def _look(executor: Executor, path: str, follow: bool) -> dict[str, Any]:
    command = variables(path, q=path, f="1" if follow else "") + _LOOK
    output = check_shell(executor, command, f"look at {path}").decode("utf-8", "surrogateescape")
    seen = _SEEN.fullmatch(output)
    if not seen:
        raise OperationError(f"cannot look at {path} in the guest: what its programs say of it makes no sense")
    directory, path = seen["directory"], seen["path"]
    found = {"path": path, "real": os.path.join(directory, os.path.basename(path)), "safe": seen["safe"] == "safe"}
    if not seen["raw"]:
        return {**found, "kind": "absent" if seen["other"] == "absent" else "other"}
    kind = {stat.S_IFREG: "file", stat.S_IFLNK: "link"}.get(stat.S_IFMT(int(seen["raw"], 16)), "other")
    if kind != "file":
        return {**found, "kind": kind}
    return {
        **found,
        **{"kind": kind, "size": int(seen["size"]), "mode": int(seen["mode"], 8)},
        **{name: seen[name] for name in ("owner", "group", "uid", "gid")},
    }


def _look_by_reading(executor: Executor, path: str) -> dict[str, Any]:
    try:
        with GuestFile(executor.agent, path) as guest_file:
            guest_file.read(1)
            return {"path": path, "real": path, "kind": "file", "size": guest_file.seek(0, 2)}
    except GuestFileError as exc:
        if exc.errno == errno.ENOENT:
            return {"path": path, "real": path, "kind": "absent"}
        if exc.errno == errno.EISDIR:
            return {"path": path, "real": path, "kind": "other"}
        raise


def _content(executor: Executor, state: Mapping[str, Any], append: bool) -> dict[str, Any]:
    """Return the fields about the content: all of it if it is small, else its checksum."""
    path, size, wanted = state["real"], state["size"], state["wanted"]
    content: dict[str, Any] = {}
    if append and wanted is not None and size >= len(wanted):
        with GuestFile(executor.agent, path) as guest_file:
            guest_file.seek(-len(wanted), 2)
            content["ends_with_wanted"] = _read(guest_file, len(wanted)) == wanted
    if size > DIFF_LIMIT and wanted is not None and not append and size != len(wanted):
        return content  # it differs, whatever it has
    if size > DIFF_LIMIT:
        return {**content, "sha256": file_sha256(executor, path, limit=Limit(said=size))}
    with GuestFile(executor.agent, path) as guest_file:
        text = _read(guest_file, DIFF_LIMIT)
    if len(text) > DIFF_LIMIT:
        raise OperationError(f"{state['path']} grows while it is read")
    return {**content, "text": text, "size": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def _read(guest_file: GuestFile, size: int) -> bytes:
    """Return the rest of a file, at most ``size`` bytes and one more."""
    content = b""
    while len(content) <= size:
        piece = guest_file.read(content_size(guest_file.agent, size + 1 - len(content)))
        if not piece:
            break
        content += piece
    return content


def _refuse_without_programs(executor: Executor, current: Current, params: Params) -> None:
    """Refuse options that guest-file-* alone cannot fulfil.

    :raise QgaError: if there are such options.
    """
    exists = current.kind != "absent"
    agents_mode = not exists and params["mode"] is not None and mode_of(params["mode"], FILE_MODE) == AGENTS_MODE
    needs_programs = (
        (params["state"] == "absent" and exists)
        or (params["mode"] is not None and not agents_mode)
        or params["owner"] is not None
        or params["group"] is not None
        or params["backup"]
    )
    if needs_programs:
        executor.agent.require(*EXEC_COMMANDS)
    if params["state"] == "present" and not exists and not agents_mode:
        raise OperationError(
            f"{current.path} does not exist, and this agent may not run programs: all it can make is a file that every "
            "user of the guest can write to. Allow guest-exec in the guest, or accept that with mode: '0666'."
        )


# plan


def plan(current: Any, params: Params) -> Plan:
    if isinstance(current, copy_tree.Current):
        return copy_tree.plan(current, params)
    return _plan_file(current, params)


def _plan_file(current: Current, params: Params) -> Plan:
    if current.kind == "other":
        raise OperationError(f"{current.path} exists and is not a file; this module manages files only")
    if current.kind == "link" and params["state"] == "present" and (current.wanted is None or params["append"]):
        raise OperationError(
            f"{current.path} is a symbolic link. It is followed with follow=true, and replaced by a file with content "
            "or src, and without append."
        )
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
    if current.kind != "file":
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
            after.update(size=len(content), sha256=current.wanted_sha256 or hashlib.sha256(content).hexdigest())
    if not current.programs:
        return after
    default = current.mode if current.mode is not None else FILE_MODE
    after["mode"] = f"{mode_of(params['mode'], default) if params['mode'] is not None else default:04o}"
    # The number of the present owner is not a change, though the name is shown.
    if params["owner"] is not None and params["owner"] != current.uid:
        after["owner"] = params["owner"]
    if params["group"] is not None and params["group"] != current.gid:
        after["group"] = params["group"]
    return after


def _new_content(current: Current, params: Params) -> bytes | None:
    wanted = current.wanted or b""
    if params["append"] and current.kind == "file":
        return None if current.text is None else current.text + wanted
    return wanted


def _texts(before: bytes | None, after: bytes | None) -> Any:
    """Return the texts for a diff, None if there can be none."""
    if before is None or after is None or max(len(before), len(after)) > DIFF_LIMIT:
        return None
    try:
        return before.decode("utf-8"), after.decode("utf-8")
    except UnicodeDecodeError:
        return None


# apply


def apply(executor: Executor, plan: Plan) -> Mapping[str, Any]:
    if plan.result["state"] == "directory":
        return copy_tree.apply(executor, plan)
    current, params, after = plan.todo
    if params["state"] == "absent":
        unlink(executor, current.real)
        return {}
    attributes = _attributes(current, after) if current.programs else Attributes()
    result = {}
    if params["backup"] and current.kind == "file" and _writes(current, params):
        result["backup_file"] = f"{current.path}.{time.strftime('%Y-%m-%d@%H:%M:%S~')}"
        attributes = attributes._replace(backup=os.path.basename(result["backup_file"]))
    if not current.programs:
        return _write_without_programs(executor, current, params)
    if _writes(current, params) and not (params["append"] and current.kind == "file"):
        put(executor, io.BytesIO(current.wanted or b""), current.real, attributes=attributes)
    else:
        _change(executor, current, attributes, current.wanted if _writes(current, params) else None)
    return result


def _write_without_programs(executor: Executor, current: Current, params: Params) -> Mapping[str, Any]:
    copy_in(executor.agent, io.BytesIO(current.wanted or b""), current.path, "a+" if params["append"] else "w+")
    executor.agent.changed_by = "guest-file-write"
    if current.kind == "absent" and enforces_selinux(executor.agent):
        return {
            "warnings": [
                f"SELinux is enforced, and {current.path} may have another label than it should: run restorecon there."
            ]
        }
    return {}


def _change(executor: Executor, current: Current, attributes: Attributes, appended: bytes | None) -> None:
    """Change an existing file in place."""
    if appended is None or len(appended) < executor.sizes.small:
        change_in_place(executor, current.real, attributes, appended, safe=current.safe)
        return
    with sent(executor, io.BytesIO(appended), current.real) as staged:
        change_in_place(executor, current.real, attributes, staged, safe=current.safe)


def _attributes(current: Current, after: Mapping[str, Any]) -> Attributes:
    """Return the wanted mode and owner of the file."""
    owner = after["owner"] if after.get("owner", current.owner) != current.owner else current.uid
    group = after["group"] if after.get("group", current.group) != current.group else current.gid
    # "OWNER:" would mean the owner's login group, and takes no numbers.
    both = f"{owner}:{group}" if group else owner
    return Attributes(both, f"{int(after['mode'], 8):o}", restore_label=True)


# The content is never logged, but it is not no_log: that would hide the diff too.
OPERATION = Operation(
    SPEC,
    read,
    plan,
    apply,
    constraints={"mutually_exclusive": [("content", "src")], "required_if": [("recurse", True, ("src",))]},
    quiet=("content",),
    local_files=("src",),
    executor=GuestExec,
)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
