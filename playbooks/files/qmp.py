# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one command of QEMU's monitor and print what it returns: qmp.py SOCKET COMMAND [ARGUMENTS, as JSON]"""

import json
import socket
import sys

# The monitor serves one client at a time; others wait.
SECONDS = 20


def main(path, command, arguments="{}"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
        monitor.settimeout(SECONDS)
        monitor.connect(path)
        replies = monitor.makefile(encoding="utf-8")
        json.loads(replies.readline())  # the greeting
        result = {}
        for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": json.loads(arguments)}):
            monitor.sendall(json.dumps(request).encode())
            result = reply(replies)
    print(json.dumps(result))


def reply(lines):
    for line in lines:
        message = json.loads(line)
        if "error" in message:
            sys.exit(message["error"]["desc"])
        if "return" in message:
            return message["return"]
    sys.exit("QEMU closed the monitor")


if __name__ == "__main__":
    main(*sys.argv[1:])
