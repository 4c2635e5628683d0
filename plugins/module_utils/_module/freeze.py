# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freeze and thaw a guest, so that whatever fails, it does not stay frozen.

``params`` are those options of a module that SPEC names.
"""

from __future__ import annotations

import os
import select
from contextlib import contextmanager, suppress
from typing import Any, Iterator, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Params
from ansible_collections.qemu.guest.plugins.module_utils._module.stacked import refuse_stacked
from ansible_collections.qemu.guest.plugins.module_utils._module.thaw_timer import (
    RETRY_SECONDS,
    Armed,
    Timer,
    arm,
    disarm,
)

__all__ = ("SPEC", "Frozen", "freeze", "freeze_status", "frozen", "keep_frozen", "ready_to_freeze", "thaw")

SPEC: dict[str, dict[str, Any]] = {
    "mountpoints": {"type": "list", "elements": "str"},
    "thaw_after": {"type": "float"},
    "allow_stacked": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 300},
}

_BY_HAND = (
    "By hand: ansible HOST -m qemu.guest.qga_fsfreeze -a state=thawed (on a hypervisor with address=… too); or on the "
    "guest's console, fsfreeze --unfreeze with each mount point."
)


class _NothingFrozenError(OperationError):
    """The agent froze nothing, so there is nothing of ours to thaw."""


def freeze_status(agent: Agent) -> str:
    """Return what the agent says, C(frozen) or C(thawed).

    :raise ProtocolError: if it says anything else.
    """
    status = agent.execute("guest-fsfreeze-status")
    if status not in ("thawed", "frozen"):
        raise ProtocolError(f"the agent says that the status is {status[:80]!r}.", command="guest-fsfreeze-status")
    return str(status)


def ready_to_freeze(agent: Agent, params: Params) -> str:
    """Check that the guest can be frozen and thawed, and return its status: C(thawed), or C(frozen) if it is already.

    :raise QgaError: if it cannot.
    """
    if params["mountpoints"] is not None and not params["mountpoints"]:
        raise OperationError("mountpoints is empty, so nothing would be frozen. Without it, all filesystems are.")
    now = freeze_status(agent)
    agent.refresh_info()  # if the agent was restarted and does not thaw any more, that must show before the freeze
    agent.require("guest-fsfreeze-thaw")
    if now == "thawed":
        agent.require(_freeze_command(params))
        if not params["allow_stacked"]:
            refuse_stacked(agent, params["mountpoints"])
    return now


def _freeze_command(params: Params) -> str:
    return "guest-fsfreeze-freeze" if params["mountpoints"] is None else "guest-fsfreeze-freeze-list"


class Frozen(NamedTuple):
    """What was frozen, and what thaws it if its task dies."""

    filesystems: int
    armed: Armed
    parent: int

    def is_waited_for(self) -> bool:
        """Return whether the run that asked for it lives still, as far as this process can see.

        A module on a machine that is reached over ssh is not ended with its run, nor is a worker of one that is killed.
        """
        poller = select.poll()
        poller.register(1, 0)  # that nobody reads this process's output is always told
        return os.getppid() == self.parent and not poller.poll(0)


@contextmanager
def frozen(agent: Agent, params: Params) -> Iterator[Frozen]:
    """Freeze a guest that is thawed, for a block that thaws it or leaves its timer.

    If this process dies in the block, or before the agent has told that it froze, the timer thaws at once.

    :raise QgaError: if freezing failed. The guest is thawed then, or the error says that it may be frozen.
    """
    seconds, parent = params["thaw_after"] or 0, os.getppid()
    # Armed before the freeze is sent: after that, only the timer may be left to thaw.
    armed = arm(agent, seconds)
    with armed.line:
        try:
            count = _frozen(agent, params, min(params["timeout"], seconds or params["timeout"]))
        except QgaError as exc:
            if exc.command == _freeze_command(params) and exc.executed == "no":
                # Not ours to thaw: if the guest is frozen, another client was faster.
                _end(agent, armed)
                raise
            undone = _undone(agent, exc, armed)
            if exc.command == "guest-fsfreeze-status":  # a question after the freeze, which was run
                undone.result["error"].update(command=_freeze_command(params), executed="yes")
            raise undone from exc
        yield Frozen(count, armed, parent)


def freeze(agent: Agent, params: Params) -> dict[str, Any]:
    """Freeze a guest that is thawed, and leave it so; return ``count``, and the timer if one was armed.

    :raise QgaError: as L(frozen) does.
    """
    with frozen(agent, params) as done:
        if not done.is_waited_for():
            raise OperationError("the run of this task has ended meanwhile, so the guest is thawed.")
        return {"count": done.filesystems, **_left(agent, done.armed)}


def keep_frozen(agent: Agent, seconds: float | None) -> dict[str, Any]:
    """Arm a timer for a guest that is frozen already; without ``seconds``, see that no task's that died thaws it."""
    if seconds:
        return _left(agent, arm(agent, seconds))
    disarm(agent, if_without_deadline=True)
    return {}


def _left(agent: Agent, armed: Armed) -> dict[str, Any]:
    """Leave the guest frozen; return the timer as a member of a task's result, if it has a deadline."""
    if armed.timer.seconds:
        armed.leave()
    else:
        _end(agent, armed)
    return _shown(armed.timer)


def _end(agent: Agent, armed: Armed) -> None:
    """End a timer that is not needed any more."""
    armed.end()
    with suppress(OperationError):  # without room for its file, that names a timer which has ended
        disarm(agent)


def _frozen(agent: Agent, params: Params, timeout: float) -> int:
    """Freeze, and return the number of frozen filesystems.

    :raise QgaError: if the guest is not frozen as asked, or may not be.
    """
    points = params["mountpoints"]
    arguments = None if points is None else {"mountpoints": points}
    count = int(agent.execute(_freeze_command(params), arguments, timeout=timeout))
    if points is not None and count < len(set(points)):
        raise (OperationError if count else _NothingFrozenError)(
            f"the guest froze {count} of {len(set(points))} mount points ({', '.join(points)}). Each must be the mount "
            "point of a filesystem that can be frozen and is not frozen already."
        )
    if count == 0:
        raise _NothingFrozenError("the guest found no filesystem to freeze.")
    if freeze_status(agent) != "frozen":
        raise OperationError(f"the guest froze {count} filesystems, and they did not stay so: its status is thawed.")
    return count


def _undone(agent: Agent, exc: QgaError, armed: Armed) -> OperationError:
    """Thaw after a freeze that failed, or may have failed; return an error with the outcome."""
    # If nothing was frozen, do not thaw: that would thaw filesystems frozen by other means than the agent. Else thaw
    # whatever the status is: it need not cover all frozen filesystems.
    if not isinstance(exc, _NothingFrozenError) or _status_if_told(agent) != "thawed":
        with suppress(QgaError):  # the status below shows whether it worked
            agent.execute("guest-fsfreeze-thaw")
    status = _status_if_told(agent)
    result = {"status_before": "thawed", "status_after": status, **exc.as_result()}
    if status == "thawed":
        _end(agent, armed)
        exc.hint = "The guest's filesystems are thawed."
        return OperationError(exc.text_at(agent.name), result=result)
    exc.hint = f"THE GUEST MAY BE FROZEN: its status is {status}."
    return OperationError(
        f"{exc.text_at(agent.name)} The process {armed.timer.pid} on this machine goes on trying to thaw it, for "
        f"{RETRY_SECONDS / 60:g} minutes. {_BY_HAND}",
        result={**result, "thaw_timer": armed.timer.as_result()},
    )


def thaw(agent: Agent, before: str, timeout: float) -> dict[str, Any]:
    """Thaw a guest whose status was ``before``, and disarm its timer; return the results of qga_fsfreeze.

    :raise OperationError: if that failed. It says whether the guest may be frozen.
    """
    count, trouble = None, None
    try:
        count = int(agent.execute("guest-fsfreeze-thaw", timeout=timeout))
    except QgaError as exc:
        trouble = exc
    status = _status_if_told(agent)
    changed = before == "frozen" or bool(count)
    result = {"changed": changed, "count": count, "status_before": before, "status_after": status}
    if status != "thawed":
        trouble = trouble or OperationError(f"the guest thawed {count} filesystems, and its status is {status}.")
        trouble.hint = f"THE GUEST MAY BE FROZEN: its status is {status}. A timer that is armed stays so. {_BY_HAND}"
        raise OperationError(trouble.text_at(agent.name), result={**result, **trouble.as_result()})
    timer = disarm(agent)
    result.update(_shown(timer))
    if trouble and not isinstance(trouble, OutcomeUnknownError):
        if not isinstance(trouble, CommandUnavailable):
            trouble.hint = "The guest's filesystems are thawed, but a hook of its administrator may not have run."
        raise OperationError(trouble.text_at(agent.name), result={**result, **trouble.as_result()})
    warnings = [f"{trouble.message}; the guest's status is thawed"] if trouble else []
    return {**result, "warnings": [*warnings, *([] if changed else _too_late(timer))]}


def _status_if_told(agent: Agent) -> str:
    try:
        return freeze_status(agent)
    except QgaError:
        return "unknown"


def _too_late(timer: Timer | None) -> list[str]:
    """Return a warning if the timer had thawed the guest already."""
    if not timer or not timer.fired:
        return []
    return [f"the timer thawed the guest at {timer.fired}: what was done after that, was not done to a frozen guest."]


def _shown(timer: Timer | None) -> dict[str, Any]:
    """Return the timer as a member of a task's result, if it has a deadline, or thawed a guest whose task died."""
    return {"thaw_timer": timer.as_result()} if timer and (timer.seconds or timer.fired) else {}
