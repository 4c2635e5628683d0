# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins import loader as plugins
from ansible.template import Templar

from ansible_collections.qemu.guest.plugins.modules import qga_ping
from ansible_collections.qemu.guest.tests.unit.documentation import MODULES
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, swallows

Run = Callable[..., dict[str, Any]]


class Playbook:
    """What an action of ansible-core has around it, on a host with one of two connections."""

    def __init__(self, stack: ExitStack, basedir: Path) -> None:
        self._stack = stack
        self._loader = DataLoader()
        self._loader.set_basedir(str(basedir))
        self.sent: list[dict[str, Any]] = []

    def connection(self, name: str, **options: Any) -> Any:
        connection = plugins.connection_loader.get(name, PlayContext(), None)
        connection.set_options(direct={"persist": 0, **options})
        self._stack.callback(connection.close)
        return connection

    def run(self, module: str, connection: Any, check_mode: bool = False, async_val: int = 0, **args: Any) -> Any:
        task = Task.load({f"qemu.guest.{module}": args, "async": async_val, "check_mode": check_mode, "diff": True})
        action = plugins.action_loader.get(
            f"qemu.guest.{module}",
            task=task,
            connection=connection,
            play_context=PlayContext(),
            loader=self._loader,
            templar=Templar(loader=self._loader, variables={}),
            shared_loader_obj=plugins,
        )

        def execute(**how: Any) -> dict[str, Any]:
            self.sent.append(how)
            return {"changed": False, "sent": True}

        action._execute_module = execute
        return action.run(task_vars={})


@pytest.fixture
def playbook(tmp_path: Path, clock: object) -> Iterator[Playbook]:
    with ExitStack() as stack:
        yield Playbook(stack, tmp_path)


@pytest.fixture
def server(scripted: Callable[..., Scripted], guest: Guest) -> Scripted:
    return scripted(guest.answers())


@pytest.fixture
def vm1(playbook: Playbook, server: Scripted) -> Any:
    """The connection of a host that is the guest itself."""
    return playbook.connection("qemu.guest.qga", address=str(server.path))


REQUIRED: dict[str, dict[str, Any]] = {
    "qga_command": {"command": "guest-ping"},
    "qga_exec": {"shell": "true"},
    "qga_fetch": {"src": "/x", "dest": "/x"},
    "qga_file": {"path": "/x"},
    "qga_fsfreeze": {"state": "thawed"},
}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("connection", ["ansible.builtin.local", "qemu.guest.qga"])
def test_with_an_address_the_module_runs_where_the_task_runs(
    playbook: Playbook, server: Scripted, module: str, connection: str
) -> None:
    options = {"address": str(server.path)} if connection == "qemu.guest.qga" else {}
    host = playbook.connection(connection, **options)
    result = playbook.run(module, host, address="/run/vm2.qga", **REQUIRED.get(module, {}))
    assert result["sent"] is True
    assert [how["module_name"] for how in playbook.sent] == [f"qemu.guest.{module}"]
    assert not playbook.sent[0]["wrap_async"]
    assert server.commands == []


def test_with_an_address_it_may_run_async(playbook: Playbook) -> None:
    local = playbook.connection("ansible.builtin.local")
    playbook.run("qga_ping", local, async_val=60, address="/run/vm2.qga")
    assert playbook.sent[0]["wrap_async"]


@pytest.mark.parametrize("module", MODULES)
def test_without_an_address_on_a_foreign_connection(playbook: Playbook, module: str) -> None:
    local = playbook.connection("ansible.builtin.local")
    result = playbook.run(module, local, **REQUIRED.get(module, {}))
    assert result["failed"] is True
    assert f"{module} needs an address" in result["msg"]
    assert "local" in result["msg"] and "qemu.guest.qga" in result["msg"]
    assert playbook.sent == []


def test_without_an_address_the_operation_runs_here(playbook: Playbook, vm1: Any, server: Scripted) -> None:
    result = playbook.run("qga_ping", vm1)
    assert {name: result[name] for name in ("changed", "ping", "version")} == {
        "changed": False,
        "ping": "pong",
        "version": "7.2.22",
    }
    assert server.work == ["guest-ping", "guest-info"]
    assert playbook.sent == []


def test_without_an_address_it_cannot_run_async(playbook: Playbook, vm1: Any, server: Scripted) -> None:
    result = playbook.run("qga_ping", vm1, async_val=60)
    assert result["failed"] is True and "async" in result["msg"]
    assert server.commands == []


def test_change_check_mode_and_diff(playbook: Playbook, vm1: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    dry = playbook.run("qga_file", vm1, check_mode=True, path=str(path), content="new\n")
    assert dry["changed"] is True and not path.exists()
    real = playbook.run("qga_file", vm1, path=str(path), content="new\n")
    assert real["changed"] is True and path.read_text() == "new\n"
    assert real["diff"][0]["after"] == "new\n"
    assert playbook.run("qga_file", vm1, path=str(path), content="new\n")["changed"] is False


def test_src_is_looked_for_in_files(playbook: Playbook, vm1: Any, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "app.conf").write_text("from files/\n")
    playbook.run("qga_file", vm1, path=str(tmp_path / "there"), src="app.conf")
    assert (tmp_path / "there").read_text() == "from files/\n"
    with pytest.raises(AnsibleError, match=r"nope.conf"):
        playbook.run("qga_file", vm1, path=str(tmp_path / "there"), src="nope.conf")


@pytest.mark.parametrize(
    ("module", "args", "text"),
    [
        ("qga_file", {}, "path"),
        ("qga_file", {"path": "/x", "nope": 1}, "nope"),
        ("qga_file", {"path": "/x", "state": "gone"}, "state"),
        ("qga_file", {"path": "/x", "content": "a", "src": "/dev/null"}, "mutually exclusive"),
        ("qga_exec", {}, "argv"),
        ("qga_ping", {"wait": "long"}, "wait"),
    ],
)
def test_arguments_are_validated_here_too(
    playbook: Playbook, vm1: Any, server: Scripted, module: str, args: dict[str, Any], text: str
) -> None:
    try:
        result = playbook.run(module, vm1, **args)
    except AnsibleError as exc:
        result = {"failed": True, "msg": str(exc)}
    assert result["failed"] is True and text in str(result["msg"])
    assert server.commands == []


def test_error_is_a_failed_task_with_what_is_known(playbook: Playbook, vm1: Any, server: Scripted) -> None:
    server.answers["guest-set-time"] = {}
    server.then("guest-set-time", swallows)
    result = playbook.run("qga_command", vm1, command="guest-set-time")
    assert result["failed"] is True
    assert result["error"]["executed"] == "unknown"
    assert str(server.path) in result["msg"]


def test_program_that_fails(playbook: Playbook, vm1: Any) -> None:
    result = playbook.run("qga_exec", vm1, shell="echo out; exit 3")
    assert (result["failed"], result["rc"], result["stdout"]) == (True, 3, "out\n")


@pytest.mark.parametrize(("given", "seconds"), [({}, 20), ({"agent_timeout": 7.5}, 7.5)])
def test_timeout(playbook: Playbook, vm1: Any, server: Scripted, given: dict[str, Any], seconds: float) -> None:
    server.then("guest-sync-delimited", swallows)
    assert f"within {seconds:g} s" in playbook.run("qga_ping", vm1, **given)["msg"]


def test_timeout_of_a_task_is_not_that_of_the_next(playbook: Playbook, vm1: Any, server: Scripted) -> None:
    playbook.run("qga_ping", vm1, agent_timeout=7.5)
    server.then("guest-ping", swallows, swallows)
    assert "within 20 s" in playbook.run("qga_ping", vm1)["msg"]


def test_address_of_the_connection_that_is_malformed(playbook: Playbook) -> None:
    vm2 = playbook.connection("qemu.guest.qga", address="vm2")
    try:
        result = playbook.run("qga_ping", vm2)
    except AnsibleError as exc:
        result = {"failed": True, "msg": str(exc)}
    assert result["failed"] is True and "not the address of a guest agent" in result["msg"]


def test_secret_values_are_removed(playbook: Playbook, vm1: Any, server: Scripted, monkeypatch: Any) -> None:
    monkeypatch.setitem(qga_ping.SPEC, "password", {"type": "str", "no_log": True})
    server.answers["guest-info"] = {"version": "it is hush-hush", "supported_commands": []}
    assert "hush" not in str(playbook.run("qga_ping", vm1, password="hush-hush"))
