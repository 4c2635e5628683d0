# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a machine: run look.sh on it, and take its output apart."""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line

__all__ = ("Places", "Process", "Runs", "Socket", "View", "here", "look", "parse_view")

MOST_BYTES = 32 * 1024 * 1024
"""Of what a machine prints. 4,000 guests with their command lines take about 12 MB."""

_SECONDS_TO_END = 1.0


@dataclass(frozen=True)
class Places:
    """Where things are on a machine."""

    proc: str = "/proc"
    proxmox_run: str = "/var/run/qemu-server"
    proxmox_conf: str = "/etc/pve"
    ganeti_run: str = "/var/run/ganeti"


@dataclass(frozen=True)
class Process:
    """A process that may be a QEMU. ``user`` is its owner's name; ``program`` and ``directory`` may not be readable.

    ``root`` is the path of its root directory if it has another one than we: that of a container.
    """

    pid: str
    user: str
    program: str
    directory: str
    arguments: Sequence[str]
    root: str = ""


@dataclass(frozen=True)
class Socket:
    """A socket, found by ``source``. ``real`` is its path without symbolic links."""

    source: str
    path: str
    real: str


@dataclass
class View:
    """What there is on a machine. ``confs``: the lines of Proxmox' configuration by file name, of this node or any."""

    processes: list[Process] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)
    confs: dict[str, str] = field(default_factory=dict)
    is_node: bool = False
    proxmox_run: str = ""
    listening: frozenset[str] = frozenset()
    whole: bool = False


class Runs(Protocol):
    """Runs a shell command on a machine; a Hypervisor does."""

    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]: ...


def look(
    machine: Runs | None,
    sources: Sequence[str],
    globs: Sequence[str],
    places: Places,
    seconds: float,
    most_bytes: int = MOST_BYTES,
) -> View:
    """Return what there is on ``machine``; None is this one. ``most_bytes`` of its output are read.

    :raise ConnectError: if it cannot be asked, or does not answer in time.
    """
    boundary = secrets.token_hex(16)
    arguments = (
        boundary,
        places.proc,
        places.proxmox_run,
        places.proxmox_conf,
        places.ganeti_run,
        " ".join(sources),
        *(globs if "sockets" in sources else ()),
    )
    # On standard input, because other users can read command lines.
    script = f"{_script()}\nmain {shlex.join(arguments)} </dev/null | head -c {most_bytes}\n"
    stdin = script.encode("utf-8", "surrogateescape")
    status, output, errors = (machine.run if machine else here)("sh", stdin, seconds)
    view = parse_view(output, boundary)
    view.proxmox_run = places.proxmox_run
    if boundary.encode("ascii") not in output:  # the words of a shell that lets nobody run sh, for instance
        words = last_line(errors) or last_line(output) or "it printed nothing"
        raise ConnectError(f"sh ended with status {status}: {words}")
    return view


def _script() -> str:
    return Path(__file__).with_name("look.sh").read_text(encoding="utf-8")


def here(command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
    """Run ``command`` on this machine; it ends within about ``seconds``, with all that it started.

    :raise ConnectError: if it takes longer.
    """
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(stdin, seconds)
    except subprocess.TimeoutExpired:
        raise ConnectError(f"this machine did not tell within {seconds:g} s what runs on it") from None
    finally:
        _end(process)
    return process.returncode, output, errors


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, but wait only briefly: one that waits for a dead file server cannot end."""
    if process.poll() is None:
        with suppress(OSError):
            os.killpg(process.pid, 9)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)


def parse_view(output: bytes, boundary: str) -> View:
    """Return what look.sh printed."""
    view = View()
    found: list[tuple[str, list[str]]] = []
    owners: dict[str, str] = {}
    for record in output.split(f"\n{boundary} ".encode("ascii"))[1:]:
        head, _newline, data = record.partition(b"\n")
        kind, _space, what = head.decode("ascii", "replace").partition(" ")
        text = data.decode("utf-8", "surrogateescape")
        if kind == "process":
            found.append((what, text.removesuffix("\0").split("\0")))
        elif kind == "users":
            owners = _owners(text)
        elif kind == "socket":
            path, _nul, real = text.partition("\0")
            view.sockets.append(Socket(what, path, real))
        elif kind == "conf":
            name, _nul, lines = text.partition("\0")
            view.confs[name] = lines
            view.is_node = what == "this"
        elif kind == "listening":
            view.listening = frozenset(text.split("\n"))
        elif kind == "end":
            view.whole = f"\n{boundary} more\n".encode("ascii") not in output
    for pid, (program, *rest) in found:
        if len(rest) > 2:  # else it has gone
            directory, root, *arguments = rest
            program, directory = program.removesuffix("\n"), directory.removesuffix("\n")
            view.processes.append(Process(pid, owners.get(pid, ""), program, directory, arguments, root))
    return view


def _owners(listing: str) -> dict[str, str]:
    """Return the owners of the directories that ls -l lists, by their names."""
    rows = (row.split() for row in listing.splitlines())
    return {row[-1].rpartition("/")[2]: row[2] for row in rows if len(row) > 4}
