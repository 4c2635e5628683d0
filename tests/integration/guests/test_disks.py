# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of a guest's disks, looked at from the host, without the guest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.guests.conftest import with_hook
from ansible_collections.qemu.guest.tests.integration.harness import (
    HERE,
    PLACES,
    ROOT,
    guest_variables,
    hypervisor_variables,
    look,
    until,
)
from ansible_collections.qemu.guest.tests.integration.image_content import Filesystem
from lab.vm import Guest

SNAPSHOTS = 20

# Has a database in WAL mode written to without end, and keeps the number of the last row whose commit has returned
# where no snapshot has it.
WRITER = """
import os, sqlite3
database = sqlite3.connect("/small/database", isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("PRAGMA synchronous=FULL")
database.execute("PRAGMA wal_autocheckpoint=20")
database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text)")
number = 0
while not os.path.exists("/run/stop"):
    number += 1
    database.execute("INSERT INTO rows VALUES (?, ?)", (number, "x" * 500))
    if number % 10 == 0:
        database.execute("DELETE FROM rows WHERE number < ?", (number - 2000,))
    with open("/run/committed.new", "w") as file:
        file.write(f"{number}\\n")
    os.rename("/run/committed.new", "/run/committed")
"""

PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "qemu.guest.qga_snapshot": {
                    "qmp_address": "{{ qmp }}",
                    "name": "s{{ item }}",
                    "disks": ["virtio1"],
                    # The hook runs either way.
                    "mountpoints": "{{ ['/small'] if item % 2 else omit }}",
                },
                "loop": "{{ range(1, snapshots + 1) | list }}",
                "register": "taken",
            },
            {
                "ansible.builtin.copy": {"content": "{{ taken.results | to_json }}", "dest": "{{ results }}"},
                "delegate_to": "localhost",
            },
        ],
    }
]


@contextmanager
def written(guest: Guest) -> Iterator[None]:
    """Have the database written to meanwhile."""
    look(guest, f"cat >/run/writer.py <<'END'\n{WRITER}\nEND\nrm -f /run/stop /run/committed /small/database*")
    look(guest, "setsid python3 /run/writer.py >/run/writer.log 2>&1 </dev/null &")
    until(lambda: committed(guest) > 10, 120, "rows are written")
    try:
        yield
    finally:
        look(guest, "touch /run/stop")
    assert look(guest, "cat /run/writer.log") == ""


def committed(guest: Guest) -> int:
    return int(look(guest, "cat /run/committed 2>/dev/null || echo 0"))


def test_database_is_intact_in_each_of_twenty_snapshots(
    guest: Guest, make_ansible: MakeAnsible, tmp_path: Path
) -> None:
    """Each has all rows whose commit had returned when the guest began to freeze, and the filesystem is clean."""
    playbook = tmp_path / "play.json"
    playbook.write_text(json.dumps(PLAY), encoding="utf-8")
    results = tmp_path / "results.json"
    ansible = make_ansible({"vm": {**guest_variables(guest), "qmp": str(guest.qmp_socket)}})
    with with_hook(guest, '[ "$1" = thaw ] || cat /run/committed >>/run/hook-committed'), written(guest):
        ansible.playbook(playbook, variables={"snapshots": SNAPSHOTS, "results": str(results)})
        at_freeze = [int(line) for line in look(guest, "cat /run/hook-committed").split()]
        until(lambda: committed(guest) > at_freeze[-1] + 10, 60, "it is written to still")
        # What no freeze was for is told from these.
        loose = guest.directory / "loose"
        guest.qmp("blockdev-snapshot-sync", device="virtio1", **{"snapshot-file": str(loose)})
    taken = json.loads(results.read_text(encoding="utf-8"))
    assert len(taken) == len(at_freeze) == SNAPSHOTS and at_freeze == sorted(set(at_freeze)), "rows were added to each"
    print("frozen for", [result["frozen_seconds"] for result in taken], "s")
    for result, least in zip(taken, at_freeze, strict=True):
        assert result["consistent"] and result["changed"]
        assert result["filesystems"] == (1 if result["item"] % 2 else 2)
        directory = tmp_path / str(result["item"])
        directory.mkdir()
        filesystem = Filesystem(result["disks"][0]["image"], directory)
        assert not filesystem.needs_recovery
        filesystem.check()
        with closing(filesystem.database()) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            count, first, last = database.execute("SELECT count(*), min(number), max(number) FROM rows").fetchone()
        assert last >= least, f"{least} was committed, and {last} is there"
        assert count == last - first + 1, "no row is missing"
    before = guest.qmp("query-block")[1]["inserted"]["image"]["backing-image"]["filename"]
    (tmp_path / "loose").mkdir()
    assert Filesystem(before, tmp_path / "loose").needs_recovery, "as after a power cut"


@pytest.mark.parametrize("place", PLACES)
def test_target(place: str, guest: Guest, make_ansible: MakeAnsible) -> None:
    variables = {"target": "qga_snapshot", "place": place, "disk": "virtio1", "existing": str(guest.boot_log)}
    variables["qmp_address"] = str(guest.qmp_socket)
    make_ansible({"vm": PLACES[place](guest)}).playbook(HERE / "targets.yml", variables=variables)


def test_example(guest: Guest, make_ansible: MakeAnsible) -> None:
    variables: dict[str, Any] = {
        "address": str(guest.agent_socket),
        "qmp_address": str(guest.qmp_socket),
        "snapshot": "example",
        "hypervisor": "hv",
    }
    ansible = make_ansible({"hv": hypervisor_variables(guest)})
    playbook = ROOT / "playbooks" / "snapshot.yml"
    for more, changed in (("--check",), 1), ((), 1), ((), 0):
        assert ansible.playbook(playbook, *more, variables=variables).recap["hv"]["changed"] == changed
    files = {Path(block["inserted"]["file"]).suffix for block in guest.qmp("query-block") if "inserted" in block}
    assert files == {".example"}
    assert look(guest, "echo x >/small/example; sync; cat /small/example") == "x\n"
