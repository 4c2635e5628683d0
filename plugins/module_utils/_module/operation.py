# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operation: the form of every module of this collection, and the one function that runs them.

A module reads the guest, plans, and applies the plan. Check mode, ``changed``, and the diff follow from the plan here,
so no module writes them by hand. The same Operation runs on a hypervisor (run.py) and in the controller
(plugin_utils/_action.py).
"""

from __future__ import annotations

import math
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    OperationError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import printable, returnable
from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import is_read_only

__all__ = ("COMMON", "Operation", "Params", "Plan", "run_operation")

Params = Mapping[str, Any]

COMMON: dict[str, dict[str, Any]] = {
    "address": {"type": "str"},
    "agent_timeout": {"type": "float"},
    "frozen_timeout": {"type": "float"},
    "libvirt_uri": {"type": "str"},
}
"""The options that every module has: where the agent is."""

# The options above that may be 0 seconds.
MAY_BE_ZERO = ("frozen_timeout",)

# ansible-core's own limit for a file's content in a diff.
DIFF_LIMIT = 104448


class Plan(NamedTuple):
    """The guest's present state, the desired state, and the work to get there.

    ``before`` and ``after`` describe the guest in the words of the module's return values; a difference is a change.
    ``changed`` overrides that for actions that are done in any state (True). ``todo`` is for ``apply``;
    ``always``: call ``apply`` even without a change, for work that does not change the guest. ``result`` is always
    returned. ``texts``: content before and after, for a line-by-line diff; ``subject``: the header of the diff.
    ``unforeseeable``: nobody knows what the work changes, so check mode skips the task.
    """

    before: Mapping[str, Any] = {}
    after: Mapping[str, Any] = {}
    changed: bool | None = None
    always: bool = False
    todo: Any = None
    result: Mapping[str, Any] = {}
    warnings: Sequence[str] = ()
    subject: str = ""
    texts: tuple[str, str] | None = None
    unforeseeable: bool = False

    @property
    def changes(self) -> bool:
        return self.before != self.after if self.changed is None else self.changed

    def diff(self) -> Sequence[Mapping[str, Any]]:
        """Return the diff as ansible-core shows it."""
        headers = {"before_header": self.subject, "after_header": self.subject} if self.subject else {}
        diffs: list[Mapping[str, Any]] = []
        if self.texts and self.texts[0] != self.texts[1]:
            diffs.append({"before": self.texts[0], "after": self.texts[1], **headers})
        if self.before != self.after:
            diffs.append({"before": dict(self.before), "after": dict(self.after), **headers})
        return diffs


def _nothing_to_apply(agent: Agent, plan: Plan) -> Mapping[str, Any]:
    return {}


class Operation(NamedTuple):
    """A module.

    ``spec`` is its argument spec; ``constraints`` AnsibleModule's other arguments (``mutually_exclusive``, …).
    ``read`` returns the guest's state; ``plan`` is pure; ``apply`` carries out the plan and returns more results, with
    any warnings under ``warnings``.
    Options named in ``quiet`` are neither logged nor returned, but unlike C(no_log) secrets they are not hidden in the
    result: a file's content must still show in its diff. ``local_files`` names the options that are paths on the
    machine where the operation runs, ``local_targets`` those that need not exist there. Each option of the type float
    is a number of seconds greater than 0, except those named in ``may_be_zero``. ``runs_programs``: the user that
    programs run as matters. With an ``executor``, which makes an Executor for an Agent, ``read`` and
    ``apply`` get that Executor instead of the Agent.
    """

    spec: Mapping[str, Mapping[str, Any]]
    read: Callable[[Any, Params], Any]
    plan: Callable[[Any, Params], Plan]
    apply: Callable[[Any, Plan], Mapping[str, Any]] = _nothing_to_apply
    constraints: Mapping[str, Any] = {}
    quiet: Sequence[str] = ()
    local_files: Sequence[str] = ()
    local_targets: Sequence[str] = ()
    may_be_zero: Sequence[str] = ()
    runs_programs: bool = False
    executor: Callable[[Agent], Any] | None = None


def run_operation(
    operation: Operation,
    agent: Agent,
    params: Params,
    *,
    executor: Any = None,
    check_mode: bool = False,
    diff: bool = False,
) -> dict[str, Any]:
    """Run ``operation`` and return the task's result. ``executor`` runs its programs; None: the operation's own.

    :raise QgaError: from read and apply, or before anything is sent, for an invalid number of seconds.
    """
    _check_seconds(operation, params)
    given = (executor or operation.executor(agent)) if operation.executor else agent
    with agent.named():
        return _run(operation, agent, given, params, check_mode=check_mode, diff=diff)


def _run(
    operation: Operation, agent: Agent, given: Any, params: Params, *, check_mode: bool, diff: bool
) -> dict[str, Any]:
    plan = operation.plan(operation.read(given, params), params)
    result: dict[str, Any] = {"changed": plan.changes, **plan.result}
    warnings = list(plan.warnings)
    if diff and plan.diff():
        result["diff"] = list(plan.diff())
    if (plan.changes or plan.always) and not check_mode:
        agent.changed_by = ""
        try:
            applied = dict(operation.apply(given, plan))
        except QgaError as exc:
            raise _afterwards(exc, agent, plan) from None
        warnings += applied.pop("warnings", ())
        result.update(applied)
    elif plan.changes and plan.unforeseeable:
        result.update(changed=False, skipped=True)
    if warnings:
        # The guest's name makes warnings distinct: ansible-core shows identical ones once.
        result["warnings"] = [printable(f"{agent.name}: {warning}") for warning in warnings]
    return dict(returnable(result))


def _afterwards(exc: QgaError, agent: Agent, plan: Plan) -> QgaError:
    """Return the error of a task that could not go on; if it had changed the guest by then, that is told.

    An error of the next command alone would read as if nothing was done.
    """
    change = agent.changed_by
    if not change or not (exc.executed == "no" or is_read_only(exc.command or "")):
        return exc
    exc.hint = f"{exc.hint} Look at the guest before you repeat it.".lstrip()
    what = "" if exc.told_fate else "the task could not go on: "
    error = {"type": type(exc).__name__, "command": change, "executed": "yes"}
    return OperationError(
        f"{change} was run, and then {what}{exc.text_at(agent.name)}",
        result={"changed": plan.changes, "error": error},
    )


def _check_seconds(operation: Operation, params: Params) -> None:
    for name, option in {**COMMON, **operation.spec}.items():
        value = params.get(name)
        if option["type"] != "float" or value is None:
            continue
        may_be_zero = name in (*MAY_BE_ZERO, *operation.may_be_zero)
        if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
            least = "of at least" if may_be_zero else "greater than"
            raise OperationError(f"{name}: {value:g} is not a number of seconds {least} 0.")
