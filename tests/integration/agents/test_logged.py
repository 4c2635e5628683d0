# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent of each release writes to the guest's syslog of the commands that tasks take, and of a task."""

from __future__ import annotations

import json
import re
import secrets
import shlex
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import WAYS, Ansible, guest_variables, look
from lab.agent import LooseAgent

LOGGER = r"""
import os, socket
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
os.chmod("/dev/log", 0o666)
if os.fork():
    os._exit(0)
with open("/run/logged", "ab", buffering=0) as file:
    while True:
        line = log.recv(65536)
        file.write(line + b"\n")
        if line.endswith(b"the end"):
            break
os.unlink("/dev/log")
"""
END = "import syslog; syslog.syslog('the end')"
WRITTEN = "until [ ! -e /dev/log ]; do sleep 0.1; done; cat /run/logged; rm /run/logged"


@contextmanager
def syslog(agent: LooseAgent) -> Iterator[Callable[[], list[str]]]:
    """Be the guest's syslog; the function ends that, and returns the lines, without their time."""
    python = "exec /usr/bin/python3 -c"
    look(agent, f"{python} {shlex.quote(LOGGER)} </dev/null >/dev/null 2>&1")

    def lines() -> list[str]:
        look(agent, f"{python} {shlex.quote(END)}")
        *logged, _end = look(agent, WRITTEN).splitlines()
        return [re.sub(r"^<\d+>.*?\d\d:\d\d:\d\d ", "", line) for line in logged]

    yield lines


def test_arguments_and_paths_are_logged_and_nothing_else(agent: LooseAgent) -> None:
    look(agent, "useradd -m logged")  # root has keys that other tests need
    with syslog(agent) as lines:
        with open_agent(str(agent.agent_socket)) as client:
            client.execute("guest-ping")
            executor = GuestExec(client)
            pid = executor.start("/bin/sh", ["-c", "cat; echo $NAME"], env=["NAME=of-environment"], stdin=b"of-input")
            executor.finish(pid)
            with GuestFile(client, "/root/named", "w") as file:
                file.write(b"of-content")
            keys = {"username": "logged", "keys": [f"ssh-ed25519 {b64encode(b'of-key').decode()} of-comment"]}
            client.execute("guest-ssh-add-authorized-keys", keys)
            client.execute("guest-ssh-remove-authorized-keys", keys)
        logged = list(dict.fromkeys(lines()))  # who waits for a program asks more than once
    look(agent, "rm /root/named; userdel -r logged 2>/dev/null")
    (handle,) = (line.rpartition(" ")[2] for line in logged if line.startswith("qemu-ga: info: guest-file-open, "))
    assert logged == [
        "qemu-ga: info: guest-ping called",
        'qemu-ga: info: guest-exec called: "/bin/sh -c cat; echo $NAME"',
        f"qemu-ga: info: guest-exec-status called, pid: {pid}",
        "qemu-ga: info: guest-file-open called, filepath: /root/named, mode: w",
        f"qemu-ga: info: guest-file-open, handle: {handle}",
        f"qemu-ga: info: guest-file-close called, handle: {handle}",
    ]


@pytest.mark.parametrize("way", WAYS)
def test_of_a_task_only_its_module_logs(way: str, agent: LooseAgent, make_ansible: MakeAnsible) -> None:
    """Modules of ansible-core log their options by themselves, over any connection, and with no_log they do not."""
    secret = secrets.token_hex(12)
    ansible = make_ansible({"guest": {**guest_variables(agent), **WAYS[way]}})
    own: list[dict[str, Any]] = [
        {"ansible.builtin.raw": f"echo {secret}"},
        {"qemu.guest.qga_exec": {"shell": f"echo $A {secret}", "env": {"A": secret}, "stdin": secret}},
        {"qemu.guest.qga_file": {"path": f"/root/{secret}", "content": secret}},
    ]
    cores: list[dict[str, Any]] = [
        {"ansible.builtin.command": {"cmd": "cat", "stdin": secret}, "environment": {"A": secret}},
        {"ansible.builtin.copy": {"content": secret, "dest": f"/root/{secret}", "mode": "0600"}},
    ]
    with syslog(agent) as lines:
        run(ansible, [*own, *({**task, "no_log": True} for task in cores)])
        hidden = lines()
    assert look(agent, f"cat /root/{secret}; rm /root/{secret}") == secret
    assert not [line for line in hidden if secret in line]
    # What is logged of all programs is one line, whatever they are.
    programs = {line for line in hidden if "guest-exec called" in line}
    assert programs <= {'qemu-ga: info: guest-exec called: "/bin/sh -c eval "$QEMU_GUEST""'}
    assert programs if way == "guest-exec" else [line for line in hidden if "/run/qemu-guest-runner/" in line]
    with syslog(agent) as lines:
        run(ansible, cores)
        shown = [line for line in lines() if secret in line]
    look(agent, f"rm /root/{secret}")
    assert shown and all(line.startswith("ansible-") for line in shown)


def run(ansible: Ansible, tasks: list[dict[str, Any]]) -> None:
    path = ansible.directory / "play.json"
    path.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    ansible.playbook(path)
