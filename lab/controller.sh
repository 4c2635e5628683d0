#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Holds a mount namespace. controller.py starts this as root, in a mount namespace of its own:
#   controller.sh SHARED KEPT SSH
# KEPT and SSH are directories that are empty here; the second may be missing. SHARED gets this process's number. The end
# of standard input ends it.
set -eu
shared=$1 kept=$2 ssh=$3

mkdir -p -m 0700 "$kept"
mount -t tmpfs -o mode=0700 tmpfs "$kept"
if [ -d "$ssh" ]; then mount -t tmpfs -o mode=0700 tmpfs "$ssh"; fi
chmod 0755 "$shared"
echo "$$" >"$shared/pid"
echo ready
while read -r _; do :; done
