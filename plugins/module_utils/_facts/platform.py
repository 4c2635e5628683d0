# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts on the kernel, the machine and the host's name."""

from __future__ import annotations

import re

from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Facts, Replies, text

__all__ = ("platform_facts", "windows_version")

# ansible-core calls these i386.
_I386 = re.compile(r"i([3456]86|86pc)")
# The agent's names for processors of Windows, as ansible.windows has them in architecture2.
_OF_WINDOWS = {"x86_64": "x86_64", "x86": "i386", "arm": "arm", "ia64": "ia64"}


def platform_facts(replies: Replies) -> Facts:
    host = replies.commands.get("guest-get-host-name")
    name = text(host, "host-name") if isinstance(host, dict) else ""
    facts = _of_windows(replies, name) if replies.system == "Windows" else _of_posix(replies, name)
    return {fact: value for fact, value in facts.items() if value}


def _of_posix(replies: Replies, name: str) -> Facts:
    machine = text(replies.osinfo, "machine")
    return {
        "system": replies.system,
        "kernel": text(replies.osinfo, "kernel-release"),
        "kernel_version": text(replies.osinfo, "kernel-version"),
        "machine": machine,
        "architecture": "i386" if _I386.search(machine) else machine,
        "hostname": name.split(".")[0],
        "nodename": name,
    }


def _of_windows(replies: Replies, name: str) -> Facts:
    """The agent tells the name of NetBIOS; hostname and nodename are those of DNS, which it does not tell."""
    return {
        "system": "Win32NT",
        "kernel": windows_version(replies),
        "architecture2": _OF_WINDOWS.get(text(replies.osinfo, "machine"), ""),
        "netbios_name": name,
    }


def windows_version(replies: Replies) -> str:
    """Return the version as .NET has it: major, minor, build, and a revision that is always 0."""
    version, build = (text(replies.osinfo, f"kernel-{part}") for part in ("version", "release"))
    return f"{version}.{build}.0" if version and build else ""
