# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch files of a directory of the guest, in one archive that the guest's tar makes.

The guest decides what is in the archive, so of it only content is taken, and of those files only that were asked for.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from typing import IO, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import QgaError, TransferError
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import ENTER, variables
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import CHUNK
from ansible_collections.qemu.guest.plugins.module_utils._guest.local_file import replacing
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import (
    REST,
    checked,
    new_prefix,
    remove_rest,
    run_shell,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import when_thawed
from ansible_collections.qemu.guest.plugins.module_utils._guest.tar import members
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch

__all__ = ("at", "fetch_tree", "unpack")

# On disk, as it may exceed the memory. `rest` leaves a quarter of what is free there.
_PLACE = "/var/tmp"
_UNLIMITED = 99_999_999  # blocks of 512 bytes, which fit into the 32 bits of some shells
# GNU's tar may have another default; busybox has no such option, and that format.
_ARCHIVE = (
    ENTER
    + REST
    + r"""
m=$b
command -v tar >/dev/null || { echo "the guest has no tar; install it there" >&2; exit 1; }
g=
case $(tar --help 2>&1) in *--format*) g=--format=gnu ;; esac
(umask 077; set -C; : >"$t.tar") || exit 1
xargs -0 sh -c 'tar $0 -cf - "$@"' "$g" | rest "$t.tar" "$t.lost" 6
if [ -e "$t.lost" ]; then echo "the archive needs more than max_size, or than /var/tmp has room for" >&2; exit 1; fi
"""
)


def at(dest: bytes, path: bytes) -> bytes:
    """Return where C(./a/b) of the guest is here."""
    return os.path.join(dest, path[2:])


def fetch_tree(
    executor: Executor, src: str, names: Sequence[bytes], dest: bytes, largest: int | None
) -> tuple[int, dict[bytes, str]]:
    """Fetch the files C(./a/b) of the guest's directory ``src`` to ``dest``, where all their directories are.

    Return their size, and the SHA-256 of each that came: some may be gone meanwhile.

    :raise TransferError: if that is more than ``largest`` bytes, or than there is room for here or there.
    """
    prefix = new_prefix(_PLACE)
    try:
        said = _make_archive(executor, src, names, prefix, largest)
        with tempfile.TemporaryFile(dir=dest) as archive:
            fetch(executor, f"{prefix}.tar", archive, largest=largest)
            total, came = unpack(archive, dest, names)
    finally:
        with suppress(QgaError):
            remove_rest(executor, prefix)
    if not came:
        raise TransferError(f"the guest's tar found none of the files of {src}: {said}")
    return total, came


def _make_archive(executor: Executor, src: str, names: Sequence[bytes], prefix: str, largest: int | None) -> str:
    """Have the guest make an archive of these files; return what its tar said last."""
    blocks = _UNLIMITED if largest is None else min(_UNLIMITED, largest // 512 + 1)
    command = ShellCommand.of(f"{variables(f'{src}/.', t=prefix, b=str(blocks))}{_ARCHIVE}")
    stdin = b"".join(name + b"\0" for name in names)
    made = when_thawed(executor.agent, lambda: run_shell(executor, command, stdin, whole=False))
    checked(made, f"make an archive of {src}")
    return last_line(made.stderr)


def unpack(archive: IO[bytes], dest: bytes, names: Sequence[bytes]) -> tuple[int, dict[bytes, str]]:
    """Write those files of ``archive`` that are in ``names`` below ``dest``; return as ``fetch_tree`` does."""
    wanted = set(names)
    came: dict[bytes, str] = {}
    total = 0
    for member in members(archive):
        path = at(dest, member.name)
        if member.name not in wanted or member.name in came:
            continue
        if member.kind == "file":
            with replacing(path) as new:
                came[member.name] = _write(archive, member.size, new)
                os.chmod(new, _mode(path, bool(member.mode & 0o100)))
            total += member.size
        elif member.kind == "hardlink" and member.target in came:
            with replacing(path) as new:
                os.unlink(new)
                os.link(at(dest, member.target), new)  # a copy would let a small archive fill the disk
            came[member.name] = came[member.target]
    return total, came


def _write(source: IO[bytes], size: int, path: bytes) -> str:
    """Write the next ``size`` bytes of ``source`` to a file, and return their SHA-256."""
    summed = hashlib.sha256()
    with open(path, "wb") as sink:
        while size > 0:
            piece = source.read(min(size, CHUNK))
            if not piece:
                raise TransferError("the archive that the guest made is not whole")
            summed.update(piece)
            size -= sink.write(piece)
    return summed.hexdigest()


def _mode(path: bytes, executable: bool) -> int:
    """Return the mode of the file at ``path``, or of a new one, which only its owner can read."""
    with suppress(OSError):
        present = os.lstat(path).st_mode
        if stat.S_ISREG(present):
            return present & 0o7777
    return 0o700 if executable else 0o600
