# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums that the guest computes of its own files.

Users are shown SHA-256. The two ends of a copy are compared by the checksum that the guest computes fastest: CRC-32
where _warm/guest/shell_runner.py computes it (a fifth of BLAKE2b's time), else BLAKE2b (a third of SHA-256's), else
SHA-256 in a guest that has no b2sum (coreutils before 8.26, busybox).
"""

from __future__ import annotations

import hashlib
import shlex
import zlib
from typing import Any, Callable, Iterable

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandError
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ExecResult, Executor, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import begin_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import is_frozen

__all__ = (
    "SUM",
    "Sum",
    "agrees",
    "begin_sum",
    "file_command",
    "part_command",
    "part_of",
    "sha256",
    "sha256_command",
    "sha256_of",
    "sum_in",
    "time_limit",
)

SUM = "if command -v b2sum >/dev/null; then b2sum; else sha256sum; fi"
"""The shell command that prints the checksum of its input for comparing copies, see `agrees`. The same call without a
shell prints CRC-32."""

# Bytes per second that the slowest guest reads and sums up, and the assumed size of a file whose size is not known.
_SLOWEST = 256 << 10
_UNKNOWN = 4 << 30

_BLAKE2B, _SHA256 = 128, 64  # digits


class Sum:
    """A checksum computed here during the requests: CRC-32, the cheapest."""

    def __init__(self, data: bytes = b"") -> None:
        self._sum = zlib.crc32(data)

    def update(self, data: bytes) -> None:
        """Add ``data`` to the checksum."""
        self._sum = zlib.crc32(data, self._sum)

    def hexdigest(self) -> str:
        """Return the checksum in 8 digits."""
        return f"{self._sum:08x}"


def sha256_of(content: Iterable[bytes]) -> str:
    """Return the SHA-256, in hex, of ``content``."""
    return _digest(hashlib.sha256(), content)


def _digest(summed: Any, content: Iterable[bytes]) -> str:
    for data in content:
        summed.update(data)
    return str(summed.hexdigest())


def agrees(there: str, here: str, content: Iterable[bytes]) -> bool:
    """Return whether SUM's output ``there`` belongs to the content whose Sum, in hex, is ``here``.

    ``content`` is read only if the guest did not compute CRC-32. The result is False if the guest computed nothing.
    """
    if len(there) == _BLAKE2B:
        return there == _digest(hashlib.blake2b(), content)
    if len(there) == _SHA256:
        return there == sha256_of(content)
    return there == here


def sha256(executor: Executor, path: str, size: int | None = None, largest: int | None = None) -> str:
    """Return the SHA-256, in hex, of a regular file in the guest, or of its first ``size`` bytes, computed there.

    Empty if it cannot be computed: the guest has no sha256sum, or the file has no size, such as those of /proc, or it
    has more than ``largest`` bytes.

    :raise CommandUnavailable: if the guest is frozen.
    :raise TransferError: if it takes longer than ``patience``.
    """
    try:
        return sum_in(begin_shell(executor, sha256_command(path, size, largest), time_limit(executor, size))())
    except CommandError as exc:
        if is_frozen(exc):
            raise
        return ""


def begin_sum(executor: Executor, path: str, size: int) -> Callable[[], ExecResult]:
    """Start to compute SUM of a regular file that has a size; return a function that waits for it, see ``sum_in``."""
    return begin_shell(executor, file_command(path), time_limit(executor, size))


def time_limit(executor: Executor, size: int | None) -> float:
    """Return how many seconds a program may take to read ``size`` bytes of a file in the guest; None: size unknown."""
    return executor.agent.timeout + (_UNKNOWN if size is None else size) / _SLOWEST


def sha256_command(path: str, size: int | None = None, largest: int | None = None) -> ShellCommand:
    """Return the command that prints the SHA-256 of a regular file that has a size, or of its first bytes.

    It prints nothing of a file with more than ``largest`` bytes.
    """
    text = _of_file(path, "sha256sum" if size is None else f"head -c {size} | sha256sum")
    if largest is not None:
        text = f'[ "$(stat -L -c %s -- {shlex.quote(path)})" -le {largest} ] && {text}'
    limits = (-1 if limit is None else limit for limit in (size, largest))
    return ShellCommand.of(text, "sha256_of_file", path, *limits)


def file_command(path: str) -> ShellCommand:
    """Return the command that prints SUM of a regular file that has a size."""
    return ShellCommand.of(_of_file(path, SUM), "sum_of_file", path)


def part_command(path: str, start: int, size: int) -> ShellCommand:
    """Return the command that prints SUM of ``size`` bytes of a file, from ``start`` on."""
    return ShellCommand.of(f"{part_of(path, start, size)} | {{ {SUM}; }}", "sum_of", path, start, size)


def part_of(path: str, start: int, size: int) -> str:
    """Return the shell command that prints ``size`` bytes of a file, from ``start`` on."""
    return f"tail -c +{start + 1} {shlex.quote(path)} | head -c {size}"


def _of_file(path: str, command: str) -> str:
    name = shlex.quote(path)
    return f"[ -f {name} ] && [ -s {name} ] && {{ {command}; }} <{name}"


def sum_in(result: ExecResult) -> str:
    """Return the checksum that a program printed; empty if it did not, or failed."""
    return "" if result.shell_rc else result.stdout.partition(b" ")[0].decode("ascii", "replace")
