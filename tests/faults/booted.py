# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A booted guest of the matrix, and what can be done to it alone: what hypervisors do, clocks, and frozen files."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.tests.faults.guests import RealGuest
from ansible_collections.qemu.guest.tests.faults.injections import Injection
from ansible_collections.qemu.guest.tests.faults.operations import CONTENT, EFFECTS, FETCHED, Task
from ansible_collections.qemu.guest.tests.integration.harness import look, until
from lab.host import LabError
from lab.vm import Guest

if TYPE_CHECKING:
    from ansible_collections.qemu.guest.tests.faults.testbed import FaultTestbed

PAUSED_SECONDS = 2.0
SNAPSHOT = "before-all"

# In each boot: an agent that is killed stays dead, as without systemd.
PREPARE_BOOT = """
set -e
mkdir -p /run/systemd/system/qemu-guest-agent.service.d
printf '[Service]\\nRestart=no\\n' >/run/systemd/system/qemu-guest-agent.service.d/faults.conf
systemctl daemon-reload
"""
# What an operation does must be on the disk at once: a reset takes what is not.
PREPARE = f"""
set -e
: >{EFFECTS}
chmod 0666 {EFFECTS}
chattr -R +S /srv
rm -f /srv/put-*
"""
FETCHABLE = f"import hashlib; open({FETCHED!r}, 'wb').write({CONTENT.format('fetched')})"
# Who writes to a frozen filesystem is stopped until that is thawed.
IS_FROZEN = (
    "rm -f /run/thawed; (: >/srv/probe && rm /srv/probe && : >/run/thawed) & sleep 3; ls /run/thawed 2>/dev/null || :"
)


class BootedGuest(RealGuest):
    """A booted ``vm`` with snapshots. Emulated, all takes it several times as long."""

    slowness = 4.0

    def __init__(self, vm: Guest) -> None:
        super().__init__(vm)
        self.vm = vm
        self.booted = ""
        """The boot that a reboot ends, by its id."""

    def prepare(self) -> None:
        look(self.vm, PREPARE)
        look(self.vm, f"/usr/bin/python3 -c {shlex.quote(FETCHABLE)}")
        self._prepare_boot()

    def _prepare_boot(self) -> None:
        look(self.vm, PREPARE_BOOT)
        self.vm.save(SNAPSHOT)

    def effects(self, task: Task, wanted: Container[int]) -> tuple[int, str]:
        if task.operation == "freeze":
            return self._frozen()
        return super().effects(task, wanted)

    def _frozen(self) -> tuple[int, str]:
        """Return whether the guest is frozen, as its kernel has it, and thaw it."""
        frozen = not look(self.vm, IS_FROZEN)
        with open_agent(str(self.channel), 60) as agent:
            agent.execute("guest-fsfreeze-thaw")
        until(lambda: look(self.vm, "ls /run/thawed 2>/dev/null || :"), 60, "the guest is thawed")
        return int(frozen), ""

    def is_up(self) -> None:
        """Wait until the guest has booted, and make what is gone then. What operations did stays, and is counted."""
        self.vm.wait_booted()
        self.vm.wait_agent()
        self._prepare_boot()


def _booted(testbed: FaultTestbed) -> BootedGuest:
    assert isinstance(testbed.guest, BootedGuest)
    return testbed.guest


def _pause(testbed: FaultTestbed) -> None:
    vm = _booted(testbed).vm
    vm.qmp("stop")
    threading.Timer(PAUSED_SECONDS, vm.qmp, ("cont",)).start()


def _is_up(testbed: FaultTestbed) -> None:
    _booted(testbed).is_up()


BOOT = "cat /proc/sys/kernel/random/boot_id"


def _reboot(testbed: FaultTestbed) -> None:
    guest = _booted(testbed)
    guest.booted = look(guest.vm, BOOT)
    look(guest.vm, "(sleep 1; systemctl reboot) </dev/null >/dev/null 2>&1 &")


def _has_rebooted(testbed: FaultTestbed) -> None:
    """Wait for the next boot: a guest that is about to go down still answers."""
    guest = _booted(testbed)

    def is_another() -> bool:
        try:
            return look(guest.vm, BOOT) != guest.booted
        except LabError:  # in between
            return False

    until(is_another, 300, "the guest has rebooted")
    guest.is_up()


def _migrate(testbed: FaultTestbed) -> None:
    _booted(testbed).vm.migrate()
    testbed.channel.hang_up()


def _kill_qemu(testbed: FaultTestbed) -> None:
    _booted(testbed).vm.kill()
    testbed.channel.hang_up()


def _start_qemu(testbed: FaultTestbed) -> None:
    vm = _booted(testbed).vm
    vm.stop()
    vm.start()
    _is_up(testbed)


def _in_guest(command: str) -> Callable[[FaultTestbed], object]:
    return lambda testbed: look(_booted(testbed).vm, command)


_AGENT = "$(pidof qemu-ga)"
_START = _in_guest("systemctl start qemu-guest-agent")

INJECTIONS: Mapping[str, Injection] = {
    "agent killed": Injection(_in_guest(f"kill -KILL {_AGENT}"), _START),
    "agent stopped": Injection(_in_guest(f"kill -STOP {_AGENT}; (sleep 2; kill -CONT {_AGENT}) >/dev/null 2>&1 &")),
    "agent restarted": Injection(_in_guest(f"kill -KILL {_AGENT}; systemctl start qemu-guest-agent")),
    "guest paused": Injection(_pause),
    "guest reset": Injection(lambda testbed: _booted(testbed).vm.qmp("system_reset"), _is_up),
    "guest rebooted": Injection(_reboot, _has_rebooted),
    "guest rolled back": Injection(lambda testbed: _booted(testbed).vm.revert(SNAPSHOT)),
    "guest migrated": Injection(_migrate, dies=True),
    "QEMU killed": Injection(_kill_qemu, _start_qemu, dies=True),
    "clock forwards": Injection(_in_guest("date -s '+1 hour'"), _in_guest("date -s '-1 hour'")),
    "clock backwards": Injection(_in_guest("date -s '-1 hour'"), _in_guest("date -s '+1 hour'")),
}
