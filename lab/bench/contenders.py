# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to the guest that are compared, and how a playbook is run over one of them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import host, ssh
from lab.agent import LooseAgent
from lab.host import LabError
from lab.libvirt import Domain

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = Path(__file__).with_name("connection")
PYTHON = {"ansible_python_interpreter": "/usr/bin/python3"}
# Those that are named elsewhere.
QGA, LIBVIRT = "qga", "qga, libvirt"
LIBVIRT_QEMU, MITOGEN, SSH, NULL = "libvirt_qemu", "mitogen over ssh", "ssh", "null"
Task = dict[str, Any]
RESET: Task = {"ansible.builtin.meta": "reset_connection"}


@dataclass
class Contender:
    """A way to the guest, by host variables and environment, and what was measured over it, round by round, by title.

    ``slow``: it takes part in the first round only, with a shorter loop and without the tree.
    """

    name: str
    variables: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def ours(self) -> bool:
        """Whether it is a way of this collection's."""
        return self.name.startswith(QGA)


def null(directory: Path) -> Contender:
    """Return the null connection, with a directory for what stands for the guest's files; see connection/null.py."""
    return Contender(NULL, {**PYTHON, "ansible_connection": "null", "ansible_null_directory": str(directory)})


def qga(address: object) -> dict[str, Any]:
    """Return the host variables of this collection's connection to an agent's socket."""
    return {**PYTHON, "ansible_connection": "qemu.guest.qga", "ansible_qga_address": str(address)}


def contenders(subject: Domain | LooseAgent, scratch: Path) -> list[Contender]:
    """Return those that there are, this collection as it comes first."""
    usual = qga(subject.agent_socket)
    over_ssh = {**PYTHON, **ssh.variables(subject), "ansible_ssh_pipelining": True}
    emulated = isinstance(subject, Domain)
    found = [
        Contender(QGA, usual),
        Contender("qga, no warm Python", {**usual, "ansible_qga_warm_python": False}, slow=emulated),
        Contender("qga, guest-exec", {**usual, "ansible_qga_exec_method": "guest-exec"}, slow=emulated),
    ]
    if isinstance(subject, Domain):
        found += _through_libvirt(subject)
    strategies = _strategies()
    if strategies:
        mitogen = {"ANSIBLE_STRATEGY": "mitogen_linear", "ANSIBLE_STRATEGY_PLUGINS": str(strategies)}
        mitogen["ANSIBLE_HOST_KEY_CHECKING"] = "false"  # it overrides ssh's arguments
        # It takes the place of connections that it knows, by this name.
        found.append(Contender(MITOGEN, {**over_ssh, "ansible_connection": "ssh"}, mitogen))
    return [*found, Contender(SSH, over_ssh), null(scratch / "null")]


def _through_libvirt(domain: Domain) -> list[Contender]:
    """Return the ways to the agent whose channel libvirt has."""
    ours = {"ansible_qga_address": f"libvirt:{domain.name}", "ansible_qga_libvirt_uri": domain.daemon.uri}
    found = [Contender(LIBVIRT, {**PYTHON, "ansible_connection": "qemu.guest.qga", **ours})]
    if (_site() / "ansible_collections" / "community" / "libvirt").exists():
        libvirt_qemu = {
            **PYTHON,
            "ansible_connection": "community.libvirt.libvirt_qemu",
            "ansible_libvirt_uri": domain.daemon.uri,
            "ansible_host": domain.name,
        }
        found.append(Contender(LIBVIRT_QEMU, libvirt_qemu, slow=True))
    return found


def _site() -> Path:
    """Return where ansible-core is installed, and what comes with it. Nothing of it is imported here."""
    spec = importlib.util.find_spec("ansible")
    if spec is None or spec.origin is None:
        raise LabError("there is no ansible here: use tests/tools/with bench python -m lab.bench")
    return Path(spec.origin).parents[1]


def _strategies() -> Path | None:
    strategies = _site() / "ansible_mitogen" / "plugins" / "strategy"
    return strategies if strategies.exists() else None


def environment(scratch: Path, tree: Path = ROOT) -> dict[str, str]:
    """Return an environment with nothing of the user's settings of Ansible and Python in it.

    ``tree`` is the checkout whose collection is used.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    own = {"ANSIBLE_CONFIG": str(tree / "ansible.cfg"), "ANSIBLE_HOME": str(scratch / "ansible")}
    own["ANSIBLE_CONNECTION_PLUGINS"] = str(CONNECTIONS)
    return {**kept, **own, "ANSIBLE_LOCALHOST_WARNING": "false", "LC_ALL": "C.UTF-8"}


def seconds_of(
    scratch: Path,
    hosts: Mapping[str, Mapping[str, Any]],
    tasks: list[Task],
    extra: Mapping[str, str] | None = None,
    *,
    anew: bool = False,
    forks: int = 5,
) -> float:
    """Run tasks on ``hosts``; return the seconds they took, without Ansible's start.

    ``anew`` ends what others have left in the guest and here; otherwise there is a connection already.
    """
    return seconds_in(run(scratch, hosts, timed(tasks, anew=anew), extra, forks))


def timed(tasks: list[Task], *, anew: bool = False) -> list[Task]:
    """Return tasks that print what ``seconds_in`` reads; see ``seconds_of``."""
    before: Task = RESET if anew else {"ansible.builtin.raw": "true"}
    started = {"ansible.builtin.set_fact": {"started": "{{ lookup('pipe', 'date +%s.%N') }}"}, "run_once": True}
    ended = {"ansible.builtin.debug": {"msg": "ended={{ lookup('pipe', 'date +%s.%N') }} started={{ started }}"}}
    return [before, started, *tasks, {**ended, "run_once": True}]


def seconds_in(output: str) -> float:
    """Return the seconds that the tasks took, by what they printed."""
    match = re.search(r"ended=([0-9.]+) started=([0-9.]+)", output)
    if match is None:
        raise LabError(f"the playbook printed no time: {output}")
    return float(match.group(1)) - float(match.group(2))


def run(
    scratch: Path,
    hosts: Mapping[str, Mapping[str, Any]],
    tasks: list[Task],
    extra: Mapping[str, str] | None = None,
    forks: int = 5,
) -> str:
    """Run tasks on ``hosts`` and return what ansible-playbook printed."""
    inventory, playbook = scratch / "inventory.json", scratch / "playbook.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    argv = ["ansible-playbook", "-i", str(inventory), "--forks", str(forks), str(playbook)]
    return host.output(
        argv, f"a playbook failed over {', '.join(hosts)}", ROOT, {**environment(scratch), **(extra or {})}
    )
