# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are added to a payload's archive."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.appending import STEPS, KnownArchive
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.compiler import ARCHIVE

PROGRAM = b"".join(STEPS)
FILES = {"ansible/modules/work.py": "work = 1\n" * 100, "ansible/module_utils/basic.py": "x", "empty": ""}


@pytest.fixture(autouse=True)
def functions_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After tests in which the program has not called all that ``expect`` replaces."""
    monkeypatch.setattr(base64, "b64decode", base64.b64decode)
    monkeypatch.setattr(zipfile, "ZipFile", zipfile.ZipFile)


def an_archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in FILES.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 2, 3, 4, 6)), text)
    return content.getvalue()


def a_file() -> zipfile.ZipInfo:
    """As the program of a module has it."""
    return zipfile.ZipInfo("sitecustomize.py", (2026, 11, 30, 1, 2, 4))


def added_to(path: Path, text: str) -> None:
    """Do what the program of a module does with its archive."""
    path.write_bytes(base64.b64decode(text))
    archive = zipfile.ZipFile(str(path), mode="a")
    archive.writestr(a_file(), b"import sys\n")
    archive.close()


def test_archive_is_as_zipfile_makes_it(tmp_path: Path) -> None:
    text = base64.b64encode(an_archive()).decode()
    expected, path = tmp_path / "expected", tmp_path / f"one{ARCHIVE}"
    added_to(expected, text)
    known = KnownArchive(text)
    assert known.is_usable
    real = base64.b64decode, zipfile.ZipFile
    known.expect(PROGRAM)
    assert (base64.b64decode, zipfile.ZipFile) != real
    added_to(path, text)
    assert (base64.b64decode, zipfile.ZipFile) == real, "once only"
    assert path.read_bytes() == expected.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*FILES, "sitecustomize.py"]


def test_other_archives_and_texts_are_left_to_zipfile(tmp_path: Path) -> None:
    content = an_archive()
    other = tmp_path / "other.zip"
    other.write_bytes(content)
    KnownArchive(base64.b64encode(content).decode()).expect(PROGRAM)
    assert base64.b64decode("eA==") == b"x"
    with zipfile.ZipFile(other, "a") as archive:
        assert isinstance(archive, zipfile.ZipFile)


@pytest.mark.parametrize("step", STEPS)
def test_program_of_another_kind_is_left_alone(step: bytes) -> None:
    real = base64.b64decode, zipfile.ZipFile
    KnownArchive(base64.b64encode(an_archive()).decode()).expect(PROGRAM.replace(step, b""))
    assert (base64.b64decode, zipfile.ZipFile) == real


def test_archive_with_trailing_data_is_left_to_zipfile() -> None:
    known = KnownArchive(base64.b64encode(an_archive() + b"more").decode())
    assert not known.is_usable
