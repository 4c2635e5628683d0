# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A key that a module authorizes lets in, by the word of the release's own sshd."""

from __future__ import annotations

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, look
from lab.agent import LooseAgent

# Without a network: an sshd for this one session, at the other end of a pipe.
LOG_IN = (
    "mkdir -p /run/sshd; ssh -n -i /root/qga-key -o BatchMode=yes -o StrictHostKeyChecking=no "
    "-o UserKnownHostsFile=/dev/null -o ProxyCommand='/usr/sbin/sshd -i' root@here id -un 2>/dev/null || echo no"
)


def test_key_lets_in(agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"vm": guest_variables(agent)})
    look(agent, "cd /root; cp -a .ssh kept; ssh-keygen -qt ed25519 -N '' -f qga-key")
    keys = {"user": "root", "keys": [look(agent, "cat /root/qga-key.pub")]}
    try:
        assert look(agent, LOG_IN) == "no\n"
        ansible.adhoc("qemu.guest.qga_authorized_keys", keys)
        assert look(agent, LOG_IN) == "root\n"
        ansible.adhoc("qemu.guest.qga_authorized_keys", {**keys, "state": "absent"})
        assert look(agent, LOG_IN) == "no\n"
        assert look(agent, "cd /root; cmp .ssh/authorized_keys kept/authorized_keys") == ""
    finally:
        look(agent, "cd /root; rm -rf .ssh qga-key*; mv kept .ssh")
