#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# qemu-ga 7.2 (Debian 12, 1:7.2+dfsg-7+deb12u18+b3): which request tells that a write failed depends on the others.
#
# guest-file-write says that all was written, to a device that has no room at all. If guest-file-flush comes next, that
# fails, and guest-file-close says then that all is well. Without a flush it is close that fails. So who looks at close
# alone, or at write alone, misses the loss in one of the two orders: all three have to be looked at, on each file.
#
# The agent listens on a socket of its own here, as the user who runs this; /dev/full stands for a full disk.
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
import json, socket, sys

agent = socket.socket(socket.AF_UNIX)
agent.connect("socket")
lines = agent.makefile("r")


def ask(command, **arguments):
    agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
    reply = json.loads(lines.readline())
    return reply.get("error", {}).get("desc", "ok") if command != "guest-file-open" else reply["return"]


def outcomes(*commands):
    handle = ask("guest-file-open", path="/dev/full", mode="w")
    data = {"guest-file-write": {"buf-b64": "bG9zdA=="}}
    said = [ask(command, handle=handle, **data.get(command, {})) for command in commands]
    print(*(f"{command}: {word}" for command, word in zip(commands, said)), sep="\n", end="\n\n")
    return [word == "ok" for word in said]


flushed = outcomes("guest-file-write", "guest-file-flush", "guest-file-close")
closed = outcomes("guest-file-write", "guest-file-close")
sys.exit(0 if flushed == [True, False, True] and closed == [True, False] else 1)
END
python3 ask.py
