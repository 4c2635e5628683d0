#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Holds a machine's namespaces. machine.py starts this as root, as the first process of new mount and pid namespaces:
#   machine.sh SHARED SSH
# SHARED gets the number that this process has outside. /run is empty here, and so is SSH, a directory that may be
# missing; /etc can be written to without effect outside. The end of standard input ends it, and all that runs there.
set -eu
shared=$1 ssh=$2

read -r pid _ </proc/self/stat  # of the machine around
mount -t proc proc /proc
mount -t tmpfs -o mode=0755 tmpfs "$shared/own"
mkdir "$shared/own/upper" "$shared/own/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$shared/own/upper,workdir=$shared/own/work" overlay /etc
if [ -d "$ssh" ]; then mount -t tmpfs -o mode=0700 tmpfs "$ssh"; fi
mount -t tmpfs -o mode=0755 tmpfs /run
chmod 0755 "$shared"
echo "$pid" >"$shared/pid"
echo ready
while read -r _; do :; done
