# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a shell command in a booted guest through its serial console, for playbooks to see what its agent did.

witness.py SOCKET COMMAND
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab import console


def main(socket: str, command: str) -> int:
    """Run the command, print what it prints, return its exit status."""
    status, output = console.run(Path(socket), command, 60)
    sys.stdout.buffer.write(output.encode("utf-8", "surrogateescape"))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
