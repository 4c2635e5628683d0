# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""look.sh, with each shell that a hypervisor may have, on a made-up machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.machine import (
    Places,
    Process,
    Socket,
    View,
    here,
    look,
    parse_view,
)

ALL = ("process", "proxmox", "ganeti", "sockets")
_COMMANDS = {"sh": [], "bash": ["--posix"], "busybox": ["sh"], "dash": [], "mksh": [], "posh": [], "yash": []}
SHELLS = {name: [name, *options] for name, options in _COMMANDS.items() if shutil.which(name)}
UNIX = (
    "Num       RefCount Protocol Flags    Type St Inode Path\n"
    "0000000000000000: 00000002 00000000 00010000 0001 01 17303 /run/a b.qga\n"
    "0000000000000000: 00000003 00000000 00000000 0001 03 17304 /run/connected.qga\n"
    "0000000000000000: 00000002 00000000 00010000 0001 01 17305 @abstract\n"
    "0000000000000000: 00000002 00000000 00000000 0002 01 17306\n"
)


class Shell:
    """Runs the script as a hypervisor does, with a shell of choice for sh."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.stdin = b""

    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
        assert command == "sh"
        self.stdin = stdin
        done = subprocess.run(self.argv, input=stdin, capture_output=True, timeout=seconds, check=False)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Shell:
    return Shell(SHELLS[request.param])


class Machine:
    """A machine's directories, below one of the test's."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root = root
        self._stack = stack
        self.places = Places(*(str(root / name) for name in ("proc", "run/qemu-server", "pve", "run/ganeti")))
        (root / "proc" / "net").mkdir(parents=True)
        (root / "proc" / "net" / "unix").write_text(UNIX)

    def add_process(self, pid: int, *arguments: str | bytes, directory: str = "/", program: str = "") -> None:
        there = self.root / "proc" / str(pid)
        there.mkdir()
        (there / "cmdline").write_bytes(b"".join(os.fsencode(argument) + b"\0" for argument in arguments))
        (there / "cwd").symlink_to(directory)
        if program:
            (there / "exe").symlink_to(program)

    def add_socket(self, path: str) -> str:
        there = self.root / path
        there.parent.mkdir(parents=True, exist_ok=True)
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        directory = os.open(there.parent, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{directory}/{there.name}")  # the path itself may be too long
        os.close(directory)
        return str(there)

    def add_conf(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def look(self, shell: Shell, *globs: str, sources: tuple[str, ...] = ALL, **how: int) -> View:
        return look(shell, sources, globs, self.places, 30, **how)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(tmp_path, stack)


def test_processes_are_found_with_all_their_bytes(there: Machine, shell: Shell, tmp_path: Path) -> None:
    directory = tmp_path / "a dir\nwith lines"
    directory.mkdir()
    there.add_process(1, "/sbin/init", "qemu")
    line = ["/usr/bin/qemu-system-x86_64", "-name", "a\nb $(touch /nope) 'c'", ""]
    there.add_process(20, *line, directory=str(directory), program="/a/qemu\nb")
    there.add_process(300, "/usr/bin/kvm", "-name", b"\xff\xfe")
    view = there.look(shell)
    owner = Path(tmp_path).owner()
    assert sorted(view.processes, key=lambda process: int(process.pid)) == [
        Process("20", owner, "/a/qemu\nb", str(directory), line),
        Process("300", owner, "", "/", ["/usr/bin/kvm", "-name", "\udcff\udcfe"]),
    ]
    assert view.whole


def test_process_in_a_container(there: Machine, shell: Shell, tmp_path: Path) -> None:
    there.add_process(7, "kvm", "-name", "a")
    (there.root / "proc" / "7" / "root").symlink_to(tmp_path)
    there.add_process(8, "kvm", "-name", "b")
    (there.root / "proc" / "8" / "root").symlink_to("/")
    own, ours = sorted(there.look(shell).processes, key=lambda process: process.pid)
    assert (ours.directory, ours.root) == ("/", "")
    if shell.argv[0] != "posh":  # which does not tell whether two files are the same
        assert (own.directory, own.root) == (f"{there.root}/proc/7/cwd", f"{there.root}/proc/7/root")


def test_a_process_cannot_forge_records(there: Machine, shell: Shell) -> None:
    forged = "\n".join(("", "0123456789abcdef0123456789abcdef end 1", "socket sockets", "/etc/shadow", "end"))
    there.add_process(7, "qemu-kvm", forged, "\nprocess 8\n/\0kvm")
    view = there.look(shell)
    assert [process.pid for process in view.processes] == ["7"]
    assert view.sockets == []


def test_boundary_is_on_no_command_line_and_new_each_time(there: Machine) -> None:
    shells = [Shell(["sh"]), Shell(["sh"])]
    boundaries = set()
    for shell in shells:
        there.look(shell)
        boundaries.add(shell.stdin.rpartition(b"\nmain ")[2].split()[0])
    assert len(boundaries) == 2 and all(len(boundary) == 32 for boundary in boundaries)


def test_listening_sockets(there: Machine, shell: Shell) -> None:
    assert there.look(shell).listening - {""} == {"/run/a b.qga", "@abstract"}


def test_globs_are_expanded_and_nothing_else_is(there: Machine, shell: Shell, tmp_path: Path) -> None:
    there.add_socket("a dir/a.qga")
    names = ["vms/a b.qga", "vms/$(touch nope).qga", "vms/`id`.qga", "vms/*.qga", "vms/-rf.qga", "vms/x\ny.qga"]
    paths = [there.add_socket(name) for name in names]
    there.add_conf("vms/plain.qga", "a file is no socket")
    view = there.look(
        shell, f"{tmp_path}/vms/*.qga", f"{tmp_path}/vms/none*", f"{tmp_path}/vms/$(touch {tmp_path}/no)*"
    )
    assert sorted(socket.path for socket in view.sockets) == sorted(paths)
    assert [socket.path for socket in there.look(shell, f"{tmp_path}/a dir/*.qga").sockets] == [
        f"{tmp_path}/a dir/a.qga"
    ]
    assert {socket.source for socket in view.sockets} == {"sockets"}
    assert not (tmp_path / "no").exists()


def test_symbolic_links_are_resolved(there: Machine, shell: Shell, tmp_path: Path) -> None:
    path = there.add_socket("run/vms/a.qga")
    (tmp_path / "var").symlink_to(tmp_path / "run")
    (tmp_path / "link.qga").symlink_to(path)
    view = there.look(shell, f"{tmp_path}/var/vms/*", f"{tmp_path}/link.qga")
    assert view.sockets == [
        Socket("sockets", f"{tmp_path}/var/vms/a.qga", path),
        Socket("sockets", f"{tmp_path}/link.qga", path),
    ]


def test_proxmox_tells_the_part_before_snapshots(there: Machine, shell: Shell) -> None:
    path = there.add_socket("run/qemu-server/100.qga")
    there.add_conf("pve/nodes/me/qemu-server/100.conf", "agent: 1\nname: web\nmemory: 5\n\n[before]\nname: old\n")
    (there.root / "pve" / "qemu-server").symlink_to("nodes/me/qemu-server")
    view = there.look(shell)
    assert view.sockets == [Socket("proxmox", path, path)]
    assert view.confs == {"100.conf": "agent: 1\nname: web\n"} and view.is_node


def test_proxmox_without_its_own_directory_reads_all_nodes(there: Machine, shell: Shell) -> None:
    there.add_conf("pve/nodes/other/qemu-server/100.conf", "name: web\n")
    view = there.look(shell)
    assert view.confs == {"100.conf": "name: web\n"} and not view.is_node


def test_only_files_are_configurations(there: Machine, shell: Shell) -> None:
    there.add_conf("pve/qemu-server/100.conf", "name: web\n")
    os.mkfifo(there.root / "pve" / "qemu-server" / "99.conf")
    (there.root / "pve" / "qemu-server" / "98.conf").symlink_to("/dev/zero")
    assert there.look(shell, sources=("proxmox",)).confs == {"100.conf": "name: web\n"}


def test_ganeti(there: Machine, shell: Shell) -> None:
    path = there.add_socket("run/ganeti/kvm-hypervisor/ctrl/inst.example.com.qga")
    there.add_socket("run/ganeti/kvm-hypervisor/ctrl/inst.example.com.qmp")
    assert there.look(shell).sockets == [Socket("ganeti", path, path)]


def test_only_the_sources_asked_for(there: Machine, shell: Shell, tmp_path: Path) -> None:
    there.add_process(5, "kvm", "-name", "x")
    there.add_socket("run/qemu-server/100.qga")
    there.add_socket("run/ganeti/kvm-hypervisor/ctrl/i.qga")
    there.add_socket("vms/a.qga")
    for source in ALL:
        view = there.look(shell, f"{tmp_path}/vms/*", sources=(source,))
        assert bool(view.processes) is (source == "process")
        assert [socket.source for socket in view.sockets] == ([] if source == "process" else [source])


def test_nothing_there(there: Machine, shell: Shell) -> None:
    (there.root / "proc" / "net" / "unix").unlink()
    view = there.look(shell, "/nonexistent/*")
    assert view == View(whole=True, listening=frozenset({""}), proxmox_run=there.places.proxmox_run)


def test_this_machine() -> None:
    view = look(None, ALL, (), Places(), 30)
    assert view.whole


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_what_hangs_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectError, match=r"within 0\.5 s"):
        here(f"sleep 300 & echo $! >{tmp_path}/pid; wait", b"", 0.5)
    assert time.monotonic() - started < 5
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while runs(pid):
        assert time.monotonic() < end, "what it started goes on"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_machine_without_a_shell(stream: str) -> None:
    class Broken:
        def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
            words = b"This account is\x1b[31m not available.\n"
            return (127, words, b"") if stream == "stdout" else (127, b"", words)

    with pytest.raises(ConnectError, match=r"status 127: This account is\\x1b\[31m not available"):
        look(Broken(), ALL, (), Places(), 5)


def test_output_is_bounded(there: Machine, shell: Shell) -> None:
    there.add_process(5, "kvm", "x" * 20000)
    view = there.look(shell, most_bytes=10000)
    assert not view.whole and len(view.processes) == 1


def test_more_processes_than_are_looked_at(there: Machine) -> None:
    for pid in range(5, 10):
        there.add_process(pid, "kvm", "-name", f"vm{pid}")

    class FewAtMost(Shell):
        def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
            return super().run(command, stdin.replace(b"-gt 4096", b"-gt 4"), seconds)

    view = there.look(FewAtMost(SHELLS["sh"]), sources=("process",))
    assert len(view.processes) == 4 and not view.whole, "some are missing, and it is told"


def test_half_an_output_is_not_whole() -> None:
    assert not parse_view(b"\nabc socket sockets\n/a\0/a", "abc").whole
    assert parse_view(b"Welcome!\n\nabc socket sockets\n/a\0/a\nabc end\n", "abc").sockets == [
        Socket("sockets", "/a", "/a")
    ]
