# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems in files of other filesystems: on those, an agent older than 10.0 can hang its guest when it freezes."""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandError, OperationError
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import expect

__all__ = ("filesystems", "first_mounted", "refuse_stacked", "stacked")

# From this version on, agents freeze each filesystem once, at the mount point that was mounted first.
_ONCE_EACH = (10,)

# These are never written to, so they cannot wait for a frozen filesystem.
_READ_ONLY = ("squashfs", "iso9660", "erofs", "cramfs", "romfs")


class Filesystem(NamedTuple):
    """A mounted filesystem from guest-get-fsinfo. ``on_disk``: its device is on a disk that the agent knows.

    ``name`` is the device's, so it is the same for all mount points of one filesystem.
    """

    name: str
    mountpoint: str
    type: str
    on_disk: bool


def refuse_stacked(agent: Agent, points: Sequence[str] | None) -> None:
    """Refuse to freeze filesystems on which an older agent would hang.

    :raise OperationError: with the mount points to name instead.
    """
    if agent.info.version_tuple >= _ONCE_EACH or not agent.supports("guest-get-fsinfo"):
        return
    try:
        listed = filesystems(agent.execute("guest-get-fsinfo"))
    except CommandError:
        return  # the agent fails for devices that it does not understand, but can still freeze
    found = stacked(listed, points)
    if found:
        upper, lower = found
        raise OperationError(
            f"nothing was frozen, because the guest may hang in it: {upper.mountpoint} is on {upper.name}, which may "
            f"lie in a file of {lower.name}, and the guest's agent (version {agent.info.version}) freezes that before "
            f"it, at {lower.mountpoint}. Name each filesystem once: mountpoints={first_mounted(listed, points)}. If "
            f"you know that no file of {lower.name} is below {upper.name}, set allow_stacked=true."
        )


def filesystems(reply: Sequence[Any]) -> list[Filesystem]:
    """Return the filesystems from guest-get-fsinfo, in its order: last mounted first, the order of freezing.

    :raise ProtocolError: if the reply does not match the schema.
    """
    found = []
    for entry in reply:
        entry = expect(entry, dict, "a filesystem")
        name, point, kind = (expect(entry.get(member), str, member) for member in ("name", "mountpoint", "type"))
        found.append(Filesystem(name, point, kind, bool(expect(entry.get("disk", []), list, "disk"))))
    return found


def stacked(listed: Sequence[Filesystem], points: Sequence[str] | None = None) -> tuple[Filesystem, Filesystem] | None:
    """Return a filesystem that may lie in a file of one that is frozen before it, and the latter; None if none does.

    ``listed`` is in the order of freezing; with ``points``, only those mount points are frozen. A filesystem may lie in
    a file if its device is on no disk; the file is on a filesystem that was mounted earlier.
    """
    for position, upper in enumerate(listed):
        if upper.on_disk or upper.type in _READ_ONLY or not _frozen_at(upper, points):
            continue
        before = {other.name for other in listed[position + 1 :]} - {upper.name}
        for lower in listed[:position]:
            if lower.name in before and _frozen_at(lower, points):
                return upper, lower
    return None


def first_mounted(listed: Sequence[Filesystem], points: Sequence[str] | None = None) -> list[str]:
    """Return the first mount point of each filesystem to freeze, in the order of mounting."""
    wanted = {filesystem.name for filesystem in listed if _frozen_at(filesystem, points)}
    first = {filesystem.name: filesystem.mountpoint for filesystem in listed if filesystem.name in wanted}
    return [f.mountpoint for f in reversed(listed) if first.get(f.name) == f.mountpoint]


def _frozen_at(filesystem: Filesystem, points: Sequence[str] | None) -> bool:
    return points is None or filesystem.mountpoint in points
