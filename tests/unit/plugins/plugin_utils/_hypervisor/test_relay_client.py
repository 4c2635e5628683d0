# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of a relay, without one."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.relay_client import (
    NO_PYTHON,
    RelayGone,
    RelayNote,
    forget,
    python_command,
    started_path,
)

LOGIN = RelayNote(1000, "ops", "/run/qga-relay.x/socket", "a" * 32, "b" * 32)


@pytest.mark.parametrize("reply", [b"", b"ok\n", b"ok " + b"a" * 32 + b"\n", b"x" * 5000, b"\xff\n"])
def test_who_has_taken_the_place_of_a_relay(reply: bytes) -> None:
    sock, other = socket.socketpair()
    with sock, other:
        other.sendall(reply)
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(RelayGone):
            LOGIN.lead(sock, "/run/vm1.qga", Deadline(10))


def test_relay_that_replies() -> None:
    sock, other = socket.socketpair()
    with sock, other:
        other.sendall(b"ok " + b"b" * 32 + b"\nmore")
        LOGIN.lead(sock, "/run/vm 1.qga", Deadline(10))
        assert sock.recv(10) == b"more" and sock.gettimeout() is None
        assert other.recv(100) == b"a" * 32 + b" connect /run/vm 1.qga\n"


def test_relay_that_hangs() -> None:
    sock, other = socket.socketpair()
    with sock, other, pytest.raises(ConnectError, match=r"the relay there did not reply within 0\.2 s"):
        LOGIN.lead(sock, "/run/vm1.qga", Deadline(0.2))


def test_what_sends_a_byte_now_and_then_is_not_waited_for_longer() -> None:
    """Another user may have taken the place of the relay."""
    sock, other = socket.socketpair()
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.001):
            other.send(b"x")

    thread = threading.Thread(target=drip)
    began = time.monotonic()
    with sock, other:
        thread.start()
        try:
            with pytest.raises(ConnectError, match=r"the relay there did not reply within 0\.3 s"):
                LOGIN.lead(sock, "/run/vm1.qga", Deadline(0.3))
        finally:
            ended.set()
            thread.join()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("output", "login"),
    [
        (b"0\nroot\n", RelayNote(0, "root")),
        (b"Welcome!\n1000\nops\n", RelayNote(1000, "ops")),
        (b"1000\r\n", None),
        (b"id: not found\n", None),
        (b"", None),
    ],
)
def test_who_the_login_is(output: bytes, login: RelayNote | None) -> None:
    assert RelayNote.parse(output) == login


def test_note(tmp_path: Path) -> None:
    note = tmp_path / "notes" / "note"
    note.parent.mkdir()
    assert RelayNote.load(str(note)) is None
    for login in (LOGIN, LOGIN._replace(path="/other")):
        login.save(str(note))
        assert RelayNote.load(str(note)) == login and note.stat().st_mode & 0o777 == 0o600
    for text in ("", "[]", '{"uid": 1}', '{"uid": 1, "user": "x", "other": 1}'):
        note.write_text(text, encoding="ascii")
        assert RelayNote.load(str(note)) is None
    forget(str(note))
    forget(str(note))
    assert not list(note.parent.iterdir())


def test_each_relay_has_secrets_of_its_own() -> None:
    one, other = LOGIN.with_secrets(), LOGIN.with_secrets()
    assert len({one.ask, one.answer, other.ask, other.answer}) == 4 and len(one.ask) == len(one.answer) == 32


def test_where_a_relay_listens() -> None:
    assert started_path(b"You have mail.\nqga-relay /run/qga-relay.x/socket 12\n") == "/run/qga-relay.x/socket"
    assert started_path(b"") is None


def test_command_is_for_all_shells() -> None:
    """csh, which may be the shell of the login, knows no quoted newline, and sudo -i does not quote a dollar."""
    assert not {"\n", "$", "!", "\\"} & set(python_command(None))


@pytest.mark.parametrize("interpreter", [None, "auto", "auto_silent", "/nope/python", "/usr/bin/env nope", "sh", "a'b"])
def test_interpreter_that_is_not_there(interpreter: str | None, tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", python_command(interpreter).replace("/usr/libexec/", "/nope/")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        check=False,
        input=b"print(1)\n",
    )
    assert (done.returncode, done.stderr.decode("ascii").strip()) == (127, NO_PYTHON)


@pytest.mark.parametrize("name", ["python3", "python"])
def test_interpreter_that_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(sys.executable)
    if name == "python":  # an old one
        (tmp_path / "python3").write_text("#!/bin/sh\nexit 2\n", encoding="ascii")
        (tmp_path / "python3").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", python_command(None)],
        env={"PATH": f"{tmp_path}:/nope"},
        capture_output=True,
        check=False,
        input=b"given\ndef main(g): print(g)\n",
    )
    assert (done.stdout, done.stderr) == (b"b'given\\n'\n", b"")
