# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guides of the docs site, typed in from the beginning to the end.

Each has a machine of its own, on which the sockets of real agents, or the ssh server, are where the guide says. Those
that need a booted guest are in guests/test_guides.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration import guides
from ansible_collections.qemu.guest.tests.integration.guides import GUIDES, Runner, blocks, commands
from ansible_collections.qemu.guest.tests.integration.harness import COMMANDS, ROOT
from lab import host
from lab.agent import LooseAgent
from lab.machine import Machine

BOOTED = {"libvirt", "moving_from_libvirt_qemu", "snapshots"}
"""The guides that need a booted guest."""


@contextmanager
def plain_qemu(machine: Machine) -> Iterator[None]:
    """A QEMU with the options of the guide; the agent is not in its guest, which never begins."""
    host.need("qemu-system-x86_64")
    (block,) = (block for block in blocks("plain_qemu") if block.caption == "options of QEMU")
    machine.run(
        f"qemu-system-x86_64 -S -daemonize -display none -m 16 -accel tcg -nodefaults {' '.join(block.body.split())}"
    )
    with LooseAgent() as agent:
        machine.link("/run/vm1.qga", agent.agent_socket)
        yield


MACHINES: dict[str, Callable[[Machine], AbstractContextManager[None]]] = {"plain_qemu": plain_qemu}


def runner(machine: Machine, directory: Path) -> Runner:
    """Return what runs a guide there, with the collection and nothing of the user's settings."""
    directory.mkdir()
    environment = {
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".dev" / "collections"),
        "ANSIBLE_HOME": str(directory.parent / "home"),
        "ANSIBLE_NOCOLOR": "1",
        "HOME": str(Path.home()),
        "LC_ALL": "C.UTF-8",
        "PATH": f"{COMMANDS}:{host.SEARCH_PATH}",
    }
    return Runner(directory, machine.command(["/bin/sh", "-c"], environment, directory))


@pytest.mark.parametrize("guide", sorted(MACHINES))
def test_guide(guide: str, tmp_path: Path) -> None:
    with Machine() as machine, MACHINES[guide](machine):
        runner(machine, tmp_path / guide).run(guide)


def test_every_guide_is_run() -> None:
    assert {*MACHINES, *BOOTED} == set(GUIDES)


@pytest.mark.parametrize("guide", GUIDES)
def test_every_block_is_run_or_says_why_not(guide: str) -> None:
    found = list(blocks(guide))
    assert len(found) == len(re.findall(r"\.\. (?:code|code-block|sourcecode|literalinclude)::", guides.text(guide)))
    assert not re.search(r"[^.]::\n", guides.text(guide)), "a literal block would not be run"
    run = [block for block in found if not block.reason]
    typed = [command for block in run if not block.caption for command, _output in commands(block)]
    assert typed, "nothing of it is run"
    for block in run:
        if block.caption not in ("", "ansible.cfg", "options of QEMU"):
            elsewhere = " ".join([*typed, *(other.body for other in run if other is not block)])
            assert Path(block.caption).name in elsewhere, f"{block}: nothing uses {block.caption}"
