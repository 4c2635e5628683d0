# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: run modules in an interpreter (zygote.py) that has imported the libraries of Ansible's modules.

Libraries are compared by content: a child whose payload has a different one forgets all libraries and imports its own.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading
import types
from contextlib import suppress

from .appending import KnownArchive
from .bytecode import unpacked
from .frames import InterpreterRequest
from .fresh import SiteRun, lead_once_more, renew
from .importer import Importer
from .pages import Memory
from .payload import Archive, Payload, table_of
from .site_ahead import Site
from .vfork import start_programs_at_once
from .zygote import LastWord, Work, main

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .fingerprint import Fingerprint


# Types of files that keep what is written to them.
BUFFERED = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom, io.BufferedRWPair)


class Modules(Work):
    """Modules, their libraries, and their compiled code."""

    def __init__(self) -> None:
        self.importer = Importer()
        self.archives: dict[str, Archive] = {}
        self.learnt: set[str] = set()  # archives
        self.appendable: dict[str, KnownArchive] = {}
        self.heads: dict[bytes, types.CodeType] = {}
        self.todo: list[tuple[str, bytes, int]] = []
        self.site = Site(SiteRun)
        self.memory = Memory()
        self.site_run: SiteRun | None = None  # in a child, once it has run

    def begin(self) -> None:
        """Put the importer first where Python looks for modules, and have programs started by vfork(), once."""
        if self.importer not in sys.meta_path:
            start_programs_at_once()  # in all children
            sys.meta_path.insert(0, self.importer)
            sys.meta_path.append(self.importer.vain)

    def prepare(self) -> None:
        self.memory.begin()

    def look_after(self, process: int) -> float | None:
        return self.memory.look_after(process)

    def look(self, process: int) -> None:
        self.memory.look(process)

    def expect(self, recipe: bytes, code: bytes) -> None:
        """Import the libraries of the archive to come."""
        self.begin()
        gc.disable()  # as Zygote.serve does
        with suppress(Exception):  # then they are imported when the archive comes
            from .wire import read_recipe  # only the server has it, and its forks

            self.importer.table = table_of(read_recipe(recipe)[2])
            self.importer.take(unpacked(code))
            self.importer.import_libraries()
        gc.freeze()

    def note(self, request: InterpreterRequest) -> None:
        """Keep the archive that a request brings."""
        for digest in request.forget:
            self.archives.pop(digest, None)
            self.learnt.discard(digest)
            self.appendable.pop(digest, None)
        if request.content:
            table, text, code = request.content.split(b"\n", 2)
            self.archives[request.archive] = Archive(table_of(table), text.decode("ascii"), code)

    def learn_before_fork(self, request: InterpreterRequest) -> bool:
        """Learn what a module needs, if that includes a new library.

        Otherwise only the module itself is new, and may never come again. A spare child learns that quickly. The
        second time, it is worth learning in this process, later.
        """
        if request.archive in self.learnt:
            return False
        lesson = request.archive, request.program, request.split_at
        if not self.learnt or self.importer.lacks(self.archives[request.archive].table):
            self.take(*lesson)
            return True
        if not request.content:
            self.todo.append(lesson)
        return False

    @property
    def lessons(self) -> int:  # type: ignore[override]
        return len(self.todo)

    def take_lesson(self) -> None:
        self.take(*self.todo.pop())

    def take(self, digest: str, program: bytes, split_at: int) -> None:
        if digest in self.archives and digest not in self.learnt:
            self.learnt.add(digest)
            self.learn(digest, program, split_at)

    def learn(self, digest: str, program: bytes, split_at: int) -> None:
        """Import the libraries of a module, for it and others. In a child: compile the new code of the module."""
        archive, importer = self.archives[digest], self.importer
        importer.table = archive.table
        with suppress(Exception):  # the task will report the error itself
            self.appendable[digest] = KnownArchive(archive.text)
            importer.learn(archive)
            if importer.fits():
                importer.import_libraries()
            payload = Payload(program, split_at, archive.text)
            if payload.mark.encode("ascii") not in payload.head and payload.head not in self.heads:
                self.heads[payload.head] = payload.compiled_head()
        gc.freeze()  # children share these pages as long as no garbage collection scans them

    @property
    def is_to_be_scouted(self) -> bool:  # type: ignore[override]
        return self.site.is_to_be_scouted

    @property
    def reports(self) -> int:  # type: ignore[override]
        return self.site.reports

    def send_scout(self, begin: Callable[[], None]) -> None:
        self.site.send_scout(begin)

    def listen(self) -> bool:
        self.site.listen()
        return self.site.only_reads

    def note_end(self, process: int) -> None:
        self.site.note_end(process)

    def end(self) -> None:
        self.site.end_scout()

    def is_spare_outdated(self) -> bool:
        return self.site.only_reads and not self.site.is_same()

    def wait(self) -> None:
        self.memory.get_ready()
        if self.site.may_run_ahead:
            self.site_run = SiteRun()
        hide()

    def run(self, request: InterpreterRequest, last_word: LastWord) -> NoReturn:
        """Run a module as the interpreter itself would."""
        archive = self.archives[request.archive]
        if request.archive not in self.learnt:
            self.learn(request.archive, request.program, request.split_at)
        site_run = self.site_run or SiteRun()
        found = site_run.found(self.importer.vain.asked)
        renew()
        lead_once_more()
        self.importer.table = archive.table
        self.importer.forget_others(found)
        payload = Payload(request.program, request.split_at, archive.text)
        if request.archive in self.appendable:
            self.appendable[request.archive].expect(payload.head)
        hide()  # unless that was done while this child waited
        run(payload, self.heads, last_word)


def hide() -> None:
    """In a child: take what brought this package out of Python's way, where a site may have one of its name."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not globals()["__loader__"]]
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]


def exit_status(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def show(error: BaseException) -> int:
    """Report the exception that ended the program, by its sys.excepthook; return the exit status."""
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without the frame that runs the payload
    error.__traceback__ = frames
    try:
        sys.excepthook(type(error), error, frames)
    except SystemExit as end:
        return exit_status(end)
    except BaseException as another:
        print("Error in sys.excepthook:", file=sys.stderr)
        another.__context__ = None  # it is shown below
        another.__traceback__ = another.__traceback__.tb_next if another.__traceback__ else None
        sys.__excepthook__(type(another), another, another.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, frames)
    return 1


def run(payload: Payload, heads: dict[bytes, types.CodeType], last_word: LastWord) -> NoReturn:
    """Run the payload as an interpreter does that reads it from standard input, and exit."""
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main_module
    code = 0
    try:
        for part in payload.code(heads):
            exec(part, main_module.__dict__)
    except SystemExit as end:
        code = exit_status(end)
    except BaseException as error:  # reported as the interpreter reports it
        code = show(error)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except Exception:  # whatever the program has put there
        sys.exit(code)  # the interpreter reports that at its exit
    flush_files()
    last_word.say(code & 0xFF)
    os._exit(code & 0xFF)


def flush_files() -> None:
    """Write what open files have buffered: an interpreter that exits closes them, and this process does not."""
    for file in (sys.__stdout__, sys.__stderr__, *gc.get_objects()):
        if type(file) in BUFFERED:
            with suppress(OSError, ValueError):
                file.flush()


def serve(fingerprint: Fingerprint | None = None, recipe: bytes = b"", code: bytes = b"") -> NoReturn:
    """Serve in a new interpreter. In a fork, ``recipe`` and ``code`` are those of the first archive."""
    work = Modules()
    if fingerprint:
        work.expect(recipe, code)
    main(work, fingerprint)
