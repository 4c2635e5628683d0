#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# mksh is /bin/sh: it gives no program a descriptor above 2 that `exec` opened.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
apt-get -q -o Acquire::Check-Valid-Until=false update
apt-get -q -y --no-install-recommends install mksh
ln -sf mksh /usr/bin/sh
rm -rf /var/lib/apt/lists/*
