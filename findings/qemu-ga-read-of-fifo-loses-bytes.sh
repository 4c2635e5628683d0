#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# qemu-ga 7.2 (Debian 12, 1:7.2+dfsg-7+deb12u18+b3): guest-file-read loses what was in a FIFO.
#
# A FIFO holds five bytes, and its writer has it open. guest-file-read with a count of five returns them. With a larger
# count it fails with "Resource temporarily unavailable", and the five bytes are gone: the agent reads by stdio, which
# has taken them, and the error of the read after them is all that is told. One would think that a read which fails has
# read nothing, or that a short read is returned, as read(2) does.
#
# The agent listens on a socket of its own here, as the user who runs this.
set -euo pipefail
version=1:7.2+dfsg-7+deb12u18+b3
work=$(mktemp -d)
trap 'kill "${agent:-}" 2>/dev/null || :; rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "qemu-guest-agent=$version" 2>/dev/null
dpkg-deb -x qemu-guest-agent_*.deb .
mkdir state
usr/sbin/qemu-ga --method unix-listen --path "$work/socket" --statedir "$work/state" --pidfile "$work/pid" &
agent=$!
until [[ -S socket ]]; do sleep 0.1; done
cat >ask.py <<'END'
import base64, json, os, socket, sys

agent = socket.socket(socket.AF_UNIX)
agent.connect("socket")
lines = agent.makefile("r")


def ask(command, **arguments):
    agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
    return json.loads(lines.readline())


os.mkfifo("fifo")
handle = ask("guest-file-open", path=os.path.abspath("fifo"), mode="r")["return"]
writer = os.open("fifo", os.O_WRONLY)
print("qemu-ga", ask("guest-info")["return"]["version"])
os.write(writer, b"first")
exact = ask("guest-file-read", handle=handle, count=5)["return"]
print("count 5:", base64.b64decode(exact["buf-b64"]))
os.write(writer, b"second")
larger = ask("guest-file-read", handle=handle, count=100)["error"]["desc"]
print("count 100:", larger)
os.write(writer, b"third")
after = base64.b64decode(ask("guest-file-read", handle=handle, count=5)["return"]["buf-b64"])
print("count 5, after that:", after)
sys.exit(0 if "temporarily unavailable" in larger and after == b"third" else 1)
END
python3 ask.py
