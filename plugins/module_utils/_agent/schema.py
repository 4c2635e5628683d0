# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of QEMU's agent schema, as far as a careful client needs them.

The agent alone decides which commands exist and which arguments they take; this table decides which commands may be
repeated, which never answer, and which type a reply must have.
"""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import MAX_STRUCTURE

__all__ = ("COMMANDS", "Command", "is_change", "is_read_only", "longest_reply", "with_underscores")

_NOTHING = dict  # "returns nothing" is an empty object on the wire


class Command(NamedTuple):
    """One command of the schema.

    ``since``: the QEMU version that introduced it; ``returns``: the Python type of its return value; ``read_only``: it
    may be repeated, and counts as no change; ``answers``: False for a command that answers only when it fails;
    ``while_frozen``: a frozen guest still takes it; ``least_seconds``: its minimum timeout, however short the client's
    is; ``only_on``: the only operating system that has it, if any (C(Linux) or C(Windows)); ``once``: its reply may be
    long, and is lost if it is not read.
    """

    since: str
    returns: tuple[type, ...] = (_NOTHING,)
    read_only: bool = False
    answers: bool = True
    while_frozen: bool = False
    least_seconds: float = 0.0
    only_on: str = ""
    once: bool = False


def _reads(since: str, returns: type, while_frozen: bool = False, only_on: str = "") -> Command:
    return Command(since, (returns,), read_only=True, while_frozen=while_frozen, only_on=only_on)


COMMANDS: dict[str, Command] = {
    "guest-sync-delimited": _reads("1.1", int, while_frozen=True),
    "guest-sync": _reads("0.15", int, while_frozen=True),
    "guest-ping": _reads("0.15", _NOTHING, while_frozen=True),
    "guest-info": _reads("0.15", dict, while_frozen=True),
    "guest-get-time": _reads("1.5", int),
    # It ends when hwclock does, which waits up to 10 seconds for the RTC's tick.
    "guest-set-time": Command("1.5", least_seconds=30.0),
    "guest-shutdown": Command("0.15", answers=False),
    "guest-file-open": Command("0.15", (int,)),
    "guest-file-close": Command("0.15"),
    "guest-file-read": Command("0.15", (dict,)),
    "guest-file-write": Command("0.15", (dict,)),
    "guest-file-seek": Command("0.15", (dict,)),
    "guest-file-flush": Command("0.15"),
    "guest-fsfreeze-status": _reads("0.15", str, while_frozen=True),
    # They end when the guest's hooks do, which flush databases.
    "guest-fsfreeze-freeze": Command("0.15", (int,), least_seconds=60.0),
    "guest-fsfreeze-freeze-list": Command("2.2", (int,), least_seconds=60.0),
    "guest-fsfreeze-thaw": Command("0.15", (int,), while_frozen=True, least_seconds=60.0),
    # Agents before 2.4 return nothing.
    "guest-fstrim": Command("1.2", (dict,)),
    "guest-suspend-disk": Command("1.1", answers=False),
    "guest-suspend-ram": Command("1.1", answers=False),
    "guest-suspend-hybrid": Command("1.1", answers=False, only_on="Linux"),
    "guest-network-get-interfaces": _reads("1.1", list),
    "guest-network-get-route": _reads("9.1", list, only_on="Linux"),
    "guest-get-vcpus": _reads("1.5", list),
    "guest-set-vcpus": Command("1.5", (int,), only_on="Linux"),
    "guest-get-memory-blocks": _reads("2.3", list, only_on="Linux"),
    "guest-set-memory-blocks": Command("2.3", (list,), only_on="Linux"),
    "guest-get-memory-block-info": _reads("2.3", dict, only_on="Linux"),
    "guest-get-fsinfo": _reads("2.2", list),
    "guest-get-disks": _reads("5.2", list),
    "guest-get-diskstats": _reads("7.1", list, only_on="Linux"),
    "guest-get-cpustats": _reads("7.1", list, only_on="Linux"),
    "guest-get-load": _reads("10.0", dict),
    "guest-get-devices": _reads("5.2", list, only_on="Windows"),
    "guest-get-host-name": _reads("2.10", dict),
    "guest-get-users": _reads("2.10", list),
    "guest-get-timezone": _reads("2.10", dict),
    "guest-get-osinfo": _reads("2.10", dict),
    # It ends when chpasswd does, which waits up to 15 seconds for other programs that change passwords, and hashes as
    # slowly as the guest's settings say.
    "guest-set-user-password": Command("2.3", least_seconds=60.0),
    "guest-ssh-get-authorized-keys": _reads("5.2", dict),
    "guest-ssh-add-authorized-keys": Command("5.2"),
    "guest-ssh-remove-authorized-keys": Command("5.2"),
    "guest-exec": Command("2.5", (dict,)),
    # Reports the end of a program exactly once: a repetition would lose the result.
    "guest-exec-status": Command("2.5", (dict,), once=True),
}

_OTHER = Command("", (object,))


def command(name: str) -> Command:
    """Return the table's entry for the command ``name``; for an unknown command, one that assumes nothing."""
    return COMMANDS.get(name, _OTHER)


def is_read_only(name: str) -> bool:
    """Return whether the command changes nothing in the guest and may be repeated."""
    return command(name).read_only


def is_change(name: str) -> bool:
    """Return whether the command changes the guest by itself; files and programs do that in their last step only."""
    return not is_read_only(name) and not name.startswith(("guest-file-", "guest-exec"))


def companions(name: str, arguments: Mapping[str, Any] | None = None) -> Sequence[str]:
    """Return the commands without which this one, with these arguments, is of no use."""
    if name == "guest-exec":
        return ("guest-exec-status",)
    if name != "guest-file-open":
        return ()
    mode = str((arguments or {}).get("mode", "r"))
    reads, writes = mode.startswith("r") or "+" in mode, not mode.startswith("r") or "+" in mode
    return (*(["guest-file-read"] if reads else []), *(["guest-file-write"] if writes else []), "guest-file-close")


# Most bytes of content in a reply: a guest-file-read of the largest count that agents take, if its own is unknown, and
# two full 16 MiB captures of guest-exec-status; before base64.
_LARGEST_COUNT = 48 << 20
_CAPTURES = 2 * (16 << 20)
_USUAL_COUNT = 4096  # the agent's default


def longest_reply(name: str, arguments: Mapping[str, Any] | None = None) -> int:
    """Return the most bytes that the reply to a command can have."""
    content = 0
    if name == "guest-exec-status":
        content = _CAPTURES
    elif name == "guest-file-read":
        count = (arguments or {}).get("count", _USUAL_COUNT)
        content = min(count, _LARGEST_COUNT) if isinstance(count, int) and count > 0 else _LARGEST_COUNT
    return MAX_STRUCTURE + (content + 2) // 3 * 4


def argument_name(name: str) -> str:
    """Return a schema member's name as this collection writes it in results: C(ip-address) becomes C(ip_address)."""
    return name.replace("-", "_")


def with_underscores(value: Any) -> Any:
    """Return ``value`` with ``-`` replaced by ``_`` in all names of members, at any depth."""
    if isinstance(value, dict):
        return {argument_name(str(k)): with_underscores(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_underscores(v) for v in value]
    return value
