#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# qemu-ga 7.2 (Debian 12, 1:7.2+dfsg-7+deb12u18+b3): what guest-exec starts is in the agent's own session and process
# group, and shares both with all other programs that it runs.
#
# sshd, cron, systemd and container engines give each command a session of its own, so one would think that a script may
# signal "its" process group, as traps on EXIT do to end what they have started. Here that group is the agent's and that
# of all commands at work. A script that is meant for guest-exec needs a session of its own (setsid) before it does so.
#
# The agent listens on a socket of its own here, as the user who runs this; its programs only tell their numbers.
set -euo pipefail
version=1:7.2+dfsg-7+deb12u18+b3
work=$(mktemp -d)
trap 'kill "${agent:-}" 2>/dev/null || :; rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "qemu-guest-agent=$version" 2>/dev/null
dpkg-deb -x qemu-guest-agent_*.deb .
usr/sbin/qemu-ga --version
mkdir state
setsid usr/sbin/qemu-ga --method unix-listen --path "$work/socket" --statedir "$work/state" --pidfile "$work/pid" &
agent=$!
until [[ -S socket ]]; do sleep 0.1; done
cat >ask.py <<'END'
import base64, json, os, socket, sys, time

agent = socket.socket(socket.AF_UNIX)
agent.connect("socket")
lines = agent.makefile("r")


def ask(command, **arguments):
    agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
    return json.loads(lines.readline())["return"]


def program_told(script):
    pid = ask("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})["pid"]
    while not (status := ask("guest-exec-status", pid=pid))["exited"]:
        time.sleep(0.1)
    return base64.b64decode(status["out-data"]).decode().split()


its_own = int(sys.argv[1])
print(f"agent: process {its_own}, group {os.getpgid(its_own)}, session {os.getsid(its_own)}")
seen = []
for command in ("", "setsid --wait "):
    pid, stat = program_told(f"{command}sh -c 'echo $$; cut -d\" \" -f5,6 /proc/$$/stat | tr \" \" -'")
    group, session = map(int, stat.split("-"))
    print(f"program{' of ' + command.split()[0] if command else ''}: process {pid}, group {group}, session {session}")
    seen.append((group == os.getpgid(its_own), session == os.getsid(its_own)))
sys.exit(0 if seen == [(True, True), (False, False)] else 1)
END
python3 ask.py "$agent"
