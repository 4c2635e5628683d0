# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots by a scripted QEMU of a scripted agent's guest, and what is left of each that fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OperationError,
    QgaError,
    QmpCommandError,
    QmpError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._module import freeze, snapshot_qmp
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot import Disk, Image, choose, overlays
from ansible_collections.qemu.guest.plugins.modules.qga_snapshot import OPERATION, Current, plan
from ansible_collections.qemu.guest.tests.unit.documentation import returned
from ansible_collections.qemu.guest.tests.unit.filesystems import FREEZE, LIST, STATUS, THAW, Disks, Timers
from ansible_collections.qemu.guest.tests.unit.plugins.modules.test_garbage import damaged
from ansible_collections.qemu.guest.tests.unit.scripted import (
    Request,
    Scripted,
    Session,
    answers_late,
    closes,
    fails,
    returns,
    swallows,
)
from ansible_collections.qemu.guest.tests.unit.scripted_qmp import Refusal, ScriptedQmp

Start = Callable[..., Scripted]
Connect = Callable[..., SocketAgent]

NO_FILE = "Could not open '{}': No such file or directory"
CONCLUDED = {"status": "concluded"}
MAKE = ["blockdev-create", "query-jobs", "job-dismiss"]
MADE = [*MAKE, "blockdev-add", *MAKE, "blockdev-del"]


class Qemu(ScriptedQmp):
    """QEMU with two disks, the second one of -blockdev, a CD, and the firmware's variables. It makes real files."""

    def __init__(self, directory: Path, order: list[str]) -> None:
        self.order = order
        self.directory = directory
        self.nodes = {"#block1": [str(directory / "vm1.qcow2")], "data": [str(directory / "data.raw")]}
        self.opened: dict[str, str] = {}
        self.jobs: list[dict[str, Any]] = []
        self.taken: Any = None
        for chain in self.nodes.values():
            Path(chain[0]).touch()
        answers = {
            "query-block": self.blocks,
            "blockdev-add": self.add,
            "blockdev-del": lambda: self.opened.pop(self.arguments["node-name"]) and {},
            "blockdev-create": self.create,
            "query-jobs": lambda: self.jobs,
            "job-dismiss": lambda: self.jobs.clear() or {},  # type: ignore[func-returns-value]
            "transaction": self.transaction,
        }
        super().__init__(directory / "qmp.sock", answers)

    def note(self, command: str, arguments: Mapping[str, Any]) -> None:
        super().note(command, arguments)
        self.order.append(command)

    def blocks(self) -> list[dict[str, Any]]:
        ids = {"#block1": ("virtio0", "/machine/peripheral-anon/device[2]/virtio-backend"), "data": ("", "disk1")}
        disks = [
            {"device": device, "qdev": qdev, "inserted": inserted(node, self.nodes[node])}
            for node, (device, qdev) in ids.items()
        ]
        variables = inserted("#block3", ["/vars.fd"])
        cd = {**inserted("#block4", ["/cd.iso"]), "ro": True}
        return [
            *disks,
            {"device": "pflash1", "qdev": "/machine/system.flash1", "inserted": variables},
            {"device": "ide0-cd0", "qdev": "/machine/unattached/device[18]", "inserted": cd},
            {"device": "floppy0", "qdev": "/machine/unattached/device[19]", "removable": True},
            {"device": "unused", "inserted": inserted("#block5", ["/unused.raw"])},
        ]

    def add(self) -> dict[str, Any]:
        file = Path(self.arguments["filename"])
        if not file.exists():
            raise Refusal(NO_FILE.format(file))
        self.opened[self.arguments["node-name"]] = str(file)
        return {}

    def create(self) -> dict[str, Any]:
        options, job = self.arguments["options"], {"id": self.arguments["job-id"], **CONCLUDED}
        if options["driver"] == "file":
            file = Path(options["filename"])
            if file.parent.is_dir():
                file.touch()
            else:
                job["error"] = f"Could not create '{file}': No such file or directory"
        self.jobs.append(job)
        return {}

    def transaction(self) -> dict[str, Any]:
        assert not self.opened, "no file is open twice"
        self.taken = self.arguments["actions"]
        for action in self.taken:
            data = action["data"]
            chain = self.nodes[data["node-name"]]
            chain.insert(0, data["snapshot-file"])
        return {}


def inserted(node: str, chain: list[str]) -> dict[str, Any]:
    image: dict[str, Any] = {}
    for file in reversed(chain):
        below = {"backing-image": image} if image else {}
        kind = "raw" if file.endswith(".raw") else "qcow2"
        image = {"filename": file, "format": kind, "virtual-size": 4096, **below}
    return {"node-name": node, "file": chain[0], "ro": False, "image": image}


@pytest.fixture
def disks() -> Disks:
    return Disks()


@pytest.fixture
def order() -> list[str]:
    """The commands that the agent, QEMU and the timers got, in their order."""
    return []


@pytest.fixture
def server(scripted: Start, disks: Disks, order: list[str], monkeypatch: pytest.MonkeyPatch) -> Scripted:
    server = scripted(disks.answers())
    noted = server.note

    def note(request: Request) -> None:
        order.append(request.command)
        noted(request)

    monkeypatch.setattr(server, "note", note)
    return server


@pytest.fixture(autouse=True)
def timers(server: Scripted, order: list[str], monkeypatch: pytest.MonkeyPatch) -> Timers:
    timers = Timers(server)
    for name in ("arm", "disarm"):

        def call(*arguments: Any, name: str = name, **more: Any) -> Any:
            order.append(name)
            return getattr(timers, name)(*arguments, **more)

        monkeypatch.setattr(freeze, name, call)
    return timers


@pytest.fixture
def qemu(tmp_path: Path, order: list[str]) -> Iterator[Qemu]:
    (tmp_path / "images").mkdir()
    qemu = Qemu(tmp_path / "images", order)
    with qemu:
        yield qemu


def params(qemu: Qemu, **given: Any) -> dict[str, Any]:
    usual = {name: option.get("default") for name, option in OPERATION.spec.items()}
    return {**usual, "name": "monday", "qmp_address": str(qemu.path), **given}


def run(agent: SocketAgent, qemu: Qemu, check_mode: bool = False, diff: bool = False, **given: Any) -> dict[str, Any]:
    result = run_operation(OPERATION, agent, params(qemu, **given), check_mode=check_mode, diff=diff)
    assert set(result) - {"changed", "diff"} <= returned("qga_snapshot")
    return result


def failure(agent: SocketAgent, qemu: Qemu, **given: Any) -> tuple[str, Mapping[str, Any]]:
    with pytest.raises(QgaError) as caught:
        run(agent, qemu, **given)
    return str(caught.value), caught.value.as_result()


def overlay(qemu: Qemu, stem: str, name: str = "monday") -> str:
    return str(qemu.directory / f"{stem}.{name}")


def described(qemu: Qemu) -> list[dict[str, Any]]:
    first = {"name": "virtio0", "image": str(qemu.directory / "vm1.qcow2"), "format": "qcow2"}
    second = {"name": "disk1", "image": str(qemu.directory / "data.raw"), "format": "raw"}
    return [{**first, "overlay": overlay(qemu, "vm1")}, {**second, "overlay": overlay(qemu, "data")}]


def nothing_left(qemu: Qemu) -> bool:
    return sorted(path.name for path in qemu.directory.iterdir()) == ["data.raw", "qmp.sock", "vm1.qcow2"]


# What works


def test_order(agent: SocketAgent, qemu: Qemu, order: list[str], disks: Disks) -> None:
    """While the guest is frozen, there is one command to QEMU and one question to the agent."""
    result = run(agent, qemu)
    work = [command for command in order if command not in ("guest-sync-delimited", "qmp_capabilities")]
    assert work == [
        *[STATUS, "guest-info"],
        *["query-block", "blockdev-add", "blockdev-add"],
        *MADE,
        *MADE,
        *["arm", FREEZE, STATUS, "transaction", THAW, STATUS, "disarm"],
    ]
    assert disks.frozen == []
    assert result.pop("frozen_seconds") >= 0
    assert result.pop("thaw_timer")["seconds"] == 60
    assert result == {"changed": True, "consistent": True, "filesystems": 2, "disks": described(qemu)}


def test_transaction(agent: SocketAgent, qemu: Qemu) -> None:
    run(agent, qemu)
    names = {action["data"].pop("snapshot-node-name") for action in qemu.taken}
    assert len(names) == 2 and all(len(name) <= 31 for name in names), "QEMU's nodes have short names"
    common = {"format": "qcow2", "mode": "existing"}
    assert qemu.taken == [
        {
            "type": "blockdev-snapshot-sync",
            "data": {"node-name": node, "snapshot-file": overlay(qemu, stem), **common},
        }
        for node, stem in (("#block1", "vm1"), ("data", "data"))
    ]


def test_image_is_named_in_the_header(agent: SocketAgent, qemu: Qemu) -> None:
    made: list[Any] = []
    usual = qemu.create
    qemu.answers["blockdev-create"] = lambda: made.append(dict(qemu.arguments["options"])) or usual()  # type: ignore[func-returns-value]
    qemu.nodes["data"] = ["data.raw"]
    run(agent, qemu, files={"data": str(qemu.directory / "new")})
    headers = [(o["backing-file"], o["backing-fmt"], o["size"]) for o in made if o["driver"] == "qcow2"]
    assert headers == [(str(qemu.directory / "vm1.qcow2"), "qcow2", 4096), ("data.raw", "raw", 4096)]


@pytest.mark.parametrize(
    ("file", "image", "name"),
    [
        ("/a/vm1.monday", "/a/vm1.qcow2", "/a/vm1.qcow2"),
        ("a/vm1.monday", "a/vm1.qcow2", "vm1.qcow2"),
        ("vm1.monday", "vm1.qcow2", "vm1.qcow2"),
    ],
)
def test_image_is_found_from_its_overlay(file: str, image: str, name: str) -> None:
    assert snapshot_qmp._relative_to(file, image) == name


def test_again_and_after_a_newer_one(agent: SocketAgent, qemu: Qemu, order: list[str], disks: Disks) -> None:
    run(agent, qemu)
    run(agent, qemu, name="tuesday")
    assert qemu.nodes["data"] == [
        *(overlay(qemu, "data", day) for day in ("tuesday", "monday")),
        *qemu.nodes["data"][2:],
    ]
    order.clear()
    disks.frozen = ["/"]
    assert run(agent, qemu, diff=True) == {"changed": False, "consistent": None, "disks": described(qemu)}
    assert not {FREEZE, THAW, "blockdev-add", "transaction"} & set(order)


def test_check_mode(agent: SocketAgent, qemu: Qemu, order: list[str], timers: Timers) -> None:
    result = run(agent, qemu, check_mode=True, diff=True)
    images = {disk["name"]: disk["image"] for disk in described(qemu)}
    files = {disk["name"]: disk["overlay"] for disk in described(qemu)}
    assert result.pop("diff") == [{"before": {"files": images}, "after": {"files": files}}]
    assert result == {"changed": True, "consistent": None, "disks": described(qemu)}
    assert not {FREEZE, THAW, "blockdev-create", "transaction"} & set(order)
    assert timers.notes == [] and nothing_left(qemu) and not qemu.opened


@pytest.mark.parametrize("name", ["disk1", "data"])
def test_chosen_disk(agent: SocketAgent, qemu: Qemu, name: str) -> None:
    result = run(agent, qemu, disks=[name])
    assert result["disks"] == described(qemu)[1:]
    assert [action["data"]["node-name"] for action in qemu.taken] == ["data"]


def test_mount_points(agent: SocketAgent, qemu: Qemu, server: Scripted, disks: Disks) -> None:
    assert run(agent, qemu, mountpoints=["/srv"])["filesystems"] == 1
    (sent,) = (request for request in server.requests if request.command == LIST)
    assert sent.arguments == {"mountpoints": ["/srv"]}
    assert FREEZE not in server.commands and disks.frozen == []


def test_files(agent: SocketAgent, qemu: Qemu) -> None:
    new = str(qemu.directory / "new")
    result = run(agent, qemu, files={"data": new})
    assert [disk["overlay"] for disk in result["disks"]] == [overlay(qemu, "vm1"), new]
    assert run(agent, qemu, files={"data": new})["changed"] is False


# What is refused before anything is done


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"name": "a/b"}, "'a/b' cannot be a part of a file's name"),
        ({"name": ""}, "'' cannot be a part"),
        ({"disks": ["vda"]}, "no disk is called vda; the guest's disks are: virtio0, disk1, pflash1, ide0-cd0, unused"),
        ({"disks": []}, "there is no disk to snapshot"),
        ({"files": {"vda": "/x"}}, "vda is none of the disks"),
        ({"files": {"data": "x"}}, "'x' of data is not an absolute path"),
        ({"files": {"data": "/x", "virtio0": "/x"}}, "two disks would get the same file, /x"),
        ({"qmp_address": None}, "qmp_address is required"),
        ({"qmp_address": "vm1"}, "qmp_address: 'vm1' is no address"),
        ({"mountpoints": []}, "mountpoints is empty"),
        ({"thaw_after": 0.0}, "thaw_after: 0 is not a number of seconds"),
    ],
)
def test_options_that_make_no_sense(
    agent: SocketAgent, qemu: Qemu, server: Scripted, given: dict[str, Any], text: str
) -> None:
    assert text in failure(agent, qemu, **given)[0]
    assert FREEZE not in server.commands and nothing_left(qemu)


def test_guest_that_is_frozen_already(agent: SocketAgent, qemu: Qemu, disks: Disks, timers: Timers) -> None:
    disks.frozen = ["/"]
    message, _result = failure(agent, qemu)
    assert "the guest is frozen already" in message and "Nothing was done" in message
    assert disks.frozen == ["/"] and timers.notes == [] and nothing_left(qemu)


@pytest.mark.parametrize("check_mode", [True, False])
def test_file_that_exists(agent: SocketAgent, qemu: Qemu, check_mode: bool, order: list[str]) -> None:
    Path(overlay(qemu, "data")).write_text("somebody's")
    message, _result = failure(agent, qemu, check_mode=check_mode)
    assert f"{overlay(qemu, 'data')} exists already and is not in use as a snapshot of disk1" in message
    assert Path(overlay(qemu, "data")).read_text() == "somebody's"
    assert FREEZE not in order and not qemu.opened


def test_file_that_cannot_be_looked_at(agent: SocketAgent, qemu: Qemu, order: list[str]) -> None:
    def refuse() -> Any:
        raise Refusal("Could not open '/x': Permission denied")

    qemu.answers["blockdev-add"] = refuse
    with pytest.raises(QmpCommandError, match="Permission denied"):
        run(agent, qemu)
    assert FREEZE not in order and "blockdev-create" not in order


def test_snapshot_of_some_of_the_disks(agent: SocketAgent, qemu: Qemu) -> None:
    run(agent, qemu, disks=["data"])
    message, _result = failure(agent, qemu)
    assert "some of the disks have a snapshot monday, and these have none: virtio0" in message


@pytest.mark.parametrize("image", ["/dev/vg/vm1", "nbd://host/x", 'json:{"driver":"rbd"}', "rbd:pool/vm1"])
def test_disk_that_is_no_file(agent: SocketAgent, qemu: Qemu, image: str) -> None:
    qemu.nodes["data"] = [image]
    message, _result = failure(agent, qemu)
    assert "name a new file for it in files" in message
    assert run(agent, qemu, files={"disk1": str(qemu.directory / "new")})["consistent"] is True


@pytest.mark.parametrize("encrypted", ["luks", "qcow2"])
def test_encrypted_disk(agent: SocketAgent, qemu: Qemu, encrypted: str) -> None:
    blocks = qemu.blocks()
    blocks[0]["inserted"]["encrypted"] = encrypted == "qcow2"
    blocks[0]["inserted"]["image"]["format"] = encrypted
    qemu.answers["query-block"] = blocks
    assert "the disk virtio0 is encrypted, and its new file would not be" in failure(agent, qemu)[0]


def test_never_frozen_if_it_could_not_be_thawed(agent: SocketAgent, qemu: Qemu, server: Scripted) -> None:
    server.blocked[THAW] = f"Command {THAW} has been disabled"
    with pytest.raises(CommandUnavailable, match=THAW):
        run(agent, qemu)
    assert FREEZE not in server.commands and "blockdev-create" not in qemu.commands


@pytest.mark.parametrize(
    "blocks", [None, {}, [None], [{"inserted": 1}], [{"inserted": {}}], [{"inserted": {"image": 1}}]]
)
def test_nonsense_of_qemu(agent: SocketAgent, qemu: Qemu, blocks: Any) -> None:
    qemu.answers["query-block"] = blocks
    with pytest.raises(QmpError, match="query-block may have run"):
        run(agent, qemu)


def test_garbage_of_qemu(qemu: Qemu) -> None:
    """Whatever query-block returns, there are disks or there is an error."""
    entry = {"device": "virtio0", "qdev": "/machine/peripheral/disk0", "inserted": inserted("n", ["/b", "/a.raw"])}
    with snapshot_qmp.QmpSnapshots(str(qemu.path)) as host:
        for reply in damaged([entry]):
            qemu.answers["query-block"] = reply
            with suppress(QgaError):
                overlays(choose(host.disks(), None), "monday", {})


@pytest.mark.parametrize("command", [STATUS, FREEZE, THAW])
def test_garbage_of_the_agent(
    agent: SocketAgent, qemu: Qemu, server: Scripted, disks: Disks, timers: Timers, command: str
) -> None:
    """Whatever it says, there is a result or an error of this collection, and nothing is left of what failed."""
    answer = server.answers[command]
    for number, garbage in enumerate(damaged(answer({}))):
        disks.frozen = []
        server.answers[command] = lambda arguments, value=garbage: (answer(arguments), value)[1]
        with suppress(QgaError):
            json.dumps(run(agent, qemu, name=f"g{number}"), allow_nan=False)
        assert not qemu.opened and not disks.frozen


def test_names_of_overlays() -> None:
    def file(image: str) -> str:
        return overlays([Disk(["vda"], [Image(image, "qcow2")], True)], "monday", {})[0].file

    assert file("/a.b/vm1.qcow2") == "/a.b/vm1.monday"
    assert file("/a.b/vm1.sunday") == "/a.b/vm1.monday", "as libvirt does"
    assert file("/a.b/vm1") == "/a.b/vm1.monday"
    assert file("vm1.img") == "vm1.monday"


def test_image_with_the_name_of_the_snapshot_is_no_snapshot() -> None:
    disk = Disk(["vda"], [Image("/vm1.raw", "raw")], True)
    (found,) = overlays([disk], "raw", {})
    assert found.file == "/vm1.raw" and not found.exists
    assert plan(Current([found], "thawed"), {"name": "raw"}).result["disks"][0]["image"] == "/vm1.raw"


# What fails before the freeze


def test_qemu_that_cannot_make_a_file(agent: SocketAgent, qemu: Qemu, order: list[str], timers: Timers) -> None:
    """What it has made for the first disk is removed."""
    message, result = failure(agent, qemu, files={"data": "/no/such/directory/new"})
    assert message.startswith(f"guest agent at {agent.name}: QMP at unix:{qemu.path}: ")
    assert "blockdev-create failed: Could not create '/no/such/directory/new': No such file or directory" in message
    assert "were made" not in message and result["consistent"] is False
    assert nothing_left(qemu) and FREEZE not in order and timers.notes == []


def test_qemu_that_cannot_make_an_image(agent: SocketAgent, qemu: Qemu, order: list[str]) -> None:
    usual = qemu.create

    def create() -> Any:
        if qemu.arguments["options"]["driver"] == "qcow2":
            raise Refusal("No space left on device")
        return usual()

    qemu.answers["blockdev-create"] = create
    assert "blockdev-create failed: No space left on device" in failure(agent, qemu)[0]
    assert nothing_left(qemu) and FREEZE not in order and not qemu.opened


def test_qemu_that_is_too_old(agent: SocketAgent, qemu: Qemu, order: list[str]) -> None:
    del qemu.answers["blockdev-create"]
    assert "The command blockdev-create has not been found" in failure(agent, qemu)[0]
    assert nothing_left(qemu) and FREEZE not in order


def test_qemu_that_forgets_its_job(agent: SocketAgent, qemu: Qemu, order: list[str]) -> None:
    qemu.answers["query-jobs"] = []
    assert "blockdev-create may have run: QEMU has not made the file" in failure(agent, qemu)[0]
    assert nothing_left(qemu) and FREEZE not in order


def test_timer_that_cannot_be_armed(
    agent: SocketAgent, qemu: Qemu, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def arm(*_arguments: Any) -> Any:
        raise OperationError("the thaw timer could not be armed: no more processes.")

    monkeypatch.setattr(freeze, "arm", arm)
    assert "no more processes" in failure(agent, qemu)[0]
    assert nothing_left(qemu) and FREEZE not in order


# What fails in the freeze


def test_freeze_that_fails(agent: SocketAgent, qemu: Qemu, server: Scripted, timers: Timers) -> None:
    server.then(FREEZE, fails("fsfreeze hook has failed with status 1"))
    message, result = failure(agent, qemu)
    assert "fsfreeze hook has failed with status 1" in message
    assert message.endswith("The guest's filesystems are thawed.")
    assert (result["consistent"], result["status_after"]) == (False, "thawed")
    assert "transaction" not in qemu.commands and nothing_left(qemu)
    assert timers.done == ["arm 60", "disarm"]


def test_freeze_of_some_mount_points_only(agent: SocketAgent, qemu: Qemu, disks: Disks) -> None:
    message, _result = failure(agent, qemu, mountpoints=["/srv", "/none"])
    assert "froze 1 of 2 mount points" in message
    assert disks.frozen == [] and "transaction" not in qemu.commands and nothing_left(qemu)


@pytest.mark.parametrize("loss", [answers_late, swallows, closes()])
def test_reply_to_the_freeze_is_lost(agent: SocketAgent, qemu: Qemu, server: Scripted, disks: Disks, loss: Any) -> None:
    server.then(FREEZE, loss)
    message, result = failure(agent, qemu)
    assert f"{FREEZE} may have run" in message and message.endswith("The guest's filesystems are thawed.")
    assert result["error"]["executed"] == "unknown"
    assert disks.frozen == [] and "transaction" not in qemu.commands and nothing_left(qemu)


def test_agent_dies_in_the_freeze(agent: SocketAgent, qemu: Qemu, server: Scripted, timers: Timers) -> None:
    def step(session: Session, request: Request) -> None:
        server.then("guest-sync-delimited", *[swallows] * 6)
        swallows(session, request)

    server.then(FREEZE, step)
    message, _result = failure(agent, qemu)
    assert "THE GUEST MAY BE FROZEN" in message and "The process 4711" in message
    assert "transaction" not in qemu.commands and nothing_left(qemu)
    assert timers.armed, "it is needed more than ever"


# What fails while the guest is frozen


def refuses(text: str) -> Callable[[], Any]:
    def answer() -> Any:
        raise Refusal(text)

    return answer


def test_qemu_refuses(agent: SocketAgent, qemu: Qemu, disks: Disks, order: list[str], timers: Timers) -> None:
    qemu.answers["transaction"] = refuses("Node '#block1' is busy: block device is in use by block job: commit")
    message, result = failure(agent, qemu)
    assert "transaction failed: Node '#block1' is busy" in message
    assert message.endswith("The guest's filesystems are thawed.")
    assert result["error"]["type"] == "QmpCommandError" and "changed" not in result
    assert (result["consistent"], result["disks"]) == (False, described(qemu))
    assert order[-4:] == ["transaction", THAW, STATUS, "disarm"]
    assert disks.frozen == [] and nothing_left(qemu) and timers.armed is None


def test_files_that_are_not_here_are_named(agent: SocketAgent, qemu: Qemu) -> None:
    """QEMU is on another machine, and so are its files."""
    qemu.answers["blockdev-create"] = lambda: qemu.jobs.append({"id": qemu.arguments["job-id"], **CONCLUDED}) or {}  # type: ignore[func-returns-value]
    qemu.answers["blockdev-add"] = lambda: qemu.add() if "read-only" in qemu.arguments else {}
    qemu.answers["blockdev-del"] = {}
    qemu.answers["transaction"] = refuses("no")
    message, _result = failure(agent, qemu)
    assert f"made and are not in use: {overlay(qemu, 'vm1')}, {overlay(qemu, 'data')}. Remove them." in message


def test_image_with_a_nul_in_its_name(agent: SocketAgent, qemu: Qemu, disks: Disks) -> None:
    """QEMU says so: such a file cannot be removed, and what was wrong is told."""
    qemu.answers["query-block"] = [{"device": "d", "qdev": "q", "inserted": inserted("#block1", ["/a\0b.raw"])}]
    qemu.answers["blockdev-create"] = lambda: qemu.jobs.append({"id": qemu.arguments["job-id"], **CONCLUDED}) or {}  # type: ignore[func-returns-value]
    qemu.answers["blockdev-add"] = lambda: refuses(NO_FILE.format("x"))() if "read-only" in qemu.arguments else {}
    qemu.answers["blockdev-del"] = {}
    qemu.answers["transaction"] = refuses("no")
    message, _result = failure(agent, qemu)
    assert "transaction failed: no" in message and "Remove them." in message and disks.frozen == []


def test_another_machines_file_is_not_removed(agent: SocketAgent, qemu: Qemu) -> None:
    """QEMU says that it is not there, and here it is."""
    Path(overlay(qemu, "vm1")).write_text("mine")
    add = qemu.add
    qemu.answers["blockdev-add"] = lambda: refuses(NO_FILE.format("x"))() if "read-only" in qemu.arguments else add()
    qemu.answers["transaction"] = refuses("no")
    message, _result = failure(agent, qemu)
    assert f"are not in use: {overlay(qemu, 'vm1')}. Remove them." in message
    assert Path(overlay(qemu, "vm1")).read_text() == "mine"
    assert not Path(overlay(qemu, "data")).exists()


def test_qemu_dies(agent: SocketAgent, qemu: Qemu, disks: Disks) -> None:
    """Whether it has taken the snapshot is not known, so no file is removed."""

    def end() -> Any:
        qemu.end()
        return b""

    qemu.answers["transaction"] = end
    message, result = failure(agent, qemu)
    assert "transaction may have run: QEMU closed the connection." in message
    assert "The guest's filesystems are thawed." in message
    assert f"may be in use or not: {overlay(qemu, 'vm1')}, {overlay(qemu, 'data')}." in message
    assert result["error"]["executed"] == "unknown"
    assert disks.frozen == [] and Path(overlay(qemu, "vm1")).exists()


def test_task_is_interrupted(agent: SocketAgent, qemu: Qemu, disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_arguments: Any) -> None:
        assert disks.frozen
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot_qmp.QmpSnapshots, "take", take)
    with pytest.raises(KeyboardInterrupt):
        run(agent, qemu)
    assert disks.frozen == []


def test_refused_and_not_thawed(agent: SocketAgent, qemu: Qemu, server: Scripted, disks: Disks, timers: Timers) -> None:
    qemu.answers["transaction"] = refuses("no")
    server.then(THAW, fails("failed to open /srv: Input/output error"))
    message, _result = failure(agent, qemu)
    assert "transaction failed: no" in message and "THE GUEST MAY BE FROZEN" in message
    assert nothing_left(qemu) and timers.done == ["arm 60"], "the timer is needed more than ever"


# What fails afterwards


@pytest.mark.parametrize("loss", [swallows, fails("failed to thaw"), returns(1)])
def test_thaw_that_fails(agent: SocketAgent, qemu: Qemu, server: Scripted, timers: Timers, loss: Any) -> None:
    server.then(THAW, loss)
    message, result = failure(agent, qemu)
    assert "THE GUEST MAY BE FROZEN" in message and "The snapshot was taken" in message
    assert "were made" not in message, "its files are in use"
    assert (result["changed"], result["consistent"], result["status_after"]) == (True, False, "frozen")
    assert result["disks"] == described(qemu) and Path(overlay(qemu, "vm1")).exists()
    assert timers.done == ["arm 60"]


def test_agent_dies_while_frozen(agent: SocketAgent, qemu: Qemu, server: Scripted, timers: Timers) -> None:
    usual = qemu.transaction

    def transaction() -> Any:
        server.then("guest-sync-delimited", *[swallows] * 6)
        server.then(THAW, swallows)
        return usual()

    qemu.answers["transaction"] = transaction
    message, result = failure(agent, qemu)
    assert "THE GUEST MAY BE FROZEN: its status is unknown." in message and "The snapshot was taken" in message
    assert result["changed"] is True and timers.armed


def test_reply_to_the_thaw_is_lost(agent: SocketAgent, qemu: Qemu, server: Scripted) -> None:
    server.then(THAW, answers_late)
    message, result = failure(agent, qemu)
    assert "not consistent: the agent's reply to the thaw got lost" in message
    assert (result["changed"], result["consistent"]) == (True, False)


def test_somebody_thawed_meanwhile(agent: SocketAgent, qemu: Qemu, disks: Disks) -> None:
    usual = qemu.transaction

    def transaction() -> Any:
        disks.frozen.pop()
        return usual()

    qemu.answers["transaction"] = transaction
    message, result = failure(agent, qemu)
    assert "2 filesystems were frozen, and 1 of them were still" in message and "another snapshot" in message
    assert (result["changed"], result["consistent"], result["filesystems"]) == (True, False, 2)
    assert result["disks"] == described(qemu)


def test_timer_was_faster(agent: SocketAgent, qemu: Qemu, disks: Disks, timers: Timers) -> None:
    usual = qemu.transaction

    def transaction() -> Any:
        disks.thaw()
        assert timers.armed
        timers.armed = timers.armed._replace(fired="2026-11-24T19:30:01Z")
        return usual()

    qemu.answers["transaction"] = transaction
    message, result = failure(agent, qemu)
    assert "not consistent: the timer thawed the guest at 2026-11-24T19:30:01Z" in message
    assert result["thaw_timer"]["fired"] and result["consistent"] is False
