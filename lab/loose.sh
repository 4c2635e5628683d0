#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs an image's agent without a guest. agent.py starts this as root, as the first process of new mount, pid, uts, ipc,
# net and cgroup namespaces:
#   loose.sh TREE SHARED RELEASE BLOCKED BOUNDS
# TREE is the image's directory tree and is never written: the agent sees it through an overlay. SHARED is a directory
# that both sides see; the agent's socket appears in it. Each line on standard input restarts the agent; the end of
# standard input ends everything here, because nothing outlives the first process of a pid namespace.
set -eu
tree=$1 shared=$2 release=$3 blocked=$4 bounds=$5
umask 022

# The mounts below exist in this namespace only.
mount -t tmpfs -o mode=0755 tmpfs "$shared/root"
cd "$shared/root"
mkdir upper work new
mount -t overlay -o "lowerdir=$tree,upperdir=upper,workdir=work" overlay new
mount -t proc proc new/proc
mount -t sysfs -o ro sysfs new/sys
mount -t tmpfs -o mode=0755 tmpfs new/dev
mkdir new/dev/shm new/dev/pts new/lab
mount -t tmpfs -o mode=1777 tmpfs new/dev/shm
mount -t devpts -o newinstance,mode=0620,gid=5,ptmxmode=0666 devpts new/dev/pts
ln -s pts/ptmx new/dev/ptmx
for node in null zero full random urandom tty; do
    : >"new/dev/$node"
    mount --bind "/dev/$node" "new/dev/$node"
done
ln -s /proc/self/fd new/dev/fd
# These parts of /proc are the host's, whoever looks at them.
for path in sys sysrq-trigger irq bus; do
    [ -e "new/proc/$path" ] || continue
    mount --bind "new/proc/$path" "new/proc/$path"
    mount -o remount,bind,ro "new/proc/$path"
done
mount --bind "$shared" new/lab

# From here on, the host's files are out of reach.
cd new
pivot_root . .
umount -l .
cd /
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
hostname "$release"
ip link set lo up
mkdir -p /run/sshd

# The commands that would act on the host's kernel are blocked, and the privileges they would need are gone as well.
start() {
    rm -f /lab/agent.sock /lab/agent.pid
    # No background job: these ignore SIGINT and SIGQUIT, and so would all that the agent starts, as in no guest. It is
    # an orphan when the shell that waits for it is ended.
    # shellcheck disable=SC2216  # kill reads nothing: it ends the shell that waits for the pipeline
    (
        read -r me _ </proc/self/stat
        {
            read -r itself _ </proc/self/stat
            echo "$itself" >/lab/agent.pid
            exec env -i PATH="$PATH" LANG=C.UTF-8 setpriv "$bounds" \
                qemu-ga -m unix-listen -p /lab/agent.sock -b "$blocked"
        } </dev/null >&2 | kill -KILL "$me"
    ) || true
    until [ -s /lab/agent.pid ]; do sleep 0.02; done
    read -r agent </lab/agent.pid
    # The socket is there before it can be connected to: that is this flag.
    until grep -q " 00010000 .* /lab/agent.sock$" /proc/net/unix; do
        kill -0 "$agent"
        sleep 0.02
    done
    chmod 0666 /lab/agent.sock
    echo ready
}

serve() {
    start
    while read -r _; do
        kill -KILL "$agent" 2>/dev/null || true # it may have been killed already
        while kill -0 "$agent" 2>/dev/null; do sleep 0.02; done
        start
    done
}

# The first process is the one to bury orphans; the shell does it while it waits. This is no background job either.
exec 3<&0 4>&1
serve <&3 3<&- >&4 4>&- | :
