# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of guest agents, as users type them."""

from __future__ import annotations

import os
import re
from typing import Callable, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
)

__all__ = (
    "FORMS",
    "Address",
    "parse_address",
)

FORMS = "/path/to/socket, unix:/path/to/socket, unix:@NAME, vsock:CID:PORT, tcp:HOST:PORT or libvirt:DOMAIN"


class Address(NamedTuple):
    """An agent's address. ``kind`` is ``unix``, ``vsock``, ``tcp`` or ``libvirt``; the fields that it needs are set.

    C(ssh) is a UNIX socket on another machine, ``host``, see plugin_utils/_hypervisor: ``login`` tells the ways to log
    in there apart. A libvirt may be another machine's as well.
    """

    kind: str
    path: str = ""
    host: str = ""
    port: int = 0
    cid: int = 0
    domain: str = ""
    login: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        if self.kind == "vsock":
            return f"vsock:{self.cid}:{self.port}"
        if self.kind == "ssh":
            return f"unix:{self.path} on {self.host}"
        if self.kind == "libvirt":
            return f"libvirt:{self.domain}" + (f" on {self.host}" if self.host else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"

    @property
    def identity(self) -> str:
        """A name that is the same for all paths of one socket."""
        if self.kind == "unix":
            return self.path if self.is_abstract else _real(self.path)
        return f"{self} {self.login}".rstrip()

    @property
    def is_abstract(self) -> bool:
        """Whether ``path`` is a name in Linux's abstract namespace, after an C(@)."""
        return self.path.startswith("@")

    @property
    def name(self) -> str:
        """The socket's name, as connect(2) takes it."""
        return f"\0{self.path[1:]}" if self.is_abstract else self.path


def _real(path: str) -> str:
    """Return the path without symbolic links, or as it is if that would be another socket.

    What is below C(/proc/PID/root) is in another container, which a link there does not say.
    """
    real = os.path.realpath(path)
    try:
        is_other = os.path.exists(path) and not os.path.samefile(path, real)
    except OSError:  # there is no ``real``
        is_other = True
    return path if is_other else real


def parse_address(text: str) -> Address:
    """Return the Address that ``text`` names.

    :raise AddressError: if it has none of the forms; the message lists them.
    """
    kind, colon, rest = ("unix", ":", text) if text.startswith("/") else text.partition(":")
    parser = _PARSERS.get(kind) if colon else None
    address = parser(rest) if parser and rest and _can_be_passed(rest, kind) else None
    if address is None:
        raise AddressError(f"{text!r} is not the address of a guest agent. It should be {FORMS}.")
    return address


def _can_be_passed(rest: str, kind: str) -> bool:
    """Return whether the system takes such a text: a path may be of any bytes but NUL."""
    try:
        rest.encode("utf-8", "surrogateescape" if kind == "unix" else "strict")
    except UnicodeEncodeError:
        return False
    return "\0" not in rest


def _parse_unix(rest: str) -> Address | None:
    return Address("unix", path=rest) if rest.startswith(("/", "@")) and rest != "@" else None


def _parse_vsock(rest: str) -> Address | None:
    match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", rest)
    if not match or max(map(int, match.groups())) > 0xFFFFFFFF:
        return None
    return Address("vsock", cid=int(match.group(1)), port=int(match.group(2)))


def _parse_tcp(rest: str) -> Address | None:
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):(\d{1,5})", rest)
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
