# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin with the agents of all releases: an ordinary play, and what a play cannot see."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader

from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import HERE, guest_variables, look, witness
from lab.agent import LooseAgent

MEGABYTE = 1_000_000


def test_ordinary_play(agents: dict[str, LooseAgent], make_ansible: MakeAnsible, tmp_path: Path) -> None:
    content = os.urandom(2_500_001)
    (tmp_path / "large").write_bytes(content)
    ansible = make_ansible({release: guest_variables(agent.socket, witness(agent)) for release, agent in agents.items()})
    variables = {
        "target": "connection_qga",
        "scratch": str(tmp_path),
        "large_sha1": hashlib.sha1(content).hexdigest(),
    }
    first = ansible.playbook(HERE / "targets.yml", variables=variables)
    assert all(counts["changed"] > 10 for counts in first.recap.values()), first.output
    for release, agent in agents.items():
        seen = look(
            agent,
            """
            cd /srv/qga
            sha256sum large | cut -c1-64
            stat -c '%a %U:%G %s %n' large empty about '../qga dir é' "../qga dir é/copied 'text'.txt" ~qgauser/mine
            cat about lines once theirs "../qga dir é/copied 'text'.txt" ~qgauser/mine
            readlink link
            id -nG qgauser
            ls -A /tmp /root/.ansible/tmp ~qgauser/.ansible/tmp 2>/dev/null; ls -d /run/*qemu* 2>/dev/null
            """,
            check=False,
        ).splitlines()
        about = [f"This is {release}, configured without a network.", "0: ü", "1: ü", "2: ü"]
        assert seen == [
            hashlib.sha256(content).hexdigest(),
            "600 root:root 2500001 large",
            "644 root:root 0 empty",
            f"644 root:root {len(os.linesep.join(about).encode()) + 1} about",
            "750 qgauser:root 4096 ../qga dir é",
            "640 qgauser:qgagroup 17 ../qga dir é/copied 'text'.txt",
            "600 qgauser:qgauser 5 /home/qgauser/mine",
            *about,
            "setting=ä",
            *["/root", "a b", "ü"],
            *about,
            *["line one", "zwei ü"],
            "mine",
            "about",
            "qgauser qgagroup",
            # Nothing is left of what carried it there.
            "/root/.ansible/tmp:",
            "/tmp:",
        ]
        for name in ("large", "empty", "copied 'text'.txt"):
            assert (tmp_path / "fetched" / release / name).exists()
        assert (tmp_path / "fetched" / release / "large").read_bytes() == content
    second = ansible.playbook(HERE / "targets.yml", variables=variables)
    assert {counts["changed"] for counts in second.recap.values()} == {0}, second.output


@pytest.fixture
def connection(agent: LooseAgent) -> Iterator[Any]:
    """The plugin itself, as ansible-core would call it."""
    connection = connection_loader.get("qemu.guest.qga", PlayContext(), os.devnull)
    connection.set_options(direct={"address": str(agent.socket), "timeout": 20})
    yield connection
    connection.close()


def test_output_is_exact(connection: Any) -> None:
    everything = bytes(range(256)) * 3 + b"\n\n\0"
    assert connection.exec_command("cat", in_data=everything) == (0, everything, b"")
    assert connection.exec_command("cat >&2", in_data=everything) == (0, b"", everything)
    assert connection.exec_command("printf 'no newline'; printf '\\377' >&2") == (0, b"no newline", b"\xff")
    assert connection.exec_command("printf %s 'ü \udcff'")[1] == b"\xc3\xbc \xff"


def test_exit_status_is_exact(connection: Any) -> None:
    assert [connection.exec_command(f"exit {n}")[0] for n in (0, 1, 2, 126, 127, 128, 255)] == [
        *(0, 1, 2, 126, 127, 128, 255)
    ]
    assert connection.exec_command("kill -KILL $$")[0] == 128 + 9
    assert connection.exec_command("/no/such/program")[0] == 127
    assert connection.exec_command("/etc/passwd")[0] == 126
    assert connection.exec_command("if")[0] == 2


@pytest.mark.parametrize("stream", [1, 2])
def test_large_output_is_whole(connection: Any, agent: LooseAgent, stream: int) -> None:
    # A program whose output is 40 MB and different everywhere, and its checksum by another path.
    program = "seq 6000000 | head -c 40000000"
    rc, *streams = connection.exec_command(f"({program}) >&{stream}; echo end >&{3 - stream}; exit 3")
    assert rc == 3
    assert len(streams[stream - 1]) == 40 * MEGABYTE
    assert hashlib.sha256(streams[stream - 1]).hexdigest() == look(agent, f"{program} | sha256sum").split()[0]
    assert streams[2 - stream] == b"end\n"
    assert look(agent, "ls /run | grep qemu || :") == ""


def test_large_input_arrives(connection: Any) -> None:
    data = os.urandom(5 * MEGABYTE)
    rc, out, _err = connection.exec_command("sha256sum", in_data=data)
    assert (rc, out.split()[0]) == (0, hashlib.sha256(data).hexdigest().encode())


def test_programs_in_the_background_do_not_hold_a_command_up(connection: Any, agent: LooseAgent) -> None:
    started = time.monotonic()
    rc, out, _err = connection.exec_command("sleep 300 >/dev/null 2>&1 & echo $!")
    assert rc == 0
    assert time.monotonic() - started < 20
    assert look(agent, f"cat /proc/{int(out)}/comm") == "sleep\n", "it goes on"
    connection.exec_command(f"kill {int(out)}")


def test_environment_is_that_of_a_login(connection: Any, agent: LooseAgent) -> None:
    look(agent, "printf 'FROM_FILE=\"ü b\"\\n# no\\nLANG=C.UTF-8\\n' >>/etc/environment")
    out = connection.exec_command("env; pwd; umask; tty")[1].decode()
    look(agent, ": >/etc/environment")
    lines = out.splitlines()
    for line in ("HOME=/root", "USER=root", "LOGNAME=root", "LANG=C.UTF-8", "FROM_FILE=ü b"):
        assert line in lines
    assert lines[-3:] == ["/root", "0022", "not a tty"]
    assert not [line for line in lines if "QEMU" in line], "nothing of ours is in it"


@pytest.mark.parametrize("size", [0, 1, MEGABYTE, 50 * MEGABYTE])
def test_put_and_fetch(connection: Any, agent: LooseAgent, tmp_path: Path, size: int) -> None:
    source, back = tmp_path / "source é", tmp_path / "back"
    content = os.urandom(size)
    source.write_bytes(content)
    there = "/var/tmp/put 'and' \"fetch\" é $x"
    quoted = there.replace('"', '\\"').replace("$", "\\$")
    try:
        connection.put_file(str(source), there)
        seen = look(agent, f'stat -c %a "{quoted}"; sha256sum <"{quoted}"').split()
        assert seen[:2] == ["600", hashlib.sha256(content).hexdigest()]
        connection.fetch_file(there, str(back))
        assert back.read_bytes() == content
    finally:
        look(agent, f'rm -f "{quoted}"')


def test_put_keeps_the_mode_and_shortens(connection: Any, agent: LooseAgent, tmp_path: Path) -> None:
    look(agent, "echo something longer >/var/tmp/kept; chmod 0640 /var/tmp/kept; chown daemon /var/tmp/kept")
    (tmp_path / "new").write_text("short\n")
    connection.put_file(str(tmp_path / "new"), "/var/tmp/kept")
    assert look(agent, "cat /var/tmp/kept; stat -c '%a %U' /var/tmp/kept; rm /var/tmp/kept") == "short\n640 daemon\n"


def test_home_is_known(connection: Any, agent: LooseAgent, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("x")
    connection.put_file(str(tmp_path / "new"), "~/in home")
    connection.put_file(str(tmp_path / "new"), "also in home")
    assert look(agent, "cd /root; ls *home; rm *home") == "also in home\nin home\n"
