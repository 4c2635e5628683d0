#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The shell and the tools of Alpine: busybox is /bin/sh, and first in every PATH.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
apt-get -q -o Acquire::Check-Valid-Until=false update
apt-get -q -y --no-install-recommends install busybox
for tool in $(busybox --list); do
    # What speaks to init or PAM, and what the lab itself uses, stay as they are.
    case $tool in init | reboot | halt | poweroff | su | login | passwd | setpriv) continue ;; esac
    ln -sf /usr/bin/busybox "/usr/local/sbin/$tool"
done
ln -sf busybox /usr/bin/sh
rm -rf /var/lib/apt/lists/*
