# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: an interpreter that has imported what Ansible's modules import, and forks for each of them.

It is started by the very command line that it stands in for, become included, and read from standard input like a
module. Its standard output is a socket to _warm_server.py; of standard descriptors, that one survives sudo and su. A
message there is a request (see Request), with the descriptors of its input, output and errors. A child takes these as
its own and runs the module as the interpreter would have. There is always a child that waits for the next request:
forking a process of this size takes a while. A child that is given a shell command becomes a shell, or does what the
shell would do, where it is one of the few that ansible-core needs around its modules.

What is imported is recognised by content: a child in whose payload a library differs forgets all libraries and imports
its own.
"""

from __future__ import annotations
import __future__

import _posixsubprocess
import array
import atexit
import base64
import binascii
import gc
import importlib
import io
import json
import locale
import os
import pwd
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import types
import warnings
import zipfile
import zlib
from contextlib import suppress
from importlib.machinery import ModuleSpec

try:  # what hashlib would take, without what importing that takes
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # until Python 3.11
    except ImportError:
        from hashlib import sha256
with suppress(ImportError):
    importlib.import_module("_blake2")  # so that it is there in done_here

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Table = dict[str, tuple[str, bool]]
    """By module's name: the digest of its source, and whether it is a package."""
    Range = tuple[int, int]
    """Of addresses: start and end."""

READY = b"\0qemu.guest ready\n"
NOT_RUN = -2  # in place of an exit status
# Only these are imported before a task needs them; of others, the compiled code is kept.
LIBRARIES = "ansible.module_utils"
# What is in there acts when it is imported.
LEFT_OUT = "._extensions"
LARGEST = 1 << 16
# The last statement of what ansible-core sends. From 2.19 on, all that differs from task to task is in there.
CALL = b"\nif __name__ == "
# What it does first with its archive, in cores 2.16 to 2.21.
STEPS = (
    b"modlib.write(base64.b64decode(",
    b"z = zipfile.ZipFile(modlib_path, mode='a')\n",
    b"z.writestr(zinfo, sitecustomize)\n",
)
FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
# Words that are themselves to a shell.
PLAIN = rb"/[A-Za-z0-9_./@%+,:=-]*"
# What ansible-core, 2.16 to 2.21, has a shell do before and after it copies something.
HOME_OF = re.compile(rb"echo ~([a-z_][a-z0-9_-]*)?")
MAKE = re.compile(
    rb'\( umask 77 && mkdir -p "` echo (%b) `"&& mkdir "` echo (%b) `" && echo (ansible-tmp-[0-9.-]+)="` echo \2 `" \)'
    % (PLAIN, PLAIN)
)
CHMOD = re.compile(rb"chmod u\+rwx((?: %b)+)" % PLAIN)
REMOVE = re.compile(rb"rm -f -r (%b/ansible-tmp-[0-9.-]+)/? > /dev/null 2>&1" % PLAIN)
# What _transfer.py and _sums.py have a shell do with a small file, and with parts of a large one. These print BLAKE2b.
WRITE = re.compile(
    rb"\{ \[ -e (%b) \] \|\| \{ umask 077; set -C; : >\1 && set \+C; \}; \} && cat >\1 && sha256sum <\1" % PLAIN
)
SUM = rb"\{ if command -v b2sum >/dev/null; then b2sum; else sha256sum; fi; \}"
SUM_OF_FILE = re.compile(rb"\[ -f (%b) \] && \[ -s \1 \] && %b <\1" % (PLAIN, SUM))
SUM_OF_PART = re.compile(rb"tail -c \+(\d+) (%b) \| head -c (\d+) \| %b" % (PLAIN, SUM))
UNPACK = re.compile(rb"gzip -dc <(%b) (>>?)(%b) && tail -c (\d+) \3 \| %b" % (PLAIN, PLAIN, SUM))
BLOCK = 1 << 20  # bytes that are read at once
# As _shell.py starts a command: not in its arguments, which everybody can see, and in the place of the shell's own.
SHELL = """c=$QEMU_GUEST_COMMAND; unset QEMU_GUEST QEMU_GUEST_COMMAND
eval "unset c; $c"
"""
# What a module imports in any case, for it is not indented.
IMPORT = re.compile(rb"^(?:import|from) +([A-Za-z_][\w.]*)", re.MULTILINE)
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

    def learn(self, archive: zipfile.ZipFile) -> None:
        """Compile what is new in a payload's archive."""
        for name, (digest, package) in self.table.items():
            if digest not in self.code:
                source = archive.read(archive_name(name, package))
                self.wanted |= {name.decode("ascii") for name in IMPORT.findall(source)}
                # The task will say so, if it gets to it; the same with a warning, in each task.
                with suppress(SyntaxError, ValueError), warnings.catch_warnings():
                    warnings.simplefilter("error")
                    self.code[digest] = compile(source, place(name, package), "exec", dont_inherit=True)

    def lacks(self, table: Table) -> bool:
        """Return whether some of the libraries of a payload are not imported."""
        return any(name.startswith(LIBRARIES) and LEFT_OUT not in name and name not in self.loaded for name in table)

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


class Archive:
    """A payload's archive: the ``table`` of what is in it, and its ``text``, in base64."""

    proven: bool | None = None

    def __init__(self, table: Table, text: str) -> None:
        self.table = table
        self.text = text
        self.content = b""  # what is known of it when it is learnt
        self.offset = 0  # of its directory
        self.directory = b""
        self.count = 0

    def learn(self) -> zipfile.ZipFile:
        """Open it, and find out what `appended` needs."""
        content = base64.b64decode(self.text)
        end = content.rindex(b"PK\5\6")
        self.count, size, self.offset = struct.unpack_from("<HLL", content, end + 10)
        self.directory = content[self.offset : self.offset + size]
        # Not so in one that is followed by more, or larger than what these numbers can tell.
        if self.offset + size == end and len(content) == end + 22 and self.does_as_zipfile(content):
            self.content = content
        return zipfile.ZipFile(io.BytesIO(content))

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


class Request:
    """What the server asks for: to run a module or a shell command.

    A module's ``archive`` is told by a digest; ``content`` is a file with that and its table, if they are new here. The
    program around it is in the first of the ``files``, from offset ``start`` on, the archive's place in it ``before``
    bytes further. Without an archive there is a command of ``before`` bytes, and what follows is its input.
    """

    def __init__(self, message: bytes, descriptors: list[int]) -> None:
        said = json.loads(message.decode("ascii"))
        self.message = message
        self.number: int = said["number"]
        self.archive: str = said["archive"]
        self.start: int = said["start"]
        self.before: int = said["before"]
        self.forget: list[str] = said["forget"]
        files = dict(zip(said["files"], descriptors))  # noqa: B905 - Python 3.10
        self.descriptors = list(files.values())
        self.content: int | None = files.pop("content", None)
        self.files = list(files.values())

    def program(self) -> bytes:
        """Return all that comes from ``start`` on, without reading it."""
        return os.pread(self.files[0], os.fstat(self.files[0]).st_size, self.start)

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


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


def merged(ranges: Iterable[Range], gap: int) -> list[Range]:
    """Return ranges in order; those that are no more than ``gap`` apart are one."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start - found[-1][1] <= gap:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


class Memory:
    """What tasks write to, as seen of the first ones: a spare child has its own copies of these pages ready.

    Else it would get them one by one, whenever the processor finds that a page is its parent's still. In an emulated
    guest, that was half the time of a small task.
    """

    POPULATE_WRITE = 23  # for madvise(), since Linux 5.14
    PAGE = os.sysconf("SC_PAGE_SIZE")
    GAP = PAGE
    LOOK_SECONDS = 0.03
    LOOKS = 8

    def __init__(self) -> None:
        self.begun = False
        self.written: list[Range] = []
        self.looks = 0  # that are left

    def begin(self) -> None:
        """Begin to look, if that is of any use here. Not for shells: they drop what they have at once."""
        self.begun = True
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

    def look(self, process: int) -> None:
        """See what a child has written to by now."""
        self.looks -= 1
        ranges, home = [], f"/proc/{process}"
        with suppress(OSError), open(f"{home}/maps", "rb") as maps, open(f"{home}/pagemap", "rb") as pagemap:
            for span, rights, *_rest in map(bytes.split, maps):
                if rights == b"rw-p":
                    first, last = (int(address, 16) // self.PAGE for address in span.split(b"-"))
                    entries = array.array("Q", os.pread(pagemap.fileno(), (last - first) * 8, first * 8))
                    # It is present, and no other process has the same.
                    own = (number for number, entry in enumerate(entries, first) if entry >> 63 and entry >> 56 & 1)
                    ranges += [(number * self.PAGE, (number + 1) * self.PAGE) for number in own]
        self.written = merged([*self.written, *ranges], self.GAP)


class Zygote:
    """The parent: it hands requests to children. What they need is imported here before the first one needs it."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.importer = Importer()
        self.archives: dict[str, Archive] = {}
        self.learnt: set[str] = set()  # archives
        self.heads: dict[bytes, types.CodeType] = {}
        self.children: dict[int, int] = {}  # process: number of its request
        self.spare: tuple[int, socket.socket] | None = None  # a child that waits, and where it does
        self.ended, self.wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.memory = Memory()
        self.beside = len(os.sched_getaffinity(0)) > 1  # whether a child is forked while another works
        self.crowded = False  # there was no room for a child
        self.asked = False  # for anything

    def serve(self) -> Request:
        """Serve until the server has gone; return in a child only, with what it is to do."""
        sys.meta_path.insert(0, self.importer)
        start_programs_at_once()  # in all children
        gc.disable()  # it takes time, and there is little to collect; not in children
        watched = [sys.executable, os.path.realpath(sys.executable), *sys.path[1:]]
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.server.sendall(READY + json.dumps(watched).encode("ascii"))
        while True:
            patience, chore = self.chore()
            sources: list[socket.socket | int] = [self.server, self.ended]
            busy = select.select(sources, [], [], patience)[0]
            if self.ended in busy:
                os.read(self.ended, 4096)
                self.report()
            if self.server in busy:
                request = receive(self.server)
                if not request:
                    os._exit(0)
                mine = self.hand_over(request)
            else:
                mine = None if busy else chore()
            if mine:
                return mine

    def chore(self) -> tuple[float | None, Callable[[], Request | None]]:
        """Return what is to be done when nobody asks for anything, and after how many seconds (None: never).

        A task that is at work, or comes, goes before what is done for later ones.
        """
        if self.asked and not self.crowded and (self.beside or not self.children):
            if self.archives and not self.memory.begun:
                return 0, self.prepare
            if not self.spare:
                return 0, self.fork_spare
        if self.children and self.memory.looks and self.archives:
            return Memory.LOOK_SECONDS, lambda: self.memory.look(max(self.children))
        return None, lambda: None

    def prepare(self) -> None:
        """Get ready for modules what the first one could do without."""
        self.memory.begin()
        # The C library reads the files of the locale, which modules ask for, and keeps them.
        before = locale.setlocale(locale.LC_ALL)
        with suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, "")
        locale.setlocale(locale.LC_ALL, before)

    def note(self, request: Request) -> None:
        """Keep the archive that a request brings."""
        for digest in request.forget:
            self.archives.pop(digest, None)
            self.learnt.discard(digest)
        if request.content is not None:
            text = os.pread(request.content, os.fstat(request.content).st_size, 0).decode("ascii")
            table, archive = text.split("\n")
            names = {name: tuple(known) for name, known in json.loads(table).items()}
            self.archives[request.archive] = Archive(names, archive)

    def hand_over(self, request: Request) -> Request | None:
        """Give a request to a child; in one that is forked for it, return it."""
        self.asked = True
        self.note(request)
        if self.is_to_be_learnt(request):
            self.learn(request)
            self.end_spare()  # which has not
        pid = self.give_spare(request) or self.fork()
        if pid == 0:
            self.leave()
            return request
        if pid is None:
            self.tell(request.number, NOT_RUN)
            request.close()
            return None
        self.children[pid] = request.number
        request.close()
        return None

    def is_to_be_learnt(self, request: Request) -> bool:
        """Return whether something is to be learnt of a request before a child is forked for it.

        Where no library is new, what there is to be learnt is the module itself, and it may never come again: a child
        that waits does that by itself. The second time it is worth while.
        """
        if not request.archive or request.archive in self.learnt:
            return False
        return request.content is None or self.importer.lacks(self.archives[request.archive].table)

    def fork(self) -> int | None:
        """Fork a child and return its process, 0 in there; None if there is no room for one."""
        try:
            pid = os.fork()
        except OSError:
            self.crowded = True
            return None
        self.crowded = False
        return pid

    def fork_spare(self) -> Request | None:
        """Fork the child that takes the next request, and return that there."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = self.fork()
        if pid != 0:
            theirs.close()
            if pid:
                self.spare = pid, ours
            else:
                ours.close()
            return None
        self.leave()
        ours.close()
        self.memory.get_ready()
        # Closed by its name: a socket that is forgotten later would close a number that is somebody else's by then.
        with theirs:
            request = receive(theirs)
        if not request:
            os._exit(0)
        self.note(request)
        return request

    def give_spare(self, request: Request) -> int:
        """Give a request to the child that waits for one; return its process, 0 if there is none."""
        if not self.spare:
            return 0
        pid, its_socket = self.spare
        rights = array.array("i", request.descriptors).tobytes()
        try:
            its_socket.sendmsg([request.message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError:  # somebody has killed it
            pid = 0
        self.end_spare()
        return pid

    def end_spare(self) -> None:
        """Let the child go that waits; it ends unless it was given something."""
        if self.spare:
            self.spare[1].close()
            self.spare = None

    def leave(self) -> None:
        """In a child: be a process that has just been started."""
        self.server.close()
        os.close(self.ended)
        os.close(self.wake)
        gc.enable()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()

    def report(self) -> None:
        """Tell the server of children that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.children:  # not a spare one
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                self.tell(self.children.pop(pid), code)

    def tell(self, number: int, code: int) -> None:
        self.server.sendall(json.dumps({"number": number, "rc": code}).encode("ascii"))

    def learn(self, request: Request) -> None:
        """Import what a module needs, for it and all like it. In a child: compile what is new, of the module itself."""
        self.learnt.add(request.archive)
        archive = self.archives[request.archive]
        importer = self.importer
        importer.table = archive.table
        with suppress(Exception):  # whatever it is, the task will say so
            importer.learn(archive.learn())
            if importer.fits():
                importer.import_libraries()
            payload = Payload(request.program(), request.before, archive.text)
            if payload.mark.encode("ascii") not in payload.head and payload.head not in self.heads:
                self.heads[payload.head] = payload.compiled_head()
        gc.freeze()  # children share it as long as nobody looks through it


def receive(connection: socket.socket) -> Request | None:
    """Return the next request; None if there will be none."""
    descriptors: array.array[int] = array.array("i")
    message, ancillary, _flags, _address = connection.recvmsg(
        LARGEST, socket.CMSG_LEN(4 * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return Request(message, list(descriptors)) if message else None


def main() -> None:
    """Serve, and in each child run what it was forked for."""
    if not stat.S_ISSOCK(os.fstat(1).st_mode):
        os._exit(1)
    zygote = Zygote(socket.socket(fileno=os.dup(1)))
    request = zygote.serve()
    if request.archive and request.archive not in zygote.learnt:
        zygote.learn(request)
    for number, descriptor in enumerate(request.files):
        os.dup2(descriptor, number)
    last_word = LastWord(0)
    os.closerange(3, 256)
    if not request.archive:
        run_command(request, last_word)
    archive = zygote.archives[request.archive]
    zygote.importer.table = archive.table
    zygote.importer.forget_others()
    with open(0, "rb", closefd=False) as program:
        payload = Payload(program.read(), request.before, archive.text)
    if archive.content and all(step in payload.head for step in STEPS):
        archive.expect()
    run(payload, zygote.heads, last_word)


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


def run_command(request: Request, last_word: LastWord) -> None:
    """Run a shell command, which comes before its input, and end. Its environment is that of a login."""
    command = os.pread(0, request.before, request.start)
    start = request.start + request.before
    with suppress(OSError, KeyError, ImportError, ValueError):  # then the shell will say what is wrong
        output = done_here(command, lambda: os.pread(0, os.fstat(0).st_size, start))
        if output is not None:
            os.write(1, output)
            last_word.say(0)
            os._exit(0)
    os.lseek(0, start, os.SEEK_SET)
    with open("/proc/self/environ", "rb") as file:
        variables = dict(line.split(b"=", 1) for line in file.read().split(b"\0") if b"=" in line)
    for name in (b"SHLVL", b"_"):  # the shell sets them anew
        variables.pop(name, None)
    variables.update({b"QEMU_GUEST": SHELL.encode("ascii"), b"QEMU_GUEST_COMMAND": command + b"\n"})
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    os.execve("/bin/sh", ["/bin/sh", "-c", 'eval "$QEMU_GUEST"'], variables)


def done_here(command: bytes, read: Callable[[], bytes]) -> bytes | None:
    """Do what a shell would do and return what it would print; None if it takes a shell. ``read`` returns its input.

    :raise OSError: if that cannot be done, after nothing that a shell would not do again.
    :raise KeyError: if there is no such user.
    :raise ImportError: if this Python has no BLAKE2b.
    :raise ValueError: if it must not use that.
    """
    home = HOME_OF.fullmatch(command)
    if home:
        user = home.group(1)
        directory = os.fsencode(pwd.getpwnam(user.decode("ascii")).pw_dir) if user else os.environb[b"HOME"]
        return directory + b"\n" if re.fullmatch(PLAIN, directory) else None
    make = MAKE.fullmatch(command)
    if make:
        parents, path, name = make.groups()
        before = os.umask(0o077)
        try:
            os.makedirs(parents, exist_ok=True)
            os.mkdir(path)
        finally:
            os.umask(before)
        return name + b"=" + path + b"\n"
    change = CHMOD.fullmatch(command)
    if change:
        for path in change.group(1).split():
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | 0o700)
        return b""
    remove = REMOVE.fullmatch(command)
    if remove:
        shutil.rmtree(remove.group(1))
        return b""
    write = WRITE.fullmatch(command)
    if write:
        path = write.group(1)
        flags = os.O_TRUNC if os.path.exists(path) else os.O_CREAT | os.O_EXCL
        with open(path, "wb", opener=lambda name, _flags: os.open(name, os.O_WRONLY | flags, 0o600)) as file:
            file.write(read())
        return printed_sum(sha256(), path, 0, sys.maxsize)
    from _blake2 import blake2b

    checksum = blake2b()
    whole = SUM_OF_FILE.fullmatch(command)
    if whole and os.path.isfile(whole.group(1)) and os.path.getsize(whole.group(1)):
        return printed_sum(checksum, whole.group(1), 0, sys.maxsize)
    part = SUM_OF_PART.fullmatch(command)
    if part:
        start, path, size = part.groups()
        return printed_sum(checksum, path, int(start) - 1, int(size))
    unpack = UNPACK.fullmatch(command)
    if unpack:
        packed, how, path, size = unpack.groups()
        end = unpacked(packed, path, how == b">>")
        return printed_sum(checksum, path, max(0, end - int(size)), int(size))
    return None


def printed_sum(checksum: Any, path: bytes, start: int, size: int) -> bytes:
    """Return what a program prints that sums up ``size`` bytes of a file, from ``start`` on."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size > 0:
            data = file.read(min(size, BLOCK))
            if not data:
                break
            checksum.update(data)
            size -= len(data)
    text: str = checksum.hexdigest()
    return text.encode("ascii") + b"  -\n"


def unpacked(packed: bytes, path: bytes, append: bool) -> int:
    """Unpack a file of a few megabytes into another, and return where that ends.

    :raise OSError: if that cannot be done; what was added is gone then, for a shell to add it again.
    """
    with open(packed, "rb") as source:
        try:
            content = zlib.decompress(source.read(), wbits=31)  # gzip's format
        except zlib.error as error:
            raise OSError("damaged") from error
    with open(path, "ab" if append else "wb", buffering=0) as sink:
        start = sink.seek(0, os.SEEK_END)
        try:
            if sink.write(content) != len(content):
                raise OSError("no room")
        except OSError:
            sink.truncate(start)
            raise
    return start + len(content)


class LastWord:
    """How a task tells its exit status before its process ends, which takes a while: behind its input, in that file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.file = os.fstat(descriptor)

    def say(self, code: int) -> None:
        with suppress(OSError):  # then the zygote will tell
            now = os.fstat(self.descriptor)
            if (now.st_dev, now.st_ino) == (self.file.st_dev, self.file.st_ino):
                os.pwrite(self.descriptor, b"%d\n" % code, self.file.st_size)
                os.close(1)
                os.close(2)


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


def run(payload: Payload, heads: dict[bytes, types.CodeType], last_word: LastWord) -> None:
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
