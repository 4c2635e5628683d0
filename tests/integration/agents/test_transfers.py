# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that change meanwhile, and ways that are as slow as a serial port."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, look
from lab.agent import LooseAgent
from lab.host import private_directory
from lab.tally import Tally

SERIAL = 7000  # bytes per second, each way


@pytest.fixture
def agent(agents: dict[str, LooseAgent]) -> LooseAgent:
    return agents["bookworm"]


@pytest.fixture
def rewritten(agent: LooseAgent) -> Iterator[str]:
    """A file that is written to all the time; its size stays."""
    look(agent, "mkdir -p /srv/changes; head -c 3000000 /dev/urandom >/srv/changes/file")
    # However busy the machine is: it is written to many times while something is read.
    loop = "import itertools, os; f = os.open('/srv/changes/file', os.O_WRONLY)\n"
    loop += "for n in itertools.count(): os.pwrite(f, b'%020d' % n, 0)"
    command = f"exec python3 -c {shlex.quote(loop)}"
    with subprocess.Popen([*agent.shell, command], start_new_session=True) as process:
        yield "/srv/changes/file"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    look(agent, "rm -r /srv/changes")


def test_file_that_is_written_to_is_fetched_as_over_ssh(
    agent: LooseAgent, make_ansible: MakeAnsible, rewritten: str, tmp_path: Path
) -> None:
    ansible = make_ansible({"vm": guest_variables(agent)})
    fetch = {"src": rewritten, "dest": str(tmp_path / "fetched"), "flat": True, "validate_checksum": False}
    run = ansible.adhoc("ansible.builtin.fetch", fetch, rc=0)
    assert "was written to each time that it was read" in run.message
    assert (tmp_path / "fetched").stat().st_size == 3_000_000
    failed = ansible.adhoc("qemu.guest.qga_fetch", {"src": rewritten, "dest": str(tmp_path / "other")}, rc=2)
    assert "was written to each time that it was read" in failed.message
    assert not (tmp_path / "other").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"ansible_qga_warm_python": False}, marks=pytest.mark.whole),
        {"ansible_qga_exec_method": "guest-exec", "ansible_qga_warm_python": False},
    ],
    ids=["warm", "runner", "guest-exec"],
)
def test_slow_way(agent: LooseAgent, make_ansible: MakeAnsible, options: dict[str, Any], tmp_path: Path) -> None:
    """No request of the agent takes longer than the seconds that it has."""
    directory = private_directory()
    (tmp_path / "source").write_bytes(os.urandom(60_000))
    setup = {"name": "Gather", "ansible.builtin.setup": {"gather_subset": ["min"]}}
    source = {"src": str(tmp_path / "source"), "dest": "/srv/slow", "mode": "0600"}
    copy = {"name": "Put", "ansible.builtin.copy": source}
    fetch = {
        "name": "Fetch",
        "ansible.builtin.fetch": {"src": "/srv/slow", "dest": str(tmp_path / "back"), "flat": True},
    }
    tasks = [setup, copy, fetch] if not options else [setup]
    with Tally(directory / "slow.sock", agent.agent_socket) as tally:
        tally.rate = tally.rate_there = SERIAL
        ansible = make_ansible({"vm": {**guest_variables(agent, tally.path), **options}})
        (ansible.directory / "slow.json").write_text(
            json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8"
        )
        ansible.playbook(ansible.directory / "slow.json")
        # Where guest-exec brings a module before anything is known of the way, it has a minute more.
        assert tally.longest < (20 + 60 if "ansible_qga_exec_method" in options else 15)
        # The agent tells how a program ended in one reply, with all of its output: that takes 35 s here.
        if not options:
            assert "35999" in ansible.adhoc("qemu.guest.qga_exec", {"cmd": "seq 36000"}).output
    directory.rmdir()
    if not options:
        assert (tmp_path / "back").read_bytes() == (tmp_path / "source").read_bytes()
