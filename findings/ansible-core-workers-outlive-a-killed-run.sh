#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-core 2.19.4 (and 2.21): to kill the process group of a run does not end its task. With 2.16.14, it does.
#
# Supervisors of jobs end what takes too long by SIGKILL to the process group of `ansible-playbook`: one would think that
# nothing of the run is left then, and that its host can be given to the next job. Since 2.19, each worker begins a session
# of its own, with all that it starts. The group that is killed has the main process only; the worker goes on with its
# task to the end, and nobody is told what it does. The main process passes SIGINT and SIGTERM on.
#
# The task here makes a file after a while. The run is killed in the middle of it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >kill.py <<'END'
import os, signal, subprocess, sys, time

mark = os.path.abspath("mark")
task = f"touch {mark}.begun; sleep 6; touch {mark}"
argv = [sys.argv[1], "localhost", "-m", "ansible.builtin.raw", "-a", task]
quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
with subprocess.Popen(argv, start_new_session=True, env={**os.environ, "LC_ALL": "C.UTF-8"}, **quiet) as run:
    until = time.monotonic() + 60
    while not os.path.exists(f"{mark}.begun") and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGKILL)
begun = os.path.exists(f"{mark}.begun")
time.sleep(10)
print("begun" if begun else "not begun", "and done" if os.path.exists(mark) else "and not done")
END
export ANSIBLE_HOME=$work/home
for release in 2.16.14 2.19.4; do
    python3 -m venv "venv-$release"
    "venv-$release/bin/pip" -q --disable-pip-version-check install "ansible-core==$release"
    rm -f mark mark.begun
    said=$(python3 kill.py "venv-$release/bin/ansible")
    echo "ansible-core $release, its process group killed in the middle of a task: $said"
    echo "$said" >>all
done
[[ $(<all) == $'begun and not done\nbegun and done' ]]
