# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole files to and from the guest: never open to others on the way, and the same at both ends.

Stands on _files (the bytes) and, where the agent may run programs, on _exec (who may read, checksums, compression).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shlex
import zlib
from contextlib import suppress
from typing import BinaryIO, Callable, Iterator

from ansible_collections.qemu.guest.plugins.module_utils._agent import Agent
from ansible_collections.qemu.guest.plugins.module_utils._errors import (
    CommandError,
    OperationError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._exec import can_run_programs, finish
from ansible_collections.qemu.guest.plugins.module_utils._files import Copied, Progress, copy_in, copy_out, no_progress
from ansible_collections.qemu.guest.plugins.module_utils._shell import (
    check_shell,
    finished_sha256,
    new_spool,
    run_shell,
    sha256,
    start_sha256,
    start_shell,
)

__all__ = ("create_private", "digest", "fetch", "put")

# Below this, programs in the guest take longer than they save.
_LEAST = 256 * 1024
# What a sample must shrink to.
_GAIN = 0.7
_LEVEL = 6
# What is compressed at once. It is in the guest's memory until it is unpacked, and another such piece meanwhile.
_PIECE = 8 * 1024 * 1024


def put(agent: Agent, source: BinaryIO, path: str, progress: Progress = no_progress) -> Copied:
    """Write ``source`` to the guest's file ``path`` and make sure that it arrived.

    A new file has mode 0600 where the agent may run programs; an existing one keeps its mode. What shrinks travels
    compressed, if the guest has gzip.

    :raise TransferError: if what is in the guest is not what was sent.
    :raise OperationError: if the file cannot be created; its text is the guest's own.
    """
    copied = None
    if can_run_programs(agent):
        create_private(agent, path)
        if _shrinks(source):
            copied = _put_packed(agent, source, path, progress)
    copied = copied or copy_in(agent, source, path, progress=progress)
    if not copied.checked and digest(agent, path, copied.size) != copied.sha256:
        raise TransferError(f"{path} is not what was written to it")
    return copied


def _shrinks(source: BinaryIO) -> bool:
    """Return whether it is worth while to compress ``source``; it is left where it was."""
    if not source.seekable():
        return False
    start = source.tell()
    sample = source.read(_LEAST)
    source.seek(start)
    return len(sample) == _LEAST and len(zlib.compress(sample, 1)) < _GAIN * len(sample)


def _put_packed(agent: Agent, source: BinaryIO, path: str, progress: Progress) -> Copied | None:
    """Write ``source`` piece by piece into files of root's alone, from where the guest unpacks them into ``path``.

    Return None if that does not work; why, the plain way will tell. ``source`` is where it was then.
    """
    start = source.tell()
    whole = hashlib.sha256()
    size = 0
    spool = new_spool()
    unpacking = 0
    try:
        check_shell(agent, f"umask 077; set -C; : >{spool}.0; : >{spool}.1", "keep compressed pieces")
        for number, piece in enumerate(_pieces(source)):
            # One is written while the guest unpacks the other.
            part = f"{spool}.{number % 2}"
            copy_in(agent, io.BytesIO(gzip.compress(piece, _LEVEL)), part)
            _unpacked(agent, unpacking)
            command = f"gzip -dc <{part} {'>>' if number else '>'}{shlex.quote(path)}"
            unpacking = start_shell(agent, command.encode("utf-8", "surrogateescape"))
            whole.update(piece)
            size += len(piece)
            progress(size)
        _unpacked(agent, unpacking)
    except (CommandError, OperationError, TransferError):
        source.seek(start)
        return None
    finally:
        with suppress(QgaError):
            run_shell(agent, f"rm -f {spool}.*".encode("ascii"), whole=False)
    return Copied(size, whole.hexdigest(), False)


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while True:
        piece = source.read(_PIECE)
        if not piece:
            return
        yield piece


def _unpacked(agent: Agent, pid: int) -> None:
    """Wait until a piece is unpacked, if one is.

    :raise OperationError: if it cannot be.
    """
    if pid and finish(agent, pid).shell_rc:
        raise OperationError("a piece cannot be unpacked in the guest")


def create_private(agent: Agent, path: str) -> None:
    """Create ``path`` empty with mode 0600, unless it exists: a file that guest-file-open creates is 0666.

    :raise OperationError: if it cannot be created.
    """
    name = shlex.quote(path)
    check_shell(agent, f"[ -e {name} ] || {{ umask 077; set -C; : >{name}; }}", f"create {path}")


def fetch(agent: Agent, path: str, write: Callable[[bytes], object], progress: Progress = no_progress) -> Copied:
    """Hand the content of the guest's file ``path`` to ``write`` and make sure that it is what the guest has.

    A file that grew meanwhile is right as far as it was read.

    :raise TransferError: if it is not.
    """
    programs = can_run_programs(agent)
    # The guest computes while the agent reads.
    summing: list[int] = []
    copied = copy_out(
        agent, path, write, progress, lambda: summing.append(start_sha256(agent, path)) if programs else None
    )
    if copied.checked or (summing and finished_sha256(agent, summing[0]) == copied.sha256):
        return copied
    # Nobody can tell what a file without a size (/proc) holds a moment later.
    there = sha256(agent, path, copied.size) if programs else digest(agent, path)
    if there is not None and there != copied.sha256:
        raise TransferError(f"{path} changed while it was read, or was damaged on the way")
    return copied


def digest(agent: Agent, path: str, size: int | None = None) -> str:
    """Return the SHA-256, in hex, of the guest's file, or of its first ``size`` bytes.

    Computed in the guest where that is possible, else by reading the whole file.
    """
    there = sha256(agent, path, size) if can_run_programs(agent) else None
    return there or copy_out(agent, path, len).sha256
