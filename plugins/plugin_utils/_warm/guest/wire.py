# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For both ends: what the clients (_warm/client.py, call.py) and the server of warm interpreters agree on.

The server has a spool as the runner has (_runner/spool.py). Its name has a digest of this directory, so both ends are
always of the same version. A client makes the file NUMBER.rc, with a number that cannot be guessed, and writes a line
to the spool's ring: C(=NUMBER REQUEST), or C(NUMBER), with the request in NUMBER.in. The server writes lines with that
number to NUMBER.rc:

    NUMBER taken            the server has the request, and will answer it as long as it lives
    NUMBER begun            an interpreter has the request: if the server ends now, it may have been run
    NUMBER answer SIZE      SIZE bytes, the answer, follow this line

An answer is a result as the runner leaves it, followed by its output; or a word: C(plain), the request was not run
and is to be run the plain way; C(missing), the module's archive is missing here, except for the parts named after the
word; C(full), there was no room for the result; C(lost), its interpreter ended, and the next line may say why.

A client brings the missing parts of an archive in a file of pieces: its recipe, code of its modules, code of the
modules of this package if it starts the server, and the parts.
"""

from __future__ import annotations

import binascii
import json
import zlib

from .hashing import sha256

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    Places = list[tuple[str, int]]
    """Of each part of an archive: its checksum, and its offset in the bytes between the parts."""
    Table = dict[str, tuple[str, bool]]
    """By module's name: the digest of its source, and whether it is a package."""

NO_ROOM = 75
"""Exit status of a server that could not start (EX_TEMPFAIL): starting failed for now; try again later."""

RING = "ring"
PARTS_SUFFIX = "parts"
"""Suffix of the file in which a client brings parts. Those of other files are the runner's."""

TAKEN, BEGUN, ANSWER = b"taken", b"begun", b"answer"
PLAIN, MISSING, FULL, LOST = b"plain\n", b"missing", b"full\n", b"lost\n"
"""Answers that are no result, or their beginnings."""

MOST_OUTPUT = 64 << 10
"""Bytes of each stream that are in an answer. Longer output is in a file of its own."""
LONGEST_ANSWER = 4 * MOST_OUTPUT
LARGEST_OUTPUT = 256 << 20
"""Bytes of each stream that are kept, as the runner does (LARGEST_OUTPUT of _guest/executor.py)."""
REMEMBERED = 12
"""Letters of a part's checksum by which it is named in answers."""

QUIT = b"quit"
"""The line on the ring that ends the server when no task is at work."""


class ClientRequest:
    """A client's request: to run a module, or a shell command.

    ``command`` is the command line that starts the interpreter for a module; it is empty for a shell command, which is
    part of ``program``. ``key`` names that interpreter, ``path`` is its PATH, and ``marker`` the word by which become
    shows success. A module's ``archive`` is a digest; ``program`` is the program around it, where its place is
    ``split_at`` bytes from the start. Without one, the first ``split_at`` bytes are a shell command and the rest is its
    input; ``call`` is a function of shell_runner.py that does the same, and its arguments. ``in_time``: it may have to
    be ended. ``users``: it may remove a user, which fails while the user has processes.
    """

    content = b""  # of its archive, which the server adds
    tries = 0  # of the server, to have it run

    def __init__(
        self,
        program: bytes,
        key: str = "",
        command: str = "",
        marker: str = "",
        path: str = "",
        archive: str = "",
        split_at: int = 0,
        call: Sequence[str | int] = (),
        in_time: bool = False,
        users: bool = False,
    ) -> None:
        self.program = program
        self.key = key
        self.command = command
        self.marker = marker
        self.path = path
        self.archive = archive
        self.split_at = split_at
        self.call = list(call)
        self.in_time = in_time
        self.users = users

    def header(self) -> str:
        """Return everything but the program, in one line."""
        return json.dumps({name: value for name, value in vars(self).items() if name != "program"})

    def packed(self) -> bytes:
        return self.header().encode("ascii") + b"\n" + self.program

    @staticmethod
    def unpacked(content: bytes) -> ClientRequest:
        header, _newline, program = content.partition(b"\n")
        return ClientRequest(program, **json.loads(header.decode("ascii")))


def ring_line(number: int, request: bytes = b"") -> bytes:
    """Return the line on the ring for a request; without ``request``, that is in a file."""
    if not request:
        return b"%d" % number
    return b"=%d %b" % (number, binascii.b2a_base64(zlib.compress(request), newline=False))


def read_ring_line(line: bytes) -> tuple[int, bytes]:
    """Return the number and the request, which is empty if it is in a file.

    :raise ValueError: if the line makes no sense.
    """
    number, _space, packed = line.lstrip(b"=").partition(b" ")
    try:
        return int(number), zlib.decompress(binascii.a2b_base64(packed)) if packed else b""
    except zlib.error as exc:
        raise ValueError(str(exc)) from None


def joined(pieces: Sequence[bytes]) -> bytes:
    """Return a file of pieces. Each follows its size, in four bytes."""
    return b"".join([len(piece).to_bytes(4, "little") + piece for piece in pieces])


def piece(file: BinaryIO) -> bytes | None:
    """Return the next piece of a client's file; None if it is not complete."""
    header = file.read(4)
    size = int.from_bytes(header, "little")
    content = file.read(size)
    return content if len(header) == 4 and len(content) == size else None


def checksum(content: bytes) -> str:
    """Return the SHA-256 of ``content``, by which parts are named."""
    return str(sha256(content).hexdigest())


def recipe(digest: str, places: Places, table: Table, between: bytes) -> bytes:
    """Return how parts make the archive of this digest."""
    lines = b"\n".join([json.dumps(places).encode("ascii"), json.dumps(table).encode("ascii"), between])
    return zlib.compress(_seal(digest, lines) + b"\n" + lines)


def read_recipe(content: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the contents of a recipe: its seal, the places and the table as JSON, and the bytes between the parts.

    :raise ValueError: if it is not whole.
    """
    try:
        seal, places, table, between = zlib.decompress(content).split(b"\n", 3)
    except zlib.error as exc:
        raise ValueError(str(exc)) from None
    return seal, places, table, between


def is_recipe_of(digest: str, seal: bytes, *rest: bytes) -> bool:
    """Return whether this is a recipe, as read_recipe() returns it, for the archive of this digest."""
    return _seal(digest, b"\n".join(rest)) == seal


def _seal(digest: str, lines: bytes) -> bytes:
    return checksum(digest.encode("ascii") + lines).encode("ascii")
