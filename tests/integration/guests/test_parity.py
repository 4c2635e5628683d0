# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest never prepared, whose agent may not run programs: what works over ssh works there, and ends the same way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.elsewhere import CONNECTION
from ansible_collections.qemu.guest.tests.integration.guests.conftest import RELEASES, blocked, booted
from ansible_collections.qemu.guest.tests.integration.harness import HERE, Ansible, guest_variables, look
from ansible_collections.qemu.guest.tests.integration.ordinary import ordinary_variables
from ansible_collections.qemu.guest.tests.integration.parity import MORE, TARGETS, WHOLE, compare
from lab.vm import Guest

EXEC = "guest-exec,guest-exec-status"
OF_A_GUEST = ["systemd", "service", "hostname", "reboot"]

# Debian's package of what is installed: there is no network to get it from.
PACK = r"""
cd /root && mkdir -p deb/DEBIAN && p=qemu-guest-agent &&
dpkg -L $p | while read -r f; do
    if [ -d "$f" ] && [ ! -L "$f" ] || [ ! -e "$f" ]; then continue; fi
    mkdir -p "deb${f%/*}" && cp -a "$f" "deb$f"
done
for s in preinst postinst prerm postrm; do cp -a /var/lib/dpkg/info/$p.$s deb/DEBIAN/$s 2>/dev/null; done
f='Package: ${Package}\nVersion: ${Version}\nArchitecture: ${Architecture}\nMaintainer: nobody <n@n>\nDescription: it\n'
dpkg-query -W -f "$f" $p >deb/DEBIAN/control && dpkg-deb -b deb agent.deb
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with booted(RELEASES[-1], nic="user") as guest, blocked(guest, EXEC):
        yield guest


@pytest.fixture(scope="module")
def over_ssh() -> Iterator[Callable[[], Guest]]:
    """Returns a guest that is as the other was, and has seen the same targets since, those whose end is known aside."""
    with ExitStack() as stack:
        yield functools.cache(lambda: stack.enter_context(booted(RELEASES[-1], nic="user")))


@pytest.fixture
def ansible(guest: Guest, make_ansible: MakeAnsible) -> Ansible:
    return make_ansible({guest.release: {**guest_variables(guest), "ansible_qga_timeout": 60}})


def test_runner_is_started_by_udev(guest: Guest, ansible: Ansible) -> None:
    run = ansible.adhoc("ansible.builtin.ping", "", "-vvv")
    assert "starting a runner in the guest by udev" in run.output
    assert look(guest, "grep -rl qemu-guest-runner /lib/udev /etc/udev /etc/crontab || :") == ""
    assert look(guest, "stat -c '%a %U %F' /run/qemu-guest-runner /run/qemu-guest-runner/1 | sort -u") == (
        "700 root directory\n"
    )
    assert "by udev" not in ansible.adhoc("ansible.builtin.ping", "", "-vvv").output


def test_ordinary_play(guest: Guest, ansible: Ansible, tmp_path: Path) -> None:
    variables = {**ordinary_variables(tmp_path), "booted": True}
    ansible.playbook(HERE / "targets.yml", variables=variables, timeout=1200)


# Those of reset_connection have no task whose end could be compared; that they end well is seen in test_connection.py.
COMPARED = [name for name in CONNECTION if "reset" not in name]


@pytest.mark.parametrize("target", [*COMPARED, *([*TARGETS, *MORE, *OF_A_GUEST] if WHOLE else [])])
def test_target(target: str, guest: Guest, over_ssh: Callable[[], Guest], tmp_path: Path) -> None:
    compare(target, "runner", guest, over_ssh, tmp_path)
    guest.wait_agent()  # the last task of a target may have rebooted it


def test_agent_is_restarted_by_a_task(guest: Guest, ansible: Ansible) -> None:
    before = look(guest, "pidof qemu-ga")
    run = ansible.adhoc("ansible.builtin.shell", "systemctl restart qemu-guest-agent; echo restarted")
    assert "restarted" in run.output
    assert look(guest, "pidof qemu-ga") != before


def test_agent_is_upgraded_by_a_task(guest: Guest, ansible: Ansible) -> None:
    look(guest, PACK)
    before = look(guest, "pidof qemu-ga")
    run = ansible.adhoc("ansible.builtin.command", "apt-get -y install --reinstall /root/agent.deb")
    assert "Setting up qemu-guest-agent" in run.output
    assert look(guest, "pidof qemu-ga") != before
    look(guest, "rm -r /root/deb /root/agent.deb")


def test_reboot(guest: Guest, ansible: Ansible) -> None:
    before = look(guest, "cat /proc/sys/kernel/random/boot_id")
    ansible.adhoc("ansible.builtin.reboot", "reboot_timeout=300")
    assert "pong" in ansible.adhoc("ansible.builtin.ping").output
    guest.wait_booted()
    assert look(guest, "cat /proc/sys/kernel/random/boot_id") != before
