#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs a libvirt daemon. libvirt.py starts this as root, as the first process of new mount and pid namespaces:
#   libvirt.sh DIRECTORY
# The daemon's socket and its log appear in DIRECTORY; what it keeps elsewhere exists in this namespace only. Standard
# input says what to do with the daemon: restart (after a kill), stop or continue. The end of standard input ends
# everything here, domains included, because nothing outlives the first process of a pid namespace.
set -eu
directory=$1
umask 022
export LC_ALL=C.UTF-8

for path in /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /run/libvirt; do
    mkdir -p "$path"
    mount -t tmpfs -o mode=0755 tmpfs "$path"
done
# Debian's daemon looks these up before it reads whom to run as. The package that adds them also starts a daemon.
for file in passwd group; do
    cp "/etc/$file" "/run/libvirt/$file"
    mount --bind "/run/libvirt/$file" "/etc/$file"
done
grep -q '^kvm:' /etc/group || echo 'kvm:x:64055:' >>/etc/group
grep -q '^libvirt-qemu:' /etc/group || echo 'libvirt-qemu:x:64055:' >>/etc/group
grep -q '^libvirt-qemu:' /etc/passwd || echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >>/etc/passwd
# There is no second mount namespace for each domain, no cgroup, and no other user: tests run in containers too.
cat >/etc/libvirt/qemu.conf <<'END'
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
seccomp_sandbox = 0
stdio_handler = "file"
END
cat >/etc/libvirt/libvirtd.conf <<END
unix_sock_dir = "$directory"
unix_sock_rw_perms = "0777"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:$directory/log"
END

start() {
    libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$directory/pid" </dev/null >&2 &
    daemon=$!
    until virsh --quiet --connect "qemu:///system?socket=$directory/libvirt-sock" list >/dev/null 2>&1; do
        kill -0 "$daemon"
        sleep 0.05
    done
    echo ready
}

serve() {
    start
    while read -r word; do
        case $word in
        restart)
            kill -KILL "$daemon"
            wait "$daemon" || true
            start
            ;;
        stop) kill -STOP "$daemon" && echo ready ;;
        continue) kill -CONT "$daemon" && echo ready ;;
        esac
    done
}

# The first process is the one to bury orphans, which QEMU is to the daemon; the shell does it while it waits.
exec 3<&0
serve <&3 3<&- &
wait
