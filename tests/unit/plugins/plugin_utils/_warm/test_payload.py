# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module's archive: taken to pieces here, and put together again in the guest."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.payload_cache import Archives
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.wire import REMEMBERED, joined
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.payload import Archive, MalformedArchive, read_archive

FILES = {f"ansible/module_utils/m{number}.py": f"VALUE = {number}\n" * (number * 50) for number in range(4)}
OTHER = {**FILES, "ansible/modules/work.py": "print('other')\n"}
Time = tuple[int, int, int, int, int, int]


def packed(files: Mapping[str, str], method: int = zipfile.ZIP_DEFLATED, when: Time = (2026, 1, 2, 3, 4, 6)) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, source in files.items():
            archive.writestr(zipfile.ZipInfo(name, when), source, method)
    return base64.b64encode(content.getvalue())


def read(text: bytes) -> Archive:
    archive = read_archive(text)
    assert archive
    return archive


@pytest.fixture
def archives() -> Archives:
    return Archives()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a client puts what it brings."""
    return tmp_path / "1.parts"


def brought(
    archives: Archives, path: Path, archive: Archive, recipe: bytes | None = None
) -> tuple[bytes, list[list[str]]]:
    """Bring an archive; return what the server has of it then, and which parts were brought, each time."""
    asked: list[list[str]] = []
    for _time in range(3):
        content, answer = archives.found(archive.digest, str(path))
        if content:
            assert not path.exists()
            return content, asked
        what, *there = answer.decode().split()
        assert what == "missing"
        asked.append([part for part in archive.remembered() if part not in there])
        parts = [part for name, part in archive.parts.items() if name[:REMEMBERED] in asked[-1]]
        file = archive.brought(asked[-1])
        path.write_bytes(file if recipe is None else joined([recipe, b"", b"", *parts]))
    return b"", asked


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
@pytest.mark.parametrize("files", [FILES, OTHER, {}])
def test_it_is_put_together_as_it_was(archives: Archives, path: Path, files: Mapping[str, str], method: int) -> None:
    text = packed(files, method)
    content, _asked = brought(archives, path, read(text))
    table, again, code = content.split(b"\n", 2)
    assert code == b""
    assert again == text
    assert len(json.loads(table)) == len(files)


def test_what_is_there_is_not_asked_for(archives: Archives, path: Path) -> None:
    first, other = read(packed(FILES)), read(packed(OTHER))
    assert brought(archives, path, first)[1] == [first.remembered()]
    assert brought(archives, path, first)[1] == [], "it is there"
    again = read(packed(FILES, when=(2025, 1, 1, 0, 0, 0)))
    assert brought(archives, path, again)[1] == [], "it has the same in it"
    content, asked = brought(archives, path, other)
    assert asked == [other.remembered()[-1:]]
    assert content.endswith(packed(OTHER) + b"\n")


@pytest.mark.parametrize("parts", [slice(None), slice(2), slice(2, None)])
def test_what_comes_first_is_not_asked_for(archives: Archives, path: Path, parts: slice) -> None:
    archive = read(packed(FILES))
    names = archive.remembered()
    path.write_bytes(archive.brought(names[parts]))
    missing = [name for name in names if name not in names[parts]]
    assert brought(archives, path, archive)[1] == ([missing] if missing else [])


def test_parts_that_were_let_go_are_asked_for_again(path: Path) -> None:
    archives = Archives(most_archives=1, most_parts=60)
    brought(archives, path, read(packed(FILES)))
    assert sum(map(len, archives.parts.values())) <= 60
    content, asked = brought(archives, path, read(packed(OTHER)))
    assert content.endswith(packed(OTHER) + b"\n")
    assert len(asked[0]) > 1
    assert len(archives.contents) == 1


def test_recipe_of_another(archives: Archives, path: Path) -> None:
    other = read(packed(OTHER))
    brought(archives, path, other)
    archive = read(packed(FILES))
    assert brought(archives, path, archive, other.recipe) == (b"", [[], [], []]), "its parts are there"
    assert archive.digest not in archives.contents


def test_recipe_that_was_changed(archives: Archives, path: Path) -> None:
    """Each of its lines, and what is between the parts: all that is not a part with a checksum of its own."""
    archive = read(packed(FILES))
    lines = archive.recipe.split(b"\n", 3)
    for number, line in enumerate(lines):
        changed = b"\n".join([*lines[:number], bytes([line[0] ^ 1]) + line[1:], *lines[number + 1 :]])
        assert brought(archives, path, archive, changed)[0] == b""
    assert brought(archives, path, archive, archive.recipe[:10])[0] == b""
    assert brought(archives, path, archive)[0]


def test_archive_that_is_cut_off(archives: Archives, path: Path) -> None:
    archive = read(packed(FILES))
    names = archive.remembered()
    path.write_bytes(archive.brought(names)[:-1])
    assert brought(archives, path, archive)[1] == [names[-1:]]
    other = read(packed(OTHER))
    for cut in (b"", other.brought([])[:3], other.brought([])[:-1], b"\5\0\0\0other"):
        path.write_bytes(cut)
        assert archives.found(other.digest, str(path)) == (b"", archives.wanted())


def damaged(place: int) -> bytes:
    content = bytearray(base64.b64decode(packed(OTHER)))
    content[place] ^= 0xFF
    return base64.b64encode(content)


@pytest.mark.parametrize("text", [b"bm8gYXJjaGl2ZQ==", b"A"])
def test_what_is_no_archive(text: bytes) -> None:
    assert read_archive(text) is None


@pytest.mark.parametrize("text", [packed(FILES)[4:], damaged(100), damaged(-30)])
def test_archive_that_is_damaged(text: bytes) -> None:
    """It is brought to no guest."""
    with pytest.raises(MalformedArchive):
        read(text).brought([])
