# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warm Python with several users of the guest: nothing of one is another's, and none stays for long."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, Run, guest_variables, look, until
from lab.agent import LooseAgent

USER = "qgaone"
SITE = f"su {USER} -c 'python3 -m site --user-site'"
# What a user may have each Python of theirs do: damage whatever it has, or can open, that can be written.
HOSTILE = """
import glob, os, stat, threading, time

def damage():
    end = time.monotonic() + 5
    while time.monotonic() < end:
        for path in glob.glob("/proc/[0-9]*/fd/*"):
            try:
                number = int(path.rpartition("/")[2])
                if not stat.S_ISREG(os.stat(path).st_mode):
                    continue
                if os.path.samefile(os.path.dirname(path), "/proc/self/fd"):
                    os.pwrite(number, b"rewritten by a user", 0)
                else:
                    with open(path, "r+b") as file:
                        file.write(b"rewritten by a user")
            except OSError:
                pass
        time.sleep(0.001)

threading.Thread(target=damage, daemon=True).start()
open("/tmp/hostile", "a").write("x")
"""
# Prints each regular file that a process of one user has open for writing, and one of another at all.
SHARED = r"""
import collections, glob, os, stat
users, writers = collections.defaultdict(set), collections.defaultdict(set)
for directory in glob.glob("/proc/[0-9]*"):
    for path in glob.glob(directory + "/fd/*"):
        try:
            status, owner = os.stat(path), os.stat(directory).st_uid
            flags = int(open(path.replace("/fd/", "/fdinfo/")).read().split("flags:")[1].split()[0], 8)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            file = status.st_dev, status.st_ino, os.readlink(path)
            users[file].add(owner)
            if flags & os.O_ACCMODE:
                writers[file].add(owner)
for file, who in writers.items():
    for owner in who:
        if users[file] - {owner}:
            print(file, owner, users[file])
"""


@pytest.fixture
def user(agent: LooseAgent) -> Iterator[str]:
    look(agent, f"userdel -rf {USER} 2>/dev/null; rm -f /tmp/hostile; useradd -m -s /bin/sh {USER}")
    yield USER
    look(agent, f"pkill -KILL -u {USER}; userdel -rf {USER} 2>/dev/null; rm -f /tmp/hostile /etc/sudoers.d/qga")
    look(agent, "chmod 700 /root")


@pytest.fixture
def ansible(agent: LooseAgent, make_ansible: MakeAnsible) -> Ansible:
    return make_ansible({"vm": guest_variables(agent)})


def play(ansible: Ansible, *tasks: dict[str, Any], rc: int | None = 0) -> Run:
    playbook = ansible.directory / "play.json"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    return ansible.playbook(playbook, "-v", rc=rc)


def as_user(task: dict[str, Any]) -> dict[str, Any]:
    return {**task, "become": True, "become_user": USER}


WHO = {"ansible.builtin.command": "id -un"}


def test_user_who_writes_to_what_there_is_reaches_nobody_else(agent: LooseAgent, ansible: Ansible, user: str) -> None:
    write = f'd=$({SITE}); mkdir -p "$d"; cat >"$d/usercustomize.py" <<\'END\'\n{HOSTILE}\nEND\n'
    look(agent, f"{write}chown -R {user} /home/{user}")
    modules = ({"ansible.builtin.getent": {"database": "passwd"}}, {"ansible.builtin.stat": {"path": "/etc/passwd"}})
    # What each brings is brought for the user's interpreter, and used for root's.
    run = play(ansible, WHO, as_user(WHO), WHO, as_user(WHO), *(task for m in modules for task in (as_user(m), m)))
    assert run.recap["vm"]["ok"] == 8
    assert [line for line in run.output.splitlines() if "rewritten" in line] == []
    assert run.output.count('"stdout": "root"') == 2
    assert run.output.count(f'"stdout": "{user}"') == 2
    assert look(agent, "cat /tmp/hostile").endswith("x"), "it has tried"  # and may have rewritten that, too


def test_no_file_is_open_for_one_user_and_writable_for_another(agent: LooseAgent, ansible: Ansible, user: str) -> None:
    play(ansible, WHO, as_user(WHO), {"ansible.builtin.getent": {"database": "passwd"}}, as_user(WHO))
    assert look(agent, f"ps -o args -u {user} 2>/dev/null || grep -l python3 /proc/*/cmdline") != ""
    assert look(agent, f"python3 -c {shlex.quote(SHARED)}") == ""


def test_nothing_listens_to_the_network(agent: LooseAgent, ansible: Ansible, user: str) -> None:
    """What stays is there, and has no socket that a network reaches."""
    play(ansible, WHO, as_user(WHO))
    assert look(agent, "ls /run/qemu-guest-runner").split()
    assert look(agent, "cd /proc/net && tail -qn +2 tcp tcp6 udp udp6 raw raw6") == ""


@pytest.mark.parametrize("mode", ["700", "711"])
def test_interpreter_of_a_user_does_not_stay(agent: LooseAgent, ansible: Ansible, user: str, mode: str) -> None:
    """Who comes by another way can remove that user some seconds after a play, as after one over ssh.

    Whether or not the user may enter root's home, where all begin.
    """
    look(agent, f"chmod {mode} /root")
    play(ansible, WHO, as_user(WHO), as_user(WHO))
    began = time.monotonic()
    until(lambda: look(agent, f"pgrep -u {user} || :") == "", 20, "the end of the user's interpreter")
    assert time.monotonic() - began < 15
    look(agent, f"userdel {user}")
    assert play(ansible, WHO).output.count('"stdout": "root"') == 1


def test_user_who_stops_an_interpreter_keeps_nobody(agent: LooseAgent, ansible: Ansible, user: str) -> None:
    """Not even tasks as that user, nor in the background. None of them is run twice, also if it goes on.

    Nor does it leave behind what root became the user with: sudo stops itself when what it runs is stopped.
    """
    play(ansible, WHO, as_user(WHO), as_user(WHO))
    count = {"ansible.builtin.shell": "echo x >>~/count; id -un"}
    look(agent, f"pkill -STOP -u {user}; pgrep -u {user}")
    began = time.monotonic()
    run = play(ansible, as_user(count), as_user({**count, "async": 60, "poll": 1}), WHO)
    assert time.monotonic() - began < 60
    assert run.recap["vm"]["ok"] == 3
    look(agent, f"pkill -CONT -u {user} || :")
    assert look(agent, f"sleep 1; cat ~{user}/count") == "x\nx\n"
    until(lambda: look(agent, f"pgrep -f '^sudo .* {user} ' || :") == "", 20, "sudo has ended")


HELD = "for p in /proc/[0-9]*; do readlink $p/cwd $p/exe $p/fd/*; cat $p/maps; done 2>/dev/null | grep -F {} || :"
END = "pkill -9 -f '^/[a-z/]*/python3 -S' || :"
PLACE = "/srv/place"


@pytest.fixture
def place(agent: LooseAgent, user: str) -> Iterator[str]:
    """A filesystem of its own, where an interpreter is, and a user at home."""
    look(agent, f"mkdir {PLACE} && mount -t tmpfs -o mode=755 place {PLACE}")
    look(agent, f"cp $(readlink -f /usr/bin/python3) {PLACE}/python3")
    # An earlier user had the same number, and interpreters take some seconds to end: usermod refuses until then.
    until(lambda: agent.run(f"usermod -d {PLACE} {user}", check=False)[0] == 0, 20, "nobody has the user's number")
    look(agent, f"chown {user} {PLACE}")
    yield PLACE
    look(agent, f"umount -l {PLACE}; rmdir {PLACE}")


def test_place_that_tasks_worked_in_is_not_kept(agent: LooseAgent, ansible: Ansible, place: str) -> None:
    """So that a task after them can unmount it."""
    there = {"args": {"chdir": place}}
    facts = {"ansible.builtin.setup": {"gather_subset": "!all"}}
    tasks: list[dict[str, Any]] = [{**WHO, **there}, {"ansible.builtin.shell": "pwd", **there}, facts]
    held = {"ansible.builtin.shell": HELD.format(place), "register": "held", "failed_when": "held.stdout != ''"}
    assert play(ansible, *tasks, *tasks, held).recap["vm"]["ok"] == 7


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_place_of_what_stays_is_let_go(agent: LooseAgent, ansible: Ansible, place: str, first: bool) -> None:
    """Of the interpreter itself, which may have started the server, or of the home of a user to whom a task becomes."""
    own = {**WHO, "vars": {"ansible_python_interpreter": f"{place}/python3"}}
    look(agent, END)
    tasks = [own, own, as_user(WHO), as_user(WHO)]
    assert play(ansible, *tasks if first else [WHO, *tasks, WHO]).recap["vm"]["ok"] == (4 if first else 6)
    until(lambda: agent.run(f"umount {place}", check=False)[0] == 0, 20, "nobody holds it")
    assert play(ansible, WHO, WHO).recap["vm"]["ok"] == 2


def test_home_of_root_is_let_go(agent: LooseAgent, ansible: Ansible) -> None:
    """By who waits for work, and by the shell that waits for the server: both stay, and it may be a filesystem."""
    look(agent, END)
    # By its command line, an interpreter with an environment is started by a shell of its own.
    apart = {**WHO, "environment": {"A": "b"}}
    assert '"stdout": "/root\\n"' in play(ansible, WHO, WHO, apart, WHO, {"ansible.builtin.raw": "pwd"}).output
    assert look(agent, "pgrep -f 'python3 -S'"), "they are there"
    until(lambda: look(agent, HELD.format("/root")) == "", 10, "nobody is there")


def test_rule_that_is_changed_in_its_place_is_seen(agent: LooseAgent, ansible: Ansible, user: str) -> None:
    """The directory of sudo's rules is the same then."""
    rule = "Defaults:root umask=00{}7, umask_override\\n"
    look(agent, f"printf '{rule.format(2)}' >/etc/sudoers.d/qga; chmod 440 /etc/sudoers.d/qga")
    show = as_user({"ansible.builtin.shell": "umask"})
    change = {"ansible.builtin.shell": f"printf '{rule.format(5)}' >/etc/sudoers.d/qga"}
    run = play(ansible, show, show, change, show)
    assert run.output.count('"stdout": "0027"') == 2
    assert run.output.count('"stdout": "0057"') == 1


def test_interpreter_that_is_missing_for_one_task(agent: LooseAgent, ansible: Ansible) -> None:
    """It turns warm Python off for no other."""
    parent = {"ansible.builtin.shell": "cut -d ' ' -f 4 /proc/$PPID/stat", "register": "{}"}
    missing = {
        "ansible.builtin.command": "true",
        "vars": {"ansible_python_interpreter": "/usr/bin/python3.99"},
        "ignore_errors": True,
    }
    first, second = ({**parent, "register": name} for name in ("first", "second"))
    same = {"ansible.builtin.assert": {"that": ["first.stdout == second.stdout"]}}
    look(agent, "rm -f /run/qemu-guest-runner/warm-*.parts")
    assert play(ansible, *[missing] * 3, first, missing, second, same).recap["vm"]["failed"] == 0
    until(lambda: not look(agent, "ls /run/qemu-guest-runner/warm-*.parts 2>/dev/null || :"), 10, "nothing is left")
