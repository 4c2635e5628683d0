# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: shell commands, by an interpreter (_warm_zygote.py) that has the environment of a login already.

A child becomes a shell, or does what the shell would do, where it is one of the few commands that ansible-core and this
collection need around modules.
"""

from __future__ import annotations

import importlib
import os
import pwd
import re
import signal
import stat
import sys
import zlib
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.plugin_utils._warm_zygote import LastWord, Request, Work

try:  # what hashlib would take, without what importing that takes
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # until Python 3.11
    except ImportError:
        from hashlib import sha256

TYPE_CHECKING = False  # as type checkers know it, without the time that importing typing takes
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

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


class Commands(Work):
    def prepare(self) -> None:
        for name in ("shutil", "_blake2"):  # so that children have it
            with suppress(ImportError):
                importlib.import_module(name)

    def run(self, request: Request, last_word: LastWord) -> NoReturn:
        """Run a shell command, which comes before its input. Its environment is that of a login."""
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
        import shutil

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
