# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is ended while its guest freezes. No agent but one that follows a script may be asked to freeze here."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, until
from ansible_collections.qemu.guest.tests.unit.filesystems import FREEZE, Disks
from ansible_collections.qemu.guest.tests.unit.scripted import Request, Scripted, Session, answers
from lab.sshd import Sshd

PATIENCE = 30.0
FREEZES = "qemu.guest.qga_fsfreeze"


class Slow:
    """A guest whose disks take as long to freeze as its test says."""

    def __init__(self, directory: Path) -> None:
        self.disks = Disks()
        self.asked, self.may_freeze = threading.Event(), threading.Event()
        self.server = Scripted(directory / "agent.sock", {**self.disks.answers(), "guest-get-fsinfo": []})

    def freeze(self, session: Session, request: Request) -> None:
        self.asked.set()
        assert self.may_freeze.wait(PATIENCE)
        answers(session, request)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Slow]:
    guest = Slow(tmp_path)
    with guest.server:
        yield guest


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    with Sshd() as sshd:
        yield sshd


CONNECTION, LOCAL, SSH = "qemu.guest.qga", "ansible.builtin.local", "ansible.builtin.ssh"


@pytest.fixture
def run(request: pytest.FixtureRequest, guest: Slow, make_ansible: MakeAnsible) -> tuple[Ansible, Mapping[str, Any]]:
    """The commands of ansible, and the arguments of a task that freezes the guest."""
    path = str(guest.server.path)
    variables = {"ansible_connection": request.param, "ansible_python_interpreter": "/usr/bin/python3"}
    if request.param == CONNECTION:
        return make_ansible({"vm1": {**variables, "ansible_qga_address": path}}), {}
    if request.param == SSH:
        variables.update(request.getfixturevalue("sshd").variables())
    return make_ansible({"hv1": variables}), {"address": path}


@pytest.mark.parametrize(
    ("run", "number"),
    [
        *itertools.product([CONNECTION], [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]),
        # A module cannot see that its run is gone, while a worker of it or ssh lives that reads its output.
        *itertools.product([LOCAL], [signal.SIGINT, signal.SIGTERM]),
        (SSH, signal.SIGINT),
    ],
    indirect=["run"],
)
def test_run_is_ended_while_its_guest_freezes(
    run: tuple[Ansible, dict[str, Any]], guest: Slow, number: signal.Signals
) -> None:
    ansible, address = run
    guest.server.then(FREEZE, guest.freeze)
    with ansible.start("ansible", "all", "-m", FREEZES, "-a", json.dumps({"state": "frozen", **address})) as process:
        assert guest.asked.wait(PATIENCE)
        os.killpg(process.pid, number)
        process.wait(PATIENCE)
    guest.may_freeze.set()
    until(lambda: "guest-fsfreeze-thaw" in guest.server.work, PATIENCE, "it is thawed")
    assert not guest.disks.frozen


@pytest.mark.parametrize("run", [CONNECTION, LOCAL, SSH], indirect=True)
def test_guest_stays_frozen_for_a_run_that_ends_as_it_should(run: tuple[Ansible, dict[str, Any]], guest: Slow) -> None:
    before = timers()
    ansible, address = run
    ansible.adhoc(FREEZES, {"state": "frozen", **address})
    until(lambda: timers() <= before, PATIENCE, "no timer is left")
    assert guest.disks.frozen
    assert ansible.adhoc(FREEZES, {"state": "frozen", **address}).output.count('"changed": false') == 1
    assert guest.disks.frozen
    ansible.adhoc(FREEZES, {"state": "thawed", **address})
    assert not guest.disks.frozen


def timers() -> set[Path]:
    """Return the processes that are timers."""
    found = set()
    for name in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if name.read_text() == "qga-thaw-timer\n":
                found.add(name)
    return found
