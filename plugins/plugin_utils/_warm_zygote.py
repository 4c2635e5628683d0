# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: an interpreter that has imported what Ansible's modules import, and forks for each of them.

It is started by the very command line that it stands in for, become included, and read from standard input like a
module. Its standard output is a socket to _warm_server.py; of standard descriptors, that one survives sudo and su. A
message there is a task, with the descriptors of its payload, output and errors. A child takes these as its own and runs
the payload as the interpreter would have.

What is imported is recognised by content: a child in whose payload a library differs forgets all libraries and imports
its own.
"""

from __future__ import annotations

import array
import atexit
import base64
import gc
import hashlib
import importlib
import io
import json
import os
import re
import select
import signal
import socket
import stat
import sys
import threading
import traceback
import types
import zipfile
from contextlib import suppress
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Iterator

    Table = dict[str, tuple[str, bool]]
    """By module's name: the digest of its source, and whether it is a package."""

READY = b"\0qemu.guest ready\n"
ZIP_LINE = re.compile(rb"^ *(?:ZIPDATA = |zip_data=)'([A-Za-z0-9+/=]+)',?$", re.MULTILINE)
# Only these are imported before a task needs them; of others, the compiled code is kept.
LIBRARIES = "ansible.module_utils"
# What is in there acts when it is imported.
LEFT_OUT = "._extensions"
LARGEST = 1 << 20
# What a module imports in any case, for it is not indented.
IMPORT = re.compile(rb"^(?:import|from) +([A-Za-z_][\w.]*)", re.MULTILINE)
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

    def learn(self, archive: zipfile.ZipFile) -> None:
        """Compile what is new in a payload's archive."""
        for name, (digest, package) in self.table.items():
            if digest not in self.code:
                source = archive.read(archive_name(name, package))
                if digest_of(source) == digest:
                    self.wanted |= {name.decode("ascii") for name in IMPORT.findall(source)}
                    with suppress(SyntaxError, ValueError):  # the task will say so, if it gets to it
                        self.code[digest] = compile(source, place(name, package), "exec", dont_inherit=True)

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
            if name.startswith(LIBRARIES) and LEFT_OUT not in name and digest in self.code and name not in sys.modules:
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
    constants = tuple(placed(c, path) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    return code.replace(co_filename=path, co_consts=constants)


def digest_of(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:32]


def main(table: Table, archive: str) -> bytes:
    """Serve until the server has gone; return in a child only, with what it is to run.

    ``table`` and ``archive`` (base64) are those of the module that comes first.
    """
    if not stat.S_ISSOCK(os.fstat(1).st_mode):
        os._exit(1)
    server = socket.socket(fileno=os.dup(1))
    importer = Importer()
    importer.table = table
    importer.learn(zipfile.ZipFile(io.BytesIO(base64.b64decode(archive))))
    sys.meta_path.insert(0, importer)
    importer.import_libraries()
    watched = [sys.executable, os.path.realpath(sys.executable), *sys.path[1:]]
    ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    gc.collect()
    gc.freeze()
    server.sendall(READY + json.dumps(watched).encode("ascii"))
    children: dict[int, int] = {}
    lessons: list[tuple[Table, int]] = []  # payloads with something new in them
    while True:
        # While a task is at work, or comes, it has the processor.
        sources: list[socket.socket | int] = [server, ended]
        busy = select.select(sources, [], [], None if children or not lessons else 0)[0]
        if not busy:
            learn(importer, *lessons.pop())
        for source in busy:
            if source == ended:
                os.read(ended, 4096)
                report(children, server)
                continue
            message, descriptors = receive(server)
            if not message:
                os._exit(0)
            task = json.loads(message)
            importer.table = {name: tuple(known) for name, known in task["modules"].items()}
            pid = os.fork()
            if pid == 0:
                server.close()
                os.close(ended)
                os.close(wake)
                return begin(importer, descriptors)
            children[pid] = task["number"]
            if all(digest in importer.code for digest, _package in importer.table.values()):
                os.close(descriptors[0])
            else:
                lessons.append((importer.table, descriptors[0]))
            for descriptor in descriptors[1:]:
                os.close(descriptor)


def receive(server: socket.socket) -> tuple[bytes, list[int]]:
    descriptors: array.array[int] = array.array("i")
    message, ancillary, _flags, _address = server.recvmsg(LARGEST, socket.CMSG_LEN(3 * descriptors.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return message, list(descriptors)


def report(children: dict[int, int], server: socket.socket) -> None:
    """Tell the server of children that have ended."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        server.sendall(json.dumps({"number": children.pop(pid), "rc": code}).encode("ascii"))


def learn(importer: Importer, table: Table, payload: int) -> None:
    """Get ready for the next payload like this one."""
    importer.table = table
    match = ZIP_LINE.search(os.pread(payload, os.fstat(payload).st_size, 0))
    os.close(payload)
    if match:
        importer.learn(zipfile.ZipFile(io.BytesIO(base64.b64decode(match.group(1)))))
        if importer.fits():
            importer.import_libraries()
        gc.collect()
        gc.freeze()


def begin(importer: Importer, descriptors: list[int]) -> bytes:
    """In a child: be a process that has just been started, and return its program."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    importer.forget_others()
    with open(0, "rb", closefd=False) as payload:
        return payload.read()


def compiled(program: bytes) -> types.CodeType:
    """Return the code of a payload. Its archive is put in as it is: the compiler takes long for such a text."""
    match = ZIP_LINE.search(program)
    if not match:
        return compile(program, "<stdin>", "exec", dont_inherit=True)
    archive, mark = match.group(1).decode("ascii"), os.urandom(16).hex()
    short = program[: match.start(1)] + mark.encode("ascii") + program[match.end(1) :]
    return replaced(compile(short, "<stdin>", "exec", dont_inherit=True), mark, archive)


def replaced(code: types.CodeType, mark: str, text: str) -> types.CodeType:
    """Return ``code`` with the constant ``text`` where it has ``mark``."""
    constants = tuple(
        replaced(c, mark, text) if isinstance(c, types.CodeType) else text if c == mark else c for c in code.co_consts
    )
    return code.replace(co_consts=constants)


def run(program: bytes) -> None:
    """Run the payload as an interpreter does that reads it from standard input, and end."""
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main_module
    code: int = 0
    try:
        exec(compiled(program), main_module.__dict__)
    except SystemExit as end:
        if isinstance(end.code, int):
            code = end.code
        elif end.code is not None:
            print(end.code, file=sys.stderr)
            code = 1
    except BaseException as error:  # whatever it is, it is shown as the interpreter shows it
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, frames)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # the interpreter's own end has words for that
    os._exit(code & 0xFF)
