# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a new process would look at."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import fingerprint


def test_what_a_new_process_would_see_is_watched(tmp_path: Path) -> None:
    path, none = tmp_path / "path", tmp_path / "none"
    path.write_text("a")
    there = fingerprint.LoginFiles([str(path), str(none)])
    assert there.same()
    path.write_text("ab")
    assert not there.same()
    there = fingerprint.LoginFiles([str(path), str(none)])
    none.touch()
    assert not there.same()


def test_file_in_a_directory_that_is_changed_in_its_place(tmp_path: Path) -> None:
    """As one of sudoers.d or limits.d: the directory is the same."""
    rule = tmp_path / "rule"
    rule.write_text("a")
    there = fingerprint.LoginFiles([str(tmp_path)])
    assert there.same()
    rule.write_text("ab")
    assert not there.same()


def rewritten(path: Path) -> None:
    """Give it other content of the same length, and the time that it had."""
    before = path.stat()
    path.write_text("b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o446), rewritten], ids=["mode", "time"])
def test_file_whose_time_is_the_same(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """sudo refuses a rule that others may write to."""
    rule = tmp_path / "rule"
    rule.write_text("a")
    there, before = fingerprint.LoginFiles([str(tmp_path)]), fingerprint.signature(str(rule))
    time.sleep(0.02)  # the kernel's clock is no finer
    change(rule)
    assert not there.same()
    assert fingerprint.signature(str(rule)) != before


def test_package_of_the_standard_library_that_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in it: the directory above is the same."""
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(os, "__file__", str(tmp_path / "os.py"))
    monkeypatch.setitem(sys.modules, "package.part", SimpleNamespace(__file__=str(package / "part.py")))
    its = fingerprint.Fingerprint()
    its.lost = False  # by a test before
    assert not its.changed()
    time.sleep(0.02)
    (package / "part.py").touch()
    assert its.changed()


TABLE = "root:x:0:\none:x:1:one,two\n"


@pytest.mark.parametrize(
    ("now", "same"),
    [
        (TABLE + "three:x:3:\n", True),
        (TABLE + "three:x:3:0:three:/home/three:/bin/sh\nfour:x:4:0::/:/bin/sh\n", True),
        (TABLE + "three:x:3:one\n", False),
        (TABLE + "three:x:3:\nfour:x:4:one\n", False),
        ("three:x:3:\n" + TABLE, False),
        (TABLE.replace("two", "two,three"), False),
        (TABLE.replace("one,two", "one,to"), False),
        ("root:x:0:\n", False),
        ("", False),
    ],
)
def test_who_is_added_concerns_nobody(tmp_path: Path, now: str, same: bool) -> None:
    """But who becomes the member of a group that is there, or of a new one, may be somebody who has an interpreter."""
    path = tmp_path / "group"

    def replace(content: str) -> None:
        (tmp_path / "new").write_text(content)
        (tmp_path / "new").rename(path)

    replace(TABLE)
    there = fingerprint.LoginFiles([str(path)], tables=[str(path)])
    replace(now)
    assert there.same() == same
    if same:
        replace(now + "five:x:5:\n")
        assert there.same()
        replace(TABLE)
        assert not there.same(), "who was added is gone"


def test_line_without_an_end_is_not_the_one_that_it_becomes() -> None:
    assert not fingerprint.adds_others(b"root:x:0:", b"root:x:0:one\n")
    assert not fingerprint.adds_others(b"root:x:0", b"root:x:0:\n")
