#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# QEMU 7.2 (Debian 12, 1:7.2+dfsg-7+deb12u18+b3), x86 without KVM: loadvm does not set back the time stamp counter.
#
# A snapshot by savevm has the whole machine: memory, disks, registers and devices. One would think that a guest cannot
# tell that it was put back. But the counter that an emulated guest reads by RDTSC goes on from what it was just before
# loadvm. A Linux guest keeps its time by that counter. So its clock, which should stand where it was, jumps forwards by
# all the time since the snapshot: timeouts of many minutes pass in a moment. In a Debian guest, systemd's watchdog then
# killed journald and logind. With tsc=unstable on its command line, Linux uses another clock, which goes back.
#
# The guest here is a boot sector that sends the counter for each byte that it gets over its serial port. A word in its
# memory, which it counts up each time, shows that all else has gone back.
set -euo pipefail
version=1:7.2+dfsg-7+deb12u18+b3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p archives/partial root/dev
touch installed root/dev/null
apt-get -qq -y --no-install-recommends --download-only -o "Dir::State::Status=$work/installed" \
    -o "Dir::Cache::Archives=$work/archives" -o APT::Sandbox::User=root -o Debug::NoLocking=1 \
    install "qemu-system-x86=$version" "qemu-utils=$version" >/dev/null 2>&1
for package in archives/*.deb; do
    dpkg-deb -x "$package" root
done
cat >ask.py <<'END'
import json, os, socket, struct, subprocess, sys, time

# start: in al,[3FDh]; test al,1; jz start+3; in al,[3F8h]; inc word [0x600]; rdtsc; out the word, EAX and EDX to 3F8h
code = bytes.fromhex("BAFD03 EC A801 74FB BAF803 EC FF060006 0F31 6689D3 6689C6 BAF803")
code += bytes.fromhex("A10006 EE 88E0 EE")
code += bytes.fromhex("B104 6689F0 EE 66C1EE08 FEC9 75F4 B104 6689D8 EE 66C1EB08 FEC9 75F4")
code += bytes([0xEB, -(len(code) + 2) & 0xFF])
with open("root/boot", "wb") as file:
    file.write(code.ljust(510, b"\0") + b"\x55\xaa")


def within(*argv):
    return ["unshare", "--map-root-user", "chroot", "root", *argv]


subprocess.run(within("/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", "/snapshots", "1M"), check=True)
qemu = within("/usr/bin/qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none")
qemu += ["-drive", "if=floppy,format=raw,readonly=on,file=/boot", "-drive", "if=virtio,format=qcow2,file=/snapshots"]
qemu += ["-serial", "unix:/serial,server=on,wait=off", "-qmp", "unix:/qmp,server=on,wait=off"]


def connect(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    while True:
        try:
            client.connect(path)
            return client
        except OSError:
            time.sleep(0.1)


with subprocess.Popen(qemu) as process:
    try:
        serial, monitor = connect("root/serial"), connect("root/qmp").makefile("rw")
        monitor.readline()

        def tell(command, **arguments):
            monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            monitor.flush()
            while "return" not in (reply := json.loads(monitor.readline())):
                if "error" in reply:
                    raise SystemExit(reply)
            return reply["return"]

        def counts():
            serial.sendall(b"?")
            reply = b""
            while len(reply) < 10:
                reply += serial.recv(10 - len(reply))
            return struct.unpack("<HQ", reply)

        tell("qmp_capabilities")
        time.sleep(5)  # until it has booted
        print("QEMU", tell("query-version")["package"])
        counts()
        tell("human-monitor-command", **{"command-line": "savevm then"})
        saved = counts()
        time.sleep(3)
        before = counts()
        tell("human-monitor-command", **{"command-line": "loadvm then"})
        after = counts()
    finally:
        process.kill()
for moment, (asked, counter) in {"after savevm": saved, "before loadvm": before, "after loadvm": after}.items():
    print(f"{moment}: asked {asked} times, the time stamp counter is {counter:,}")
is_back, goes_on = after[0] == saved[0], after[1] >= before[1] > saved[1]
sys.exit(0 if is_back and goes_on else 1)
END
nice -n 5 python3 ask.py
