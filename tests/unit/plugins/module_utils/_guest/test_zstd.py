# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ctypes
import os
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from typing import NoReturn

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._guest.compression import GZIP, ZSTD, Packer, has_zstd
from ansible_collections.qemu.guest.plugins.module_utils._guest.zstd import (
    Compressor,
    zstd,
    zstd_decompress,
)

TEXT = b"a text that shrinks, again and again\n" * 5000
CONTENTS = (b"x", TEXT, os.urandom(100_000))


@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_pieces_are_compressed_in_the_same_memory(content: bytes) -> None:
    compressor = Compressor(1)
    for piece in (content, content[:1], content, memoryview(bytearray(content))):
        packed = compressor.compress(piece)
        assert zstd_decompress(packed, len(content)) == bytes(piece)
    program = subprocess.run(["zstd", "-dc"], input=packed, check=True, capture_output=True)
    assert program.stdout == content


@pytest.mark.parametrize("level", [1, 19])
def test_what_the_program_has_compressed(level: int) -> None:
    """Which does not tell in a frame how much is in there."""
    packed = subprocess.run(["zstd", f"-c{level}"], input=TEXT, check=True, capture_output=True).stdout
    assert zstd_decompress(packed, len(TEXT)) == zstd_decompress(packed, 10**8) == TEXT


def test_what_cannot_be_unpacked() -> None:
    packed = Compressor(1).compress(TEXT)
    for damaged, largest in ((packed, len(TEXT) - 1), (packed[:-1], len(TEXT)), (b"no frame", 100)):
        with pytest.raises(ValueError, match="libzstd failed"):
            zstd_decompress(damaged, largest)


@pytest.mark.parametrize("packer", [ZSTD, GZIP], ids=["zstd", "gzip"])
def test_little_that_becomes_much_is_not_unpacked(packer: Packer) -> None:
    bomb = packer.packing()(bytes(100_000_000))
    assert len(bomb) < 500_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than there should be"):
            packer.unpacking()(bomb, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_frame_that_goes_on_is_looked_at_once() -> None:
    """Twice as much of a frame takes about twice the time, not four times."""
    packed = subprocess.run(["zstd", "-c1"], input=os.urandom(16 << 20), check=True, capture_output=True).stdout

    def seconds(size: int) -> float:
        unpack = ZSTD.unpacking()
        started = time.process_time()
        for start in range(0, size, 2000):
            unpack(packed[start : start + 2000], 1 << 30)
        return time.process_time() - started

    seconds(1 << 20)
    assert seconds(16 << 20) < 20 * max(seconds(2 << 20), 0.002)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(name: str) -> NoReturn:
        raise OSError(f"{name}: cannot open shared object file")

    zstd.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", fail)
    yield
    zstd.cache_clear()


@pytest.mark.usefixtures("no_library")
def test_no_library() -> None:
    assert not has_zstd()
    with pytest.raises(ImportError, match=r"libzstd\.so\.1"):
        Compressor(1)
    with pytest.raises(ImportError, match=r"libzstd\.so\.1"):
        zstd_decompress(b"", 1)


@pytest.mark.parametrize("packer", [GZIP, ZSTD])
def test_guest_and_this_end_understand_each_other(packer: Packer) -> None:
    packed = subprocess.run(packer.packs, input=TEXT, check=True, capture_output=True, shell=True).stdout
    assert packer.unpacking()(packed, len(TEXT)) == TEXT
    unpacked = subprocess.run(packer.unpacks, input=packer.packing()(TEXT), check=True, capture_output=True, shell=True)
    assert unpacked.stdout == TEXT
