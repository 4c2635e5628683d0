# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    FileChangedError,
    OperationError,
    OutcomeUnknownError,
    ProtocolError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest import compression, zstd
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    ExecResult,
    GuestExec,
    Shell,
    ShellCommand,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import Sizes
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch, file_sha256, put
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import shell_runner
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import zstd as guest_zstd
from ansible_collections.qemu.guest.tests.unit.guest import PREFIX, Guest
from ansible_collections.qemu.guest.tests.unit.scripted import (
    Clock,
    Request,
    Scripted,
    Session,
    answers,
    reply_to,
    swallows,
)
from ansible_collections.qemu.guest.tests.unit.warm import called_here

SMALL, MIDDLE, LARGE = b"12345", b"8 bytes.", b"more than ten bytes"
PROGRAMS = ("guest-exec", "guest-exec-status")


@pytest.fixture(params=[True, False], ids=["programs", "no programs"])
def programs(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def server(scripted: Callable[..., Scripted], guest: Guest, programs: bool) -> Scripted:
    return scripted(guest.answers(*(() if programs else PROGRAMS)))


class Tiny(Sizes):
    chunk, first, small, first_piece, piece, growth = 10, 6, 12, 10, 20, 640


class Packing(Sizes):
    chunk, first, small, first_piece, piece, part, packed = 300, 100, 1000, 1000, 4000, 4000, 50


@pytest.fixture
def executor(
    server: Scripted, connect: Callable[..., SocketAgent], request: pytest.FixtureRequest, programs: bool
) -> GuestExec:
    """It has the interpreter of ``asked`` and the sizes of ``packing``, where a test asks for those fixtures."""
    shell = request.getfixturevalue("interpreter") if programs and "asked" in request.fixturenames else None
    return GuestExec(connect(server), shell, sizes=Packing() if "packing" in request.fixturenames else Tiny())


def on_its_way(directory: Path) -> Path:
    """Return the file that is written to: another one until it is whole, where the agent may run programs."""
    (path,) = directory.glob(".file.*") if not (directory / "file").exists() else [directory / "file"]
    return path


@pytest.mark.parametrize("data", [b"", SMALL, MIDDLE, LARGE, 10 * LARGE], ids=len)
def test_put(executor: GuestExec, tmp_path: Path, data: bytes) -> None:
    size = put(executor, io.BytesIO(data), str(tmp_path / "it's a file"))
    assert (tmp_path / "it's a file").read_bytes() == data
    assert size == len(data)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
@pytest.mark.parametrize("name", ["x" * 255, "\u6f22" * 85, "\U0001f40b" * 63], ids=["1 byte", "3 bytes", "4 bytes"])
def test_put_to_a_name_of_the_most_bytes(executor: GuestExec, tmp_path: Path, data: bytes, name: str) -> None:
    put(executor, io.BytesIO(data), str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("said", ["", "\0", "{path}\0", "name", "{victim}", "{path}x", "x{path}"])
def test_put_where_a_program_says_that_it_created_something_else(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path, said: str
) -> None:
    """Neither is that written to, nor removed."""
    (tmp_path / "victim").touch()

    def lies(arguments: Mapping[str, Any]) -> Any:
        status = guest.status(arguments)
        if status["exited"]:
            path = base64.b64decode(status["out-data"]).decode()
            status["out-data"] = base64.b64encode(said.format(path=path, victim=tmp_path / "victim").encode()).decode()
            server.answers["guest-exec-status"] = guest.status
        return status

    server.answers["guest-exec-status"] = lies
    with pytest.raises(ProtocolError, match="was to create"):
        put(executor, io.BytesIO(LARGE), str(tmp_path / "file"))
    assert "guest-file-open" not in server.commands
    assert (tmp_path / "victim").exists() and not list(tmp_path.glob(".file*"))


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_file_whose_creation_comes_after_its_removal_is_removed(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    """The reply was lost, and the program that was started for it runs later than the one that cleans up."""
    start = guest.answers()["guest-exec"]
    created: list[int] = []
    waits: list[threading.Timer] = []

    def creates_late(session: Session, request: Request) -> None:
        waits.append(threading.Timer(0.4, lambda: created.append(start(request.arguments)["pid"])))
        waits[0].start()
        swallows(session, request)

    server.then("guest-exec", creates_late)
    with pytest.raises(OutcomeUnknownError):
        put(executor, io.BytesIO(LARGE), str(tmp_path / "file"))
    waits[0].join()
    program = guest.programs[created[0]]
    program.thread.join(10)
    assert program.process.returncode == 0, "it did create the file"
    assert not list(tmp_path.glob(".file*"))


def test_new_file_is_open_to_nobody_else_at_any_time(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path, programs: bool
) -> None:
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> Any:
        modes.append(on_its_way(tmp_path).stat().st_mode & 0o777)
        return guest.write(arguments)

    server.answers["guest-file-write"] = watched
    for data in (LARGE, 10 * LARGE):
        put(executor, io.BytesIO(data), str(tmp_path / "file"))
        (tmp_path / "file").unlink()
    assert set(modes) == {0o600 if programs else 0o666}


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_new_file_in_a_guest_that_is_just_thawed_is_open_to_nobody_else(
    executor: GuestExec, server: Scripted, clock: Clock, tmp_path: Path
) -> None:
    """The agent of a frozen guest lists what it refuses; a moment later it would do that."""
    server.freeze(10)

    def thaws(session: Session, request: Request) -> None:
        reply = reply_to(session, request)
        clock.advance(10)
        session.send(reply)

    server.then("guest-info", thaws)
    put(executor, io.BytesIO(SMALL), str(tmp_path / "file"))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_small_file_is_open_to_nobody_else_and_takes_one_program(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    tool(guest, "cat", f"stat -c %a {tmp_path}/.file.* >{tmp_path}/mode; exec /bin/cat")
    put(executor, io.BytesIO(SMALL), str(tmp_path / "file"))
    assert (tmp_path / "mode").read_text() == "600\n"
    commands = [request.command for request in server.requests if request.command != "guest-exec-status"]
    assert commands[-1] == "guest-exec" and commands.count("guest-exec") == 1
    assert not any(command.startswith("guest-file") for command in commands)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_small_file_that_a_program_cannot_write_is_written_the_plain_way(
    executor: GuestExec, guest: Guest, tmp_path: Path
) -> None:
    tool(guest, "cat", "head -c 1; exit 1")
    put(executor, io.BytesIO(SMALL), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == SMALL


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("data", [SMALL, MIDDLE, LARGE, 10 * LARGE], ids=len)
def test_put_where_nothing_can_sum(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path, data: bytes
) -> None:
    for name in ("b2sum", "sha256sum"):
        tool(guest, name, "exit 127")
    put(executor, io.BytesIO(data), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == data
    assert "guest-file-read" in {request.command for request in server.requests}, "it was compared by reading"


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("where", [0, 25, 185])
@pytest.mark.parametrize("b2sum", [True, False])
def test_put_of_pieces_of_which_one_arrives_differently(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path, where: int, b2sum: bool
) -> None:
    if not b2sum:
        lacks_b2sum(guest)

    def spoils(arguments: Mapping[str, Any]) -> Any:
        reply = guest.flush(arguments)
        path = on_its_way(tmp_path)
        content = bytearray(path.read_bytes())
        if len(content) > where:
            content[where] = 0
        path.write_bytes(content)
        return reply

    server.answers["guest-file-flush"] = spoils
    with pytest.raises(TransferError, match="not what was written"):
        put(executor, io.BytesIO(10 * LARGE), str(tmp_path / "file"))


def test_existing_file_keeps_its_mode(executor: GuestExec, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    path.chmod(0o751)
    put(executor, io.BytesIO(SMALL), str(path))
    assert path.read_bytes() == SMALL
    assert path.stat().st_mode & 0o777 == 0o751


def test_put_that_arrives_differently(executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    """In the middle of a large file, where only a checksum of all of it tells."""

    def spoils(arguments: Mapping[str, Any]) -> Any:
        reply = guest.flush(arguments)
        path = on_its_way(tmp_path)
        path.write_bytes(b"X" + path.read_bytes()[1:])
        return reply

    server.answers["guest-file-flush"] = spoils
    with pytest.raises(TransferError, match="not what was written"):
        put(executor, io.BytesIO(LARGE), str(tmp_path / "file"))


@pytest.fixture
def packing() -> None:
    """What is to be compressed, is so in small pieces."""


TEXT = b"".join(b"line %d of a text that shrinks\n" % number for number in range(500))


def freezing(server: Scripted, command: str, after: int) -> None:
    """Have the guest freeze when it has done so many of ``command``, for 100 s."""

    def step(session: Session, request: Request) -> None:
        answers(session, request)
        server.freeze(100)

    server.answers["guest-fsfreeze-status"] = "thawed"
    server.then(command, *[answers] * (after - 1), step)


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("data", [TEXT, os.urandom(9000)], ids=["shrinks", "does not"])
@pytest.mark.parametrize(("command", "after"), [("guest-file-open", 1), ("guest-file-write", 2), ("guest-exec", 2)])
@pytest.mark.parametrize("programs", [True], indirect=True)
def test_put_while_the_guest_is_frozen_for_a_time(
    executor: GuestExec, server: Scripted, clock: Clock, tmp_path: Path, data: bytes, command: str, after: int
) -> None:
    began = clock.now
    freezing(server, command, after)
    source = io.BytesIO(b"skipped" + data)
    source.seek(7)
    assert put(executor, source, str(tmp_path / "file")) == len(data)
    assert (tmp_path / "file").read_bytes() == data
    assert clock.now - began >= 100


@pytest.mark.parametrize(("command", "after"), [("guest-file-open", 1), ("guest-file-read", 2)])
def test_fetch_while_the_guest_is_frozen_for_a_time(
    executor: GuestExec, server: Scripted, clock: Clock, tmp_path: Path, command: str, after: int
) -> None:
    began = clock.now
    data = os.urandom(100)
    (tmp_path / "file").write_bytes(data)
    freezing(server, command, after)
    with (tmp_path / "here").open("w+b") as sink:
        assert fetch(executor, str(tmp_path / "file"), sink) == len(data)
    assert (tmp_path / "here").read_bytes() == data
    assert clock.now - began >= 100


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_is_compared_though_the_guest_is_frozen_then(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(SMALL)
    damaged = iter([{"buf-b64": base64.b64encode(SMALL[::-1]).decode()}])
    server.answers["guest-file-read"] = lambda arguments: {**guest.read(arguments), **next(damaged, {})}
    freezing(server, "guest-file-close", 1)
    executor.agent.info  # noqa: B018 - so that it is known that there are programs
    with (tmp_path / "here").open("w+b") as sink:
        fetch(executor, str(tmp_path / "file"), sink)
    assert (tmp_path / "here").read_bytes() == SMALL


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("data", [TEXT, TEXT[:1000], TEXT[:8000], TEXT[:999], os.urandom(9000)])
@pytest.mark.parametrize("there", [True, False])
def test_put_of_what_may_shrink(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path, programs: bool, data: bytes, there: bool
) -> None:
    path = tmp_path / "it's a file"
    if there:
        path.write_bytes(b"before" * 9000)
        path.chmod(0o640)
    seen: list[int] = []
    size = put(executor, io.BytesIO(data), str(path), seen.append)
    assert path.read_bytes() == data
    assert size == len(data)
    assert seen[-1] == len(data) and seen == sorted(seen)
    assert path.stat().st_mode & 0o777 == (0o640 if there else 0o600 if programs else path.stat().st_mode & 0o777)
    assert not list(tmp_path.glob("kept.*")), "nothing stays"
    if programs and len(data) < 1000:
        return  # a program was given it
    sent = sent_to(server)
    packed = programs and data.startswith(b"line") and len(data) >= 1000
    assert (sent < len(data) / 2) is packed


WRONG = "exec python3 -c 'import gzip, sys; sys.stdout.buffer.write(gzip.decompress(sys.stdin.buffer.read())[:-1])'"


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("script", ["exit 1", "head -c 100; exit 1", WRONG])
def test_put_where_unpacking_fails(executor: GuestExec, guest: Guest, tmp_path: Path, script: str) -> None:
    tool(guest, "gzip", script)
    source = io.BytesIO(b"skipped" + TEXT)
    source.seek(7)
    put(executor, source, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == TEXT
    assert not list(tmp_path.glob("kept.*"))


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("programs", [True], indirect=True)
def test_compressed_pieces_are_open_to_nobody_else(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> Any:
        modes.extend(path.stat().st_mode & 0o777 for path in tmp_path.glob("kept.*"))
        return guest.write(arguments)

    server.answers["guest-file-write"] = watched
    put(executor, io.BytesIO(TEXT), str(tmp_path / "file"))
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


def assert_fetched(executor: GuestExec, directory: Path, data: bytes, name: str = "it's a file") -> None:
    path, sink, seen = directory / name, io.BytesIO(), [0]
    path.write_bytes(data)
    assert fetch(executor, str(path), sink, seen.append) == len(data)
    assert sink.getvalue() == data
    assert seen[-1] == len(data) and seen == sorted(seen)
    assert not list(directory.glob("kept.*")), "nothing stays"


@pytest.mark.parametrize("size", [0, 300, 301, 1300, 4300, 4301, 8300, len(TEXT)])
def test_fetch_over_a_slow_channel(
    executor: GuestExec, slow: list[int], tmp_path: Path, programs: bool, size: int
) -> None:
    assert_fetched(executor, tmp_path, TEXT[:size])
    assert (sum(slow) < size / 2) is (programs and size >= 1300)


@pytest.fixture
def quick(slow: list[int], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No read takes any time. Returns how many bytes were read."""
    monkeypatch.setattr(clock, "advance", lambda seconds: None)
    return slow


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_what_shrinks_over_a_quick_channel(executor: GuestExec, quick: list[int], tmp_path: Path) -> None:
    assert_fetched(executor, tmp_path, TEXT)
    assert sum(quick) == len(TEXT)


@pytest.fixture
def asked() -> list[str]:
    """An interpreter in the guest does some commands. Returns the functions that it was asked for."""
    return []


@pytest.fixture
def interpreter(asked: list[str], guest: Guest) -> Shell:
    def begin(command: ShellCommand, stdin: bytes) -> Callable[[], ExecResult | None]:
        asked.append(f"unpack {command.arguments[0]}" if command.function == "unpack" else command.function)
        here = [value.replace(PREFIX, guest.prefix) if isinstance(value, str) else value for value in command.arguments]
        outputs: list[bytes] = []

        def run() -> None:
            with suppress(OSError, ImportError, ValueError):
                output = called_here(command._replace(arguments=here), stdin)
                if output is not None:
                    outputs.append(output)

        thread = threading.Thread(target=run)
        thread.start()

        def ended() -> ExecResult | None:
            thread.join()
            return ExecResult(0, None, outputs[0], b"", False) if outputs else None

        return ended

    return begin


def kinds(commands: list[str]) -> list[str]:
    """Return what they do."""
    kinds = {"pack": "pack", "sweep": "sweep", "unpack zstd": "unpack", "make_room": "room"}
    return [kinds.get(command, "else") for command in commands]


@pytest.mark.parametrize("size", [0, 300, 301, 1300, 3999, 4000, 4001, 8300, len(TEXT)])
def test_fetch_where_an_interpreter_packs(
    executor: GuestExec, quick: list[int], asked: list[str], tmp_path: Path, programs: bool, size: int
) -> None:
    assert_fetched(executor, tmp_path, TEXT[:size], "file")
    packs = programs and size > 300
    assert kinds(asked) == (["pack"] * -(-size // 4000) + ["sweep"] if packs else []), "nor is anything summed up anew"
    assert (sum(quick) < size / 2) is (packs and size > 1000)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_what_an_interpreter_does_not_pack(
    executor: GuestExec, quick: list[int], asked: list[str], tmp_path: Path
) -> None:
    assert_fetched(executor, tmp_path, os.urandom(9000), "file")
    assert (sum(quick), kinds(asked)) == (9000, ["else"]), "a checksum"


def missing(*_args: object) -> NoReturn:
    raise ImportError("libzstd.so.1: cannot open shared object file")


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("lacks", ["here", "there"])
def test_fetch_where_one_end_has_no_zstd(
    executor: GuestExec,
    guest: Guest,
    quick: list[int],
    asked: list[str],
    tmp_path: Path,
    lacks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool(guest, "zstd", "exit 127")
    if lacks == "here":
        monkeypatch.setattr(compression, "zstd", missing)
    else:
        monkeypatch.setattr(shell_runner, "Compressor", missing)
    assert_fetched(executor, tmp_path, TEXT, "file")
    assert sum(quick) == len(TEXT)
    assert kinds(asked) == (["else"] if lacks == "here" else ["pack", "sweep", "else"])


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame[:-1],
        lambda frame: b"x" + frame[1:],
        lambda frame: frame + b"more",
        lambda frame: frame + frame,
        lambda frame: b"",
    ],
)
def test_fetch_of_what_an_interpreter_packs_badly(
    executor: GuestExec,
    quick: list[int],
    asked: list[str],
    tmp_path: Path,
    spoil: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compress = guest_zstd.Compressor.compress
    monkeypatch.setattr(guest_zstd.Compressor, "compress", lambda self, content: spoil(compress(self, content)))
    assert_fetched(executor, tmp_path, TEXT, "file")


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_where_there_is_little_room_for_what_is_packed(
    executor: GuestExec, quick: list[int], asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SimpleNamespace(f_bavail=15, f_frsize=512)
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    assert_fetched(executor, tmp_path, TEXT, "file")
    assert (sum(quick), kinds(asked)) == (len(TEXT), ["pack", "sweep", "else"])


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_where_what_packs_is_lost(
    executor: GuestExec, quick: list[int], asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = executor.shell
    assert begin
    waits: list[ShellCommand] = []

    def begun(command: ShellCommand, stdin: bytes) -> Callable[[], ExecResult | None] | None:
        def lost() -> NoReturn:
            waits.append(command)
            raise OutcomeUnknownError("the agent is gone")

        return lost if command.function == "pack" else begin(command, stdin)

    (tmp_path / "file").write_bytes(TEXT)
    with pytest.raises(OutcomeUnknownError):
        fetch(GuestExec(executor.agent, begun, sizes=Packing()), str(tmp_path / "file"), io.BytesIO())
    assert len(waits) == 1, "that is not waited for twice"


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_content_from_an_interpreter_that_arrives_differently(
    executor: GuestExec, quick: list[int], asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(TEXT)
    compress = guest_zstd.Compressor.compress
    monkeypatch.setattr(guest_zstd.Compressor, "compress", lambda self, content: compress(self, bytes(content).upper()))
    with pytest.raises(TransferError, match="damaged on the way"):
        fetch(executor, str(tmp_path / "file"), io.BytesIO())


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("change", [b"", b"more", TEXT])
def test_fetch_from_an_interpreter_of_a_file_that_grows(
    executor: GuestExec,
    server: Scripted,
    guest: Guest,
    quick: list[int],
    asked: list[str],
    tmp_path: Path,
    change: bytes,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(TEXT)

    def opened(arguments: Mapping[str, Any]) -> Any:
        if arguments["path"].startswith(PREFIX):
            path.write_bytes(TEXT + change)
        return guest.open(arguments)

    server.answers["guest-file-open"] = opened
    sink = io.BytesIO()
    assert fetch(executor, str(path), sink) == len(TEXT + change)
    assert sink.getvalue() == TEXT + change


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_from_an_interpreter_of_a_file_that_was_cut(
    executor: GuestExec, server: Scripted, guest: Guest, quick: list[int], asked: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(TEXT)

    def seek(arguments: Mapping[str, Any]) -> Any:
        position = guest.seek(arguments)
        if arguments["whence"] == 2:
            path.write_bytes(TEXT[:5000])
        return position

    server.answers["guest-file-seek"] = seek
    sink = io.BytesIO()
    assert fetch(executor, str(path), sink) == 5000
    assert sink.getvalue() == TEXT[:5000]


# What the program of that name does, as far as it is needed.
ZSTD = f"""exec {sys.executable} -c '
import sys
sys.path.insert(0, "{Path(zstd.__file__).parent}")
from zstd import Compressor, zstd_decompress
content = sys.stdin.buffer.read()
wanted = {{"-c1": lambda: Compressor(1).compress(content), "-dc": lambda: zstd_decompress(content, 10**6)}}
sys.stdout.buffer.write(wanted[sys.argv[1]]())
' "$@\""""


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("way", ["put", "fetch"])
def test_zstd_by_a_program(
    executor: GuestExec, guest: Guest, quick: list[int], tmp_path: Path, way: str, server: Scripted
) -> None:
    """Where the interpreter is not there after all."""
    tool(guest, "zstd", ZSTD)
    executor = GuestExec(executor.agent, lambda command, stdin: None, sizes=Packing())
    if way == "fetch":
        assert_fetched(executor, tmp_path, TEXT)
        assert sum(quick) < len(TEXT) / 2
    else:
        put(executor, io.BytesIO(TEXT), str(tmp_path / "file"))
        assert (tmp_path / "file").read_bytes() == TEXT
        assert sent_to(server) < len(TEXT) / 2


def sent_to(server: Scripted) -> int:
    return sum(len(base64.b64decode(r.arguments["buf-b64"])) for r in server.requests if "buf-b64" in r.arguments)


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("lacks", ["", "here", "there"])
def test_put_where_an_interpreter_unpacks(
    executor: GuestExec,
    server: Scripted,
    guest: Guest,
    asked: list[str],
    tmp_path: Path,
    lacks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if lacks == "here":
        monkeypatch.setattr(compression, "zstd", missing)
    elif lacks:
        monkeypatch.setattr(shell_runner, "zstd", missing)
        monkeypatch.setattr(shell_runner, "zstd_decompress", missing)
        tool(guest, "zstd", "exit 127")
    put(executor, io.BytesIO(TEXT), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == TEXT
    assert not list(tmp_path.glob("kept.*"))
    zstd = [command for command in asked if command == "unpack zstd"]
    assert len(zstd) == {"": 5, "here": 0, "there": 1}[lacks]
    assert (sent_to(server) < len(TEXT) / 2) is (lacks != "there")


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("programs", [True], indirect=True)
def test_put_where_an_interpreter_unpacks_badly(
    executor: GuestExec, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_runner, "zstd_decompress", lambda packed, size: b"x" * size)
    put(executor, io.BytesIO(TEXT), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == TEXT


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_what_does_not_shrink(executor: GuestExec, slow: list[int], tmp_path: Path) -> None:
    assert_fetched(executor, tmp_path, os.urandom(9000))
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
    executor: GuestExec, slow: list[int], guest: Guest, tmp_path: Path, script: str
) -> None:
    tool(guest, "gzip", script)
    assert_fetched(executor, tmp_path, TEXT)


def waits_at(path: Path) -> bool:
    """Return whether a program is there that reads this, or waits to."""
    return subprocess.run(["pgrep", "-f", str(path)], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_what_has_become_a_fifo(
    executor: GuestExec, server: Scripted, slow: list[int], guest: Guest, tmp_path: Path, clock: Clock
) -> None:
    """What packs it waits for somebody who writes, until it is ended; what the agent has open comes without that."""
    path = tmp_path / "file"

    def start(arguments: Mapping[str, Any]) -> Any:
        if not path.is_fifo():
            path.unlink()
            os.mkfifo(path)
        return guest.start(arguments)

    path.write_bytes(TEXT)
    server.answers["guest-exec"] = start
    sink = io.BytesIO()
    began = clock.now
    assert fetch(executor, str(path), sink) == len(TEXT)
    assert sink.getvalue() == TEXT
    assert 20 < clock.now - began < 100 + len(TEXT)
    assert not waits_at(path)
    assert guest.programs == {}


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("kind", [fetch, file_sha256])
def test_program_that_never_ends_is_ended(
    executor: GuestExec, guest: Guest, tmp_path: Path, kind: Callable[..., object], clock: Clock
) -> None:
    """A FIFO that was put there between a look and the opening has the same effect."""
    hours = iter([20_000.0])  # for as long, a file of unknown size is waited for
    clock.on_sleep = lambda: clock.advance(next(hours, 0.0))
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1000))
    os.mkfifo(tmp_path / "never")
    for name in ("b2sum", "sha256sum"):
        tool(guest, name, f"exec cat '{tmp_path}/never'")
    with pytest.raises(TransferError, match=r"did not end within \d+ s, and was killed"):
        kind(executor, str(path), *([io.BytesIO()] if kind is fetch else []))
    assert not waits_at(tmp_path / "never")
    assert guest.programs == {}


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_packed_content_that_arrives_differently(
    executor: GuestExec, slow: list[int], guest: Guest, tmp_path: Path
) -> None:
    tool(guest, "gzip", "tr a-z A-Z | /bin/gzip -c1")
    (tmp_path / "file").write_bytes(TEXT)
    with pytest.raises(TransferError, match="damaged on the way"):
        fetch(executor, str(tmp_path / "file"), io.BytesIO())


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_packed_content_is_open_to_nobody_else(
    executor: GuestExec, server: Scripted, slow: list[int], guest: Guest, tmp_path: Path
) -> None:
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> Any:
        for path in tmp_path.glob("kept.*"):
            with suppress(FileNotFoundError):  # the guest removes what was read, beside this
                modes.append(path.stat().st_mode & 0o777)
        return guest.open(arguments)

    server.answers["guest-file-open"] = watched
    assert_fetched(executor, tmp_path, TEXT)
    assert set(modes) == {0o600}


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("program", [0, 1], ids=["the new file", "the room for pieces"])
def test_put_leaves_nothing_where_it_is_not_told_that_it_was_made(
    executor: GuestExec, server: Scripted, guest: Guest, packing: None, tmp_path: Path, program: int
) -> None:
    def damaged(session: Session, request: Request) -> None:
        guest.programs[server.value(request)["pid"]].thread.join(30)
        session.send(b"no reply\n")

    server.then("guest-exec", *[answers] * program, damaged)
    with pytest.raises(ProtocolError, match="not JSON"):
        put(executor, io.BytesIO(TEXT), str(tmp_path / "file"))
    assert not list(tmp_path.glob(".file*")) and not list(tmp_path.glob("kept.*"))


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_put_where_nothing_can_be_created(executor: GuestExec, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"cannot create .*/nope/file in the guest"):
        put(executor, io.BytesIO(SMALL), str(tmp_path / "nope" / "file"))


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("data", [SMALL, 10 * LARGE], ids=len)
@pytest.mark.parametrize("target", ["target", "there"])
def test_put_replaces_a_link(executor: GuestExec, tmp_path: Path, data: bytes, target: str) -> None:
    (tmp_path / "there").write_text("is what it was")
    (tmp_path / "link").symlink_to(tmp_path / target)
    put(executor, io.BytesIO(data), str(tmp_path / "link"))
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_bytes() == data
    assert (tmp_path / "link").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "target").exists() and (tmp_path / "there").read_text() == "is what it was"


@pytest.mark.parametrize("programs", [True], indirect=True)
@pytest.mark.parametrize("data", [SMALL, 10 * LARGE], ids=len)
def test_put_writes_to_no_device(executor: GuestExec, tmp_path: Path, data: bytes) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OperationError, match="is not a regular file"):
        put(executor, io.BytesIO(data), str(tmp_path / "fifo"))


@pytest.mark.parametrize("data", [b"", SMALL, LARGE])
def test_fetch(executor: GuestExec, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "it's a file").write_bytes(data)
    sink = io.BytesIO()
    size = fetch(executor, str(tmp_path / "it's a file"), sink)
    assert sink.getvalue() == data
    assert size == len(data)


def lacks_b2sum(guest: Guest) -> None:
    tool(guest, "b2sum", "exec sha256sum")


def tool(guest: Guest, name: str, script: str) -> None:
    (guest.tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (guest.tools / name).chmod(0o755)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_nothing_is_read_twice_where_there_is_no_b2sum(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    data = 10 * LARGE
    requests = []
    for _time in range(2):
        before = len(server.requests)
        assert put(executor, io.BytesIO(b"skipped" + data), str(path)) == len(data) + 7
        sink = io.BytesIO()
        assert fetch(executor, str(path), sink) == len(data) + 7
        assert path.read_bytes() == sink.getvalue() == b"skipped" + data
        work = [one.command for one in server.requests[before:]]
        requests.append([one for one in work if one.startswith("guest-file") or one == "guest-exec"])
        lacks_b2sum(guest)
    assert requests[0] == requests[1]


@pytest.mark.parametrize("times", [1, 99])
def test_fetch_of_a_file_that_is_written_to(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path, programs: bool, times: int
) -> None:
    """Once: it is read anew. Again and again: that is told, and what was read is there."""
    path = tmp_path / "file"
    path.write_bytes(LARGE)
    versions = iter(range(times))

    def read(arguments: Mapping[str, Any]) -> Any:
        reply = guest.read(arguments)
        if any(True for _version in zip(versions, "x", strict=False)):
            path.write_bytes(os.urandom(len(LARGE)))
        return reply

    server.answers["guest-file-read"] = read
    sink = io.BytesIO()
    if times == 1:
        assert fetch(executor, str(path), sink) == len(LARGE)
        assert sink.getvalue() == path.read_bytes()
        return
    error = FileChangedError if programs else TransferError
    with pytest.raises(error, match=r"was written to|changed while") as caught:
        fetch(executor, str(path), sink)
    assert len(sink.getvalue()) == len(LARGE)
    assert not isinstance(caught.value, FileChangedError) or caught.value.size == len(LARGE)


@pytest.mark.parametrize("times", [1, 99])
def test_fetch_of_what_is_damaged_on_the_way(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path, times: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(LARGE)
    damages = iter(range(times))

    def read(arguments: Mapping[str, Any]) -> Any:
        reply = guest.read(arguments)
        if reply["count"] == 6 and next(damages, None) is not None:
            reply["buf-b64"] = base64.b64encode(os.urandom(6)).decode()
        return reply

    server.answers["guest-file-read"] = read
    sink = io.BytesIO()
    if times == 1:
        assert fetch(executor, str(path), sink) == len(LARGE)
        assert sink.getvalue() == LARGE
        return
    with pytest.raises(TransferError, match="damaged on the way") as caught:
        fetch(executor, str(path), sink)
    assert not isinstance(caught.value, FileChangedError)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("data", [b"short", LARGE])
def test_fetch_of_what_seems_to_end_too_early(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path, data: bytes, number: int
) -> None:
    """What has arrived is as the beginning of the file, and not the file."""
    path = tmp_path / "file"
    path.write_bytes(data)
    reads = itertools.count(1)

    def read(arguments: Mapping[str, Any]) -> Any:
        reply = guest.read(arguments)
        return {"count": 0, "buf-b64": "", "eof": True} if next(reads) == number else reply

    server.answers["guest-file-read"] = read
    sink = io.BytesIO()
    assert fetch(executor, str(path), sink) == len(data)
    assert sink.getvalue() == data


class Endless:
    """A file that the guest says is ``said`` bytes long, and that never ends."""

    def __init__(self, guest: Guest, said: int) -> None:
        self.guest = guest
        self.said = said
        self.read = 0

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {"guest-file-read": self.more, "guest-file-seek": self.seek}

    def more(self, arguments: Mapping[str, Any]) -> Any:
        self.read += arguments["count"]
        data = base64.b64encode(bytes(arguments["count"])).decode()
        return {"count": arguments["count"], "buf-b64": data, "eof": False}

    def seek(self, arguments: Mapping[str, Any]) -> Any:
        return {"position": self.said if arguments["whence"] == 2 else arguments["offset"], "eof": False}


@pytest.mark.parametrize("programs", [False], indirect=True)
@pytest.mark.parametrize(
    ("said", "largest", "limit", "advice"),
    [
        (1000, None, 1000 + 640, "it had 1000 when it was opened"),
        (10_000, None, 12_500, "it had 10000 when it was opened"),
        (0, None, 640, "max_size of qga_fetch, or ansible_qga_max_fetch_size"),
        (1000, 20, 20, "that is the limit that was set. Raise it"),
        (0, 20, 20, "that is the limit that was set"),
    ],
)
def test_fetch_has_an_end(
    executor: GuestExec,
    server: Scripted,
    guest: Guest,
    tmp_path: Path,
    said: int,
    largest: int | None,
    limit: int,
    advice: str,
) -> None:
    (tmp_path / "file").touch()
    endless = Endless(guest, said)
    server.answers.update(endless.answers())
    sink = io.BytesIO()
    with pytest.raises(TransferError, match=f"file has more than {limit} bytes: .*{advice}"):
        fetch(executor, str(tmp_path / "file"), sink, largest=largest)
    assert len(sink.getvalue()) <= limit
    assert endless.read <= limit + 1


@pytest.mark.parametrize("programs", [False], indirect=True)
def test_fetch_of_more_than_there_is_room_for(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    """Nothing is read when that is known."""
    (tmp_path / "file").touch()
    endless = Endless(guest, 1 << 60)
    server.answers.update(endless.answers())
    error = r"no more space is free here\. Make room"
    with open(tmp_path / "sink", "w+b") as sink, pytest.raises(TransferError, match=error):
        fetch(executor, str(tmp_path / "file"), sink)
    assert endless.read < 20


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_a_log_that_grows(executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(LARGE)

    def close(arguments: Mapping[str, Any]) -> Any:
        path.write_bytes(LARGE + b" and more")
        return guest.close_file(arguments)

    server.answers["guest-file-close"] = close
    assert fetch(executor, str(path), io.BytesIO()) == len(LARGE)


@pytest.mark.parametrize("programs", [True], indirect=True)
def test_fetch_of_what_has_no_size(executor: GuestExec) -> None:
    sink = io.BytesIO()
    fetch(executor, "/proc/version", sink)
    assert sink.getvalue() == Path("/proc/version").read_bytes()


@pytest.mark.parametrize("size", [None, 12])
def test_digest(executor: GuestExec, server: Scripted, tmp_path: Path, programs: bool, size: int | None) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    if size is not None and not programs:
        size = len(LARGE)  # there is no other way to read a part, and nobody asks for it
    assert file_sha256(executor, str(tmp_path / "file"), size) == hashlib.sha256(LARGE[:size]).hexdigest()
    assert ("guest-file-read" in server.work) is not programs
