# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: find modules by their content, and import their libraries in advance (module_runner.py)."""

from __future__ import annotations

import _imp
import importlib
import marshal
import os
import sys
import types
from contextlib import suppress
from importlib.machinery import ModuleSpec

from .bytecode import unpacked
from .compiler import ARCHIVE, compiled
from .payload import archive_name, place

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .compiler import Codes, Sources
    from .payload import Archive
    from .wire import Table

# Only these are imported before a task needs them; of other modules, the compiled code is kept.
LIBRARIES = "ansible.module_utils"
# Modules in there act when they are imported.
LEFT_OUT = "._extensions"
# The digest of an empty file, which is never sent as a part of an archive.
EMPTY = "e3b0c44298fc1c149afbf4c8996fb924"
MANY = 8  # modules that are worth compiling on two processors


class Importer:
    """Finds the modules of a payload by the digest of their source, if that was compiled before.

    It is first in sys.meta_path, and ``vain`` is last.
    """

    def __init__(self) -> None:
        self.vain = Vain(self)
        self.importing: list[str] = []  # modules of the payload, each imported by the one before
        self.uses: dict[str, set[str]] = {}  # name: the names in its code
        self.code = {EMPTY: compile(b"", ARCHIVE, "exec")}  # digest: code
        self.table: Table = {}  # name: (digest, whether it is a package), of the current payload
        self.loaded: dict[str, str] = {}  # name: digest, of modules imported in this interpreter
        self.wanted: set[str] = set()  # modules of the standard library that payloads import

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        digest, package = self.table.get(name, ("", False))
        if digest not in self.code:
            return None
        origin = place(name, package)
        spec = ModuleSpec(name, self, origin=origin, is_package=package)  # type: ignore[arg-type]
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        self.loaded[name] = self.table[name][0]
        code = self.get_code(name)
        self.uses[name] = names_in(code)
        self.importing.append(name)
        try:
            exec(code, module.__dict__)
        finally:
            self.importing.pop()
        if name in self.table and self.table[name][1]:
            module.__path__ = SearchPath(name, list(module.__path__))  # type: ignore[assignment]

    def get_code(self, name: str) -> types.CodeType:
        digest, package = self.table[name]
        return placed(self.code[digest], place(name, package))

    def is_package(self, name: str) -> bool:
        return self.table[name][1]

    def learn(self, archive: Archive) -> None:
        """Take the code of new modules from the payload's archive, or compile them: many of them on two processors."""
        if not self.has_all_code():
            self.take(unpacked(archive.code))
        archive.code = b""
        if self.has_all_code():
            return
        new: Sources = {}
        with archive.open() as opened:
            for name, (digest, package) in self.table.items():
                if digest not in self.code:
                    new[digest] = opened.read(archive_name(name, package)), place(name, package)
        if len(new) < MANY or len(os.sched_getaffinity(0)) < 2:
            self.take(compiled(new))
            return
        # Sorted by size, so that the halves are about as large.
        items = sorted(new.items(), key=lambda item: len(item[1][0]))
        try:
            beside = start_beside(lambda: marshal.dumps(compiled(dict(items[::2]))))
            self.take(compiled(dict(items[1::2])))
            self.take(marshal.loads(beside()))
        except (OSError, EOFError, ValueError, TypeError):  # there is no room for a child, or it was killed
            self.take(compiled(new))

    def take(self, codes: Codes) -> None:
        for digest, (code, imports) in codes.items():
            self.code[digest] = code
            self.wanted.update(imports)

    def has_all_code(self) -> bool:
        """Return whether all modules of the payload are compiled."""
        return all(digest in self.code for digest, _package in self.table.values())

    def lacks(self, table: Table) -> bool:
        """Return whether a library of the payload is not imported."""
        return any(is_library(name) and name not in self.loaded for name in table)

    def fits(self) -> bool:
        """Return whether the imported modules are those of the payload."""
        return all(self.table.get(name, ("", False))[0] in ("", digest) for name, digest in self.loaded.items())

    def import_libraries(self) -> None:
        """Import the libraries of the payload that are not imported yet.

        Other modules are not imported, but what they import of the standard library is: to look for that, a child would
        read the payload's archive. Only the standard library can be found here.
        """
        for name in sorted(self.wanted):
            with suppress(Exception):  # the task will report a missing module itself
                importlib.import_module(name)
        self.wanted.clear()
        for name, (digest, _package) in sorted(self.table.items()):
            if is_library(name) and digest in self.code and name not in sys.modules:
                try:
                    importlib.import_module(name)
                except Exception:  # a task that needs this library will report the error
                    self.forget(name)

    def forget(self, name: str) -> None:
        self.loaded.pop(name, None)
        sys.modules.pop(name, None)
        parent, _dot, last = name.rpartition(".")
        if last in vars(sys.modules.get(parent, sys)) and parent in sys.modules:
            delattr(sys.modules[parent], last)

    def forget_others(self, found: Sequence[str]) -> None:
        """In a child: forget modules that are not its payload's, and those that have asked for ``found`` in vain."""
        everything = not self.fits()
        outdated = self.dependents(found)
        for name in sorted(self.loaded, reverse=True):
            if everything or name not in self.table or name in outdated:
                self.forget(name)
        if everything:  # what these modules have added besides themselves
            for name in [name for name in sys.modules if name.startswith("ansible.")]:
                del sys.modules[name]

    def dependents(self, found: Sequence[str]) -> set[str]:
        """Return the modules that asked for one of ``found`` in vain, and those that imported such a module."""
        outdated = {name for wanted in found for name in self.vain.asked[wanted] if name in self.loaded}
        size = 0
        while len(outdated) > size:
            size = len(outdated)
            words = outdated.union(name.rpartition(".")[2] for name in outdated)
            outdated.update(name for name in self.loaded if words.intersection(self.uses.get(name, ())))
        return outdated


class Vain:
    """Records the modules that the payload's libraries ask for in vain: a site directory may have them."""

    def __init__(self, importer: Importer) -> None:
        self.importer = importer
        self.asked: dict[str, set[str]] = {}  # top-level name: modules that asked for it

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if path is None and self.importer.importing:
            self.asked.setdefault(name, set()).add(self.importer.importing[-1])


def names_in(code: types.CodeType) -> set[str]:
    """Return all names in the code, including those that it imports."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_in(constant)
    return names


def is_library(name: str) -> bool:
    return name.startswith(LIBRARIES) and LEFT_OUT not in name


def start_beside(work: Callable[[], bytes]) -> Callable[[], bytes]:
    """Start a child that does ``work``; return a function that waits for its result, which may be cut off."""
    ours, theirs = os.pipe()
    if not os.fork():
        try:
            with open(theirs, "wb") as file:
                file.write(work())
        finally:
            os._exit(0)
    os.close(theirs)

    def result() -> bytes:
        with open(ours, "rb") as file:
            return file.read()

    return result


class SearchPath:
    """A package's __path__: it leads to the payload's archive, which the payload puts first in sys.path."""

    def __init__(self, name: str, found: list[str]) -> None:
        self.inner = name.replace(".", "/")
        self.rest = [entry for entry in found if not entry.endswith(ARCHIVE + "/" + self.inner)]

    def __iter__(self) -> Iterator[str]:
        yield from (f"{entry}/{self.inner}" for entry in sys.path if entry.endswith(ARCHIVE))
        yield from self.rest

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, index: int) -> str:
        return list(self)[index]


def placed(code: types.CodeType, path: str) -> types.CodeType:
    """Return ``code`` as if it was compiled from ``path``, which tracebacks show."""
    if code.co_filename == path:
        return code
    copy: types.CodeType = marshal.loads(marshal.dumps(code))  # another module may have the same source
    _imp._fix_co_filename(copy, path)  # type: ignore[attr-defined]  # as importlib does with code that it reads
    return copy
