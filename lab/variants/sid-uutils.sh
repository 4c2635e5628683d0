#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The tools of Ubuntu 25.10 and later: uutils instead of GNU's, sudo-rs and su-rs instead of sudo and su.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
apt-get -q -o Acquire::Check-Valid-Until=false update
apt-get -q -y --no-install-recommends install rust-coreutils sudo-rs
# Where they are first in every PATH, also in that of sshd and of the agent.
mkdir -p /usr/local/sbin
for tool in $(coreutils --list); do
    ln -sf /usr/bin/coreutils "/usr/local/sbin/$tool"
done
for tool in sudo su visudo; do
    rs=$(command -v "$tool-rs") || continue
    mv "$(command -v "$tool")" "/usr/bin/$tool.gnu" || :
    ln -sf "$rs" "/usr/bin/$tool"
done
rm -rf /var/lib/apt/lists/*
