# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch a file compressed: it is read while a program in the guest still packs it."""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, suppress
from typing import Callable, Iterator

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    GuestFileError,
    OperationError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import Sum, part_of, sum_in, time_limit
from ansible_collections.qemu.guest.plugins.module_utils._guest.compression import ZSTD, Packer
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    ExecResult,
    Executor,
    ShellCommand,
    pauses,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile, Progress, content_size
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import begin_shell, new_prefix, remove_rest

__all__ = ("Packed", "pack_command")

# Bytes, plus a 64th of the content, by which the packed file may be larger than its content.
_SLACK = 64 * 1024
# Seconds without new data after which the packing program has probably ended.
_QUIET = 0.3


class Packed:
    """Fetches the guest's file ``path`` from its start, compressed in transit, and hands the content to ``take``.

    ``size`` bytes have arrived; ``checked`` is True if their checksum is that of what the guest packed.
    """

    def __init__(self, executor: Executor, path: str, take: Callable[[bytes], None], progress: Progress) -> None:
        self.size = 0
        self.checked = True
        self._executor = executor
        self._path = path
        self._take = take
        self._progress = progress

    def fetch(self, packer: Packer, size: int) -> int:
        """Fetch up to ``size`` bytes and return how many arrived.

        After a failure that is fewer: the plain transfer fetches the rest, and reports why if it fails too.
        """
        prefix = new_prefix()
        try:
            most = self._executor.sizes.part
            for number, start in enumerate(range(0, size, most)):
                part = range(start, min(start + most, size))
                self._fetch_part(packer, part, prefix, number)
                if self.size < part.stop:
                    break
        except (CommandError, OperationError, TransferError, ValueError):
            self.checked = False
        finally:
            with suppress(QgaError):
                remove_rest(self._executor, prefix)
        return self.size

    def _fetch_part(self, packer: Packer, part: range, prefix: str, number: int) -> None:
        command = pack_command(packer, self._path, part, f"{prefix}.{number}", f"{prefix}.{number - 1}")
        ended = _once(begin_shell(self._executor, command, time_limit(self._executor, len(part))))
        summed = Sum()
        try:
            for content in self._growing(f"{prefix}.{number}", packer, len(part), ended):
                self._take(content)
                summed.update(content)
                self.size += len(content)
                self._progress(self.size)
        finally:
            result = ended()
        self.checked = self.checked and result is not None and sum_in(result) == summed.hexdigest()

    def _growing(self, name: str, packer: Packer, size: int, ended: Callable[[], object]) -> Iterator[bytes]:
        """Yield the content, at most ``size`` bytes, of a compressed file that grows until ``ended`` returns.

        :raise ValueError: if it is damaged, or longer.
        """
        unpack = packer.unpacking()
        most = size + size // 64 + _SLACK
        waiting, quiet, grows = pauses(), 0.0, True
        with ExitStack() as stack:
            guest_file = None
            while size:
                packed = b""
                try:
                    guest_file = guest_file or stack.enter_context(GuestFile(self._executor.agent, name))
                    packed = guest_file.read(content_size(self._executor.agent, self._executor.sizes.packed))
                except GuestFileError as exc:
                    if exc.errno != errno.ENOENT:
                        raise
                if packed:
                    most -= len(packed)
                    if most < 0:
                        raise ValueError("it is packed, and yet larger")
                    content = unpack(packed, size)
                    size -= len(content)
                    yield content
                    waiting, quiet = pauses(), 0.0
                elif not grows:
                    return
                elif quiet > _QUIET:
                    ended()
                    grows = False
                else:
                    pause = next(waiting, _QUIET)  # the iterator never ends
                    time.sleep(pause)
                    quiet += pause


def _once(wait: Callable[[], ExecResult]) -> Callable[[], ExecResult | None]:
    """Return a function that calls ``wait`` once and returns its result each time: None if it failed."""
    results: list[ExecResult | None] = []

    def ended() -> ExecResult | None:
        if not results:
            results.append(None)
            results[0] = wait()
        return results[0]

    return ended


def pack_command(packer: Packer, path: str, part: range, new: str, old: str) -> ShellCommand:
    """Return the command that removes ``old``, then packs a part of ``path`` into the file ``new``.

    The same call without a shell prints SUM of what was packed.
    """
    text = f"umask 077; rm -f {old}; {part_of(path, part.start, len(part))} | {packer.packs} >{new}"
    function = "pack" if packer == ZSTD else ""
    return ShellCommand.of(text, function, path, part.start, len(part), packer.level, new, old)
