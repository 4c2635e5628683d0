# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt daemon of one's own, and guests that it runs.

    with Daemon() as daemon, Domain(daemon, "bookworm", "web") as domain:
        domain.wait_agent()
        ...                       # libvirt.open(daemon.uri), or virsh -c
        domain.run("cat /etc/x")  # the serial console, as of any guest

The daemon runs in namespaces of its own (see libvirt.sh): the machine's libvirt, if there is one, neither sees it nor
is seen by it, and all that it started ends with it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from lab import accel, host, image
from lab.host import LabError
from lab.leash import Leashed
from lab.vm import KERNEL_LINE, Guest

AGENT, SECOND_AGENT = "org.qemu.guest_agent.0", "org.qemu.guest_agent.1"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
# An agent beside the one that the daemon has.
START_SECOND_AGENT = f"systemd-run -q --unit second-agent qemu-ga -m virtio-serial -p /dev/virtio-ports/{SECOND_AGENT}"


class Daemon(Leashed):
    """A libvirt daemon; `uri` leads to it. It and its domains end with the process that started it."""

    WHAT = "libvirt's daemon"
    SCRIPT = Path(__file__).with_name("libvirt.sh")
    NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    START_SECONDS = 60.0  # it asks QEMU what that can do first

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.directory / "libvirt-sock"

    @property
    def uri(self) -> str:
        """The name that libvirt's clients have for it."""
        return f"qemu:///system?socket={self.socket}"

    def start(self) -> Daemon:
        """Start the daemon; return when it listens."""
        host.need("libvirtd", "virsh", "unshare", "qemu-system-x86_64", "qemu-img")
        self.directory = host.private_directory()
        self._launch(str(self.directory))
        return self

    def restart(self) -> None:
        """Kill the daemon and start it again, as systemd does with one that crashed. Domains go on."""
        self._tell("restart")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Have the daemon hang meanwhile."""
        self._tell("stop")
        try:
            yield
        finally:
            self._tell("continue")

    def virsh(self, *arguments: str, check: bool = True) -> str:
        """Run virsh and return its output."""
        self._running()
        argv = [host.find("virsh") or "virsh", "--quiet", "--connect", self.uri, *arguments]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode != 0:
            raise LabError(f"virsh {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def define(self, name: str) -> str:
        """Define a domain that is never started, and has no disk to start from; return its UUID."""
        return self.add("define", name, "<memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os>")

    def add(self, how: str, name: str, rest: str, *options: str) -> str:
        """Add a domain by virsh's command `how`, define or create; return its UUID."""
        kind = "kvm" if accel.accelerator() == "kvm" else "qemu"
        number = str(uuid.uuid4())
        path = self.directory / f"{number}.xml"
        text = (
            f"<domain type='{kind}' xmlns:qemu='{QEMU}'><name>{escape(name)}</name><uuid>{number}</uuid>{rest}</domain>"
        )
        path.write_text(text, encoding="utf-8")
        self.virsh(how, str(path), *options)
        return number


class Domain(Guest):
    """A guest that a libvirt daemon runs. The daemon, and nobody else, has the agent's socket.

    `agent_socket` is that of a second agent, which start_second_agent() starts in the guest.
    """

    def __init__(self, daemon: Daemon, release: str, name: str, nic: str = "none") -> None:
        super().__init__(release, nic)
        self.daemon = daemon
        self.name = name
        self.uuid = ""

    def __enter__(self) -> Domain:
        self.start()
        return self

    def alive(self) -> bool:
        return bool(self.uuid) and self.daemon.virsh("domstate", self.uuid, check=False).strip() == "running"

    def stop(self) -> None:
        if self.uuid:
            self.daemon.virsh("destroy", self.uuid, check=False)
            self.uuid = ""
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = Path()

    def start_second_agent(self) -> None:
        """Start another agent in the guest, and return when it has opened its port."""
        self.run(START_SECOND_AGENT)
        self._until(lambda: self._opened("charchannel1"), 60, "the second agent has not opened its port")

    def qmp(self, command: str, **arguments: Any) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        reply = json.loads(self.daemon.virsh("qemu-monitor-command", self.uuid, request))
        if "error" in reply:
            raise LabError(f"{command}: {reply['error']}")
        return reply["return"]

    def _start_qemu(self, source: image.Image, outlive: bool) -> None:
        del outlive  # it never does
        self.uuid = self.daemon.add("create", self.name, self._xml(source))
        # QEMU is root's here, whoever runs this.
        sockets = [str(path) for path in (self.console, self.boot_log, self.agent_socket)]
        subprocess.run(host.as_root(["chmod", "0666", *sockets]), check=True)

    def _agent_listens(self) -> bool:
        return self._opened("charchannel0")  # the daemon numbers them

    def _opened(self, port: str) -> bool:
        return any(c["frontend-open"] for c in self.qmp("query-chardev") if c["label"] == port)

    def _xml(self, source: image.Image) -> str:
        if accel.accelerator() == "kvm":
            cpu = "<cpu mode='host-passthrough' check='none'/>"
        else:  # as in accel.py
            cpu = "<cpu mode='maximum' check='none'><feature policy='disable' name='cx16'/></cpu>"
        disks = "".join(
            f"<disk type='file' device='disk'><driver name='qemu' type='{kind}' cache='unsafe' discard='unmap'/>"
            f"<source file={quoteattr(str(path))}/><target dev='{target}' bus='virtio'/></disk>"
            for path, kind, target in ((self._disk, "qcow2", "vda"), (self._small, "raw", "vdb"))
        )
        arguments = "".join(f"<qemu:arg value={quoteattr(argument)}/>" for argument in self._nic_arguments())
        return (
            f"<memory unit='MiB'>{self.memory_mib}</memory><vcpu>{self.cpus}</vcpu>"
            "<os><type arch='x86_64' machine='pc'>hvm</type>"
            f"<kernel>{escape(str(source.kernel))}</kernel><initrd>{escape(str(source.initrd))}</initrd>"
            f"<cmdline>{escape(KERNEL_LINE)}</cmdline></os><features><acpi/></features>{cpu}"
            f"<on_reboot>restart</on_reboot><on_poweroff>destroy</on_poweroff><devices>{disks}"
            f"<serial type='unix'><source mode='bind' path={quoteattr(str(self.console))}/><target port='0'/></serial>"
            f"<serial type='file'><source path={quoteattr(str(self.boot_log))}/><target port='1'/></serial>"
            f"<channel type='unix'><target type='virtio' name='{AGENT}'/></channel>"
            f"<channel type='unix'><source mode='bind' path={quoteattr(str(self.agent_socket))}/>"
            f"<target type='virtio' name='{SECOND_AGENT}'/></channel>"
            "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
            f"<memballoon model='none'/></devices><qemu:commandline>{arguments}</qemu:commandline>"
        )
