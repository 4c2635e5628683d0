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
from ansible_collections.qemu.guest.plugins.module_utils._exec import ExecResult, can_run_programs, finish
from ansible_collections.qemu.guest.plugins.module_utils._files import (
    CHUNK,
    Copied,
    GuestFile,
    Progress,
    copy_in,
    copy_out,
    no_progress,
)
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

# Up to this, one program in the guest takes the content, and compares it, faster than files are opened and closed.
_SMALL = 64 * 1024
# Below this, further programs in the guest take longer than they save.
_LEAST = 256 * 1024
# What a sample must shrink to.
_GAIN = 0.7
_LEVEL = 6
# What is compressed, unpacked and compared at once, while the next is on its way. Such a piece, and another one, are in
# the guest's memory until they are unpacked.
_PIECE = 8 * CHUNK

_CREATE = "[ -e {name} ] || {{ umask 077; set -C; : >{name} && set +C; }}"


def put(agent: Agent, source: BinaryIO, path: str, progress: Progress = no_progress) -> Copied:
    """Write ``source``, which is seekable, to the guest's file ``path`` and make sure that it arrived.

    A new file has mode 0600 where the agent may run programs; an existing one keeps its mode. What shrinks travels
    compressed, if the guest has gzip.

    :raise TransferError: if what is in the guest is not what was sent.
    :raise OperationError: if the file cannot be created; its text is the guest's own.
    """
    copied = _put(agent, source, path, progress)
    if not copied.checked and digest(agent, path, copied.size) != copied.sha256:
        raise TransferError(f"{path} is not what was written to it")
    return copied


def _put(agent: Agent, source: BinaryIO, path: str, progress: Progress) -> Copied:
    if not can_run_programs(agent):
        return copy_in(agent, source, path, progress=progress)
    start = source.tell()
    sample = source.read(_LEAST)
    source.seek(start)
    # What did not work the one way is tried the plain way, which can tell why.
    if len(sample) <= _SMALL and _put_small(agent, sample, path):
        progress(len(sample))
        return Copied(len(sample), hashlib.sha256(sample).hexdigest(), True)
    create_private(agent, path)
    if len(sample) < _LEAST:
        return copy_in(agent, source, path, progress=progress)
    if len(zlib.compress(sample, 1)) < _GAIN * len(sample):
        try:
            return _put_packed(agent, source, path, progress)
        except (CommandError, OperationError, TransferError):
            source.seek(start)
    return _put_plain(agent, source, path, progress)


def _put_small(agent: Agent, content: bytes, path: str) -> bool:
    """Write ``content`` by one program; return whether it is there now."""
    name = shlex.quote(path)
    command = f"{{ {_CREATE.format(name=name)}; }} && cat >{name} && sha256sum <{name}"
    result = run_shell(agent, command.encode("utf-8", "surrogateescape"), content, whole=False)
    return result.shell_rc == 0 and _sum(result) == hashlib.sha256(content).hexdigest()


def _put_packed(agent: Agent, source: BinaryIO, path: str, progress: Progress) -> Copied:
    """Write ``source`` piece by piece into files of root's alone, from where the guest unpacks them into ``path``.

    :raise QgaError: if that does not work; nothing is at work in the guest then.
    """
    name = shlex.quote(path)
    pieces = _Pieces(agent, path)
    spool = new_spool()
    try:
        check_shell(agent, f"umask 077; set -C; : >{spool}.0; : >{spool}.1", "keep compressed pieces")
        for number, piece in enumerate(pieces.of(source)):
            # One is written while the guest unpacks the other.
            part = f"{spool}.{number % 2}"
            copy_in(agent, io.BytesIO(gzip.compress(piece, _LEVEL)), part)
            unpack = f"gzip -dc <{part} {'>>' if number else '>'}{name}"
            pieces.compare(piece, f"{unpack} && tail -c {len(piece)} {name} | sha256sum")
            progress(pieces.size)
            if not pieces.comparable:
                break
        pieces.wait()
        if not pieces.comparable:
            raise OperationError("a piece cannot be unpacked and compared in the guest")
        return pieces.copied()
    finally:
        with suppress(QgaError):
            pieces.wait()
        with suppress(QgaError):
            run_shell(agent, f"rm -f {spool}.*".encode("ascii"), whole=False)


def _put_plain(agent: Agent, source: BinaryIO, path: str, progress: Progress) -> Copied:
    """Write ``source`` piece by piece, while the guest sums up what it has got."""
    name = shlex.quote(path)
    pieces = _Pieces(agent, path)
    step = min(CHUNK, agent.largest_payload)
    with GuestFile(agent, path, "w") as guest_file:
        for piece in pieces.of(source):
            for start in range(0, len(piece), step):
                guest_file.write(piece[start : start + step])
                progress(pieces.size + min(start + step, len(piece)))
            guest_file.flush()
            pieces.compare(piece, f"tail -c +{pieces.size + 1} {name} | head -c {len(piece)} | sha256sum")
    pieces.wait()
    return pieces.copied()


class _Pieces:
    """What is copied into the file ``path``: each piece is compared in the guest while the next is on its way.

    ``comparable`` is True as long as the guest can do that.
    """

    def __init__(self, agent: Agent, path: str) -> None:
        self.size = 0
        self.comparable = True
        self._agent = agent
        self._path = path
        self._digest = hashlib.sha256()
        self._comparing = 0
        self._expected = ""

    def of(self, source: BinaryIO) -> Iterator[bytes]:
        while True:
            piece = source.read(_PIECE)
            if not piece:
                return
            yield piece

    def compare(self, piece: bytes, command: str) -> None:
        """Note that ``piece`` is there; the shell ``command`` prints its SHA-256 in the guest. See ``wait``."""
        self.wait()
        if self.comparable:
            self._expected = hashlib.sha256(piece).hexdigest()
            self._comparing = start_shell(self._agent, command.encode("utf-8", "surrogateescape"))
        self._digest.update(piece)
        self.size += len(piece)

    def wait(self) -> None:
        """Wait for the comparison that is at work, if one is.

        :raise TransferError: if the piece is not what it was.
        """
        pid, self._comparing = self._comparing, 0
        if not pid:
            return
        result = finish(self._agent, pid)
        if result.shell_rc or not _sum(result):
            self.comparable = False
        elif _sum(result) != self._expected:
            raise TransferError(f"{self._path} is not what was written to it")

    def copied(self) -> Copied:
        return Copied(self.size, self._digest.hexdigest(), self.comparable)


def _sum(result: ExecResult) -> str:
    """Return what sha256sum printed; empty if it is not there."""
    return result.stdout.partition(b" ")[0].decode("ascii", "replace")


def create_private(agent: Agent, path: str) -> None:
    """Create ``path`` empty with mode 0600, unless it exists: a file that guest-file-open creates is 0666.

    :raise OperationError: if it cannot be created.
    """
    check_shell(agent, _CREATE.format(name=shlex.quote(path)), f"create {path}")


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
