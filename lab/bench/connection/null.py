# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The null connection: what ansible-core itself takes, for the bench to compare with.

No module is run, since that would add its own time: ansible-core prepares and packs each task as for any connection
with pipelining, and a prepared answer is there at once, in the process that asks. Nothing of this machine is changed: a
directory stands for the guest's files, so that `copy` and `template` find what they wrote and take the same steps as
in a guest.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = r"""
name: "null"
author: The qemu.guest authors (!UNKNOWN)
short_description: Answer tasks at once, without a guest
description:
  - The bench's connection that does nothing.
options:
  directory:
    description: Where what stands for the guest's files is.
    type: path
    required: true
    vars:
      - name: ansible_null_directory
  log:
    description: A file to which each call adds a line, its bytes there and back.
    type: path
    vars:
      - name: ansible_null_log
  pipelining:
    description: Whether modules are piped. They have to be.
    type: bool
    default: true
    vars:
      - name: ansible_null_pipelining
"""

Reply = tuple[int, bytes, bytes]
Answer = dict[str, Any]

# Of what ansible-core pipes, here as in 2.16 and as since 2.19.
_MODULE = re.compile(rb"(?:module_fqn|mod_name)='ansible\.modules\.(\w+)',")
_PARAMETERS = re.compile(rb"(?:\nparams=|ANSIBALLZ_PARAMS = )(['\"].+['\"]),?\n")
# What ansible-core and the bench's plays have a shell do that leaves or needs a trace.
_MAKE_TEMPORARY = re.compile(r"echo (ansible-tmp-[\w.-]+)=")
_REMOVE = re.compile(r"\brm (?:-rf|-f -r) (/[\w./-]+)")
_HOME = re.compile(r"\becho ~")

# What modules answer that find nothing to change.
_DONE = {"rc": 0, "stdout": "", "stderr": "", "start": "", "end": "", "delta": "", "msg": "", "changed": True}
_ANSWERS: dict[str, Answer] = {
    "command": _DONE,
    "find": {"files": [], "matched": 0, "examined": 0, "skipped_paths": {}, "msg": "All paths examined"},
    "group": {"name": "bench", "gid": 999, "state": "present", "system": True},
    "lineinfile": {"msg": "", "backup": ""},
    "replace": {"msg": ""},
    "user": {"name": "bench", "uid": 999, "group": 999, "home": "/home/bench", "shell": "/bin/sh", "state": "present"},
}


class Connection(ConnectionBase):
    """A connection to nowhere; see above."""

    transport = "null"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def close(self) -> None:
        self._connected = False

    def reset(self) -> None:
        """Nothing is kept between tasks."""

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Reply:
        output = self._run_module(in_data) if in_data else self._run_shell(cmd)
        self._log(len(cmd) + len(in_data or b""), len(output))
        return 0, output, b""

    def put_file(self, in_path: str, out_path: str) -> None:
        target = self._path(out_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(in_path, target)
        self._log(target.stat().st_size, 0)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        shutil.copyfile(self._path(in_path), out_path)
        self._log(0, Path(out_path).stat().st_size)

    # Inside

    def _path(self, path: str) -> Path:
        """Return what stands for a file of the guest."""
        return Path(self.get_option("directory"), "files", path.lstrip("/"))

    def _log(self, sent: int, received: int) -> None:
        log = self.get_option("log")
        if log:
            with open(log, "a", encoding="ascii") as file:
                file.write(f"{sent} {received}\n")

    def _run_shell(self, command: str) -> bytes:
        temporary, removed = _MAKE_TEMPORARY.search(command), _REMOVE.search(command)
        if temporary:
            return f"{temporary.group(1)}=/root/.ansible/tmp/{temporary.group(1)}\n".encode()
        if removed:
            shutil.rmtree(self._path(removed.group(1)), ignore_errors=True)
        return b"/root\n" if _HOME.search(command) else b""

    def _run_module(self, program: bytes) -> bytes:
        module, parameters = _MODULE.search(program), _PARAMETERS.search(program)
        if module is None or parameters is None:
            raise AnsibleConnectionFailure("the null connection does not know what this ansible-core pipes")
        name = module.group(1).decode()
        if name == "setup":
            return self._facts(program)
        arguments = json.loads(ast.literal_eval(parameters.group(1).decode()))["ANSIBLE_MODULE_ARGS"]
        answer = self._answer(name, arguments)
        return json.dumps({"changed": False, **answer, "invocation": {"module_args": arguments}}).encode()

    def _answer(self, name: str, arguments: Answer) -> Answer:
        if name == "stat":
            return {"stat": _stat(self._path(arguments["path"]))}
        if name == "copy":
            return self._copy(arguments)
        if name == "file":
            return {"path": arguments.get("path") or arguments.get("dest"), "mode": "0644", "uid": 0, "gid": 0}
        if name == "slurp":
            content = self._path(arguments["src"]).read_bytes()
            return {"content": base64.b64encode(content).decode(), "encoding": "base64", "source": arguments["src"]}
        if name not in _ANSWERS:
            raise AnsibleConnectionFailure(f"the null connection has no answer of the module {name}")
        return _ANSWERS[name]

    def _copy(self, arguments: Answer) -> Answer:
        destination = arguments["dest"]
        if destination.endswith("/"):
            destination += arguments["_original_basename"]
        target = self._path(destination)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path(arguments["src"]).replace(target)
        return {"changed": True, "dest": destination, "checksum": arguments["checksum"], "mode": "0644", "uid": 0}

    def _facts(self, program: bytes) -> bytes:
        """Return facts, in the amount that machines have: those of this one, taken once by the module itself."""
        kept = Path(self.get_option("directory"), "setup.json")
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(subprocess.run([sys.executable], input=program, stdout=subprocess.PIPE, check=True).stdout)
        return kept.read_bytes()


def _stat(path: Path) -> Answer:
    if not path.exists():
        return {"exists": False}
    known = {"exists": True, "islnk": False, "isdir": path.is_dir(), "isreg": path.is_file(), "path": str(path)}
    if path.is_dir():
        return known
    return {**known, "size": path.stat().st_size, "checksum": hashlib.sha1(path.read_bytes()).hexdigest()}
