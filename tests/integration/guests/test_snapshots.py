# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots, pauses and backups while tasks run, as people do them all day, without telling Ansible."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import QgaError
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.guests.conftest import booted
from ansible_collections.qemu.guest.tests.integration.harness import (
    Ansible,
    Run,
    guest_variables,
    look,
    releases,
    until,
)
from lab.vm import Guest

WAYS: Mapping[str, Mapping[str, Any]] = {
    # Only there it is Python that matters, which takes long to start in an emulated guest.
    "warm": {"task": "ansible.builtin.shell"},
    "runner": {"task": "ansible.builtin.raw", "ansible_qga_warm_python": False},
    "guest-exec": {"task": "ansible.builtin.raw", "ansible_qga_exec_method": "guest-exec"},
}
# In which a task that was lost is to be told so. What begins anew in an emulated guest takes some seconds.
TOLD_SECONDS = 15
LOST = "guest-exec may have run"


@pytest.fixture(scope="module", params=releases("bookworm"))
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with booted(request.param, snapshots=True) as running:
        yield running


@pytest.fixture(params=WAYS)
def ansible(request: pytest.FixtureRequest, make_ansible: MakeAnsible, guest: Guest) -> Ansible:
    """Ansible with the guest as its host, by each way to run programs. Each test begins with a guest as it booted."""
    with suppress(QgaError), open_agent(str(guest.agent_socket), 60) as agent:
        agent.execute("guest-fsfreeze-thaw")
    ansible = make_ansible({"vm": {**guest_variables(guest), **WAYS[request.param]}})
    works(ansible, "the first")  # what is to stay in the guest is there now
    return ansible


def shell(ansible: Ansible, command: str) -> list[str]:
    """Return the arguments of a task that runs a shell command."""
    variables = json.loads(ansible.inventory.read_text(encoding="utf-8"))["all"]["hosts"]["vm"]
    return ["all", "-m", variables["task"], "-a", command]


def waiting(text: str) -> str:
    """Return a shell command that runs until it is let go, whatever a slow guest takes to see that it runs."""
    return f"touch /run/{text}.on; until [ -e /run/{text}.off ]; do sleep 1; done; echo output of {text}"


class Task:
    """A task that was started and runs in the guest, until it is let go."""

    def __init__(self, process: Any, guest: Guest, text: str) -> None:
        self._process = process
        self._guest = guest
        self._text = text

    def let_go(self) -> None:
        look(self._guest, f"touch /run/{self._text}.off")

    def ended(self, timeout: float = 240.0) -> Run:
        """Wait for its end, which has to come within `timeout` seconds."""
        started = time.monotonic()
        output = self._process.communicate(timeout=timeout)[0]
        return Run(self._process.returncode, output, time.monotonic() - started)


@contextmanager
def running(
    ansible: Ansible, guest: Guest, text: str, arguments: Sequence[str] = (), more: Sequence[str] = ()
) -> Iterator[Task]:
    """Run a task that prints `output of TEXT` when it is let go; by default, that of `shell`."""
    look(guest, f"rm -f /run/{text}.on /run/{text}.off")
    with ansible.start("ansible", *(arguments or shell(ansible, waiting(text))), *more) as process:
        until(lambda: look(guest, f"ls /run/{text}.on 2>/dev/null || :"), 240, f"{text} runs")
        yield Task(process, guest, text)


def says(run: Run, text: str) -> bool:
    """Return whether a task has ended well, with its own output and no word more."""
    lines = [line for line in run.output.splitlines() if line]
    return run.rc == 0 and lines == ["vm | CHANGED | rc=0 >>", f"output of {text}"]


def works(ansible: Ansible, text: str) -> None:
    run = ansible.run("ansible", *shell(ansible, f"echo output of {text}"), rc=None)
    assert says(run, text), run.output


def was_lost(run: Run, text: str) -> bool:
    """Return whether a task has failed because the guest knows nothing of it, and nothing else was taken for it."""
    return run.rc in (2, 4) and LOST in run.message and "output of" not in run.output.replace(f"output of {text}", "")


def test_reverted_to_another_task_while_a_task_runs(ansible: Ansible, guest: Guest) -> None:
    """What the other answers is nothing to this one."""
    with running(ansible, guest, "A") as task:
        guest.save("during-A")
        task.let_go()
        assert says(task.ended(), "A")
    with running(ansible, guest, "B") as task:
        guest.revert("during-A")
        look(guest, "touch /run/A.off")  # and answers once more
        run = task.ended(TOLD_SECONDS)
        assert was_lost(run, "B"), run.output
    works(ansible, "C")
    works(ansible, "D")


@pytest.mark.whole
def test_reverted_to_before_a_task_while_it_runs(ansible: Ansible, guest: Guest) -> None:
    guest.save("idle")
    with running(ansible, guest, "B") as task:
        guest.revert("idle")
        run = task.ended(TOLD_SECONDS)
        assert was_lost(run, "B"), run.output
    works(ansible, "C")


@pytest.mark.whole
def test_reverted_in_a_task_that_goes_on(ansible: Ansible, guest: Guest) -> None:
    """It was saved while it ran, and runs again from there. Its end may be told, or that it was lost."""
    with running(ansible, guest, "A") as task:
        guest.save("in-A")
        time.sleep(3)
        guest.revert("in-A")
        task.let_go()
        run = task.ended()
    assert says(run, "A") or was_lost(run, "A"), run.output
    works(ansible, "C")


@pytest.mark.parametrize("seconds", [0, *(pytest.param(late, marks=pytest.mark.whole) for late in (1, 7))])
def test_reverted_between_tasks(ansible: Ansible, guest: Guest, seconds: int) -> None:
    """The next one starts anew and says nothing: no handle and no number of before is of use."""
    guest.save("between")
    works(ansible, "A")
    works(ansible, "B")
    time.sleep(seconds)
    guest.revert("between")
    works(ansible, "C")
    works(ansible, "D")


@pytest.mark.whole
def test_reverted_to_a_task_after_another(ansible: Ansible, guest: Guest) -> None:
    with running(ansible, guest, "A") as task:
        guest.save("under-A")
        task.let_go()
        assert says(task.ended(), "A")
    works(ansible, "B")
    time.sleep(1)
    guest.revert("under-A")
    look(guest, "touch /run/A.off")
    for text in ("C", "D", "E", "F"):
        works(ansible, text)


@pytest.mark.whole
def test_paused_while_a_task_runs(ansible: Ansible, guest: Guest) -> None:
    with running(ansible, guest, "A") as task:
        guest.qmp("stop")
        time.sleep(35)  # beyond what one command has
        guest.qmp("cont")
        task.let_go()
        run = task.ended()
    assert says(run, "A"), run.output
    works(ansible, "B")


# Where something temporary may be.
TEMPORARY = "find /srv /tmp /var/tmp -xdev; { ls -A /root/.ansible/tmp; ls -d /run/qemu-guest.*; } 2>/dev/null || :"


@contextmanager
def copying(ansible: Ansible, guest: Guest, place: Path, module: str) -> Iterator[tuple[Task, bytes]]:
    """Copy a large file to /srv/big by this module; go on when it has begun. Yield the task and the content."""
    content = os.urandom(30_000_000)
    (place / "big").write_bytes(content)
    where = {"src": str(place / "big"), "dest" if module.endswith("copy") else "path": "/srv/big"}
    look(guest, "rm -f /srv/big")
    arguments = ["all", "-m", module, "-a", " ".join(f"{name}={value}" for name, value in where.items())]
    with ansible.start("ansible", *arguments) as process:
        # Wherever it is written to, it is there in megabytes.
        grows = "find /srv /root/.ansible -xdev -type f -size +1000k 2>/dev/null || :"
        until(lambda: look(guest, grows), 90, "the copy has begun")
        yield Task(process, guest, ""), content


# Live migration


def test_migrated_between_tasks(ansible: Ansible, guest: Guest) -> None:
    """What runs in the guest has come with it; who was connected to the first QEMU connects to the other."""
    guest.migrate()
    works(ansible, "A")
    guest.migrate()
    works(ansible, "B")


def test_migrated_while_a_task_runs(ansible: Ansible, guest: Guest) -> None:
    with running(ansible, guest, "A") as task:
        guest.migrate()
        task.let_go()
        run = task.ended(60)
    assert says(run, "A"), run.output
    works(ansible, "B")


@pytest.mark.whole
@pytest.mark.parametrize("module", ["ansible.builtin.copy", "qemu.guest.qga_file"])
def test_migrated_while_a_file_is_copied(ansible: Ansible, guest: Guest, tmp_path: Path, module: str) -> None:
    before = look(guest, TEMPORARY)
    with copying(ansible, guest, tmp_path, module) as (task, content):
        guest.migrate()
        run = task.ended(400)
    assert run.rc == 0, run.output
    assert look(guest, "sha256sum </srv/big") == f"{hashlib.sha256(content).hexdigest()}  -\n"
    look(guest, "rm /srv/big")
    assert look(guest, TEMPORARY) == before


# Backups

WAITS = "the guest is frozen; waiting up to"


def backup(guest: Guest, seconds: float = 20.0) -> None:
    """Freeze the guest for a time, as another client that has its turn on the channel."""
    with open_agent(str(guest.agent_socket), 60) as agent:
        agent.execute("guest-fsfreeze-freeze")
        try:
            agent.close()
            time.sleep(seconds)
        finally:
            agent.execute("guest-fsfreeze-thaw")


def test_backup_while_a_task_runs(ansible: Ansible, guest: Guest) -> None:
    with running(ansible, guest, "A") as task:
        backup(guest)
        task.let_go()
        run = task.ended()
    assert run.rc == 0 and "output of A" in run.output, run.output
    works(ansible, "B")


@pytest.mark.whole
def test_backup_while_qga_exec_runs(ansible: Ansible, guest: Guest) -> None:
    options = json.dumps({"shell": waiting("A"), "timeout": 600})
    before = look(guest, TEMPORARY)
    with running(ansible, guest, "A", ["all", "-m", "qemu.guest.qga_exec", "-a", options]) as task:
        backup(guest)
        task.let_go()
        run = task.ended()
    assert run.rc == 0 and '"stdout": "output of A"' in run.output, run.output
    assert look(guest, TEMPORARY) == before


@pytest.mark.whole
@pytest.mark.parametrize("module", ["ansible.builtin.copy", "qemu.guest.qga_file"])
def test_backup_while_a_file_is_copied(ansible: Ansible, guest: Guest, tmp_path: Path, module: str) -> None:
    before = look(guest, TEMPORARY)
    with copying(ansible, guest, tmp_path, module) as (task, content):
        backup(guest)
        run = task.ended(400)
    assert run.rc == 0, run.output
    assert WAITS in run.message, "it was frozen in the middle"
    digest = hashlib.sha256(content).hexdigest()
    assert look(guest, "sha256sum </srv/big") == f"{digest}  -\n"
    look(guest, "rm /srv/big")
    assert look(guest, TEMPORARY) == before


@pytest.mark.whole
def test_backup_that_does_not_end_is_told(ansible: Ansible, guest: Guest) -> None:
    """It is the task that may have run; that a question after it was not is nothing to the user."""
    frozen_timeout = ["-e", '{"ansible_qga_frozen_timeout": 5}']
    with running(ansible, guest, "A", more=frozen_timeout) as task:
        with open_agent(str(guest.agent_socket), 60) as agent:
            agent.execute("guest-fsfreeze-freeze")
        try:
            run = task.ended(60)
        finally:
            with open_agent(str(guest.agent_socket), 60) as agent:
                agent.execute("guest-fsfreeze-thaw")
        task.let_go()
    assert was_lost(run, "A") and "was not run" not in run.message, run.output
