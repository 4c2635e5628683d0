# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make soak`: see docs/testing.md. It fails if something has grown, and prints what there was."""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import accel, image
from lab.agent import LooseAgent
from lab.bench.contenders import PYTHON, qga
from lab.controller import Controller
from lab.host import LabError
from lab.libvirt import Daemon, Domain
from lab.soak import plan
from lab.soak.sample import MEGABYTE, table
from lab.soak.soak import COPIES, Soak
from lab.vm import Guest

WAYS = ("loose", "guest", "libvirt")


@contextmanager
def subjects(way: str, release: str) -> Iterator[tuple[LooseAgent | Guest, dict[str, Any]]]:
    """Start a guest, or an agent without one; give it and its host variables."""
    if way == "loose":
        with LooseAgent(release) as agent:
            yield agent, qga(agent.agent_socket)
    elif way == "guest":
        with Guest(release) as guest:
            guest.wait_booted()
            guest.wait_agent()
            yield guest, qga(guest.agent_socket)
    else:
        with Daemon() as daemon, Domain(daemon, release, "soak") as domain:
            domain.wait_booted()
            domain.wait_agent()
            address = {"ansible_qga_address": f"libvirt:{domain.name}", "ansible_qga_libvirt_uri": daemon.uri}
            yield domain, {**PYTHON, "ansible_connection": "qemu.guest.qga", **address}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab.soak", description="Many tasks and files through one guest.")
    parser.add_argument("--on", choices=WAYS, nargs="+", default=WAYS, help="what is used (default: all, in turns)")
    parser.add_argument("--release", default="bookworm", help="of Debian (default: bookworm)")
    parser.add_argument("--tasks", type=int, default=2000, help=f"a multiple of {plan.KINDS} (default: 2000)")
    parser.add_argument("--megabytes", type=int, default=2000, help="of files, there and back (default: 2000)")
    parser.add_argument("--minutes", type=float, default=600, help="after which no round is begun (default: 600)")
    options = parser.parse_args()
    rounds = options.tasks // plan.KINDS
    failed = False
    for way in options.on:
        try:
            failed = not soak(way, options.release, rounds, options.megabytes, options.minutes) or failed
        except LabError as error:
            print(f"soak: {way}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def soak(way: str, release: str, rounds: int, megabytes: int, minutes: float) -> bool:
    """Run all rounds on one way; return whether nothing has grown."""
    size = max(1, megabytes * MEGABYTE // rounds // COPIES)
    started = time.monotonic()
    scratch = tempfile.TemporaryDirectory(prefix="soak-")
    with scratch as name, Controller() as controller, subjects(way, release) as (subject, variables):
        run = Soak(subject, variables, Path(name), controller, rounds, size, 60 * minutes)
        found = run.run()
    taken = (time.monotonic() - started) / 60
    how = "not emulated" if way == "loose" else {"tcg": "emulated"}.get(accel.accelerator(), accel.accelerator())
    print("\n".join(["", *table(run.samples), ""]))
    print(
        f"{way} ({how}), agent {image.build(release).agent_version}, {datetime.date.today()}: {run.tasks} tasks of "
        f"{plan.KINDS} kinds, {run.bytes / MEGABYTE:.0f} MB in files of {size / MEGABYTE:.1f} MB, {run.restarts} "
        f"restarts of the agent, {taken:.0f} minutes"
    )
    print("\n".join(found) or "nothing has grown, and every byte is right", flush=True)
    return not found


if __name__ == "__main__":
    raise SystemExit(main())
