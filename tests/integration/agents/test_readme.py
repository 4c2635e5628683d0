# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first commands of the README, typed as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import ROOT, look
from lab.agent import LooseAgent

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ ansible (-i guests\.yml .*)$", README, re.MULTILINE)


def block(text: str) -> str:
    """Return the README's first block of YAML that has `text`."""
    return next(
        found for found in re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if text in found
    )


def test_first_commands(make_ansible: MakeAnsible, tmp_path: Path) -> None:
    ansible = make_ansible({})
    inventory, play = tmp_path / "guests.yml", tmp_path / "site.yml"
    play.write_text(block("hosts: all"), encoding="utf-8")
    with LooseAgent("sid") as agent:
        inventory.write_text(block("/run/vm1.qga").replace("/run/vm1.qga", str(agent.agent_socket)), encoding="utf-8")
        outputs = [
            ansible.run("ansible", *shlex.split(command.replace("guests.yml", str(inventory)))).output
            for command in COMMANDS
        ]
        for output, expected in zip(outputs, ('"ping": "pong"', "Debian", "ansible_hostname", "Linux"), strict=True):
            assert expected in output
        assert ansible.playbook(play, "-i", str(inventory)).recap["vm1"]["changed"] == 1
        assert look(agent, "cat /etc/motd") == f"Welcome to {look(agent, 'uname -n').strip()}.\n"
