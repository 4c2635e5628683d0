# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's own tests. They boot each release once: some minutes under emulation."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lab import accel, console, host, image, vm
from lab.__main__ import main
from lab.agent import DANGEROUS, LooseAgent
from lab.bench.contenders import ROOT
from lab.bench.machineries import MACHINERIES, Machinery
from lab.controller import Controller
from lab.host import LabError
from lab.vm import Guest


def ask(agent: Path, command: str, **arguments: Any) -> Any:
    """Send one command to an agent that nobody else uses; return the whole reply."""
    number = secrets.randbits(31)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(agent))
        lines = connection.makefile("rb")
        connection.sendall(
            b"\xff" + json.dumps({"execute": "guest-sync", "arguments": {"id": number}}).encode() + b"\n"
        )
        while json.loads(lines.readline()).get("return") != number:
            pass
        connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        return json.loads(lines.readline())


def shell(agent: Path, command: str) -> str:
    """Run a shell command through an agent and return its output."""
    argv = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
    pid = ask(agent, "guest-exec", **argv)["return"]["pid"]
    while not (status := ask(agent, "guest-exec-status", pid=pid)["return"])["exited"]:
        time.sleep(0.01)
    return base64.b64decode(status.get("out-data", "")).decode()


def gone(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60  # beside guests that are emulated
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


# Run by several processes, each boots its own.
EACH = [pytest.param(release, marks=pytest.mark.xdist_group(release)) for release in image.RELEASES]
NEWEST = list(image.RELEASES)[-1]
EACH_GUEST = [
    pytest.param(release, marks=[pytest.mark.xdist_group(release), *([pytest.mark.whole] if release != NEWEST else [])])
    for release in image.RELEASES
]


@pytest.fixture(scope="module", params=EACH_GUEST)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with Guest(request.param) as running:
        running.wait_agent()
        running.wait_booted()
        yield running


@pytest.fixture(scope="module", params=EACH)
def loose(request: pytest.FixtureRequest) -> Iterator[LooseAgent]:
    with LooseAgent(request.param, block=["guest-get-users"]) as running:
        yield running


@pytest.mark.parametrize("text", ["", "no newline", "\r\n\t \x1b[0m\x04\x03\n\n", "\u00fc\udcff\udc80\0\n"])
def test_console_output_is_exact(guest: Guest, text: str) -> None:
    encoded = base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()
    assert guest.run(f"echo '{encoded}' | base64 -d") == (0, text)


def test_console_takes_long_commands_and_output(guest: Guest) -> None:
    assert guest.run(f"printf %s '{'y' * 30_000}'") == (0, "y" * 30_000)
    assert guest.run("head -c 1000000 /dev/zero | tr '\\0' x") == (0, "x" * 1_000_000)
    with pytest.raises(LabError, match="limited to 32768 bytes"):
        guest.run(" " * 40_000)


def test_console_status_is_exact(guest: Guest) -> None:
    for status in (0, 1, 124, 137, 255):
        assert guest.run(f"echo out; echo err >&2; exit {status}", check=False) == (status, "out\nerr\n")
    with pytest.raises(LabError, match=r"(?s)exit status 3 .*Output: why"):
        guest.run("echo why; exit 3")


def test_console_works_again_after_a_command_that_hangs(guest: Guest) -> None:
    with pytest.raises(LabError, match="not finished after 2 s"):
        guest.run("cat /dev/zero >/dev/null", timeout=2)
    assert guest.run("echo back") == (0, "back\n")


@pytest.mark.parametrize("left", ['echo "half', "echo 'a whole line\n", "cat <<'END'\n", "sleep 1000\n"])
def test_console_works_after_a_client_that_left_in_the_middle(guest: Guest, left: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(guest.console))
        connection.sendall(left.encode())
        time.sleep(1)
    assert guest.run("echo still here") == (0, "still here\n")


def test_half_a_line_taken_while_booting_is_given_up(guest: Guest) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(guest.console))
        client.sendall(b'echo "<\n')
        time.sleep(1)
    assert not console.answers(guest.console, 1)
    guest.wait_booted(30)


def test_guest_has_what_tests_need(guest: Guest) -> None:
    assert guest.run("hostname; wc -c </etc/machine-id; findmnt -no FSTYPE /small")[1] == f"{guest.release}\n33\next4\n"
    guest.run("command -v hwclock sudo cron less ip && python3 -c 'import apt'")
    assert guest.run("systemctl list-units --failed --plain --no-legend") == (0, "")


def test_agent_in_the_guest(guest: Guest) -> None:
    version = ask(guest.agent_socket, "guest-info")["return"]["version"]
    assert int(version.split(".")[0]) == image.RELEASES[guest.release]
    assert any(cpu["can-offline"] for cpu in ask(guest.agent_socket, "guest-get-vcpus")["return"])


def test_guest_migrates_to_another_qemu(guest: Guest) -> None:
    before = guest.pid
    guest.run("touch /run/here")
    guest.migrate()
    assert guest.run("ls /run/here") == (0, "/run/here\n")
    assert guest.pid != before and not Path(f"/proc/{before}").exists()


def test_guest_that_hangs_before_it_boots_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "STALLED_SECONDS", 1.0)
    with Guest(NEWEST) as guest:
        guest.qmp("stop")
        first = guest.pid
        guest.wait_booted()
        assert guest.pid != first
        assert guest.run("echo up") == (0, "up\n")


@pytest.mark.whole
def test_two_guests_at_once() -> None:
    with Guest("bookworm") as first, Guest("bookworm", nic="user") as second:
        for running in (first, second):
            running.wait_booted()
        first.run("echo first >/root/who")
        assert second.run("cat /root/who", check=False)[0] == 1
        assert first.run("cat /root/who; ls /sys/class/net") == (0, "first\nlo\n")
        ssh = ["ssh", "-i", str(second.ssh_key), "-p", str(second.ssh_port), "-o", "BatchMode=yes"]
        ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@127.0.0.1", "hostname"]
        assert subprocess.run(ssh, stdout=subprocess.PIPE, timeout=60, check=True).stdout == b"bookworm\n"
        pids, directories = [first.pid, second.pid], [first.directory, second.directory]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(directory.exists() for directory in directories)


@pytest.mark.parametrize("what", ["lab.vm import Guest", "lab.agent import LooseAgent"])
def test_nothing_outlives_a_killed_starter(what: str) -> None:
    script = f"from {what} as Thing\nit = Thing('bookworm').start()\nprint(it.pid, it.directory, flush=True)\ninput()"
    starter = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    pid, directory = starter.stdout.readline().split()
    starter.kill()
    starter.communicate()
    assert gone(lambda: not Path(f"/proc/{int(pid)}").exists())
    assert gone(lambda: not os.path.exists(directory))


def test_nothing_of_libvirt_outlives_a_killed_starter() -> None:
    # A domain is added, so that there is a QEMU too; it needs nothing to boot from.
    xml = "<memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os>"
    script = f"""from lab.libvirt import Daemon
daemon = Daemon().start()
daemon.restart()
print(daemon.add("create", "bare", {xml!r}, "--paused"), daemon.directory, flush=True)
input()"""
    starter = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    uuid, directory = starter.stdout.readline().decode().split()
    assert running(uuid) == 1 and running(f"{directory}/pid") >= 1
    starter.kill()
    starter.communicate()
    assert gone(lambda: not running(uuid) and not running(directory))
    assert gone(lambda: not os.path.exists(directory))


def running(words: str) -> int:
    """Return how many processes have `words` in their command line."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            count += words.encode() in path.read_bytes()
    return count


def test_loose_agent_refuses_what_would_act_on_the_host(loose: LooseAgent) -> None:
    # Asked by name in the agent's own list, not by trying: a try that succeeded would stop this machine.
    commands = ask(loose.agent_socket, "guest-info")["return"]["supported_commands"]
    enabled = {command["name"] for command in commands if command["enabled"]}
    assert "guest-exec" in enabled
    assert not enabled & {*DANGEROUS, "guest-get-users"}


def test_loose_agent_lacks_the_privileges_too(loose: LooseAgent) -> None:
    status = Path(f"/proc/{loose.pid}/status").read_text(encoding="ascii")
    bounding = int(status.split("CapBnd:")[1].split()[0], 16)
    for capability in (16, 17, 21, 22, 25, 27):  # module, rawio, admin, boot, time, mknod
        assert not bounding & 1 << capability
    writable = "for file in /sys/power/state /proc/sys/kernel/hostname; do test ! -w $file || echo $file; done"
    assert shell(loose.agent_socket, writable) == ""


def test_command_beside_a_loose_agent_signals_what_it_sees(loose: LooseAgent) -> None:
    own = Path(f"/proc/{loose.pid}/ns/pid").readlink()
    assert loose.run("readlink /proc/$$/ns/pid; hostname") == (0, f"{own}\n{loose.release}\n")
    assert loose.run("kill -0 $(pgrep -o qemu-ga)") == (0, "")


def test_loose_agent_leaves_the_image_alone(loose: LooseAgent) -> None:
    tree = image.build(loose.release).tree
    places = [tree / place for place in ("", "etc", "root", "run", "tmp", "usr/bin", "var")]
    before = [place.stat().st_mtime_ns for place in places]
    change = "touch /x /etc/x /root/x /run/x /tmp/x /usr/bin/x /var/x && rm /usr/bin/less; ls /root/x"
    assert shell(loose.agent_socket, change) == "/root/x\n"
    loose.restart()
    assert shell(loose.agent_socket, "ls /root/x") == "/root/x\n", "a restart keeps the files"
    assert [place.stat().st_mtime_ns for place in places] == before
    assert (tree / "usr/bin/less").exists()


def test_restart_forgets_handles_and_is_quick(loose: LooseAgent) -> None:
    handle = ask(loose.agent_socket, "guest-file-open", path="/etc/hostname")["return"]
    pid, started = loose.pid, time.monotonic()
    loose.restart()
    assert time.monotonic() - started < 1
    assert loose.pid != pid
    assert "has not been found" in ask(loose.agent_socket, "guest-file-close", handle=handle)["error"]["desc"]


def test_controller_sees_what_is_left_there_and_ends_it() -> None:
    with Controller() as controller:
        assert (controller.left(), controller.sockets()) == ([], [])
        script = "sleep 1000 >/dev/null & ls -A /run/qemu-guest; echo $X; echo $HOME"
        argv = controller.command(["sh", "-c", script], {"PATH": os.defpath, "X": "one two"}, Path("/"))
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=30)
        assert done.stdout == b"one two\n\n", "it is empty, and nothing else is in the environment"
        (left,) = controller.left()
        assert left.name == "sleep" and 0 < left.pss <= left.rss and left.descriptors == 3
        assert not controller.wait_empty(0)
    assert gone(lambda: not Path(f"/proc/{left.pid}").exists())


def test_accelerator_probe_is_exact_and_bounded() -> None:
    started = time.monotonic()
    assert accel.accelerator() in ("kvm", "tcg")
    assert accel.runs(accel.EMULATION)
    assert not accel.runs(["-accel", "nonsense"])
    assert time.monotonic() - started < 3 * accel.PROBE_SECONDS


def test_probe_gives_up_on_a_guest_that_does_not_run() -> None:
    started = time.monotonic()
    assert not accel.runs([*accel.EMULATION, "-S"])
    assert time.monotonic() - started < accel.PROBE_SECONDS + 2


def test_interrupted_build_is_not_taken_for_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEMU_GUEST_CACHE", str(tmp_path))
    # A shell that runs the tests in the background has them, and what they start, ignore this signal.
    listen = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = f"{listen}from lab import image\nimage.build('bookworm')"
    builder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert builder.stdout is not None
    assert b"bare system" in builder.stdout.readline()
    time.sleep(3)
    builder.send_signal(signal.SIGINT)
    builder.communicate()
    assert list((tmp_path / "images").glob(".bookworm-partial-*"))
    assert not list((tmp_path / "images").glob("bookworm-*"))


def test_messages_for_who_cannot_be_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(host, "can_be_root", lambda: False)
    monkeypatch.setattr(host, "find", lambda program: program if program == "apt-get" else None)
    with pytest.raises(LabError, match=r"needs root"):
        host.as_root(["debootstrap"])
    with pytest.raises(LabError, match=r"sudo apt-get install --no-install-recommends qemu-system-x86 seabios$"):
        host.need("qemu-system-x86_64")


@pytest.mark.parametrize("one", MACHINERIES, ids=lambda one: one.name)
def test_machinery_can_still_be_taken_out_by_the_bench(one: Machinery) -> None:
    for file, old, new in one.changes:
        assert old in (ROOT / file).read_text(encoding="utf-8") and old != new


def test_command_line(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shared in ("images", "ssh"):
        (tmp_path / shared).symlink_to(host.cache_root() / shared)
    monkeypatch.setenv("QEMU_GUEST_CACHE", str(tmp_path))
    assert main(["up", "one"]) == 0
    try:
        assert "address: " in capfd.readouterr().out
        assert main(["up", "one"]) == 1
        assert "is up already" in capfd.readouterr().err
        assert main(["console", "one", "--", "printf '%s' \"a  b\"; exit 7"]) == 7
        assert capfd.readouterr().out == "a  b"
        assert main(["list"]) == 0
        assert "one\tbookworm" in capfd.readouterr().out
    finally:
        assert main(["down", "--all"]) == 0
    assert main(["list"]) == 0
    assert capfd.readouterr().out == "one is down\n"
    assert main(["console", "one", "--", "true"]) == 1
