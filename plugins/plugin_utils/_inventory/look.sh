#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prints what there is of guests on this machine; machine.py sends it, with a last line such as this, to sh:
#   main BOUNDARY PROC PVE_RUN PVE_CONF GANETI SOURCES [GLOB...]
# Each record is a line "BOUNDARY kind number" and bytes up to the next such line. The boundary is random and on no
# command line, so that nothing that is printed here, which may be any process', can look like a record.
# Nothing found is ever run, and reading needs no right: what this user may not see is left out.

# By echo, which every shell has built in: the arguments of another program could be read by others.
record() {
    echo
    echo "$boundary $1"
}

processes() {
    count=0
    grep -l -s -e qemu-system -e qemu-kvm -e /kvm -e '^kvm' "$proc"/[0-9]*/cmdline | {
        set --
        while read -r file; do
            count=$((count + 1))
            if [ "$count" -gt 4096 ]; then
                record more
                break
            fi
            directory=${file%/cmdline}
            record "process ${directory##*/}"
            readlink "$directory/exe" 2>/dev/null
            printf '\0'
            # The paths of a process in a container are below that one's root.
            # shellcheck disable=SC3013
            if [ / -ef / ] 2>/dev/null && [ -e "$directory/root/" ] && ! [ "$directory/root/" -ef / ]; then
                printf '%s\0%s\0' "$directory/cwd" "$directory/root"
            else
                (cd "$directory/cwd" 2>/dev/null && pwd -P)
                printf '\0\0'
            fi
            dd if="$file" bs=131072 count=1 2>/dev/null
            set -- "$@" "$directory"
        done
        if [ "$#" -gt 0 ]; then
            record users
            ls -ld "$@" 2>/dev/null
        fi
    }
}

# socket SOURCE PATH: print the path, and the real one, if it is a socket.
socket() {
    [ -S "$2" ] || return 0
    real=$2
    if [ -L "$real" ]; then real=$(readlink -f "$real" && echo .) && real=${real%??}; fi
    if [ "${real%/*}" != "$parent" ]; then
        parent=${real%/*}
        real_parent=$(cd -P "$parent/" 2>/dev/null && pwd && echo .) && real_parent=${real_parent%??}
    fi
    record "socket $1"
    printf '%s\0%s' "$2" "${real_parent%/}/${real##*/}"
}

# The part of a guest's configuration before its snapshots. Which node this is, the link qemu-server says.
proxmox() {
    for file in "$pve_run"/*.qga; do socket proxmox "$file"; done
    node=this
    set -- "$pve_conf"/qemu-server
    if ! [ -d "$1" ]; then
        node=any
        set -- "$pve_conf"/nodes/*/qemu-server
    fi
    for directory; do
        for file in "$directory"/*.conf; do
            if ! [ -f "$file" ] || ! [ -r "$file" ]; then continue; fi # a FIFO has no end
            record "conf $node"
            printf '%s\0' "${file##*/}"
            sed -n -e '/^\[/q' -e '/^name:/p' -e '/^tags:/p' -e '/^agent:/p' -e '/^smbios1:/p' -e '/^template:/p' "$file"
        done
    done
}

main() {
    boundary=$1 proc=$2 pve_run=$3 pve_conf=$4 ganeti=$5 sources=$6
    shift 6
    LC_ALL=C
    export LC_ALL
    parent=''
    case $sources in *process*) processes ;; esac
    case $sources in *proxmox*) proxmox ;; esac
    case $sources in *ganeti*) for file in "$ganeti"/kvm-hypervisor/ctrl/*.qga; do socket ganeti "$file"; done ;; esac
    IFS='' # the administrator's globs are expanded, and not split
    for glob; do
        # shellcheck disable=SC2231
        for file in $glob; do socket sockets "$file"; done
    done
    record listening
    sed -n 's/^[^ ]* [^ ]* [^ ]* 00010000 [^ ]* [^ ]* *[0-9]* //p' "$proc/net/unix" 2>/dev/null
    record end
}
