# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault matrix: what may become of each operation when a fault hits it. Tests hold the collection to this table.

An operation ends in one of four ways, or it hangs, which is never allowed:

    done       it says that it succeeded: what it does was done exactly once
    not run    its error says that nothing was done: nothing was
    failed     its error says that it ran, and not to the end: it did at most one thing
    unknown    its error says that it may have run: it was done once, or not at all

tests/tools/faults writes the table to docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

DONE, NOT_RUN, FAILED, UNKNOWN = "done", "not run", "failed", "unknown"
KILLED = "killed"
"""What became of an operation whose process was killed: there is nobody to say."""

SCRIPTED, AGENT, GUEST = "scripted", "agent", "guest"
"""Where a cell is tried: on a scripted agent, a real one without a guest, or one in a booted guest."""


class Operation(NamedTuple):
    """Something that a task does. ``uses``: what of it can be taken away; ``seconds``: what it takes by itself."""

    name: str
    about: str
    changes: bool
    uses: frozenset[str] = frozenset()
    seconds: float = 0.0


class Fault(NamedTuple):
    """Something that happens meanwhile, and how an operation that only reads, or one that changes, may end then.

    ``seconds`` is the deadline of an operation whose agent has three. ``hits``: only operations that use this.
    ``leaves``: what may be left behind, because nobody is there to take it away, or nobody knows of it. ``undoes``:
    what was done may be gone then. ``elsewhere``: why its cells are not tried here, but by a test of their own.
    """

    name: str
    about: str
    group: str
    reads: frozenset[str]
    changes: frozenset[str]
    seconds: float = 10.0
    where: str = AGENT
    hits: str = ""
    leaves: frozenset[str] = frozenset()
    undoes: bool = False
    elsewhere: str = ""


class Cell(NamedTuple):
    """One operation and one fault: how that may end, and where it is tried; or why it is not."""

    operation: Operation
    fault: Fault
    outcomes: frozenset[str]
    where: str
    why_not: str = ""

    @property
    def name(self) -> str:
        return f"{self.operation.name}, {self.fault.name}"

    @property
    def seconds(self) -> float:
        """The deadline."""
        return self.operation.seconds + self.fault.seconds


def _set(*words: str) -> frozenset[str]:
    return frozenset(words)


OPERATIONS = (
    Operation("sync", "guest-sync-delimited by qga_command", False),
    Operation("read", "a command that only reads: guest-get-osinfo by qga_command", False),
    Operation("change", "a command that changes the guest: guest-exec by qga_command", True),
    Operation("put", "put_file of the connection, 400 kB", True, _set("disk")),
    Operation("fetch", "fetch_file of the connection, 400 kB", False, _set("controller's disk")),
    Operation("guest-exec", "exec_command of the connection by guest-exec", True, _set("disk")),
    Operation("runner", "exec_command of the connection by the runner", True, _set("disk", "/run", "runner")),
    Operation(
        "warm",
        "exec_command of the connection with a module, by warm Python",
        True,
        _set("disk", "/run", "runner", "server", "interpreter"),
        15.0,  # a server that is started is waited for
    ),
    Operation("become", "exec_command of the connection with sudo to another user", True, _set("disk", "/run")),
    Operation("async", "a task with async and poll, by the command `ansible`", True, _set("disk", "/run"), 60.0),
    Operation("freeze", "qga_fsfreeze with state=frozen", True),
    Operation("wait", "qga_ping with wait", False),
)

_ALWAYS = _set(DONE)
_TOLD = _set(DONE, NOT_RUN, UNKNOWN)
_LOST = _set(DONE, NOT_RUN, FAILED, UNKNOWN)

LOST_HANDLE = "the handle of an open, read or close without a right reply"
HANDLE, FILE, SOCKET = "a handle", "a file", "a socket"
_LOST_HANDLE = _set(LOST_HANDLE)

FAULTS = (
    # What is added to the right reply, or comes late, is told from it.
    Fault("delayed", "the reply comes after 0.7 seconds", "reply", _ALWAYS, _ALWAYS),
    Fault("doubled", "the reply comes twice", "reply", _ALWAYS, _ALWAYS),
    Fault("stale", "the reply before comes again, then this one", "reply", _ALWAYS, _ALWAYS),
    Fault("another's", "a reply to another request comes, then this one", "reply", _ALWAYS, _ALWAYS),
    # No right reply comes.
    Fault("cut", "half the reply comes, then the channel closes", "reply", _TOLD, _LOST, leaves=_LOST_HANDLE),
    Fault("garbage", "what comes in place of the reply is not JSON", "reply", _TOLD, _LOST, leaves=_LOST_HANDLE),
    Fault("too long", "a line without end comes in place of the reply", "reply", _TOLD, _LOST, leaves=_LOST_HANDLE),
    Fault("deep", "the reply is nested 5,000 deep", "reply", _TOLD, _LOST, leaves=_LOST_HANDLE),
    Fault(
        "wrong type",
        "the reply returns a number where the schema has something else",
        "reply",
        _LOST,
        _LOST,
        leaves=_LOST_HANDLE,
    ),
    Fault("never", "the reply does not come", "reply", _TOLD, _LOST, leaves=_LOST_HANDLE),
    Fault("agent killed", "and not started again", "agent", _LOST, _LOST, 25.0, leaves=_set(HANDLE, FILE)),
    Fault("agent stopped", "for two seconds (SIGSTOP, SIGCONT)", "agent", _TOLD, _LOST),
    Fault("agent restarted", "its handles and programs are lost", "agent", _LOST, _LOST),
    Fault("agent upgraded", "restarted as another release", "agent", _LOST, _LOST),
    Fault("guest paused", "for a while, by QMP", "guest", _TOLD, _LOST, where=GUEST),
    Fault("guest reset", "by QMP", "guest", _LOST, _LOST, 25.0, where=GUEST, leaves=_set(FILE)),
    Fault("guest rebooted", "from within", "guest", _LOST, _LOST, 25.0, where=GUEST, leaves=_set(FILE)),
    Fault(
        "guest rolled back", "to a snapshot from before it, by loadvm", "guest", _LOST, _LOST, where=GUEST, undoes=True
    ),
    Fault(
        "guest migrated",
        "to another QEMU on this machine",
        "guest",
        _TOLD,
        _LOST,
        where=GUEST,
        leaves=_LOST_HANDLE,
    ),
    Fault("QEMU killed", "and not started again", "process", _TOLD, _LOST, where=GUEST, leaves=_set(FILE)),
    Fault(
        "libvirtd killed",
        "where the address is a domain's",
        "process",
        _TOLD,
        _LOST,
        where=GUEST,
        elsewhere="nothing can stand before the channel of a domain: tests/integration/guests/test_libvirt.py",
    ),
    Fault(
        "ssh killed",
        "where the guest is on another machine",
        "process",
        _TOLD,
        _LOST,
        where=GUEST,
        elsewhere="tests/integration/agents/test_hypervisor.py",
    ),
    Fault("mux killed", "the process that keeps channels open", "process", _TOLD, _TOLD, leaves=_set(SOCKET)),
    Fault("runner killed", "in the guest", "process", _LOST, _LOST, hits="runner"),
    Fault("warm server killed", "in the guest", "process", _LOST, _LOST, hits="server"),
    Fault("interpreter killed", "in the guest", "process", _LOST, _LOST, hits="interpreter"),
    Fault(
        "controller killed",
        "the process that runs the operation",
        "process",
        _set(KILLED),
        _set(KILLED),
        leaves=_set(HANDLE, FILE),
    ),
    Fault(
        "client disconnected",
        "the channel closes, and can be opened again",
        "channel",
        _TOLD,
        _LOST,
        25.0,
        leaves=_LOST_HANDLE,
    ),
    Fault(
        "channel taken",
        "the channel closes, and another client has it for good",
        "channel",
        _TOLD,
        _LOST,
        25.0,
        leaves=_set(HANDLE, FILE),
    ),
    Fault("/run full", "in the guest", "disk", _LOST, _LOST, 30.0, hits="/run"),
    Fault("/run read-only", "in the guest", "disk", _LOST, _LOST, 30.0, hits="/run"),
    Fault("disk full", "the filesystem that the operation changes", "disk", _LOST, _LOST, hits="disk"),
    Fault("disk read-only", "the same", "disk", _LOST, _LOST, hits="disk", leaves=_set(FILE)),
    Fault("controller's disk full", "its runtime and temporary directories", "disk", _LOST, _LOST),
    Fault("controller's disk read-only", "the same", "disk", _LOST, _LOST, leaves=_set(FILE)),
    Fault("clock forwards", "the guest's, by an hour", "clock", _ALWAYS, _ALWAYS, where=GUEST),
    Fault("clock backwards", "the guest's, by an hour", "clock", _ALWAYS, _ALWAYS, where=GUEST),
    Fault("twenty clients", "do the same at once", "clients", _ALWAYS, _ALWAYS, 60.0),
)

OPERATION = {operation.name: operation for operation in OPERATIONS}
FAULT = {fault.name: fault for fault in FAULTS}

# No agent without a guest may be asked to freeze: a scripted one is, where the fault is not the agent's or the guest's.
_OF_THE_CHANNEL = ("reply", "channel")
_ON_THE_CONTROLLER = ("mux killed", "controller killed")


def cell(operation: Operation, fault: Fault) -> Cell:
    """Return what the table says of an operation and a fault."""
    outcomes = fault.changes if operation.changes else fault.reads
    where, why_not = fault.where, ""
    if fault.elsewhere:
        why_not = fault.elsewhere
    elif operation.name == "freeze" and fault.name == "guest rebooted":
        why_not = "a frozen guest does not shut down"
    elif operation.name == "freeze" and fault.name == "agent upgraded":
        why_not = "as where it is restarted: the new agent finds the guest frozen"
    elif fault.hits and fault.hits not in operation.uses:
        why_not = f"it does not use: {fault.hits}"
    elif operation.name == "freeze" and fault.name == "twenty clients":
        why_not = "one freezes the guest, and the others find it so"
    elif operation.name == "freeze" and where == AGENT:
        on_channel = fault.group in _OF_THE_CHANNEL or fault.name in _ON_THE_CONTROLLER
        where = SCRIPTED if on_channel else GUEST
    return Cell(operation, fault, outcomes, where, why_not)


def cells(where: str | None = None) -> Iterator[Cell]:
    """Yield the cells that are tried ``where``; without that, all of them."""
    for operation in OPERATIONS:
        for fault in FAULTS:
            found = cell(operation, fault)
            if where is None or (found.where == where and not found.why_not):
                yield found
