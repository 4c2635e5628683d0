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
from ansible_collections.qemu.guest.tests.faults.deeds import Deed
from ansible_collections.qemu.guest.tests.faults.operations import CONTENT, EFFECTS, FETCHED, Task
from ansible_collections.qemu.guest.tests.faults.places import RealPlace
from ansible_collections.qemu.guest.tests.integration.harness import look, until
from lab.host import LabError
from lab.vm import Guest

if TYPE_CHECKING:
    from ansible_collections.qemu.guest.tests.faults.scene import Scene

PAUSED_SECONDS = 2.0
SNAPSHOT = "before-all"

# What an operation does must be on the disk at once: a reset takes what is not. An agent that is killed stays dead, as
# without systemd.
PREPARE = f"""
set -e
mkdir -p /run/systemd/system/qemu-guest-agent.service.d
printf '[Service]\\nRestart=no\\n' >/run/systemd/system/qemu-guest-agent.service.d/faults.conf
systemctl daemon-reload
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


class BootedPlace(RealPlace):
    """A booted ``guest`` with snapshots. Emulated, all takes it several times as long."""

    slowness = 4.0

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self.guest = guest
        self.booted = ""
        """The boot that a reboot ends, by its id."""

    def prepare(self) -> None:
        look(self.guest, PREPARE)
        look(self.guest, f"/usr/bin/python3 -c {shlex.quote(FETCHABLE)}")
        self.guest.save(SNAPSHOT)

    def effects(self, task: Task, wanted: Container[int]) -> tuple[int, str]:
        if task.operation == "freeze":
            return self._frozen()
        return super().effects(task, wanted)

    def _frozen(self) -> tuple[int, str]:
        """Return whether the guest is frozen, as its kernel has it, and thaw it."""
        frozen = not look(self.guest, IS_FROZEN)
        with open_agent(str(self.channel), 60) as agent:
            agent.execute("guest-fsfreeze-thaw")
        until(lambda: look(self.guest, "ls /run/thawed 2>/dev/null || :"), 60, "the guest is thawed")
        return int(frozen), ""

    def is_up(self) -> None:
        """Wait until the guest has booted, and make what is gone then."""
        self.guest.wait_booted()
        self.guest.wait_agent()
        self.prepare()


def _place(scene: Scene) -> BootedPlace:
    assert isinstance(scene.place, BootedPlace)
    return scene.place


def _pause(scene: Scene) -> None:
    guest = _place(scene).guest
    guest.qmp("stop")
    threading.Timer(PAUSED_SECONDS, guest.qmp, ("cont",)).start()


def _is_up(scene: Scene) -> None:
    _place(scene).is_up()


BOOT = "cat /proc/sys/kernel/random/boot_id"


def _reboot(scene: Scene) -> None:
    place = _place(scene)
    place.booted = look(place.guest, BOOT)
    look(place.guest, "(sleep 1; systemctl reboot) </dev/null >/dev/null 2>&1 &")


def _has_rebooted(scene: Scene) -> None:
    """Wait for the next boot: a guest that is about to go down still answers."""
    place = _place(scene)

    def is_another() -> bool:
        try:
            return look(place.guest, BOOT) != place.booted
        except LabError:  # in between
            return False

    until(is_another, 300, "the guest has rebooted")
    place.is_up()


def _migrate(scene: Scene) -> None:
    _place(scene).guest.migrate()
    scene.channel.hang_up()


def _kill_qemu(scene: Scene) -> None:
    _place(scene).guest.kill()
    scene.channel.hang_up()


def _start_qemu(scene: Scene) -> None:
    guest = _place(scene).guest
    guest.stop()
    guest.start()
    _is_up(scene)


def _in_guest(command: str) -> Callable[[Scene], object]:
    return lambda scene: look(_place(scene).guest, command)


_AGENT = "$(pidof qemu-ga)"
_START = _in_guest("systemctl start qemu-guest-agent")

DEEDS: Mapping[str, Deed] = {
    "agent killed": Deed(_in_guest(f"kill -KILL {_AGENT}"), _START),
    "agent stopped": Deed(_in_guest(f"kill -STOP {_AGENT}; (sleep 2; kill -CONT {_AGENT}) >/dev/null 2>&1 &")),
    "agent restarted": Deed(_in_guest(f"kill -KILL {_AGENT}; systemctl start qemu-guest-agent")),
    "guest paused": Deed(_pause),
    "guest reset": Deed(lambda scene: _place(scene).guest.qmp("system_reset"), _is_up),
    "guest rebooted": Deed(_reboot, _has_rebooted),
    "guest rolled back": Deed(lambda scene: _place(scene).guest.revert(SNAPSHOT)),
    "guest migrated": Deed(_migrate, dies=True),
    "QEMU killed": Deed(_kill_qemu, _start_qemu, dies=True),
    "clock forwards": Deed(_in_guest("date -s '+1 hour'"), _in_guest("date -s '-1 hour'")),
    "clock backwards": Deed(_in_guest("date -s '-1 hour'"), _in_guest("date -s '+1 hour'")),
}
