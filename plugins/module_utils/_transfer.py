# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole files to and from the guest: never open to others on the way, and the same at both ends.

Stands on _files (the bytes) and, where the agent may run programs, on _exec (who may read, and checksums).
"""

from __future__ import annotations

import shlex
from typing import BinaryIO, Callable

from ansible_collections.qemu.guest.plugins.module_utils._agent import Agent
from ansible_collections.qemu.guest.plugins.module_utils._errors import TransferError
from ansible_collections.qemu.guest.plugins.module_utils._exec import can_run_programs
from ansible_collections.qemu.guest.plugins.module_utils._files import Copied, copy_in, copy_out
from ansible_collections.qemu.guest.plugins.module_utils._shell import check_shell, sha256

__all__ = ("create_private", "digest", "fetch", "put")


def put(agent: Agent, source: BinaryIO, path: str) -> Copied:
    """Write ``source`` to the guest's file ``path`` and make sure that it arrived.

    A new file has mode 0600 where the agent may run programs; an existing one keeps its mode.

    :raise TransferError: if what is in the guest is not what was sent.
    :raise OperationError: if the file cannot be created; its text is the guest's own.
    """
    if can_run_programs(agent):
        create_private(agent, path)
    copied = copy_in(agent, source, path)
    if not copied.checked and digest(agent, path, copied.size) != copied.sha256:
        raise TransferError(f"{path} is not what was written to it")
    return copied


def create_private(agent: Agent, path: str) -> None:
    """Create ``path`` empty with mode 0600, unless it exists: a file that guest-file-open creates is 0666.

    :raise OperationError: if it cannot be created.
    """
    name = shlex.quote(path)
    check_shell(agent, f"[ -e {name} ] || {{ umask 077; set -C; : >{name}; }}", f"create {path}")


def fetch(agent: Agent, path: str, write: Callable[[bytes], object]) -> Copied:
    """Hand the content of the guest's file ``path`` to ``write`` and make sure that it is what the guest has.

    A file that grew meanwhile is right as far as it was read.

    :raise TransferError: if it is not.
    """
    copied = copy_out(agent, path, write)
    if copied.checked:
        return copied
    # Nobody can tell what a file without a size (/proc) holds a moment later.
    there = sha256(agent, path, copied.size) if can_run_programs(agent) else digest(agent, path)
    if there is not None and there != copied.sha256:
        raise TransferError(f"{path} changed while it was read, or was damaged on the way")
    return copied


def digest(agent: Agent, path: str, size: int | None = None) -> str:
    """Return the SHA-256, in hex, of the guest's file, or of its first ``size`` bytes.

    Computed in the guest where that is possible, else by reading the whole file.
    """
    there = sha256(agent, path, size) if can_run_programs(agent) else None
    return there or copy_out(agent, path, len).sha256
