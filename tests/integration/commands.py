# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which module exposes each command of the agent, and which target exercises it. Tests hold this table to its word.

tests/tools/commands writes it to docs/commands.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import COMMANDS

HERE = Path(__file__).resolve().parent
TARGETS = HERE / "targets"
DOCUMENT = HERE.parents[1] / "docs" / "commands.md"


@dataclass(frozen=True)
class Covered:
    """Commands that a module exposes, and the target in which a real agent gets them and does not refuse them.

    `refused`: no guest of the lab can do them, so the target sees the error.
    """

    module: str
    target: str
    commands: str
    refused: bool = False

    def __iter__(self) -> Iterator[str]:
        return iter(self.commands.split())


COVERED = (
    Covered("qga_ping", "qga_ping", "guest-ping guest-sync-delimited"),
    # What the other modules use where an agent lacks guest-sync-delimited.
    Covered("qga_command", "qga_command", "guest-sync"),
    Covered("qga_exec", "qga_exec", "guest-exec guest-exec-status"),
    Covered(
        "qga_file", "qga_file", "guest-file-open guest-file-close guest-file-write guest-file-flush guest-file-seek"
    ),
    Covered("qga_fetch", "qga_fetch", "guest-file-read"),
    Covered(
        "qga_info",
        "qga_info",
        "guest-info guest-get-cpustats guest-get-disks guest-get-diskstats guest-get-fsinfo guest-get-host-name "
        "guest-get-load guest-get-memory-block-info guest-get-memory-blocks guest-get-osinfo guest-get-time "
        "guest-get-timezone guest-get-users guest-get-vcpus guest-network-get-interfaces guest-network-get-route",
    ),
    Covered(
        "qga_authorized_keys",
        "qga_authorized_keys",
        "guest-ssh-get-authorized-keys guest-ssh-add-authorized-keys guest-ssh-remove-authorized-keys",
    ),
    Covered("qga_user_password", "qga_user_password", "guest-set-user-password"),
    Covered(
        "qga_fsfreeze",
        "qga_fsfreeze",
        "guest-fsfreeze-status guest-fsfreeze-freeze guest-fsfreeze-freeze-list guest-fsfreeze-thaw",
    ),
    Covered("qga_fstrim", "qga_fstrim", "guest-fstrim"),
    Covered("qga_vcpus", "qga_vcpus", "guest-set-vcpus"),
    Covered("qga_memory_blocks", "qga_memory_blocks", "guest-set-memory-blocks"),
    Covered("qga_time", "qga_time", "guest-set-time"),
    Covered("qga_shutdown", "qga_shutdown", "guest-shutdown"),
    Covered("qga_suspend", "qga_suspend", "guest-suspend-ram"),
    Covered("qga_suspend", "qga_suspend", "guest-suspend-disk guest-suspend-hybrid", refused=True),
)
TABLE = {command: covered for covered in COVERED for command in covered}


def seed_commands() -> set[str]:
    """Return the commands that the agent had in QEMU 1.5."""
    lines = (HERE / "seed-commands.txt").read_text(encoding="ascii").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def needs_guest(target: str) -> bool:
    """Return whether the target acts on a kernel, and so on a booted guest only: it has the alias needs/guest."""
    return "needs/guest" in (TARGETS / target / "aliases").read_text(encoding="ascii").splitlines()


def targets_of_modules(*, in_guests: bool) -> list[str]:
    """Return the targets of modules that need a booted guest, or those that do not."""
    names = sorted(path.name for path in TARGETS.glob("qga_*"))
    return [name for name in names if needs_guest(name) is in_guests]


def document() -> str:
    """Return the table as a page of the documentation."""
    rows = "".join(
        f"| `{command}` | {COMMANDS[command].since} | `{covered.module}` | {_tested(covered)} |\n"
        for command, covered in sorted(TABLE.items())
    )
    return _PAGE.format(rows=rows)


def _tested(covered: Covered) -> str:
    if not (TARGETS / covered.target).is_dir():
        return "not yet"
    where = "booted guests" if needs_guest(covered.target) else "agents"
    return f"`{covered.target}`, on {where}{' that refuse it' if covered.refused else ''}"


_PAGE = """\
<!--
Copyright (c) 2026 the qemu.guest authors
GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later

Written by the repository's tests/tools/commands from tests/integration/commands.py. Do not edit.
-->

# The agent's commands

Every command that the newest agent has on Linux, the module to use it with, and the test of the collection's repository
that runs it on real agents.
`qga_command` runs any of them, and those of agents to come.

| command | since QEMU | module | test |
|---|---|---|---|
{rows}
Every module begins with `guest-sync-delimited`, or with `guest-sync` where an agent lacks that. `guest-get-devices` is
a command of agents on Windows: `qga_info` returns what it tells, and no test has seen it.
"""


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
