# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of an agent, and the reasons why it refuses others."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any, Callable, Mapping, NamedTuple, Sequence, Tuple

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol, schema
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandError, CommandUnavailable, QgaError

__all__ = ("AgentInfo", "Situation", "look_around", "refusal")

# Ids as in guest-get-osinfo.
_RED_HAT = ("rhel", "centos", "fedora", "rocky", "almalinux", "ol", "amzn")
_WINDOWS = "mswindows"

_MONITOR = "This is the socket of QEMU's monitor. The agent's is that of the port org.qemu.guest_agent.0."

# Most parts of a version, and characters of each, that are parsed: a guest may send any text as its version.
_MOST_PARTS, _LONGEST_PART = 4, 9


class AgentInfo(NamedTuple):
    """The reply to guest-info: the agent's ``version`` and its ``commands``, by name: enabled or not."""

    version: str
    commands: Mapping[str, bool]

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> AgentInfo:
        """Return what the reply says.

        :raise ProtocolError: if that is not what the schema says.
        """
        table = {}
        for entry in protocol.expect(reply.get("supported_commands"), list, "supported_commands"):
            entry = protocol.expect(entry, dict, "a member of supported_commands")
            table[protocol.expect(entry.get("name"), str, "the command's name")] = entry.get("enabled") is True
        return cls(protocol.expect(reply.get("version"), str, "version"), table)

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """The version as numbers, up to the first part that is none."""
        return _numbers(self.version)

    @property
    def looks_frozen(self) -> bool:
        """Whether only commands for a frozen guest are enabled: then the list does not show the agent's abilities."""
        enabled = [name for name, is_enabled in self.commands.items() if is_enabled]
        return "guest-fsfreeze-status" in enabled and all(schema.command(name).while_frozen for name in enabled)

    def missing(self, commands: Sequence[str]) -> list[str]:
        """Return those of ``commands`` that are not enabled."""
        return [command for command in commands if not self.commands.get(command, False)]


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.replace("-", ".").split(".", _MOST_PARTS)[:_MOST_PARTS]
    digits = itertools.takewhile(lambda part: part.isdecimal() and len(part) <= _LONGEST_PART, parts)
    return tuple(map(int, digits))


Situation = Tuple[AgentInfo, str, Any]
"""What explains refusals: guest-info's present reply, the id of the guest's operating system (empty if unknown), and
the reply to guest-fsfreeze-status (None if the agent refuses that, too)."""


def look_around(known: AgentInfo | None, look: Callable[[], AgentInfo], ask: Callable[[str], Any]) -> Situation | None:
    """Ask an agent, of which ``known`` is an earlier guest-info, for its situation; return None if it does not tell.

    ``look`` returns the present guest-info, and ``ask`` the result of a command.
    """
    try:
        # Status first, then guest-info: if the guest is thawed in between, the command shows as enabled.
        status = _if_told(known or look(), ask, "guest-fsfreeze-status")
        info = look()
    except QgaError:
        return None
    system = ""
    with suppress(QgaError):  # a less precise hint must not replace the error itself
        system = str((_if_told(info, ask, "guest-get-osinfo") or {}).get("id", ""))
    return info, system, status


def _if_told(info: AgentInfo, ask: Callable[[str], Any], command: str) -> Any:
    """Return the result of the read-only ``command``; None if the agent refuses it."""
    if not info.commands.get(command):
        return None
    try:
        return ask(command)
    except CommandError:
        return None


def refusal(commands: Sequence[str], words: str, situation: Situation | None) -> CommandUnavailable:
    """Return the error that explains why the agent does not run ``commands``, and what to do.

    ``words`` are the agent's own: all that is known without a ``situation``.
    """
    if situation is None:
        hint = _MONITOR if "qmp_capabilities" in words else ""
        return CommandUnavailable(words or "the agent does not say why", command=commands[0], hint=hint)
    info, system, status = situation
    was_thawed = status == "thawed" and any(info.commands.get(command) for command in commands)
    frozen = status == "frozen" or was_thawed
    groups: dict[str, list[str]] = {}
    for command in commands:
        groups.setdefault(_reason(command, info, system, frozen), []).append(command)
    messages, hints = [], []
    for reason, names in groups.items():
        what = "the command" if len(commands) == 1 else ", ".join(names)
        message, hint = _TEXTS[reason](names, what, info, system)
        messages.append(message)
        hints.append(hint)
    return CommandUnavailable(
        f"{'; '.join(messages)}.",
        command=commands[0],
        hint=" ".join(filter(None, hints)),
        reason=next(iter(groups)),
    )


def _reason(command: str, info: AgentInfo, system: str, frozen: bool) -> str:
    known = schema.command(command)
    # Agents of some versions list commands that their system lacks as disabled.
    if known.only_on and system and (known.only_on == "Windows") != (system == _WINDOWS):
        return "elsewhere"
    if command not in info.commands:
        return "unknown"
    return "frozen" if frozen and not known.while_frozen else "disabled"


def _elsewhere(names: Sequence[str], what: str, info: AgentInfo, system: str) -> tuple[str, str]:
    return f"only agents in {schema.command(names[0]).only_on} guests have {what}", ""


def _unknown(names: Sequence[str], what: str, info: AgentInfo, system: str) -> tuple[str, str]:
    message = f"this agent (version {info.version}) does not know {what}"
    newest = max(names, key=lambda name: _numbers(schema.command(name).since))
    since = schema.command(newest).since
    if not since:
        return message, ""
    older = info.version_tuple < _numbers(since)
    todo = "upgrade qemu-guest-agent in the guest" if older else "this agent was built without it"
    return message, f"{newest} came with version {since}: {todo}."


def _frozen(names: Sequence[str], what: str, info: AgentInfo, system: str) -> tuple[str, str]:
    return (
        "blocked while the guest's filesystems are frozen",
        "When nobody needs that any more, thaw them with the module qemu.guest.qga_fsfreeze "
        "(ansible GUEST -m qemu.guest.qga_fsfreeze -a state=thawed), which stops a timer that would thaw them, too.",
    )


def _disabled(names: Sequence[str], what: str, info: AgentInfo, system: str) -> tuple[str, str]:
    several = f": {what}" if what != "the command" else ""
    return (
        f"disabled by the guest's administrator (agent version {info.version}){several}",
        _how_to_enable(", ".join(names), info, system),
    )


_TEXTS = {"elsewhere": _elsewhere, "unknown": _unknown, "frozen": _frozen, "disabled": _disabled}


def _how_to_enable(names: str, info: AgentInfo, system: str) -> str:
    """Return the changes to make in the guest, for its system and agent version."""
    block = "block-rpcs" if info.version_tuple >= (7,) else "blacklist"
    if system in _RED_HAT:
        return (
            f"In the guest, edit /etc/sysconfig/qemu-ga: take {names} out of BLACKLIST_RPC or BLOCK_RPCS, or "
            "where it says --allow-rpcs (FILTER_RPC_ARGS) add that; then run: systemctl restart qemu-guest-agent"
        )
    if system == _WINDOWS:
        return (
            f"In the guest, take {names} out of {block} in the agent's qemu-ga.conf and in the command line of the "
            "service qemu-ga (sc qc qemu-ga shows it); then restart that service."
        )
    # Debian's unit reads no other file and sets no options (bullseye to sid, and Ubuntu); its init script does.
    return (
        f"In the guest, take {names} out of {block} (or add that to allow-rpcs, if it is set) in "
        "/etc/qemu/qemu-ga.conf, section [general], and out of the agent's command line (systemctl cat "
        "qemu-guest-agent; without systemd, DAEMON_ARGS in /etc/default/qemu-guest-agent); then run: systemctl restart "
        "qemu-guest-agent (service qemu-guest-agent restart)"
    )
