# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts on mounted filesystems of Linux."""

from __future__ import annotations

import re
from typing import Any, Mapping

from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Facts, Replies, number, text

__all__ = ("MOUNTS", "mount_facts")

MOUNTS = "/proc/self/mounts"
_OCTAL = re.compile(r"\\([0-7]{3})")


def mount_facts(replies: Replies) -> Facts:
    """Return the mounts that ansible-core lists; without the file, those of them that the agent knows of."""
    if replies.system != "Linux":
        return {}
    known = {text(entry, "mountpoint"): entry for entry in replies.listed("guest-get-fsinfo")}
    if MOUNTS in replies.files:
        found = _listed(replies.files[MOUNTS])
    elif "guest-get-fsinfo" in replies.commands:
        found = {point: {"mount": point, "fstype": text(entry, "type")} for point, entry in known.items() if point}
    else:
        return {}
    return {"mounts": [{**mount, **_sizes(known.get(point, {}))} for point, mount in found.items()]}


def _listed(content: str) -> dict[str, Facts]:
    """Return the filesystems on devices and of other machines, by mount point; the last one covers those before."""
    found: dict[str, Facts] = {}
    for line in content.splitlines():
        words = [_OCTAL.sub(lambda match: chr(int(match.group(1), 8)), word) for word in line.split()]
        if len(words) != 6 or not (words[0].startswith(("/", "\\")) or ":/" in words[0]) or words[2] == "none":
            continue
        found[words[1]] = {"mount": words[1], "device": words[0], "fstype": words[2]}
    return found


def _sizes(entry: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes in bytes; the agent's total leaves out what is reserved for root."""
    total, used = number(entry, "total-bytes"), number(entry, "used-bytes")
    whole = number(entry, "total-bytes-privileged")
    sizes = {
        "size_total": whole,
        "size_available": total - used if total is not None and used is not None else None,
    }
    return {name: size for name, size in sizes.items() if size is not None}
