# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: copy the memory pages that tasks write to in advance (module_runner.py).

This is for emulated guests, where page faults take a fifth of a small task's time; elsewhere it makes no difference.
Nothing depends on it.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Callable

    Range = tuple[int, int]
    """Start and end address."""


class Memory:
    """The pages that the first tasks have written to: a spare child makes its own copies of these in advance.

    Otherwise it would copy them one by one, by a page fault at the first write. A page that only one task writes to is
    not worth a copy in all others: of twelve different modules, each writes to 1300 pages, and all of them to 2300, but
    940 are the same in each.
    """

    POPULATE_WRITE = 23  # for madvise(), since Linux 5.14
    PAGE = os.sysconf("SC_PAGE_SIZE")
    WRITABLE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw-p ", re.MULTILINE)
    # In the last byte of a page's entry in pagemap: it is present (bit 63), and no other process maps it (bit 56).
    OWN = bytes(byte & 0x81 == 0x81 for byte in range(256))
    LOOKS = 12
    FIRST_LOOK = 0.02  # seconds; each further look at the same child comes after twice as many

    def __init__(self) -> None:
        self.written: list[Range] = []
        self.looks = 0  # looks that are left
        self.process = 0  # the child that was looked at last
        self.before: set[int] = set()  # the children before it
        self.pause = 0.0  # seconds before the next look at it
        # By first page: one integer with a byte per page from there on, 1 if a child has written to that page.
        self.own: dict[int, int] = {}  # by the child that was looked at last
        self.once: dict[int, int] = {}  # by a child before it
        self.twice: dict[int, int] = {}  # by two children

    def begin(self) -> None:
        """Begin to look, if madvise() can populate pages here."""
        try:
            import ctypes

            self.madvise: Callable[[int, int, int], int] = ctypes.CDLL(None).madvise
            self.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        except (ImportError, OSError, AttributeError):
            return
        if self.get(id(self) // self.PAGE * self.PAGE, self.PAGE) == 0:  # it is supported here
            self.looks = self.LOOKS

    def get(self, start: int, size: int) -> int:
        return self.madvise(start, size, self.POPULATE_WRITE)

    def get_ready(self) -> None:
        """In a spare child: copy the pages that others have written to."""
        for start, end in self.written:
            self.get(start, end - start)  # a failure does not matter

    def look_after(self, process: int) -> float | None:
        if not self.looks or process in self.before:  # a child seen before: it would count as two
            return None
        return self.pause if process == self.process else self.FIRST_LOOK

    def look(self, process: int) -> None:
        """Note which pages a child has written to by now."""
        self.looks -= 1
        if process == self.process:
            self.pause *= 2
        else:
            self.before.add(self.process)
            self.process, self.pause = process, 2 * self.FIRST_LOOK
            self.once = {first: pages | self.once.get(first, 0) for first, pages in self.own.items()}
        home = f"/proc/{process}"
        with suppress(OSError), open(f"{home}/maps", "rb") as maps, open(f"{home}/pagemap", "rb") as pagemap:
            for span in self.WRITABLE.findall(maps.read()):
                first, last = (int(address, 16) // self.PAGE for address in span)
                said = os.pread(pagemap.fileno(), (last - first) * 8, first * 8)
                self.own[first] = own = int.from_bytes(said[7::8].translate(self.OWN), "little")
                self.twice[first] = self.twice.get(first, 0) | own & self.once.get(first, 0)
        self.written = [
            ((first + run.start()) * self.PAGE, (first + run.end()) * self.PAGE)
            for first, pages in self.twice.items()
            for run in re.finditer(b"\1+", pages.to_bytes((pages.bit_length() + 7) // 8, "little"))
        ]
