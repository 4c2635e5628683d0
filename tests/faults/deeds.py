# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to agents, processes and disks in the middle of an operation, and how it is undone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ansible_collections.qemu.guest.tests.faults.matrix import Cell
from ansible_collections.qemu.guest.tests.faults.places import RealPlace
from ansible_collections.qemu.guest.tests.integration.harness import look
from lab import image
from lab.agent import LooseAgent

if TYPE_CHECKING:
    from ansible_collections.qemu.guest.tests.faults.scene import Scene

STOPPED_SECONDS = 2.0
_RUNNER = "/run/qemu-guest-runner"


class Deed(NamedTuple):
    """What is done, and undone once the operation has ended. ``dies``: the agent does, with what it has to say."""

    do: Callable[[Scene], object]
    undo: Callable[[Scene], object] = lambda scene: None
    dies: bool = False


def _real(scene: Scene) -> RealPlace:
    assert isinstance(scene.place, RealPlace)
    return scene.place


def _loose(scene: Scene) -> LooseAgent:
    subject = _real(scene).subject
    assert isinstance(subject, LooseAgent)
    return subject


def _restart(scene: Scene) -> None:
    _loose(scene).restart()


def _kill_agent(scene: Scene) -> None:
    scene.signal(_loose(scene).pid, signal.SIGKILL)


def _stop_agent(scene: Scene) -> None:
    pid = _loose(scene).pid
    scene.signal(pid, signal.SIGSTOP)
    threading.Timer(STOPPED_SECONDS, scene.signal, (pid, signal.SIGCONT)).start()


def _continue_agent(scene: Scene) -> None:
    scene.signal(_loose(scene).pid, signal.SIGCONT)


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


def _upgrade(scene: Scene) -> None:
    agent = _loose(scene)
    oldest, *_between, newest = image.RELEASES
    _real(scene).bring_agent(newest if agent.release != newest else oldest, _UPGRADE)
    agent.restart()


def _downgrade(scene: Scene) -> None:
    look(_real(scene).subject, "rm -f /usr/local/sbin/qemu-ga")
    _restart(scene)


def _kill(pids: str) -> Callable[[Scene], object]:
    """Return what kills the processes in the guest that a shell word names."""
    return lambda scene: look(_real(scene).subject, f"kill -KILL {pids} 2>/dev/null || true")


def _kill_mux(scene: Scene) -> None:
    for words in map(str.split, scene.look()):
        if words[0] == "process" and words[2] == "qga-mux":
            scene.signal(int(words[1]), signal.SIGKILL)


def _kill_controller(scene: Scene) -> None:
    scene.signal(scene.running, signal.SIGKILL)


def _take_channel(scene: Scene) -> None:
    scene.channel.taken = True


def _leave_channel(scene: Scene) -> None:
    scene.channel.taken = False


def _in_guest(do: str, undo: str) -> Deed:
    return Deed(lambda scene: look(_real(scene).subject, do), lambda scene: look(_real(scene).subject, undo))


def _full(directory: str) -> Deed:
    return _in_guest(f"dd if=/dev/zero of={directory}/full bs=64k 2>/dev/null || true", f"rm -f {directory}/full")


# What is open already can still be written to: nothing else can be done to a filesystem in use. It becomes read-only
# where nobody can open a file, because a mount with a file that is open for writing cannot.
_SEAL = (
    "t=$(mktemp -d) && mount --bind $d $t && mount -o remount,bind,ro $t && mount --bind $t $d && umount $t && rmdir $t"
)
_UNSEAL = "umount $d"


def _read_only(directory: str) -> Deed:
    return _in_guest(f"d={directory}; {_SEAL}", f"d={directory}; {_UNSEAL}")


def _here(do: str, undo: str) -> Deed:
    """Return a deed to both filesystems of the controller, each named $d."""

    def told(command: str) -> Callable[[Scene], object]:
        return lambda scene: scene.here(f"for d in /run/qemu-guest {scene.tasks}; do {command}; done")

    return Deed(told(do), told(undo))


DEEDS: dict[str, Deed] = {
    "agent killed": Deed(_kill_agent, _restart, dies=True),
    "agent stopped": Deed(_stop_agent, _continue_agent),
    "agent restarted": Deed(_restart, dies=True),
    "agent upgraded": Deed(_upgrade, _downgrade, dies=True),
    "mux killed": Deed(_kill_mux),
    "runner killed": Deed(_kill(f"$(cat {_RUNNER}/[0-9]*/pid)")),
    "warm server killed": Deed(_kill(f"$(cat {_RUNNER}/warm-*/pid)")),
    "interpreter killed": Deed(_kill(f"$(pgrep -P $(cat {_RUNNER}/warm-*/pid))")),
    "controller killed": Deed(_kill_controller),
    "channel taken": Deed(_take_channel, _leave_channel),
    "/run full": _full("/run"),
    "/run read-only": _read_only("/run"),
    "disk full": _full("/srv"),
    "disk read-only": _read_only("/srv"),
    "controller's disk full": _here("dd if=/dev/zero of=$d/full bs=64k 2>/dev/null || true", "rm -f $d/full"),
    "controller's disk read-only": _here(_SEAL, _UNSEAL),
}


def can_come_first(cell: Cell) -> bool:
    """Return whether a fault can be there before the operation begins."""
    return cell.fault.name in ("twenty clients", *DEEDS) and cell.fault.name != "controller killed"
