# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages that tasks write to."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import pages as page_copies


def child_that_writes(pages: mmap.mmap, numbers: range) -> int:
    """Start a child that writes to these pages, and return its process when it has."""
    ours, theirs = os.pipe()
    process = os.fork()
    if not process:
        for number in numbers:
            pages[number * mmap.PAGESIZE] = 1
        os.write(theirs, b".")
        signal.pause()
    os.close(theirs)
    assert os.read(ours, 1) == b"."
    os.close(ours)
    return process


def has_own(memory: page_copies.Memory, pages: range, numbers: set[int]) -> bool:
    """Return whether a child that has its pages ready has copies of these of the ``pages``, and of no others."""
    child = os.fork()
    if not child:
        memory.get_ready()
        with open("/proc/self/pagemap", "rb") as pagemap:
            said = os.pread(pagemap.fileno(), len(pages) * 8, pages.start * 8)[7::8].translate(memory.OWN)
        os._exit(0 if {number for number in range(len(pages)) if said[number]} == numbers else 1)
    return os.waitpid(child, 0)[1] == 0


def test_pages_that_two_children_write_to_are_had_ready() -> None:
    """Not those of one alone, however often that is looked at. The parent's own pages are no child's."""
    memory = page_copies.Memory()
    memory.begin()
    if [int(number) for number in os.uname().release.split(".")[:2]] < [5, 14]:
        pytest.skip("the kernel has no MADV_POPULATE_WRITE")
    assert memory.looks
    with mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for number in range(64):
            pages[number * mmap.PAGESIZE] = 2
        buffer = ctypes.c_char.from_buffer(pages)
        first = ctypes.addressof(buffer) // mmap.PAGESIZE
        del buffer

        def ready() -> set[int]:
            spans = [range(start // mmap.PAGESIZE, end // mmap.PAGESIZE) for start, end in memory.written]
            return {number - first for span in spans for number in span} & set(range(64))

        children = [child_that_writes(pages, numbers) for numbers in (range(32), range(16, 48), range(40, 64))]
        try:
            pauses, seen = [], []
            for child in children:
                for _time in range(2):
                    pauses.append(memory.look_after(child))
                    memory.look(child)
                    seen.append(ready())
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        assert pauses == [memory.FIRST_LOOK, 2 * memory.FIRST_LOOK] * 3
        two, three = set(range(16, 32)), {*range(16, 32), *range(40, 48)}
        assert seen == [set(), set(), two, two, three, three]
        memory.look(children[-1])  # which has gone
        assert ready() == three
        assert [memory.look_after(child) is None for child in children] == [True, True, False], "each at a stretch"
        memory.looks = 0
        assert memory.look_after(children[-1]) is None
        assert has_own(memory, range(first, first + 64), ready())
