# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of one guest that was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ("ANSWERS", "HERE", "NO_AGENT", "OFF", "QEMU_USERS", "SILENT", "Guest")

ANSWERS, SILENT, NO_AGENT, OFF = "answers", "silent", "no_agent", "off"
HERE = "localhost"
"""The name of this machine as a hypervisor."""
QEMU_USERS = ("root", "qemu", "libvirt-qemu")
"""The users that administrators run QEMU as: nobody else can start processes of theirs."""


@dataclass
class Guest:
    """A guest of ``hypervisor``. Texts are empty where nothing is known.

    ``address`` is what ``ansible_qga_address`` becomes; ``socket`` is the real path of its socket there, which tells
    that two addresses are one, and ``listens`` whether a process was seen to have it open. ``state`` is one of the
    constants above, empty until the agent was asked; ``reason`` is why it is silent.
    """

    hypervisor: str
    source: str
    remote: bool = False
    name: str = ""
    uuid: str = ""
    vmid: str = ""
    pid: str = ""
    user: str = ""
    address: str = ""
    socket: str = ""
    qmp_address: str = ""
    libvirt_uri: str = ""
    state: str = ""
    reason: str = ""
    listens: bool = False
    tags: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What a warning calls the guest."""
        what = self.name or self.uuid or self.address or (f"process {self.pid}" if self.pid else "a guest")
        return f"{what} on {self.hypervisor}"

    @property
    def is_asked(self) -> bool:
        """Whether only its agent can tell its state."""
        return bool(self.address) and not self.state

    def plain(self) -> dict[str, Any]:
        """Return the record as data for a cache."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Any) -> Guest:
        """Return the record that ``plain`` returned.

        :raise ValueError: if ``data`` is something else.
        """
        known = {each.name: each for each in fields(cls)}
        if not isinstance(data, dict) or set(data) != set(known):
            raise ValueError("not the record of a guest")
        guest = cls(**data)
        blank = cls("", "")
        for name in known:
            if type(getattr(guest, name)) is not type(getattr(blank, name)):
                raise ValueError(f"{name} is of the wrong type")
        return guest
