# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands as people type them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from ansible.release import __version__

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, hypervisor_variables
from lab import image
from lab.agent import LooseAgent

CORE = tuple(int(number) for number in __version__.split(".")[:2])


@pytest.mark.parametrize("name", ["qga_info", "qemu.guest.qga_info"])
def test_guest(name: str, agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    run = make_ansible({release: guest_variables(agent) for release, agent in agents.items()}).adhoc(name)
    for release in agents:
        assert f"{release} | SUCCESS" in run.output
        assert f'"version": "{image.build(release).agent_version}"' in run.output
    assert "Traceback" not in run.output
    assert "[WARNING]" not in run.output


@pytest.mark.parametrize("form", ["{}", "unix:{}"])
def test_hypervisor(form: str, agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    agent = agents["bookworm"]
    ansible = make_ansible({"hypervisor": hypervisor_variables(agent)})
    run = ansible.adhoc("qga_ping", {"address": form.format(agent.agent_socket)})
    assert "hypervisor | SUCCESS" in run.output
    assert '"ping": "pong"' in run.output


def test_address_is_needed_where_the_connection_is_another(
    agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible
) -> None:
    run = make_ansible({"hypervisor": hypervisor_variables(agents["sid"])}).adhoc("qga_ping", rc=2)
    assert "qga_ping needs an address" in run.message
    assert "Traceback" not in run.output


def test_host_is_an_address(agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    agent = agents["sid"]
    variables = {**guest_variables(agent), "ansible_host": f"unix:{agent.agent_socket}"}
    del variables["ansible_qga_address"]
    assert "pong" in make_ansible({"sid": variables}).adhoc("ansible.builtin.ping").output


def test_check_mode_and_facts(agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    ansible = make_ansible({"sid": guest_variables(agents["sid"])})
    run = ansible.adhoc("ansible.builtin.setup", "filter=ansible_distribution*", "--check")
    assert '"ansible_distribution": "Debian"' in run.output


@pytest.mark.skipif(CORE < (2, 19), reason="ansible-core before 2.19 takes that for its own actions only")
def test_command_without_an_option(agents: Mapping[str, LooseAgent], make_ansible: MakeAnsible) -> None:
    agent = agents["sid"]
    guest, hypervisor = {"vm": guest_variables(agent)}, {"hypervisor": hypervisor_variables(agent)}
    for hosts, where in ((guest, ""), (hypervisor, f" address={agent.agent_socket}")):
        run = make_ansible(hosts).adhoc("qga_exec", f"echo 'a  b' $HOME{where}")
        assert '"stdout": "a  b $HOME"' in run.output
        assert '"stdout_lines"' in run.output
