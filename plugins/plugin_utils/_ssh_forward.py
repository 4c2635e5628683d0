# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reach an agent's socket on another machine by OpenSSH's forwarding of UNIX sockets: that machine needs only sshd.

ssh goes to the background as soon as it listens here. It ends by itself when nothing is connected through it any more,
because it only waits for a sleeping command on the other machine.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError, ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import FORWARD, private_path

__all__ = ("connect", "forwarded")

# How long ssh stays without a channel, in seconds.
_LINGER_SECONDS = 10
_MOST_WORDS = 4096  # bytes of ssh's messages that are read, from the end
_OPTIONS = (
    "-oBatchMode=yes",  # there is no user to answer
    "-oExitOnForwardFailure=yes",
    "-oStreamLocalBindUnlink=yes",  # left by an ssh that was killed
    "-oStreamLocalBindMask=0177",
    "-oControlMaster=no",
    "-oControlPath=none",
    "-oServerAliveInterval=15",  # notice a hypervisor that has gone
)


def forwarded(address: Address, hypervisor: str) -> Address:
    """Return the address of the UNIX socket ``address`` on the machine ``hypervisor``, an ssh destination.

    :raise AddressError: if it is another kind of address, or not a destination.
    """
    if address.kind != "unix":
        raise AddressError(
            f"{address} cannot be reached through ssh to {hypervisor}: only the path of a socket there can. For "
            "libvirt, use a remote libvirt_uri such as qemu+ssh://HOST/system."
        )
    if hypervisor.startswith("-") or not hypervisor.strip():
        raise AddressError(f"{hypervisor!r} is not a destination of ssh's ([USER@]HOST or ssh://[USER@]HOST[:PORT]).")
    return Address("ssh", path=address.path, host=hypervisor)


def connect(address: Address, deadline: Deadline) -> socket.socket:
    """Return a socket that leads to ``address``, through an ssh that runs already or is started.

    :raise ConnectError: with ssh's own message.
    """
    path = private_path(address.identity, FORWARD)
    there = _connected(path)
    if there:
        return there
    _start(address, path, deadline)
    started = _connected(path)
    if not started:
        raise ConnectError(f"ssh to {address.host} ended as soon as it was there")
    return started


def _connected(path: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock


def _start(address: Address, path: str, deadline: Deadline) -> None:
    forward = f"{path}:{address.path}"
    command = ["ssh", "-f", *_OPTIONS, "-L", forward, "--", address.host, f"sleep {_LINGER_SECONDS}"]
    # A file, not a pipe, because the ssh that stays keeps it open.
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd="/",
                start_new_session=True,
                check=False,
                timeout=max(deadline.left(), 0.001),
            )
        except subprocess.TimeoutExpired:
            raise ConnectError(f"ssh to {address.host} did not connect within {deadline.seconds:g} s.") from None
        except OSError as exc:
            raise ConnectError(f"cannot start ssh: {exc.strerror or exc}.") from exc
        if done.returncode:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _MOST_WORDS))
            words = errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ConnectError(f"cannot connect to {address.host} by ssh: {words or f'exit status {done.returncode}'}")
    with suppress(OSError):
        os.chmod(path, 0o600)
