# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives as a guest's tar makes them, and as a guest that means harm makes them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import TransferError
from ansible_collections.qemu.guest.plugins.module_utils._guest.tar import Member, members
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree_fetch import unpack

BLOCK = 512
LONG = "x" * 90 + "/" + "y" * 200


def archive(*of: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, target: str = "", **how: Any) -> bytes:
    """Return an archive of members with content; all are of one kind."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", **{"format": tarfile.GNU_FORMAT, **how}) as tar:
        for name, content in of:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname, member.mode = kind, len(content), target, 0o754
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def patched(data: bytes, start: int, patch: bytes) -> bytes:
    """Return an archive whose first header was changed, with the checksum that belongs to it."""
    header = bytearray(data[:BLOCK])
    header[start : start + len(patch)] = patch
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[BLOCK:]


def read(data: bytes) -> list[tuple[Member, bytes]]:
    file = io.BytesIO(data)
    return [(member, file.read(member.size)) for member in members(file)]


def test_archive_of_the_tar_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / LONG).parent.mkdir()
    for name in ("one", LONG):
        (tmp_path / name).write_text(name)
    os.link(tmp_path / "one", tmp_path / "other")
    command = ["tar", "--format=gnu", "-cf", "-", "./one", f"./{LONG}", "./other"]
    made = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout
    assert [(member.name.decode(), member.kind, member.target, got.decode()) for member, got in read(made)] == [
        ("./one", "file", b"", "one"),
        (f"./{LONG}", "file", b"", LONG),
        ("./other", "hardlink", b"./one", ""),
    ]


def test_several_archives_one_after_another_are_one() -> None:
    made = archive(("a", b"1")) + archive(("b", b"2"))
    assert [(member.name, got) for member, got in read(made)] == [(b"a", b"1"), (b"b", b"2")]


def test_content_need_not_be_read() -> None:
    assert [member.name for member in members(io.BytesIO(archive(("a", bytes(3000)), ("b", b""))))] == [b"a", b"b"]


HUGE = b"\x80" + (1 << 70).to_bytes(11, "big")
NEGATIVE = b"\xff" * 12
UNREADABLE = {
    "not an archive": lambda: b"what" * 1000,
    "half a header": lambda: archive(("a", b""))[:300],
    "damaged": lambda: b"b" + archive(("a", b"1"))[1:],
    "not whole": lambda: archive(("a", b"1"))[:BLOCK],
    "more than there is": lambda: patched(archive(("a", b"1")), 124, HUGE),
    "negative": lambda: patched(archive(("a", b"1")), 124, NEGATIVE),
    "no number": lambda: patched(archive(("a", b"1")), 124, b"-0000000001\0"),
    "sparse": lambda: patched(archive(("a", b"1")), 156, b"S"),
    "extended": lambda: archive((LONG, b"1"), format=tarfile.PAX_FORMAT),
    "extended for all": lambda: archive(("a", b""), format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}),
    "a name without end": lambda: archive(("x" * 100_000, b"1")),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_no_tar_was_asked_for_is_refused(name: str) -> None:
    with pytest.raises(TransferError, match=r"the archive that the guest made is|of a format that is not read here"):
        read(UNREADABLE[name]())


def test_nothing_but_zeros_is_nothing() -> None:
    assert read(bytes(BLOCK * 10_000)) == []


# What becomes of it on the disk.

HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "absolute": lambda out: archive((str(out / "file"), b"bad")),
    "upwards": lambda out: archive(("../out/file", b"bad"), ("./a/../../out/file", b"bad")),
    "link": lambda out: archive(("./a", b""), kind=tarfile.SYMTYPE, target=str(out)) + archive(("./a/file", b"bad")),
    "link in the place of a file": lambda out: archive(("./f", b""), kind=tarfile.SYMTYPE, target=str(out / "file")),
    "hard link": lambda out: archive(("./f", b""), kind=tarfile.LNKTYPE, target=str(out / "file")),
    "hard link upwards": lambda _out: archive(("./f", b""), kind=tarfile.LNKTYPE, target="../out/file"),
    "device": lambda _out: archive(("./f", b""), kind=tarfile.CHRTYPE),
    "FIFO": lambda _out: archive(("./f", b""), kind=tarfile.FIFOTYPE),
    "directory": lambda _out: archive(("./f", b""), kind=tarfile.DIRTYPE),
    "not asked for": lambda _out: archive(("./g", b"bad"), ("g", b"bad"), ("f", b"bad"), ("", b"bad"), (".", b"bad")),
}


@pytest.fixture
def dest(tmp_path: Path) -> bytes:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("secret")
    (tmp_path / "dest" / "a").mkdir(parents=True)
    return bytes(tmp_path / "dest")


def tree(top: Path) -> dict[str, str]:
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_written_but_what_was_asked_for(name: str, dest: bytes, tmp_path: Path) -> None:
    data = HOSTILE[name](tmp_path / "out") + archive(("./a/wanted", b"good"))
    total, came = unpack(io.BytesIO(data), dest, [b"./f", b"./a/wanted"])
    assert (total, list(came)) == (4, [b"./a/wanted"])
    assert tree(tmp_path) == {"out/file": "secret", "dest/a/wanted": "good"}


def test_file_takes_the_place_of_a_link(dest: bytes, tmp_path: Path) -> None:
    (tmp_path / "dest" / "f").symlink_to(tmp_path / "out" / "file")
    unpack(io.BytesIO(archive(("./f", b"good"))), dest, [b"./f"])
    assert tree(tmp_path) == {"out/file": "secret", "dest/f": "good"}
    assert (tmp_path / "dest" / "f").stat().st_mode & 0o777 == 0o700


def test_second_of_a_name_is_not_taken(dest: bytes, tmp_path: Path) -> None:
    unpack(io.BytesIO(archive(("./f", b"first"), ("./f", b"second"))), dest, [b"./f"])
    assert tree(tmp_path / "dest") == {"f": "first"}


def test_hard_links_take_no_room(dest: bytes, tmp_path: Path) -> None:
    names = [b"./%d" % number for number in range(1000)]
    links = [archive((name.decode(), b""), kind=tarfile.LNKTYPE, target="./0") for name in names[1:]]
    total, came = unpack(io.BytesIO(archive(("./0", bytes(100_000))) + b"".join(links)), dest, names)
    assert (total, len(came), len(set(came.values()))) == (100_000, 1000, 1)
    assert (tmp_path / "dest" / "999").samefile(tmp_path / "dest" / "0")


def test_archive_that_ends_too_early_leaves_no_part_of_a_file(dest: bytes, tmp_path: Path) -> None:
    data = archive(("./a/b", b"good"), ("./f", bytes(5000)))
    with pytest.raises(TransferError, match="not whole"):
        unpack(io.BytesIO(data[: 3 * BLOCK + 1000]), dest, [b"./a/b", b"./f"])
    assert tree(tmp_path / "dest") == {"a/b": "good"}
