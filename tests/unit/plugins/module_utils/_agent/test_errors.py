# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What agents 5.2, 7.2 and 11.1 say, word for word, and what it is taken for."""

from __future__ import annotations

import errno

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import errors
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    ConnectError,
    GuestFileError,
    HandleLostError,
    OperationError,
    OutcomeUnknownError,
    QgaError,
    command_error,
)

FILES = {
    "failed to open file '/p' (mode: 'r'): No such file or directory": errno.ENOENT,
    "failed to open file '/p' (mode: 'r'): Permission denied": errno.EACCES,
    "failed to open file '/p' (mode: 'w'): Is a directory": errno.EISDIR,
    "failed to open file '/p' (mode: 'w'): Text file busy": errno.ETXTBSY,
    "failed to open file '/p' (mode: 'w'): No such device or address": errno.ENXIO,
    "failed to open file '/p/q' (mode: 'r'): Not a directory": errno.ENOTDIR,
    "failed to open file '/p' (mode: 'w'): Read-only file system": errno.EROFS,
    "failed to open file '/a: No space left on device' (mode: 'r'): No such file or directory": errno.ENOENT,
    "failed to open file '/p' (mode: 'r'): Something that nobody knows": None,
    "failed to read file: Is a directory": errno.EISDIR,
    "failed to read file: Bad file descriptor": None,
    "failed to read file: Resource temporarily unavailable": errno.EAGAIN,
    "failed to write to file: No space left on device": errno.ENOSPC,
    "failed to write to file: Bad file descriptor": None,
    "failed to flush file: Invalid argument": None,
    "failed to flush file: Broken pipe": errno.EPIPE,
    "failed to close handle: No space left on device": errno.ENOSPC,
    "failed to commit persistent state to disk": errno.ENOSPC,
}


@pytest.mark.parametrize(("desc", "number"), FILES.items())
def test_trouble_with_a_file(desc: str, number: int | None) -> None:
    error = command_error("guest-file-x", "GenericError", desc)
    assert isinstance(error, GuestFileError)
    assert (error.errno, error.message, error.command) == (number, desc, "guest-file-x")


@pytest.mark.parametrize(
    "desc",
    ["handle '999999' has not been found", "Invalid parameter 'pid'", "PID ld does not exist", "PID 12 does not exist"],
)
def test_agent_that_has_forgotten(desc: str) -> None:
    error = command_error("guest-x", "GenericError", desc)
    assert isinstance(error, HandleLostError)
    assert "Was the agent restarted" in str(error)


@pytest.mark.parametrize(
    "desc",
    [
        "invalid file open mode 'z'",
        "value '5' is invalid for argument count",
        "invalid whence code 3",
        "Parameter 'path' is missing",
        "Parameter 'foo' is unexpected",
        "Invalid parameter type for 'path', expected: string",
        "Invalid parameter 'SEEK_SET'",
        "Base64 data contains invalid characters",
        "Guest agent command failed, error was 'Failed to execute child process "
        "\u201c/x\u201d (No such file or directory)'",
        "child process has failed to set user password",
        "mode is invalid (valid values are: halt|powerdown|reboot",
        "failed to trim: Invalid argument",
        "failed to lookup user 'nosuch': Success",
        "",
    ],
)
def test_any_other_error(desc: str) -> None:
    error = command_error("guest-x", "GenericError", desc)
    assert error.__class__ is CommandError
    assert (error.error_class, error.executed) == ("GenericError", "yes")


def test_the_tree_answers_whether_the_command_ran() -> None:
    known = {name: getattr(errors, name) for name in errors.__all__ if name not in ("command_error", "named")}
    for kind in known.values():
        assert issubclass(kind, QgaError)
        assert kind.executed in ("no", "yes", "unknown")
        if issubclass(kind, ConnectError):
            assert kind.executed == "no"
    assert OutcomeUnknownError.executed == "unknown"
    assert errors.CommandUnavailable.executed == "no"


def test_message() -> None:
    error = ConnectError("it is gone.", command="guest-ping", hint="Start it.")
    error.address = "unix:/vm1"
    assert str(error) == "guest agent at unix:/vm1: guest-ping was not sent: it is gone. Start it."
    assert str(ConnectError("it is gone", hint="Start it.")) == "it is gone. Start it."
    assert str(ConnectError("it is gone")) == "it is gone"


@pytest.mark.parametrize(
    ("address", "text"), [("unix:/vm1", "gone"), ("unix:/vm1.qmp", "guest agent at unix:/vm1: gone")]
)
def test_message_in_an_error_with_an_address(address: str, text: str) -> None:
    """The same address is not named twice; another is kept."""
    error = ConnectError("gone")
    error.address = "unix:/vm1"
    assert error.text_at(address) == text


def test_result_of_a_failed_task() -> None:
    assert OutcomeUnknownError("lost", command="guest-exec").as_result() == {
        "error": {"type": "OutcomeUnknownError", "command": "guest-exec", "executed": "unknown"}
    }
    assert OperationError("no", result={"rc": 1}).as_result() == {"rc": 1}
