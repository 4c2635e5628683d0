# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the role guest_prep needs no booted guest: SELinux, played by scripts, and a guest without systemd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import ROOT, guest_variables, look
from lab.agent import LooseAgent

PLAYBOOK = ROOT / "playbooks" / "prepare_guest.yml"
SELINUX = """
cat >/usr/local/bin/getsebool <<'END'
#!/bin/sh
[ "$1" = virt_qemu_ga_run_unconfined ] || exit 1
echo "$1 --> $(cat /srv/boolean)"
END
cat >/usr/local/bin/setsebool <<'END'
#!/bin/sh
[ "$1 $2" = '-P virt_qemu_ga_run_unconfined' ] && echo "$3" >/srv/boolean
END
mkdir -p /etc/selinux
chmod +x /usr/local/bin/?etsebool
echo off >/srv/boolean
"""
SAVED = "/etc/selinux/virt_qemu_ga_run_unconfined.before-guest-prep"


@pytest.fixture
def selinux(agent: LooseAgent) -> Iterator[LooseAgent]:
    look(agent, SELINUX)
    yield agent
    look(agent, f"rm -f /usr/local/bin/?etsebool /srv/boolean {SAVED}")


def boolean(agent: LooseAgent) -> str:
    return look(agent, f"cat /srv/boolean; ls {SAVED} 2>/dev/null || :")


# What is there of SELinux is made here, and the same in each release.
@pytest.mark.parametrize("release", ["bookworm"], indirect=True)
def test_selinux(selinux: LooseAgent, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"guest": guest_variables(selinux)})

    def changes(state: str, *arguments: str) -> int:
        variables = {"guest_prep_runner": False, "guest_prep_state": state}
        return ansible.playbook(PLAYBOOK, *arguments, variables=variables).recap["guest"]["changed"]

    assert changes("present", "--check") == 1
    assert boolean(selinux) == "off\n"
    assert changes("present") == 2
    assert boolean(selinux) == f"on\n{SAVED}\n"
    assert changes("present") == 0
    assert changes("absent", "--check") == 1
    assert boolean(selinux) == f"on\n{SAVED}\n"
    assert changes("absent") == 2
    assert boolean(selinux) == "off\n"
    assert changes("absent") == 0
    # What was on before stays on.
    look(selinux, "echo on >/srv/boolean")
    assert changes("present") == 0
    assert changes("absent") == 0
    assert boolean(selinux) == "on\n"


def test_no_systemd(agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    run = make_ansible({"guest": guest_variables(agent)}).playbook(PLAYBOOK, rc=2)
    assert run.recap["guest"]["changed"] == 0
    assert "guest_prep_runner installs a systemd unit, and systemd does not run here." in run.message
    assert "/usr/local/lib/qemu-guest/runner.sh /run/qemu-guest-runner/1 0 over" in run.message
