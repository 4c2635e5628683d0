# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's clock is set by two days, in either direction, while a runner and warm Python stay there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.guests.conftest import booted
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, guest_variables, look, releases, until
from lab.vm import Guest

HOURS = 48
# How often each process of ours has waited, by its number.
WAITS = r"""
for p in $(pgrep -f 'qemu-guest-runner|python3 -S'); do
    grep -qs voluntary "/proc/$p/status" && echo "$p $(awk '/^voluntary/ {print $2}' "/proc/$p/status")"
done
"""
# Answers of warm Python and results of the runner; not the directory's own files.
ANSWERS = "find /run/qemu-guest-runner -name '[0-9]*.*' ! -name '*.sh'"
SWEPT_SECONDS = 150  # an answer can be fetched for a minute, and the server looks once a minute
IDLE_SECONDS = 30
MOST_WAITS = 3


@pytest.fixture(scope="module", params=releases("bookworm"))
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with booted(request.param) as running:
        look(running, "systemctl stop systemd-timesyncd 2>/dev/null || :")
        yield running


@pytest.fixture
def ansible(guest: Guest, make_ansible: MakeAnsible) -> Ansible:
    return make_ansible({"vm": guest_variables(guest)})


def waits(guest: Guest) -> dict[str, int]:
    return {pid: int(count) for pid, count in re.findall(r"^(\d+) (\d+)$", look(guest, WAITS), re.MULTILINE)}


@pytest.mark.parametrize("direction", ["-", pytest.param("+", marks=pytest.mark.whole)])
def test_clock_is_set(direction: str, guest: Guest, ansible: Ansible) -> None:
    ansible.adhoc("ansible.builtin.command", "echo before")
    there = {*waits(guest)}
    before = int(look(guest, "date +%s"))
    look(guest, f'date -s "@$(($(date +%s) {direction} {HOURS * 3600}))"')
    moved = int(look(guest, "date +%s")) - before
    assert abs(abs(moved) - HOURS * 3600) < 300
    # It works at once, with what was there.
    for module, text in (("ansible.builtin.command", "echo after"), ("ansible.builtin.raw", "echo after")):
        run = ansible.adhoc(module, text)
        assert "after" in run.output
    assert there & {*waits(guest)}
    # What is over is swept away, and then nothing is woken up again and again.
    assert look(guest, ANSWERS)
    until(lambda: not look(guest, ANSWERS), SWEPT_SECONDS, "answers stay")
    first = waits(guest)
    time.sleep(IDLE_SECONDS)
    later = waits(guest)
    busy = {pid: later[pid] - count for pid, count in first.items() if later.get(pid, 0) - count > MOST_WAITS}
    assert first and not busy
