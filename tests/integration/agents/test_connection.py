# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin with the agents of all releases: an ordinary play, and what a play cannot see."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader

from ansible_collections.qemu.guest.tests.integration.harness import WAYS, look, releases, until
from ansible_collections.qemu.guest.tests.integration.ordinary import check_ordinary_play
from lab import image
from lab.agent import LooseAgent

MEGABYTE = 1_000_000

# By each way; the usual one with the oldest and the newest release, the others with one of them.
PLAYS = [
    pytest.param("warm", ("bullseye", "sid"), id="warm"),
    pytest.param("runner", ("sid",), id="runner-sid"),
    pytest.param("guest-exec", ("bullseye",), id="guest-exec-bullseye"),
    pytest.param("warm", tuple(image.RELEASES)[1:-1], id="warm-between", marks=pytest.mark.whole),
    pytest.param("runner", ("bullseye",), id="runner-bullseye", marks=pytest.mark.whole),
    pytest.param("guest-exec", ("sid",), id="guest-exec-sid", marks=pytest.mark.whole),
]


@pytest.mark.long
@pytest.mark.parametrize(("way", "usual"), PLAYS)
def test_ordinary_play(way: str, usual: tuple[str, ...], tmp_path: Path) -> None:
    # Agents of its own: each begins with nothing.
    with ExitStack() as stack:
        agents = {release: stack.enter_context(LooseAgent(release)) for release in releases(*usual)}
        check_ordinary_play(tmp_path, agents, **WAYS[way])


@pytest.fixture
def connection(agent: LooseAgent) -> Iterator[Any]:
    """The plugin itself, as ansible-core would call it."""
    connection = connection_loader.get("qemu.guest.qga", PlayContext(), os.devnull)
    connection.set_options(direct={"address": str(agent.agent_socket), "agent_timeout": 20})
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
    spooled = "find /run/qemu-guest-runner -type f ! -name pid 2>/dev/null || :"
    # What others have left there is theirs.
    before = set(look(agent, spooled).splitlines())
    rc, *streams = connection.exec_command(f"({program}) >&{stream}; echo end >&{3 - stream}; exit 3")
    assert rc == 3
    assert len(streams[stream - 1]) == 40 * MEGABYTE
    assert hashlib.sha256(streams[stream - 1]).hexdigest() == look(agent, f"{program} | sha256sum").split()[0]
    assert streams[2 - stream] == b"end\n"
    assert look(agent, "ls -d /run/qemu-guest.* 2>/dev/null || :") == ""
    until(lambda: set(look(agent, spooled).splitlines()) <= before, 10, "the runner has removed the output")


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
