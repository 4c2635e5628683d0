# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of machines with all kinds of guests: real QEMUs, real agents, a real sshd, a real libvirt."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, until
from lab import host, image
from lab.agent import LooseAgent
from lab.libvirt import AGENT, Daemon

MINE = f"inv{os.getpid()}"
"""Begins the names of this test's QEMUs, and of its hypervisors: others have guests on this machine, too."""
UUID = "6f1c4f3e-9d1b-4d54-9a57-0d8a3a1f2b3c"
PORT = ["-device", "virtio-serial", "-device", "virtserialport,chardev=c,name=org.qemu.guest_agent.0"]
JSON_PORT = [
    "-device",
    "virtio-serial",
    "-device",
    json.dumps({"driver": "virtserialport", "chardev": "c", "name": AGENT}),
]
CHANNEL = f"<channel type='unix'><target type='virtio' name='{AGENT}'/></channel>"
TIMEOUT = 2


@contextmanager
def qemu(directory: Path, *arguments: str) -> Iterator[None]:
    """Run a QEMU whose guest never begins, with these arguments."""
    host.need("qemu-system-x86_64")
    argv = [host.find("qemu-system-x86_64") or "", "-S", "-display", "none", "-m", "16", "-accel", "tcg", "-nodefaults"]
    with open(directory / "qemu.log", "ab") as log:
        process = subprocess.Popen([*argv, *arguments], cwd=directory, stdin=subprocess.DEVNULL, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Machines:
    """This machine and others, and the inventory of them."""

    def __init__(self, directory: Path, ansible: Ansible) -> None:
        self.directory = directory
        self.ansible = ansible
        self.file = directory / "guests.qga.yml"
        self.ssh_config = directory / "ssh_config"
        self.ssh_config.write_text("")
        wrapper = directory / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {host.find("ssh")} -F {self.ssh_config} "$@"\n', encoding="utf-8")
        wrapper.chmod(0o755)
        self.environment = {"PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"}

    def add_hypervisor(self, name: str, proxy: list[str] | None = None) -> None:
        """Have ssh know a machine by this name. It is behind ``proxy``; without that, nobody listens there."""
        way = f"ProxyCommand {shlex.join(proxy)}" if proxy else "HostName 127.0.0.1\nPort 1"
        with open(self.ssh_config, "a", encoding="utf-8") as file:
            file.write(
                f"Host {name}\nUser root\nIdentityFile {image.ssh_key()}\n{way}\n"
                "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
            )

    def write(self, **options: Any) -> None:
        config = {"plugin": "qemu.guest.qga", "timeout": TIMEOUT, "libvirt_uris": [], **options}
        self.file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.ansible.inventory = self.file

    def hosts(self) -> tuple[dict[str, dict[str, Any]], str, float]:
        """Return the variables of all hosts, all that was said beside, and the seconds."""
        run = self.ansible.run("ansible-inventory", "--list", environment=self.environment, timeout=120)
        said, brace, listed = run.output.partition("{\n")
        hosts, end = json.JSONDecoder().raw_decode(brace + listed)
        plain = {
            name: {key: _plain(each) for key, each in one.items()} for name, one in hosts["_meta"]["hostvars"].items()
        }
        return plain, " ".join(f"{said} {(brace + listed)[end:]}".split()), run.seconds


def _plain(value: Any) -> Any:
    """Return a value as it was before ansible-inventory said that it is unsafe."""
    if isinstance(value, dict):
        return (
            value["__ansible_unsafe"]
            if set(value) == {"__ansible_unsafe"}
            else {k: _plain(v) for k, v in value.items()}
        )
    return [_plain(each) for each in value] if isinstance(value, list) else value


@pytest.fixture
def machines(tmp_path: Path, make_ansible: MakeAnsible) -> Machines:
    return Machines(tmp_path, make_ansible({}))


def listens(path: Path) -> None:
    def connected() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(path)) == 0

    until(connected, 30, f"QEMU listens at {path}")


def add_proxmox(there: Path, agent: Path) -> None:
    """Make what a node of Proxmox VE has: a guest with this agent, and one that is off."""
    (there / "run").mkdir()
    (there / "run" / "100.qga").symlink_to(agent)
    (there / "pve" / "qemu-server").mkdir(parents=True)
    for vmid, text in (
        ("100", f"agent: 1\nname: shop\ntags: web;prod\nsmbios1: uuid={UUID}\n\n[old]\nname: not-this\n"),
        ("101", "agent: 1\nname: archive\n"),
    ):
        (there / "pve" / "qemu-server" / f"{vmid}.conf").write_text(text)


def mixed(machines: Machines, agents: dict[str, LooseAgent], stack: ExitStack) -> dict[str, Any]:
    """Start what there is on a mixed machine, and return the options that find it."""
    there = machines.directory
    sock = "server=on,wait=off"
    stack.enter_context(
        qemu(
            there,
            *("-name", f"guest={MINE} one,debug-threads=on", "-uuid", UUID, *PORT),
            *("-chardev", f"socket,id=c,path={there}/one,,1.qga,{sock}", "-qmp", f"unix:{there}/one.qmp,server,nowait"),
        )
    )
    stack.enter_context(
        qemu(there, *("-name", f"{MINE}-two", "-chardev", "socket,path=two.qga,server,nowait,id=c", *JSON_PORT))
    )
    stack.enter_context(qemu(there, *("-name", f"guest={MINE}-three", "-qmp", f"unix:three.qmp,{sock}")))
    add_proxmox(there, agents["sid"].agent_socket)
    (there / "more").mkdir()
    (there / "more" / "loose.sock").symlink_to(agents["bookworm"].agent_socket)
    for name, stays in (("dead", False), ("mute", True)):
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(there / "more" / f"{name}.sock"))
        if stays:
            listener.listen(8)
        else:
            listener.close()
    for name in ("one,1.qga", "two.qga", "three.qmp"):
        listens(there / name)
    return {
        "sockets": [f"{there}/more/*.sock", "/lab/agent.sock"],
        "proxmox_run_dir": f"{there}/run",
        "proxmox_config_dir": f"{there}/pve",
        "filters": [f"qga_name.startswith('{MINE}') or qga_source != 'process'"],
    }


MIXED_STATES = {
    f"{MINE}_one": "silent",
    f"{MINE}-two": "silent",
    f"{MINE}-three": "no_agent",
    f"{MINE}-idle": "no_agent",
    f"{MINE}-bare": "no_agent",
    f"{MINE}-asleep": "off",
    "shop": "answers",
    "archive": "off",
    "loose": "answers",
    "dead": "off",
    "mute": "silent",
    "lab": "answers",
}


def test_mixed_machine(machines: Machines, agents: dict[str, LooseAgent]) -> None:
    libvirt = pytest.importorskip("libvirt", reason="this core's environment has no libvirt")
    del libvirt
    up, down = f"{MINE}-up", f"{MINE}-down"
    machines.add_hypervisor(up, host.as_root(agents["trixie"].sshd))
    machines.add_hypervisor(down)
    with ExitStack() as stack:
        options = mixed(machines, agents, stack)
        daemon = stack.enter_context(Daemon())
        rest = "<memory unit='MiB'>16</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>"
        uuids = {
            "idle": daemon.add("create", f"{MINE}-idle", f"{rest}<devices>{CHANNEL}</devices>", "--paused"),
            "asleep": daemon.add("define", f"{MINE}-asleep", f"{rest}<devices>{CHANNEL}</devices>"),
            "bare": daemon.add("create", f"{MINE}-bare", rest, "--paused"),
        }
        machines.write(
            **options,
            hypervisors=["localhost", up, down],
            libvirt_uris=[daemon.uri],
            gather=["osinfo", "hostname", "addresses"],
            groups={"answering": "qga_state == 'answers'"},
        )
        hosts, said, seconds = machines.hosts()
        states = {name: one["qga_state"] for name, one in hosts.items()}
        assert states == MIXED_STATES
        assert seconds < 40
        check_mixed(hosts, uuids, machines.directory, daemon.uri, up)
        assert f"the guests of {down} are missing: " in said and "Connection refused" in said
        assert "no answer from 3 guests: " in said and "mute on localhost: no answer to a sync within 2 s" in said
        ping = machines.ansible.adhoc(
            "ansible.builtin.ping",
            environment=machines.environment,
            variables={"ansible_python_interpreter": "/usr/bin/python3"},
            rc=None,
        )
        for name, state in states.items():
            assert (f"{name} | SUCCESS" in ping.output) is (state == "answers"), ping.output


def check_mixed(hosts: dict[str, Any], uuids: dict[str, str], there: Path, uri: str, up: str) -> None:
    """See what is known of the guests of the mixed machine."""
    one = hosts[f"{MINE}_one"]
    assert (one["qga_name"], one["qga_uuid"], one["qga_user"]) == (f"{MINE} one", UUID, "root")
    assert (one["ansible_qga_address"], one["qga_qmp_address"]) == (f"{there}/one,1.qga", f"unix:{there}/one.qmp")
    assert hosts[f"{MINE}-two"]["ansible_qga_address"] == f"{there}/two.qga"
    assert hosts[f"{MINE}-three"]["qga_qmp_address"] == f"unix:{there}/three.qmp"
    for name, uuid in uuids.items():
        domain = hosts[f"{MINE}-{name}"]
        assert (domain["ansible_qga_address"], domain["ansible_qga_libvirt_uri"]) == (f"libvirt:{uuid}", uri)
        assert domain["qga_source"] == "libvirt" and bool(domain["qga_user"]) is (name != "asleep")
    shop = hosts["shop"]
    assert (shop["qga_vmid"], shop["qga_uuid"], shop["qga_tags"]) == ("100", UUID, ["web", "prod"])
    assert (shop["qga_osinfo"]["id"], shop["qga_hostname"]) == ("debian", "sid")
    assert "ansible_qga_hypervisor" not in shop and shop["qga_hypervisor"] == "localhost"
    lab = hosts["lab"]
    assert (lab["ansible_qga_address"], lab["qga_hostname"]) == ("/lab/agent.sock", "trixie")
    assert lab["qga_hypervisor"] == lab["ansible_qga_hypervisor"] == up


def test_hypervisor_that_hangs_is_left(machines: Machines, agents: dict[str, LooseAgent]) -> None:
    hung = f"{MINE}-hung"
    machines.add_hypervisor(hung, ["sleep", "300"])
    (machines.directory / "loose.sock").symlink_to(agents["bookworm"].agent_socket)
    machines.write(
        hypervisors=[hung, "localhost"],
        hypervisor_timeout=3,
        sources=["sockets"],
        sockets=[f"{machines.directory}/*.sock"],
    )
    hosts, said, seconds = machines.hosts()
    assert hosts["loose"]["qga_state"] == "answers"
    assert 3 < seconds < 30
    assert f"the guests of {hung} are missing: " in said and "within 3 s" in said


def test_libvirt_that_hangs_is_left(machines: Machines) -> None:
    pytest.importorskip("libvirt", reason="this core's environment has no libvirt")
    with Daemon() as daemon:
        daemon.define(f"{MINE}-any")
        machines.write(sources=["libvirt"], libvirt_uris=[daemon.uri], hypervisor_timeout=2)
        assert list(machines.hosts()[0]) == [f"{MINE}-any"]
        with daemon.stopped():
            started = time.monotonic()
            hosts, said, _seconds = machines.hosts()
            assert not hosts and "libvirt did not answer within 2 s" in said
            assert time.monotonic() - started < 30


def test_variables_of_the_hypervisors_host(machines: Machines, agents: dict[str, LooseAgent]) -> None:
    """A hypervisor is a host of another source; a group's variable says by which name ssh knows it."""
    known = f"{MINE}-known"
    machines.add_hypervisor(known, host.as_root(agents["trixie"].sshd))
    hosts = machines.directory / "hosts.yml"
    group = {"hosts": {"hv1": {}}, "vars": {"ansible_host": "{{ where }}", "where": known}}
    hosts.write_text(yaml.safe_dump({"all": {"children": {"hypervisors": group}}}))
    machines.write(hypervisors=["hypervisors"], sources=["sockets"], sockets=["/lab/agent.sock"])
    machines.ansible.inventory = hosts
    run = machines.ansible.run(
        "ansible-inventory", "-i", str(machines.file), "--list", environment=machines.environment
    )
    lab = {key: _plain(value) for key, value in json.loads(run.output)["_meta"]["hostvars"]["lab"].items()}
    assert (lab["qga_hypervisor"], lab["ansible_qga_hypervisor"], lab["qga_state"]) == ("hv1", "hv1", "answers")


@pytest.mark.whole
def test_two_hundred_agents(machines: Machines) -> None:
    """About 2 seconds, where nothing else runs."""
    agents = [LooseAgent("bookworm") for _n in range(200)]
    with ExitStack() as stack:
        for number, agent in enumerate(agents):
            stack.enter_context(agent)
            (machines.directory / f"vm{number}.qga").symlink_to(agent.agent_socket)
        machines.write(
            sources=["sockets"],
            sockets=[f"{machines.directory}/*.qga"],
            gather=["agent", "osinfo", "hostname", "addresses"],
            timeout=5,
        )
        machines.hosts()  # what is compiled once is compiled now
        hosts, _said, seconds = machines.hosts()
        assert {one["qga_state"] for one in hosts.values()} == {"answers"} and len(hosts) == 200
        assert all(one["qga_osinfo"]["id"] == "debian" for one in hosts.values())
        print(f"{seconds:.1f} s")
        assert seconds < 10


PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "<{{ qga_osinfo.name }}> <{{ qga_hostname }}> <{{ hostvars[inventory_hostname].composed }}>"
    - ansible.builtin.command: echo {{ qga_hostname | quote }} {{ composed | quote }}
    - ansible.builtin.raw: echo {{ qga_osinfo.name | quote }}
"""


def test_hostile_guest(machines: Machines) -> None:
    """Its name, its host name and its OS are Jinja, shell and YAML: they stay text, through plays too."""
    proof = machines.directory / "proof"
    name = f"{{{{ lookup('pipe', 'touch {proof}') }}}}$(touch {proof})"
    hostname = "{{ 7*7 }};`id`: &a !x"
    with LooseAgent("bookworm") as agent:
        agent.run(
            f"printf 'ID=!!binary\\nNAME=\"%s\"\\n' {shlex.quote(name.replace('$', chr(92) + '$'))} >/etc/os-release"
        )
        enter = ["nsenter", f"--target={agent.pid}", "--uts", sys.executable, "-c"]
        set_name = "import socket, sys; socket.sethostname(sys.argv[1])"
        subprocess.run(host.as_root([*enter, set_name, hostname]), check=True)
        directory = machines.directory / "{{ 7*7 }}"
        directory.mkdir()
        (directory / "agent.sock").symlink_to(agent.agent_socket)
        machines.write(
            sources=["sockets"],
            sockets=[f"{machines.directory}/*/agent.sock"],
            gather=["osinfo", "hostname"],
            hostnames=["hostname", "qga_osinfo.name"],
            compose={"composed": "qga_osinfo.name", "ansible_python_interpreter": "'/usr/bin/python3'"},
            keyed_groups=[{"key": "qga_osinfo", "prefix": "os"}, {"key": "qga_hostname", "prefix": "named"}],
        )
        ((host_name, variables),) = machines.hosts()[0].items()
        assert host_name.startswith("guest-") and variables["qga_name"] == "{{ 7*7 }}"
        assert (variables["qga_osinfo"]["name"], variables["qga_hostname"]) == (name, hostname)
        graph = machines.ansible.run("ansible-inventory", "--graph").output
        assert f"@named_{re.sub('[^a-z0-9]', '_', hostname)}:" in graph
        assert all(re.fullmatch(r"\w+", group) for group in re.findall(r"@(.*):", graph))
        playbook = machines.directory / "play.yml"
        playbook.write_text(PLAY)
        output = machines.ansible.playbook(playbook, "-v").output
        assert f"<{name}> <{hostname}> <{name}>" in output and f"{hostname} {name}" in output
        assert not proof.exists() and not agent.run(f"ls {proof}", check=False)[1].startswith(str(proof))
