# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation, as a user pastes them: nothing but addresses is another."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.qemu.guest.tests.integration.harness import Ansible, Run
from ansible_collections.qemu.guest.tests.unit.documentation import module


def example_tasks(name: str) -> list[str]:
    """Return the text of each task in the examples of a module."""
    return re.split(r"^(?=- name: )", module(name).EXAMPLES, flags=re.MULTILINE)[1:]


def paste(ansible: Ansible, text: str, replaced: Mapping[str, Any], **options: Any) -> Run:
    """Run plays, with these addresses and places replaced."""
    for ours, theirs in replaced.items():
        text = text.replace(ours, str(theirs))
    playbook = ansible.directory / "play.yml"
    playbook.write_text(text, encoding="utf-8")
    return ansible.playbook(playbook, **options)


def paste_tasks(ansible: Ansible, tasks: Sequence[str], replaced: Mapping[str, Any], **options: Any) -> Run:
    """Run tasks in a play of their own for all hosts; each has to succeed on each of them."""
    play = "- hosts: all\n  gather_facts: false\n  tasks:\n"
    run = paste(ansible, play + textwrap.indent("".join(tasks), "    "), replaced, **options)
    for numbers in run.recap.values():
        assert numbers["ok"] == len(tasks), run.output
    return run
