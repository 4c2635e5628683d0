#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# qemu-ga 7.2 (Debian 12, 1:7.2+dfsg-7+deb12u18+b3): where its state directory is full, no file of the guest can be read.
#
# Each guest-file-open, for reading too, first has the next handle's number written to the state directory, which is
# /run. So a guest whose /run is full refuses to open a file on a disk with plenty of room: "failed to commit persistent
# state to disk". One would think that a full /run hurts who writes there. guest-exec, which keeps no such number, works
# on: it is the way to make room again.
#
# The agent listens on a socket of its own here; its state directory is 64 KiB of memory, in a mount namespace.
set -euo pipefail
version=1:7.2+dfsg-7+deb12u18+b3
if [[ ${1:-} != apart ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cp "$0" "$work/script"
    cd "$work"
    apt-get -qq download "qemu-guest-agent=$version" 2>/dev/null
    dpkg-deb -x qemu-guest-agent_*.deb .
    unshare --map-root-user --mount --pid --fork --kill-child bash "$work/script" apart
    exit
fi
mkdir state
mount -t tmpfs -o size=64k tmpfs state
usr/sbin/qemu-ga --method unix-listen --path "$PWD/socket" --statedir "$PWD/state" --pidfile "$PWD/pid" &
until [[ -S socket ]]; do sleep 0.1; done
cat >ask.py <<'END'
import json, os, socket, sys, time

agent = socket.socket(socket.AF_UNIX)
agent.connect("socket")
lines = agent.makefile("r")


def ask(command, **arguments):
    agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
    return json.loads(lines.readline())


readable = {"path": os.path.abspath("ask.py"), "mode": "r"}
before = ask("guest-file-open", **readable)
print("with room:", "a handle" if "return" in before else before)
try:
    with open("state/fill", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
except OSError as error:
    print("the state directory:", error.strerror)
full = ask("guest-file-open", **readable).get("error", {}).get("desc", "")
print("without:", full)
pid = ask("guest-exec", path="/bin/rm", arg=[os.path.abspath("state/fill")])["return"]["pid"]
while not ask("guest-exec-status", pid=pid)["return"]["exited"]:
    time.sleep(0.05)
after = ask("guest-file-open", **readable)
print("after guest-exec has made room:", "a handle" if "return" in after else after)
sys.exit(0 if "return" in before and "persistent state" in full and "return" in after else 1)
END
python3 ask.py
