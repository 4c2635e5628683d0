#!/usr/bin/python
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qga_exec
short_description: Run a program in a guest through its agent
version_added: 0.1.0
author: qemu.guest authors (!UNKNOWN)
description:
  - Runs a program or a shell command in the guest, as the user that the agent runs as (root almost everywhere), with
    the environment of a login. HOME, USER, PATH and the locale are set, and it starts in the home directory.
  - The command, its environment and its standard input leave no trace in the guest's logs.
  - Needs C(guest-exec) and a POSIX shell in the guest, and no Python.
extends_documentation_fragment:
  - qemu.guest.agent
  - qemu.guest.attributes
attributes:
  become:
    support: partial
    details:
      - The program runs as the user that the agent runs as, which is root almost everywhere.
      - With O(address), the task becomes a user of the machine where it runs, one that may use the agent's socket.
      - On a host whose connection is P(qemu.guest.qga#connection), a task that is to become another user than root
        fails, and nothing is run. Use M(ansible.builtin.command), or C(runuser) as in the example below.
  check_mode:
    support: partial
    details:
      - The program is not run. With O(creates) or O(removes), these are looked at, and a change is reported if it
        would be run. Without them, the task is skipped.
  diff_mode:
    support: none
    details:
      - What a program changes is not known.
  idempotent:
    support: partial
    details:
      - With O(creates) or O(removes).
options:
  argv:
    description:
      - The program and its arguments. A program without a slash is looked for in PATH. No shell interprets them.
      - One of O(argv), O(cmd) and O(shell) is required.
    type: list
    elements: str
  cmd:
    description:
      - The program and its arguments in one text, which is split at blanks, as M(ansible.builtin.command) does. Quotes
        and backslashes keep blanks together. No shell interprets it.
      - With ansible-core 2.19 and later, it may be given without its name (C(ansible vm1 -m qemu.guest.qga_exec -a
        'uname -a')).
    type: str
  shell:
    description:
      - A command for the guest's C(/bin/sh).
    type: str
  stdin:
    description:
      - What the program reads from its standard input. It is not logged.
    type: str
  stdin_add_newline:
    description:
      - Whether a newline is added to O(stdin).
    type: bool
    default: true
  strip_empty_ends:
    description:
      - Whether line breaks at the end of the output are left out of RV(stdout) and RV(stderr).
    type: bool
    default: true
  env:
    description:
      - Environment variables, beside those that a login has. They are not logged.
    type: dict
    default: {}
  chdir:
    description:
      - A directory in the guest to change to before.
    type: str
  creates:
    description:
      - A path in the guest. If it exists, the program is not run.
    type: str
  removes:
    description:
      - A path in the guest. If it does not exist, the program is not run.
    type: str
  timeout:
    description:
      - Seconds that the program may take. It and all that it started is then ended, first by SIGTERM, 5 seconds later
        by SIGKILL, and the task fails. Without this option it may take any time.
    type: float
notes:
  - The agent keeps 16 MiB of each output stream and drops the rest, which RV(stdout_truncated) and RV(stderr_truncated)
    tell, with a warning. Redirect larger output to a file in the guest and get it by M(qemu.guest.qga_fetch).
"""

EXAMPLES = r"""
- name: Which kernel is it?
  qemu.guest.qga_exec:
    address: /run/vm1.qga
    cmd: uname -r
  register: kernel
  changed_when: false

- name: Load a SQL file that only the controller has
  qemu.guest.qga_exec:
    address: /run/vm1.qga
    argv: [runuser, -u, postgres, --, psql, app]
    stdin: "{{ lookup('ansible.builtin.file', 'app.sql') }}"
    timeout: 60

- name: Make a key once
  qemu.guest.qga_exec:
    shell: umask 077; openssl rand -hex 32 > /etc/app.key
    creates: /etc/app.key
"""

RETURN = r"""
cmd:
  description: What was run, or would be. It is O(argv), or O(cmd) as a list, or O(shell).
  type: raw
  returned: success, or when the program was run
  sample: [uname, -r]
rc:
  description:
    - The exit status. Null, or absent with ansible-core 2.21 and later, if a signal ended the program.
    - 0 if the program was not run because of O(creates) or O(removes).
  type: int
  returned: when the program was run, or not because of O(creates) or O(removes)
  sample: 0
signal:
  description:
    - The number of the signal that ended the program. Null if it ended by itself.
    - Over a C(libvirt:) address it is always null, and RV(rc) is 128 more than the number.
  type: int
  returned: when the program was run
  sample: null
stdout:
  description: What the program wrote to its standard output. Bytes that are not UTF-8 are replaced.
  type: str
  returned: as RV(rc)
  sample: done
stdout_b64:
  description: The exact output, in base64.
  type: str
  returned: when the output is not UTF-8
stdout_truncated:
  description: Whether the program wrote more than the agent kept.
  type: bool
  returned: when the program was run
  sample: false
stderr:
  description: What the program wrote to its standard error output. Bytes that are not UTF-8 are replaced.
  type: str
  returned: as RV(rc)
  sample: ""
stderr_b64:
  description: The exact error output, in base64.
  type: str
  returned: when the error output is not UTF-8
stderr_truncated:
  description: Whether the program wrote more than the agent kept.
  type: bool
  returned: when the program was run
  sample: false
elapsed:
  description: Seconds that the program took, seen from outside the guest.
  type: float
  returned: when the program was run
  sample: 0.21
msg:
  description: Why the program was not run, or why the task failed.
  type: str
  returned: when there is something to say
  sample: not run, since /etc/app.key exists
"""

import base64
import re
import shlex
import time
from typing import Any, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    OperationError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    CAPTURE_LIMIT,
    ExecResult,
    Executor,
    GuestExec,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import exists
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import kill, new_prefix, shell_result
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, Params, Plan
from ansible_collections.qemu.guest.plugins.module_utils._module.run import run_module

SPEC: dict[str, dict[str, Any]] = {
    "argv": {"type": "list", "elements": "str"},
    "cmd": {"type": "str"},
    "shell": {"type": "str"},
    "stdin": {"type": "str"},
    "stdin_add_newline": {"type": "bool", "default": True},
    "strip_empty_ends": {"type": "bool", "default": True},
    "env": {"type": "dict", "default": {}},
    "chdir": {"type": "str"},
    "creates": {"type": "str"},
    "removes": {"type": "str"},
    "timeout": {"type": "float"},
}

# The last line from the guest's shell if it cannot change to the directory.
_NO_DIRECTORY = "qga_exec: the program was not run, because of chdir"

# Seconds that a program gets to end after SIGKILL (one blocked in the kernel may not end).
_SECONDS_TO_DIE = 10


def read(executor: Executor, params: Params) -> dict[str, bool]:
    return {option: exists(executor.agent, params[option]) for option in ("creates", "removes") if params[option]}


def plan(current: dict[str, bool], params: Params) -> Plan:
    argv = program(params)
    cmd = params["shell"] if argv is None else argv
    not_run = {"cmd": cmd, "rc": 0, "stdout": "", "stderr": ""}
    if current.get("creates", False):
        return Plan(changed=False, result={**not_run, "msg": f"not run, since {params['creates']} exists"})
    if not current.get("removes", True):
        return Plan(changed=False, result={**not_run, "msg": f"not run, since {params['removes']} does not exist"})
    todo = {**params, "cmd": cmd, "command": shell_command(params, argv)}
    return Plan(changed=True, todo=todo, result={"cmd": cmd}, unforeseeable=not current)


def program(params: Params) -> list[str] | None:
    """Return the program and its arguments; None for a shell command.

    :raise OperationError: if there is no program, or a quote in C(cmd) that does not end.
    """
    option = "argv" if params["cmd"] is None else "cmd"
    if params[option] is None:
        return None
    try:
        argv: list[str] = params["argv"] if option == "argv" else shlex.split(params["cmd"])
    except ValueError as exc:
        raise OperationError(f"cmd: {exc} in {params['cmd']!r}") from exc
    if not argv:
        raise OperationError(f"{option}: there is no program in it")
    return argv


def shell_command(params: Params, argv: list[str] | None) -> bytes:
    """Return the command for the guest's shell.

    :raise OperationError: for an invalid name of an environment variable.
    """
    lines = []
    for name, value in params["env"].items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise OperationError(f"env: {name!r} cannot be the name of an environment variable")
        lines.append(f"export {name}={shlex.quote(str(value))}")
    if params["chdir"]:
        lines.append(f"cd {shlex.quote(params['chdir'])} || {{ echo '{_NO_DIRECTORY}' >&2; exit 1; }}")
    lines.append("exec " + " ".join(map(shlex.quote, argv)) if argv else params["shell"])
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def apply(executor: Executor, plan: Plan) -> Mapping[str, Any]:
    params = plan.todo
    stdin = params["stdin"] or ""
    if params["stdin"] is not None and params["stdin_add_newline"]:
        stdin += "\n"
    started = time.monotonic()
    waiting = _Waiting(executor, params["timeout"])
    prefix = "" if executor.limits.output >= CAPTURE_LIMIT else new_prefix()
    result = shell_result(executor, params["command"], stdin.encode("utf-8", "surrogateescape"), prefix, waiting.ended)
    elapsed = round(time.monotonic() - started, 3)
    outcome = described(result, params["strip_empty_ends"]) if result else {}
    answer = {"changed": True, "cmd": params["cmd"], **outcome, "elapsed": elapsed}
    process = waiting.process
    if process is not None:
        which = f"its pid is {process}" if process else "nothing tells its pid (is the guest's /run full?)"
        fate = "It was killed, with everything it had started." if result else f"It could not be ended; {which}."
        raise OperationError(f"the program took more than {params['timeout']:g} s. {fate}", result=answer)
    if answer["rc"] != 0:
        raise _failure(params, answer)
    return answer


class _Waiting:
    """Wait for a program that may take ``timeout`` seconds.

    ``process`` is its process number if it had to be killed: 0 if unknown.
    """

    def __init__(self, executor: Executor, timeout: float | None) -> None:
        self.process: int | None = None
        self._executor = executor
        self._timeout = timeout

    def ended(self, number: int) -> ExecResult | None:
        """Return how the program ended; None if it could not be killed.

        :raise OutcomeUnknownError: if contact is lost. The program was started in any case.
        """
        if self._timeout is None:
            return self._executor.finish(number)
        result = self._executor.wait(number, self._timeout)
        if result is None:
            self.process = kill(self._executor, number)
            result = self._executor.wait(number, _SECONDS_TO_DIE)
        return result


def _failure(params: Params, answer: Mapping[str, Any]) -> OperationError:
    """Return the error for a program that failed, or for a chdir that failed before it."""
    words = answer["stderr"].rstrip()
    if params["chdir"] and answer["rc"] == 1 and words.endswith(_NO_DIRECTORY):
        reason = last_line(words[: -len(_NO_DIRECTORY)])
        message = f"chdir: the guest cannot change to {params['chdir']} ({reason}). The program was not run."
        return OperationError(message, result={**answer, "changed": False})
    how = f"ended by signal {answer['signal']}" if answer["rc"] is None else f"exit status {answer['rc']}"
    return OperationError(": ".join(filter(None, ("the program failed", how, last_line(words)))), result=answer)


def described(result: ExecResult, strips: bool) -> dict[str, Any]:
    """Return ``result`` as members of the task's result; ``strips``: without line breaks at the end of the output."""
    answer: dict[str, Any] = {"rc": result.rc, "signal": result.signal}
    warnings = []
    for name in ("stdout", "stderr"):
        data = getattr(result, name)
        text = data.decode("utf-8", "replace")
        answer[name] = text.rstrip("\r\n") if strips else text
        answer[f"{name}_truncated"] = getattr(result, f"{name}_truncated")
        if text.encode("utf-8") != data:
            answer[f"{name}_b64"] = base64.b64encode(data).decode("ascii")
        if answer[f"{name}_truncated"]:
            warnings.append(f"The program wrote more than 16 MiB to its {name}; the agent dropped the rest.")
    return {**answer, **({"warnings": warnings} if warnings else {})}


OPERATION = Operation(
    SPEC,
    read,
    plan,
    apply,
    constraints={name: [("argv", "cmd", "shell")] for name in ("required_one_of", "mutually_exclusive")},
    quiet=("stdin", "env"),
    runs_programs=True,
    executor=GuestExec,
)


def main() -> None:
    run_module(OPERATION)


if __name__ == "__main__":
    main()
