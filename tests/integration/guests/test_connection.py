# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stock ansible configures guests that have no network; what it did is looked at through their serial consoles."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import run_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch, put
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.elsewhere import run_connection_tests, run_target
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, look
from ansible_collections.qemu.guest.tests.integration.ordinary import check_ordinary_play
from lab import demo
from lab.vm import Guest

Hosts = Mapping[str, Mapping[str, Any]]


def test_ordinary_play(guests: Mapping[str, Guest], tmp_path: Path) -> None:
    check_ordinary_play(tmp_path, guests, booted=True, more=False)
    for guest in guests.values():
        assert look(guest, "systemctl is-active qga-sleeper; systemctl is-enabled qga-sleeper") == "active\nenabled\n"


def test_demo(guests: Mapping[str, Guest], hosts: Hosts, make_ansible: MakeAnsible, tmp_path: Path) -> None:
    ansible = make_ansible(hosts)
    group = ansible.directory / "group.ini"
    group.write_text("\n".join(["[demo]", *guests]), encoding="utf-8")
    variables = {"report_to": f"{tmp_path}/{{{{ inventory_hostname }}}}"}
    for changes in (9, 0):
        run = ansible.playbook(demo.ROOT / demo.PLAYBOOK, "-i", str(group), variables=variables)
        assert {host: counts["changed"] for host, counts in run.recap.items()} == dict.fromkeys(guests, changes)
        for release, guest in guests.items():
            checks = demo.checks(tmp_path / release)
            assert [look(guest, check.command, check=False).strip() for check in checks] == [c.expected for c in checks]


def test_ansible_cores_own_tests_of_connections(hosts: Hosts, make_ansible: MakeAnsible) -> None:
    run_connection_tests(make_ansible(hosts))


@pytest.mark.whole  # without a guest, they are run with each agent
def test_ansible_cores_own_tests_of_raw(guest: Guest, make_ansible: MakeAnsible) -> None:
    run = run_target(make_ansible({"guest": guest_variables(guest)}), "raw")
    assert run.recap["guest"]["ok"] > 20


def test_no_trace_of_a_command(guests: Mapping[str, Guest], hosts: Hosts, make_ansible: MakeAnsible) -> None:
    secret = secrets.token_hex(16)
    playbook = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.shell": "printf %s $SECRET | sha256sum",
                "environment": {"SECRET": secret},
                "register": "arrived",
                "no_log": True,
            },
            {"ansible.builtin.assert": {"that": f"arrived.stdout.split()[0] == '{secret}' | hash('sha256')"}},
        ],
    }
    ansible = make_ansible(hosts)
    path = ansible.directory / "secret.yml"
    path.write_text(json.dumps([playbook]), encoding="utf-8")
    run = ansible.playbook(path, "-vvvvv")
    assert "EXEC" in run.output
    # The second task's condition is the only place where ansible itself prints it.
    assert not [line for line in run.output.splitlines() if secret in line and "hash('sha256')" not in line]
    # A pattern that does not match itself, since what is typed on the console is in a file too.
    pattern = f"{secret[:-1]}[{secret[-1]}]"
    for guest in guests.values():
        assert look(guest, f"journalctl --no-pager | grep -c '{pattern}' || :") == "0\n"
        assert look(guest, f"grep -rl '{pattern}' /var/log /run /tmp /root 2>/dev/null || :") == ""


def test_output_of_any_size_and_content(guests: Mapping[str, Guest]) -> None:
    for guest in guests.values():
        with open_agent(str(guest.agent_socket), 60) as agent:
            exact = run_shell(GuestExec(agent), b"cat; printf '\\377\\000e' >&2; exit 9", b"\x00\xff\n\r\n\xc3")
            assert (exact.rc, exact.stdout, exact.stderr) == (9, b"\x00\xff\n\r\n\xc3", b"\xff\x00e")
            killed = run_shell(GuestExec(agent), b"kill -9 $$", whole=False)
            assert (killed.rc, killed.signal) == (None, 9)
            two = run_shell(GuestExec(agent), b"head -c 2000000 /dev/zero; head -c 1500000 /dev/zero >&2")
            assert (two.stdout, two.stderr) == (bytes(2_000_000), bytes(1_500_000))
        assert look(guest, "ls -d /run/qemu-guest.* 2>/dev/null || :") == ""


def test_output_of_40_mb_and_files_of_50_mb(guest: Guest, tmp_path: Path) -> None:
    content = os.urandom(50_000_000)
    (tmp_path / "large").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with open_agent(str(guest.agent_socket), 60) as agent:
        with (tmp_path / "large").open("rb") as source:
            assert put(GuestExec(agent), source, "/var/tmp/large ä") == len(content)
        assert look(guest, "sha256sum <'/var/tmp/large ä'; stat -c %a /var/tmp/large*") == f"{digest}  -\n600\n"
        with (tmp_path / "back").open("w+b") as sink:
            assert fetch(GuestExec(agent), "/var/tmp/large ä", sink) == len(content)
        assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest
        output = run_shell(GuestExec(agent), b"head -c 40000000 '/var/tmp/large \xc3\xa4'; echo end >&2")
        assert output.stdout == content[:40_000_000]
        assert output.stderr == b"end\n"
    look(guest, "rm /var/tmp/large*")
