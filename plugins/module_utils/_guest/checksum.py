# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums that the guest computes of its own files.

SHA-256 is what users are told. What compares the two ends of a copy is what the guest computes soonest: CRC-32 where
_warm/guest/file_ops.py does it, which takes a fifth of BLAKE2b's time, else BLAKE2b, which takes a third of
SHA-256's, and SHA-256 in a guest that has no b2sum (coreutils before 8.26, busybox).
"""

from __future__ import annotations

import hashlib
import shlex
import zlib
from typing import Any, Callable, Iterable

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandError
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Command, ExecResult, Executor
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import begin_shell

__all__ = (
    "SUM",
    "Sum",
    "agrees",
    "begin_sum",
    "file_command",
    "part_command",
    "part_of",
    "patience",
    "sha256",
    "sha256_command",
    "sha256_of",
    "sum_in",
)

SUM = "if command -v b2sum >/dev/null; then b2sum; else sha256sum; fi"
"""The shell command that prints the checksum of its input by which copies are compared, see `agrees`. Whoever does that
without a shell prints CRC-32."""

# Bytes per second that the slowest guest reads and sums up, and what a file may have that nobody knows the size of.
_SLOWEST = 256 << 10
_UNKNOWN = 4 << 30

_BLAKE2B, _SHA256 = 128, 64  # digits


class Sum:
    """What is summed up here beside the requests: CRC-32, because that takes least."""

    def __init__(self, data: bytes = b"") -> None:
        self._sum = zlib.crc32(data)

    def update(self, data: bytes) -> None:
        """Sum up what follows."""
        self._sum = zlib.crc32(data, self._sum)

    def hexdigest(self) -> str:
        """Return it in 8 digits."""
        return f"{self._sum:08x}"


def sha256_of(content: Iterable[bytes]) -> str:
    """Return the SHA-256, in hex, of what is here."""
    return _digest(hashlib.sha256(), content)


def _digest(summed: Any, content: Iterable[bytes]) -> str:
    for data in content:
        summed.update(data)
    return str(summed.hexdigest())


def agrees(there: str, here: str, content: Iterable[bytes]) -> bool:
    """Return whether what SUM printed ``there`` belongs to the content whose Sum, in hex, is ``here``.

    ``content`` is looked at if the guest computed something else. Nothing agrees if it could compute nothing.
    """
    if len(there) == _BLAKE2B:
        return there == _digest(hashlib.blake2b(), content)
    if len(there) == _SHA256:
        return there == sha256_of(content)
    return there == here


def sha256(executor: Executor, path: str, size: int | None = None) -> str:
    """Return the SHA-256, in hex, of a regular file in the guest or of its first ``size`` bytes, computed there.

    Empty if that cannot be told: no sha256sum in the guest, or a file such as those of /proc that has no size.

    :raise TransferError: if it takes longer than ``patience``.
    """
    try:
        return sum_in(begin_shell(executor, sha256_command(path, size), patience(executor, size))())
    except CommandError:
        return ""


def begin_sum(executor: Executor, path: str, size: int) -> Callable[[], ExecResult]:
    """Start to compute SUM of a regular file in the guest that has a size; return what waits for it, see ``sum_in``."""
    return begin_shell(executor, file_command(path), patience(executor, size))


def patience(executor: Executor, size: int | None) -> float:
    """Return how many seconds a program may take to read ``size`` bytes of a file in the guest; None: nobody knows."""
    return executor.agent.timeout + (_UNKNOWN if size is None else size) / _SLOWEST


def sha256_command(path: str, size: int | None = None) -> Command:
    """Return the command that prints the SHA-256 of a regular file that has a size, or of its first bytes."""
    text = _of_file(path, "sha256sum" if size is None else f"head -c {size} | sha256sum")
    return Command.of(text, "sha256_of_file", path, -1 if size is None else size)


def file_command(path: str) -> Command:
    """Return the command that prints SUM of a regular file that has a size."""
    return Command.of(_of_file(path, SUM), "sum_of_file", path)


def part_command(path: str, start: int, size: int) -> Command:
    """Return the command that prints SUM of ``size`` bytes of a file, from ``start`` on."""
    return Command.of(f"{part_of(path, start, size)} | {{ {SUM}; }}", "sum_of", path, start, size)


def part_of(path: str, start: int, size: int) -> str:
    """Return the shell command that prints ``size`` bytes of a file, from ``start`` on."""
    return f"tail -c +{start + 1} {shlex.quote(path)} | head -c {size}"


def _of_file(path: str, command: str) -> str:
    name = shlex.quote(path)
    return f"[ -f {name} ] && [ -s {name} ] && {{ {command}; }} <{name}"


def sum_in(result: ExecResult) -> str:
    """Return the checksum that a program printed; empty if it did not, or failed."""
    return "" if result.shell_rc else result.stdout.partition(b" ")[0].decode("ascii", "replace")
