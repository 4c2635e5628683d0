#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_fetch
short_description: Copy a file or directory from a guest through its agent
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Copies a file out of the guest to the machine that the task runs on, or to the controller where O(address) is left
    out.
  - What arrived is compared with what the guest has, by SHA-256 in the guest where its agent may run programs, else by
    reading it twice. The file appears at O(dest) whole or not at all.
  - A file that is the same already is not copied. One that is written to while it is copied is read once more; if that
    happens again, the task fails and nothing is at O(dest).
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Sizes and checksums are shown, content is not.
  idempotent:
    support: full
options:
  src:
    description:
      - The absolute path of a file in the guest.
    type: str
    required: true
  dest:
    description:
      - Where to put the file. In a directory that exists, or if it ends with C(/), it keeps its name.
      - Without O(address), a relative path is below the directory of the playbook, as for M(ansible.builtin.fetch).
      - A new file can be read by its owner alone, an existing one keeps its mode.
    type: path
    required: true
  recurse:
    description:
      - Whether O(src) is a directory that is copied with all that is in it. What is in the directory here and not in
        O(src) stays.
      - If O(src) ends with C(/), O(dest) gets what is in it; otherwise the directory itself is made in O(dest).
      - What differs comes in one archive, which the guest's C(tar) makes in its C(/var/tmp), where three quarters of
        what is free is used at most. The guest needs C(tar), C(find), C(xargs) and C(sha256sum), which busybox has,
        and an agent that may run programs or a connection with a runner. A file that is written to meanwhile is copied
        as C(tar) found it.
      - New files and directories can be read by their owner alone; what its owner may run in the guest can be run here.
        Times are not kept.
      - Links are copied as links if they lead to what is in the directory. Other links, devices, FIFOs and sockets are
        skipped with a warning, and nothing is written outside the directory. If a link or a file here is where the
        guest has a directory, or the other way round, the task fails and changes nothing. There may be 200000 files and
        directories.
    type: bool
    default: false
  max_size:
    description:
      - The largest file that may be copied, in bytes or with a unit such as V(500M) or V(2G). What is more than that
        is not read. With O(recurse), it is the largest archive.
      - By default it is what the guest said of the file when it was opened, and a quarter of that, or 64 MiB, for what
        it may grow meanwhile; a file that has no size, such as those of C(/proc), may have 64 MiB. In no case is it
        more than what is free on the filesystem of O(dest).
    type: bytes
"""

EXAMPLES = r"""
- name: Get a log of a guest that no network reaches
  qemu.guest.qga_fetch:
    address: /run/vm1.qga
    src: /var/log/app.log
    dest: /srv/logs/vm1/

- name: Get the logs of all guests, each in a directory of its own
  qemu.guest.qga_fetch:
    src: /var/log/
    dest: "logs/{{ inventory_hostname }}"
    recurse: true
    max_size: 2G
"""

RETURN = r"""
src:
  description: The path in the guest.
  type: str
  returned: success
  sample: /var/log/app.log
dest:
  description: The path that the file has, or would have, here.
  type: str
  returned: success
  sample: /srv/logs/vm1/app.log
sha256:
  description: The file's SHA-256 in hex.
  type: str
  returned: success, without O(recurse)
  sample: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
size:
  description: The size in bytes of the file, or of all files that were copied.
  type: int
  returned: when it was copied
  sample: 0
files:
  description: What was or would be copied, files and links, relative to RV(dest).
  type: list
  elements: str
  returned: with O(recurse)
  sample: [app.log, old/app.log.1]
left_out:
  description: What is not copied for what it is, relative to RV(dest).
  type: list
  elements: str
  returned: with O(recurse)
  sample: [control.sock]
"""

import os
from typing import Any, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import sha256_of
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor, GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import Limit, chunks
from ansible_collections.qemu.guest.plugins.module_utils._guest.local_file import free_space, replacing
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch, file_sha256
from ansible_collections.qemu.guest.plugins.module_utils._module import fetch_tree
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "src": {"type": "str", "required": True},
    "dest": {"type": "path", "required": True},
    "recurse": {"type": "bool", "default": False},
    "max_size": {"type": "bytes"},
}


def read(executor: Executor, params: Params) -> Any:
    if params["recurse"]:
        return fetch_tree.read(executor, params)
    dest = params["dest"]
    if dest.endswith("/") or os.path.isdir(dest):
        dest = os.path.join(dest, os.path.basename(params["src"]))
    here = _digest_here(dest)
    there = file_sha256(executor, params["src"], limit=Limit(params["max_size"], _room(dest)))
    return {"dest": dest, "here": here, "there": there}


def _room(dest: str) -> int | None:
    """Return how many bytes there is room for at ``dest``; None if that is unknown. What is there already has room."""
    directory = os.path.dirname(os.path.abspath(dest))
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    room = free_space(directory)
    return max(room, os.path.getsize(dest)) if room is not None and os.path.isfile(dest) else room


def _digest_here(path: str) -> str:
    try:
        with open(path, "rb") as local:
            return sha256_of(chunks(local))
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise OperationError(f"cannot read {path} here: {exc.strerror}") from exc


def plan(current: Any, params: Params) -> Plan:
    if isinstance(current, fetch_tree.Current):
        return fetch_tree.plan(current, params)
    return Plan(
        before={"sha256": current["here"] or None},
        after={"sha256": current["there"]},
        todo=(params["src"], current["dest"], params["max_size"]),
        result={"src": params["src"], "dest": current["dest"], "sha256": current["there"]},
        subject=current["dest"],
    )


def apply(executor: Executor, plan: Plan) -> Mapping[str, Any]:
    if "files" in plan.result:
        return fetch_tree.apply(executor, plan)
    src, dest, largest = plan.todo
    try:
        os.makedirs(os.path.dirname(dest) or ".", exist_ok=True)
        with replacing(os.fsencode(dest)) as new:
            with open(new, "w+b") as sink:
                size = fetch(executor, src, sink, largest=largest)
            sha256 = _digest_here(os.fsdecode(new))
            if os.path.exists(dest):
                os.chmod(new, os.stat(dest).st_mode & 0o7777)
    except OSError as exc:
        raise OperationError(f"cannot write {dest} here: {exc.strerror}") from exc
    return {"sha256": sha256, "size": size}


OPERATION = Operation(SPEC, read, plan, apply, local_targets=("dest",), executor=GuestExec)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
