# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A frozen guest is one in which writing waits; that is looked at through the serial console."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.guests.conftest import configured, with_hook
from ansible_collections.qemu.guest.tests.integration.harness import (
    guest_variables,
    hypervisor_variables,
    look,
    until,
)
from lab import image
from lab.vm import Guest

Guests = Mapping[str, Guest]

PLACES = {"guest": guest_variables, "hypervisor": hypervisor_variables}
each_place = pytest.mark.parametrize("place", PLACES)

MODULE = "qemu.guest.qga_fsfreeze"


@pytest.fixture(autouse=True)
def thawed(guests: Guests) -> Iterator[None]:
    """Whatever a test does, the next one finds its guests thawed."""
    yield
    for guest in guests.values():
        with open_agent(str(guest.agent_socket), 60) as agent:
            agent.execute("guest-fsfreeze-thaw")


def hosts(guests: Guests, place: str) -> dict[str, dict[str, Any]]:
    return {release: PLACES[place](guest) for release, guest in guests.items()}


def options(place: str, **given: Any) -> dict[str, Any]:
    """Return the module's options for all hosts, with what finds the agent on a hypervisor."""
    return {**given, **({"address": "{{ qga_address }}"} if place == "hypervisor" else {})}


def write(guest: Guest) -> None:
    """Begin to write. Who writes to what is frozen waits, and cannot be killed."""
    look(guest, "cd /; rm -f /run/wrote; (echo x >/small/freeze && echo yes >/run/wrote) & sleep 1")


def written(guest: Guest) -> bool:
    return look(guest, "cat /run/wrote 2>/dev/null || :") == "yes\n"


def is_frozen(guest: Guest) -> bool:
    write(guest)
    return not written(guest)


def processes_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the pids of ``process`` and all that it started, the first before its children."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [process.pid]
    for pid in found:
        found += parents.get(pid, [])
    return found


@pytest.mark.parametrize("given", [{}, {"thaw_after": 600}], ids=["", "thaw_after"])
@each_place
def test_everything_is_killed_while_it_freezes(
    place: str, given: Mapping[str, int], guests: Guests, make_ansible: MakeAnsible
) -> None:
    """A freeze takes its time; meanwhile ansible, its workers and the module are killed. The timer thaws at once."""
    with ExitStack() as stack:
        for guest in guests.values():
            stack.enter_context(with_hook(guest, 'touch "/run/hook-$1"; [ "$1" = thaw ] || sleep 10'))
        ansible = make_ansible(hosts(guests, place))
        arguments = json.dumps(options(place, state="frozen", **given))
        with ansible.start("ansible", "all", "-m", MODULE, "-a", arguments) as process:
            for guest in guests.values():
                until(lambda guest=guest: look(guest, "ls /run/hook-freeze 2>/dev/null || :"), 60, "the hook runs")  # type: ignore[misc]
            doomed = processes_of(process)
            assert process.poll() is None, "it has ended before it could be killed"
            assert len(doomed) > len(guests), "a worker for each"
            os.killpg(process.pid, signal.SIGKILL)
            for pid in doomed[1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        for guest in guests.values():
            until(lambda guest=guest: look(guest, "ls /run/hook-thaw 2>/dev/null || :"), 60, "the timer thaws")  # type: ignore[misc]
            assert not is_frozen(guest)
        late = ansible.adhoc(MODULE, options(place, state="thawed"))
        assert late.output.count("the timer thawed the guest at") >= len(guests)


@each_place
def test_freeze_that_fails_and_freeze_that_takes_too_long(
    place: str, guests: Guests, make_ansible: MakeAnsible
) -> None:
    script = 'echo "$1" >>/run/hook-log; [ "$1" = thaw ] || . /run/hook-plan'
    with ExitStack() as stack:
        for guest in guests.values():
            stack.enter_context(with_hook(guest, script))
            look(guest, "echo exit 3 >/run/hook-plan")
        ansible = make_ansible(hosts(guests, place))
        run = ansible.adhoc(MODULE, options(place, state="frozen", thaw_after=120), rc=2)
        assert run.message.count("guest-fsfreeze-freeze failed: ") >= len(guests)
        assert run.message.count("The guest's filesystems are thawed.") >= len(guests)
        for guest in guests.values():
            assert not is_frozen(guest)
            assert look(guest, "cat /run/hook-log; echo sleep 8 >/run/hook-plan") == "freeze\nthaw\n"
        run = ansible.adhoc(MODULE, options(place, state="frozen", timeout=3), rc=2)
        assert run.message.count("guest-fsfreeze-freeze may have run: no reply within 3 s.") >= len(guests)
        assert run.message.count("The guest's filesystems are thawed.") >= len(guests)
        for guest in guests.values():
            assert not is_frozen(guest)
            # It had frozen by then.
            assert look(guest, "cat /run/hook-log") == "freeze\nthaw\nfreeze\nthaw\n"


@pytest.mark.parametrize("blocked", ["guest-fsfreeze-thaw", "guest-fsfreeze-status"])
def test_never_frozen_if_it_could_not_be_thawed(blocked: str, guests: Guests, make_ansible: MakeAnsible) -> None:
    with ExitStack() as stack:
        for guest in guests.values():
            key = "blacklist" if guest.release == "bullseye" else "block-rpcs"
            stack.enter_context(configured(guest, f"{key}={blocked}"))
        run = make_ansible(hosts(guests, "guest")).adhoc(MODULE, options("guest", state="frozen", thaw_after=20), rc=2)
        assert run.message.count(f"{blocked} was not run: disabled by the guest's administrator") >= len(guests)
        assert not [guest.release for guest in guests.values() if is_frozen(guest)]


@contextmanager
def stacked(guest: Guest) -> Iterator[None]:
    """A filesystem lies in a file of the root filesystem, which is mounted once more after it."""
    look(guest, "truncate -s 16M /img; mkfs.ext4 -q /img; mkdir -p /loop /again; mount -o loop /img /loop")
    look(guest, "mount --bind /srv /again")
    try:
        yield
    finally:
        look(guest, "umount /again; umount /loop; rm -rf /img /loop /again")


def test_filesystem_in_a_file_of_one_that_is_frozen_before(guests: Guests, make_ansible: MakeAnsible) -> None:
    """What hangs an older agent is refused, and what to freeze instead works; a newer one just freezes."""
    for release, guest in guests.items():
        ansible = make_ansible(hosts({release: guest}, "guest"))
        points = {}
        with stacked(guest):
            if image.RELEASES[release] < 10:
                run = ansible.adhoc(MODULE, options("guest", state="frozen", thaw_after=120), rc=2)
                assert "/loop is on loop0, which may lie in a file of vda" in run.message
                assert "mountpoints=['/', '/small', '/loop']" in run.message
                assert not is_frozen(guest)
                points = {"mountpoints": ["/", "/small", "/loop"]}
            run = ansible.adhoc(MODULE, options("guest", state="frozen", thaw_after=120, **points))
            assert '"count": 3' in run.output
            assert is_frozen(guest)
            assert '"count": 3' in ansible.adhoc(MODULE, options("guest", state="thawed")).output
            until(lambda guest=guest: written(guest), 20, "it goes on")  # type: ignore[misc]


def test_thaw_of_what_the_status_does_not_tell_of(guests: Guests, make_ansible: MakeAnsible) -> None:
    with ExitStack() as stack:
        for guest in guests.values():
            stack.enter_context(with_hook(guest, 'echo "$1" >>/run/hook-log'))
            look(guest, "fsfreeze --freeze /small")
        ansible = make_ansible(hosts(guests, "guest"))
        run = ansible.adhoc(MODULE, options("guest", state="thawed"))
        assert run.output.count("| CHANGED") == run.output.count('"count": 1') == len(guests), run.output
        assert run.output.count('"status_before": "thawed"') == len(guests)
        again = ansible.adhoc(MODULE, options("guest", state="thawed"))
        assert again.output.count("| SUCCESS") == again.output.count('"count": 0') == len(guests), again.output
        for guest in guests.values():
            assert not is_frozen(guest)
            assert look(guest, "cat /run/hook-log") == "thaw\nthaw\n", "the hook runs at each thaw"
