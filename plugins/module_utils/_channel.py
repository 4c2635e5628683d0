# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Byte channels to a guest agent: addresses, deadlines, sockets, and the lock on a seat that only one client can have.

QEMU's chardev serves one client. A second one connects without an error and waits; what it writes meanwhile is run
once the first has left, even if the second is gone by then. Hence a lock among ourselves, and hence no byte but a sync
leaves before the agent has answered (_agent.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import pwd
import re
import select
import socket
import stat
import struct
import sys
import tempfile
import time
from typing import IO, Any, Callable, Iterator, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._errors import (
    AddressError,
    ChannelBusyError,
    ConnectError,
    OutcomeUnknownError,
)

__all__ = (
    "Address",
    "Channel",
    "Connect",
    "Deadline",
    "SeatLock",
    "Step",
    "open_channel",
    "parse_address",
    "private_path",
    "seat_holder",
)

_RECV_SIZE = 1024 * 1024
_RETRY_SECONDS = 0.05
# Nobody waits for longer, and poll() cannot.
_LONGEST_SECONDS = 1_000_000.0
# What belongs to an address that nobody has used for so long is removed.
_OLD_SECONDS = 3600.0

FORMS = "/path/to/socket, unix:/path/to/socket, vsock:CID:PORT, tcp:HOST:PORT or libvirt:DOMAIN"


class Deadline:
    """A point in time, so that several waits share one limit. It is at most 11 days away."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + min(seconds, _LONGEST_SECONDS)

    def left(self) -> float:
        """Return the seconds left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.left() <= 0.0


class Address(NamedTuple):
    """Where an agent is. ``kind`` is ``unix``, ``vsock``, ``tcp`` or ``libvirt``; the fields that it needs are set.

    C(ssh) is a UNIX socket on another machine, see plugin_utils/_forward.py.
    """

    kind: str
    path: str = ""
    host: str = ""
    port: int = 0
    cid: int = 0
    domain: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        if self.kind == "vsock":
            return f"vsock:{self.cid}:{self.port}"
        if self.kind == "ssh":
            return f"unix:{self.path} on {self.host}"
        if self.kind == "libvirt":
            return f"libvirt:{self.domain}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"

    @property
    def identity(self) -> str:
        """The same for all names of one socket."""
        return os.path.realpath(self.path) if self.kind == "unix" else str(self)


def parse_address(text: str) -> Address:
    """Return the Address that ``text`` names.

    :raise AddressError: if it has none of the forms; the message lists them.
    """
    if text.startswith("/"):
        return Address("unix", path=text)
    kind, colon, rest = text.partition(":")
    parser = _PARSERS.get(kind) if colon else None
    address = parser(rest) if parser and rest else None
    if address is None:
        raise AddressError(f"{text!r} is not the address of a guest agent. It should be {FORMS}.")
    return address


def _parse_unix(rest: str) -> Address | None:
    return Address("unix", path=rest) if rest.startswith("/") else None


def _parse_vsock(rest: str) -> Address | None:
    match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", rest)
    if not match or max(map(int, match.groups())) > 0xFFFFFFFF:
        return None
    return Address("vsock", cid=int(match.group(1)), port=int(match.group(2)))


def _parse_tcp(rest: str) -> Address | None:
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+)):(\d{1,5})", rest)
    if not match or not 0 < int(match.group(3)) < 65536:
        return None
    return Address("tcp", host=match.group(1) or match.group(2), port=int(match.group(3)))


def _parse_libvirt(rest: str) -> Address | None:
    return Address("libvirt", domain=rest)


_PARSERS: dict[str, Callable[[str], Address | None]] = {
    "unix": _parse_unix,
    "vsock": _parse_vsock,
    "tcp": _parse_tcp,
    "libvirt": _parse_libvirt,
}


# The files of an address, by the ends of their names: its lock; sockets of its keeper, and of an ssh that forwards it.
_LOCK, KEEPER, FORWARD = "lock", "keep", "ssh"
_SOCKETS = (KEEPER, FORWARD)


class SeatLock:
    """The right to use an address, among the processes of this user on this machine.

    An flock on a file that names the holder; the kernel drops it when the holder dies.
    """

    def __init__(self, address: Address, directory: str | None = None) -> None:
        self._path = private_path(address.identity, _LOCK, directory)
        self._file: IO[bytes] | None = None

    def acquire(self, deadline: Deadline, instead: Callable[[], Channel | None] = lambda: None) -> Channel | None:
        """Wait for the seat. As long as somebody has it, ``instead`` is asked for a channel, which is returned then.

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
            # Each new address has those removed that are used no more, so they do not become ever more.
            _remove_old(os.path.dirname(self._path))
        name = os.path.basename(sys.argv[0] or "python").encode("utf-8", "replace")
        file.truncate(0)
        file.write((b"pid %d, %b" % (os.getpid(), name))[:256])
        # A file object, not a number: a lock that is forgotten is released with it.
        self._file = file
        return None

    def _opened(self) -> IO[bytes]:
        try:
            return open(self._path, "r+b", buffering=0, opener=_create)
        except OSError as exc:
            raise ConnectError(f"cannot open the channel's lock {self._path}: {exc.strerror}.") from exc

    def fileno(self) -> int:
        """Return the descriptor by which the seat is held; it is held as long as a copy of it is open."""
        return self._file.fileno() if self._file else -1

    def release(self) -> None:
        """Give the seat up; harmless if it is not held."""
        if self._file:
            self._file.close()
            self._file = None


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _locked(file: IO[bytes], path: str) -> bool:
    """Lock the file that is open, and return whether that is done and it is still the one at ``path``."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _remove_old(directory: str) -> None:
    """Remove what there is of addresses that nobody has used for long: locks, and sockets of who was killed.

    Whoever uses an address has its lock. So does this, and the lock goes last: who waits for it meanwhile sees in
    `_locked` that it is another one now.
    """
    for path in glob.glob(os.path.join(glob.escape(directory), f"*.{_LOCK}")):
        with contextlib.suppress(OSError), open(path, "rb", opener=_existing) as file:
            old = time.time() - os.fstat(file.fileno()).st_mtime > _OLD_SECONDS
            if old and _locked(file, path):
                for kind in (*_SOCKETS, _LOCK):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path[: -len(_LOCK)] + kind)


def _existing(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def private_path(identity: str, kind: str, directory: str | None = None) -> str:
    """Return the path of this user's file of ``kind`` about the agent that ``identity`` is of.

    :raise ConnectError: if there is no directory that only this user can write to.
    """
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return os.path.join(directory or _private_directory(), f"{digest}.{kind}")


def _private_directory() -> str:
    """Return a directory that only this user can write to, made on demand.

    All processes of the user are to find the same one, so its name is known. It is in a directory of the user's, where
    there is one: in /tmp, another user may have made what has that name.
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
    """Yield the paths that the directory may have, in directories that are there and the user's."""
    for parent in ("/run" if uid == 0 else "", os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if _is_owned(parent, uid):  # sudo -E leaves the variable as it was, and su sets none
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
    """Make a directory, and return whether there is something of that name now."""
    with contextlib.suppress(OSError):
        os.makedirs(path, 0o700)
    return os.path.lexists(path)


class Step(NamedTuple):
    """Whether client and agent are in step: nothing of anybody's is left in the channel.

    ``since``: the time (monotonic) of the last reply that was awaited; 0: out of step. What the agent does with ids
    goes with it.
    """

    since: float = 0.0
    takes_id: bool = True
    echoes_id: bool = False


class Channel:
    """A connected, non-blocking byte stream and the lock that belongs to it."""

    shared = False
    """Whether others may have the channel between ``give`` and ``take``."""

    def __init__(self, sock: socket.socket, lock: SeatLock | None = None) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._lock = lock
        self._step = Step()

    @property
    def descriptors(self) -> tuple[int, int]:
        """The stream's descriptor, and that of the lock (-1 if there is none)."""
        return self._sock.fileno(), self._lock.fileno() if self._lock else -1

    def take(self, deadline: Deadline) -> Step:
        """Have the channel to oneself, until ``give``; return how it was left. Without that it is left out of step.

        :raise ChannelBusyError: if others have it until the deadline.
        :raise ConnectError: if it is not to be had any more.
        """
        step, self._step = self._step, Step(takes_id=self._step.takes_id)
        return step

    def give(self, step: Step) -> None:
        """Leave the channel so."""
        self._step = step

    @property
    def inode(self) -> int:
        """The socket's inode number, by which the system's tables name it."""
        return os.fstat(self._sock.fileno()).st_ino

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of ``data``.

        :raise ConnectError: if a part did not leave: an incomplete JSON object is never run.
        :raise OutcomeUnknownError: if all but the final newline left.
        """
        view = memoryview(data)
        while view:
            # A request ends in a newline that the agent does not wait for.
            kind = ConnectError if len(view) > 1 else OutcomeUnknownError
            if not self._poll(select.POLLOUT, deadline):
                raise kind(f"the guest took no data for {deadline.seconds:g} s")
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                raise kind(f"the channel broke while sending: {exc.strerror or exc}") from exc

    def is_silent(self, deadline: Deadline) -> bool:
        """Return whether nothing comes until the deadline; that the other side has gone is something."""
        return not self._poll(select.POLLIN, deadline)

    def recv(self, deadline: Deadline) -> bytes:
        """Return what has arrived, at least one byte.

        :raise OutcomeUnknownError: at the deadline, or if the other side closed the channel.
        """
        while True:
            if not self._poll(select.POLLIN, deadline):
                raise OutcomeUnknownError(f"no reply within {deadline.seconds:g} s")
            try:
                data = self._sock.recv(_RECV_SIZE)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise OutcomeUnknownError(f"the channel broke: {exc.strerror or exc}") from exc
            if not data:
                raise OutcomeUnknownError(
                    "the other side closed the channel (QEMU ended, or the agent stopped listening)"
                )
            return data

    def close(self) -> None:
        """Close the socket, then let others have the seat."""
        self._sock.close()
        if self._lock:
            self._lock.release()

    def _poll(self, event: int, deadline: Deadline) -> bool:
        poller = select.poll()
        poller.register(self._sock, event)
        # A guest that never stops talking does not prolong a deadline, though there is always something to read.
        return not deadline.expired and bool(poller.poll(deadline.left() * 1000))


Connect = Callable[[Address, Deadline], socket.socket]
"""Returns a socket that leads to an address, or raises ConnectError."""


def open_channel(
    address: Address,
    deadline: Deadline,
    join: Callable[[], Channel | None] = lambda: None,
    connect: Connect | None = None,
) -> Channel:
    """Return a Channel to ``address``, with the seat's lock held; or what ``join`` returns, where somebody has it.

    ``connect`` takes the place of what the kind of address needs.

    :raise ConnectError: with the reason and what to do.
    :raise ChannelBusyError: if one of our own processes keeps the seat until the deadline.
    """
    lock = SeatLock(address)
    joined = lock.acquire(deadline, join)
    if joined:
        return joined
    try:
        return Channel((connect or _CONNECTORS[address.kind])(address, deadline), lock)
    except BaseException:  # whatever it was, KeyboardInterrupt included: others must not find the seat taken
        lock.release()
        raise


_UNIX_TROUBLE = {
    errno.ENOENT: "there is no such socket. QEMU makes it when the guest starts: is the guest running on this machine?",
    errno.ECONNREFUSED: "nobody serves this socket: the QEMU that made it has ended. Start the guest.",
    errno.EACCES: "permission denied. The socket belongs to the user that runs QEMU: become that user or root.",
    errno.ENOTSOCK: "this is not a socket.",
}


def _connect_unix(address: Address, deadline: Deadline) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            code = _connect_code(sock, address.path)
            if code == 0:
                return sock
            # The queue of clients waiting for the seat is full.
            if code != errno.EAGAIN:
                raise ConnectError(_UNIX_TROUBLE.get(code, os.strerror(code)))
            if deadline.expired:
                raise ChannelBusyError("too many clients wait for the channel already")
            time.sleep(min(_RETRY_SECONDS, deadline.left()))
    except BaseException:  # whatever it was, KeyboardInterrupt included: who connects half is not left in the queue
        sock.close()
        raise


def _connect_code(sock: socket.socket, path: str) -> int:
    try:
        code = sock.connect_ex(path)
    except OSError as exc:  # a path beyond the 107 bytes of sockaddr_un never reaches the system
        raise ConnectError(f"{exc}") from exc
    # ENOTSOCK is what some systems say, ECONNREFUSED what Linux says of a plain file.
    with contextlib.suppress(OSError):  # it may be gone by now
        if code == errno.ECONNREFUSED and not stat.S_ISSOCK(os.stat(path).st_mode):
            return errno.ENOTSOCK
    return code


def _connect_vsock(address: Address, deadline: Deadline) -> socket.socket:
    try:
        family = socket.AF_VSOCK
        socket.socket(family, socket.SOCK_STREAM).close()
    except (AttributeError, OSError) as exc:
        raise ConnectError(f"cannot connect: this machine has no vsock ({exc})") from exc
    try:
        return _connected(family, (address.cid, address.port), deadline)
    except OSError as exc:
        raise ConnectError(f"cannot connect: {exc.strerror or exc}") from exc


def _connect_tcp(address: Address, deadline: Deadline) -> socket.socket:
    error: OSError | UnicodeError | None = None
    try:
        for family, _kind, _protocol, _name, where in socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        ):
            try:
                return _connected(family, where, deadline)
            except OSError as exc:
                error = exc
    except (OSError, UnicodeError) as exc:  # the latter is Python's word for a host name that cannot be one
        error = exc
    raise ConnectError(f"cannot connect: {getattr(error, 'strerror', None) or error}") from error


def _connected(family: int, where: Any, deadline: Deadline) -> socket.socket:
    """Return a socket that is connected to ``where``, an address of this ``family``."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(deadline.left(), 0.001))
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock


_CONNECTORS: dict[str, Connect] = {
    "unix": _connect_unix,
    "vsock": _connect_vsock,
    "tcp": _connect_tcp,
}


def seat_holder(path: str, own_inode: int) -> tuple[bool, str]:
    """Return ``(taken, who)``: whether another client than the socket ``own_inode`` sits on the UNIX socket ``path``.

    ``who`` names it where the system can tell (Linux; other users' processes to root only), else is empty.
    """
    real = os.path.realpath(path)  # QEMU may have another name for it: /var/run is /run
    for inode, name, peer in _unix_sockets():
        # The server's side of a client has the server's path; the side of one that still waits has no inode yet.
        if inode and peer and name.startswith("/") and os.path.realpath(name) == real:
            return (False, "") if peer == own_inode else (True, _process_with(peer))
    return False, ""


_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_DUMP_REQUEST = 0x301
_ESTABLISHED = 1 << 1
_SHOW_NAME_AND_PEER = 1 | 4
_ATTRIBUTE_NAME, _ATTRIBUTE_PEER = 0, 2


def _unix_sockets() -> Iterator[tuple[int, str, int]]:
    """Yield ``(inode, path, peer's inode)`` of the system's connected UNIX sockets: sock_diag(7), as ss shows it."""
    # nlmsghdr: length, type, flags, sequence, port; unix_diag_req: family, protocol, pad, states, inode, show, cookie
    body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ESTABLISHED, 0, _SHOW_NAME_AND_PEER, 0, 0)
    head = struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, _DUMP_REQUEST, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(5)
            kernel.send(head + body)
            while True:
                data = kernel.recv(65536)
                while data:
                    length, kind = struct.unpack_from("=IH", data)
                    if kind != _SOCK_DIAG_BY_FAMILY:
                        return
                    yield _unix_socket(data[16:length])
                    data = data[(length + 3) & ~3 :]
    except (OSError, AttributeError):
        return  # not Linux, or not allowed: then nobody can tell


def _unix_socket(message: bytes) -> tuple[int, str, int]:
    # unix_diag_msg: family, type, state, pad, inode, cookie; then attributes: length, type, value
    inode = struct.unpack_from("=I", message, 4)[0]
    name, peer = "", 0
    rest = message[16:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        if kind == _ATTRIBUTE_NAME:
            name = os.fsdecode(rest[4:length].rstrip(b"\0"))
        elif kind == _ATTRIBUTE_PEER:
            peer = struct.unpack_from("=I", rest, 4)[0]
        rest = rest[max((length + 3) & ~3, 4) :]
    return inode, name, peer


def _process_with(inode: int) -> str:
    """Return the name and pid of a process that has the socket ``inode``, empty if none is to be seen."""
    for link in glob.iglob("/proc/[0-9]*/fd/[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == f"socket:[{inode}]":
                pid = link.split("/")[2]
                with open(f"/proc/{pid}/comm") as comm:
                    return f"{comm.read().strip()}, pid {pid}"
    return ""
