# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys on booted guests, and what is to be seen of passwords there. test_targets.py runs the target of passwords."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import PLACES, look, run_target
from lab.vm import Guest


def test_authorized_keys(guests: Mapping[str, Guest], make_ansible: MakeAnsible) -> None:
    run_target(make_ansible, "qga_authorized_keys", "guest", guests)


@pytest.mark.parametrize("place", PLACES)
def test_no_trace_of_a_password(place: str, guests: Mapping[str, Guest], make_ansible: MakeAnsible) -> None:
    secret = secrets.token_hex(12)
    hosts = {name: {**PLACES[place](guest), "secret": secret} for name, guest in guests.items()}
    task = {"name": "Set it", "ignore_errors": True, "diff": True}
    playbook = {
        "hosts": "all",
        "gather_facts": False,
        "module_defaults": {"group/qemu.guest.qga": {"address": "{{ qga_address | default(omit) }}"}},
        "tasks": [
            {**task, "qemu.guest.qga_user_password": {"password": "{{ secret }}", **options}}
            for options in ({"user": "daemon"}, {"user": "no-such-user"}, {"user": "daemon", "crypted": True})
        ],
    }
    ansible = make_ansible(hosts)
    path = ansible.directory / "secret.yml"
    path.write_text(json.dumps([playbook]), encoding="utf-8")
    try:
        run = ansible.playbook(path, "-vvvvv")
        assert {counts["ignored"] for counts in run.recap.values()} == {2}
        hidden = (secret, base64.b64encode(secret.encode()).decode())
        assert not [line for line in run.output.splitlines() for text in hidden if text in line]
        for guest in guests.values():
            assert look(guest, "getent shadow daemon | cut -d: -f2").startswith("$")
            for text in hidden:
                # A pattern that does not match itself, since what is typed on the console is in a file too.
                pattern = f"{text[:-1]}[{text[-1]}]"
                assert look(guest, f"journalctl --no-pager | grep -c '{pattern}' || :") == "0\n"
                assert look(guest, f"grep -rl '{pattern}' /var/log /run /tmp /root 2>/dev/null || :") == ""
    finally:
        for guest in guests.values():
            look(guest, "usermod -p '*' daemon")
