# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print what an operation may leave in a guest, a line each; guests.py has the guest's Python run this as root.

That is files open in the agent, processes beside it, and files. What serves later tasks is left out: the runner and
warm Python, with what they remove by themselves. Where there is systemd, so is what it runs and writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

RUNNER = "/run/qemu-guest-runner"
SYSTEMD = os.path.isdir("/run/systemd/system")
# The kernel's threads, the agent and the script around a loose one, the runner, its clock, warm Python, and this.
STAYS = re.compile(r"^$|loose.sh|^\S*\bqemu-ga( |$)|qemu-guest|^sleep 600$|^/usr/bin/python3 -S$")
OPEN = ("/srv/", "/tmp/", "/run/qemu", "/root/", "/var/")
# A file that was open before is the same when it is moved or removed.
MOVED = re.compile(rf"^({RUNNER}/).*/| [(]deleted[)]$")
TOPS = ("/tmp", "/root", "/srv", "/run", "/var/tmp")


def read(pid: str, name: str) -> str:
    with open(f"/proc/{pid}/{name}", errors="replace", encoding="utf-8") as file:
        return file.read().replace("\0", " ").strip()


def command_lines() -> Iterator[tuple[str, str, str]]:
    """Yield number, parent and command line of each process that may be of an operation."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if not SYSTEMD or "qemu-guest" in read(pid, "cgroup"):
                yield pid, read(pid, "stat").rpartition(")")[2].split()[1], read(pid, "cmdline")
        except OSError:  # it has ended
            continue


def handles(pid: str) -> Iterator[str]:
    """Yield the paths of files that the agent has open."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:  # it was closed
            continue
        if path.startswith(OPEN) and "/lab-" not in path:
            yield MOVED.sub(r"\1", path)


def files() -> Iterator[str]:
    for top in TOPS:
        for directory, _names, names in os.walk(top):
            for path in [os.path.join(directory, name) for name in names]:
                is_systemds = SYSTEMD and ("/systemd" in path or (top == "/run" and "qemu-guest" not in path))
                if not path.startswith(RUNNER) and not is_systemds:
                    yield path


def lines() -> Iterator[str]:
    processes = list(command_lines())
    stays = {pid for pid, _parent, line in processes if STAYS.search(line)}
    waits = {parent for pid, parent, _line in processes if pid in stays}
    for pid, _parent, line in processes:
        if line.split(" ")[0].endswith("qemu-ga"):
            yield from (f"handle {path}" for path in handles(pid))
        if pid not in stays | waits:
            yield f"process {line}"
    yield from (f"file {path}" for path in files())


if __name__ == "__main__":
    for text in lines():
        print(text.encode("utf-8", "backslashreplace").decode())
