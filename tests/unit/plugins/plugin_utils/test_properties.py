# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever they are told: what the mux, the relay and the server of warm interpreters make of it."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OutcomeUnknownError, TransferError
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.relay import Relay
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.relay_client import RelayNote, started_path
from ansible_collections.qemu.guest.plugins.plugin_utils._mux_server import KeptChannel, MuxServer
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.spool import Spool
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.call import Call
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import frames, wire
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.payload_cache import Archives
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.task_output import LOST
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.wire import ClientRequest
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.payload import MalformedArchive, read_archive
from ansible_collections.qemu.guest.tests.unit.plugins.module_utils._agent.test_properties import StreamAgent
from ansible_collections.qemu.guest.tests.unit.properties import bytes_of, names
from ansible_collections.qemu.guest.tests.unit.warm import a_request, an_interpreter

# The mux


@contextmanager
def mux() -> Iterator[tuple[MuxServer, Path]]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        path = Path(directory, "mux")
        listener.bind(str(path))
        listener.listen(8)
        server = MuxServer(listener)
        with server.poller:
            yield server, path
            for key in list(server.channels):
                server.drop(key)
            for client in list(server.clients.values()):
                server.part(client)


def turn(server: MuxServer) -> None:
    """Have the server act on all that it was sent."""
    while True:
        events = server.poller.poll(0)
        if not events:
            return
        for descriptor, _event in events:
            if descriptor == server.listener.fileno():
                server.welcome()
            elif descriptor in server.streams:
                server.drop(server.streams[descriptor])
            elif descriptor in server.clients:
                server.listen(server.clients[descriptor])
        server.look()


def dialled(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(5)
    client.connect(str(path))
    return client


words = st.sampled_from([b"keep", b"join", b"visit", b"take", b"step", b"end", b"note", b"noted", b"other", b" "])
rests = bytes_of(b"k", b" ", b"60") | st.sampled_from([b"k 60", b"k inf", b"k nan", b"k -1", b"k x"])
packets = st.builds(lambda word, rest: word + b" " + rest, words, rests)
descriptors = st.sampled_from(["", "socket", "file", "both", "reversed"])


@given(st.lists(st.tuples(packets, descriptors), max_size=6))
@example([(b"keep k", "both"), (b"keep k 60", "reversed"), (b"keep k nan", "both")])
def test_no_packet_ends_the_mux_and_other_clients_go_on(said: list[tuple[bytes, str]]) -> None:
    with mux() as (server, path), ExitStack() as stack:
        before = len(os.listdir("/proc/self/fd"))
        stream, _other = socket.socketpair()
        lock = stack.enter_context(tempfile.TemporaryFile())
        owner = stack.enter_context(dialled(path))
        with stream, _other:
            socket.send_fds(owner, [b"keep mine 60"], [stream.fileno(), lock.fileno()])
            client = stack.enter_context(dialled(path))
            turn(server)
            for data, what in said:
                theirs, _far = socket.socketpair()
                with theirs, _far, tempfile.TemporaryFile() as file:
                    both = [theirs.fileno(), file.fileno()]
                    sent = {"": [], "socket": both[:1], "file": both[1:], "both": both, "reversed": both[::-1]}
                    try:
                        socket.send_fds(client, [data], sent[what])
                    except OSError:  # it was shown out
                        client = stack.enter_context(dialled(path))
                        turn(server)
                        socket.send_fds(client, [data], sent[what])
                    turn(server)
            assert owner.send(b"noted x") and not server.is_done
            turn(server)
            assert owner.recv(100) == b"noted "
            for key in list(server.channels):
                server.drop(key)
            turn(server)
        stack.close()
        turn(server)
        assert len(os.listdir("/proc/self/fd")) == before, "nothing stays open"


@given(st.lists(st.tuples(st.sampled_from(["queue", "release", "part", "pass"]), st.integers(0, 2)), max_size=20))
def test_one_client_at_most_has_the_turn_and_each_gets_it(acts: list[tuple[str, int]]) -> None:
    class Told:
        def __init__(self, name: str) -> None:
            self.name, self.packets = name, list[bytes]()

        def tell(self, data: bytes) -> None:
            self.packets.append(data)

    with tempfile.TemporaryFile() as lock:
        kept = KeptChannel([-1, lock.fileno()], 60)
        clients: list[Any] = [Told(str(number)) for number in range(3)]
        for act, number in acts:
            client = clients[number]
            if act == "queue" and client not in kept.waiting and kept.turn is not client:
                kept.queue(client, b"")
            elif act == "release":
                kept.release(client, b"state")
            elif act == "part":
                kept.part(client)
            if act == "part":
                assert client not in kept.waiting and kept.turn is not client
            kept.pass_on()
            assert kept.turn not in kept.waiting
            assert kept.turn or not kept.waiting


# The relay


@given(
    st.lists(
        bytes_of(b"a" * 32, b" ", b"connect ", b"listen ", b"/nowhere", b"\n", b"\0", b"x" * 1025),
        min_size=1,
        max_size=4,
    )
)
def test_relay_leads_nobody_without_the_secret_and_tells_others_why_not(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/socket")
        listener.listen()
        relay = Relay(listener, b"a" * 32, b"answer", os.geteuid(), 60)
        relay._accept_from(True)
        with relay._epoll, socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{directory}/socket")
            client.settimeout(5)
            for piece in pieces:
                with suppress(OSError):
                    client.send(piece)
                while relay._epoll.poll(0):
                    relay._round(0)
            first = b"".join(pieces).partition(b"\n")[0]
            client.setblocking(False)
            with suppress(BlockingIOError, ConnectionResetError):
                said = client.recv(1000)
                if not first.startswith((b"a" * 32 + b" connect ", b"a" * 32 + b" listen ")):
                    assert said == b""
                assert said.startswith((b"error ", b"ok answer ")) or not said
            for connection, _end in list(relay._connections.values()):
                relay._close(connection)
            while relay._closing:
                relay._closing.pop().close()


@given(bytes_of(b"qga-relay ", b"/run/x", b" 7\n", b"\n", b"\r", b"0\n", b"root"))
def test_what_a_login_prints_is_a_relay_or_none(output: bytes) -> None:
    path = started_path(output)
    assert path is None or (path.startswith("/") and not {*path} & {" ", "\n", "\r", "\t"})
    note = RelayNote.parse(output)
    assert note is None or note.uid >= 0


# The ring and the answers of warm interpreters

requests = st.builds(
    ClientRequest,
    st.binary(max_size=200),
    key=st.text(max_size=5),
    command=names,
    archive=st.text(max_size=5),
    split_at=st.integers(0, 9),
    call=st.lists(st.text(max_size=3) | st.integers(), max_size=3),
    in_time=st.booleans(),
)


@given(st.integers(1, 10**16), requests)
def test_request_on_the_ring_is_what_it_was(number: int, request: ClientRequest) -> None:
    line = wire.ring_line(number, request.packed())
    assert b"\n" not in line
    told, packed = wire.read_ring_line(line)
    assert told == number and vars(ClientRequest.unpacked(packed)) == vars(request)
    assert wire.read_ring_line(wire.ring_line(number)) == (number, b"")


@given(st.integers(1, 10**16), requests, st.integers(0, 400), st.integers(1, 255))
def test_damaged_request_is_an_error_or_the_same(number: int, request: ClientRequest, place: int, change: int) -> None:
    line = bytearray(wire.ring_line(number, request.packed()))
    digits = len(b"=%d " % number)
    place = digits + place % (len(line) - digits)
    line[place] ^= change
    with suppress(ValueError):
        assert wire.read_ring_line(bytes(line)) == (number, request.packed())
    with suppress(ValueError):  # half a line, of a client that was killed
        assert wire.read_ring_line(bytes(line[:place]))[1] in (b"", request.packed())


@given(bytes_of(b"=", b"1", b" ", b"eJwDAAAAAAE=", b"-", b"9" * 5000))
def test_any_line_on_the_ring_is_a_request_or_a_value_error(line: bytes) -> None:
    with suppress(ValueError):
        number, packed = wire.read_ring_line(line)
        assert isinstance(number, int) and isinstance(packed, bytes)


ANSWERS = (
    b"7 taken\n",
    b"7 begun\n",
    b"7 answer 3\n",
    b"abc",
    b"7 answer 0\n",
    b"8 answer 1\nx",
    b"7 answer 99999999\n",
)


@given(bytes_of(*ANSWERS), st.integers(0, 60))
def test_answer_is_whole_or_there_is_none(text: bytes, size: int) -> None:
    call = Call(StreamAgent([]), Spool(StreamAgent([]), "/run/x"), 7)
    with suppress(OutcomeUnknownError):
        answer = call._answer_in(text)
        if answer is not None:
            assert b"7 answer %d\n%b" % (len(answer), answer) in text or b"7 answer 0" in text
            # What is written of it later changes nothing; before it was whole, there was none.
            assert call._answer_in(text + b"7 answer 1\nx") == answer
            assert call._answer_in(text[:size]) in (None, answer)


@given(bytes_of(b"0 ", b"=3 ", b"- ", b"o ", b".", b"\n", b"abc", b"=999999999999 ", b"255 =1 =1 .\nxy"))
def test_result_of_a_program_is_its_own_or_an_error(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "_output", lambda self, name: b"file")
        with suppress(TransferError):
            status, output, errors = Spool(StreamAgent([]), "/run/x").result(7, content)
            assert 0 <= status <= 999 and len(output) + len(errors) <= len(content) + 8


# Pieces and archives


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(0, 200))
def test_pieces_are_what_they_were_and_half_a_file_has_fewer(pieces: list[bytes], size: int) -> None:
    def read(data: bytes) -> list[bytes]:
        file = io.BytesIO(data)
        return list(iter(lambda: wire.piece(file), None))

    assert read(wire.joined(pieces)) == pieces
    assert read(wire.joined(pieces)[:size]) == pieces[: len(read(wire.joined(pieces)[:size]))]


def module(files: dict[str, bytes], method: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, source in files.items():
            archive.writestr(zipfile.ZipInfo(name), source, method)
    return base64.b64encode(content.getvalue())


files = st.dictionaries(
    st.sampled_from(["ansible/a.py", "ansible/__init__.py", "b.py", "data.txt"]), st.binary(max_size=60), min_size=1
)


@given(files, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), st.integers(0, 2000), st.integers(0, 255))
def test_guest_has_the_archive_that_was_sent_or_wants_it(
    files: dict[str, bytes], method: int, place: int, change: int
) -> None:
    text = module(files, method)
    archive = read_archive(text)
    assert archive
    every = [part[: wire.REMEMBERED] for part in archive.parts]
    brought = bytearray(archive.brought(every))
    brought[place % len(brought)] ^= change
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "1.parts")
        archives = Archives()
        path.write_bytes(brought)
        content, wanted = archives.found(archive.digest, str(path))
        if wanted:
            assert change and wanted.startswith(wire.MISSING)
            path.write_bytes(archive.brought(every))
            content, wanted = archives.found(archive.digest, str(path))
        assert content.split(b"\n")[1] == text and wanted == b""


@given(
    st.binary(max_size=200) | st.builds(module, files, st.just(zipfile.ZIP_STORED)),
    st.integers(0, 400),
    st.integers(1, 255),
)
def test_any_archive_is_taken_to_pieces_or_refused(text: bytes, place: int, change: int) -> None:
    with suppress(ValueError):
        content = bytearray(base64.b64decode(text, validate=True))
        if content:
            content[place % len(content)] ^= change
        text = base64.b64encode(content)
    archive = read_archive(text)
    if archive:
        with suppress(MalformedArchive):
            assert archive.recipe and len(archive.remembered()) == len(archive.parts)


# Interpreters


@given(
    st.tuples(st.binary(max_size=30), st.binary(max_size=30)),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.lists(st.integers(1, 20), max_size=5),
)
def test_request_to_an_interpreter_is_what_it_was(
    parts: tuple[bytes, bytes], serial: int, in_time: bool, cuts: list[int]
) -> None:
    said = {"serial": serial, "archive": "a", "split_at": 1, "forget": [], "call": ["f", 1], "in_time": in_time}
    header = json.dumps(said).encode()
    sent = frames.frame(header, *parts)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for cut in cuts:
            ours.sendall(sent[:cut])
            sent = sent[cut:]
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        request = frames.receive(theirs)
        assert request and (request.content, request.program) == parts
        assert (request.header, request.serial, request.in_time, request.streams) == (header, serial, in_time, [])
        assert frames.receive(theirs) is None


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))), st.binary(max_size=frames.RECORD - 1))
def test_records_are_what_they_were_and_half_a_record_is_none(of: list[tuple[int, int]], half: bytes) -> None:
    assert frames.records(b"".join(frames.record(*one) for one in of) + half) == of


@given(
    st.lists(
        bytes_of(frames.record(1, 0), frames.record(1, 256), frames.record(2, 3), frames.record(1, 258)).filter(bool),
        max_size=4,
    )
)
def test_interpreter_that_says_anything_costs_itself_alone(pieces: list[bytes]) -> None:
    one, zygote = an_interpreter()
    with zygote, tempfile.TemporaryDirectory() as directory:
        one.hand_over(7, a_request(), f"{directory}/7")
        for piece in pieces:
            if not one.dead:
                zygote.send(piece)
                one.listen()
        data = b"".join(pieces)
        first = struct.unpack("<IH", data[:6]) if len(data) >= 6 else None
        task = next(iter(one.tasks.values()))
        if first and (first[0] != 1 or first[1] > frames.LARGEST_STATUS):
            assert one.dead and task.rc == LOST
        elif first and not one.dead:
            assert task.rc is not None and 0 <= task.rc <= frames.LARGEST_STATUS
        task.drop()
        one.close()


@given(names, st.text())
def test_note_of_a_relay_is_kept_or_forgotten(path: str, answer: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = f"{directory}/note"
        note = RelayNote(0, path, "ask", answer)
        note.save(file)
        assert RelayNote.load(file) == note
        Path(file).write_bytes(Path(file).read_bytes()[:-1])
        assert RelayNote.load(file) is None
