# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operations of the matrix do, and what each of them is told. worker.py runs them in processes of their own.

Each operation that changes something does it once, visibly: it appends a token to a file, or writes a file of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import become_loader, connection_loader, shell_loader

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import QgaError
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_command, qga_fsfreeze, qga_ping
from ansible_collections.qemu.guest.tests.faults.matrix import DONE, FAILED, NOT_RUN, UNKNOWN
from ansible_collections.qemu.guest.tests.unit import warm

EFFECTS = "/srv/effects"
"""The file in the guest that gets a line of each operation with an effect."""

FETCHED = "/srv/fetched"
CONTENT = "hashlib.shake_128({!r}.encode()).digest(400_000)"
"""A Python expression for what a file with a token has; guests evaluate it, too."""

PYTHON = "/usr/bin/python3"
WORK = """
import os
descriptor = os.open({effects!r}, os.O_WRONLY | os.O_APPEND)
line = b'\\n{token}\\n'
assert os.write(descriptor, line) == len(line), 'the disk is full'
print('{token}')
"""


class Task(NamedTuple):
    """What a worker is asked: an operation at an address, with a token and a directory here that are its own."""

    operation: str
    address: str
    token: str
    directory: str
    timeout: float
    persist: float = 0.2


class Outcome(NamedTuple):
    """What became of an operation, in a word of the matrix, and what it said."""

    word: str
    text: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.word} after {self.seconds:.1f} s: {self.text[:500]}"


_WORDS = {"no": NOT_RUN, "yes": FAILED, "unknown": UNKNOWN}


def perform(task: Task) -> Outcome:
    """Run an operation; return what became of it."""
    try:
        return Outcome(DONE, _OPERATIONS[task.operation](task))
    except _FailedError as exc:
        return Outcome(exc.word, str(exc))
    except Exception as exc:
        own = next((one for one in _chain(exc) if isinstance(one, QgaError)), None)
        if own is None:  # what has no word of ours is for the reader of the test's output
            return Outcome(FAILED, f"{type(exc).__name__}: {exc}")
        return Outcome(_WORDS[str(own.as_result().get("error", {}).get("executed", own.executed))], str(exc))


def content(token: str) -> bytes:
    """Return what a file with this token has: more than one request carries of it."""
    return bytes(eval(CONTENT.format(token), {"hashlib": hashlib}))


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc:
        yield exc
        exc = exc.__cause__


class _FailedError(Exception):
    """An operation ended by a result that is none of success."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


def _append(token: str) -> str:
    # A line of its own, even where a full disk has cut off the one before.
    return f"{{ echo; echo {token}; }} >>{EFFECTS} && echo {token}"


# Through an Agent, as modules on a hypervisor do


def _module(task: Task, operation: Operation, **given: Any) -> dict[str, Any]:
    params = {name: option.get("default") for name, option in operation.spec.items()}
    with open_agent(task.address, task.timeout) as agent:
        return run_operation(operation, agent, {**params, **given})


def _sync(task: Task) -> str:
    given = {"command": "guest-sync-delimited", "arguments": {"id": int(task.token, 16) & 0xFFFF}}
    return str(_module(task, qga_command.OPERATION, **given)["return"] == given["arguments"]["id"])  # type: ignore[index]


def _read(task: Task) -> str:
    return str(_module(task, qga_command.OPERATION, command="guest-get-osinfo")["return"]["id"])


def _change(task: Task) -> str:
    arguments = {"path": "/bin/sh", "arg": ["-c", _append(task.token)]}
    return str(_module(task, qga_command.OPERATION, command="guest-exec", arguments=arguments)["return"]["pid"])


def _freeze(task: Task) -> str:
    return str(_module(task, qga_fsfreeze.OPERATION, state="frozen", timeout=task.timeout)["status_after"])


def _wait(task: Task) -> str:
    return str(_module(task, qga_ping.OPERATION, wait=task.timeout)["ping"])


# Through the connection, as tasks do


@contextlib.contextmanager
def _connection(task: Task, **options: Any) -> Iterator[Any]:
    connection = connection_loader.get("qemu.guest.qga", PlayContext(), os.devnull)
    given = {"address": task.address, "agent_timeout": task.timeout, "persist": task.persist, **options}
    connection.set_options(direct=given)
    try:
        yield connection
    finally:
        connection.close()


def _told(result: tuple[int, bytes, bytes], token: str) -> str:
    """Return what a command printed. Its exit status is the guest's word: it was run."""
    rc, out, err = result
    text = out.decode(errors="replace").strip()
    if rc != 0 or text != token:
        raise _FailedError(FAILED, f"exit status {rc}, output {text!r}, {err.decode(errors='replace')!r}")
    return text


def _exec(task: Task, command: str, stdin: bytes = b"", **options: Any) -> str:
    with _connection(task, **options) as connection:
        wrapped = f"/bin/sh -c {shlex.quote(command + ' && sleep 0')}"
        return _told(connection.exec_command(wrapped, in_data=stdin), task.token)


def _guest_exec(task: Task) -> str:
    return _exec(task, _append(task.token), exec_method="guest-exec")


def _runner(task: Task) -> str:
    return _exec(task, _append(task.token), exec_method="runner", warm_python=False)


def _warm(task: Task) -> str:
    program = warm.module(WORK.format(effects=EFFECTS, token=task.token))
    return _exec(task, PYTHON, program)


def _become(task: Task) -> str:
    with _connection(task) as connection:
        become = become_loader.get("sudo")
        become.set_options(direct={"become_user": "nobody", "become_exe": "sudo"})
        connection.set_become_plugin(become)
        shell = shell_loader.get("sh")
        shell.executable = "/bin/sh"
        command = become.build_become_command(_append(task.token), shell)
        wrapped = f"/bin/sh -c {shlex.quote(command + ' && sleep 0')}"
        return _told(connection.exec_command(wrapped), task.token)


def _put(task: Task) -> str:
    source = Path(task.directory, "source")
    source.write_bytes(content(task.token))
    with _connection(task) as connection:
        connection.put_file(str(source), f"/srv/put-{task.token}")
    return "put"


def _fetch(task: Task) -> str:
    sink = Path(task.directory, "sink")
    with _connection(task) as connection:
        connection.fetch_file(FETCHED, str(sink))
    return str(sink.read_bytes() == content("fetched"))


def _async(task: Task) -> str:
    """Run a task of the command `ansible`; it prints one line for its host."""
    from ansible.cli.adhoc import AdHocCLI

    inventory = Path(task.directory, "inventory.json")
    variables = {
        "ansible_connection": "qemu.guest.qga",
        "ansible_qga_address": task.address,
        "ansible_qga_timeout": task.timeout,
        "ansible_qga_persist": task.persist,
        "ansible_python_interpreter": PYTHON,
    }
    inventory.write_text(json.dumps({"all": {"hosts": {"vm1": variables}}}), encoding="utf-8")
    output = Path(task.directory, "output")
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    arguments = ["-i", str(inventory), "vm1", "-B", "30", "-P", "1", "-m", "shell", "-a", _append(task.token)]
    rc = AdHocCLI(["ansible", *arguments]).run()
    text = output.read_text(encoding="utf-8", errors="replace")
    if rc == 0:
        return "changed" if "CHANGED" in text and task.token in text else text
    words = {"may have run": UNKNOWN, "was not sent": NOT_RUN, "nothing was sent": NOT_RUN, "was not run": NOT_RUN}
    raise _FailedError(next((word for said, word in words.items() if said in text), FAILED), text)


_OPERATIONS: dict[str, Callable[[Task], str]] = {
    "sync": _sync,
    "read": _read,
    "change": _change,
    "put": _put,
    "fetch": _fetch,
    "guest-exec": _guest_exec,
    "runner": _runner,
    "warm": _warm,
    "become": _become,
    "async": _async,
    "freeze": _freeze,
    "wait": _wait,
}

# What an operation that is done has to say.
_RIGHT = {"sync": "True", "read": "debian", "put": "put", "fetch": "True", "async": "changed", "freeze": "frozen"}


def is_right(task: Task, said: str) -> bool:
    """Return whether an operation that is done said the right thing."""
    if task.operation == "change":
        return said.isdigit()
    return said == {**_RIGHT, "wait": "pong"}.get(task.operation, task.token)
