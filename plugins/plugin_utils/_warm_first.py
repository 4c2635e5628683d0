# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: what the first interpreter reads, which starts at the same time as what is to serve (_warm_start.py).

What _warm.py has put before this is imported already when the program comes that the interpreter is for.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

PATIENCE_SECONDS = 30
PAUSE = 0.01


def program_from(beside: str) -> bytes:
    """Come to who serves, at a socket, which is standard output from then on; return the program from there.

    Who starts this, and has no use for it, removes the file that its errors go to.
    """
    with suppress(OSError):
        os.setsid()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    began = time.monotonic()
    while connection.connect_ex(f"{beside}.socket"):
        if not os.path.exists(f"{beside}.err") or time.monotonic() - began > PATIENCE_SECONDS:
            os._exit(0)
        time.sleep(PAUSE)
    program = connection.recv(1 << 20)
    if not program:
        os._exit(0)
    os.dup2(connection.fileno(), 1)
    connection.close()
    return program
