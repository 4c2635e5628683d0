# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is not seen through test_qga_shutdown.py and test_qga_suspend.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module.power import Boot, Presence, boot_of
from ansible_collections.qemu.guest.tests.unit.machine import HURRY, Machine
from ansible_collections.qemu.guest.tests.unit.scripted import Step, fails, returns, sends

Machines = Callable[..., Machine]
Connect = Callable[..., SocketAgent]


@pytest.mark.parametrize(
    ("before", "now", "proof"),
    [
        (Boot("a"), Boot("b"), "boot_id"),
        (Boot("a"), Boot("a"), ""),
        (Boot("a"), Boot(), ""),
        (Boot(), Boot("b"), ""),
        (Boot(), Boot(), ""),
        (Boot(uptime=1000, at=50), Boot(uptime=20, at=90), "uptime"),
        (Boot(uptime=1000, at=50), Boot(uptime=1040, at=90), ""),
        # A guest that was up for a short time only: the clock must have lost what the reboot took.
        (Boot(uptime=20, at=50), Boot(uptime=25, at=90), "uptime"),
        (Boot(uptime=20, at=50), Boot(uptime=57, at=90), ""),
        (Boot(uptime=1000, at=50), Boot("b"), ""),
    ],
)
def test_proof_of_a_new_boot(before: Boot, now: Boot, proof: str) -> None:
    assert now.proven_new(before) == proof
    if proof:
        assert now.comparable(before)


@pytest.mark.parametrize("text", ["", "../../x", "0" * 35, "f7dcfde2-f6bb-4a45-8205-5f342231e913; rm"])
def test_boot_id_of_a_guest_that_lies(machines: Machines, connect: Connect, text: str) -> None:
    machine = machines(without=("guest-get-cpustats",))
    machine.boot_id = text
    assert boot_of(connect(machine)) == Boot()


@pytest.mark.parametrize("cpus", [[], [1], [{"cpu": 1, "user": 1}], [{"cpu": 0}], [{"cpu": 0, "user": ""}]])
def test_uptime_that_is_not_told(machines: Machines, connect: Connect, cpus: Any) -> None:
    machine = machines(without=("guest-file-open",))
    machine.then("guest-get-cpustats", returns(cpus))
    assert boot_of(connect(machine)).uptime is None


@pytest.mark.parametrize(("answer", "answers"), [(fails("it has been disabled"), True), (sends(b"x\n"), False)])
def test_a_refusal_is_an_answer_and_nonsense_is_none(
    machines: Machines, connect: Connect, answer: Step, answers: bool
) -> None:
    machine = machines()
    presence = Presence(connect(machine), HURRY)
    machine.then("guest-ping", answer)
    assert presence.look(Deadline(10)) is answers
    assert presence.was_away is not answers
    assert not presence.gone
