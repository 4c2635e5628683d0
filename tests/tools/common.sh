# shellcheck shell=bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What the scripts here share; to be sourced.
#
#   root      the checkout
#   cache     environments, guest images, scratch copies: everything that is dear to make, outside the tree
#   results   where a stage leaves its counts: JUnit files (*.xml) and, from `step`, steps.tsv; read by `totals`

# shellcheck disable=SC2034  # what is unused here is used where this is sourced
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${QEMU_GUEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qemu-guest}
results=${QEMU_GUEST_RESULTS:-$cache/results/adhoc}
# Everything runs on one core, which is released and has been for a while; on the others what depends on the core.
# shellcheck disable=SC2034
main_core=2.21
other_cores=(2.16 2.19 2.20 2.22)
cores=("${other_cores[@]}" "$main_core")
mkdir -p "$results"

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

# Wait for others (of this cache) that run the same; the lock ends with this process.
exclusive() {
    exec 8>"$cache/$1.lock"
    if flock --nonblock 8; then return; fi
    say "waiting for another run of $1 to end"
    flock 8
}

# Print the package index that pip is told to use, if any: uv reads neither pip's files nor its variables.
pip_index() { printf '%s\n' "${PIP_INDEX_URL:-$("$cache/bootstrap/bin/pip" config get global.index-url 2>/dev/null || true)}"; }

# A command on PATH may be a version manager's shim that starts nothing: believe only an interpreter that answers.
runs_as() { [[ $("$2" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$1" ]]; }

# Print the path of a Python of version $1 that works; fail where there is none.
find_python() {
    local candidate
    for candidate in "$(command -v "python$1" || true)" "$HOME/.pyenv/versions/$1."*/bin/python \
        "$(command -v python3)" "$cache/pythons/cpython-$1."*/bin/python3; do
        if [[ -x $candidate ]] && runs_as "$1" "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

# Print the versions of Python that will do for each of these environments, best first.
pythons_for() {
    local name
    for name in "$@"; do sed -n '1s/.*Python: *//p' "$root/tests/requirements/$name.txt"; done
}

# step NAME COMMAND...   run a check quietly, one line if it passes, its output if not; count it; never abort the stage
failed_steps=0
step() {
    local name=$1 started=${EPOCHREALTIME/[.,]/} log outcome=passed tenths status
    shift
    log=$(mktemp)
    # Not "(...) || outcome=failed": that would switch errexit off inside.
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1
    status=$?
    set -e
    tenths=$(((${EPOCHREALTIME/[.,]/} - started) / 100000))
    if [[ $status -ne 0 ]]; then
        outcome=failed
        failed_steps=$((failed_steps + 1))
    fi
    {
        flock 9 # another step may run beside it
        printf '  %-28s %s  %d.%d s\n' "$name" "$outcome" $((tenths / 10)) $((tenths % 10))
        if [[ $status -ne 0 ]]; then sed 's/^/    /' "$log"; fi
        printf '%s\t%s\n' "$outcome" "$name" >&9
    } 9>>"$results/steps.tsv"
    rm -f "$log"
}

# all_at_once FUNCTION...   run functions of steps beside each other; fail if a step does
all_at_once() {
    local function pid running=()
    for function in "$@"; do
        # No "&&", which would switch errexit off inside.
        {
            "$function"
            exit "$failed_steps"
        } &
        running+=($!)
    done
    for pid in "${running[@]}"; do wait "$pid" || failed_steps=$((failed_steps + 1)); done
}

# pytest_on STAGE CORE ARGUMENT...   run pytest with a core's environment; PYTEST_ARGS of the environment comes last
#
# What is marked "whole" is run with QEMU_GUEST_WHOLE only (make test-all).
pytest_on() {
    local stage=$1 core=$2 venv arguments
    shift 2
    if [[ ! ${QEMU_GUEST_WHOLE:-} ]]; then set -- -m "not whole" "$@"; fi
    venv=$("$root/tests/tools/venv" "core-$core")
    read -ra arguments <<<"${PYTEST_ARGS:-}"
    cd "$root"
    "$venv/bin/python" -c 'import platform, ansible.release as core
print(f"-- ansible-core {core.__version__}, Python {platform.python_version()}")'
    # Run in the background, or by nohup, it would ignore signals, and so would all that it starts.
    PATH=$venv/bin:$PATH env --default-signal python -m pytest --junitxml="$results/$stage-$core.xml" "$@" "${arguments[@]}"
}
