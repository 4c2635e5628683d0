# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users meet: agents that are away, busy, blocked or frozen, full disks, stubborn programs, machines that end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.guests.conftest import blocked
from ansible_collections.qemu.guest.tests.integration.harness import (
    guest_variables,
    look,
    taken,
)
from lab.vm import Guest

TIMEOUT = 5
RUNNER = "cat /run/qemu-guest-runner/1/pid"


def variables(guest: Guest, **more: Any) -> Mapping[str, Mapping[str, Any]]:
    return {"vm": {**guest_variables(guest), "ansible_qga_timeout": TIMEOUT, **more}}


def test_no_such_socket_and_no_server(make_ansible: MakeAnsible, tmp_path: Path, guest: Guest) -> None:
    absent = make_ansible(variables(guest, ansible_qga_address=str(tmp_path / "absent")))
    run = absent.adhoc("ansible.builtin.ping", rc=4)
    assert "there is no such socket" in run.message
    (tmp_path / "plain").touch()
    plain = make_ansible(variables(guest, ansible_qga_address=str(tmp_path / "plain")))
    assert "this is not a socket" in plain.adhoc("ansible.builtin.ping", rc=4).message


def test_agent_away(make_ansible: MakeAnsible, guest: Guest) -> None:
    look(guest, "systemctl stop qemu-guest-agent")
    try:
        run = make_ansible(variables(guest)).adhoc("ansible.builtin.raw", "true", rc=4)
        assert f"no answer to a sync within {TIMEOUT} s" in run.message
        assert "does qemu-guest-agent run in it?" in run.message
        assert run.seconds < TIMEOUT + 30
        # What was asked while it was away never runs.
        look(guest, "systemctl start qemu-guest-agent")
        make_ansible(variables(guest)).adhoc("qemu.guest.qga_ping", "wait=60 commands=guest-exec")
    finally:
        look(guest, "systemctl start qemu-guest-agent")


def test_channel_taken(make_ansible: MakeAnsible, guest: Guest) -> None:
    with taken(guest.agent_socket):
        run = make_ansible(variables(guest)).adhoc("qemu.guest.qga_file", "path=/srv/ghost content=x", rc=4)
        assert "another client (" in run.message
        assert "uses the channel" in run.message
    # The one who waited and gave up has left nothing behind that runs now.
    make_ansible(variables(guest)).adhoc("qemu.guest.qga_ping")
    assert look(guest, "ls /srv/ghost 2>/dev/null || echo none") == "none\n"


def test_guest_exec_blocked(make_ansible: MakeAnsible, guests: Mapping[str, Guest]) -> None:
    for guest in guests.values():
        with blocked(guest, "guest-exec,guest-exec-status"):
            # Without a runner, and with no way to start one.
            look(guest, "kill $(cat /run/qemu-guest-runner/1/pid); sleep 2", check=False)
            ansible = make_ansible(
                variables(guest, ansible_qga_timeout=20, ansible_qga_bootstrap=[], ansible_qga_warm_python=False)
            )
            run = ansible.adhoc("ansible.builtin.ping", rc=2)
            assert "guest-exec was not run: disabled by the guest's administrator" in run.message
            assert ("blacklist" if guest.release == "bullseye" else "block-rpcs") in run.message
            assert "/etc/qemu/qemu-ga.conf" in run.message
            ansible.adhoc("qemu.guest.qga_info")
            # What needs no program still works, and what does is refused before anything is done.
            look(guest, "umask 077; echo old >/srv/kept")
            ansible.adhoc("qemu.guest.qga_file", {"path": "/srv/kept", "content": "new"})
            assert look(guest, "cat /srv/kept; stat -c ' %a' /srv/kept") == "new 600\n"
            ansible.adhoc("qemu.guest.qga_file", {"path": "/srv/kept", "content": "x", "mode": "0644"}, rc=2)
            refused = ansible.adhoc("qemu.guest.qga_file", {"path": "/srv/fresh", "content": "x"}, rc=2)
            assert "every user of the guest can write to" in refused.message
            assert look(guest, "cat /srv/kept; ls /srv/fresh 2>/dev/null || :; rm /srv/kept") == "new"


def test_unknown_command_is_another_error(make_ansible: MakeAnsible, guest: Guest) -> None:
    run = make_ansible(variables(guest)).adhoc("qemu.guest.qga_command", "command=guest-make-coffee", rc=2)
    assert "guest-make-coffee was not run: this agent" in run.message
    assert "does not know the command" in run.message


def test_frozen(make_ansible: MakeAnsible, guests: Mapping[str, Guest]) -> None:
    for guest in guests.values():
        ansible = make_ansible(variables(guest, ansible_qga_timeout=30))
        ansible.adhoc("qemu.guest.qga_command", "command=guest-fsfreeze-freeze")
        try:
            run = ansible.adhoc("ansible.builtin.raw", "true", rc=2)
            assert "blocked while the guest's filesystems are frozen" in run.message
            assert '"fsfreeze_status": "frozen"' in ansible.adhoc("qemu.guest.qga_info").output
        finally:
            ansible.adhoc("qemu.guest.qga_command", "command=guest-fsfreeze-thaw")
        ansible.adhoc("ansible.builtin.raw", "true")


def test_full_disk_and_unreadable_files(make_ansible: MakeAnsible, guest: Guest, tmp_path: Path) -> None:
    ansible = make_ansible(variables(guest, ansible_qga_timeout=30))
    big = tmp_path / "big"
    big.write_bytes(bytes(8_000_000))
    look(guest, "dd if=/dev/zero of=/small/fill bs=1M 2>/dev/null; sync; rm -f /small/x; df /small | tail -n 1")
    try:
        run = ansible.adhoc("qemu.guest.qga_file", {"path": "/small/x", "src": str(big)}, rc=2)
        assert "No space left on device" in run.message
        assert look(guest, "ls -A /small | grep -v -e fill -e lost+found || :") == ""
        copied = ansible.adhoc("ansible.builtin.copy", {"src": str(big), "dest": "/small/x"}, rc=2)
        assert "No space left on device" in copied.message
    finally:
        look(guest, "rm -f /small/fill /small/x")
    directory = ansible.adhoc("qemu.guest.qga_fetch", {"src": "/etc", "dest": str(tmp_path) + "/"}, rc=2)
    assert "Is a directory" in directory.message
    absent = ansible.adhoc("ansible.builtin.fetch", {"src": "/nope", "dest": str(tmp_path), "flat": True}, rc=2)
    assert "No such file" in absent.message or "does not exist" in absent.message or "not found" in absent.message


def test_full_run(make_ansible: MakeAnsible, guest: Guest) -> None:
    """The runner and warm Python work there. Who fills it is told, and can still run what makes room again."""
    ansible = make_ansible(variables(guest, ansible_qga_timeout=30))
    try:
        for warm in (False, True):  # what runs the program that leaves no room: the runner, then an interpreter
            fill = "echo on; cat /dev/zero >/run/fill"
            run = ansible.adhoc("ansible.builtin.raw", fill, rc=None, variables={"ansible_qga_warm_python": warm})
            assert "No space left on device" in run.output or "did not fit in the guest's /run" in run.message
            assert run.seconds < 60
            # What that run had there is removed, which is room enough for another: taken by a program without files.
            again = {"path": "/bin/sh", "arg": ["-c", "cat /dev/zero >>/run/fill"]}
            ansible.adhoc("qemu.guest.qga_command", {"command": "guest-exec", "arguments": again})
            refused = ansible.adhoc(
                "ansible.builtin.raw", "true", rc=2, variables={"ansible_qga_exec_method": "runner"}
            )
            assert "The guest's /run is full; the runner there was given nothing to run" in refused.message
            ansible.adhoc("ansible.builtin.ping")  # what it brings is kept in /dev/shm
            ansible.adhoc("ansible.builtin.raw", "rm /run/fill")
            ansible.adhoc("ansible.builtin.ping")
    finally:
        # The console has no way without room there.
        ansible.adhoc("ansible.builtin.raw", "rm -f /run/fill", variables={"ansible_qga_exec_method": "guest-exec"})


@pytest.mark.parametrize("by", ["guest-exec", "udev"])
def test_program_that_is_killed_for_its_memory(make_ansible: MakeAnsible, guest: Guest, by: str) -> None:
    """systemd ends a service with a program of its own that the kernel ends so; a runner goes on."""
    runner = {"ansible_qga_exec_method": "runner", "ansible_qga_warm_python": False}
    ansible = make_ansible(variables(guest, **runner, ansible_qga_timeout=60))
    # The kernel chooses the program that says it should.
    victim = "sh -c 'echo 1000 >/proc/self/oom_score_adj; echo f >/proc/sysrq-trigger; exec sleep 600'"
    look(guest, "pkill -f [q]emu-guest-runner || :; echo 1 >/proc/sys/kernel/sysrq")
    with blocked(guest, "guest-exec") if by == "udev" else nullcontext():
        before = ansible.adhoc("ansible.builtin.raw", RUNNER)
        assert "rc=137" in ansible.adhoc("ansible.builtin.raw", victim, rc=2).output
        assert ansible.adhoc("ansible.builtin.raw", RUNNER).output == before.output


def test_program_that_will_not_end(make_ansible: MakeAnsible, guest: Guest) -> None:
    command = "trap '' TERM; sleep 1000 & while :; do sleep 1; done"
    run = make_ansible(variables(guest)).adhoc("qemu.guest.qga_exec", {"shell": command, "timeout": 2}, rc=2)
    assert "took more than 2 s. It was killed, with everything it had started." in run.message
    assert run.seconds < 60
    assert look(guest, "pgrep -f 'sleep 1000' || echo none") == "none\n"


@pytest.mark.whole
def test_machine_ends_in_the_middle(make_ansible: MakeAnsible, tmp_path: Path) -> None:
    with Guest("bookworm") as guest:
        ansible = make_ansible(variables(guest, ansible_qga_timeout=20))
        ansible.adhoc("ansible.builtin.wait_for_connection", "timeout=240 sleep=1")
        guest.wait_booted()
        ansible.adhoc("ansible.builtin.reboot", "reboot_timeout=240")
        guest.wait_booted()
        before = look(guest, "cat /proc/sys/kernel/random/boot_id")
        with ansible.start("ansible", "all", "-m", "ansible.builtin.raw", "-a", "touch /srv/on; sleep 500") as process:
            for _attempt in range(60):
                if look(guest, "ls /srv/on 2>/dev/null || :"):
                    break
            assert look(guest, "cat /proc/sys/kernel/random/boot_id") == before
            guest.stop()
            output = process.communicate(timeout=60)[0]
        assert process.returncode == 4
        assert "contact was lost while the program" in " ".join(output.split())
    shutil.rmtree(tmp_path, ignore_errors=True)
