#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Writes a line to its home now and then; with --report FILE, says once who and where it is.
set -eu
# shellcheck source=/dev/null
. /etc/beacon.conf

if [ "${1-}" = --report ]; then
    {
        echo "$MESSAGE"
        echo "user $(id -un), home $HOME, locale ${LANG-none}"
        echo "network devices: $(cd /sys/class/net && echo *)"
    } >"$2"
    exit
fi
while :; do
    echo "$MESSAGE" >"$HOME/latest"
    sleep "$INTERVAL"
done
