#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# qemu-ga 7.2 (Debian 12, 1:7.2+dfsg-7+deb12u18+b3): --blacklist works, and its help does not know it.
#
# The option and the key of the configuration file that agents up to 6.x had, "blacklist", were renamed to "block-rpcs".
# The help of 7.2 lists the new one alone, so one would think that an old file blocks nothing any more; and who audits
# guests for "block-rpcs" finds no rule. It is read like the new one: from the file with a warning, from the command
# line without.
#
# --dump-conf prints what is in force and ends: no agent runs.
set -euo pipefail
version=1:7.2+dfsg-7+deb12u18+b3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "qemu-guest-agent=$version" 2>/dev/null
dpkg-deb -x qemu-guest-agent_*.deb .
usr/sbin/qemu-ga --version
if usr/sbin/qemu-ga --help | grep -i blacklist; then
    echo "its help knows it now"
    exit 1
fi
printf '[general]\nblacklist=guest-exec\n' >old.conf
: >empty.conf
echo "-- the old key, in a file:"
QGA_CONF=$work/old.conf usr/sbin/qemu-ga --dump-conf 2>&1 | grep -E 'deprecated|guest-exec' | tee file
echo "-- the old option:"
QGA_CONF=$work/empty.conf usr/sbin/qemu-ga --blacklist=guest-exec --dump-conf 2>&1 | grep -E 'deprecated|guest-exec' | tee option
grep -qx block-rpcs=guest-exec file && grep -q deprecated file
[[ $(cat option) == block-rpcs=guest-exec ]]
