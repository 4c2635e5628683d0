# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: run shell commands in an interpreter (zygote.py) that has the environment of a login already.

A child becomes a shell, or does the shell's work itself for one of the few commands that ansible-core and this
collection need around modules.
"""

from __future__ import annotations

import mmap
import os
import pwd
import re
import signal
import stat
import sys
import zlib
from contextlib import suppress

from .frames import NOT_RUN, InterpreterRequest
from .hashing import sha256
from .zstd import Compressor, zstd, zstd_decompress
from .zygote import LastWord, Work, main

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from .fingerprint import Fingerprint

# Paths that a shell takes as they are.
PLAIN = rb"/[A-Za-z0-9_./@%+,:=-]*"
BLOCK = 512 << 10  # bytes that are read at once
WINDOW = 64 << 20  # bytes that are mapped at once
SET_DUMPABLE = 4  # for prctl()
# As login_shell.py starts a command: not in its arguments, which any user can see, and in the place of the shell's own.
SHELL = """c=$QEMU_GUEST_COMMAND; unset QEMU_GUEST QEMU_GUEST_COMMAND
eval "unset c; $c"
"""


class Commands(Work):
    def prepare(self) -> None:
        with suppress(ImportError):  # so that children have it
            import shutil  # noqa: F401
        with suppress(ImportError):
            zstd()

    def input_of(self, request: InterpreterRequest) -> bytes:
        return request.program[request.split_at :]

    def run(self, request: InterpreterRequest, last_word: LastWord) -> NoReturn:
        """Run a shell command, which comes before its input, in the environment of a login."""
        command = request.program[: request.split_at]
        with suppress(OSError, KeyError, ImportError, ValueError):  # then the shell will report the error
            output = called(request, self.input_of(request)) if request.call else done_here(command)
            if output is not None:
                os.write(1, output)
                last_word.say(0)
                os._exit(0)
        if request.in_time:
            last_word.say(NOT_RUN)
            os._exit(0)
        with open("/proc/self/environ", "rb") as file:
            variables = dict(line.split(b"=", 1) for line in file.read().split(b"\0") if b"=" in line)
        for name in (b"SHLVL", b"_"):  # the shell sets them anew
            variables.pop(name, None)
        variables.update({b"QEMU_GUEST": SHELL.encode("ascii"), b"QEMU_GUEST_COMMAND": command + b"\n"})
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        os.execve("/bin/sh", ["/bin/sh", "-c", 'eval "$QEMU_GUEST"'], variables)


def called(request: InterpreterRequest, content: bytes) -> bytes | None:
    """Make the call that replaces a shell command; return what that would print, None if it takes a shell.

    ``content`` is the command's input.

    :raise OSError: if the call fails, after nothing that a shell would not do again.
    :raise ImportError: if there is no Zstandard.
    :raise ValueError: if Zstandard fails.
    """
    name, arguments = str(request.call[0]), request.call[1:]
    # As the command has them, whatever the locale here.
    given = [value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value for value in arguments]
    return CALLS[name](*given, *([content] if name in WITH_INPUT else ()))


def done_here(command: bytes) -> bytes | None:
    """Run one of ansible-core's commands; return what a shell would print, None if it takes a shell.

    :raise OSError: if the command fails, after nothing that a shell would not do again.
    :raise KeyError: if there is no such user.
    """
    for pattern, action in KNOWN:
        match = pattern.fullmatch(command)
        if match:
            return action(*match.groups())
    return None


# Commands of ansible-core 2.16 to 2.21 before and after it copies a file.


def home_of(user: bytes | None) -> bytes | None:
    directory = os.fsencode(pwd.getpwnam(user.decode("ascii")).pw_dir) if user else os.environb[b"HOME"]
    return directory + b"\n" if re.fullmatch(PLAIN, directory) else None


def make(parents: bytes, path: bytes, name: bytes) -> bytes:
    before = os.umask(0o077)
    try:
        os.makedirs(parents, exist_ok=True)
        os.mkdir(path)
    finally:
        os.umask(before)
    return name + b"=" + path + b"\n"


def make_usable(paths: bytes) -> bytes:
    for path in paths.split():
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | 0o700)
    return b""


def remove(path: bytes) -> bytes:
    import shutil

    shutil.rmtree(path)
    return b""


# Operations of module_utils/_guest on a small file, and on parts of a large one: see CALLS.


def entered(path: bytes) -> int | None:
    """Open a directory; return None if a link leads there, whose owner a shell has to check."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    return directory if os.readlink(b"/proc/self/fd/%d" % directory) == path else None


def is_safe(directory: int) -> bool:
    """Return whether only root can replace files in the directory, and the directories above it."""
    while True:
        about = os.fstat(directory)
        if about.st_uid or (about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX):
            return False
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
        if os.path.samestat(about, os.fstat(above)):
            return True
        directory = above


def as_it_is(name: bytes, directory: int) -> tuple[int, int, int]:
    """Return mode, owner and group of a file; for a link, which is replaced, those of a new file."""
    try:
        about = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return 0o600, -1, -1
    if stat.S_ISLNK(about.st_mode):
        return 0o600, -1, -1
    if not stat.S_ISREG(about.st_mode):
        raise OSError("not a regular file")
    return stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid


def stage(path: bytes, name: bytes, new: bytes) -> bytes | None:
    directory = entered(path)
    if directory is None:
        return None
    as_it_is(name, directory)
    if not is_safe(directory):
        return None
    os.close(os.open(new, os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory))
    return os.path.join(path, new)


def placed(path: bytes, name: bytes, new: bytes, checksum: bytes, content: bytes) -> bytes | None:
    return put(path, name, new, checksum, os.O_RDWR | os.O_CREAT | os.O_EXCL, content)


def placed_beside(path: bytes, name: bytes, new: bytes, size: int) -> bytes | None:
    if os.stat(os.path.join(path, new)).st_size != size:
        raise OSError("not all there")
    return put(path, name, new, b"", os.O_RDONLY | os.O_NOFOLLOW, b"")


def put(path: bytes, name: bytes, new: bytes, checksum: bytes, flags: int, content: bytes) -> bytes | None:
    directory = entered(path)
    if directory is None:
        return None
    mode, uid, gid = as_it_is(name, directory)
    descriptor = os.open(new, flags, 0o600, dir_fd=directory)
    try:
        if content:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
        found = sha256(os.pread(descriptor, len(content) + 1, 0)).hexdigest().encode("ascii") if checksum else b""
        if found != checksum:
            raise OSError("not what was sent")
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        if flags & os.O_CREAT:  # otherwise a shell needs it
            os.unlink(new, dir_fd=directory)
        raise
    return found


def private(path: bytes | str, flags: int) -> int:
    """Open a file; a new one is accessible to its owner only."""
    return os.open(path, flags, 0o600)


def regular(path: bytes | str, flags: int) -> int:
    """Open a regular file: a FIFO may have been put in its place, and reading that may block forever.

    :raise OSError: if it is not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor


def printed(checksum: str) -> bytes:
    """Return a checksum as a program prints it for its standard input."""
    return checksum.encode("ascii") + b"  -\n"


def sum_of_file(path: bytes) -> bytes | None:
    return sum_of(path, 0, sys.maxsize) if os.path.isfile(path) and os.path.getsize(path) else None


def sha256_of_file(path: bytes, size: int, largest: int) -> bytes | None:
    """Return the checksum of a file; with a size that is not -1, that of its first bytes.

    None if it is no file with a size, or one larger than ``largest``, if that is not -1.
    """
    if not (os.path.isfile(path) and 0 < os.path.getsize(path) <= (largest if largest >= 0 else sys.maxsize)):
        return None
    summed = sha256()
    for block in blocks(path, 0, size if size >= 0 else sys.maxsize):
        summed.update(block)
    return printed(summed.hexdigest())


def sum_of(path: bytes, start: int, size: int, window: int = WINDOW) -> bytes:
    """Return the checksum of a file from ``start`` on, ``size`` bytes at most, of which ``window`` are mapped at once.

    Reading it would take as long again in an emulated guest, so it is mapped. If it shrinks meanwhile, that kills this
    process, which must not dump core then.
    """
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(SET_DUMPABLE, 0, 0, 0, 0)
    checksum = 0
    with open(path, "rb", opener=regular) as file:
        end = min(os.fstat(file.fileno()).st_size, start + size)
        while start < end:
            before = start % mmap.ALLOCATIONGRANULARITY
            length = min(end - start, window)
            mapped = mmap.mmap(file.fileno(), before + length, access=mmap.ACCESS_READ, offset=start - before)
            with mapped, memoryview(mapped) as content, content[before:] as block:
                checksum = zlib.crc32(block, checksum)
            start += length
    return printed(f"{checksum:08x}")


def blocks(path: bytes, start: int, size: int) -> Iterator[memoryview]:
    """Yield a file's content from ``start`` on, ``size`` bytes at most; each block is valid until the next one."""
    room = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0, opener=regular) as file:
        file.seek(start)
        while size > 0:
            got = file.readinto(room[: min(size, BLOCK)])
            if not got:
                return
            yield room[:got]
            size -= got


def make_room(prefix: bytes) -> bytes:
    zstd()
    for number in (b".0", b".1"):
        os.close(private(prefix + number, os.O_CREAT | os.O_EXCL))
    return b"zstd\n"


def unpack(packer: bytes, packed: bytes, append: int, path: bytes, size: int) -> bytes:
    """Write the content of a packed file, ``size`` bytes, to ``path``, or append it.

    :raise OSError: if that fails; a shell finds ``path`` as it was then.
    """
    with open(packed, "rb") as source:
        content = source.read()
    try:
        content = zlib.decompress(content, wbits=31) if packer == b"gzip" else zstd_decompress(content, size)
    except (zlib.error, ValueError) as error:
        raise OSError("damaged") from error
    with open(path, "ab" if append else "wb", buffering=0) as sink:
        start = sink.seek(0, os.SEEK_END)
        try:
            if sink.write(content) != len(content):
                raise OSError("no room")
        except OSError:
            sink.truncate(start)
            raise
    end = start + len(content)
    return sum_of(path, max(0, end - size), size)


def pack(path: bytes, start: int, size: int, level: int, new: bytes, old: bytes) -> bytes | None:
    if not os.path.isfile(path) or os.path.getsize(path) <= start:
        return None
    room = os.statvfs(os.path.dirname(new))
    if size > room.f_bavail * room.f_frsize // 2:
        return b""  # no compression: the content travels as it is
    compressor = Compressor(level)
    with suppress(FileNotFoundError):
        os.unlink(old)
    checksum = 0
    with open(new, "wb", opener=private, buffering=0) as packed:
        for block in blocks(path, start, size):
            frame = compressor.compress(block)
            if packed.write(frame) != len(frame):
                raise OSError("no room")
            checksum = zlib.crc32(block, checksum)
    return printed(f"{checksum:08x}")


def sweep(path: bytes) -> bytes:
    directory, name = os.path.split(path)
    for other in os.listdir(directory):
        if other.startswith(name + b"."):
            os.unlink(os.path.join(directory, other))
    return b""


CALLS: dict[str, Callable[..., bytes | None]] = {
    action.__name__: action
    for action in (
        make_room,
        pack,
        placed,
        placed_beside,
        sha256_of_file,
        stage,
        sum_of,
        sum_of_file,
        sweep,
        unpack,
    )
}
WITH_INPUT = ("placed",)
# ansible-core's commands can be recognised by their text only.
KNOWN: tuple[tuple[re.Pattern[bytes], Callable[..., bytes | None]], ...] = tuple(
    (re.compile(pattern), action)
    for pattern, action in (
        (rb"echo ~([a-z_][a-z0-9_-]*)?", home_of),
        (
            rb'\( umask 77 && mkdir -p "` echo (%b) `"&& mkdir "` echo (%b) `" && '
            rb'echo (ansible-tmp-[0-9.-]+)="` echo \2 `" \)' % (PLAIN, PLAIN),
            make,
        ),
        (rb"chmod u\+rwx((?: %b)+)" % PLAIN, make_usable),
        (rb"rm -f -r (%b/ansible-tmp-[0-9.-]+)/? > /dev/null 2>&1" % PLAIN, remove),
    )
)


def serve(fingerprint: Fingerprint | None = None, recipe: bytes = b"", code: bytes = b"") -> NoReturn:
    """Serve in a new interpreter; shell commands have no use for an archive."""
    main(Commands(), fingerprint)
