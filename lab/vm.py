# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest: a virtual machine that boots an image and forgets everything when it ends.

    with Guest("bookworm") as guest:
        guest.wait_agent()
        ...                      # talk to the agent through guest.agent_socket
        guest.run("cat /etc/x")  # confirm what it did, through the serial console

Nothing here takes the agent's only seat: waiting looks at the console and at QEMU.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lab import accel, console, host, image, qmp
from lab.host import LabError

NICS = ("none", "user")
# The kernel's console is the second serial line; the first is the shell of console.py.
KERNEL_LINE = "root=/dev/vda rw console=ttyS1 quiet net.ifnames=0 apparmor=0 audit=0 systemd.show_status=0"
# A module of memory beside what the kernel starts with. It takes nothing that cannot be moved (by movable_node, neither
# when an agent brings it online), so it can go offline; of the rest, that depends on what the guest has done so far.
KERNEL_LINE += " movable_node memhp_default_state=online_movable"
# For a guest that goes back to snapshots. QEMU's emulated time stamp counter does not go back (7.2): by that, the clock
# would jump forwards by all that has passed since the snapshot. After three minutes, systemd kills its services for it,
# and the console was seen to fall silent.
GOES_BACK = " tsc=unstable"
SPARE_MIB = 128
SMALL_DISK = "64M"
SNAPSHOT_SECONDS = 120.0
STOP_SECONDS = 5.0
# A guest boots in 17 to 50 s, emulated.
STALLED_SECONDS = 120.0
# Ends a guest whose starter is gone, however that ended: it waits for the end of its standard input, a pipe that only
# the starter holds. PR_SET_PDEATHSIG would not do: it fires when the starting *thread* ends.
LEASH = 'read -r _; read -r pid <"$1/pid" && grep -qs "$1" "/proc/$pid/cmdline" && kill -KILL "$pid"; rm -rf "$1"'


class Guest:
    """A virtual machine with a guest agent, a serial console and a second, small filesystem on /small.

    With `snapshots`, it can be saved and taken back to that.
    """

    def __init__(
        self,
        release: str,
        nic: str = "none",
        memory_mib: int = 512,
        cpus: int = 2,
        extra_args: Sequence[str] = (),
        snapshots: bool = False,
    ) -> None:
        if nic not in NICS:
            raise LabError(f"no such NIC: {nic}; there are {', '.join(NICS)}")
        self.release = release
        self.nic = nic
        self.memory_mib = memory_mib
        self.cpus = cpus
        self.extra_args = list(extra_args)
        self.snapshots = snapshots
        self.pid = 0
        self.ssh_port: int | None = None
        self.ssh_key = image.ssh_key()
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: subprocess.Popen[bytes] | None = None
        self.directory = Path()
        self._outlives = False
        self._new_disk = 0  # bytes of the disk's file before the guest has written to it

    # Paths

    @property
    def agent_socket(self) -> Path:
        """The host's end of the agent's virtio-serial port; it serves one client at a time."""
        return self.directory / "agent.sock"

    @property
    def qmp_socket(self) -> Path:
        """QEMU's monitor; it serves one client at a time."""
        return self.directory / "qmp.sock"

    @property
    def console(self) -> Path:
        """The serial console, a root shell; run() uses it."""
        return self.directory / "console.sock"

    @property
    def boot_log(self) -> Path:
        """What the kernel and init printed."""
        return self.directory / "boot.log"

    # Life

    def start(self, outlive: bool = False) -> Guest:
        """Boot; return when QEMU runs, which is long before the guest is up.

        The guest ends with the process that started it, unless it is to `outlive` that.
        """
        host.need("qemu-system-x86_64", "qemu-img", "mke2fs")
        source = image.build(self.release)
        self.directory = host.private_directory()
        self._outlives = outlive
        try:
            self._make_disks(source)
            self._new_disk = self._disk.stat().st_size
            self._start_qemu(source, outlive)
            self._until(self._answers_qmp, 30, "QEMU's monitor does not answer")
            self.ssh_port = self._forwarded_port() if self.nic == "user" else None
        except BaseException:
            self.stop()
            raise
        return self

    def record(self) -> dict[str, Any]:
        """Return what another process needs to use this guest, as plain data; attach() takes it."""
        names = ("release", "nic", "memory_mib", "cpus", "pid", "ssh_port")
        return {**{name: getattr(self, name) for name in names}, "directory": str(self.directory)}

    @classmethod
    def attach(cls, record: Mapping[str, Any]) -> Guest:
        """Return the guest, started by another process to outlive it, that `record` is of."""
        guest = cls(record["release"], record["nic"], record["memory_mib"], record["cpus"])
        guest.pid, guest.ssh_port = record["pid"], record["ssh_port"]
        guest.directory = Path(record["directory"])
        return guest

    def stop(self) -> None:
        """End the guest now, whatever it is doing, and remove all that it used. Does nothing if it has ended."""
        if self.directory == Path():
            return
        for end in (self._quit, self._signal(signal.SIGTERM), self._signal(signal.SIGKILL)):
            if self.alive():
                end()
                self._wait_ended()
        if self._process is not None:
            self._process.wait()
        if self._leash is not None:
            self._leash.communicate()  # QEMU is gone, so all that the leash does is remove the directory
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory, self.pid = Path(), 0

    def kill(self) -> None:
        """End QEMU as a crash does. What it used stays until stop()."""
        self._signal(signal.SIGKILL)()
        self._wait_ended()

    def alive(self) -> bool:
        """Say whether QEMU runs."""
        if self._process is not None:
            return self._process.poll() is None
        # Another process started it, so the number may have been used again: look at what runs under it.
        try:
            command_line = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False
        return os.fsencode(self.directory) in command_line

    def __enter__(self) -> Guest:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Use

    def wait_booted(self, timeout: float = 300.0) -> None:
        """Wait until the guest's root shell answers on the console.

        Seen once with QEMU 7.2: an emulated guest hung with its processor busy, before its kernel had printed or
        written anything. So a guest that has not touched its disk for long is started anew, once.
        """
        stalled = time.monotonic() + min(timeout, STALLED_SECONDS)
        while self._process and self.alive():
            if console.answers(self.console, 5):
                return
            if time.monotonic() > stalled:
                if self._disk.stat().st_size == self._new_disk:
                    self.stop()
                    self.start(self._outlives)
                break
        self._until(lambda: console.answers(self.console, 5), timeout, "no shell on the console")

    def wait_agent(self, timeout: float = 300.0) -> None:
        """Wait until the agent has opened its port. QEMU knows that, so the agent's only seat stays free."""
        self._until(self._agent_listens, timeout, "the agent has not opened its port")

    def run(self, command: str, timeout: float = 60.0, check: bool = True) -> tuple[int, str]:
        """Run a shell command as root through the serial console; return its exit status and its exact output."""
        status, output = console.run(self.console, command, timeout)
        if check and status != 0:
            raise LabError(f"exit status {status} in the guest: {command}\nOutput: {output}")
        return status, output

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its result."""
        return qmp.call(self.qmp_socket, command, arguments)

    def save(self, name: str) -> None:
        """Take a snapshot of all that the guest is, its memory and its processes included. It goes on then."""
        self._monitor(f"savevm {name}")

    def revert(self, name: str) -> None:
        """Take the guest back to where it was when it was saved. Whoever is connected to it is told nothing."""
        self._monitor(f"loadvm {name}")

    def migrate(self) -> None:
        """Move the running guest to another QEMU, whose sockets take the places of the first one's.

        Whoever is connected to the first one loses that connection.
        """
        first = self._process
        if first is None:
            raise LabError("a guest is migrated by the process that has started it")
        arrival = self.directory / "arrival"
        arrival.mkdir()
        self._run_qemu(image.build(self.release), arrival, "-incoming", f"unix:{arrival}/migration.sock")
        self._until((arrival / "migration.sock").exists, 30, "the other QEMU does not wait for the guest")
        # An emulated guest may write to its memory faster than that is sent; it is stopped for the rest.
        self.qmp("migrate-set-parameters", **{"downtime-limit": 10_000})
        self.qmp("migrate", uri=f"unix:{arrival}/migration.sock")
        self._until(self._has_migrated, SNAPSHOT_SECONDS, "it has not migrated")
        first.kill()
        first.wait()
        # Not the socket that it came by: QEMU removes that, now or a moment later.
        for path in (self.agent_socket, self.console, self.qmp_socket):
            (arrival / path.name).replace(path)
        shutil.rmtree(arrival)
        self.ssh_port = self._forwarded_port() if self.nic == "user" else None

    def _has_migrated(self) -> bool:
        state = self.qmp("query-migrate")
        if state.get("status") == "failed":
            raise LabError(f"{self.release}: it has not migrated: {state.get('error-desc')}; {self._tail('qemu.log')}")
        return bool(state.get("status") == "completed")

    def _monitor(self, line: str) -> None:
        """Run a command of QEMU's monitor for people that prints nothing if it works."""
        arguments = {"command-line": line}
        output = qmp.call(self.qmp_socket, "human-monitor-command", arguments, SNAPSHOT_SECONDS)
        if output:
            raise LabError(f"{line}: {output.strip()}")

    # Inside

    @property
    def _disk(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def _small(self) -> Path:
        return self.directory / "small.raw"

    @property
    def _small_drive(self) -> str:
        # A snapshot of a machine is of all its disks, and kept in them: none can be raw.
        return f"file={self._small}.qcow2,format=qcow2" if self.snapshots else f"file={self._small},format=raw"

    def _make_disks(self, source: image.Image) -> None:
        _quiet("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(source.disk), str(self._disk))
        _quiet("mke2fs", "-q", "-t", "ext4", "-L", "small", str(self._small), SMALL_DISK)
        if self.snapshots:
            below = ["-F", "raw", "-b", str(self._small)]
            _quiet("qemu-img", "create", "-q", "-f", "qcow2", *below, f"{self._small}.qcow2")

    def _start_qemu(self, source: image.Image, outlive: bool) -> None:
        self._run_qemu(source, self.directory)
        if not outlive:
            leash = ["sh", "-c", LEASH, "sh", str(self.directory)]
            self._leash = subprocess.Popen(leash, stdin=subprocess.PIPE, start_new_session=True)

    def _run_qemu(self, source: image.Image, sockets: Path, *more: str) -> None:
        """Start QEMU with its sockets in this directory, and ``more`` arguments."""
        argv = self._command_line(source, sockets) + list(more)
        with open(self.directory / "qemu.log", "ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._process.pid
        (self.directory / "pid").write_text(f"{self.pid}\n", encoding="ascii")

    def _command_line(self, source: image.Image, sockets: Path) -> list[str]:
        drive = "if=virtio,cache=unsafe,discard=unmap"
        argv = ["qemu-system-x86_64", *accel.options(), "-no-user-config", "-nodefaults", "-display", "none"]
        argv += ["-name", f"{self.release},debug-threads=on", "-smp", str(self.cpus)]
        argv += ["-m", f"{self.memory_mib}M,slots=1,maxmem={self.memory_mib + SPARE_MIB}M"]
        argv += ["-object", f"memory-backend-ram,id=spare,size={SPARE_MIB}M", "-device", "pc-dimm,memdev=spare"]
        line = KERNEL_LINE + GOES_BACK * self.snapshots
        argv += ["-kernel", str(source.kernel), "-initrd", str(source.initrd), "-append", line]
        argv += ["-drive", f"file={self._disk},format=qcow2,{drive}"]
        argv += ["-drive", f"{self._small_drive},{drive}"]
        argv += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        argv += ["-chardev", f"socket,id=agent,path={sockets / self.agent_socket.name},server=on,wait=off"]
        argv += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0,id=agent"]
        argv += [
            "-chardev",
            f"socket,id=console,path={sockets / self.console.name},server=on,wait=off",
            "-serial",
            "chardev:console",
        ]
        argv += ["-serial", f"file:{self.boot_log}"]
        argv += [
            "-chardev",
            f"socket,id=qmp,path={sockets / self.qmp_socket.name},server=on,wait=off",
            "-mon",
            "qmp,mode=control",
        ]
        return argv + self._nic_arguments() + self.extra_args

    def _nic_arguments(self) -> list[str]:
        if self.nic == "none":
            return []
        # No boot ROM: nothing boots from the network. Port 0 lets the kernel choose one that is free.
        forwarded = "user,id=nic,hostfwd=tcp:127.0.0.1:0-:22"
        return ["-netdev", forwarded, "-device", "virtio-net-pci,netdev=nic,romfile=,addr=0x1e"]

    def _until(self, condition: Callable[[], bool], timeout: float, complaint: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.alive():
                raise LabError(f"{self.release}: QEMU has ended: {self._tail('qemu.log')}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.release}: {complaint} after {timeout:g} s; boot log: {self._tail('boot.log')}")
            time.sleep(0.05)

    def _tail(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(encoding="utf-8", errors="replace")[-2000:]
        except OSError:
            return "(none)"

    def _answers_qmp(self) -> bool:
        try:
            self.qmp("query-status")
        except LabError:
            return False
        return True

    def _agent_listens(self) -> bool:
        return any(chardev["label"] == "agent" and chardev["frontend-open"] for chardev in self.qmp("query-chardev"))

    def _forwarded_port(self) -> int:
        table = self.qmp("human-monitor-command", **{"command-line": "info usernet"})
        match = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", table)
        if match is None:
            raise LabError(f"QEMU does not say which port it forwards: {table}")
        return int(match.group(1))

    def _quit(self) -> None:
        with suppress(LabError):  # a test may hold the monitor; the signals that follow need none
            self.qmp("quit")

    def _signal(self, number: signal.Signals) -> Callable[[], None]:
        return lambda: os.kill(self.pid, number)

    def _wait_ended(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)


def _quiet(program: str, *arguments: str) -> None:
    host.output([host.find(program) or program, *arguments], f"{program} failed")
