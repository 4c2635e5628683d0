# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find other clients of a UNIX socket by sock_diag(7), as ss(8) does."""

from __future__ import annotations

import contextlib
import glob
import os
import socket
import struct
from typing import Iterator

__all__ = ("other_client",)


def other_client(path: str, own_inode: int) -> tuple[bool, str]:
    """Return ``(taken, who)``: whether a client other than the socket ``own_inode`` uses the UNIX socket ``path``.

    ``path`` is a name as connect(2) takes it.

    ``who`` names that client where the system can tell (Linux; other users' processes to root only), else is empty.
    """
    real = _real(path)
    for inode, name, peer in _unix_sockets():
        # The server's end of a connection has the server's path; that of a waiting client has no inode yet.
        if inode and peer and name and _real(name) == real:
            return (False, "") if peer == own_inode else (True, _process_with(peer))
    return False, ""


def _real(name: str) -> str:
    """Return the name that is the same for all names of a socket: QEMU's may be in /var/run, which is /run."""
    return os.path.realpath(name) if name.startswith("/") else name


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
        return  # not Linux, or not allowed: other clients cannot be found


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
    """Return the name and pid of a process that has the socket ``inode``; empty if none is visible."""
    for link in glob.iglob("/proc/[0-9]*/fd/[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == f"socket:[{inode}]":
                pid = link.split("/")[2]
                with open(f"/proc/{pid}/comm") as comm:
                    return f"{comm.read().strip()}, pid {pid}"
    return ""
