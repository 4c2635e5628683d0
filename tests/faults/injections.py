# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that are injected into agents, processes and disks in the middle of an operation, and reverted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ansible_collections.qemu.guest.tests.faults.guests import RealGuest
from ansible_collections.qemu.guest.tests.faults.matrix import Cell
from ansible_collections.qemu.guest.tests.integration.harness import look
from lab import image
from lab.agent import LooseAgent

if TYPE_CHECKING:
    from ansible_collections.qemu.guest.tests.faults.testbed import FaultTestbed

STOPPED_SECONDS = 2.0
_RUNNER = "/run/qemu-guest-runner"


class Injection(NamedTuple):
    """Injects a fault, and reverts it after the operation. ``dies``: the agent does, with what it has to say."""

    inject: Callable[[FaultTestbed], object]
    revert: Callable[[FaultTestbed], object] = lambda testbed: None
    dies: bool = False


def _real(testbed: FaultTestbed) -> RealGuest:
    assert isinstance(testbed.guest, RealGuest)
    return testbed.guest


def _loose(testbed: FaultTestbed) -> LooseAgent:
    subject = _real(testbed).subject
    assert isinstance(subject, LooseAgent)
    return subject


def _restart(testbed: FaultTestbed) -> None:
    _loose(testbed).restart()


def _kill_agent(testbed: FaultTestbed) -> None:
    testbed.signal(_loose(testbed).pid, signal.SIGKILL)


def _stop_agent(testbed: FaultTestbed) -> None:
    pid = _loose(testbed).pid
    testbed.signal(pid, signal.SIGSTOP)
    threading.Timer(STOPPED_SECONDS, testbed.signal, (pid, signal.SIGCONT)).start()


def _continue_agent(testbed: FaultTestbed) -> None:
    testbed.signal(_loose(testbed).pid, signal.SIGCONT)


# The other release's agent with its own libraries, in place of this one's: PATH has it first. Its name is the agent's,
# by which it is found.
_UPGRADE = r"""
set -e
mkdir -p /opt/upgrade
tar -xC /opt/upgrade
cat >/usr/local/sbin/qemu-ga <<'END'
#!/bin/sh
exec /opt/upgrade/qemu-ga --library-path /opt/upgrade/lib /opt/upgrade/program "$@"
END
chmod 0755 /usr/local/sbin/qemu-ga
"""


def _upgrade(testbed: FaultTestbed) -> None:
    agent = _loose(testbed)
    oldest, *_between, newest = image.RELEASES
    _real(testbed).bring_agent(newest if agent.release != newest else oldest, _UPGRADE)
    agent.restart()


def _downgrade(testbed: FaultTestbed) -> None:
    look(_real(testbed).subject, "rm -f /usr/local/sbin/qemu-ga")
    _restart(testbed)


def _kill(pids: str) -> Callable[[FaultTestbed], object]:
    """Return what kills the processes in the guest that a shell word names."""
    return lambda testbed: look(_real(testbed).subject, f"kill -KILL {pids} 2>/dev/null || true")


def _kill_mux(testbed: FaultTestbed) -> None:
    for words in map(str.split, testbed.look()):
        if words[0] == "process" and words[2] == "qga-mux":
            testbed.signal(int(words[1]), signal.SIGKILL)


def _kill_controller(testbed: FaultTestbed) -> None:
    testbed.signal(testbed.running, signal.SIGKILL)


def _take_channel(testbed: FaultTestbed) -> None:
    testbed.channel.taken = True


def _leave_channel(testbed: FaultTestbed) -> None:
    testbed.channel.taken = False


def _in_guest(do: str, undo: str) -> Injection:
    return Injection(
        lambda testbed: look(_real(testbed).subject, do), lambda testbed: look(_real(testbed).subject, undo)
    )


def _full(directory: str) -> Injection:
    return _in_guest(f"dd if=/dev/zero of={directory}/full bs=64k 2>/dev/null || true", f"rm -f {directory}/full")


# What is open already can still be written to: nothing else can be done to a filesystem in use. It becomes read-only
# where nobody can open a file, because a mount with a file that is open for writing cannot.
_SEAL = (
    "t=$(mktemp -d) && mount --bind $d $t && mount -o remount,bind,ro $t && mount --bind $t $d && umount $t && rmdir $t"
)
_UNSEAL = "umount $d"


def _read_only(directory: str) -> Injection:
    return _in_guest(f"d={directory}; {_SEAL}", f"d={directory}; {_UNSEAL}")


def _here(do: str, undo: str) -> Injection:
    """Return an injection to both filesystems of the controller, each named $d."""

    def told(command: str) -> Callable[[FaultTestbed], object]:
        return lambda testbed: testbed.here(f"for d in /run/qemu-guest {testbed.tasks}; do {command}; done")

    return Injection(told(do), told(undo))


INJECTIONS: dict[str, Injection] = {
    "agent killed": Injection(_kill_agent, _restart, dies=True),
    "agent stopped": Injection(_stop_agent, _continue_agent),
    "agent restarted": Injection(_restart, dies=True),
    "agent upgraded": Injection(_upgrade, _downgrade, dies=True),
    "mux killed": Injection(_kill_mux),
    "runner killed": Injection(_kill(f"$(cat {_RUNNER}/[0-9]*/pid)")),
    "warm server killed": Injection(_kill(f"$(cat {_RUNNER}/warm-*/pid)")),
    "interpreter killed": Injection(_kill(f"$(pgrep -P $(cat {_RUNNER}/warm-*/pid))")),
    "controller killed": Injection(_kill_controller),
    "channel taken": Injection(_take_channel, _leave_channel),
    "/run full": _full("/run"),
    "/run read-only": _read_only("/run"),
    "disk full": _full("/srv"),
    "disk read-only": _read_only("/srv"),
    "controller's disk full": _here("dd if=/dev/zero of=$d/full bs=64k 2>/dev/null || true", "rm -f $d/full"),
    "controller's disk read-only": _here(_SEAL, _UNSEAL),
}


def can_come_first(cell: Cell) -> bool:
    """Return whether a fault can be there before the operation begins."""
    return cell.fault.name in ("twenty clients", *INJECTIONS) and cell.fault.name != "controller killed"
