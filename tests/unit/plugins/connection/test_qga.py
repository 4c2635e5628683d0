# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import gc
import itertools
import multiprocessing
import os
import pwd
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import become_loader, connection_loader, shell_loader
from ansible.utils.display import Display

from ansible_collections.qemu.guest.plugins.connection import qga
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandUnavailable
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest import login_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import run_shell
from ansible_collections.qemu.guest.plugins.plugin_utils import _connection
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import STATUS, Clock, Scripted, closes, sends, swallows

Connect = Callable[..., Any]


@pytest.fixture
def connection(clock: object) -> Iterator[Connect]:
    """Make connections with these options; they are closed with the test."""
    made = []

    def connect(**options: Any) -> Any:
        connection = connection_loader.get("qemu.guest.qga", PlayContext(), None)
        connection.set_options(direct={"exec_method": "guest-exec", "persist": 0, **options})
        made.append(connection)
        return connection

    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is displayed at the highest verbosity."""
    shown: list[str] = []
    monkeypatch.setattr(Display(), "verbosity", 6)
    monkeypatch.setattr(Display(), "display", lambda message, *how, **more: shown.append(str(message)))
    return shown


def wrapped(command: str) -> str:
    """Return a command as ansible-core hands it to connections."""
    return f"/bin/sh -c {shlex.quote(command + ' && sleep 0')}"


# Where the agent is


def test_address(connection: Connect, server: Scripted) -> None:
    assert connection(address=str(server.path)).agent.name == f"unix:{server.path}"
    assert connection(address=f"unix:{server.path}", host="vm1").agent.name == f"unix:{server.path}"
    assert connection(host=f"unix:{server.path}").agent.name == f"unix:{server.path}"
    assert connection(host="tcp:vm1:7000").agent.name == "tcp:vm1:7000"


@pytest.mark.parametrize("options", [{}, {"host": "vm1"}, {"host": "192.0.2.1"}, {"address": "", "host": "vm1:22"}])
def test_no_address(connection: Connect, options: dict[str, str]) -> None:
    with pytest.raises(AnsibleError, match="ansible_qga_address"):
        connection(**options).exec_command("true")


@pytest.mark.parametrize("delegated", [False, True])
@pytest.mark.parametrize("gives", [True, False], ids=["2.19", "2.16"])
def test_guest_does_not_say_where_its_agent_is(
    connection: Connect, server: Scripted, monkeypatch: pytest.MonkeyPatch, gives: bool, delegated: bool
) -> None:
    """Facts go before the inventory, and a user that a task became can return any."""
    host = {"ansible_qga_address": "/run/other.qga", "ansible_facts": {"qga_address": "/run/other.qga"}}
    variables = {"ansible_delegated_vars": {"vm1": host}} if delegated else host
    vm1 = connection(address=str(server.path))
    if gives:  # from 2.19 on, ansible-core does
        vm1._variables = variables
    else:
        monkeypatch.setattr(multiprocessing.current_process(), "_task_vars", variables, raising=False)
    with pytest.raises(AnsibleError, match="ansible_qga_address came from the guest"):
        vm1.exec_command("true")
    assert server.commands == []
    monkeypatch.setattr(C, "INJECT_FACTS_AS_VARS", False)
    vm1.exec_command("true")


@pytest.mark.parametrize("facts", [{}, {"qga_version": "1"}, {"address": "/run/other.qga", "distribution": "Debian"}])
def test_other_facts_are_of_no_matter(connection: Connect, server: Scripted, facts: dict[str, str]) -> None:
    vm1 = connection(address=str(server.path))
    vm1._variables = {"ansible_qga_address": str(server.path), "ansible_facts": facts}
    assert vm1.exec_command("true")[0] == 0


def test_libvirt_uri(connection: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def opened(at: Address, timeout: float, **how: Any) -> SocketAgent:
        given.append((str(at), how["libvirt_uri"]))
        return SocketAgent(at, timeout)

    monkeypatch.setattr(_connection, "open_agent", opened)
    assert connection(address="libvirt:web", libvirt_uri="qemu:///session").agent
    assert connection(host=f"libvirt:{'0' * 8}").agent
    assert given == [("libvirt:web", "qemu:///session"), ("libvirt:00000000", None)]


def test_address_that_is_malformed(connection: Connect) -> None:
    with pytest.raises(AnsibleError, match="'vm1' is not the address"):
        connection(address="vm1").exec_command("true")


def test_timeout(connection: Connect, server: Scripted) -> None:
    assert connection(address=str(server.path)).agent.timeout == 20
    assert connection(address=str(server.path), agent_timeout=7.5).agent.timeout == 7.5


@pytest.mark.parametrize(("given", "seconds"), [({}, 300), ({"frozen_timeout": 7.5}, 7.5)])
@pytest.mark.parametrize("method", ["auto", "guest-exec"])
def test_frozen_timeout(
    connection: Connect, server: Scripted, clock: Clock, method: str, given: dict[str, float], seconds: float
) -> None:
    server.answers.update({"guest-fsfreeze-status": "thawed", "guest-file-open": 7, "guest-file-flush": {}})
    agent = connection(address=str(server.path), exec_method=method, **given).agent
    guest_file = GuestFile(agent, "/x")
    began = clock.now
    server.freeze(1000)
    with pytest.raises(CommandUnavailable, match="frozen"):
        guest_file.flush()
    assert seconds <= clock.now - began <= seconds + 1


def frozen_at(monkeypatch: pytest.MonkeyPatch, agent: Agent, server: Scripted, request: int) -> None:
    """Freeze the guest for seven seconds before this request from now on."""
    execute, number = agent.execute, itertools.count()

    def executed(*what: Any, **how: Any) -> Any:
        if next(number) == request:
            server.freeze(7)
        return execute(*what, **how)

    monkeypatch.setattr(agent, "execute", executed)


@pytest.mark.parametrize("method", ["auto", "guest-exec", "runner"])
def test_guest_that_is_frozen_in_the_middle_of_a_task(
    connection: Connect, server: Scripted, guest: Guest, clock: Clock, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Whichever request of a later command is refused: it is waited for, and the command is run once."""
    clock.on_sleep = lambda: time.sleep(0.002)
    warned: list[str] = []
    monkeypatch.setattr(Display(), "warning", lambda text, **how: warned.append(text))
    server.answers[STATUS] = "thawed"
    made = connection(address=str(server.path), exec_method=method)
    made.exec_command(wrapped("true"))
    for request in range(12):
        with monkeypatch.context() as patched:
            frozen_at(patched, made.agent, server, request)
            assert made.exec_command(wrapped(f"echo {request} | tee -a {guest.tools}/count"))[0] == 0
        clock.advance(7)
    assert (guest.tools / "count").read_text() == "".join(f"{request}\n" for request in range(12))
    assert any("is frozen; waiting up to 300 s" in text for text in warned)


@pytest.mark.parametrize("method", ["auto", "guest-exec", "runner"])
def test_task_that_begins_in_a_frozen_guest(
    connection: Connect, server: Scripted, clock: Clock, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    server.freeze(1000)
    made = connection(address=str(server.path), exec_method=method)
    for _time in range(2):
        with pytest.raises(AnsibleError, match="frozen"):
            made.exec_command(wrapped("true"))
    assert clock.now < 1010


def test_modules_are_piped(connection: Connect, server: Scripted) -> None:
    made = connection(address=str(server.path))
    assert made.has_pipelining and made.get_option("pipelining") is True
    # With that, cores 2.16 and 2.19 would run an async task at once, and not in the background.
    assert not made.always_pipeline_modules


# Commands


def test_raw_is_for_the_login_shell(connection: Connect, server: Scripted) -> None:
    made = connection(address=str(server.path))
    shell = pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    assert made.exec_command("echo \"$0 $SHELL\" 'a  b'")[1].decode() == f"{shell} {shell} a  b\n"
    assert made.exec_command(wrapped('echo "$0 $SHELL"'))[1].decode() == f"/bin/sh {shell}\n"


def test_command(connection: Connect, server: Scripted) -> None:
    result = connection(address=str(server.path)).exec_command("printf 'o\\377'; echo e >&2; exit 3")
    assert result == (3, b"o\xff", b"e\n")


def test_input(connection: Connect, server: Scripted) -> None:
    made = connection(address=str(server.path))
    assert made.exec_command("cat", b"\x00\xff\n")[1] == b"\x00\xff\n"
    assert made.exec_command("cat", "ü")[1] == "ü".encode()
    assert made.exec_command("cat", None)[1] == b""


def test_signal_is_an_exit_status(connection: Connect, server: Scripted) -> None:
    assert connection(address=str(server.path)).exec_command("kill -9 $$")[0] == 137


@pytest.mark.parametrize(
    "command",
    [
        "echo a",
        "echo 'it'\"'\"'s'",
        "echo \"$HOME\" '$HOME' \\\n  b",
        "true || echo 'a && sleep 0'",
        "echo a # && sleep 0",
        "echo $0 $#",
        "exit 4",
        "ü=1; echo '\udcff'",
    ],
)
def test_wrapping_of_the_core_is_taken_off(connection: Connect, server: Scripted, guest: Guest, command: str) -> None:
    made = connection(address=str(server.path))
    assert made.exec_command(wrapped(command))[:2] == made.exec_command(f"exec {wrapped(command)}")[:2]
    first, second = (guest.started[0]["input-data"], guest.started[1]["input-data"])
    assert len(first) <= len(second), "one shell less"


@pytest.mark.parametrize(
    "command",
    ["/bin/sh -c 'echo a", "/bin/bash -c 'echo a'", "/bin/sh -c", "/bin/sh -c 'echo a' b", "/bin/sh -ec 'echo a'"],
)
def test_other_wrapping_is_left_alone(connection: Connect, guest: Guest, server: Scripted, command: str) -> None:
    connection(address=str(server.path)).exec_command(command)
    started = base64.b64decode(guest.started[0]["input-data"]).decode()
    assert command in started or shlex.quote(command) in started


def lacks_fullblock(guest: Guest) -> None:
    (guest.tools / "dd").write_text("#!/bin/sh\necho unrecognized >&2\nexit 1\n")
    (guest.tools / "dd").chmod(0o755)


def test_output_that_was_lost_is_an_error(connection: Connect, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    lacks_fullblock(guest)
    guest.capture = 1024 * 1024
    (tmp_path / "output").write_bytes(bytes(guest.capture + 1))
    with pytest.raises(AnsibleError, match="16 MiB"):
        connection(address=str(server.path)).exec_command(f"cat {tmp_path}/output")


def test_output_of_the_size_from_which_it_is_kept(
    connection: Connect, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    """A guest whose dd cannot keep output has no file, though it did not go back."""
    lacks_fullblock(guest)
    (tmp_path / "output").write_bytes(bytes(1024 * 1024))
    assert len(connection(address=str(server.path)).exec_command(f"cat {tmp_path}/output")[1]) == 1024 * 1024


# By a runner


@pytest.fixture
def _no_systemd(guest: Guest, clock: Clock) -> None:
    """Where this machine has systemd, it is not to start anything; and a runner needs real time."""
    (guest.tools / "systemd-run").write_text("#!/bin/sh\nexit 1\n")
    (guest.tools / "systemd-run").chmod(0o755)
    clock.on_sleep = lambda: time.sleep(0.005)


@pytest.mark.usefixtures("_no_systemd")
@pytest.mark.parametrize("method", ["auto", "runner"])
def test_runner(connection: Connect, server: Scripted, guest: Guest, method: str) -> None:
    made = connection(address=str(server.path), exec_method=method)
    for _time in range(3):
        assert made.exec_command("printf 'o\\377'; echo e >&2; exit 3") == (3, b"o\xff", b"e\n")
    assert [request["path"] for request in guest.started] == ["/bin/sh"], "started once, and used since"
    assert (guest.runner / "1" / "ring").is_fifo()


def test_operations_use_guest_exec_where_they_can(connection: Connect, server: Scripted) -> None:
    executor = connection(address=str(server.path), exec_method="auto").executor
    assert run_shell(executor, b"kill -9 $$", whole=False).signal == 9


def test_auto_falls_back_to_guest_exec(connection: Connect, server: Scripted, guest: Guest, lines: list[str]) -> None:
    (guest.tools / "mkdir").write_text("#!/bin/sh\necho full >&2\nexit 1\n")
    (guest.tools / "mkdir").chmod(0o755)
    made = connection(address=str(server.path), exec_method="auto")
    assert made.exec_command("echo a")[1] == b"a\n"
    assert made.exec_command("echo b")[1] == b"b\n"
    assert len([line for line in lines if "full" in line and "Using guest-exec." in line]) == 1
    made.close()
    with pytest.raises(AnsibleError, match="No runner could be started"):
        connection(address=str(server.path), exec_method="runner").exec_command("echo a")


def test_auto_without_files_uses_guest_exec(
    connection: Connect, scripted: Callable[..., Scripted], guest: Guest
) -> None:
    blocked = {"guest-file-open": "Command guest-file-open has been disabled"}
    server = scripted(guest.answers(), blocked=blocked)
    assert connection(address=str(server.path), exec_method="auto").exec_command("echo a")[1] == b"a\n"


# Trouble


@pytest.mark.usefixtures("_no_systemd")
@pytest.mark.parametrize("method", ["auto", "runner", "guest-exec"])
def test_shell_that_cannot_be_used_is_no_result_of_a_command(
    connection: Connect, scripted: Callable[..., Scripted], guest: Guest, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    # A module or an action would read its words as a result of its own.
    monkeypatch.setattr(login_shell, "_PROLOGUE", login_shell._PROLOGUE.replace("[ / -ef / ]", "false"))
    made = connection(address=str(scripted(guest.answers()).path), exec_method=method)
    with pytest.raises(AnsibleError, match=r"the program was not run: the guest's /bin/sh lacks \[ A -ef B \]"):
        made.exec_command("true")


@pytest.mark.parametrize("step", [swallows, closes(), sends(b"nonsense\n")])
def test_trouble_with_the_channel_is_a_failed_connection(connection: Connect, server: Scripted, step: Any) -> None:
    server.then("guest-exec", step)
    made = connection(address=str(server.path))
    with pytest.raises(AnsibleConnectionFailure, match="guest-exec"):
        made.exec_command("true")
    assert made.exec_command("true")[0] == 0, "the next command has a channel of its own"
    assert len(server.received) == 2


def test_lost_task_is_told_whatever_becomes_of_cleaning_up_after_it(
    connection: Connect, server: Scripted, tmp_path: Path
) -> None:
    """ansible-core removes the temporary directory of a task that failed, and tells only that this failed, too."""
    server.then("guest-exec", closes())
    made = connection(address=str(server.path))
    with pytest.raises(AnsibleConnectionFailure, match="guest-exec may have run"):
        made.exec_command("true")
    server.path.rename(tmp_path / "away")  # as where QEMU has ended
    with pytest.raises(AnsibleConnectionFailure, match="guest-exec may have run") as caught:
        made.exec_command("rm -rf /root/.ansible/tmp/x")
    assert not caught.value.__cause__, "ansible-core would tell that, too"
    made.reset()
    with pytest.raises(AnsibleConnectionFailure, match="nothing was sent: there is no such socket"):
        made.exec_command("true")
    (tmp_path / "away").rename(server.path)
    server.then("guest-exec", closes())
    with pytest.raises(AnsibleConnectionFailure, match="guest-exec may have run"):
        made.exec_command("true")  # what may have run is told, whatever was told before
    assert made.exec_command("true")[0] == 0
    server.path.rename(tmp_path / "away")
    made.close()
    with pytest.raises(AnsibleConnectionFailure, match="nothing was sent: there is no such socket"):
        made.exec_command("true")


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("guest-file-open", "x"),
        ("guest-file-read", {"count": "x"}),
        ("guest-file-read", {"count": 2, "buf-b64": "YQ=="}),
        ("guest-file-read", {"count": 1, "buf-b64": "?"}),
        ("guest-exec", {"pid": "x"}),
        ("guest-exec-status", {"exited": True, "exitcode": "x"}),
        ("guest-exec-status", {"exited": True, "exitcode": 0, "out-data": "?"}),
    ],
)
def test_error_names_the_guest_and_the_file_and_the_command_once(
    connection: Connect, scripted: Callable[..., Scripted], guest: Guest, tmp_path: Path, command: str, reply: Any
) -> None:
    (tmp_path / "there").write_bytes(b"x")
    server = scripted({**guest.answers(), command: reply})
    made = connection(address=str(server.path))
    with pytest.raises(AnsibleError) as caught:
        if "file" in command:
            made.fetch_file(str(tmp_path / "there"), str(tmp_path / "back"))
        else:
            made.exec_command("true")
    told = "guest-exec" if "exec" in command else command  # what a program's end says is about the program
    assert str(caught.value).startswith(f"guest agent at unix:{server.path}: {told} ")
    assert str(caught.value).count("guest agent at") == 1, "its cause is in it already"
    assert "file" not in command or f"The file is {tmp_path / 'there'}" in str(caught.value)


def test_no_agent_is_a_failed_connection(connection: Connect, tmp_path: Path) -> None:
    with pytest.raises(AnsibleConnectionFailure, match="no such socket"):
        connection(address=str(tmp_path / "vm1.qga")).exec_command("true")


def test_blocked_command_is_no_failed_connection(connection: Connect, scripted: Callable[..., Scripted]) -> None:
    server = scripted(blocked={"guest-exec": "Command guest-exec has been disabled"})
    with pytest.raises(AnsibleError, match=r"guest-exec .*disabled.*block-rpcs") as caught:
        connection(address=str(server.path)).exec_command("true")
    assert not isinstance(caught.value, AnsibleConnectionFailure)


def test_close_and_reset(connection: Connect, server: Scripted) -> None:
    made = connection(address=str(server.path))
    made.close()
    made.exec_command("true")
    made.reset()
    assert made.connected
    made.exec_command("true")
    made.close()
    made.close()
    assert not made.connected
    assert len(server.received) == 2


# Files


def test_put_and_fetch(connection: Connect, server: Scripted, tmp_path: Path) -> None:
    made = connection(address=str(server.path))
    data = bytes(range(256)) * 5000
    (tmp_path / "here ü").write_bytes(data)
    made.put_file(str(tmp_path / "here ü"), str(tmp_path / "it's there"))
    assert (tmp_path / "it's there").read_bytes() == data
    assert (tmp_path / "it's there").stat().st_mode & 0o777 == 0o600
    made.fetch_file(str(tmp_path / "it's there"), str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_put_what_is_not_there(connection: Connect, server: Scripted, tmp_path: Path) -> None:
    with pytest.raises(AnsibleFileNotFound):
        connection(address=str(server.path)).put_file(str(tmp_path / "nope"), "/x")
    assert server.commands == []


def test_fetch_what_is_not_there(connection: Connect, server: Scripted, tmp_path: Path) -> None:
    with pytest.raises(AnsibleError, match="No such file"):
        connection(address=str(server.path)).fetch_file(str(tmp_path / "nope"), str(tmp_path / "back"))


def test_put_where_nothing_can_be_written(connection: Connect, server: Scripted, tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    with pytest.raises(AnsibleError, match="cannot create"):
        connection(address=str(server.path)).put_file(str(tmp_path / "here"), str(tmp_path / "nope" / "there"))


@pytest.mark.parametrize(
    ("path", "absolute"), [("/a b", "/a b"), ("~/x/y", "{home}/x/y"), ("x/y", "{home}/x/y"), ("~root/x", "{root}/x")]
)
def test_paths_are_made_absolute(connection: Connect, server: Scripted, path: str, absolute: str) -> None:
    made = connection(address=str(server.path))
    expected = absolute.format(home=os.path.expanduser("~"), root=os.path.expanduser("~root"))
    assert made._guest_path(path) == expected


def test_path_in_the_home_of_nobody(connection: Connect, server: Scripted) -> None:
    with pytest.raises(AnsibleError, match=r"~no\.such/x is nowhere: the guest knows no home directory ~no\.such"):
        connection(address=str(server.path))._guest_path("~no.such/x")


# Secrets


def test_nothing_secret_is_shown_at_any_verbosity(
    connection: Connect, server: Scripted, guest: Guest, lines: list[str], tmp_path: Path
) -> None:
    made = connection(address=str(server.path))
    made.exec_command("echo hush1; echo hush2 >&2", b"hush3")
    (tmp_path / "here").write_text("hush4")
    made.put_file(str(tmp_path / "here"), str(tmp_path / "there"))
    made.fetch_file(str(tmp_path / "there"), str(tmp_path / "back"))
    assert any("EXEC" in line for line in lines) and any("PUT" in line for line in lines)
    assert "hush" not in "\n".join(lines)
    assert not [request for request in guest.started if "hush" in str(request["arg"])]


def test_why_warm_python_did_not_start_is_one_visible_line(
    connection: Connect, server: Scripted, lines: list[str]
) -> None:
    """The guest says why."""
    made = connection(address=str(server.path), exec_method="runner", warm_python=True)
    assert made.executor
    made._warm._tell("it says: \x1b[2J\nok: [vm1]")
    assert any(r"it says: \x1b[2J ok: [vm1]" in line for line in lines)


def test_documentation_names_the_variables_of_the_options() -> None:
    options = yaml.safe_load(qga.DOCUMENTATION)["options"]
    for option, name in {**{name: name for name in ("address", "exec_method")}, "agent_timeout": "timeout"}.items():
        assert [entry["name"] for entry in options[option]["vars"]] == [f"ansible_qga_{name}"]
        assert [entry["name"] for entry in options[option]["env"]] == [f"ANSIBLE_QGA_{name.upper()}"]
        assert options[option]["ini"] == [{"section": "qga_connection", "key": name}]


# Become


class Tool:
    """A program that stands in for sudo and su: it asks as they do, and remembers what it was given.

    ``asks`` says whether it does; ``words`` is what it says of a wrong password; ``right`` is what it takes.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self.tried = directory / "tool", directory / "tried"
        self.tried.touch()
        self.install()

    def install(self, *, asks: bool = True, words: str = "Sorry, try again.", first: str = "") -> None:
        """Make it anew; ``first`` is shell text that is run before anything."""
        self.path.write_text(
            f"""#!/bin/sh
            {first}
            prompt='Password: ' n=
            while :; do
                case $1 in
                -n) n=1 ;;
                -p) prompt=$2; shift ;;
                -u) shift ;;
                -*) ;;
                *) break ;;
                esac
                shift
            done
            case $2 in -c) shift 2; set -- /bin/sh -c "$@" ;; esac # as su has them: USER -c COMMAND
            [ "$1" != /bin/sh ] || [ "$2" = -c ] || exit 9
            {":" if asks else 'exec "$@"'}
            [ ! "$n" ] || {{ echo 'sudo: a password is required' >&2; exit 1; }}
            for _ in 1 2 3; do
                printf %s "$prompt" >&2
                IFS= read -r password || {{ echo >&2; break; }}
                printf '%s\\n' "$password" >>'{self.tried}'
                [ "$password" != "pass 'ü'" ] || exec "$@"
                echo '{words}' >&2
            done
            echo 'tool: \033[31mno, and no' >&2
            exit 1
            """
        )
        self.path.chmod(0o755)

    @property
    def seen(self) -> list[str]:
        """The passwords that it was given."""
        return self.tried.read_text().splitlines()


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


class Become:
    """Run shell commands over one connection, as ansible-core's become plugin of this ``name`` has them run."""

    def __init__(self, name: str, connection: Any, tool: Tool) -> None:
        self.name = name
        self._connection = connection
        self._exe = str(tool.path)
        self._shell = shell_loader.get("sh")
        self._shell.set_options()
        self._shell.executable = "/bin/sh"

    def __call__(
        self, command: str, stdin: bytes = b"", password: str | None = None, **how: Any
    ) -> tuple[int, bytes, bytes]:
        plugin = become_loader.get(self.name)
        given = {"become_pass": password} if password else {}
        plugin.set_options(direct={"become_user": "somebody", "become_exe": self._exe, **given})
        self._connection.set_become_plugin(plugin)
        command = wrapped(plugin.build_become_command(command, self._shell))
        result: tuple[int, bytes, bytes] = self._connection.exec_command(command, in_data=stdin, **how)
        return result


@pytest.fixture(params=["sudo", "su"])
def become(request: pytest.FixtureRequest, connection: Connect, server: Scripted, tool: Tool) -> Become:
    return Become(request.param, connection(address=str(server.path)), tool)


WORK = "cat; echo e >&2; exit 3"
RIGHT = "pass 'ü'"


def test_password_is_given_to_who_asks(become: Become, tool: Tool) -> None:
    for _time in range(2):
        assert become(WORK, b"\x00one\ntwo", RIGHT) == (3, b"\x00one\ntwo", b"e\n")
    assert tool.seen == [RIGHT] * 2


def test_password_is_not_given_to_who_does_not_ask(become: Become, tool: Tool) -> None:
    # A user's own login shell could read what comes before the task can.
    tool.install(asks=False, first=f"timeout 0.3 cat >>'{tool.tried}'")
    for _time in range(2):
        assert become("echo a", b"input\n", RIGHT) == (0, b"a\n", b"")
    assert RIGHT not in tool.seen


def test_password_is_not_given_to_what_warns(become: Become, tool: Tool) -> None:
    # Piece by piece, as sudo writes it; some pieces end as a prompt does.
    warns = "printf 'sudo: ' >&2; sleep 0.1; printf 'unable to resolve host: ' >&2; sleep 0.1; echo vm >&2; "
    tool.install(asks=False, first=f"{warns} timeout 0.3 cat >>'{tool.tried}'")
    assert become("echo a", b"", RIGHT) == (0, b"a\n", b"sudo: unable to resolve host: vm\n")
    assert tool.seen == []


@pytest.mark.parametrize("words", ["Sorry, try again.", "sudo: Authentication failed, try again.", "nej"])
def test_wrong_password_counts_once(become: Become, tool: Tool, words: str) -> None:
    tool.install(words=words)
    with pytest.raises(AnsibleError, match=rf"^guest: Incorrect {become.name} password\. ") as caught:
        become("echo never", b"these\nare\nthe module\n", "wrong")
    assert tool.seen == ["wrong"]
    assert "no, and no" in str(caught.value) and "\033" not in str(caught.value), "its words, made harmless"
    assert not isinstance(caught.value, AnsibleConnectionFailure)


def test_wrong_password_of_what_asks_once(become: Become, tool: Tool) -> None:
    """Nor do su's words tell anything where they are translated."""
    tool.install(words="nej")
    tool.path.write_text(tool.path.read_text().replace("for _ in 1 2 3", "for _ in 1"))
    with pytest.raises(AnsibleError, match="was given its password and did not start the task"):
        become("echo never", b"module", "wrong")
    assert tool.seen == ["wrong"]


def test_missing_password(become: Become, tool: Tool) -> None:
    said = {
        "sudo": ["sudo: a password is required", "sudo: interactive authentication is required"],
        "su": ["su: Authentication failure", "su: Authentication required but not attempted"],
    }
    for words in said[become.name]:
        tool.install(first=f"echo '{words}' >&2; exit 1")
        with pytest.raises(AnsibleError, match=rf"^guest: Missing {become.name} password; set ansible_become_password"):
            become("echo never", b"module")


def test_long_line_of_a_tool_takes_no_long_time(become: Become, tool: Tool) -> None:
    tool.install(first="head -c 4000000 /dev/zero | tr '\\0' x >&2; exit 1")
    started = time.monotonic()
    assert len(become("echo never", b"", RIGHT)[2]) == 4_000_000
    assert time.monotonic() - started < 10


def test_other_failure_is_a_result(become: Become, tool: Tool) -> None:
    tool.install(first="echo 'unknown user somebody' >&2; exit 1")
    for password in (None, RIGHT):
        assert become("echo never", b"module", password) == (1, b"", b"unknown user somebody\n")


@pytest.mark.parametrize("missing", ["mkfifo", "timeout", "dd", "grep"])
def test_guest_without_what_a_password_needs(become: Become, guest: Guest, tmp_path: Path, missing: str) -> None:
    programs, shell = tmp_path / "programs", tmp_path / "sh"
    programs.mkdir()
    for name in {"mkfifo", "timeout", "dd", "grep", "cat", "rm", "id"} - {missing}:
        (programs / name).symlink_to(shutil.which(name) or "")
    shell.write_text(f'#!/bin/sh\nPATH={programs} exec /bin/sh "$@"\n')
    shell.chmod(0o755)
    guest.shell = [str(shell)]
    rc, out, err = become(WORK, b"input", RIGHT)
    assert (rc, out) == (1, b"")
    assert f"needs {missing} in the guest; nothing was run" in err.decode()


def test_marker_goes_and_what_stands_around_it_stays(become: Become, tool: Tool) -> None:
    tool.install(asks=False, first="echo welcome; echo note >&2")
    for password in (None, RIGHT):
        assert become("printf 'a\\nb'", b"", password) == (0, b"welcome\na\nb", b"note\n")
    tool.install(first="echo welcome; [ -n \"$*\" ] && case $* in *' -n '*) ;; *) echo note >&2 ;; esac")
    assert become("echo a; echo b >&2", b"", RIGHT) == (0, b"welcome\na\n", b"note\nb\n")


def test_marker_of_another_is_left_alone(connection: Connect, server: Scripted) -> None:
    out = connection(address=str(server.path)).exec_command("echo BECOME-SUCCESS-abc; cat", b"in")[1]
    assert out == b"BECOME-SUCCESS-abc\nin"


def test_password_is_for_become_only(become: Become, tool: Tool) -> None:
    tool.install(asks=False)
    out = become("cat", b"in", RIGHT, sudoable=False)[1]
    assert out.startswith(b"BECOME-SUCCESS-") and out.endswith(b"\nin")


def test_nothing_of_a_password_is_shown(become: Become, tool: Tool, lines: list[str]) -> None:
    become("cat", b"in", RIGHT)
    assert tool.seen == [RIGHT]
    shown = [line for line in lines if "EXEC" in line]
    assert shown and all(" 2 of stdin" in line for line in shown), "nor how long it is"
    assert RIGHT not in "\n".join(lines)


# What makes no sense


@pytest.mark.parametrize(
    ("option", "name", "values"),
    [
        ("agent_timeout", "ansible_qga_timeout", "0 -1 nan inf"),
        ("frozen_timeout", "ansible_qga_frozen_timeout", "-1 nan inf"),
        ("persist", "ansible_qga_persist", "-1 nan inf"),
    ],
)
def test_seconds_that_make_no_sense(connection: Connect, server: Scripted, option: str, name: str, values: str) -> None:
    for value in values.split():
        with pytest.raises(AnsibleError, match=f"^guest: {name} is {value};"):
            connection(address=str(server.path), **{option: float(value)}).exec_command("true")
    assert server.commands == []


def test_user_that_the_agent_does_not_run_as(connection: Connect, server: Scripted, lines: list[str]) -> None:
    for user, runs_as, warns in ((None, "root", 0), ("root", "root", 0), ("qga", "qga", 0), ("qgauser", "root", 1)):
        lines.clear()
        for _task in range(2):
            made = connection(address=str(server.path), agent_user=runs_as)
            made._play_context.remote_user = user
            made.exec_command("true")
            made.exec_command("true")
            made.close()
        warnings = [line for line in lines if "tasks run as" in line]
        assert len(warnings) == warns, warnings


# What the process of a task does without


def test_garbage_collections_leave_alone_what_the_process_of_a_task_began_with() -> None:
    def frozen() -> int:
        connection_loader.get("qemu.guest.qga", PlayContext(), None)
        return gc.get_freeze_count()

    def in_process_of_a_task() -> None:
        there.send(frozen())

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=in_process_of_a_task)
    process.start()
    process.join(30)
    assert here.poll() and here.recv() > 10_000
    assert frozen() == 0, "that of a whole run goes on"
