# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: decide whether site may run before a task is there (module_runner.py).

A new interpreter runs site, which looks for site directories and runs code of users and sites. A child that waits for
its task does so in advance, as long as all that site reads is as it was: that saves a tenth of a small task's time.

A scout finds out what that is: a child that runs site, reports what it has read, and ends. It ends before site runs any
code but the standard library's: lines of .pth files, sitecustomize and usercustomize run with the task only, because
nobody can know all that they look at and leave behind. Nor does site run in advance if it reads files on a filesystem
that may be unmounted: a task may do that meanwhile.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import sys
import time
import types
from contextlib import suppress

from .fingerprint import CLOCK_SECONDS, are_at_home, mapped_files, status_of

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    State = dict[str, list[int] | None]
    """Paths, each with what ``described`` returns."""

MOST_SCOUTS = 10  # of one interpreter: site may read what always changes
MOST_FILES = 200  # that are worth looking at before each task
PAUSE_SECONDS = 0.2  # between scouts
SCOUT_SECONDS = 10  # after which a scout ends, whatever site does
LONGEST_REPORT = 1 << 16  # bytes
# Audit events of code that only reads files and imports modules. The first argument of READING is a path.
READING = ("open", "os.listdir", "os.scandir")
HARMLESS = (
    "import",
    "compile",
    "marshal.loads",
    "code.__new__",
    "object.__getattr__",
    "sys._getframe",
)
STANDARD = os.path.dirname(os.__file__) + "/"
# Directories in there, and files, that are not of the standard library.
OTHERS = ("site-packages/", "dist-packages/", "sitecustomize.py", "usercustomize.py")
# The names in the sitecustomize.py of Debian and its kin: it imports this module, if there is one.
DEBIAN = {"apport_python_hook", "install", "ImportError"}
# Functions of os that are no audit events; the first argument of LOOKING is a path.
LOOKING = ("stat", "lstat", "access", "readlink")
NOT_READING = ("getcwd", "getcwdb", "umask")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Site:
    """What is known of site. In a scout and in children, ``run`` runs it."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run
        self.state: State = {}  # what site reads, as it was for the scout; empty if that is not known
        self.only_reads = False
        self.scouts = MOST_SCOUTS if hasattr(sys, "addaudithook") else 0  # that may still be sent
        self.report = b""
        self.reports = -1  # the pipe from the scout; -1 if none is under way
        self.scout = 0  # its process; 0 if none is under way
        self.sent = 0.0  # when the last scout was sent, by the clock that files have their times from
        self.next_at = 0.0

    @property
    def is_to_be_scouted(self) -> bool:
        return not self.state and self.reports < 0 and self.scouts > 0 and time.monotonic() >= self.next_at

    @property
    def may_run_ahead(self) -> bool:
        return self.only_reads and self.is_same()

    def is_same(self) -> bool:
        """Return whether all that site has read is as it was. If it is not, a scout is to be sent again."""
        if any(described(path) != seen for path, seen in self.state.items()):
            self.state.clear()
            self.only_reads = False
        return bool(self.state)

    def send_scout(self, begin: Callable[[], None]) -> None:
        """Start a scout, which calls ``begin`` first. What it reports is read by ``listen``."""
        self.scouts -= 1
        self.sent, self.next_at = time.time(), time.monotonic() + PAUSE_SECONDS
        self.reports, theirs = os.pipe()
        try:
            self.scout = os.fork()
        except OSError:  # there is no room
            self.scouts = 0
            self.scout = -1
        if self.scout == 0:
            try:
                begin()
                signal.alarm(SCOUT_SECONDS)
                Scout(functools.partial(report, theirs)).watch(self.run)
            finally:
                os._exit(0)
        os.close(theirs)

    def listen(self) -> None:
        """Read from the pipe of the scout; at its end, take the report."""
        data = os.read(self.reports, LONGEST_REPORT)
        self.report += data
        if data and len(self.report) <= LONGEST_REPORT:
            return
        os.close(self.reports)
        self.reports = -1
        report, self.report = self.report, b""
        with suppress(ValueError, TypeError):  # the scout did not come to its end
            only_reads, state = json.loads(report.decode("ascii"))
            if len(state) <= MOST_FILES and not self.is_young(state):
                self.state = state
                at_home = are_at_home(path for path, seen in state.items() if seen)
                self.only_reads = bool(only_reads) and at_home and self.is_same()

    def end_scout(self) -> None:
        """End the scout that is under way, if any: its user may be about to be removed."""
        if self.scout > 0:
            os.kill(self.scout, signal.SIGKILL)

    def note_end(self, process: int) -> None:
        if process == self.scout:
            self.scout = 0

    def is_young(self, state: State) -> bool:
        """Return whether a file has changed so shortly before the scout that another change may not show."""
        return any(seen and seen[-1] > (self.sent - CLOCK_SECONDS) * 1e9 for seen in state.values())


def report(pipe: int, only_reads: bool, state: State) -> NoReturn:
    """In a scout: report, and end at once: it is to have no effect."""
    with open(pipe, "wb") as file:
        file.write(json.dumps([only_reads, state]).encode("ascii"))
    os._exit(0)


def described(path: str) -> list[int] | None:
    """Return a value that differs when a file was changed, even if its time was put back; None if there is no file."""
    status = status_of(path)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mode, status.st_ctime_ns] if status else None


def is_known(code: object) -> bool:
    """Return whether code is the standard library's, or Debian's sitecustomize."""
    if not isinstance(code, types.CodeType):
        return False
    if code.co_filename.startswith("<frozen "):  # a part of the interpreter
        return True
    start, _standard, name = code.co_filename.partition(STANDARD)
    if start or not name:
        return False
    if name == "sitecustomize.py":
        return DEBIAN.issuperset(code.co_names) and not any(isinstance(one, types.CodeType) for one in code.co_consts)
    return not name.startswith(OTHERS)


class Scout:
    """Watches site in this process to its end, or until it would do anything but read or run code of others.

    Then it calls ``report``, which does not return.
    """

    def __init__(self, report: Callable[[bool, State], NoReturn]) -> None:
        self.report = report
        self.state: State = {}  # what was read
        self.watches = False
        self.calls = {name: getattr(os, name) for name in (*LOOKING, *NOT_READING)}
        self.modules = set(sys.modules)
        self.searched = set(sys.path_importer_cache)

    def watch(self, run: Callable[[], object]) -> NoReturn:
        printed, output = os.pipe()
        for number in (1, 2):
            os.dup2(output, number)
        sys.dont_write_bytecode = True
        mapped = set(mapped_files())
        for name in self.calls:
            setattr(os, name, self.watched(name))
        sys.addaudithook(self.hear)
        self.watches = True
        try:
            run()
        except BaseException:  # which ends a new interpreter
            self.end(only_reads=False)
        self.watches = False
        sys.stdout.flush()
        sys.stderr.flush()
        silent = not select.select([printed], [], [], 0)[0]
        self.end(only_reads=silent and mapped == set(mapped_files()) and all(map(os.path.isabs, self.state)))

    def end(self, only_reads: bool) -> NoReturn:
        self.watches = False
        for path in set(sys.path_importer_cache) - self.searched:
            self.note(path)
        for name in set(sys.modules) - self.modules:
            for kind in ("__file__", "__cached__"):
                self.note(getattr(sys.modules[name], kind, None))
        self.report(only_reads, self.state)

    def watched(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.watches:
                self.read(arguments[0] if arguments and name in LOOKING else None)
            return self.calls[name](*arguments, **keywords)

        return call

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by Python for each audit event, before that happens."""
        if not self.watches or event in HARMLESS:
            return
        if event == "exec" and is_known(arguments[0]):
            return
        reads = event in READING and not (event == "open" and arguments[2] & WRITING)
        self.read(arguments[0] if reads else None)

    def read(self, path: object) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):  # a descriptor, or nothing is read
            self.end(only_reads=False)
        self.watches = False
        self.note(os.fsdecode(path))
        self.watches = True

    def note(self, path: object) -> None:
        """Note a path as it is now, unless that is known."""
        if isinstance(path, str) and path not in self.state:
            self.state[path] = described(path)
