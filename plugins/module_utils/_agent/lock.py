# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock on a channel that serves one client, among the processes of one user, and the path of its files.

QEMU's chardev serves one client. A second client connects without an error and waits; its requests are run once the
first has left, even if the second is gone by then. Hence a lock among our own processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import pwd
import stat
import sys
import tempfile
import time
from typing import IO, Callable, Iterator, TypeVar

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    ChannelBusyError,
    ConnectError,
)

__all__ = (
    "FORWARD",
    "RELAY",
    "ChannelLock",
    "lock_file",
    "private_path",
    "short_name",
    "user_path",
)
# Files of an address that was unused for this long are removed.
_OLD_SECONDS = 3600.0
_RETRY_SECONDS = 0.05

T = TypeVar("T")


# The files of an address, by suffix: its lock, and the socket at which ssh listens for it. A hypervisor's: what is
# known of the relay there.
_LOCK, FORWARD, RELAY = "lock", "ssh", "relay"


class ChannelLock:
    """The lock on an address, among the processes of this user on this machine.

    An flock on a file that names the holder; the kernel drops it when the holder dies.
    """

    def __init__(self, address: Address, directory: str | None = None) -> None:
        self._path = private_path(address.identity, _LOCK, directory)
        self._file: IO[bytes] | None = None

    def acquire(self, deadline: Deadline, instead: Callable[[], T | None] = lambda: None) -> T | None:
        """Wait for the lock. While another process has it, call ``instead`` for a channel, and return that if any.

        :raise ChannelBusyError: at the deadline, naming the holder.
        """
        while True:
            file = self._opened()
            if _locked(file, self._path):
                break
            channel = instead()
            if channel or deadline.expired:
                holder = file.read(256).decode("utf-8", "replace").strip()
                file.close()
                if channel:
                    return channel
                raise ChannelBusyError(
                    f"another task uses the channel ({holder or 'unknown'}) and did not leave it within "
                    f"{deadline.seconds:g} s.",
                    hint="A guest agent serves one client at a time.",
                )
            file.close()
            time.sleep(min(_RETRY_SECONDS, deadline.left()))
        if not os.fstat(file.fileno()).st_size:
            # Each new address cleans up old ones, so that files do not accumulate.
            _remove_old(os.path.dirname(self._path))
        name = os.path.basename(sys.argv[0] or "python").encode("utf-8", "replace")
        file.truncate(0)
        file.write((b"pid %d, %b" % (os.getpid(), name))[:256])
        # A file object, not a descriptor: a forgotten lock is released with the object.
        self._file = file
        return None

    def _opened(self) -> IO[bytes]:
        try:
            return open(self._path, "r+b", buffering=0, opener=_create)
        except OSError as exc:
            raise ConnectError(f"cannot open the channel's lock {self._path}: {exc.strerror}.") from exc

    def fileno(self) -> int:
        """Return the descriptor that holds the lock, which lasts as long as any copy of it is open."""
        return self._file.fileno() if self._file else -1

    def release(self) -> None:
        """Release the lock; harmless if it is not held."""
        if self._file:
            self._file.close()
            self._file = None


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _locked(file: IO[bytes], path: str) -> bool:
    """Lock the open file; return whether that succeeded and the file is still the one at ``path``."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _remove_old(directory: str) -> None:
    """Remove the locks of addresses that are long unused, and what is used for a while only: forwards, notes of relays.

    Each user of an address holds its lock, so this takes it too. A process that waits for it meanwhile notices in
    `_locked` that the file was replaced.
    """
    for kind in (FORWARD, RELAY):
        for path in glob.glob(os.path.join(glob.escape(directory), f"*.{kind}")):
            with contextlib.suppress(OSError):
                if _is_old(os.lstat(path)):
                    os.unlink(path)
    for path in glob.glob(os.path.join(glob.escape(directory), f"*.{_LOCK}")):
        with contextlib.suppress(OSError), open(path, "rb", opener=_existing) as file:
            if _is_old(os.fstat(file.fileno())) and _locked(file, path):
                os.unlink(path)


def _is_old(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > _OLD_SECONDS


def _existing(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def private_path(identity: str, kind: str, directory: str | None = None) -> str:
    """Return the path of this user's file of ``kind`` for the agent with this ``identity``.

    :raise ConnectError: if there is no directory that only this user can write to.
    """
    return os.path.join(directory or _private_directory(), f"{short_name(identity)}.{kind}")


def user_path(name: str) -> str:
    """Return the path of this user's only file of that name.

    :raise ConnectError: if there is no directory that only this user can write to.
    """
    return os.path.join(_private_directory(), name)


def short_name(identity: str) -> str:
    """Return the name of the agent with this ``identity`` among this user's files, and in the mux."""
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@contextlib.contextmanager
def lock_file(path: str) -> Iterator[IO[bytes] | None]:
    """Hold the lock on the file ``path``, which stays, and give it; None if another process has it.

    A process that inherits its descriptor goes on holding it.

    :raise OSError: if the file cannot be opened.
    """
    with open(path, "r+b", buffering=0, opener=_create) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def _private_directory() -> str:
    """Return a directory that only this user can write to, made on demand.

    Its name is fixed, because all processes of the user must find the same one. It is in a directory of the user's, if
    there is one: in /tmp, another user may have taken the name.
    """
    uid = os.geteuid()
    path = next(filter(_is_made, _in_own_directories(uid)), "")
    if not path:
        path = os.path.join(tempfile.gettempdir(), f"qemu-guest-{uid}")
        _is_made(path)
    try:
        status = os.lstat(path)
    except OSError as exc:
        raise ConnectError(f"cannot make the directory {path}: {exc.strerror}.", hint=_OWN_DIRECTORY) from exc
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o022:
        raise ConnectError(
            f"{path} should be a directory that uid {uid} alone can write to; it is uid {status.st_uid}'s, with mode "
            f"{stat.S_IMODE(status.st_mode):04o}.",
            hint=_OWN_DIRECTORY,
        )
    return path


_OWN_DIRECTORY = "Set XDG_RUNTIME_DIR to a directory of this user's own, with mode 0700, for all of this user's tasks."


def _in_own_directories(uid: int) -> Iterator[str]:
    """Yield candidate paths for the directory, in existing directories that the user owns."""
    for parent in ("/run" if uid == 0 else "", os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if _is_owned(parent, uid):  # sudo -E keeps the variable of the former user, and su sets none
            yield os.path.join(parent, "qemu-guest")
    with contextlib.suppress(KeyError):
        home = pwd.getpwuid(uid).pw_dir
        if _is_owned(home, uid):
            yield os.path.join(home, ".ansible", "qemu-guest")


def _is_owned(path: str, uid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.isabs(path) and os.stat(path).st_uid == uid
    return False


def _is_made(path: str) -> bool:
    """Make a directory, and return whether the path exists now."""
    with contextlib.suppress(OSError):
        os.makedirs(path, 0o700)
    return os.path.lexists(path)
