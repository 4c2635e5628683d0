#!/bin/sh
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Usage: runner.sh SPOOL IDLE [over]    take requests from files in the guest, run them, and leave results
#
# In the spool: `ring`; `pid`, the runner's own; and of each request NUMBER.in, then .taken, .pid, .out, .err and at
# last .rc. Whoever creates .taken runs it, so a request that was rung for twice runs once. Where the line NUMBER.part
# comes before that, nothing stays when the program has ended. A request that nobody rings for is not run: .dropped
# takes its place. The spool appears and vanishes whole, by renaming: guest-file-open would make a plain file of a ring
# that is missing. A runner without work for IDLE seconds ends (0: never); one that a SIGKILL ended leaves a ring that
# cannot be opened. Where one runs already, another ends at once, or with "over" takes its place (roles/guest_prep).
#
# Shells of guests run this: dash, bash, busybox, mksh, yash. All have [ -O ], [ -ef ], [ -nt ] and [ -ot ].
#
# Globs are meant to be expanded, pids to be taken when a trap is set, and `kill` to read nothing. Requests use $own.
# shellcheck disable=SC2034,SC2064,SC2086,SC2125,SC2216,SC2260,SC3067
d=$1 idle=$2 over=$3
umask 077
cd / || exit 1
unset OLDPWD
# The number may be another process's meanwhile: the runner is root's, and reads this very ring.
lives() { [ -O "/proc/$p" ] && [ "/proc/$p/fd/3" -ef "$d/ring" ]; }
gone() { rm -rf "$d.gone.$$"; }
end() {
    { read -r p <"$d/pid"; } 2>/dev/null
    [ "$p" != $$ ] || rm -rf "$d"
    kill $a 2>/dev/null
    exit 0
}
a='' # the process that rings when it is time to look around
if { read -r p <"$d/pid"; } 2>/dev/null && lives; then
    [ "$over" ] || exit 0
    # What the other has started goes on, and what is rung for meanwhile waits in the ring.
    exec 3<>"$d/ring" && echo $$ >"$d/pid" && echo "over $p" >&3 || exit 1
    while lives; do sleep 1; done
    [ -p "$d/ring" ] || exit 1
else
    [ ! -e "$d" ] || mv "$d" "$d.gone.$$" && gone || exit 1
    n=$d.new.$$
    trap end TERM # before anybody finds the spool
    mkdir -p "$n" && mkfifo "$n/ring" && echo $$ >"$n/pid" && exec 3<>"$n/ring" && mv "$n" "$d" || exit 1
fi
# What brought this here, and what starts that were interrupted have left: their names have 16 letters.
f=${d%/*}/????????????????
case $0 in "${d%/*}"/*) rm -f $f $f.sh $f.run $f.go ;; esac
for n in "$d".gone.* "$d".new.*; do
    [ ! -d "$n" ] || [ -d "/proc/${n##*.}" ] || rm -rf "$n"
done
own=$(command -v setsid)
{ echo 0 >/proc/self/oom_score_adj; } 2>/dev/null
# What a command without input begins with. It is a command: an older runner, which does not know it, runs it.
nothing='exec </dev/null'

# Output passes through pipes, as it does elsewhere: a file would be truncated by a program that opens /dev/stderr.
m=524288
lose() {
    (: >"$1" && : >"$2")
    cat >/dev/null
}
rest() {
    n=$(df -kP "${1%/*}" | { read -r n; read -r n n n k n; echo "$k"; })
    case $n in '' | *[!0-9]* | ????????*) n=9999999 ;; esac
    n=$((n * $3 / 4))
    [ "$n" -lt "$m" ] || n=$m
    (
        trap '' XFSZ
        ulimit -f "$n"
        exec cat >>"$1"
    ) || lose "$1" "$2"
} 2>/dev/null
keep() {
    if n=$(dd bs=65536 count=16 iflag=fullblock 2>&1 >"$1"); then
        case $n in 16+0*) rest "$1" "$d/$2.lost" "$3" ;; esac
    elif dd count=0 iflag=fullblock </dev/null >/dev/null; then
        lose "$1" "$d/$2.lost"
    else
        # That dd has read nothing: it does not know how.
        rest "$1" "$d/$2.lost" "$3"
    fi
}
# Be the program. What does so is a subshell, no background job: shells ignore SIGINT and SIGQUIT in these, for good.
become() {
    read -r p f </proc/self/stat
    echo "$p" >"$d/$1.pid"
    shift
    umask 022
    eval "unset a c d f idle k l m mark me n nothing over p starts used; $c"
}
# The shell that waits for it would tell of a signal in the program's own output.
run() {
    (become "$1") 2>&6 >&5 4<&- 5>&- 6>&-
    r=$?
    # 384 + N and 256 + N are some shells' 128 + N.
    [ "$r" -lt 256 ] || r=$((r % 128 + 128))
    # In the room that it has had from the beginning: the program may have left no other.
    echo "$r" 1<>"$d/$1.status"
}
# As login_shell.py has it: reads into c the command that a request begins with, and leaves what follows.
read_command() {
    IFS= read -r n
    c=
    while [ "$n" -gt 0 ]; do
        IFS= read -r l
        c=$c$l'
'
        n=$((n - 1))
    done
}
job() {
    (set -C; : >"$d/$1.taken") 2>/dev/null || return
    # In this order: what was rung for twice may have run meanwhile, and be forgotten.
    [ -f "$d/$1.in" ] || {
        rm -f "$d/$1.taken"
        return
    }
    exec 4<"$d/$1.in"
    read_command <&4
    case $mark in
    "$1.part")
        (become "$1") <&4 4<&- >/dev/null 2>&1
        rm -f "$d/$1".*
        return
        ;;
    esac
    echo - >"$d/$1.status"
    {
        {
            case $c in
            "$nothing"*) run "$1" ;;
            # By a pipe, so that nobody reads it twice, or writes to it: a password may be in it.
            *) cat <&4 4<&- 5>&- 6>&- | run "$1" ;;
            esac
        } 6>&1 >/dev/null 2>&1 | keep "$d/$1.err" "$1" 1 4<&- 5>&-
    } 5>&1 | keep "$d/$1.out" "$1" 6 4<&-
    # By itself, it would end this shell where nothing can be written.
    (: >"$d/$1.in")
    r=- o=- e=- f=.
    read -r r <"$d/$1.status"
    [ -s "$d/$1.out" ] && o=o
    [ -s "$d/$1.err" ] && e=e
    [ -f "$d/$1.lost" ] && f=lost
    # Its result is to be fetched yet: that is no time to end of idleness.
    echo + 1<>"$d/ring"
    echo "$r $o $e $f" >"$d/$1.rc" || {
        rm -f "$d/$1.out" "$d/$1.err" "$d/$1.pid"
        # Its client waits as long as there is a runner.
        echo "$r - - lost" >"$d/$1.rc" || kill $$
    }
    # Room for the agent, which can open no file without.
    : >"$d/$1.status"
}
alarm() {
    {
        sleep "$((idle > 0 ? idle : 600))" &
        trap "kill $!; exit" TERM
        wait $!
        [ -p "$d/ring" ] && echo tick 1<>"$d/ring"
    } 3>&- >/dev/null 2>&1 &
    a=$!
}
# Whether something in the directory $1 waits to be run, or runs. In this order: .taken is there before .in is gone.
busy() {
    for k in in taken; do
        for f in "$1"/*."$k"; do
            [ -f "$f" ] && [ ! -f "${f%.*}.rc" ] && return
        done
    done
    return 1
}
# Whether the file $1 was there at the last tick, and has not been written to since. Its time is compared with what it
# was, and not with the clock: that may have been set.
stale() {
    [ -f "$1" ] || return
    if [ -f "$1.seen" ] && [ ! "$1" -nt "$1.seen" ] && [ ! "$1" -ot "$1.seen" ]; then return; fi
    touch -r "$1" "$1.seen"
    return 1
}
# What a killed start of warm Python has left.
starts="${d%/*}/warm-*.parts ${d%/*}/warm-*.err ${d%/*}/warm-*.pid"
# What was brought or packed for a transfer whose controller was killed. It is in memory.
pieces="${d%/*/*}/qemu-guest.*.in ${d%/*/*}/qemu-guest.*.[0-9] ${d%/*/*}/qemu-guest.*.[0-9][0-9]"
# What nobody has fetched, rung for or gone on with from one tick to the next has no client any more. If a client comes
# all the same, .dropped tells that its request was not run, and will not be.
forget() {
    for f in "$d"/*.rc "$d"/*.dropped; do
        if stale "$f"; then rm -f "${f%.*}".*; fi
    done
    for f in "$d"/*.in; do
        n=${f%in}
        if [ ! -e "${n}taken" ] && [ ! -e "${n}rc" ] && stale "$f" && (set -C; : >"${n}taken"); then
            : >"${n}dropped"
            rm -f "${n}in" "$f.seen" "${n}taken"
        fi
    done
    for f in $starts $pieces; do
        if stale "$f"; then rm -f "$f" "$f.seen"; fi
    done
    for f in "${d%/*}"/warm-*.seen "${d%/*/*}"/qemu-guest.*.seen; do
        [ -f "${f%.seen}" ] || rm -f "$f"
    done
}
trap end TERM
used='' mark=''
exec 2>/dev/null # shells tell of each that was killed
alarm
while IFS= read -r l <&3; do
    case $l in
    tick)
        if [ "$idle" -gt 0 ] && [ ! "$used" ] && ! busy "$d"; then
            rm -f $starts "${d%/*}"/warm-*.seen
            # From now on no client finds it; one that has written a request meanwhile is still answered.
            mv "$d" "$d.gone.$$"
            if ! busy "$d.gone.$$" || [ -e "$d" ]; then
                gone
                exit 0
            fi
            mv "$d.gone.$$" "$d"
        fi
        used=
        forget
        alarm
        ;;
    -[0-9]*)
        rm -f "$d/${l#-}".* &
        ;;
    +) used=1 ;;
    "over $$")
        kill $a
        exit 0
        ;;
    [0-9]*.*) mark=$l ;;
    [0-9]*)
        used=1
        # No background job either. It goes on, an orphan, when the shell that waits for it is ended.
        (
            read -r me f </proc/self/stat
            # Not behind the function itself: for that, dash keeps the ring open under another number.
            { job "$l"; } </dev/null >/dev/null | kill -KILL "$me"
        ) 3>&-
        ;;
    esac
done
