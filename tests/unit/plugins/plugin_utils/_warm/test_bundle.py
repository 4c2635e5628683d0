# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for the guest, as they travel."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._guest import zstd
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import bundle
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import bytecode, launch, loader


def isolated(program: str, stdin: bytes = b"") -> str:
    """Return what a Python without site prints that runs the program."""
    done = subprocess.run([sys.executable, "-IS", "-c", program], input=stdin, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


@pytest.mark.parametrize("names", [launch.MODULE_RUNNER, launch.SHELL_COMMANDS])
def test_interpreter_gets_all_modules_that_it_imports(names: tuple[str, ...]) -> None:
    """And no other: each is text that an interpreter has to read."""
    program = loader.Loader(bundle.sources()).program(names, "__doc__.strip")
    shown = isolated(f"{program}\nprint(*sorted(name for name in sys.modules if name.startswith(PACKAGE + '.')))")
    assert shown.split() == sorted(f"{loader.PACKAGE}.{name}" for name in names)


def test_start_gets_everything_and_what_it_is_given() -> None:
    size, data = bundle.start_input({"command": "python3 \udcff"})
    assert data[:size].decode() == bundle.sources()["loader"]
    given = json.loads(zlib.decompress(data[size:]))
    assert given == {"sources": bundle.sources(), "command": "python3 \udcff"}


def test_code_is_that_of_the_sources() -> None:
    codes = bytecode.unpacked(bundle.code())
    assert set(codes) == set(bundle.sources())
    assert {code.co_filename for code in codes.values()} == {f"{loader.PACKAGE}.{name}.py" for name in codes}


def test_zstandard_is_one_file() -> None:
    """A copy would be another, sooner or later."""
    here = Path(loader.__file__).parent / "zstd.py"
    assert here.is_symlink() and here.samefile(zstd.__file__)
