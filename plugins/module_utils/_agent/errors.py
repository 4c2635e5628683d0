# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors between a task and the agent.

The tree answers the one question that matters after a failure: did the command run?

    QgaError
    ├── AddressError           the address makes no sense; nothing was tried
    ├── ConnectError           nothing of the command was sent; safe to retry
    │   ├── ChannelBusyError   another client uses the channel, which serves one
    │   └── AgentSilentError   the channel is open, the agent does not answer a sync
    ├── OutcomeUnknownError    sent, no reply: it may have run, or may yet run
    ├── ProtocolError          the reply does not match the schema
    ├── CommandError           the agent replied with an error
    │   ├── CommandUnavailable unknown, disabled by the guest's admin, or blocked while frozen
    │   ├── GuestFileError     a guest-file-* command failed; errno gives the cause if the agent's text names it
    │   └── HandleLostError    the agent restarted and has forgotten this handle or pid
    ├── NoRunnerError          programs need a runner in the guest, and none could be started
    ├── TransferError          content arrived differently from how it was sent
    │   └── FileChangedError   because the file was written to meanwhile
    ├── QmpError               QEMU's monitor or libvirt cannot be used; nothing was sent to it
    │   ├── QmpCommandError    it replied with an error
    │   └── QmpLostError       sent, no reply: it may have run, or may yet run
    └── OperationError         the operation cannot be done as asked; carries results to show
"""

from __future__ import annotations

import errno as _errno
import re
from contextlib import contextmanager
from typing import Any, Iterator, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import printable, returnable

__all__ = (
    "AddressError",
    "AgentSilentError",
    "ChannelBusyError",
    "CommandError",
    "CommandUnavailable",
    "ConnectError",
    "FileChangedError",
    "GuestFileError",
    "HandleLostError",
    "NoRunnerError",
    "OperationError",
    "OutcomeUnknownError",
    "ProtocolError",
    "QgaError",
    "QmpCommandError",
    "QmpError",
    "QmpLostError",
    "TransferError",
    "command_error",
    "named",
)


class QgaError(Exception):
    """Base of all errors of this collection.

    ``executed`` says whether the command ran: ``no``, ``yes`` or ``unknown``; ``fate`` is the wording in the message.
    The Agent fills in ``address``, and ``party`` names the peer at that address. Message and hint are made
    ``printable`` here, for all errors, because they may contain text from the guest.
    """

    party = "guest agent"
    executed = "no"
    fate = "was not run"

    def __init__(self, message: str, *, command: str | None = None, hint: str = "") -> None:
        self.message = printable(message)
        super().__init__(self.message)
        self.command = command
        self.hint = hint
        self.address = ""

    def __str__(self) -> str:
        where = f"{self.party} at {printable(self.address)}: " if self.address else ""
        return f"{where}{self.without_address}"

    @property
    def without_address(self) -> str:
        """The text of this error but for the address."""
        what = f"{self.told_fate}: " if self.told_fate else ""
        stop = "" if self.message.endswith((".", "?", "!")) else "."
        hint = f"{stop} {printable(self.hint)}" if self.hint else ""
        return f"{what}{self.message}{hint}"

    def text_at(self, address: str) -> str:
        """Return the text for an error that has this ``address`` itself: only another address is named."""
        return self.without_address if self.address == address else str(self)

    @property
    def explanation(self) -> str:
        """The message and the hint, for those who name the agent and the command themselves."""
        return f"{self.message} {self.hint}".strip()

    @property
    def told_fate(self) -> str:
        """The message's words on the command; empty if there is none."""
        return f"{printable(self.command)} {self.fate}" if self.command else ""

    def as_result(self) -> dict[str, Any]:
        """Return the members of a failed task's result beside C(msg)."""
        said = {"type": type(self).__name__, "command": self.command, "executed": self.executed}
        return {"error": returnable(said)}


class AddressError(QgaError):
    """The address is malformed or of an unsupported kind."""


class ConnectError(QgaError):
    """The channel could not be used; nothing of the command was sent.

    ``at_first``: nothing was sent before either. Then the message does not name the command, because it is only the
    first of many that a task needs, and the user may not know it.
    """

    fate = "was not sent"
    at_first = False

    @property
    def told_fate(self) -> str:
        return "nothing was sent" if self.at_first else super().told_fate


class ChannelBusyError(ConnectError):
    """Another client uses the channel, which serves one at a time."""


class AgentSilentError(ConnectError):
    """The channel opened, and the agent answered no sync within the deadline."""


class OutcomeUnknownError(QgaError):
    """The command was sent and no reply came; it may have run or may still run."""

    executed = "unknown"
    fate = "may have run"


class ProtocolError(QgaError):
    """A reply is malformed, too large, too deep, or not of the type that the schema names."""

    executed = "unknown"
    fate = "may have run"


class CommandError(QgaError):
    """The agent replied with an error. ``error_class`` and the message are the agent's."""

    executed = "yes"
    fate = "failed"

    def __init__(self, message: str, *, command: str | None = None, hint: str = "", error_class: str = "") -> None:
        super().__init__(message, command=command, hint=hint)
        self.error_class = error_class


class CommandUnavailable(CommandError):
    """The agent will not run this command. ``reason`` is ``elsewhere`` (another system has it),
    ``unknown``, ``disabled`` or ``frozen``.
    """

    executed = "no"
    fate = "was not run"

    def __init__(self, message: str, *, command: str | None = None, hint: str = "", reason: str = "unknown") -> None:
        super().__init__(message, command=command, hint=hint, error_class="CommandNotFound")
        self.reason = reason
        self.was_waited_for = False
        """Whether the full time for a frozen guest has been waited already."""


class GuestFileError(CommandError):
    """A guest-file-* command failed. ``errno`` is set where the agent's text names a known cause, else None."""

    def __init__(
        self,
        message: str,
        *,
        command: str | None = None,
        hint: str = "",
        error_class: str = "GenericError",
        errno: int | None = None,
    ) -> None:
        super().__init__(message, command=command, hint=hint, error_class=error_class)
        self.errno = errno


class HandleLostError(CommandError):
    """The agent knows nothing of this file handle or pid: it was restarted, or the result was already taken."""


class NoRunnerError(QgaError):
    """No runner could be started in the guest (_runner/bootstrap.py), or it takes no requests. Nothing was run."""


class TransferError(QgaError):
    """The content in the guest differs from the content here."""

    executed = "yes"


class FileChangedError(TransferError):
    """A file was written to while it was fetched. ``size``: the bytes that were read."""

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size


class QmpError(QgaError):
    """QEMU's monitor cannot be used. ``address`` is the monitor's."""

    party = "QMP"
    fate = "was not sent"


class QmpCommandError(QmpError):
    """QEMU replied with an error; the message is QEMU's."""

    executed = "yes"
    fate = "failed"


class QmpLostError(QmpError):
    """The command was sent and no reply came. ``closed``: QEMU closed the connection, because it exited."""

    executed = "unknown"
    fate = "may have run"

    def __init__(self, message: str, *, command: str | None = None, hint: str = "", closed: bool = False) -> None:
        super().__init__(message, command=command, hint=hint)
        self.closed = closed


class OperationError(QgaError):
    """The operation failed or cannot be done as asked. ``result`` is merged into the failed task's result."""

    executed = "yes"

    def __init__(self, message: str, *, result: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = dict(result or {})

    def as_result(self) -> dict[str, Any]:
        return dict(returnable(self.result))


# The agent keeps its handle counter in a file in /run, and opens no file if it cannot write that.
_NO_STATE = "failed to commit persistent state to disk"

# The causes that agents put at the end of guest-file-* errors: strerror() of the guest's C library, untranslated
# because the agent runs in the C locale.
_CAUSES = {
    "No such file or directory": _errno.ENOENT,
    "Permission denied": _errno.EACCES,
    "Operation not permitted": _errno.EPERM,
    "Is a directory": _errno.EISDIR,
    "Not a directory": _errno.ENOTDIR,
    "No space left on device": _errno.ENOSPC,
    _NO_STATE: _errno.ENOSPC,
    "Disk quota exceeded": _errno.EDQUOT,
    "Read-only file system": _errno.EROFS,
    "Text file busy": _errno.ETXTBSY,
    "No such device or address": _errno.ENXIO,
    "Resource temporarily unavailable": _errno.EAGAIN,
    "File name too long": _errno.ENAMETOOLONG,
    "Too many open files": _errno.EMFILE,
    "Input/output error": _errno.EIO,
    "File too large": _errno.EFBIG,
    "Broken pipe": _errno.EPIPE,
}

# One row per family of error texts (agents 5.2 to 11.1); the first match wins. CommandNotFound is not here: to explain
# it, the agent must be asked (Agent._unavailable).
_TABLE: tuple[tuple[str, type[CommandError]], ...] = (
    (r"handle '\d+' has not been found", HandleLostError),
    (r"Invalid parameter 'pid'|PID \S+ does not exist", HandleLostError),
    (r"^failed to (open|read|write|seek|flush|close)\b", GuestFileError),
    (_NO_STATE, GuestFileError),
)

_FORGETS = "Was the agent restarted, or the guest put back to a snapshot? It forgets its open files and programs then."


def command_error(command: str, error_class: str, desc: str) -> CommandError:
    """Return the exception for an error reply ``{"class": error_class, "desc": desc}`` to ``command``."""
    for pattern, kind in _TABLE:
        if not re.search(pattern, desc):
            continue
        if kind is GuestFileError:
            cause = desc.rpartition(": ")[2].strip()
            hint = "Is the guest's /run full?" if cause == _NO_STATE else ""
            return GuestFileError(desc, command=command, hint=hint, error_class=error_class, errno=_CAUSES.get(cause))
        return kind(desc, command=command, error_class=error_class, hint=_FORGETS)
    return CommandError(desc, command=command, error_class=error_class)


@contextmanager
def named(agent: str, path: str = "") -> Iterator[None]:
    """Have all errors name ``agent`` and ``path``: those of a value in a reply or of a program's end too."""
    try:
        yield
    except QgaError as exc:
        if not isinstance(exc, AddressError):  # that is about another address
            exc.address = exc.address or agent
        if printable(path) not in exc.without_address:
            exc.hint = f"{exc.hint} The file is {path}.".lstrip()
        raise
