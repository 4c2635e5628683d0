# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ansible's own commands against real agents, and look at what they did by another path."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.schema import command as schema
from ansible_collections.qemu.guest.tests.integration.commands import COVERED
from ansible_collections.qemu.guest.tests.integration.guides import Runner
from lab import host, image
from lab.agent import LooseAgent
from lab.controller import Controller
from lab.machine import Machine
from lab.tally import Count, Tally
from lab.vm import Guest

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WITNESS = HERE / "witness.py"
COMMANDS = Path(sys.executable).parent
"""Where this environment has ansible-playbook and its siblings."""

Subject = LooseAgent | Guest
"""What is configured: a real agent, with a guest around it or without."""

# What a run must not inherit from whoever starts the tests.
_FOREIGN = re.compile(r"^(ANSIBLE_|QEMU_GUEST_)")
# What no run must use; facts as variables are the playbook's affair.
_DEPRECATED = re.compile(r"\[DEPRECATION WARNING\]: (?!INJECT_FACTS_AS_VARS )")


@dataclass(frozen=True)
class Run:
    """One run of an ansible command, which has ended."""

    rc: int
    output: str
    seconds: float

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """The numbers of the PLAY RECAP by host: ok, changed, unreachable, failed, skipped, rescued, ignored."""
        recap = self.output.rpartition("PLAY RECAP")[2]
        lines = re.findall(r"^(\S+)\s+:\s+(ok=.*)$", recap, re.MULTILINE)
        return {host: {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in lines}

    @property
    def message(self) -> str:
        """The output with its line breaks as spaces, to look for text that ansible may have wrapped."""
        return " ".join(self.output.replace("\\n", " ").split())


class Ansible:
    """The commands of this environment's ansible-core, with an inventory and directories of their own.

    With a ``controller``, they run there, as root.
    """

    def __init__(
        self, directory: Path, hosts: Mapping[str, Mapping[str, Any]], controller: Controller | None = None
    ) -> None:
        self.directory = directory
        self._controller = controller
        self.inventory = directory / "inventory.json"
        directory.mkdir(parents=True, exist_ok=True)
        self.inventory.write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")

    def playbook(self, playbook: Path, *arguments: str, rc: int | None = 0, **options: Any) -> Run:
        """Run ansible-playbook; fail unless it exits with `rc` (None: whatever it exits with)."""
        return self.run("ansible-playbook", str(playbook), *arguments, rc=rc, **options)

    def adhoc(self, module: str, arguments: str | Mapping[str, Any] = "", *more: str, **options: Any) -> Run:
        """Run one task on all hosts with the `ansible` command."""
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        return self.run("ansible", "all", "-m", module, "-a", text, *more, **options)

    def run(
        self,
        command: str,
        *arguments: str,
        rc: int | None = 0,
        variables: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float = 600.0,
    ) -> Run:
        """Run `command` from the checkout, with its output and its errors in one text.

        It fails if something deprecated is used, other than facts as variables, which playbooks do.
        """
        started = time.monotonic()
        with self.start(command, *arguments, variables=variables, environment=environment) as process:
            output = _output(process, timeout)
        run = Run(process.returncode, output, time.monotonic() - started)
        assert rc is None or run.rc == rc, f"exit status {run.rc}, not {rc}, of {command} {arguments}:\n{output}"
        assert not _DEPRECATED.search(output), output
        return run

    @contextmanager
    def start(
        self,
        command: str,
        *arguments: str,
        variables: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[subprocess.Popen[str]]:
        """Start `command`; when the block is left, it and its workers have ended."""
        argv = [str(COMMANDS / command), "-i", str(self.inventory), *arguments]
        if variables:
            argv += ["-e", json.dumps(variables)]
        variables_of_run = {**self.environment(), **(environment or {})}
        if self._controller:
            argv = self._controller.command(argv, variables_of_run, ROOT)
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=variables_of_run,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def environment(self) -> dict[str, str]:
        """Return the environment of a run: nothing of the user's ansible settings is in it."""
        kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        return {
            **kept,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_ROLES_PATH": str(HERE / "targets"),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }


def _output(process: subprocess.Popen[str], timeout: float) -> str:
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired as late:
        # The workers hold the pipe too, so end them first to get what was printed.
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
        raise AssertionError(f"not ended after {timeout:g} s:\n{output}") from late


# Where things are


def releases(*usual: T) -> Sequence[str | T]:
    """Return the Debian releases that QEMU_GUEST_RELEASES names; `usual`, names or parameters, where it names none."""
    return os.environ.get("QEMU_GUEST_RELEASES", "").split() or usual


WAYS: dict[str, dict[str, Any]] = {
    "warm": {},
    "runner": {"ansible_qga_exec_method": "runner", "ansible_qga_warm_python": False},
    "guest-exec": {"ansible_qga_exec_method": "guest-exec"},
}
"""Host variables of each way to run programs, by its name."""


def guest_variables(subject: Subject, socket: Path | None = None) -> dict[str, Any]:
    """Return the variables of a host that is the guest itself, connected to through its agent (or that `socket`)."""
    return {
        "ansible_connection": "qemu.guest.qga",
        "ansible_qga_address": str(socket or subject.agent_socket),
        "ansible_python_interpreter": "/usr/bin/python3",
        "witness": witness(subject),
    }


def hypervisor_variables(subject: Subject, socket: Path | None = None) -> dict[str, Any]:
    """Return the variables of a host that is the hypervisor of the guest: modules need the agent's address there."""
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "qga_address": str(socket or subject.agent_socket),
        "witness": witness(subject),
    }


def witness(subject: Subject) -> list[str]:
    """Return the beginning of a command line that runs a shell command in the guest without its agent."""
    if isinstance(subject, Guest):
        return [sys.executable, str(WITNESS), str(subject.console)]
    return subject.shell


def look(subject: Subject, command: str, check: bool = True) -> str:
    """Run a shell command as root in the guest by another path than its agent; return what it printed."""
    return subject.run(command, check=check)[1]


# Targets

PLACES = {"guest": guest_variables, "hypervisor": hypervisor_variables}


def run_target(
    make_ansible: Callable[[Mapping[str, Mapping[str, Any]]], Ansible],
    target: str,
    place: str,
    subjects: Mapping[str, Subject],
    **variables: Any,
) -> None:
    """Run one of targets/ on `subjects`, either as hosts or from their hypervisor.

    Fails as well unless the agents got, and did not refuse, every command that the table says the target exercises.
    """
    table = {command: covered.refused for covered in COVERED if covered.target == target for command in covered}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        relays = {name: stack.enter_context(Tally(directory / name, of.agent_socket)) for name, of in subjects.items()}
        known = {command for subject in subjects.values() for command in _enabled_commands(subject)}
        hosts = {
            name: {
                **PLACES[place](subject, relays[name].path),
                "agent_version": image.build(subject.release).agent_version,
            }
            for name, subject in subjects.items()
        }
        make_ansible(hosts).playbook(HERE / "targets.yml", variables={"target": target, **variables})
    counts = [item for relay in relays.values() for item in relay.counts.items()]
    seen = {command for command, count in counts if table.get(command) or worked(command, count)}
    missing = (set(table) & known) - seen
    assert not missing, f"{target} should exercise {', '.join(sorted(missing))}"


def _enabled_commands(subject: Subject) -> list[str]:
    with open_agent(str(subject.agent_socket)) as agent:
        return [name for name, enabled in agent.info.commands.items() if enabled]


def worked(command: str, count: Count) -> bool:
    """Return whether the agent did what a command asks for at least once, as far as its answers tell."""
    return count.returned > 0 or (not schema(command).answers and count.requests > count.refused)


# Guides


def run_guide(guide: str, machine: Machine, directory: Path, *collections: Path) -> None:
    """Type a guide in, on a machine that has the collection, maybe others, and nothing of the user's settings."""
    there = directory / guide
    there.mkdir()
    Runner(there, shell_on(machine, there, *collections)).run(guide)


def shell_on(machine: Machine, directory: Path, *collections: Path, home: Path | None = None) -> list[str]:
    """Return a command line whose next argument is a command for the shell of a user of that machine."""
    environment = {
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(map(str, [*collections, ROOT / ".dev" / "collections"])),
        "ANSIBLE_FORKS": "1",  # else hosts answer in any order
        "ANSIBLE_HOME": str(directory.parent / "home"),
        "ANSIBLE_NOCOLOR": "1",
        "HOME": str(home or Path.home()),
        "LC_ALL": "C.UTF-8",
        "PATH": os.pathsep.join([str(COMMANDS), host.SEARCH_PATH]),
    }
    return machine.command(["/bin/sh", "-c"], environment, directory)


# Others on the channel


@contextmanager
def taken(address: Path) -> Iterator[None]:
    """Be the client that has the agent's only seat."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as seat:
        seat.settimeout(10)
        seat.connect(str(address))
        seat.sendall(b'{"execute": "guest-ping"}\n')
        assert seat.recv(4096).startswith(b'{"return"'), "the seat was taken already"
        yield


def until(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """Wait until `condition` returns something true, and return that; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not after {timeout:g} s"
        time.sleep(0.1)


def in_background(action: Callable[[], Any]) -> Callable[[], Any]:
    """Start `action` in a thread; return a function that waits for its result, or raises what it raised."""
    outcome: dict[str, Any] = {}

    def body() -> None:
        try:
            outcome["result"] = action()
        except BaseException as error:  # raised again where the result is asked for
            outcome["error"] = error

    thread = threading.Thread(target=body, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join()
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    return result
