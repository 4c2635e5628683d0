# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot a guest that has no network, configure it with an ordinary playbook, and show that it worked: `make demo`.

What the playbook did is looked at through the guest's serial console, which has nothing to do with the agent, and then
the playbook runs again and must change nothing. The exit status is 0 only if all of that is so.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lab import accel, host, image
from lab.host import LabError
from lab.vm import Guest

RELEASE = "bookworm"
ROOT = Path(__file__).resolve().parent.parent
PLAYBOOK = Path("playbooks/demo/site.yml")
INVENTORY = Path("playbooks/demo/inventory.yml")
FILES = ROOT / "playbooks/demo/files"
STOP_SECONDS = 5.0
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
RECAP = re.compile(r"^vm1\s+: ok=\d+\s+changed=(\d+)")


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    started = time.monotonic()
    try:
        _tell()
    except LabError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    print(f"\nThe demo took {time.monotonic() - started:.0f} s.")
    return 0


def _end(number: int, _frame: FrameType | None) -> None:
    """Unwind, so that everything is cleaned up; nothing may interrupt that."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    print(f"\ndemo: {signal.Signals(number).name}: cleaning up", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def _tell() -> None:
    _say("1. What a guest needs: QEMU, and a disk image built from Debian's own packages")
    _check_machine()
    guest = Guest(RELEASE, extra_args=["-nic", "none"])
    with tempfile.TemporaryDirectory(prefix="demo-") as scratch:
        try:
            _boot(guest)
            _configure(guest, Path(scratch))
        finally:
            guest.stop()
            print("\nThe guest is stopped; its disk and the demo's temporary files are removed.", flush=True)


def _check_machine() -> None:
    """Install what is missing and build the image, or say what to do."""
    if shutil.which("ansible-playbook") is None:
        raise LabError("there is no ansible-playbook on PATH. Start the demo by: make demo")
    try:
        host.need(*host.PACKAGES)
        built = image.build(RELEASE)
    except LabError as error:
        raise LabError(
            f"{error}\n\nTo install packages and to build the image, once, the demo has to be root, or to run sudo "
            "without being asked for a password. Later runs need neither."
        ) from error
    print(f"   Debian {RELEASE} with its agent {built.agent_version}: {built.disk}")


def _boot(guest: Guest) -> None:
    how = "KVM" if accel.accelerator() == "kvm" else "emulation, since KVM does not work here: everything takes longer"
    _say("2. A guest without a network")
    print(f"   qemu-system-x86_64 … -nic none -chardev socket,path=… -device virtserialport,…   ({how})")
    with _timed("booting, until the agent in the guest has opened its port"):
        guest.start()
        guest.wait_agent()
    with _timed("waiting for the shell on the serial console"):
        guest.wait_booted()
    print(f"   The agent's socket: {guest.agent_socket}")


def _configure(guest: Guest, scratch: Path) -> None:
    report = scratch / "report.txt"
    _say("3. The playbook")
    changed = _play(guest, scratch, report)
    if not changed:
        raise LabError("the playbook changed nothing in a guest that it had never seen")

    _say("4. What is in the guest now, seen through its serial console")
    _look(guest, report)

    _say("5. The playbook again: nothing may change")
    again = _play(guest, scratch, report)
    if again:
        raise LabError(f"the second run reports changed={again}, where it should report changed=0")

    _say("6. The file that the playbook fetched from the guest")
    for line in report.read_text(encoding="utf-8").splitlines():
        print(f"   | {line}")
    print(f"\nConfigured without a network: {changed} changes in the first run, none in the second.")


def _play(guest: Guest, scratch: Path, report: Path) -> int:
    """Run the playbook, show its output, and return how many changes it reports."""
    argv = ["ansible-playbook", "-i", str(INVENTORY)]
    argv += ["-e", f"ansible_qga_address={shlex.quote(str(guest.agent_socket))}"]
    argv += ["-e", f"report_to={shlex.quote(str(report))}", str(PLAYBOOK)]
    print(f"   $ {shlex.join(argv)}", flush=True)
    started = time.monotonic()
    changed = None
    with _running(argv, _environment(scratch)) as lines:
        for line in lines:
            print(f"   {line}" if line.strip() else "", end="" if line.strip() else "\n", flush=True)
            recap = RECAP.match(COLOUR.sub("", line))
            if recap:
                changed = int(recap.group(1))
    if changed is None:
        raise LabError("the playbook printed no recap")
    print(f"   {time.monotonic() - started:.0f} s")
    return changed


def _environment(scratch: Path) -> dict[str, str]:
    """Return an environment in which Ansible takes nothing from the user's settings and leaves nothing behind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment.update(ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_HOME=str(scratch / "ansible"))
    environment.update(LC_ALL="C.UTF-8", PYTHONDONTWRITEBYTECODE="1")
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        environment["ANSIBLE_FORCE_COLOR"] = "1"
    return environment


@contextmanager
def _running(argv: list[str], environment: dict[str, str]) -> Iterator[Iterator[str]]:
    """Run a program, whose output is the lines given; raise LabError if it fails. It does not outlive the block."""
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield iter(process.stdout)
        status = process.wait()
    finally:
        _end_group(process)
    if status != 0:
        raise LabError(f"{argv[0]} failed with exit status {status}")


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a program, and what it started, if it still runs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue


@dataclass(frozen=True)
class Check:
    """A shell command in the guest and what it should print."""

    command: str
    expected: str


def checks(report: Path) -> list[Check]:
    """Return what is in a guest that the playbook has configured, and from which it fetched `report`."""
    return [
        Check("ls /sys/class/net", "lo"),
        Check("cat /etc/motd", (FILES / "motd").read_text(encoding="utf-8").strip()),
        Check("sha256sum </usr/local/bin/beacon", f"{_sha256(FILES / 'beacon.sh')}  -"),
        Check("stat -c '%a %U %G' /etc/beacon.conf", "640 root beacon"),
        Check("getent passwd beacon | cut -d: -f6,7", "/var/lib/beacon:/bin/sh"),
        Check("systemctl is-enabled beacon; systemctl is-active beacon", "enabled\nactive"),
        Check("ps -C beacon -o user=", "beacon"),
        Check("stat -c '%U' /var/lib/beacon/report", "beacon"),
        Check("sha256sum </var/lib/beacon/report", f"{_sha256(report)}  -"),
    ]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _look(guest: Guest, report: Path) -> None:
    wrong = 0
    for check in checks(report):
        _status, output = guest.run(check.command, check=False)
        found = output.strip()
        right = found == check.expected
        wrong += not right
        print(f"   {'ok' if right else 'WRONG':5}  # {check.command}")
        for line in found.splitlines():
            print(f"          {line}")
        if not right:
            print(f"          but it should be: {check.expected!r}")
    sys.stdout.flush()
    if wrong:
        raise LabError(f"{wrong} of these are not as the playbook should have made them")


def _say(heading: str) -> None:
    print(f"\n{heading}", flush=True)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    """Print what is being waited for, and the seconds that it has taken, as they pass."""
    finished = threading.Event()
    ticker = threading.Thread(target=_tick, args=(what, finished), daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()


def _tick(what: str, finished: threading.Event) -> None:
    """On a terminal, count the seconds in place; elsewhere, print a line every ten."""
    in_place = sys.stdout.isatty()
    started = time.monotonic()
    while not finished.wait(1.0 if in_place else 10.0):
        text = f"   … {what}: {time.monotonic() - started:.0f} s"
        print(text, end="\r" if in_place else "\n", flush=True)
    print(f"   {what}: {time.monotonic() - started:.0f} s  ", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
