# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that libvirt runs. The serial console says what became of it."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    CommandError,
    ConnectError,
    GuestFileError,
    OutcomeUnknownError,
    ProtocolError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import LibvirtAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile, copy_in
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import run_shell, start_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch, put
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.examples import example_tasks, paste_tasks
from ansible_collections.qemu.guest.tests.integration.harness import (
    HERE,
    PLACES,
    WAYS,
    Ansible,
    in_background,
    look,
    until,
)
from ansible_collections.qemu.guest.tests.integration.image_content import Filesystem
from lab.libvirt import Daemon, Domain
from lab.sshd import Sshd

NAME = "web 1"
TIMEOUT = 6


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as running:
        running.define("shut off")
        yield running


@pytest.fixture(scope="module")
def domain(daemon: Daemon) -> Iterator[Domain]:
    with Domain(daemon, "bookworm", NAME) as running:
        running.wait_booted()
        running.wait_agent()
        yield running


@pytest.fixture
def agent(domain: Domain) -> Iterator[Agent]:
    # libvirt is told a little later than QEMU that an agent is there.
    with open_agent(f"libvirt:{NAME}", TIMEOUT, libvirt_uri=domain.daemon.uri) as made:
        until(lambda: answers(made), 30, "an answer from the agent")
        yield made


def answers(agent: Agent) -> bool:
    try:
        return agent.execute("guest-ping") == {}
    except ConnectError:
        return False


@pytest.fixture
def make_guest(make_ansible: MakeAnsible, daemon: Daemon) -> Any:
    """Return a function to an Ansible with one host, whose connection leads to this domain."""

    def make(address: str = f"libvirt:{NAME}", **more: Any) -> Ansible:
        variables = {
            "ansible_connection": "qemu.guest.qga",
            "ansible_qga_address": address,
            "ansible_qga_libvirt_uri": daemon.uri,
            "ansible_qga_timeout": TIMEOUT,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        return make_ansible({"vm": {**variables, **more}})

    return make


@pytest.fixture
def hypervisor(make_ansible: MakeAnsible) -> Ansible:
    return make_ansible({"hv": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}})


# What works


def test_guest(make_guest: Any, domain: Domain, agent: Agent, tmp_path: Path) -> None:
    ansible = make_guest(ansible_qga_timeout=30)
    assert '"ping": "pong"' in ansible.adhoc("ansible.builtin.ping").output
    content = os.urandom(5_000_000)
    (tmp_path / "there").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    ansible.adhoc("ansible.builtin.copy", {"src": str(tmp_path / "there"), "dest": "/srv/five", "mode": "0640"})
    assert look(domain, "sha256sum </srv/five; stat -c %a /srv/five") == f"{digest}  -\n640\n"
    ansible.adhoc("ansible.builtin.fetch", {"src": "/srv/five", "dest": str(tmp_path / "back"), "flat": True})
    assert (tmp_path / "back").read_bytes() == content
    # Without qga_exec's way around it, libvirt would drop the reply and then the agent.
    long = ansible.adhoc("qemu.guest.qga_exec", {"shell": "head -c 5000000 /dev/zero | tr '\\0' x"})
    assert "x" * 5_000_000 in long.output
    slow = ansible.adhoc("qemu.guest.qga_exec", {"shell": "sleep 1000 & sleep 1000", "timeout": 2}, rc=2)
    assert "It was killed, with everything it had started." in slow.message
    assert look(domain, "pgrep -f 'sleep 100[0]' || echo none") == "none\n"
    assert look(domain, "ls -d /run/qemu-guest.* 2>/dev/null || :") == ""


def test_hypervisor(hypervisor: Ansible, domain: Domain, agent: Agent) -> None:
    where = {"address": f"libvirt:{domain.uuid}", "libvirt_uri": domain.daemon.uri}
    info = hypervisor.adhoc("qemu.guest.qga_info", {**where, "gather_subset": ["osinfo"]})
    assert '"id": "debian"' in info.output and '"pretty_name": "Debian GNU/Linux 12 (bookworm)"' in info.output
    by_environment = hypervisor.adhoc(
        "qemu.guest.qga_ping", {"address": where["address"]}, environment={"LIBVIRT_DEFAULT_URI": domain.daemon.uri}
    )
    assert '"ping": "pong"' in by_environment.output
    frozen = hypervisor.adhoc("qemu.guest.qga_command", {**where, "command": "guest-fsfreeze-freeze"})
    try:
        assert '"changed": true' in frozen.output
        assert look(domain, "touch /srv/frozen & sleep 2; kill -0 $! && echo waits") == "waits\n"
        blocked = hypervisor.adhoc("qemu.guest.qga_fetch", {**where, "src": "/etc/motd", "dest": "/tmp/x"}, rc=2)
        assert "blocked while the guest's filesystems are frozen" in blocked.message
    finally:
        hypervisor.adhoc("qemu.guest.qga_command", {**where, "command": "guest-fsfreeze-thaw"})
    assert look(domain, "touch /srv/thawed; ls /srv/frozen") == "/srv/frozen\n"


def test_freeze_and_timer(hypervisor: Ansible, domain: Domain) -> None:
    """The timer opens a connection of its own to libvirt, when the module has long ended."""
    where = {"address": f"libvirt:{NAME}", "libvirt_uri": domain.daemon.uri}
    frozen = hypervisor.adhoc("qemu.guest.qga_fsfreeze", {**where, "state": "frozen", "thaw_after": 15})
    assert '"status_after": "frozen"' in frozen.output
    again = hypervisor.adhoc("qemu.guest.qga_fsfreeze", {**where, "state": "frozen", "thaw_after": 15})
    assert '"changed": false' in again.output
    time.sleep(20)
    late = hypervisor.adhoc("qemu.guest.qga_fsfreeze", {**where, "state": "thawed"})
    assert "the timer thawed the guest at" in late.output and '"changed": false' in late.output
    assert look(domain, "touch /srv/thawed-by-timer; ls /srv/thawed-by-timer") == "/srv/thawed-by-timer\n"


@pytest.mark.parametrize("place", ["guest", "hypervisor"])
def test_snapshots(place: str, make_ansible: MakeAnsible, domain: Domain, agent: Agent, tmp_path: Path) -> None:
    variables = {"target": "qga_snapshot", "place": place, "disk": "vdb", "existing": str(domain.boot_log)}
    uri = {"ansible_qga_libvirt_uri": domain.daemon.uri, "ansible_qga_address": f"libvirt:{NAME}"}
    if place == "hypervisor":
        uri = {"libvirt_uri": domain.daemon.uri, "qga_address": f"libvirt:{NAME}"}
    ansible = make_ansible({"vm": {**PLACES[place](domain), **uri}})
    ansible.playbook(HERE / "targets.yml", variables=variables)
    assert not Filesystem(str(domain.directory / f"small.{place}-1"), tmp_path).needs_recovery
    assert domain.daemon.virsh("snapshot-list", "--name", NAME).strip() == "", "nothing to be cleaned up there"


def test_example_of_a_snapshot(hypervisor: Ansible, domain: Domain, agent: Agent) -> None:
    """The one whose address is a domain of libvirt's; guests/test_examples.py has the others."""
    look(domain, "mkdir -p /var/lib/postgresql && mount /dev/vdb /var/lib/postgresql")
    try:
        (example,) = (task for task in example_tasks("qga_snapshot") if "libvirt:" in task)
        environment = {"LIBVIRT_DEFAULT_URI": domain.daemon.uri}
        run = paste_tasks(hypervisor, [example], {"libvirt:vm1": f"libvirt:{NAME}"}, environment=environment)
        assert run.recap["hv"]["changed"] == 1
        assert "small.before-upgrade" in domain.daemon.virsh("domblklist", NAME)
    finally:
        look(domain, "umount /var/lib/postgresql")


def test_snapshot_that_libvirt_refuses(hypervisor: Ansible, domain: Domain, agent: Agent) -> None:
    """The second disk is busy. The first one has no snapshot then either, no file is left, and the guest is thawed."""
    before = domain.daemon.virsh("domblklist", NAME)
    target = str(domain.directory / "busy")
    domain.daemon.virsh("blockcopy", NAME, "vdb", target, "--transient-job", "--format", "raw")
    files = sorted(domain.directory.iterdir())
    try:
        options = {"address": f"libvirt:{NAME}", "libvirt_uri": domain.daemon.uri, "name": "refused"}
        run = hypervisor.adhoc("qemu.guest.qga_snapshot", options, rc=2)
        assert "virDomainSnapshotCreateXML failed: " in run.message
        assert "The guest's filesystems are thawed." in run.message and '"consistent": false' in run.output
    finally:
        domain.daemon.virsh("blockjob", NAME, "vdb", "--abort")
    assert domain.daemon.virsh("domblklist", NAME) == before
    assert sorted(domain.directory.iterdir()) == files
    assert look(domain, "touch /srv/goes-on; ls /srv/goes-on") == "/srv/goes-on\n"


def test_output_and_files(agent: Agent, domain: Domain, tmp_path: Path) -> None:
    two = run_shell(GuestExec(agent), b"head -c 5000000 /dev/zero; head -c 1500000 /dev/zero >&2; exit 9")
    assert (two.rc, two.stdout, two.stderr) == (9, bytes(5_000_000), bytes(1_500_000))
    stdin = os.urandom(2_900_000)
    assert (
        run_shell(GuestExec(agent), b"sha256sum", stdin).stdout.split()[0].decode() == hashlib.sha256(stdin).hexdigest()
    )
    with pytest.raises(TransferError, match="libvirt carries"):
        agent.execute("guest-file-write", {"handle": 1, "buf-b64": "x" * 200_000})
    content = os.urandom(5_000_000)
    (tmp_path / "there").write_bytes(content)
    with (tmp_path / "there").open("rb") as source:
        assert put(GuestExec(agent), source, "/var/tmp/five ä") == len(content)
    digest = hashlib.sha256(content).hexdigest()
    assert look(domain, "sha256sum <'/var/tmp/five ä'") == f"{digest}  -\n"
    with (tmp_path / "back").open("w+b") as sink:
        assert fetch(GuestExec(agent), "/var/tmp/five ä", sink) == len(content)
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest
    # All that a read can return gets through; what could not is refused before.
    with GuestFile(agent, "/var/tmp/five ä", "r") as file:
        assert file.read(3_000_000) == content[:3_000_000]
        with pytest.raises(TransferError, match="at most"):
            file.read(3_000_001)
    assert answers(agent)


def test_connection_is_kept_and_opened_again(agent: Agent, daemon: Daemon) -> None:
    daemon.restart()
    until(lambda: answers(agent), 30, "an answer after the daemon's restart")
    other = agent.again()
    assert other.identity == agent.identity and other.identity.startswith("libvirt:")
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if answers(agent) and answers(other) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert answers(agent), "the child's end has not ended this one"


# What does not


def test_no_such_domain(make_guest: Any, domain: Domain) -> None:
    run = make_guest("libvirt:web").adhoc("ansible.builtin.ping", rc=4)
    assert f"{domain.daemon.uri} has no domain 'web'. Running there: {NAME}." in run.message


def test_domain_that_is_not_running(make_guest: Any, daemon: Daemon) -> None:
    run = make_guest("libvirt:shut off").adhoc("ansible.builtin.ping", rc=4)
    assert "domain is not running" in run.message and "list --all" in run.message


def test_domain_without_a_channel(daemon: Daemon) -> None:
    uuid = daemon.add("create", "bare", "<memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os>")
    try:
        agent = open_agent(f"libvirt:{uuid}", TIMEOUT, libvirt_uri=daemon.uri)
        with agent, pytest.raises(ConnectError, match=r"org\.qemu\.guest_agent\.0"):
            agent.execute("guest-ping")
    finally:
        daemon.virsh("destroy", uuid)


def test_no_libvirt(make_guest: Any, hypervisor: Ansible, tmp_path: Path) -> None:
    uri = f"qemu:///system?socket={tmp_path}/none"
    there = {"address": "libvirt:web", "libvirt_uri": uri}
    run = hypervisor.adhoc("qemu.guest.qga_ping", there, rc=2)
    assert "libvirtd or virtqemud" in run.message and '"executed": "no"' in run.output
    run = make_guest(ansible_qga_libvirt_uri=uri).adhoc("ansible.builtin.ping", rc=4)
    assert "cannot connect to libvirt at" in run.message


def test_libvirt_of_a_hypervisor(domain: Domain, agent: Agent, make_ansible: MakeAnsible) -> None:
    """Its socket comes through the one ssh that all guests of the hypervisor use."""
    with Sshd() as sshd:
        guest = {
            "ansible_connection": "qemu.guest.qga",
            "ansible_qga_address": f"libvirt:{NAME}",
            "ansible_qga_libvirt_uri": domain.daemon.uri,
            "ansible_qga_hypervisor": "hv",
            "ansible_qga_timeout": 30,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        ansible = make_ansible({"vm": guest, "hv": sshd.variables()})
        only = ("--limit", "vm")
        assert '"ping": "pong"' in ansible.adhoc("ansible.builtin.ping", "", *only).output
        assert '"ping": "pong"' in ansible.adhoc("qemu.guest.qga_ping", "", *only).output
        nowhere = {"ansible_qga_libvirt_uri": "qemu:///system?socket=/run/nowhere"}
        run = ansible.adhoc("ansible.builtin.ping", "", *only, rc=4, variables=nowhere)
        assert f"guest agent at libvirt:{NAME} on hv: nothing was sent: cannot connect to libvirt" in run.message
        run = ansible.adhoc(
            "ansible.builtin.ping", "", *only, rc=None, variables={"ansible_qga_libvirt_uri": "xen:///"}
        )
        assert run.rc and "the libvirt xen:/// is not one that a hypervisor has for itself" in run.message
        assert sshd.logins() == 1


def test_library_is_missing(make_ansible: MakeAnsible, tmp_path: Path, daemon: Daemon) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    ansible = make_ansible(
        {"hv": {"ansible_connection": "local", "ansible_python_interpreter": str(tmp_path / "bare/bin/python")}}
    )
    run = ansible.adhoc("qemu.guest.qga_ping", {"address": "libvirt:web", "libvirt_uri": daemon.uri}, rc=2)
    assert "Failed to import the required Python library (libvirt-python)" in run.message
    assert "No module named 'libvirt'" in run.message and "python3-libvirt" in run.message


def test_errors_of_the_agent(agent: Agent, make_guest: Any) -> None:
    with pytest.raises(GuestFileError) as caught:
        agent.execute("guest-file-open", {"path": "/nope"})
    assert caught.value.errno == 2
    run = make_guest().adhoc("qemu.guest.qga_command", {"command": "guest-exec", "arguments": {"path": "/nope"}}, rc=2)
    assert "Failed to execute child process" in run.message and '"type": "CommandError"' in run.output
    run = make_guest().adhoc("qemu.guest.qga_command", {"command": "guest-make-coffee"}, rc=2)
    assert "does not know the command" in run.message


def test_agent_away(make_guest: Any, domain: Domain, agent: Agent) -> None:
    look(domain, "systemctl stop qemu-guest-agent")
    try:
        until(lambda: not answers(agent), 10, "libvirt's knowing that the agent is away")
        run = make_guest().adhoc("ansible.builtin.raw", "true", rc=4)
        assert "does qemu-guest-agent run in it?" in run.message and "nothing was sent" in run.message
        assert run.seconds < TIMEOUT + 20
    finally:
        look(domain, "systemctl start qemu-guest-agent")
    make_guest().adhoc("qemu.guest.qga_ping", {"wait": 60})


@contextmanager
def stopped(domain: Domain) -> Iterator[None]:
    look(domain, "kill -STOP $(pidof qemu-ga)")
    try:
        yield
    finally:
        look(domain, "kill -CONT $(pidof qemu-ga)")


def test_agent_that_hangs(domain: Domain, agent: Agent) -> None:
    touch = {"path": "/usr/bin/touch", "arg": ["/srv/touched"]}
    with stopped(domain):
        time.sleep(0.6)  # after that, a ping goes ahead
        started = time.monotonic()
        with pytest.raises(AgentSilentError):
            agent.execute("guest-exec", touch, timeout=2)
        assert time.monotonic() - started < 5
    until(lambda: answers(agent), 30, "an answer from the agent")
    assert look(domain, "ls /srv/touched 2>/dev/null || echo none") == "none\n", "nothing but a ping was sent"
    assert answers(agent)
    # Where it stopped within that time, the command was given to libvirt, and its fate is unknown.
    with LibvirtAgent(parse_address(f"libvirt:{NAME}"), domain.daemon.uri, TIMEOUT, idle_seconds=3600) as never_idle:
        assert answers(never_idle)
        with stopped(domain):
            started = time.monotonic()
            with pytest.raises(OutcomeUnknownError):
                never_idle.execute("guest-exec", touch, timeout=2)
            assert time.monotonic() - started < 5
    until(lambda: answers(agent), 30, "an answer from the agent")


def test_another_client_waits_for_the_agent(domain: Domain, agent: Agent) -> None:
    with stopped(domain):
        request = '{"execute": "guest-ping"}'
        argv = ["virsh", "-c", domain.daemon.uri, "qemu-agent-command", NAME, "--timeout", "20", request]
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as other:
            time.sleep(1)
            started = time.monotonic()
            with pytest.raises(ConnectError) as caught:
                agent.execute("guest-exec", {"path": "/usr/bin/true"}, timeout=3)
            assert time.monotonic() - started < 6 and caught.value.executed == "no"
            other.send_signal(signal.SIGKILL)
    until(lambda: answers(agent), 60, "an answer from the agent")


def test_daemon_that_hangs(daemon: Daemon, agent: Agent) -> None:
    with daemon.stopped():
        started = time.monotonic()
        with pytest.raises(AgentSilentError, match="did not answer within 2 s"):
            time.sleep(0.6)
            agent.execute("guest-exec", {"path": "/usr/bin/true"}, timeout=2)
        assert time.monotonic() - started < 6
    until(lambda: answers(agent), 30, "an answer from the agent")


def test_reply_that_libvirt_does_not_carry(domain: Domain, agent: Agent) -> None:
    pid = agent.execute(
        "guest-exec", {"path": "/usr/bin/head", "arg": ["-c", "4000000", "/dev/zero"], "capture-output": True}
    )["pid"]
    time.sleep(2)
    with pytest.raises(ProtocolError, match="longer than libvirt carries"):
        agent.execute("guest-exec-status", {"pid": pid}, timeout=30)
    assert answers(agent), "up to 10 MiB, that is all there is to it"


# What passes


@pytest.fixture
def suspended(daemon: Daemon) -> Any:
    """Return a function that suspends the domain for a time."""

    def suspend() -> None:
        daemon.virsh("suspend", NAME)
        time.sleep(4 * TIMEOUT)
        daemon.virsh("resume", NAME)

    return suspend


@pytest.fixture
def saved(daemon: Daemon, domain: Domain) -> Any:
    """Return a function that saves the domain, and has it go on after a time."""
    path = domain.directory / "domain.xml"
    path.write_text(daemon.virsh("dumpxml", NAME), encoding="utf-8")
    daemon.virsh("define", str(path))  # what is saved is to be known when it does not run

    def save() -> None:
        daemon.virsh("managedsave", NAME)
        time.sleep(2 * TIMEOUT)
        daemon.virsh("start", NAME)

    return save


@pytest.fixture
def restarted(daemon: Daemon) -> Any:
    return daemon.restart


@pytest.fixture
def frozen(daemon: Daemon) -> Any:
    """Return a function that freezes the domain for a time, as a backup does."""

    def freeze() -> None:
        daemon.virsh("domfsfreeze", NAME)
        time.sleep(4 * TIMEOUT)
        daemon.virsh("domfsthaw", NAME)

    return freeze


OUTAGES = ("suspended", "saved", "restarted", "frozen")
each_outage = pytest.mark.parametrize("outage", OUTAGES)


@each_outage
def test_domain_or_daemon_is_away_while_a_program_runs(
    agent: Agent, domain: Domain, outage: str, request: pytest.FixtureRequest
) -> None:
    away = request.getfixturevalue(outage)
    pid = start_shell(GuestExec(agent), b"sleep 3; echo end")
    ended = in_background(lambda: GuestExec(agent).finish(pid))
    time.sleep(1)
    away()
    result = ended()
    assert (result.rc, result.stdout) == (0, b"end\n")


@each_outage
def test_domain_or_daemon_is_away_while_a_file_is_written(
    agent: Agent, domain: Domain, outage: str, request: pytest.FixtureRequest
) -> None:
    away = request.getfixturevalue(outage)
    content = os.urandom(3_000_000)
    copied: list[int] = []
    done = in_background(lambda: copy_in(agent, io.BytesIO(content), "/srv/away", progress=copied.append))
    until(lambda: copied and copied[-1] > 300_000, 60, "the copy has begun")
    away()
    assert done().size == len(content)
    assert look(domain, "sha256sum </srv/away") == f"{hashlib.sha256(content).hexdigest()}  -\n"


@pytest.mark.whole
@each_outage
@pytest.mark.parametrize("way", WAYS)
def test_domain_or_daemon_is_away_while_a_task_runs(
    make_guest: Any, domain: Domain, agent: Agent, way: str, outage: str, request: pytest.FixtureRequest
) -> None:
    away = request.getfixturevalue(outage)
    ansible = make_guest(ansible_qga_timeout=30, **WAYS[way])
    ansible.adhoc("ansible.builtin.command", "true")  # what is to stay in the guest is there now
    look(domain, "rm -f /run/on /run/off")
    program = "touch /run/on; until [ -e /run/off ]; do sleep 1; done; echo end of the task"
    with ansible.start("ansible", "all", "-m", "ansible.builtin.shell", "-a", program) as process:
        until(lambda: look(domain, "ls /run/on 2>/dev/null || :"), 240, "the task runs")
        away()
        look(domain, "touch /run/off")
        output = process.communicate(timeout=240)[0]
    assert process.returncode == 0 and "\nend of the task\n" in output, output


def test_commands_that_do_not_answer(domain: Domain, agent: Agent) -> None:
    with pytest.raises(CommandError, match="mode is invalid"):
        agent.execute("guest-shutdown", {"mode": "away"})
    started = time.monotonic()
    assert agent.execute("guest-shutdown") is None
    assert time.monotonic() - started < 10
    until(lambda: not domain.alive(), 120, "the domain's end")
    with pytest.raises(ConnectError):
        agent.execute("guest-ping")
