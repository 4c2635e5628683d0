# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role guest_prep, over the agent whose configuration it changes; what it did is looked at through the console."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.examples import paste
from ansible_collections.qemu.guest.tests.integration.guests.conftest import RELEASES
from ansible_collections.qemu.guest.tests.integration.harness import ROOT, Ansible, Run, guest_variables, look, until
from lab.vm import Guest

PLAYBOOK = ROOT / "playbooks" / "prepare_guest.yml"
CONFIG = "/etc/qemu/qemu-ga.conf"
UNIT = "qemu-guest-runner.service"
EXEC = "guest-exec,guest-exec-status"
FILES = ",".join(f"guest-file-{name}" for name in ("open", "close", "read", "write", "seek", "flush"))
MORE = "guest-sync-delimited,guest-sync,guest-ping,guest-info"

# By release: what blocks guest-exec, and what the role makes of it.
BLOCKING = {
    "bullseye": (f"blacklist=guest-set-time,{EXEC}", "blacklist=guest-set-time"),
    "sid": (f"allow-rpcs = {MORE},{FILES}", f"allow-rpcs = {MORE},{FILES},{EXEC}"),
}
TEXT = "# Whatever was there, blanks and all\n\n[general]\nverbose = false  \n{line}\n# no newline at the end"
# What there is of the role's in a guest.
LEFT = f"ls -d {CONFIG}?* /usr/local/lib/qemu-guest /etc/systemd/system/{UNIT} 2>/dev/null"
SPOOL = "/run/qemu-guest-runner/1"


@pytest.fixture(params=[release for release in BLOCKING if release in RELEASES])
def guest(request: pytest.FixtureRequest, guests: Mapping[str, Guest]) -> Iterator[Guest]:
    """A guest whose agent blocks guest-exec."""
    guest: Guest = guests[request.param]
    write(guest, original(guest))
    look(guest, f"chmod 640 {CONFIG}; chgrp daemon {CONFIG}; {END_RUNNER}; systemctl restart qemu-guest-agent")
    yield guest
    look(guest, f"systemctl stop {UNIT}; rm -rf $({LEFT}); rm -f {CONFIG}; systemctl daemon-reload", check=False)
    look(guest, "systemctl restart qemu-guest-agent")


# Without one of an earlier test's, the role has to begin with none.
END_RUNNER = f"! read -r pid <{SPOOL}/pid || kill $pid"


def original(guest: Guest) -> str:
    return TEXT.format(line=BLOCKING[guest.release][0])


def write(guest: Guest, text: str) -> None:
    look(guest, f"mkdir -p /etc/qemu; cat >{CONFIG} <<'END'\n{text}\nEND\ntruncate -s -1 {CONFIG}")


def state(guest: Guest) -> str:
    return look(guest, f"cat {CONFIG}; stat -c '|%a %U:%G' {CONFIG}; {LEFT}", check=False)


def prepare(ansible: Ansible, *arguments: str, **more: Any) -> Run:
    run = ansible.playbook(PLAYBOOK, *arguments, **more)
    print(f"{run.seconds:.0f} s, {run.recap}", flush=True)
    return run


def by_guest_exec(ansible: Ansible, rc: int = 0) -> None:
    """Run something without any runner."""
    ansible.adhoc("ansible.builtin.raw", "true", rc=rc, variables={"ansible_qga_exec_method": "guest-exec"})


def take_back(guest: Guest, ansible: Ansible, before: str) -> None:
    """All of it is taken back, by the runner that goes with it."""
    assert prepare(ansible, "--check", variables={"guest_prep_state": "absent"}).recap["vm"]["changed"] >= 4
    prepare(ansible, variables={"guest_prep_state": "absent"})
    assert state(guest) == before
    assert look(guest, f"systemctl show -p ActiveState {UNIT}") == "ActiveState=inactive\n"
    assert look(guest, f"systemctl show -p LoadState {UNIT}") == "LoadState=not-found\n"
    by_guest_exec(ansible, rc=2)
    assert prepare(ansible, variables={"guest_prep_state": "absent"}).recap["vm"]["changed"] == 0


def test_guest_prep(guest: Guest, make_ansible: MakeAnsible) -> None:
    opened = TEXT.format(line=BLOCKING[guest.release][1])
    ansible = make_ansible({"vm": guest_variables(guest)})
    by_guest_exec(ansible, rc=2)
    before = state(guest)
    assert before == f"{original(guest)}|640 root:daemon\n"

    # Check mode tells what would be done, and does nothing.
    checked = prepare(ansible, "--check", "--diff")
    assert checked.recap["vm"]["changed"] >= 5
    assert f"+{BLOCKING[guest.release][1]}" in checked.output
    assert state(guest) == before
    assert look(guest, f"systemctl is-enabled {UNIT} 2>&1", check=False) != "enabled\n"

    # The runner that runs the role hands over to the one that it installs.
    old = _runner(guest)
    prepare(ansible)
    new = until(lambda: _runner(guest, besides=old), 20, "no other runner")
    assert look(guest, f"systemctl show -p MainPID {UNIT}") == f"MainPID={new}\n"
    assert look(guest, f"systemctl is-enabled {UNIT}") == "enabled\n"
    assert look(guest, f"cat {CONFIG}; stat -c '|%a %U:%G' {CONFIG}") == f"{opened}|640 root:daemon\n"
    assert look(guest, "cd /etc/qemu; cat *.before-*; stat -c '|%a' *.before-*") == f"{original(guest)}|640\n"
    assert look(guest, "cd /usr/local/lib/qemu-guest; stat -c '%a %U %n' . *") == "755 root .\n755 root runner.sh\n"
    by_guest_exec(ansible)

    # Once more changes nothing, and the runner stays. The play of the role's README is the same.
    readme = (ROOT / "roles" / "guest_prep" / "README.md").read_text(encoding="utf-8")
    (play,) = re.findall(r"^```yaml\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    again = paste(ansible, play, {"hosts: guests": "hosts: all"})
    assert again.recap["vm"]["changed"] == 0
    assert _runner(guest) == new

    # Another program is installed without a pause: this runner hands over to one on demand, and that to the new one.
    look(guest, "echo '# older' >>/usr/local/lib/qemu-guest/runner.sh")
    assert prepare(ansible).recap["vm"]["changed"] == 3
    newer = until(lambda: _runner(guest, besides=new), 20, "no other runner")
    assert look(guest, f"systemctl show -p MainPID {UNIT}") == f"MainPID={newer}\n"

    take_back(guest, ansible, before)


def test_somebodys_change_is_kept(guest: Guest, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"vm": guest_variables(guest)})
    only = {"guest_prep_runner": False}
    prepare(ansible, variables=only)
    look(guest, f"echo '# mine' >>{CONFIG}")
    prepare(ansible, variables={**only, "guest_prep_state": "absent"})
    assert look(guest, f"cat {CONFIG}") == original(guest)
    assert look(guest, f"tail -n 1 {CONFIG}.*~").endswith("# mine\n")
    look(guest, f"rm {CONFIG}.*~")


def test_what_stays_blocked_is_told(guest: Guest, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"vm": guest_variables(guest)})
    variables = {"guest_prep_config_files": [], "guest_prep_runner": False}
    run = prepare(ansible, rc=2, variables=variables)
    assert "guest-exec was not run: disabled by the guest's administrator" in run.message


def test_only_the_installed_runner(guest: Guest, make_ansible: MakeAnsible) -> None:
    """After a boot, with guest-exec blocked and no other way to start a runner, there is the installed one."""
    hosts = {"vm": {**guest_variables(guest), "ansible_qga_timeout": 60}}
    prepare(make_ansible(hosts), variables={"guest_prep_config_files": [], "guest_prep_rpcs": []})
    ansible = make_ansible({"vm": {**hosts["vm"], "ansible_qga_bootstrap": []}})
    boot = look(guest, "cat /proc/sys/kernel/random/boot_id")
    ansible.adhoc("ansible.builtin.reboot", "reboot_timeout=240")
    guest.wait_booted()
    assert look(guest, "cat /proc/sys/kernel/random/boot_id") != boot
    run = ansible.adhoc("ansible.builtin.command", "cat /proc/1/comm")
    assert "systemd" in run.output
    pid = _runner(guest)
    assert look(guest, f"systemctl show -p MainPID {UNIT}") == f"MainPID={pid}\n"
    # It uses no time when there is nothing to do, and comes back when something has ended it.
    used = look(guest, f"cut -d' ' -f14-17 /proc/{pid}/stat")
    time.sleep(2)
    assert look(guest, f"cut -d' ' -f14-17 /proc/{pid}/stat") == used
    look(guest, f"kill -KILL {pid}")
    until(lambda: _runner(guest, besides=pid), 30, "it does not come back")
    ansible.adhoc("ansible.builtin.raw", "true")


def _runner(guest: Guest, besides: str = "") -> str:
    """Return the process number of the guest's runner; nothing if there is none `besides` that one."""
    pid = look(guest, f"cat {SPOOL}/pid 2>/dev/null", check=False).strip()
    return "" if pid == besides else pid
