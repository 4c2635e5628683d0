# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a shell command in a guest by a path that is not its agent, for playbooks and tests to see what an agent did.

witness.py console SOCKET COMMAND   in a booted guest, through its serial console
witness.py root PID COMMAND         among the files of the loose agent with this process number
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab import console, host  # noqa: E402

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def main(kind: str, where: str, command: str) -> int:
    """Run the command, print what it prints, return its exit status."""
    if kind == "root":
        argv = ["env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", "chroot", f"/proc/{where}/root", "/bin/sh", "-c", command]
        argv = host.as_root(argv)
        os.execvp(argv[0], argv)
    status, output = console.run(Path(where), command, 60)
    sys.stdout.buffer.write(output.encode("utf-8", "surrogateescape"))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
