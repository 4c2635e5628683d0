# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: start interpreters, by their command lines or as forks of this process."""

from __future__ import annotations

import _socket
import os
import re
import signal
import sys

from .fingerprint import Fingerprint
from .frames import input_pipe
from .fresh import reset_signals

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from .loader import Loader

    Spawned = tuple[_socket.socket, int, int]
    """The other ends of an interpreter's standard output, a stream socket, and of its standard error, a pipe; and the
    number of the process that was started."""
    Program = tuple[str, ...]
    """The modules of this package that an interpreter needs. It calls ``serve`` of the first one."""

MODULE_RUNNER = (
    "module_runner",
    "appending",
    "bytecode",
    "compiler",
    "fingerprint",
    "frames",
    "fresh",
    "importer",
    "pages",
    "payload",
    "site_ahead",
    "vfork",
    "zygote",
)
SHELL_COMMANDS = ("shell_runner", "fingerprint", "frames", "fresh", "hashing", "zstd", "zygote")
LEAST_FREE = 96 << 20  # bytes; with less, no further interpreter is started
FIRST_NONSTANDARD = 3  # the first descriptor after the standard ones
# The shell waits in the root directory: the command's may be on a filesystem that is to be unmounted. A shell gives
# background jobs /dev/null as input, so descriptor 7 carries it.
IN_BACKGROUND = '''exec 7<&0
{command} <&7 7<&- &
exec 7<&- </dev/null
cd /
wait "$!"'''
# Matches one program. Anything else goes in braces, for which most shells keep a shell in the command's directory.
ONE_PROGRAM = r"""(?:[\w ./=,:@%+-]|'[^']*'|"[^"\\$`]*")+"""


def in_background(command: str) -> str:
    """Return the shell text that runs a command line in the background and waits for it elsewhere."""
    is_one = re.fullmatch(ONE_PROGRAM, command)
    return IN_BACKGROUND.format(command=command if is_one else f"{{\n{command}\n}}")


def free_memory() -> int:
    with open("/proc/meminfo") as table:
        for line in table:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


class Launcher:
    """Starts interpreters. ``loader`` has the modules that they need.

    ``forkable`` are names of programs: a fork of this process runs them as a newly started interpreter would.
    ``prologue`` is the shell text that comes before a command line.
    """

    def __init__(self, loader: Loader, prologue: str, forkable: Sequence[str]) -> None:
        self.directory, self.umask = os.getcwd(), os.umask(0o077)
        self.loader = loader
        self.prologue = prologue
        self.forkable = forkable
        self.recipe = self.code = b""  # of the first archive
        self.fingerprint = Fingerprint()

    def spawn(self, program: Program, command: str, path: str) -> Spawned:
        """Start an interpreter by a shell command; ``path`` is PATH before that.

        It shares only a socket and two pipes with this process: it may belong to another user. Its shell runs the
        program of login_shell.py, which reads a number of lines and the command line; the rest is the interpreter's
        program.
        """
        command = in_background(command)
        text = f"{command.count(chr(10)) + 1}\n{command}\n{self.loader.program(program, 'serve')}"
        stdin = input_pipe(text.encode("utf-8", "surrogateescape"))
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        errors, error_sink = os.pipe()
        try:
            process = start_shell({"PATH": path, "QEMU_GUEST": self.prologue}, [stdin, theirs.fileno(), error_sink])
        except OSError:
            os.close(errors)
            raise
        finally:
            theirs.close()
            os.close(error_sink)
            os.close(stdin)
        return ours, errors, process

    def fork(self, program: Program) -> Spawned | None:
        """Start an interpreter as a fork of this process; return None if a fork will not do."""
        if program[0] not in self.forkable or self.fingerprint.changed():
            return None
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        errors, error_sink = os.pipe()
        try:
            process = os.fork()
        except OSError:
            for end in (errors, error_sink):
                os.close(end)
            raise
        if not process:
            try:
                ours.close()
                self.run_as_interpreter(program, theirs, error_sink)
            except SystemExit:  # of a task, whose process exits as usual
                raise
            except BaseException:  # a fork must never go on as the server
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        theirs.close()
        os.close(error_sink)
        return ours, errors, process

    def run_as_interpreter(self, program: Program, output: _socket.socket, errors: int) -> NoReturn:
        """Become an interpreter. This never returns, so no caller closes its descriptors: they are closed by number."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        detach(self.directory, self.umask, [nothing, output.fileno(), errors])
        output.close()
        # Soon: as long as the ring is open, clients believe that a server reads it.
        os.closerange(FIRST_NONSTANDARD, 1 << 10)
        reset_signals()
        name = f"{__package__}.{program[0]}"
        __import__(name)
        sys.modules[name].serve(self.fingerprint, self.recipe, self.code)
        raise AssertionError("it serves until it ends")


def start_shell(environment: dict[str, str], descriptors: Sequence[int]) -> int:
    """Start the program of login_shell.py, with these as its standard descriptors; return its process number."""
    process = os.fork()
    if not process:
        try:
            detach("/", 0o022, descriptors)
            reset_signals()
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
                signal.signal(ignored, signal.SIG_DFL)
            os.execve("/bin/sh", ["/bin/sh", "-c", 'eval "$QEMU_GUEST"'], environment)
        finally:
            os._exit(127)
    return process


def detach(directory: str, umask: int, descriptors: Sequence[int]) -> None:
    """In a new process: start a session, and set umask, directory and standard descriptors."""
    os.setsid()
    os.umask(umask)
    os.chdir(directory)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
