# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of the guest's that is compressed on its way here: read while a program in the guest still packs it."""

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
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import Sum, part_of, patience, sum_in
from ansible_collections.qemu.guest.plugins.module_utils._guest.compression import ZSTD, Packer
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Command, ExecResult, Executor, pauses
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import CHUNK, GuestFile, Progress, payload
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import begin_shell, new_spool, sweep

__all__ = ("Packed", "pack_command")

# What is packed by one command. It is in the guest's memory, compressed, until all of it has been read.
_PART = 16 * CHUNK
# What is read at once. The agent makes room for as much each time, whether there is anything or not.
_READ = CHUNK // 4
# Bytes by which what is packed may be larger than its content, and a 64th of that.
_SLACK = 64 * 1024
# Seconds without anything new after which what packs is likely to have ended.
_QUIET = 0.3


class Packed:
    """What is fetched of the guest's file ``path``, from its start, compressed on its way, and handed to ``take``.

    ``size`` bytes are here, and ``checked`` is True if that is what the guest packed.
    """

    def __init__(self, executor: Executor, path: str, take: Callable[[bytes], None], progress: Progress) -> None:
        self.size = 0
        self.checked = True
        self._executor = executor
        self._path = path
        self._take = take
        self._progress = progress

    def fetch(self, packer: Packer, size: int) -> int:
        """Fetch up to ``size`` bytes, and return how much came.

        It may be less: what did not work this way is left to the plain way, which can tell why.
        """
        spool = new_spool()
        try:
            for number, start in enumerate(range(0, size, _PART)):
                part = range(start, min(start + _PART, size))
                self._fetch_part(packer, part, spool, number)
                if self.size < part.stop:
                    break
        except (CommandError, OperationError, TransferError, ValueError):
            self.checked = False
        finally:
            with suppress(QgaError):
                sweep(self._executor, spool)
        return self.size

    def _fetch_part(self, packer: Packer, part: range, spool: str, number: int) -> None:
        command = pack_command(packer, self._path, part, f"{spool}.{number}", f"{spool}.{number - 1}")
        ended = _once(begin_shell(self._executor, command, patience(self._executor, len(part))))
        summed = Sum()
        try:
            for content in self._growing(f"{spool}.{number}", packer, len(part), ended):
                self._take(content)
                summed.update(content)
                self.size += len(content)
                self._progress(self.size)
        finally:
            result = ended()
        self.checked = self.checked and result is not None and sum_in(result) == summed.hexdigest()

    def _growing(self, name: str, packer: Packer, size: int, ended: Callable[[], object]) -> Iterator[bytes]:
        """Yield the content, ``size`` bytes at most, of a compressed file that grows until ``ended`` returns.

        :raise ValueError: if it is damaged, or there is more.
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
                    packed = guest_file.read(payload(self._executor.agent, _READ))
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
                    pause = next(waiting, _QUIET)  # it goes on for ever
                    time.sleep(pause)
                    quiet += pause


def _once(wait: Callable[[], ExecResult]) -> Callable[[], ExecResult | None]:
    """Return what calls ``wait`` once, and returns its result each time: None if it has failed."""
    results: list[ExecResult | None] = []

    def ended() -> ExecResult | None:
        if not results:
            results.append(None)
            results[0] = wait()
        return results[0]

    return ended


def pack_command(packer: Packer, path: str, part: range, new: str, old: str) -> Command:
    """Return the command that packs a part of ``path`` into the file ``new``, and removes ``old`` before.

    Whoever does it without a shell prints SUM of what was packed.
    """
    text = f"umask 077; rm -f {old}; {part_of(path, part.start, len(part))} | {packer.packs} >{new}"
    function = "pack" if packer == ZSTD else ""
    return Command.of(text, function, path, part.start, len(part), packer.level, new, old)
