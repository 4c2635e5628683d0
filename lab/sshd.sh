#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs an image's sshd as that of this machine. sshd.py starts this as root, in a mount namespace of its own:
#   sshd.sh TREE SHARED PORT TMP [SUDO]
# TREE is the image's directory tree and is never written. The network, the processes and the directory TMP are this
# machine's, where the sockets of the lab's agents are. SHARED gets the log. The end of standard input ends it.
# With SUDO, there is a user `ops` with root's key, to whom sudo allows that ("NOPASSWD: ALL"). SHARED/password has
# the password of both then.
set -eu
tree=$1 shared=$2 port=$3 tmp=$4 sudo=${5-}

mount -t tmpfs -o mode=0755 tmpfs "$shared/root"
cd "$shared/root"
mkdir upper work new
mount -t overlay -o "lowerdir=$tree,upperdir=upper,workdir=work" overlay new
mount --rbind /proc new/proc
mount --rbind /dev new/dev
mkdir -p "new$tmp" new/run/sshd
mount --rbind "$tmp" "new$tmp"
: >"$shared/sshd.log"
chmod 0755 "$shared"

if [ "$sudo" ]; then
    read -r password <"$shared/password"
    chroot new /usr/sbin/useradd -m -s /bin/sh ops
    printf '%s\n' "root:$password" "ops:$password" | chroot new /usr/sbin/chpasswd
    cp -R new/root/.ssh new/home/ops/.ssh
    chroot new chown -R ops: /home/ops/.ssh
    echo "ops ALL=(ALL) $sudo" >new/etc/sudoers.d/ops
    chmod 0440 new/etc/sudoers.d/ops
    echo "127.0.1.1 $(hostname)" >>new/etc/hosts  # sudo looks it up
fi

chroot new /usr/sbin/sshd -D -E "$shared/sshd.log" -p "$port" -o ListenAddress=127.0.0.1 -o PidFile=none \
    -o UsePAM=no -o UseDNS=no -o LogLevel=VERBOSE &
sshd=$!
echo "$sshd" >"$shared/sshd.pid"
until grep -q "Server listening" "$shared/sshd.log"; do
    kill -0 "$sshd"
    sleep 0.02
done
echo ready
while read -r _; do :; done
# Its connections are processes of their own, which do not end with it.
read -r children <"/proc/$sshd/task/$sshd/children" || true
# shellcheck disable=SC2086  # one word for each
kill "$sshd" ${children:-}
# What its users left behind.
for root in /proc/[0-9]*/root; do
    if [ "$(readlink "$root")" = "$shared/root/new" ]; then kill "$(basename "${root%/root}")" || true; fi
done
wait
