# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look into a mount namespace, for controller.py, which runs this as root.

left.py processes HOLDER DIRECTORY     JSON: [pid, name, PSS, RSS, descriptors] of all but the process HOLDER
left.py sockets HOLDER DIRECTORY       JSON: the sockets in DIRECTORY there
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def processes(holder: str) -> Iterator[tuple[int, str, int, int, int]]:
    """Yield what there is to say of each process. One that ends meanwhile is left out."""
    namespace = os.readlink(f"/proc/{holder}/ns/mnt")
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, AttributeError):
            if name != holder and os.readlink(f"/proc/{name}/ns/mnt") == namespace:
                memory = Path("/proc", name, "smaps_rollup").read_text(encoding="ascii")
                pss, rss = (
                    1024 * int(re.search(rf"^{kind}: +(\d+) kB", memory, re.MULTILINE)[1])  # type: ignore[index]
                    for kind in ("Pss", "Rss")
                )
                comm = Path("/proc", name, "comm").read_text(encoding="utf-8", errors="replace").strip()
                yield int(name), comm, pss, rss, len(os.listdir(f"/proc/{name}/fd"))


def sockets(holder: str, directory: str) -> Iterator[str]:
    there = Path(f"/proc/{holder}/root{directory}")
    for path in there.iterdir():
        if stat.S_ISSOCK(path.lstat().st_mode):
            yield path.name


if __name__ == "__main__":
    what, holder, directory = sys.argv[1:]
    print(json.dumps([*(processes(holder) if what == "processes" else sockets(holder, directory))]))
