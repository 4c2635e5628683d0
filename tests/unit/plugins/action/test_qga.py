# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common import parameters
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins import loader as plugins
from ansible.plugins.action import ActionBase
from ansible.template import Templar

from ansible_collections.qemu.guest.plugins.modules import qga_ping
from ansible_collections.qemu.guest.tests.unit.documentation import MODULES
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, swallows

try:  # from 2.22 on, ansible-core hides what it knows to be secret wherever it shows something
    from ansible.module_utils.secrets import mask_secrets
except ImportError:

    def mask_secrets(value: str, /) -> str:
        return value


try:  # from 2.19 on, only what is trusted is a template
    from ansible.template import trust_as_template as trust
except ImportError:

    def trust(value: str) -> str:
        return value


Run = Callable[..., dict[str, Any]]


class Playbook:
    """What an action of ansible-core has around it, on a host with one of two connections."""

    def __init__(self, stack: ExitStack, basedir: Path) -> None:
        self._stack = stack
        self._loader = DataLoader()
        self._loader.set_basedir(str(basedir))
        self.sent: list[dict[str, Any]] = []
        self.module_result: dict[str, Any] = {"changed": False, "sent": True}

    def connection(self, name: str, **options: Any) -> Any:
        connection = plugins.connection_loader.get(name, PlayContext(), None)
        connection.set_options(direct={"persist": 0, **options})
        self._stack.callback(connection.close)
        return connection

    def run(
        self,
        module: str,
        connection: Any,
        check_mode: bool = False,
        async_val: int = 0,
        delegated: dict[str, Any] | None = None,
        **args: Any,
    ) -> Any:
        """Run a task. ``delegated``: it is delegated to the connection's host, by a host with these variables."""
        keywords: dict[str, Any] = {"async": async_val, "check_mode": check_mode, "diff": True}
        if delegated is not None:
            keywords["delegate_to"] = "hv"
        task = Task.load({f"qemu.guest.{module}": args, **keywords})
        action = plugins.action_loader.get(
            f"qemu.guest.{module}",
            task=task,
            connection=connection,
            play_context=PlayContext(),
            loader=self._loader,
            templar=Templar(loader=self._loader, variables=delegated or {}),
            shared_loader_obj=plugins,
        )

        def execute(**how: Any) -> dict[str, Any]:
            self.sent.append({**how, "args": task.args})
            return self.module_result

        action._execute_module = execute
        return action.run(task_vars=delegated or {})


@pytest.fixture
def playbook(tmp_path: Path, clock: object) -> Iterator[Playbook]:
    with ExitStack() as stack:
        yield Playbook(stack, tmp_path)


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
    "qga_snapshot": {"name": "monday"},
}
REQUIRED_TOO: dict[str, dict[str, Any]] = {
    "qga_authorized_keys": {"user": "root", "keys": []},
    "qga_command": {"command": "guest-get-time"},
    "qga_memory_blocks": {"count": 1},
    "qga_user_password": {"user": "root", "password": "x"},
    "qga_vcpus": {"count": 1},
    "qga_suspend": {"mode": "disk"},
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


@pytest.mark.parametrize("module", MODULES)
def test_agent_that_cannot_be_reached(playbook: Playbook, tmp_path: Path, module: str) -> None:
    """The host is unreachable then, as it is for the modules of ansible-core."""
    off = playbook.connection("qemu.guest.qga", address=str(tmp_path / "off.sock"))
    given = {**REQUIRED.get(module, {}), **REQUIRED_TOO.get(module, {})}
    with pytest.raises(AnsibleConnectionFailure, match="there is no such socket") as caught:
        playbook.run(module, off, **given)
    cause = caught.value.__cause__
    assert cause and cause.__cause__ is not cause, "ansible-core would print its text again and again"


@pytest.mark.parametrize("status", [0, 3])
def test_output_of_a_program(playbook: Playbook, vm1: Any, status: int) -> None:
    result = playbook.run("qga_exec", vm1, shell=f"echo out; echo; echo more; echo err >&2; exit {status}")
    assert (result.get("failed", False), result["rc"], result["stdout"]) == (status != 0, status, "out\n\nmore")
    assert (result["stdout_lines"], result["stderr_lines"]) == (["out", "", "more"], ["err"])
    assert result["changed"] is True


@pytest.mark.skipif(not hasattr(ActionBase, "supports_raw_params"), reason="ansible-core before 2.19 refuses it")
def test_command_without_an_option(playbook: Playbook, vm1: Any) -> None:
    assert playbook.run("qga_exec", vm1, _raw_params="echo 'a  b' $HOME")["stdout"] == "a  b $HOME"
    with pytest.raises(AnsibleActionFail, match="mutually exclusive"):
        playbook.run("qga_exec", vm1, _raw_params="true", shell="true")


# become


@pytest.fixture
def become() -> Callable[..., Any]:
    def become(connection: Any, user: str) -> Any:
        plugin = plugins.become_loader.get("ansible.builtin.sudo")
        plugin.set_options(direct={"become_user": user})
        connection.set_become_plugin(plugin)
        return connection

    return become


def test_program_as_another_user_is_not_run(
    playbook: Playbook, vm1: Any, server: Scripted, become: Callable[..., Any]
) -> None:
    result = playbook.run("qga_exec", become(vm1, "app"), shell="id")
    assert result["failed"] is True
    assert "qga_exec cannot become app over qemu.guest.qga" in result["msg"] and "Nothing was run" in result["msg"]
    assert "argv: [runuser, -u, app, --, PROGRAM]" in result["msg"]
    assert server.commands == []


def test_become_root_or_where_it_does_not_matter(playbook: Playbook, vm1: Any, become: Callable[..., Any]) -> None:
    assert playbook.run("qga_exec", become(vm1, "root"), shell="true")["rc"] == 0
    assert playbook.run("qga_ping", become(vm1, "app"))["ping"] == "pong"


def test_become_is_for_the_hypervisor_where_there_is_an_address(playbook: Playbook, become: Callable[..., Any]) -> None:
    local = become(playbook.connection("ansible.builtin.local"), "libvirt-qemu")
    assert playbook.run("qga_exec", local, address="/run/vm2.qga", shell="true")["sent"] is True


# An address on a host that is a guest


@pytest.mark.parametrize(
    ("connection", "failed", "told"),
    [
        ("qemu.guest.qga", {"error": {"type": "ConnectError"}}, True),
        ("qemu.guest.qga", {"error": {"type": "AddressError"}}, True),
        ("qemu.guest.qga", {"module_stdout": "", "module_stderr": "python3: not found", "rc": 127}, True),
        ("qemu.guest.qga", {"error": {"type": "CommandError"}}, False),
        ("qemu.guest.qga", {"rc": 1}, False),
        ("ansible.builtin.local", {"error": {"type": "ConnectError"}}, False),
    ],
)
def test_address_that_was_looked_for_inside_the_guest(
    playbook: Playbook, server: Scripted, connection: str, failed: dict[str, Any], told: bool
) -> None:
    options = {"address": str(server.path)} if connection == "qemu.guest.qga" else {}
    playbook.module_result = {"failed": True, "msg": "its words.", **failed}
    result = playbook.run("qga_ping", playbook.connection(connection, **options), address="/run/vm2.qga")
    assert result["msg"].startswith("its words.")
    assert ("looked for inside the guest" in result["msg"] and "delegate_to" in result["msg"]) is told


def test_timeout_that_makes_no_sense(playbook: Playbook, vm1: Any, server: Scripted) -> None:
    result = playbook.run("qga_ping", vm1, agent_timeout=0)
    assert result["failed"] is True and result["msg"].startswith("agent_timeout: 0 is not a number of seconds")
    assert server.commands == []


@pytest.mark.parametrize(("given", "seconds"), [({}, 20), ({"agent_timeout": 7.5}, 7.5)])
def test_timeout(playbook: Playbook, vm1: Any, server: Scripted, given: dict[str, Any], seconds: float) -> None:
    server.then("guest-sync-delimited", swallows)
    with pytest.raises(AnsibleConnectionFailure, match=f"within {seconds:g} s"):
        playbook.run("qga_ping", vm1, **given)


def test_timeout_of_a_task_is_not_that_of_the_next(playbook: Playbook, vm1: Any, server: Scripted) -> None:
    playbook.run("qga_ping", vm1, agent_timeout=7.5)
    server.then("guest-ping", swallows, swallows)
    with pytest.raises(AnsibleConnectionFailure, match="within 20 s"):  # a question without an answer
        playbook.run("qga_ping", vm1)


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
    deprecated: list[Any] = []
    monkeypatch.setattr(parameters, "_deprecate", lambda **how: deprecated.append(how), raising=False)
    assert "hush" not in mask_secrets(str(playbook.run("qga_ping", vm1, password="hush-hush")))
    assert not deprecated


GUEST = {"ansible_qga_address": "/run/vm1.qga", "ansible_connection": "qemu.guest.qga"}


@pytest.mark.parametrize(
    ("variables", "args", "sent"),
    [
        (GUEST, {}, {"address": "/run/vm1.qga"}),
        ({"ansible_host": "/run/vm1.qga"}, {}, {"address": "/run/vm1.qga"}),
        (GUEST, {"address": "/run/other.qga"}, {"address": "/run/other.qga"}),
        ({"ansible_qga_address": "{{ d }}/vm1.qga", "d": "/run"}, {}, {"address": "/run/vm1.qga"}),
        (
            {"ansible_qga_address": "libvirt:web", "ansible_qga_libvirt_uri": "qemu+ssh://root@hv/system"},
            {},
            {"address": "libvirt:web", "libvirt_uri": "qemu:///system"},
        ),
        (
            {"ansible_qga_address": "libvirt:web", "ansible_qga_libvirt_uri": "qemu:///session"},
            {},
            {"address": "libvirt:web", "libvirt_uri": "qemu:///session"},
        ),
    ],
)
def test_task_of_a_guest_that_is_delegated_to_its_hypervisor(
    playbook: Playbook, variables: dict[str, Any], args: dict[str, Any], sent: dict[str, Any]
) -> None:
    trusted = {name: trust(value) for name, value in variables.items()}
    ssh = playbook.connection("ansible.builtin.ssh")
    playbook.run("qga_info", ssh, delegated=trusted, **args)
    assert [how["args"] for how in playbook.sent] == [sent]


def test_guest_does_not_choose_whose_agent_a_delegated_task_uses(playbook: Playbook) -> None:
    facts = {"ansible_facts": {"qga_address": GUEST["ansible_qga_address"]}}
    with pytest.raises(AnsibleActionFail, match="ansible_qga_address came from the guest"):
        playbook.run("qga_shutdown", playbook.connection("ansible.builtin.ssh"), delegated={**GUEST, **facts})
    assert not playbook.sent


def test_task_that_is_not_delegated_needs_an_address(playbook: Playbook) -> None:
    result = playbook.run("qga_info", playbook.connection("ansible.builtin.ssh"))
    assert result["failed"] and "qga_info needs an address" in result["msg"] and not playbook.sent
    result = playbook.run("qga_info", playbook.connection("ansible.builtin.ssh"), delegated={"ansible_host": "web"})
    assert result["failed"] and "qga_info needs an address" in result["msg"] and not playbook.sent


@pytest.mark.parametrize("address", ["/run/vm1.qga", "libvirt:vm1"])
@pytest.mark.parametrize("transport", ["local", "ssh"])
def test_agent_of_another_machine_is_not_looked_for_here(playbook: Playbook, address: str, transport: str) -> None:
    """Another guest's may have the same address there. The task is delegated to hv."""
    there = playbook.connection(f"ansible.builtin.{transport}")
    guest = {"ansible_qga_address": address, "hostvars": {"hv1": {}, "hv": {}}}
    with pytest.raises(AnsibleActionFail, match=r"vm1.* is on hv1, .* delegated to hv, .* Delegate it to hv1"):
        playbook.run("qga_info", there, delegated={**guest, "ansible_qga_hypervisor": "hv1"})
    for hypervisor in ("localhost", "hv"):
        playbook.run("qga_info", there, delegated={**guest, "ansible_qga_hypervisor": hypervisor})
    assert len(playbook.sent) == 2


def test_destination_of_ssh_may_be_the_host_that_a_task_is_delegated_to(playbook: Playbook) -> None:
    ssh = playbook.connection("ansible.builtin.ssh")
    playbook.run(
        "qga_info", ssh, delegated={**GUEST, "ansible_qga_hypervisor": "root@192.0.2.1", "hostvars": {"hv": {}}}
    )
    assert len(playbook.sent) == 1


def test_own_address_means_the_agent_of_the_connection(playbook: Playbook, server: Scripted, tmp_path: Path) -> None:
    other_name = tmp_path / "link"
    other_name.symlink_to(server.path)
    connection = playbook.connection("qemu.guest.qga", address=str(server.path))
    for name in (str(server.path), f"unix:{server.path}", str(other_name)):
        assert playbook.run("qga_ping", connection, address=name)["ping"] == "pong"
    assert not playbook.sent
    playbook.run("qga_ping", connection, address="/run/vm2.qga")
    playbook.run("qga_ping", connection, address="no address")
    assert len(playbook.sent) == 2, "these are for the module, inside the guest"
