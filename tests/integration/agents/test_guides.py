# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guides of the docs site, typed in from the beginning to the end.

Each has a machine of its own, on which the sockets of real agents, or the ssh server, are where the guide says. Those
that need a booted guest are in guests/test_guides.py.
"""

from __future__ import annotations

import re
import socketserver
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration import guides
from ansible_collections.qemu.guest.tests.integration.guides import GUIDES, blocks, commands
from ansible_collections.qemu.guest.tests.integration.harness import ROOT, run_guide
from lab import host, image
from lab.agent import LooseAgent
from lab.machine import Machine
from lab.sshd import Sshd

BOOTED = {"libvirt", "moving_from_libvirt_qemu", "snapshots"}
"""The guides that need a booted guest."""
FILE_COMMANDS = [f"guest-file-{name}" for name in ("open", "close", "read", "write", "seek", "flush")]


def know(machine: Machine, names: str, port: int) -> None:
    """Have the ssh of the machine know others by these names, without asking."""
    machine.run(
        f"cat >>/etc/ssh/ssh_config <<'END'\nHost {names}\nHostName 127.0.0.1\nPort {port}\n"
        f"IdentityFile {image.ssh_key()}\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\nEND"
    )


def link_there(machine: Machine, hypervisor: str, path: str, agent: LooseAgent) -> None:
    """Have a path on a hypervisor lead to an agent."""
    machine.run(f"ssh root@{hypervisor} ln -s {agent.agent_socket} {path}")


def plain_qemu(machine: Machine, stack: ExitStack) -> None:
    """A QEMU with the options of the guide. The agent is not in its guest, which never begins."""
    host.need("qemu-system-x86_64")
    (block,) = (block for block in blocks("plain_qemu") if block.caption == "options of QEMU")
    machine.run(
        f"qemu-system-x86_64 -S -daemonize -display none -m 16 -accel tcg -nodefaults {' '.join(block.body.split())}"
    )
    one_guest(machine, stack)


def one_guest(machine: Machine, stack: ExitStack, **options: Any) -> LooseAgent:
    agent = stack.enter_context(LooseAgent(**options))
    machine.link("/run/vm1.qga", agent.agent_socket)
    return agent


def proxmox(machine: Machine, stack: ExitStack) -> None:
    """A node with a guest, and one that is off."""
    machine.link("/var/run/qemu-server/100.qga", stack.enter_context(LooseAgent()).agent_socket)
    machine.write("/etc/pve/qemu-server/100.conf", "agent: 1\nname: shop\ntags: web\n")
    machine.write("/etc/pve/qemu-server/101.conf", "agent: 1\nname: archive\n")


def report(machine: Machine, stack: ExitStack) -> None:
    for number in range(1, 31):
        machine.link(f"/run/vm{number}.qga", stack.enter_context(LooseAgent()).agent_socket)


def over_ssh(machine: Machine, stack: ExitStack) -> None:
    """Two hypervisors; root may log in on the first, and `ops` on the second."""
    know(machine, "hv1.example.com hv2.example.com", stack.enter_context(Sshd(sudo="NOPASSWD: ALL")).port)
    for name in ("vm1", "vm2"):
        link_there(machine, "hv1.example.com", f"/run/{name}.qga", stack.enter_context(LooseAgent()))


def awx(machine: Machine, stack: ExitStack) -> None:
    know(machine, "hv1.example.com", stack.enter_context(Sshd()).port)
    link_there(machine, "hv1.example.com", "/run/vm1.qga", stack.enter_context(LooseAgent()))


def moving_from_ssh(machine: Machine, stack: ExitStack) -> None:
    """A guest with an agent, and an ssh server beside that."""
    agent = one_guest(machine, stack)
    agent.run("useradd -m -s /bin/sh -p '*' admin && cp -R /root/.ssh /home/admin && chown -R admin: /home/admin")
    agent.run("echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin")
    know(machine, "vm1.example.com", stack.enter_context(listening(agent.sshd)))


@contextmanager
def listening(argv: Sequence[str]) -> Iterator[int]:
    """Run a server that speaks on its standard input and output, for each who connects to the port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            subprocess.run(host.as_root(argv), stdin=self.request, stdout=self.request, check=False)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def without_guest_exec(machine: Machine, stack: ExitStack) -> None:
    """What RHEL allows, as far as a loose agent is allowed it."""
    one_guest(machine, stack, block=["guest-exec", "guest-exec-status", *FILE_COMMANDS])


def other_inventories(machine: Machine, stack: ExitStack) -> None:
    """A node behind ssh. The inventory plugins are stand-ins, see STAND_INS."""
    know(machine, "pve1.example.com", stack.enter_context(Sshd()).port)
    machine.run("ssh root@pve1.example.com mkdir -p /var/run/qemu-server")
    link_there(machine, "pve1.example.com", "/var/run/qemu-server/100.qga", stack.enter_context(LooseAgent()))


STAND_INS = {
    "community.libvirt.libvirt": {
        "ungrouped": {
            "web": {"ansible_connection": "community.libvirt.libvirt_qemu", "ansible_libvirt_uri": "qemu:///system"}
        }
    },
    "community.proxmox.proxmox": {
        "proxmox_nodes": {"pve1": {"ansible_host": "pve1.example.com"}},
        "proxmox_all_qemu": {"shop": {"proxmox_vmid": 100, "proxmox_vmtype": "qemu", "proxmox_node": "pve1"}},
        "proxmox_all_lxc": {"ct": {"proxmox_vmid": 101, "proxmox_vmtype": "lxc", "proxmox_node": "pve1"}},
    },
}
"""The hosts and variables by which inventory plugins of other collections are replaced: one needs an API, and no test
fetches a collection. They are those that the plugins set, as far as a guide uses them."""

STAND_IN = '''
DOCUMENTATION = """
name: {name}
short_description: stands for another plugin
extends_documentation_fragment: [constructed]
options: {{plugin: {{description: The plugin., type: str}}}}
"""
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable


class InventoryModule(BaseInventoryPlugin, Constructable):
    NAME = "{fqcn}"

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path)
        self._consume_options(self._read_config_data(path))
        for group, hosts in {hosts}.items():
            self.inventory.add_group(group)
            for host, variables in hosts.items():
                self.inventory.add_host(host, group)
                for name, value in variables.items():
                    self.inventory.set_variable(host, name, value)
                variables = self.inventory.get_host(host).get_vars()
                self._set_composite_vars(self.get_option("compose"), variables, host, self.get_option("strict"))
'''


def stand_ins(directory: Path) -> Path:
    """Write collections with the plugins that stand in; return where they are."""
    for fqcn, hosts in STAND_INS.items():
        namespace, collection, name = fqcn.split(".")
        path = directory / "ansible_collections" / namespace / collection / "plugins" / "inventory" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(STAND_IN.format(name=name, fqcn=fqcn, hosts=hosts), encoding="utf-8")
    return directory


def selinux(machine: Machine, stack: ExitStack) -> None:
    one_guest(machine, stack)


MACHINES: dict[str, Callable[[Machine, ExitStack], Any]] = {
    maker.__name__: maker
    for maker in (
        plain_qemu,
        proxmox,
        report,
        over_ssh,
        awx,
        other_inventories,
        moving_from_ssh,
        without_guest_exec,
        selinux,
    )
}


@pytest.mark.parametrize("guide", sorted(MACHINES))
def test_guide(guide: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        machine = stack.enter_context(Machine())
        MACHINES[guide](machine, stack)
        run_guide(guide, machine, tmp_path, stand_ins(tmp_path / "collections"))
        for page in tmp_path.rglob("*.html"):
            assert "{" not in page.read_text(encoding="utf-8"), "what a reader is to see is text, no dictionary"


def test_every_guide_is_run() -> None:
    assert {*MACHINES, *BOOTED} == set(GUIDES)


@pytest.mark.parametrize("guide", GUIDES)
def test_every_block_is_run_or_says_why_not(guide: str) -> None:
    found = list(blocks(guide))
    assert len(found) == len(re.findall(r"\.\. (?:code|code-block|sourcecode|literalinclude)::", guides.text(guide)))
    assert not re.search(r"^(?! *\.\. ).*::$", guides.text(guide), re.MULTILINE), "a literal block would not be run"
    run = [block for block in found if not block.reason]
    typed = [command for block in run if not block.caption for command, _output in commands(block)]
    assert typed, "nothing of it is run"
    for block in run:
        if block.caption and not block.caption.startswith(("ansible.cfg", "group_vars/", "options of QEMU")):
            elsewhere = " ".join([*typed, *(other.body for other in run if other is not block)])
            assert Path(block.caption).name in elsewhere, f"{block}: nothing uses {block.caption}"


@pytest.mark.parametrize("guide", GUIDES)
def test_files_that_a_guide_names_exist(guide: str) -> None:
    for path in re.findall(r"\b(?:docs|meta|playbooks|tests)/[\w./-]*\w", guides.text(guide)):
        assert (ROOT / path).exists(), path
