#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# dash 0.5.12 and busybox 1.35 against bash 5.2 (all Debian 12): `command <&0 &` has no input, but for bash.
#
# Without job control, a command in the background reads /dev/null unless its input is redirected. `<&0` is a redirection,
# and in bash it keeps the script's own input. dash and busybox connect /dev/null first and then duplicate that, so the
# command reads nothing, silently. `exec 3<&0` before it and `<&3` in it gives all three what is meant.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download dash=0.5.12-2 busybox=1:1.35.0-4+deb12u1+b1 bash=5.2.15-2+b13 2>/dev/null
for package in ./*.deb; do dpkg-deb -x "$package" .; done
declare -A seen
try() {
    local name=$1 script=$2
    shift 2
    seen[$name]+=$(printf input | timeout 10 "$@" -c "$script")/
}
for name in dash busybox bash; do
    shell=("$work/bin/$name")
    if [[ $name == busybox ]]; then shell+=(sh); fi
    try "$name" 'cat <&0 & wait' "${shell[@]}"
    try "$name" 'exec 3<&0; cat <&3 & wait' "${shell[@]}"
    printf '%s\t<&0: "%s"\t<&3: "%s"\n' "$name" "${seen[$name]%%/*}" "$(cut -d/ -f2 <<<"${seen[$name]}")"
done
[[ ${seen[dash]} == /input/ && ${seen[busybox]} == /input/ && ${seen[bash]} == input/input/ ]]
