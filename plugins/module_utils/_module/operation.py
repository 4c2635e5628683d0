# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operation: what every module of this collection is, and the one place that runs them.

A module reads the guest, plans, and applies the plan. Check mode, ``changed``, and the diff follow from the plan here,
so no module writes them by hand. The same Operation runs on a hypervisor (run.py) and in the controller
(plugins/action/qga.py).
"""

from __future__ import annotations

import math
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import printable, returnable

__all__ = ("COMMON", "Operation", "Params", "Plan", "run_operation")

Params = Mapping[str, Any]

COMMON: dict[str, dict[str, Any]] = {
    "address": {"type": "str"},
    "agent_timeout": {"type": "float"},
    "frozen_timeout": {"type": "float"},
    "libvirt_uri": {"type": "str"},
}
"""The options that every module has: where the agent is."""

# Of these options, those for which no time at all makes sense.
MAY_BE_ZERO = ("frozen_timeout",)

# ansible-core's own limit for what a diff shows of a file.
DIFF_LIMIT = 104448


class Plan(NamedTuple):
    """What is, and what is to be.

    ``before`` and ``after`` describe the guest in the words of the module's return values; where they differ,
    something is to change. ``changed`` overrides that for actions that are done whatever the state is (True). ``todo``
    is what ``apply`` needs to know, and ``always`` has it called even where nothing changes: it has something to do
    that is no change of the guest. ``result`` is returned in any case. ``texts``: content before and after, for a
    line-by-line diff, and ``subject`` names what the diff is about.
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

    ``spec`` is its argument spec; ``constraints`` the rest that AnsibleModule knows (``mutually_exclusive``, …).
    ``read`` returns the guest's state; ``plan`` is pure; ``apply`` makes the plan true and returns what it learned,
    with what there is to warn of under ``warnings``.
    The values of the options named in ``quiet`` are neither logged nor returned, without being secrets to hide in the
    result as C(no_log) ones are: a file's content must still show in its diff. ``local_files`` names the options that
    are paths on the machine where the operation runs. Each option of the type float is a number of seconds greater than
    0, but for those named in ``may_be_zero``. ``runs_programs`` tells that whom a program runs as matters. Where
    there is an ``executor``, which makes one for an Agent, ``read`` and ``apply`` get that Executor instead of it.
    """

    spec: Mapping[str, Mapping[str, Any]]
    read: Callable[[Any, Params], Any]
    plan: Callable[[Any, Params], Plan]
    apply: Callable[[Any, Plan], Mapping[str, Any]] = _nothing_to_apply
    constraints: Mapping[str, Any] = {}
    quiet: Sequence[str] = ()
    local_files: Sequence[str] = ()
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
    """Run ``operation`` and return the task's result. It uses ``executor`` where it runs programs; None: its own.

    :raise QgaError: as read and apply do, or before anything is sent, for a number of seconds that makes no sense.
    """
    _check_seconds(operation, params)
    given = (executor or operation.executor(agent)) if operation.executor else agent
    plan = operation.plan(operation.read(given, params), params)
    result: dict[str, Any] = {"changed": plan.changes, **plan.result}
    warnings = list(plan.warnings)
    if diff and plan.diff():
        result["diff"] = list(plan.diff())
    if (plan.changes or plan.always) and not check_mode:
        applied = dict(operation.apply(given, plan))
        warnings += applied.pop("warnings", ())
        result.update(applied)
    if warnings:
        # With the guest's name: of warnings that are alike, ansible-core shows one only.
        result["warnings"] = [printable(f"{agent.name}: {warning}") for warning in warnings]
    return dict(returnable(result))


def _check_seconds(operation: Operation, params: Params) -> None:
    for name, option in {**COMMON, **operation.spec}.items():
        value = params.get(name)
        if option["type"] != "float" or value is None:
            continue
        may_be_zero = name in (*MAY_BE_ZERO, *operation.may_be_zero)
        if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
            least = "of at least" if may_be_zero else "greater than"
            raise OperationError(f"{name}: {value:g} is not a number of seconds {least} 0.")
