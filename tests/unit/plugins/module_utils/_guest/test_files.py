# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AgentSilentError,
    CommandUnavailable,
    GuestFileError,
    HandleLostError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import (
    CHUNK,
    Copied,
    Encoded,
    GuestFile,
    copy_in,
    copy_out,
    exists,
)
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import (
    Clock,
    Request,
    Scripted,
    Session,
    Step,
    answers,
    closes,
    fails,
    returns,
    swallows,
)

FULL = "No space left on device"


def data_reply(data: bytes, **members: Any) -> Step:
    return returns({"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": False, **members})


EVERY_BYTE = bytes(range(256)) * 3
CHUNKS = os.urandom(2 * CHUNK + CHUNK // 2)
LENGTHS = (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(CHUNKS))

# Into the guest


@pytest.mark.parametrize("data", [b"", b"x", EVERY_BYTE])
def test_copy_in(agent: SocketAgent, guest: Guest, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a file ü"
    path.write_bytes(b"what was there before")
    copied = copy_in(agent, io.BytesIO(data), str(path))
    assert path.read_bytes() == data
    assert copied == Copied(len(data), True)
    assert guest.files == {}


@pytest.mark.parametrize("length", LENGTHS)
def test_copy_in_by_chunks(agent: SocketAgent, server: Scripted, tmp_path: Path, length: int) -> None:
    data = CHUNKS[:length]
    copied = copy_in(agent, io.BytesIO(data), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == data
    assert copied == Copied(length, length <= CHUNK), "what was more than a chunk is yet to be compared"
    assert server.work.count("guest-file-write") == -(-length // CHUNK)
    assert server.work[-1] == "guest-file-close"
    assert "guest-file-flush" in server.work


def test_copy_in_is_one_request_at_a_time(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    """A chunk near 1 MiB in a request, none sent before the last one was answered."""
    sizes: list[int] = []

    def watches(session: Session, request: Request) -> None:
        sizes.append(len(base64.b64decode(request.arguments["buf-b64"])))
        assert session.listens_for(0.05) == b""
        assert server.received[0].count(b"\n") == len(server.requests)
        answers(session, request)

    server.then("guest-file-write", watches, watches, watches)
    copy_in(agent, io.BytesIO(b"x" * (2 * CHUNK + 5)), str(tmp_path / "file"))
    assert sizes == [CHUNK, CHUNK, 5]


@pytest.mark.parametrize("there", [None, b"", b"there before\n"])
@pytest.mark.parametrize("data", [b"", b"new"])
def test_append(agent: SocketAgent, tmp_path: Path, there: bytes | None, data: bytes) -> None:
    path = tmp_path / "file"
    if there is not None:
        path.write_bytes(there)
    copied = copy_in(agent, io.BytesIO(data), str(path), "a+")
    assert path.read_bytes() == (there or b"") + data
    assert copied == Copied(len(data), True)


def test_short_write(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    server.then("guest-file-write", returns({"count": 4, "eof": False}))
    with pytest.raises(TransferError, match="4 of 5 bytes"):
        copy_in(agent, io.BytesIO(b"12345"), str(tmp_path / "file"))
    assert guest.files == {}


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("guest-file-write", f"failed to write to file: {FULL}"),
        ("guest-file-flush", f"failed to flush file: {FULL}"),
        ("guest-file-close", f"failed to close handle: {FULL}"),
    ],
)
def test_full_disk_wherever_it_is_told(
    agent: SocketAgent, server: Scripted, tmp_path: Path, command: str, text: str
) -> None:
    server.then(command, fails(text))
    with pytest.raises(GuestFileError) as caught:
        copy_in(agent, io.BytesIO(b"12345"), str(tmp_path / "file"))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.command == command
    assert server.work.count("guest-file-close") == 1


def test_trouble_of_closing_does_not_hide_the_trouble_before_it(
    agent: SocketAgent, server: Scripted, tmp_path: Path
) -> None:
    server.then("guest-file-write", fails(f"failed to write to file: {FULL}"))
    server.then("guest-file-close", fails("failed to close handle: Input/output error"))
    with pytest.raises(GuestFileError) as caught:
        copy_in(agent, io.BytesIO(b"12345"), str(tmp_path / "file"))
    assert caught.value.errno == errno.ENOSPC


def test_other_content_than_was_written(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    server.then("guest-file-read", data_reply(b"1234X"))
    with pytest.raises(TransferError, match="reads back differently"):
        copy_in(agent, io.BytesIO(b"12345"), str(tmp_path / "file"))
    assert guest.files == {}


def test_other_position_than_was_written(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    size = len(CHUNKS)
    server.then("guest-file-seek", returns({"position": size - 1, "eof": False}))
    with pytest.raises(TransferError, match=rf"{size} bytes were sent .* {size - 1} are there"):
        copy_in(agent, io.BytesIO(CHUNKS), str(tmp_path / "file"))
    assert guest.files == {}


def test_appended_to_by_somebody_else_too(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "file"
    flush = server.answers["guest-file-flush"]

    def meanwhile(arguments: Any) -> Any:
        path.write_bytes(path.read_bytes() + b"!")
        return flush(arguments)

    server.answers["guest-file-seek"] = lambda arguments: {"position": path.stat().st_size, "eof": False}
    server.answers["guest-file-flush"] = meanwhile
    with pytest.raises(TransferError, match=r"3 bytes were sent .* 4 are there"):
        copy_in(agent, io.BytesIO(b"new"), str(path), "a+")


def test_source_that_breaks(agent: SocketAgent, guest: Guest, tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        copy_in(agent, Broken(), str(tmp_path / "file"))
    assert guest.files == {}


def does_it_and(lost: Step) -> Step:
    """Do what is asked for, and answer as ``lost`` does."""

    def step(session: Session, request: Request) -> None:
        session.server.value(request)
        lost(session, request)

    return step


LOST = [swallows, closes()]


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("lost", LOST)
def test_write_whose_reply_is_lost_is_done_once(
    agent: SocketAgent, server: Scripted, tmp_path: Path, lost: Step, arrives: bool
) -> None:
    """The position tells whether it was done."""
    server.then("guest-file-write", answers, does_it_and(lost) if arrives else lost)
    with GuestFile(agent, str(tmp_path / "file"), "w") as guest_file:
        for text in (b"123", b"45", b"6"):
            guest_file.write(text)
    assert (tmp_path / "file").read_bytes() == b"123456"
    assert server.work.count("guest-file-write") == (3 if arrives else 4)


@pytest.mark.parametrize("lost", LOST)
def test_write_to_a_pipe_whose_reply_is_lost_is_not_repeated(
    agent: SocketAgent, server: Scripted, tmp_path: Path, lost: Step
) -> None:
    """A pipe has no position, and it may have been written to."""
    server.then("guest-file-write", lost)
    server.then("guest-file-seek", *[fails("failed to seek file: Illegal seek")] * 3)
    with pytest.raises(OutcomeUnknownError) as caught, GuestFile(agent, str(tmp_path / "pipe"), "w") as guest_file:
        guest_file.write(b"12345")
    assert caught.value.command == "guest-file-write"
    assert server.work.count("guest-file-write") == 1
    assert server.work[-1] == "guest-file-close"


def test_write_that_may_have_arrived_is_never_said_not_to_have_been_sent(
    agent: SocketAgent, server: Scripted, tmp_path: Path
) -> None:
    """Its reply was lost, and then the agent answers nothing any more."""
    guest_file = GuestFile(agent, str(tmp_path / "file"), "w")
    server.then("guest-file-write", does_it_and(swallows))
    server.then("guest-sync-delimited", *[swallows] * 9)
    with pytest.raises(OutcomeUnknownError, match="guest-file-write may have run"):
        guest_file.write(b"12345")


def test_write_of_which_a_part_arrived(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    server.then("guest-file-write", swallows)
    server.then("guest-file-seek", returns({"position": 3, "eof": False}))
    with pytest.raises(TransferError, match="wrote 3 of 5 bytes"):
        copy_in(agent, io.BytesIO(b"12345"), str(tmp_path / "file"))


def test_agent_restarted_in_the_middle(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    def restarts(arguments: Any) -> Any:
        guest.files.clear()
        return guest.flush(arguments)

    server.answers["guest-file-flush"] = restarts
    with pytest.raises(HandleLostError, match="has not been found"):
        copy_in(agent, io.BytesIO(b"12345"), str(tmp_path / "file"))


# Out of the guest


@pytest.mark.parametrize("data", [b"", b"x", EVERY_BYTE])
def test_copy_out(agent: SocketAgent, guest: Guest, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a file ü"
    path.write_bytes(data)
    sink = io.BytesIO()
    copied = copy_out(agent, str(path), sink.write)
    assert sink.getvalue() == data
    assert copied == Copied(len(data), True)
    assert guest.files == {}


@pytest.mark.parametrize("length", LENGTHS)
def test_copy_out_by_chunks(agent: SocketAgent, tmp_path: Path, length: int) -> None:
    data = CHUNKS[:length]
    (tmp_path / "file").write_bytes(data)
    sink = io.BytesIO()
    copied = copy_out(agent, str(tmp_path / "file"), sink.write)
    assert sink.getvalue() == data
    assert copied == Copied(length, length <= CHUNK)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([(b"12345", False), (b"678", True), (b"", True)], id="short read with eof"),
        pytest.param([(b"12345", True), (b"678", True), (b"", True)], id="eof that was none: the file grew"),
        pytest.param([(b"12345678", False), (b"", True)], id="whole read without eof"),
        pytest.param([(b"1", False)] * 8 + [(b"", True)], id="a byte at a time"),
        pytest.param([(b"12345678", True), (b"", False)], id="an end without eof"),
    ],
)
def test_end_of_a_file_is_where_nothing_more_comes(
    agent: SocketAgent, server: Scripted, tmp_path: Path, pieces: list[tuple[bytes, bool]]
) -> None:
    (tmp_path / "file").touch()
    server.then("guest-file-read", *(data_reply(data, eof=eof) for data, eof in pieces))
    sink = io.BytesIO()
    assert copy_out(agent, str(tmp_path / "file"), sink.write).size == len(sink.getvalue())
    assert sink.getvalue() == b"".join(data for data, _eof in pieces)


def test_file_that_changes_between_two_looks_is_not_checked(
    agent: SocketAgent, server: Scripted, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    server.then("guest-file-read", data_reply(b"12:00"), data_reply(b""), data_reply(b"12:01"))
    assert not copy_out(agent, str(tmp_path / "file"), len).checked


def test_copy_out_of_what_has_no_size(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    """As in /proc, or where a FIFO is."""
    (tmp_path / "file").write_bytes(CHUNKS)
    server.then("guest-file-seek", fails("failed to seek file: Illegal seek"))
    sink = io.BytesIO()
    assert copy_out(agent, str(tmp_path / "file"), sink.write).size == len(CHUNKS)
    assert sink.getvalue() == CHUNKS


@pytest.mark.parametrize("cared_for", [0, CHUNK // 4 + 1, len(CHUNKS) - 1, len(CHUNKS)])
def test_what_somebody_else_takes_care_of_is_not_read(agent: SocketAgent, tmp_path: Path, cared_for: int) -> None:
    (tmp_path / "file").write_bytes(CHUNKS)
    sink, asked = io.BytesIO(), []

    def instead(first: Encoded, seconds: float, size: int) -> int:
        asked.append((first.decoded(), size))
        return sink.write(CHUNKS[:cared_for])

    copied = copy_out(agent, str(tmp_path / "file"), sink.write, instead=instead)
    assert asked == [(CHUNKS[: CHUNK // 4], len(CHUNKS))]
    assert sink.getvalue() == CHUNKS
    assert copied == Copied(len(CHUNKS), False)


def test_sink_that_breaks(agent: SocketAgent, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")

    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, FULL)

    with pytest.raises(OSError, match=FULL):
        copy_out(agent, str(tmp_path / "file"), full)
    assert guest.files == {}


@pytest.mark.parametrize(
    "reply",
    [
        {"count": 4, "buf-b64": "MTIzNDU=", "eof": False},
        {"count": 6, "buf-b64": "MTIzNDU=", "eof": False},
        {"count": 5, "buf-b64": "MTIzNDU", "eof": False},
        {"count": 5, "buf-b64": "MTIz\nNDU=", "eof": False},
        {"count": 5, "buf-b64": "MTIzNDÜ=", "eof": False},
        {"count": True, "buf-b64": "MQ==", "eof": False},
        {"count": 5, "eof": False},
        {"buf-b64": "MTIzNDU=", "eof": False},
        {"count": CHUNK + 1, "buf-b64": base64.b64encode(b"x" * (CHUNK + 1)).decode(), "eof": False},
    ],
    ids=[
        "too few",
        "too many",
        "unpadded",
        "newline",
        "not ASCII",
        "bool",
        "no data",
        "no count",
        "more than asked for",
    ],
)
def test_data_that_are_not_what_they_should_be(
    agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path, reply: dict[str, Any]
) -> None:
    (tmp_path / "file").touch()
    server.then("guest-file-read", returns(reply))
    with pytest.raises(ProtocolError):
        copy_out(agent, str(tmp_path / "file"), len)
    assert guest.files == {}


def test_directory(agent: SocketAgent, guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(GuestFileError, match="Is a directory") as caught:
        copy_out(agent, str(tmp_path), len)
    assert caught.value.errno == errno.EISDIR
    assert guest.files == {}


def test_no_such_file(agent: SocketAgent, tmp_path: Path) -> None:
    with pytest.raises(GuestFileError) as caught:
        copy_out(agent, str(tmp_path / "nope"), len)
    assert caught.value.errno == errno.ENOENT
    assert f"'{tmp_path}/nope'" in str(caught.value)


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("lost", LOST)
def test_read_whose_reply_is_lost_is_read_again(
    agent: SocketAgent, server: Scripted, tmp_path: Path, lost: Step, arrives: bool
) -> None:
    """The position may have moved on: it is where the reply was last read."""
    (tmp_path / "file").write_bytes(b"12345")
    server.then("guest-file-read", answers, does_it_and(lost) if arrives else lost)
    with GuestFile(agent, str(tmp_path / "file")) as guest_file:
        assert [guest_file.read(2) for _piece in range(4)] == [b"12", b"34", b"5", b""]


def test_agent_that_is_silent_in_the_middle_has_its_timeout_once_more(
    agent: SocketAgent, server: Scripted, clock: Clock, tmp_path: Path
) -> None:
    def pauses(session: Session, request: Request) -> None:
        clock.advance(20)
        session.send(b"\n")

    guest_file = GuestFile(agent, str(tmp_path / "file"), "w")
    clock.advance(1)
    server.then("guest-sync-delimited", pauses)
    guest_file.write(b"12345")
    guest_file.flush()
    clock.advance(1)
    began = clock.now
    server.then("guest-sync-delimited", *[pauses] * 9)
    with pytest.raises(AgentSilentError):
        guest_file.write(b"12345")
    assert 40 <= clock.now - began <= 60
    assert (tmp_path / "file").read_bytes() == b"12345"


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda file: file.read(), id="read"),
        pytest.param(lambda file: file.write(b"x"), id="write"),
        pytest.param(lambda file: file.seek(0), id="seek"),
        pytest.param(lambda file: file.flush(), id="flush"),
        pytest.param(lambda file: file.close(), id="close"),
    ],
)
def test_frozen_guest_is_waited_for_in_the_middle(
    agent: SocketAgent, server: Scripted, clock: Clock, tmp_path: Path, step: Callable[[GuestFile], object]
) -> None:
    began = clock.now
    guest_file = GuestFile(agent, str(tmp_path / "file"), "w+")
    server.freeze(100)
    step(guest_file)
    assert 100 <= clock.now - began < 103


def test_nothing_is_opened_in_a_frozen_guest(
    agent: SocketAgent, server: Scripted, clock: Clock, tmp_path: Path
) -> None:
    server.freeze(100)
    began = clock.now
    with pytest.raises(CommandUnavailable) as caught:
        copy_in(agent, io.BytesIO(b"x"), str(tmp_path / "file"))
    assert caught.value.reason == "frozen" and clock.now == began


# Handles


def test_handle_is_closed_once(agent: SocketAgent, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    with GuestFile(agent, str(tmp_path / "file"), "w") as guest_file:
        guest_file.write(b"x")
        guest_file.close()
    guest_file.close()
    assert server.work.count("guest-file-close") == 1


def test_handle_is_closed_when_an_exception_passes(agent: SocketAgent, guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), GuestFile(agent, str(tmp_path / "file"), "w"):
        raise KeyboardInterrupt
    assert guest.files == {}


def test_failed_close_is_not_tried_again(agent: SocketAgent, server: Scripted, tmp_path: Path) -> None:
    server.then("guest-file-close", fails(f"failed to close handle: {FULL}"))
    guest_file = GuestFile(agent, str(tmp_path / "file"), "w")
    with pytest.raises(GuestFileError):
        guest_file.close()
    guest_file.close()
    assert server.work.count("guest-file-close") == 1


def test_nothing_is_closed_that_did_not_open(agent: SocketAgent, server: Scripted) -> None:
    with pytest.raises(GuestFileError), GuestFile(agent, "/nope/nope"):
        raise AssertionError("not reached")
    assert "guest-file-close" not in server.work


def test_seek(agent: SocketAgent, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with GuestFile(agent, str(tmp_path / "file")) as guest_file:
        assert [guest_file.seek(3), guest_file.seek(2, 1), guest_file.seek(-1, 2)] == [3, 5, 9]
        assert guest_file.read() == b"9"
        guest_file.seek(2)
        assert guest_file.read(3) == b"234"


# exists


def open_fails(cause: str) -> Step:
    return fails(f"failed to open file '/x' (mode: 'r'): {cause}")


@pytest.mark.parametrize(
    ("cause", "there"),
    [
        ("No such file or directory", False),
        ("Not a directory", False),
        ("Permission denied", True),
        ("Is a directory", True),
        ("No such device or address", True),
        ("Text file busy", True),
    ],
)
def test_exists_by_the_error(agent: SocketAgent, server: Scripted, cause: str, there: bool) -> None:
    server.then("guest-file-open", open_fails(cause))
    assert exists(agent, "/x") is there


@pytest.mark.parametrize("kind", ["file", "directory", "nothing"])
def test_exists(agent: SocketAgent, guest: Guest, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    assert exists(agent, str(path)) is (kind != "nothing")
    assert guest.files == {}


def test_exists_cannot_be_told(agent: SocketAgent, server: Scripted) -> None:
    server.then("guest-file-open", open_fails("Something new"))
    with pytest.raises(GuestFileError):
        exists(agent, "/x")


def test_exists_where_files_are_blocked(scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]) -> None:
    server = scripted(blocked={"guest-file-open": "Command guest-file-open has been disabled"})
    with pytest.raises(CommandUnavailable):
        exists(connect(server), "/x")


def test_all_errors_are_ours(agent: SocketAgent, server: Scripted) -> None:
    server.then("guest-file-open", fails("failed to commit persistent state to disk"))
    with pytest.raises(QgaError) as caught:
        GuestFile(agent, "/x")
    assert caught.value.__class__ is GuestFileError
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value).endswith("Is the guest's /run full?")
