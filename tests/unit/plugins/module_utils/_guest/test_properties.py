# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a guest's programs print, pack and archive; and names of any bytes, in any shell command of ours."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import TransferError
from ansible_collections.qemu.guest.plugins.module_utils._guest import tree
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import (
    file_command,
    part_command,
    sha256_command,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.compression import GZIP, ZSTD, Packer
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import variables
from ansible_collections.qemu.guest.plugins.module_utils._guest.tar import members
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import unpack_command
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree_fetch import unpack
from ansible_collections.qemu.guest.plugins.module_utils._guest.zstd import zstd_decompress
from ansible_collections.qemu.guest.tests.unit.properties import bytes_of, names

BLOCK = 512
packers = st.sampled_from([ZSTD, GZIP])

# Archives


def tar_of(of: list[tuple[str, bytes, bytes, str]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """Return an archive of members: their names, kinds, contents, and the names that they link to."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, kind, content, target in of:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname, member.mode = kind, len(content), target, 0o754
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def with_checksums(data: bytes) -> bytes:
    """Return an archive in which each block that looks like a header has the checksum that belongs to it."""
    whole = bytearray(data)
    for start in range(0, len(whole) - BLOCK + 1, BLOCK):
        header = whole[start : start + BLOCK]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            whole[start + 148 : start + 156] = b"%06o\0 " % (sum(header) & 0o777777)
    return bytes(whole)


@given(
    st.lists(st.tuples(names | st.just("x" * 90 + "/" + "y" * 60), st.binary(max_size=2000)), max_size=4),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
)
@example([("x" * 90 + "/" + "y" * 200, bytes(70_000)), ("b", bytes(BLOCK))], tarfile.GNU_FORMAT)
def test_archive_is_read_as_it_was_made(files: list[tuple[str, bytes]], form: int) -> None:
    made = io.BytesIO(tar_of([(name, tarfile.REGTYPE, content, "") for name, content in files], form))
    assert [(m.name, m.kind, m.mode, made.read(m.size)) for m in members(made)] == [
        (os.fsencode(name), "file", 0o754, content) for name, content in files
    ]


kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, b"S", b"L"]
)
paths = st.sampled_from(["./f", "./a/b", "../out/file", "/etc/passwd", "./a", ".", "", "x" * 200]) | names
hostile = st.builds(
    lambda of, patches: with_checksums(patched(tar_of(of), patches)),
    st.lists(st.tuples(paths, kinds, st.binary(max_size=600), paths), max_size=4),
    st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=12)), max_size=3),
)


def patched(data: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    for start, patch in patches:
        data = data[:start] + patch + data[start + len(patch) :]
    return data


@given(hostile | st.binary(max_size=2000))
def test_all_that_is_read_of_an_archive_is_in_it(data: bytes) -> None:
    made = io.BytesIO(data)
    total = 0
    with suppress(TransferError):
        for member in members(made):
            assert member.kind in ("file", "hardlink", "other") and member.mode <= 0o777
            assert len(made.read(member.size)) == member.size
            total += member.size + BLOCK
    assert total <= len(data)


@given(hostile)
def test_nothing_is_unpacked_but_the_files_that_were_asked_for(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as top:
        (Path(top) / "out").mkdir()
        (Path(top) / "out" / "file").write_text("secret")
        (Path(top) / "dest" / "a").mkdir(parents=True)
        with suppress(TransferError):
            total, came = unpack(io.BytesIO(data), os.fsencode(f"{top}/dest"), [b"./f", b"./a/b"])
            assert total <= len(data) and set(came) <= {b"./f", b"./a/b"}
        there = {str(path.relative_to(top)): path for path in Path(top).rglob("*")}
        assert set(there) <= {"out", "out/file", "dest", "dest/a", "dest/f", "dest/a/b"}
        assert there["out/file"].read_text() == "secret" and there["out/file"].stat().st_nlink == 1
        assert not any(path.is_symlink() for path in there.values())


# Compression


@given(packers, st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(1, 100), st.integers(-1, 1))
@example(ZSTD, [bytes(1 << 17), bytes(1 << 17)], 7, 0)
def test_content_comes_back_however_it_arrives_and_no_more_than_is_allowed(
    packer: Packer, pieces: list[bytes], step: int, more: int
) -> None:
    pack = packer.packing()
    packed = pack(b"".join(pieces)) if packer is GZIP else b"".join(map(pack, pieces))
    size = sum(map(len, pieces))
    unpack_here, content = packer.unpacking(), b""
    try:
        for start in range(0, len(packed), step):
            content += unpack_here(packed[start : start + step], max(0, size + more) - len(content))
    except ValueError:
        assert more < 0 < size
    else:
        assert content == b"".join(pieces) and (more >= 0 or not size)


@given(packers, st.lists(st.binary(max_size=40), max_size=4), st.integers(0, 10), st.binary(max_size=20))
def test_damaged_content_is_an_error_or_within_its_limit(
    packer: Packer, pieces: list[bytes], start: int, patch: bytes
) -> None:
    packed = patched(packer.packing()(b"".join(pieces)), [(start, patch)])
    unpack_here = packer.unpacking()
    with suppress(ValueError):
        for piece in (packed[:9], packed[9:], *pieces):
            assert len(unpack_here(piece, 50)) <= 50


@given(bytes_of(b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b"\x00\x01", b"\xff" * 8))
def test_frame_is_an_error_or_within_its_limit(packed: bytes) -> None:
    with suppress(ValueError):
        assert len(zstd_decompress(packed, 1000)) <= 1000


# What programs say of files


@given(
    bytes_of(b"d\0", b"f\0", b"l\0", b"o\0", b"./a\0", b"\0", b"81a4 0 0 5\n", b"l./x.", b"a" * 64 + b"  ./a\n"),
    st.booleans(),
)
def test_files_make_sense_or_an_error(output: bytes, attributes: bool) -> None:
    with suppress(TransferError):
        for one in tree._ordered(tree._parse(output, attributes=attributes)):
            assert one.kind in "dflDo" and one.mode <= 0o7777 and len(one.sha256) in (0, 64)
            assert one.path == b"." or (one.path.startswith(b"./") and b".." not in one.path.split(b"/"))


@given(names, st.binary(min_size=64, max_size=64))
def test_checksum_is_found_beside_any_name(name: str, digest: bytes) -> None:
    line = hashlib.sha256(digest).hexdigest().encode()
    for shown in tree._shown(os.fsencode(name)):
        said = b"%b  %b\n%b  other\n" % (line, shown, line[::-1])
        assert tree._sums(said, [os.fsencode(name), b"other"]) == [line.decode(), line[::-1].decode()]


# Words in shell commands


def run(text: bytes | str, top: str = "/", stdin: bytes = b"") -> bytes:
    return subprocess.run(["sh", "-c", text], cwd=top, input=stdin, stdout=subprocess.PIPE, check=True).stdout


@given(names, names, names)
@example(".", "name", "")
def test_shell_has_the_words_that_it_was_given(directory: str, name: str, other: str) -> None:
    path = f"/{directory}/{name.replace('/', '-')}"
    text = variables(path, t=other, o="") + """\nprintf '%s\\0' "$d" "$n" "$t" "$o" """
    d, n, *more, end = run(os.fsencode(text)).split(b"\0")
    assert more == [os.fsencode(other), b""] and end == b""
    assert os.path.normpath(os.path.join(d, n)) == os.path.normpath(os.fsencode(path)) or b".." in d.split(b"/")
    assert n == os.fsencode(os.path.basename(path))


@given(
    names.map(lambda name: name.replace("/", "-")).filter(lambda name: name not in (".", "..")), st.binary(min_size=1)
)
def test_file_of_any_name_is_summed_and_unpacked(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as top:
        path = f"{top}/{name}"
        Path(path).write_bytes(content)
        Path(top, "..part").write_bytes(GZIP.packing()(content))

        def said(command: ShellCommand) -> str:
            return run(command.text, top).partition(b" ")[0].decode()

        assert said(sha256_command(path)) == hashlib.sha256(content).hexdigest()
        assert said(sha256_command(path, 1)) == hashlib.sha256(content[:1]).hexdigest()
        whole = said(file_command(path))
        assert said(part_command(path, 0, len(content))) == whole
        assert said(unpack_command(GZIP, "..part", path, len(content), append=True)) == whole
        assert Path(path).read_bytes() == 2 * content
