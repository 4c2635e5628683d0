# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils import _files, _transfer
from ansible_collections.qemu.guest.plugins.module_utils._agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._errors import OperationError, TransferError
from ansible_collections.qemu.guest.plugins.module_utils._transfer import create_private, digest, fetch, put
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted

SMALL, MIDDLE, LARGE = b"12345", b"8 bytes.", b"more than ten bytes"
PROGRAMS = ("guest-exec", "guest-exec-status")


@pytest.fixture(params=[True, False], ids=["programs", "no programs"])
def programs(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def server(scripted: Callable[..., Scripted], guest: Guest, programs: bool) -> Scripted:
    return scripted(guest.answers(*(() if programs else PROGRAMS)))


@pytest.fixture
def agent(server: Scripted, connect: Callable[..., SocketAgent], monkeypatch: pytest.MonkeyPatch) -> SocketAgent:
    monkeypatch.setattr(_files, "CHUNK", 10)
    for name, size in {"CHUNK": 10, "_SMALL": len(SMALL), "_LEAST": 12, "_FIRST_PIECE": 10, "_PIECE": 20}.items():
        monkeypatch.setattr(_transfer, name, size)
    return connect(server)


@pytest.mark.parametrize("data", [b"", SMALL, MIDDLE, LARGE, 10 * LARGE], ids=len)
def test_put(agent: SocketAgent, tmp_path: Path, data: bytes) -> None:
    size = put(agent, io.BytesIO(data), str(tmp_path / "it's a file"))
    assert (tmp_path / "it's a file").read_bytes() == data
    assert size == len(data)


def test_new_file_is_open_to_nobody_else_at_any_time(
    agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path, programs: bool
) -> None:
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> Any:
        modes.append((tmp_path / "file").stat().st_mode & 0o777)
        return guest.write(arguments)

    server.answers["guest-file-write"] = watched
    for data in (MIDDLE, LARGE):
        put(agent, io.BytesIO(data), str(tmp_path / "file"))
        (tmp_path / "file").unlink()
    assert set(modes) == {0o600 if programs else 0o666}


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_small_file_is_open_to_nobody_else_and_takes_one_program(
    agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    (guest.tools / "cat").write_text(f"#!/bin/sh\nstat -c %a {tmp_path}/file >{tmp_path}/mode; exec /bin/cat\n")
    (guest.tools / "cat").chmod(0o755)
    put(agent, io.BytesIO(SMALL), str(tmp_path / "file"))
    assert (tmp_path / "mode").read_text() == "600\n"
    commands = [request.command for request in server.requests if request.command != "guest-exec-status"]
    assert commands[-1] == "guest-exec" and commands.count("guest-exec") == 1
    assert not any(command.startswith("guest-file") for command in commands)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_small_file_that_a_program_cannot_write_is_written_the_plain_way(
    agent: SocketAgent, guest: Guest, tmp_path: Path
) -> None:
    (guest.tools / "cat").write_text("#!/bin/sh\nhead -c 1; exit 1\n")
    (guest.tools / "cat").chmod(0o755)
    put(agent, io.BytesIO(SMALL), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == SMALL


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("data", [SMALL, MIDDLE, LARGE, 10 * LARGE], ids=len)
def test_put_where_nothing_can_sum(
    agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path, data: bytes
) -> None:
    for name in ("b2sum", "sha256sum"):
        (guest.tools / name).write_text("#!/bin/sh\nexit 127\n")
        (guest.tools / name).chmod(0o755)
    put(agent, io.BytesIO(data), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == data
    assert "guest-file-read" in {request.command for request in server.requests}, "it was compared by reading"


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("where", [0, 25, 185])
@pytest.mark.parametrize("b2sum", [True, False])
def test_put_of_pieces_of_which_one_arrives_differently(
    agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path, where: int, b2sum: bool
) -> None:
    if not b2sum:
        lacks_b2sum(guest)

    def spoils(arguments: Mapping[str, Any]) -> Any:
        reply = guest.flush(arguments)
        path = tmp_path / "file"
        content = bytearray(path.read_bytes())
        if len(content) > where:
            content[where] = 0
        path.write_bytes(content)
        return reply

    server.answers["guest-file-flush"] = spoils
    with pytest.raises(TransferError, match="not what was written"):
        put(agent, io.BytesIO(10 * LARGE), str(tmp_path / "file"))


def test_existing_file_keeps_its_mode(agent: SocketAgent, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    path.chmod(0o751)
    put(agent, io.BytesIO(SMALL), str(path))
    assert path.read_bytes() == SMALL
    assert path.stat().st_mode & 0o777 == 0o751


def test_put_that_arrives_differently(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    """In the middle of a large file, where only a checksum of all of it tells."""

    def spoils(arguments: Mapping[str, Any]) -> Any:
        reply = guest.flush(arguments)
        path = tmp_path / "file"
        path.write_bytes(b"X" + path.read_bytes()[1:])
        return reply

    server.answers["guest-file-flush"] = spoils
    with pytest.raises(TransferError, match="not what was written"):
        put(agent, io.BytesIO(LARGE), str(tmp_path / "file"))


@pytest.fixture
def packing(agent: SocketAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be compressed, is so in small pieces."""
    for name, size in {"CHUNK": 300, "_SMALL": 200, "_LEAST": 1000, "_FIRST_PIECE": 1000, "_PIECE": 4000}.items():
        monkeypatch.setattr(_transfer, name, size)
    monkeypatch.setattr(_files, "CHUNK", 300)


TEXT = b"".join(b"line %d of a text that shrinks\n" % number for number in range(500))


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("data", [TEXT, TEXT[:1000], TEXT[:8000], TEXT[:999], os.urandom(9000)])
@pytest.mark.parametrize("there", [True, False])
def test_put_of_what_may_shrink(
    agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path, programs: bool, data: bytes, there: bool
) -> None:
    path = tmp_path / "it's a file"
    if there:
        path.write_bytes(b"before" * 9000)
        path.chmod(0o640)
    seen: list[int] = []
    size = put(agent, io.BytesIO(data), str(path), seen.append)
    assert path.read_bytes() == data
    assert size == len(data)
    assert seen[-1] == len(data) and seen == sorted(seen)
    assert path.stat().st_mode & 0o777 == (0o640 if there else 0o600 if programs else path.stat().st_mode & 0o777)
    assert not list(tmp_path.glob("spool.*")), "nothing stays"
    sent = sum(len(base64.b64decode(r.arguments["buf-b64"])) for r in server.requests if "buf-b64" in r.arguments)
    packed = programs and data.startswith(b"line") and len(data) >= 1000
    assert (sent < len(data) / 2) is packed


WRONG = "exec python3 -c 'import gzip, sys; sys.stdout.buffer.write(gzip.decompress(sys.stdin.buffer.read())[:-1])'"


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("script", ["exit 1", "head -c 100; exit 1", WRONG])
def test_put_where_unpacking_fails(agent: SocketAgent, guest: Guest, tmp_path: Path, script: str) -> None:
    (guest.tools / "gzip").write_text(f"#!/bin/sh\n{script}\n")
    (guest.tools / "gzip").chmod(0o755)
    source = io.BytesIO(b"skipped" + TEXT)
    source.seek(7)
    put(agent, source, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == TEXT
    assert not list(tmp_path.glob("spool.*"))


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("programs", [True], indirect=True)
def test_compressed_pieces_are_open_to_nobody_else(
    agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> Any:
        modes.extend(path.stat().st_mode & 0o777 for path in tmp_path.glob("spool.*"))
        return guest.write(arguments)

    server.answers["guest-file-write"] = watched
    put(agent, io.BytesIO(TEXT), str(tmp_path / "file"))
    assert set(modes) == {0o600}


@pytest.fixture
def slow(packing: None, server: Scripted, guest: Guest, clock: Clock) -> list[int]:
    """Each read takes a second. Returns how many bytes were read."""
    counts: list[int] = []

    def read(arguments: Mapping[str, Any]) -> Any:
        clock.advance(1)
        reply = guest.read(arguments)
        counts.append(reply["count"])
        return reply

    server.answers["guest-file-read"] = read
    return counts


def assert_fetched(agent: SocketAgent, directory: Path, data: bytes) -> None:
    path, sink, seen = directory / "it's a file", io.BytesIO(), [0]
    path.write_bytes(data)
    assert fetch(agent, str(path), sink, seen.append) == len(data)
    assert sink.getvalue() == data
    assert seen[-1] == len(data) and seen == sorted(seen)
    assert not list(directory.glob("spool.*")), "nothing stays"


@pytest.mark.parametrize("size", [0, 300, 301, 1300, 4300, 4301, 8300, len(TEXT)])
def test_fetch_over_a_slow_channel(
    agent: SocketAgent, slow: list[int], tmp_path: Path, programs: bool, size: int
) -> None:
    assert_fetched(agent, tmp_path, TEXT[:size])
    assert (sum(slow) < size / 2) is (programs and size >= 1300)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_what_shrinks_over_a_quick_channel(
    agent: SocketAgent, slow: list[int], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "advance", lambda seconds: None)
    assert_fetched(agent, tmp_path, TEXT)
    assert sum(slow) == len(TEXT)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_what_does_not_shrink(agent: SocketAgent, slow: list[int], tmp_path: Path) -> None:
    assert_fetched(agent, tmp_path, os.urandom(9000))
    assert sum(slow) == 9000


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "head -c 100",
        "/bin/gzip -c1 | head -c 100; exit 1",
        "/bin/gzip -c1 | head -c 100",
        "head -c 500 | /bin/gzip -c1",
        '[ -e "$0.once" ] && exit 1; : >"$0.once"; exec /bin/gzip -c1',
    ],
)
def test_fetch_where_packing_fails(
    agent: SocketAgent, slow: list[int], guest: Guest, tmp_path: Path, script: str
) -> None:
    (guest.tools / "gzip").write_text(f"#!/bin/sh\n{script}\n")
    (guest.tools / "gzip").chmod(0o755)
    assert_fetched(agent, tmp_path, TEXT)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_packed_content_that_arrives_differently(
    agent: SocketAgent, slow: list[int], guest: Guest, tmp_path: Path
) -> None:
    (guest.tools / "gzip").write_text("#!/bin/sh\ntr a-z A-Z | /bin/gzip -c1\n")
    (guest.tools / "gzip").chmod(0o755)
    (tmp_path / "file").write_bytes(TEXT)
    with pytest.raises(TransferError, match="damaged on the way"):
        fetch(agent, str(tmp_path / "file"), io.BytesIO())


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_packed_content_is_open_to_nobody_else(
    agent: SocketAgent, server: Scripted, slow: list[int], guest: Guest, tmp_path: Path
) -> None:
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> Any:
        modes.extend(path.stat().st_mode & 0o777 for path in tmp_path.glob("spool.*"))
        return guest.open(arguments)

    server.answers["guest-file-open"] = watched
    assert_fetched(agent, tmp_path, TEXT)
    assert set(modes) == {0o600}


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_put_where_nothing_can_be_created(agent: SocketAgent, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"cannot create .*/nope/file in the guest"):
        put(agent, io.BytesIO(SMALL), str(tmp_path / "nope" / "file"))


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_create_private(agent: SocketAgent, tmp_path: Path) -> None:
    path = tmp_path / "a $(file)"
    create_private(agent, str(path))
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"", 0o600)
    path.write_text("content")
    path.chmod(0o644)
    create_private(agent, str(path))
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("content", 0o644)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_create_private_follows_no_link_that_leads_nowhere(agent: SocketAgent, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OperationError):
        create_private(agent, str(tmp_path / "link"))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("data", [b"", SMALL, LARGE])
def test_fetch(agent: SocketAgent, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "it's a file").write_bytes(data)
    sink = io.BytesIO()
    size = fetch(agent, str(tmp_path / "it's a file"), sink)
    assert sink.getvalue() == data
    assert size == len(data)


def lacks_b2sum(guest: Guest) -> None:
    (guest.tools / "b2sum").write_text("#!/bin/sh\nexec sha256sum\n")
    (guest.tools / "b2sum").chmod(0o755)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_nothing_is_read_twice_where_there_is_no_b2sum(
    agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    data = 10 * LARGE
    requests = []
    for _time in range(2):
        before = len(server.requests)
        assert put(agent, io.BytesIO(b"skipped" + data), str(path)) == len(data) + 7
        sink = io.BytesIO()
        assert fetch(agent, str(path), sink) == len(data) + 7
        assert path.read_bytes() == sink.getvalue() == b"skipped" + data
        work = [one.command for one in server.requests[before:]]
        requests.append([one for one in work if one.startswith("guest-file") or one == "guest-exec"])
        lacks_b2sum(guest)
    assert requests[0] == requests[1]


def test_fetch_of_a_file_that_changes(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(LARGE)

    def read(arguments: Mapping[str, Any]) -> Any:
        reply = guest.read(arguments)
        path.write_bytes(LARGE.upper())
        return reply

    server.answers["guest-file-read"] = read
    with pytest.raises(TransferError, match="changed while it was read"):
        fetch(agent, str(path), io.BytesIO())


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_a_log_that_grows(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(LARGE)

    def close(arguments: Mapping[str, Any]) -> Any:
        path.write_bytes(LARGE + b" and more")
        return guest.close_file(arguments)

    server.answers["guest-file-close"] = close
    assert fetch(agent, str(path), io.BytesIO()) == len(LARGE)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_what_has_no_size(agent: SocketAgent) -> None:
    sink = io.BytesIO()
    fetch(agent, "/proc/version", sink)
    assert sink.getvalue() == Path("/proc/version").read_bytes()


@pytest.mark.parametrize("size", [None, 12])
def test_digest(agent: SocketAgent, server: Scripted, tmp_path: Path, programs: bool, size: int | None) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    if size is not None and not programs:
        size = len(LARGE)  # there is no other way to read a part, and nobody asks for it
    assert digest(agent, str(tmp_path / "file"), size) == hashlib.sha256(LARGE[:size]).hexdigest()
    assert ("guest-file-read" in server.work) is not programs
