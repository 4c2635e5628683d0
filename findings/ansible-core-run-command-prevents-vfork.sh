#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-core 2.16.14 and 2.19.4: AnsibleModule.run_command has Python copy the whole module process for each program.
#
# Since 3.10, Python's subprocess starts programs by vfork() on Linux, which copies nothing, unless it is given a
# function to call before exec(). run_command gives it one in every call: it sets the umask if there is one to set, and
# does nothing otherwise, which is the usual case. So each program that a module starts costs a fork(), with the page tables of
# everything that the module has in memory, and a page fault for each page that is written to afterwards. That is small
# for a module on a host of its own, and a fifth of the time of `command` in an emulated guest.
#
# Shown by what Python is given, and by the time that both take in a process with 512 MiB of its own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >look.py <<'END'
import io, json, subprocess, sys, time

import ansible.module_utils.basic as basic
from ansible.release import __version__

basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": {}}).encode()
if hasattr(basic, "_ANSIBLE_PROFILE"):  # newer cores also want to know how to read that
    basic._ANSIBLE_PROFILE = "legacy"
module = basic.AnsibleModule(argument_spec={})
given = []
popen = subprocess.Popen


class Noted(popen):
    def __init__(self, *arguments, **keywords):
        given.append(keywords.get("preexec_fn"))
        super().__init__(*arguments, **keywords)


subprocess.Popen = Noted
module.run_command(["true"])
subprocess.Popen = popen
memory = bytearray(512 << 20)
memory[::4096] = b"x" * len(memory[::4096])


def milliseconds(run):
    taken = []
    for _time in range(15):
        started = time.monotonic()
        run()
        taken.append((time.monotonic() - started) * 1000)
    return sorted(taken)[7]


by_core = milliseconds(lambda: module.run_command(["true"]))
plain = milliseconds(lambda: subprocess.run(["true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
function = given[0].__qualname__ if given[0] else None
print(f"ansible-core {__version__}, Python {sys.version.split()[0]}: before exec(), Python is to call {function}")
print(f"with 512 MiB: run_command {by_core:.1f} ms, subprocess.run {plain:.1f} ms")
sys.exit(0 if function == "AnsibleModule.run_command.<locals>.preexec" and by_core > 1.5 * plain else 1)
END
for version in 2.16.14 2.19.4; do
    python3 -m venv "venv-$version"
    "venv-$version/bin/pip" -q --disable-pip-version-check install "ansible-core==$version"
    "venv-$version/bin/python" look.py
done
