# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count what is in a guest. sample.py has the guest's Python run this, by another path than the agent.

inside.py LEDGER    JSON: of each kind of process, what there is of it; the files that stay; the ledger's lines
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

HOME = "/run/qemu-guest-runner"
# Where tasks and files wait on their way.
PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/root/.ansible/tmp", "/root/.ansible_async")
# systemd's own, in /tmp and /var/tmp, and what a screen or an X server would have.
NOT_OURS = re.compile(r"systemd-private-|[.].*-unix$")


def kind_of(process: Path, servers: set[str]) -> str:
    """Return which of ours a process is; its name, in brackets, if it is another's; nothing for one of the kernel's."""
    words = process.joinpath("cmdline").read_bytes().split(b"\0")[:-1]
    name = process.joinpath("comm").read_text(encoding="utf-8", errors="replace").strip()
    if not words:
        return ""
    if name == "qemu-ga":
        return "agent"
    if any(word.startswith(os.fsencode(HOME)) for word in words):
        return "runner"
    if process.name in servers:
        return "server"
    if words[1:] == [b"-S"]:
        return "interpreters"
    if b'eval "$QEMU_GUEST"' in words or b"BECOME-SUCCESS-" in b"".join(words):
        return "shells"
    return f"[{name}]"


def processes() -> tuple[dict[str, dict[str, int]], Counter[str]]:
    """Return the sums of our processes by their kind, and how many others there are by their names."""
    servers = {path.read_text(encoding="ascii").strip() for path in Path(HOME).glob("warm-*/pid")}
    ours: dict[str, dict[str, int]] = {}
    others: Counter[str] = Counter()
    for name in filter(str.isdigit, os.listdir("/proc")):
        process = Path("/proc", name)
        with suppress(OSError):  # it has ended meanwhile
            kind = kind_of(process, servers) if int(name) not in (os.getpid(), os.getppid()) else ""
            if kind.startswith("["):
                others[kind] += 1
            elif kind:
                memory = process.joinpath("smaps_rollup").read_text(encoding="ascii")
                found = {unit: int(size) << 10 for unit, size in re.findall(r"^(Pss|Rss): +(\d+) kB", memory, re.M)}
                sums = ours.setdefault(kind, {"processes": 0, "descriptors": 0, "pss": 0, "rss": 0})
                sums["processes"] += 1
                sums["descriptors"] += len(os.listdir(process / "fd"))
                sums["pss"] += found["Pss"]
                sums["rss"] += found["Rss"]
    return ours, others


def files() -> tuple[list[str], list[str]]:
    """Return the files in the runner's directory, and those that are on their way elsewhere."""
    homes = [str(home / ".ansible" / "tmp") for home in Path("/home").iterdir()]
    there = [str(path) for place in (*PLACES, *homes) if Path(place).is_dir() for path in Path(place).iterdir()]
    left = [path for path in there if not NOT_OURS.match(os.path.basename(path))]
    return [str(path) for path in Path(HOME).rglob("*")], left


def main() -> None:
    ours, others = processes()
    runner, left = files()
    room = os.statvfs("/run")
    ledger = Path(sys.argv[1])
    print(
        json.dumps(
            {
                "ours": ours,
                "others": others,
                "runner": runner,
                "left": left,
                "run": (room.f_blocks - room.f_bfree) * room.f_frsize,
                "ledger": ledger.read_text(encoding="ascii").split() if ledger.exists() else [],
            }
        )
    )


if __name__ == "__main__":
    main()
