# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: modules, run by an interpreter (_warm_zygote.py) that has imported what Ansible's modules import.

What is imported is recognised by content: a child in whose payload a library differs forgets all libraries and imports
its own.
"""

from __future__ import annotations
import __future__

import _imp
import _posixsubprocess
import atexit
import base64
import binascii
import gc
import importlib
import io
import json
import locale
import marshal
import os
import re
import struct
import subprocess
import sys
import threading
import types
import zipfile
import zlib
from contextlib import suppress
from importlib.machinery import ModuleSpec

from ansible_collections.qemu.guest.plugins.plugin_utils._compiled import compiled
from ansible_collections.qemu.guest.plugins.plugin_utils._kind import unpacked
from ansible_collections.qemu.guest.plugins.plugin_utils._warm_zygote import LastWord, Request, Work

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    from ansible_collections.qemu.guest.plugins.plugin_utils._compiled import Codes, Sources

    Table = dict[str, tuple[str, bool]]
    """By module's name: the digest of its source, and whether it is a package."""
    Range = tuple[int, int]
    """Of addresses: start and end."""

# Only these are imported before a task needs them; of others, the compiled code is kept.
LIBRARIES = "ansible.module_utils"
# What is in there acts when it is imported.
LEFT_OUT = "._extensions"
MANY = 8  # modules, to compile them on two processors
# The last statement of what ansible-core sends. From 2.19 on, all that differs from task to task is in there.
CALL = b"\nif __name__ == "
# What it does first with its archive, in cores 2.16 to 2.21.
STEPS = (
    b"modlib.write(base64.b64decode(",
    b"z = zipfile.ZipFile(modlib_path, mode='a')\n",
    b"z.writestr(zinfo, sitecustomize)\n",
)
FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
# What a module has Python do between fork() and exec().
BETWEEN = "AnsibleModule.run_command.<locals>.preexec"
STANDARD = frozenset(getattr(sys, "stdlib_module_names", ()))  # Python 3.10


class Importer:
    """Finds the modules of a payload by the digest of their source, if that was compiled before."""

    def __init__(self) -> None:
        self.code: dict[str, types.CodeType] = {}  # digest: code
        self.table: Table = {}  # name: (digest, whether it is a package), of the payload at hand
        self.loaded: dict[str, str] = {}  # name: digest, of what is imported in this interpreter
        self.wanted: set[str] = set()  # what payloads import of the standard library

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
        exec(self.get_code(name), module.__dict__)
        if name in self.table and self.table[name][1]:
            module.__path__ = SearchPath(name, list(module.__path__))  # type: ignore[assignment]

    def get_code(self, name: str) -> types.CodeType:
        digest, package = self.table[name]
        return placed(self.code[digest], place(name, package))

    def is_package(self, name: str) -> bool:
        return self.table[name][1]

    def learn(self, archive: Archive) -> None:
        """Take the code of what is new in the payload's archive, or compile it: much of it on two processors."""
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
        # In an order in which halves are about as large.
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
        """Return whether all that is in the payload was compiled."""
        return all(digest in self.code for digest, _package in self.table.values())

    def lacks(self, table: Table) -> bool:
        """Return whether some of the libraries of a payload are not imported."""
        return any(is_library(name) and name not in self.loaded for name in table)

    def fits(self) -> bool:
        """Return whether what is imported is what the payload brings."""
        return all(self.table.get(name, ("", False))[0] in ("", digest) for name, digest in self.loaded.items())

    def import_libraries(self) -> None:
        """Import the libraries of the payload that are not imported yet.

        A module outside of them is not imported, but what it will import of the standard library is: looking for that
        in a child would have it read the payload's archive.
        """
        for name in sorted(self.wanted):
            if name.partition(".")[0] in STANDARD:
                with suppress(Exception):  # what is not there, the task will miss by itself
                    importlib.import_module(name)
        self.wanted.clear()
        for name, (digest, _package) in sorted(self.table.items()):
            if is_library(name) and digest in self.code and name not in sys.modules:
                try:
                    importlib.import_module(name)
                except Exception:  # what needs something that is not there: a task that wants it will say so
                    self.forget(name)

    def forget(self, name: str) -> None:
        self.loaded.pop(name, None)
        sys.modules.pop(name, None)
        parent, _dot, last = name.rpartition(".")
        if last in vars(sys.modules.get(parent, sys)) and parent in sys.modules:
            delattr(sys.modules[parent], last)

    def forget_others(self) -> None:
        """In a child: keep what its payload brings and nothing else."""
        everything = not self.fits()
        for name in sorted(self.loaded, reverse=True):
            if everything or name not in self.table:
                self.forget(name)
        if everything:  # what they have put there besides themselves
            for name in [name for name in sys.modules if name.startswith("ansible.")]:
                del sys.modules[name]


def table_of(text: bytes) -> Table:
    """Return what a client has written of what is in an archive."""
    return {name: tuple(known) for name, known in json.loads(text.decode("ascii")).items()}


def is_library(name: str) -> bool:
    return name.startswith(LIBRARIES) and LEFT_OUT not in name


def start_beside(work: Callable[[], bytes]) -> Callable[[], bytes]:
    """Start a child that does the work, and return what waits for its result. That may be cut off."""
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
    """Where a package's modules are: in the payload's archive, which the payload puts first in sys.path."""

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


ARCHIVE = "_payload.zip"


def archive_name(name: str, package: bool) -> str:
    return name.replace(".", "/") + ("/__init__.py" if package else ".py")


def place(name: str, package: bool) -> str:
    """Return the path that a module has in the payload's archive."""
    archive = next((entry for entry in sys.path if entry.endswith(ARCHIVE)), ARCHIVE)
    return f"{archive}/{archive_name(name, package)}"


def placed(code: types.CodeType, path: str) -> types.CodeType:
    """Return ``code`` as if it was compiled from ``path``: tracebacks name it."""
    if code.co_filename == path:
        return code
    copy: types.CodeType = marshal.loads(marshal.dumps(code))  # another module may have the same source
    _imp._fix_co_filename(copy, path)  # type: ignore[attr-defined]  # as importlib does with what it reads
    return copy


class Archive:
    """A payload's archive: the ``table`` of what is in it, its ``text``, in base64, and ``code`` of what is in it."""

    proven: bool | None = None

    def __init__(self, table: Table, text: str, code: bytes = b"") -> None:
        self.table = table
        self.text = text
        self.code = code  # what a client has compiled of it
        self.content = b""  # what is known of it when it is learnt
        self.offset = 0  # of its directory
        self.directory = b""
        self.count = 0

    def open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(self.content or base64.b64decode(self.text)))

    def learn(self) -> None:
        """Find out what `appended` needs."""
        content = base64.b64decode(self.text)
        end = content.rindex(b"PK\5\6")
        self.count, size, self.offset = struct.unpack_from("<HLL", content, end + 10)
        self.directory = content[self.offset : self.offset + size]
        # Not so in one that is followed by more, or larger than what these numbers can tell.
        if self.offset + size == end and len(content) == end + 22 and self.does_as_zipfile(content):
            self.content = content

    def does_as_zipfile(self, content: bytes) -> bool:
        """Return whether `appended` does what zipfile does in this Python; the first archive shows."""
        if Archive.proven is None:
            copy = io.BytesIO(content)
            by_zipfile, by_us = zipfile.ZipInfo(), zipfile.ZipInfo()
            with zipfile.ZipFile(copy, "a") as opened:
                opened.writestr(by_zipfile, b"-")
            Archive.proven = content[: self.offset] + self.appended(by_us, b"-") == copy.getvalue()
        return Archive.proven

    def appended(self, info: zipfile.ZipInfo, data: bytes) -> bytes:
        """Return what comes from ``offset`` on when a file is added, without writing each line of the directory."""
        info.file_size = info.compress_size = len(data)
        info.CRC = binascii.crc32(data)
        info.external_attr = info.external_attr or 0o600 << 16
        header = info.FileHeader()
        line = b"PK\1\2" + bytes([info.create_version, info.create_system]) + header[4:30]
        line += struct.pack("<3HLL", 0, 0, 0, info.external_attr, self.offset) + header[30:]
        size, start = len(self.directory) + len(line), self.offset + len(header) + len(data)
        end = struct.pack("<4s4HLLH", b"PK\5\6", 0, 0, self.count + 1, self.count + 1, size, start, 0)
        return header + data + self.directory + line + end

    def expect(self) -> None:
        """Have a module's program decode it, and add a file to it, in no time: each once, and as it does first."""
        decode, open_it = base64.b64decode, zipfile.ZipFile

        def decoded(text: Any, *more: Any) -> bytes:
            base64.b64decode = decode
            return self.content if text == self.text else decode(text, *more)

        def opened(path: Any, mode: Any = "r", *more: Any) -> Appending | zipfile.ZipFile:
            zipfile.ZipFile = open_it  # type: ignore[misc]
            ours = mode == "a" and path.endswith(ARCHIVE) and os.path.getsize(path) == len(self.content)
            return Appending(path, self) if ours else open_it(path, mode, *more)

        base64.b64decode = decoded  # type: ignore[assignment]
        zipfile.ZipFile = opened  # type: ignore[assignment, misc]


class Appending:
    """A known archive at ``path``, open for one more file."""

    def __init__(self, path: str, archive: Archive) -> None:
        self.path = path
        self.archive = archive

    def writestr(self, info: zipfile.ZipInfo, data: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(self.archive.offset)
            file.write(self.archive.appended(info, data))

    def close(self) -> None:
        pass


class Payload:
    """A module's program around its archive, in two parts: the functions, and the call of them."""

    def __init__(self, program: bytes, before: int, archive: str) -> None:
        self.archive = archive
        # The compiler takes long for such a text, so it is put in afterwards.
        self.mark = os.urandom(16).hex()
        self.whole = program[:before] + self.mark.encode("ascii") + program[before:]
        self.head, call, rest = self.whole.rpartition(CALL)
        # On the same lines, for tracebacks.
        self.call = b"\n" * self.head.count(b"\n") + call + rest

    def code(self, heads: dict[bytes, types.CodeType]) -> list[types.CodeType]:
        """Return the code of all parts; what is in ``heads`` is compiled already."""
        known = heads.get(self.head)
        parts: list[types.CodeType]
        try:
            head = known or self.compiled_head()
            flags = head.co_flags & FUTURE
            parts = [head, compile(self.call, "<stdin>", "exec", flags=flags, dont_inherit=True)]
        except SyntaxError:  # not a program that can be parted so
            parts = [compile(self.whole, "<stdin>", "exec", dont_inherit=True)]
        # What is known had no mark.
        return [part if part is known else replaced(part, self.mark, self.archive) for part in parts]

    def compiled_head(self) -> types.CodeType:
        return compile(self.head + b"\n", "<stdin>", "exec", dont_inherit=True)


class Memory:
    """What tasks write to, as seen of the first ones: a spare child has its own copies of these pages ready.

    Else it would get them one by one, whenever the processor finds that a page is its parent's still. In an emulated
    guest, that was half the time of a small task. What only one of them writes to is not worth a copy in all others: of
    twelve different modules, each writes to 1300 pages, and all of them to 2300, but 940 are the same in each.
    """

    POPULATE_WRITE = 23  # for madvise(), since Linux 5.14
    PAGE = os.sysconf("SC_PAGE_SIZE")
    WRITABLE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw-p ", re.MULTILINE)
    # Of the last byte of what the kernel says of a page: it is there (bit 63), and no other process has the same (56).
    OWN = bytes(byte & 0x81 == 0x81 for byte in range(256))
    LOOKS = 12
    FIRST_LOOK = 0.02  # seconds; at the same child, each next one is after twice as many

    def __init__(self) -> None:
        self.written: list[Range] = []
        self.looks = 0  # that are left
        self.process = 0  # the child that was looked at last
        self.before: set[int] = set()  # those before
        self.pause = 0.0  # before it is to be looked at again
        # A byte for each page from a number on, that is 1 if a child has written to it, as one number for all.
        self.own: dict[int, int] = {}  # of the child that was looked at last
        self.once: dict[int, int] = {}  # of those before
        self.twice: dict[int, int] = {}  # of two children

    def begin(self) -> None:
        """Begin to look, if that is of any use here."""
        try:
            import ctypes

            self.madvise: Callable[[int, int, int], int] = ctypes.CDLL(None).madvise
            self.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        except (ImportError, OSError, AttributeError):
            return
        if self.get(id(self) // self.PAGE * self.PAGE, self.PAGE) == 0:  # it works here
            self.looks = self.LOOKS

    def get(self, start: int, size: int) -> int:
        return self.madvise(start, size, self.POPULATE_WRITE)

    def get_ready(self) -> None:
        """In a child that waits: get what others have written to."""
        for start, end in self.written:
            self.get(start, end - start)  # it does not matter if it fails

    def look_after(self, process: int) -> float | None:
        if not self.looks or process in self.before:  # again, as one of two: it would be both of them
            return None
        return self.pause if process == self.process else self.FIRST_LOOK

    def look(self, process: int) -> None:
        """See what a child has written to by now."""
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


class Modules(Work):
    """Modules, their libraries, and what is compiled of them."""

    def __init__(self) -> None:
        self.importer = Importer()
        self.archives: dict[str, Archive] = {}
        self.learnt: set[str] = set()  # archives
        self.heads: dict[bytes, types.CodeType] = {}
        self.todo: list[tuple[str, bytes, int]] = []
        self.memory = Memory()

    def begin(self) -> None:
        self.find_here()
        start_programs_at_once()  # in all children

    def find_here(self) -> None:
        """Have Python find modules here first."""
        if self.importer not in sys.meta_path:
            sys.meta_path.insert(0, self.importer)

    def prepare(self) -> None:
        self.memory.begin()
        # The C library reads the files of the locale, which modules ask for, and keeps them.
        before = locale.setlocale(locale.LC_ALL)
        with suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, "")
        locale.setlocale(locale.LC_ALL, before)

    def expect(self, recipe: bytes, code: bytes) -> None:
        """Import its libraries."""
        self.find_here()
        gc.disable()  # as later
        with suppress(Exception):  # then it is done when that comes
            self.importer.table = table_of(zlib.decompress(recipe).split(b"\n", 3)[2])
            self.importer.take(unpacked(code))
            self.importer.import_libraries()
        gc.freeze()

    def note(self, request: Request) -> None:
        """Keep the archive that a request brings."""
        for digest in request.forget:
            self.archives.pop(digest, None)
            self.learnt.discard(digest)
        if request.content is not None:
            content = os.pread(request.content, os.fstat(request.content).st_size, 0)
            table, text, code = content.split(b"\n", 2)
            self.archives[request.archive] = Archive(table_of(table), text.decode("ascii"), code)

    def learns(self, request: Request) -> bool:
        """Learn what a module needs, if a library is among that.

        Otherwise it is the module itself, which may never come again. A child that waits learns that quickly. The
        second time it is worth while to learn it here, later.
        """
        if request.archive in self.learnt:
            return False
        lesson = request.archive, request.program(), request.before
        if not self.learnt or self.importer.lacks(self.archives[request.archive].table):
            self.take(*lesson)
            return True
        if request.content is None:
            self.todo.append(lesson)
        return False

    @property
    def lessons(self) -> int:  # type: ignore[override]
        return len(self.todo)

    def take_lesson(self) -> None:
        self.take(*self.todo.pop())

    def take(self, digest: str, program: bytes, before: int) -> None:
        if digest in self.archives and digest not in self.learnt:
            self.learnt.add(digest)
            self.learn(self.archives[digest], program, before)

    def learn(self, archive: Archive, program: bytes, before: int) -> None:
        """Import what a module needs, for it and all like it. In a child: compile what is new, of the module itself."""
        importer = self.importer
        importer.table = archive.table
        with suppress(Exception):  # whatever it is, the task will say so
            archive.learn()
            importer.learn(archive)
            if importer.fits():
                importer.import_libraries()
            payload = Payload(program, before, archive.text)
            if payload.mark.encode("ascii") not in payload.head and payload.head not in self.heads:
                self.heads[payload.head] = payload.compiled_head()
        gc.freeze()  # children share it as long as nobody looks through it

    def look_after(self, process: int) -> float | None:
        return self.memory.look_after(process)

    def look(self, process: int) -> None:
        self.memory.look(process)

    def wait(self) -> None:
        self.memory.get_ready()

    def run(self, request: Request, last_word: LastWord) -> NoReturn:
        """Run a module as the interpreter would have."""
        archive = self.archives[request.archive]
        with open(0, "rb", closefd=False) as file:
            program = file.read()
        if request.archive not in self.learnt:
            self.learn(archive, program, request.before)
        self.importer.table = archive.table
        self.importer.forget_others()
        payload = Payload(program, request.before, archive.text)
        if archive.content and all(step in payload.head for step in STEPS):
            archive.expect()
        run(payload, self.heads, last_word)


def start_programs_at_once() -> None:
    """Have programs started without a copy of this process, where AnsibleModule.run_command asks for one for nothing.

    It gives Python a function to call in between, which sets the umask, if there is one to set. For that, Python makes
    a copy of the process, with each page that either writes to, where it would otherwise use vfork(): in an emulated
    guest, a fifth of the time of a module that starts a program.
    """
    fork_exec: Any = _posixsubprocess.fork_exec

    def start(*arguments: Any) -> Any:
        return fork_exec(*[None if does_nothing(one) else one for one in arguments])

    _posixsubprocess.fork_exec = start
    if hasattr(subprocess, "_fork_exec"):  # Python 3.11
        subprocess._fork_exec = start


def does_nothing(function: object) -> bool:
    """Return whether this is the function of run_command, in cores 2.16 to 2.21, without a umask to set."""
    if not isinstance(function, types.FunctionType) or function.__qualname__ != BETWEEN:
        return False
    code = function.__code__
    kept = dict(zip(code.co_freevars, function.__closure__ or ()))  # noqa: B905 - Python 3.10
    # What the first one does, it does in Python 2.
    known = code.co_names in (("os", "umask"), ("_restore_signal_handlers", "os", "umask"))
    return known and "umask" in kept and not kept["umask"].cell_contents


def replaced(code: types.CodeType, mark: str, text: str) -> types.CodeType:
    """Return ``code`` with the constant ``text`` where it has ``mark``."""
    constants = tuple(
        replaced(c, mark, text) if isinstance(c, types.CodeType) else text if c == mark else c for c in code.co_consts
    )
    return code.replace(co_consts=constants)


def exit_status(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def show(error: BaseException) -> int:
    """Show what ended the program, as the program wants it; return the exit status."""
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without the one that runs the payload
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
    """Run the payload as an interpreter does that reads it from standard input, and end."""
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main_module
    code = 0
    try:
        for part in payload.code(heads):
            exec(part, main_module.__dict__)
    except SystemExit as end:
        code = exit_status(end)
    except BaseException as error:  # whatever it is, it is shown as the interpreter shows it
        code = show(error)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # the interpreter's own end has words for that
    last_word.say(code & 0xFF)
    os._exit(code & 0xFF)
