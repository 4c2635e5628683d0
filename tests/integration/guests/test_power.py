# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that are suspended, woken, rebooted, halted and turned off; QEMU, the kernel's log and the console confirm it.

They are guests of their own, because it is their end. QEMU goes on after it (-no-shutdown), so that each is used again.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.guests.conftest import RELEASES, booted
from ansible_collections.qemu.guest.tests.integration.harness import (
    HERE,
    ROOT,
    guest_variables,
    hypervisor_variables,
    look,
    until,
)
from lab.vm import Guest

STAYS = {"extra_args": ["-no-shutdown"]}
"""Options of a guest whose QEMU stays when it ends."""
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def fresh() -> Iterator[Guest]:
    """A guest with the newest agent, for the tests that end it one after the other."""
    with booted(RELEASES[-1], **STAYS) as guest:
        yield guest


def up(guest: Guest) -> None:
    guest.wait_booted()
    guest.wait_agent()


def status(guest: Guest) -> str:
    return str(guest.qmp("query-status")["status"])


def start_again(guest: Guest) -> None:
    """Switch a machine on that is off, or reset it."""
    guest.qmp("system_reset")
    guest.qmp("cont")
    up(guest)


@pytest.mark.parametrize("release", RELEASES)
def test_targets(release: str, make_ansible: MakeAnsible) -> None:
    """Both targets on the guest itself; on its hypervisor, the one that leaves it running."""
    with booted(release, **STAYS) as guest:
        given = {"qmp_address": str(guest.qmp_socket)}
        for target, variables in (
            ("qga_suspend", hypervisor_variables(guest)),
            ("qga_suspend", guest_variables(guest)),
            ("qga_shutdown", guest_variables(guest)),
        ):
            make_ansible({release: variables}).playbook(HERE / "targets.yml", variables={"target": target, **given})
        assert status(guest) == "shutdown"
        assert "reboot: Power down" in guest.boot_log.read_text(errors="replace")


def test_qmp_that_another_client_has(fresh: Guest, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"vm": guest_variables(fresh)})
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(fresh.qmp_socket))
        other.recv(4096)
        for module in ("qga_shutdown", "qga_suspend"):
            run = ansible.adhoc(f"qemu.guest.{module}", f"qmp_address={fresh.qmp_socket}", rc=2)
            assert f"QMP at unix:{fresh.qmp_socket}: another client (" in run.message
            assert "one client per socket" in run.message
    ansible.adhoc("qemu.guest.qga_shutdown", f"qmp_address={fresh.qmp_socket}", "--check")


def test_qemu_that_cannot_wake(fresh: Guest, make_ansible: MakeAnsible, tmp_path: Path) -> None:
    """A machine without ACPI has no state to be woken from. Its QEMU is asked in place of the guest's."""
    path = tmp_path / "qmp"
    argv = ["qemu-system-x86_64", "-M", "isapc", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"]
    with subprocess.Popen([*argv, "-m", "16", "-qmp", f"unix:{path},server=on,wait=off"]) as process:
        try:
            until(path.exists, 30, "QEMU's monitor")
            arguments = f"address={fresh.agent_socket} qmp_address={path}"
            run = make_ansible({"hypervisor": hypervisor_variables(fresh)}).adhoc(
                "qemu.guest.qga_suspend", arguments, rc=2
            )
            assert "this QEMU cannot wake a guest that is suspended to RAM" in run.message
            assert "wakeup-suspend" in run.message
        finally:
            process.kill()
    assert status(fresh) == "running"


def test_suspend_that_only_the_agent_shows(fresh: Guest, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"vm": guest_variables(fresh)})
    run = ansible.adhoc("qemu.guest.qga_suspend", "wakeup_verified=true")
    assert '"confirmed_by": "agent"' in run.output
    assert status(fresh) == "suspended"
    ansible.adhoc("qemu.guest.qga_suspend", f"state=awake qmp_address={fresh.qmp_socket}")
    assert status(fresh) == "running"
    assert look(fresh, "echo awake") == "awake\n"


def test_example(fresh: Guest, make_ansible: MakeAnsible) -> None:
    before = look(fresh, BOOT_ID)
    ansible = make_ansible({"hypervisor": hypervisor_variables(fresh)})
    run = ansible.playbook(
        ROOT / "playbooks" / "power.yml",
        variables={"hypervisor": "all", "address": str(fresh.agent_socket), "qmp_address": str(fresh.qmp_socket)},
    )
    fresh.wait_booted()
    after = look(fresh, BOOT_ID)
    assert after != before
    assert f"{before.strip()} -> {after.strip()}" in run.output


def test_reboot_and_halt_that_only_the_agent_shows(fresh: Guest, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"hypervisor": hypervisor_variables(fresh)})
    before = look(fresh, BOOT_ID).strip()
    run = ansible.adhoc("qemu.guest.qga_shutdown", f"address={fresh.agent_socket} mode=reboot")
    assert '"confirmed_by": "boot_id"' in run.output
    assert f'"boot_id_before": "{before}"' in run.output
    fresh.wait_booted()
    after = look(fresh, BOOT_ID).strip()
    assert after != before
    assert f'"boot_id_after": "{after}"' in run.output
    arguments = f"address={fresh.agent_socket} qmp_address={fresh.qmp_socket} mode=halt"
    run = ansible.adhoc("qemu.guest.qga_shutdown", arguments)
    assert '"confirmed_by": "agent"' in run.output
    until(lambda: "reboot: System halted" in fresh.boot_log.read_text(errors="replace"), 60, "the kernel's last word")
    assert status(fresh) == "running", "of a halt, QEMU knows nothing"
    run = ansible.adhoc("qemu.guest.qga_shutdown", f"{arguments} agent_timeout=5", rc=2)
    assert "no answer to a sync" in run.message


def test_agent_that_may_not_read_files(fresh: Guest, make_ansible: MakeAnsible) -> None:
    """As in the distributions of Red Hat. Without QMP, the uptime tells one boot from another."""
    start_again(fresh)
    blocked = "guest-file-open,guest-file-read"
    key = "blacklist" if fresh.release == "bullseye" else "block-rpcs"
    look(fresh, f"mkdir -p /etc/qemu; printf '[general]\\n{key}={blocked}\\n' >/etc/qemu/qemu-ga.conf")
    look(fresh, "systemctl restart qemu-guest-agent")
    before = look(fresh, BOOT_ID)
    run = make_ansible({"vm": guest_variables(fresh)}).adhoc("qemu.guest.qga_shutdown", "mode=reboot")
    assert '"confirmed_by": "uptime"' in run.output
    fresh.wait_booted()
    assert look(fresh, BOOT_ID) != before


def test_reboot_that_qemu_makes_an_end_of(fresh: Guest, make_ansible: MakeAnsible) -> None:
    """As -no-reboot does. Then the machine's real end, by which QEMU ends too."""
    ansible = make_ansible({"vm": guest_variables(fresh)})
    fresh.qmp("set-action", reboot="shutdown")
    run = ansible.adhoc("qemu.guest.qga_shutdown", f"mode=reboot qmp_address={fresh.qmp_socket}", rc=2)
    assert "QEMU shut the machine down. Was it started with -no-reboot" in run.message
    assert status(fresh) == "shutdown"
    fresh.qmp("set-action", reboot="reset", shutdown="poweroff")
    start_again(fresh)
    run = ansible.adhoc("qemu.guest.qga_shutdown", f"qmp_address={fresh.qmp_socket}")
    assert '"confirmed_by": "event"' in run.output
    until(lambda: not fresh.alive(), 30, "the end of QEMU")
    run = ansible.adhoc("qemu.guest.qga_shutdown", f"qmp_address={fresh.qmp_socket}", rc=2)
    assert f"QMP at unix:{fresh.qmp_socket}: there is no such socket" in run.message


def test_end_of_a_guest_that_only_its_socket_shows(make_ansible: MakeAnsible) -> None:
    with Guest(RELEASES[0]) as guest:
        up(guest)
        run = make_ansible({"vm": guest_variables(guest)}).adhoc("qemu.guest.qga_shutdown")
        assert '"confirmed_by": "agent"' in run.output
        until(lambda: not guest.alive(), 60, "the end of QEMU")
