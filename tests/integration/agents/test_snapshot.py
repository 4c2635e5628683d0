# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots by a real QEMU, whose machine never starts: its agent is a scripted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import lock
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import QgaError
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module import freeze
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot_qmp import QmpSnapshots
from ansible_collections.qemu.guest.plugins.modules.qga_snapshot import OPERATION
from ansible_collections.qemu.guest.tests.integration.harness import until
from ansible_collections.qemu.guest.tests.unit.filesystems import Disks, Timers
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted
from lab import host, qmp
from lab.host import LabError

MIB = 1024 * 1024
USUAL = ("first.qcow2", "second.qcow2", "third.raw")


class Machine:
    """A machine with a disk of -drive, one of -drive and -device with a template below, one of -blockdev, and more."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "qmp.sock"

    def arguments(self) -> list[str]:
        third = self.path("third.raw")
        return [
            *("-drive", "file=first.qcow2,format=qcow2,if=virtio,cache=unsafe,discard=unmap"),
            *("-drive", f"file={self.path('second.qcow2')},format=qcow2,if=none,id=second,cache=none"),
            *("-device", "virtio-blk-pci,drive=second,id=disk2"),
            *("-blockdev", f"driver=file,filename={third},node-name=file3"),
            *("-blockdev", "driver=raw,file=file3,node-name=third"),
            *("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=third,id=disk3"),
            *("-drive", f"if=ide,media=cdrom,format=raw,file={self.path('cd.raw')}"),
            *("-drive", f"if=pflash,format=raw,file={self.path('vars.raw')}"),
        ]

    def path(self, name: str) -> Path:
        return self.directory / name

    def qmp(self, command: str, **arguments: Any) -> Any:
        return qmp.call(self.socket, command, arguments)

    def answers(self) -> bool:
        try:
            return bool(self.qmp("query-status"))
        except LabError:
            return False

    def files(self) -> list[str]:
        """The files that the guest's disks are in, but for the CD and the variables."""
        blocks = [block["inserted"]["file"] for block in self.qmp("query-block") if "inserted" in block]
        return [Path(file).name for file in blocks if Path(file).name not in ("cd.raw", "vars.raw")]

    def chain(self, name: str) -> list[str]:
        """The images of a disk, from ``name`` down, as a QEMU finds them that starts from there."""
        argv = ["qemu-img", "info", "--force-share", "--backing-chain", "--output", "json", str(self.path(name))]
        done = subprocess.run(argv, capture_output=True, check=True, cwd="/")
        return [Path(image["filename"]).name for image in json.loads(done.stdout)]

    def listed(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    host.need("qemu-system-x86_64", "qemu-img")
    machine = Machine(tmp_path / "vm")
    machine.directory.mkdir()
    machine.path("template.raw").write_bytes(bytes(10 * MIB))
    for name in USUAL:
        below = ["-F", "raw", "-b", str(machine.path("template.raw"))] if name == "second.qcow2" else []
        argv = ["qemu-img", "create", "-q", "-f", name.rpartition(".")[2], *below, str(machine.path(name)), "10M"]
        subprocess.run(argv, check=True)
    machine.path("cd.raw").write_bytes(bytes(MIB))
    machine.path("vars.raw").write_bytes(bytes(4 * MIB))
    argv = ["qemu-system-x86_64", "-S", "-no-user-config", "-nodefaults", "-display", "none", "-m", "16"]
    argv += ["-chardev", f"socket,id=qmp,path={machine.socket},server=on,wait=off", "-mon", "qmp,mode=control"]
    with subprocess.Popen([*argv, *machine.arguments()], cwd=machine.directory) as process:
        try:
            until(machine.answers, 30, "QEMU answers")
            yield machine
        finally:
            process.kill()


@pytest.fixture
def disks() -> Disks:
    return Disks()


@pytest.fixture
def server(tmp_path: Path, disks: Disks) -> Iterator[Scripted]:
    with Scripted(tmp_path / "agent.sock", disks.answers()) as server:
        yield server


@pytest.fixture
def agent(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Iterator[SocketAgent]:
    timers = Timers(server)
    monkeypatch.setattr(freeze, "arm", timers.arm)
    monkeypatch.setattr(freeze, "disarm", timers.disarm)
    agent = connect(server)
    with agent:
        yield agent


def connect(server: Scripted) -> SocketAgent:
    return SocketAgent(Address("unix", path=str(server.path)), 20)


def run(agent: Agent, machine: Machine, **given: Any) -> dict[str, Any]:
    usual = {name: option.get("default") for name, option in OPERATION.spec.items()}
    params = {**usual, "qmp_address": str(machine.socket), **given}
    return run_operation(OPERATION, agent, params, check_mode=params.pop("check_mode", False))


def test_disks_of_all_kinds(agent: SocketAgent, machine: Machine, disks: Disks) -> None:
    before = machine.listed()
    checked = run(agent, machine, name="monday", check_mode=True)
    assert checked["changed"] and machine.listed() == before
    assert [disk["name"] for disk in checked["disks"]] == ["virtio0", "second", "disk3"]
    taken = run(agent, machine, name="monday")
    assert taken["consistent"] and taken["disks"] == checked["disks"] and disks.frozen == []
    assert [Path(disk["image"]).name for disk in taken["disks"]] == list(USUAL)
    assert machine.files() == ["first.monday", "second.monday", "third.monday"]
    assert run(agent, machine, name="tuesday")["consistent"]
    assert machine.files() == ["first.tuesday", "second.tuesday", "third.tuesday"]
    for image in USUAL:
        stem, below = image.partition(".")[0], ["template.raw"] if image == "second.qcow2" else []
        assert machine.chain(f"{stem}.tuesday") == [f"{stem}.tuesday", f"{stem}.monday", image, *below]
    for name in ("monday", "tuesday"):
        again = run(agent, machine, name=name)
        assert not again["changed"]
    assert again["disks"][0] == {
        "name": "virtio0",
        "image": "first.monday",
        "format": "qcow2",
        "overlay": "first.tuesday",
    }


def test_disks_keep_their_settings(agent: SocketAgent, machine: Machine) -> None:
    def caches() -> list[Any]:
        return [block["inserted"]["cache"] for block in machine.qmp("query-block")]

    before = caches()
    assert [cache["no-flush"] for cache in before[:2]] == [True, False] and before[1]["direct"]
    run(agent, machine, name="monday")
    assert caches() == before


def test_one_disk_by_its_device(agent: SocketAgent, machine: Machine) -> None:
    run(agent, machine, name="monday", disks=["disk2", "third"])
    assert machine.files() == ["first.qcow2", "second.monday", "third.monday"]


def test_snapshots_can_be_merged_as_the_documentation_says(agent: SocketAgent, machine: Machine) -> None:
    (taken,) = run(agent, machine, name="monday", disks=["second"])["disks"]
    run(agent, machine, name="tuesday", disks=["second"])
    machine.qmp("block-commit", device="second", base=taken["image"], **{"job-id": "merge"})
    until(lambda: any(job["status"] == "ready" for job in machine.qmp("query-jobs")), 30, "it can be completed")
    machine.qmp("job-complete", id="merge")
    until(lambda: not machine.qmp("query-block-jobs"), 30, "it is merged")
    assert machine.files() == list(USUAL)
    assert machine.chain("second.qcow2") == ["second.qcow2", "template.raw"], "nothing went into the template"
    for day in ("monday", "tuesday"):
        machine.path(f"second.{day}").unlink()
    assert run(agent, machine, name="monday", disks=["second"])["changed"]


def test_disk_that_is_busy(agent: SocketAgent, machine: Machine, disks: Disks) -> None:
    """One disk cannot be part of it, so none is, and nothing is left."""
    target = str(machine.path("mirror"))
    machine.qmp("drive-mirror", device="second", target=target, sync="full", format="raw", **{"job-id": "busy"})
    before = machine.listed()
    with pytest.raises(QgaError, match=r"transaction failed: .*busy.* The guest's filesystems are thawed\.") as caught:
        run(agent, machine, name="monday")
    assert machine.files() == list(USUAL) and disks.frozen == []
    # QEMU names the first disk's files relative to its own directory, which is not known here.
    assert machine.listed() - before == {"first.monday"}
    assert "made and are not in use: first.monday. Remove them." in str(caught.value)


def test_file_that_exists(agent: SocketAgent, machine: Machine) -> None:
    machine.path("third.monday").write_bytes(b"mine")
    before = machine.listed()
    with pytest.raises(QgaError, match=r"/third\.monday exists already"):
        run(agent, machine, name="monday")
    assert machine.path("third.monday").read_bytes() == b"mine" and machine.listed() == before


def test_directory_that_does_not_exist(agent: SocketAgent, machine: Machine) -> None:
    before = machine.listed()
    files = {"second": str(machine.path("none/new"))}
    with pytest.raises(QgaError, match=r"blockdev-create failed: Could not create .*none/new"):
        run(agent, machine, name="monday", files=files, disks=["third", "second"])
    assert machine.listed() == before
    assert not [node for node in machine.qmp("query-named-block-nodes") if node["node-name"].startswith("qga-")]


def test_task_is_killed_while_the_guest_is_frozen(
    server: Scripted, machine: Machine, disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody but the timer is left to thaw. The files that were made are told from a snapshot."""
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(lock, "_private_directory", lambda: str(tmp_path / "locks"))
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(QmpSnapshots, "take", lambda *_arguments: time.sleep(600))
            run(connect(server), machine, name="monday", thaw_after=600.0)
        finally:
            os._exit(1)
    try:
        until(lambda: disks.frozen, 30, "the guest is frozen")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    until(lambda: not disks.frozen, 30, "the timer thaws at once")
    assert machine.files() == list(USUAL)
    with connect(server) as agent, pytest.raises(QgaError, match=r"first\.monday exists already .* killed has left it"):
        run(agent, machine, name="monday")
    with connect(server) as agent:
        assert run(agent, machine, name="tuesday")["consistent"]
