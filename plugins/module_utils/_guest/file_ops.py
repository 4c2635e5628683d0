# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in directories of the guest that other users may own.

The owner of a directory can exchange its entries between any two of root's steps. So no step here relies on a name
twice: the shell enters the directory once; content is written into a new file with an unguessable name; mode and owner
are set through the open file; and rename(2), which follows no link, puts it in place. The agent writes by name, in
several requests, so it writes only where root alone can exchange names: see `stage`.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
from contextlib import contextmanager
from typing import Iterator, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import check_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import when_thawed

__all__ = (
    "AS_IT_IS",
    "ENTER",
    "PRIVATE",
    "SAFE",
    "Attributes",
    "Staged",
    "change_in_place",
    "place_command",
    "replace_file",
    "run_change",
    "stage",
    "stage_command",
    "unlink",
    "variables",
)

# d: the directory. Its own are y: its owner; p: what was walked; r: the rest; l: the next name; u: one digit per link.
# The path is walked again, step by step, only if it contains a link. A link is trusted only if no other user can
# exchange it, or any directory above it, and so is each that it leads through. Links and directories are root's, or of
# the owner of what they lead to. Whoever may write to a directory that is not sticky can put another link in place.
# What only a group may write to is trusted for what is not root's: many users have a group of their own.
ENTER = r"""
cd -P -- "$d" || { stat -- "$d/." >/dev/null; exit 1; }
kept() {
    p=. r=${PWD%/}
    while [ "$r" ]; do r=${r%/*} p="$p ${p##* }/.."; done
    r=$(stat -c '%u %a:%g' -- $p) || return 1
    set -- $(stat -c '%f %u -' -- "./$l") $r
    case $1 in a*) shift ;; *) return 1 ;; esac
    while [ $# -gt 1 ]; do
        case $1 in 0 | "$y") ;; *) return 1 ;; esac
        case $2 in
        - | [1357]???:*) ;;
        *[2367]:*) return 1 ;;
        *[2367]?:0) ;;
        *[2367]?:*) [ "${y:-0}" != 0 ] || return 1 ;;
        esac
        shift 2
    done
}
if [ "$PWD" != "$d" ]; then
    y=$(stat -c %u .) p= r=${d#/}/ u=
    while [ "$r" ]; do
        l=${r%%/*} r=${r#*/}
        case $l in
        '' | .) ;;
        ..) p=${p%/*} ;;
        *)
            if [ -L "$p/$l" ]; then
                l=$(cd -P -- "$p/" && [ "${PWD%/}" = "$p" ] && kept && readlink -n -- "./$l" && echo .) u=1$u
                l=${l%.}
                [ "$l" ] && [ ${#u} -lt 40 ] || { p=-; break; }
                case $l in /*) p= ;; esac
                r=$l/$r
            else
                p=$p/$l
            fi
            ;;
        esac
    done
    if [ "$p" != "${PWD%/}" ]; then
        echo "a link on the way to $d, which an unprivileged user can exchange, leads elsewhere" >&2
        exit 1
    fi
fi
""".replace("    ", "")  # this text is sent with each file
"""Shell text that enters the directory C(d), and refuses links that an unprivileged user can exchange."""

SAFE = r"""
safe() {
    p=. l=. r=$PWD
    while [ "${r%/}" ]; do r=${r%/*} p=$p/.. l="$l $p"; done
    set -- $(stat -c '%u %a' $l)
    [ $# -gt 1 ] || return 1
    while [ $# -gt 1 ]; do
        [ "$1" = 0 ] || return 1
        case $2 in [1357]???) ;; *[2367]? | *[2367]) return 1 ;; esac
        shift 2
    done
}
"""
"""Shell function that tells whether root alone can exchange the entries of this directory and the path to it."""

# Only a regular file is replaced, or a link, which is only a name.
_ONLY_FILES = r"""
if [ ! -L "./$n" ] && [ -e "./$n" ] && [ ! -f "./$n" ]; then echo "$d/$n is not a regular file" >&2; exit 1; fi
umask 077
set -C
"""

# A guest that went back to a snapshot since has a part of what was staged, or nothing.
_WHOLE = r"""
whole() {
    [ "$(stat -L -c %s /proc/self/fd/0)" = "$z" ] && return
    echo "what was brought is not all there (did the guest go back to a snapshot?)" >&2
    return 1
}
"""

# All users may create files there, but none can exchange root's (sticky). On disk, as a file may exceed the memory.
_ELSEWHERE = "/var/tmp"

_STAGE = (
    ENTER
    + SAFE
    + _ONLY_FILES
    + rf"""
if safe; then f=${{PWD%/}}/$t; else f={_ELSEWHERE}/$t; fi
: >"$f"
printf %s "$f"
"""
)

# Beside ENTER's d: n: the file's name; t: the name of the new file; c: where the content is ("-": standard input;
# empty: in $t already); z: the size of what was staged; w: the content's SHA-256, if known; o: OWNER:GROUP; m: mode
# (empty: the file keeps both, or is root's alone); k: backup name for the old file; b: this directory is safe; x:
# whether to set the SELinux label.
# mksh does not pass descriptors above 2 to programs, so programs get the file as their standard output.
_PLACE = (
    ENTER
    + _ONLY_FILES
    + r"""
made=
if [ ! "$m" ]; then
    m=600 r=
    if [ -e "./$n" ]; then r=$(stat -c '%f %a %u:%g' -- "./$n"); fi
    case $r in
    8*)
        r=${r#* }
        m=${r% *} o=${r#* }
        ;;
    esac
fi
fill() {
    case $c in
    -) cat >&3 ;;
    ?*) whole <"$c" && cat <"$c" >&3 ;;
    *) whole <&3 ;;
    esac
}
compare() {
    s=
    [ "$w" ] || return 0
    s=$(sha256sum </proc/self/fd/3) || { s=; return 0; }
    s=${s%% *}
    [ "$s" = "$w" ] || { echo "what arrived is not what was sent" >&2; return 1; }
}
own() {
    { [ ! "$o" ] || chown -- "$o" /proc/self/fd/1 >&3; } && { [ "$m" = 600 ] || chmod -- "$m" /proc/self/fd/1 >&3; }
}
keep() {
    [ "$k" ] || return 0
    ln -- "./$n" "./$k" || { [ "$b" ] && cp -p -- "./$n" "./$k"; } || return 1
    made=$k
}
move() {
    e=$(mv -fT -- "./$t" "./$n" 2>&1) && return
    case $e in
    *option*) # an old busybox
        if [ -L "./$n" ]; then rm -f -- "./$n"; fi
        if [ ! -d "./$n" ] && mv -f -- "./$t" "./$n" && [ "./$n" -ef /proc/self/fd/3 ]; then return; fi
        ;;
    esac
    # A file that is a mount point of its own cannot be replaced.
    if [ "$b" ] && [ -f "./$n" ] && cat <"./$t" >|"./$n"; then rm -f -- "./$t"; return; fi
    printf '%s\n' "$e" >&2
    return 1
}
put() { fill && compare && own && keep && move; }
if [ "$c" ]; then { put; } 3>"./$t"; else { put; } 3>>"./$t"; fi || {
    rm -f -- "./$t" ${made:+"./$made"}
    exit 1
}
case $c in ?*/*) rm -f -- "$c" ;; esac
if [ "$x" ] && command -v restorecon >/dev/null; then restorecon "./$n"; fi
printf %s "$s"
""".replace("    ", "")
)

PRIVATE = r"""
umask 077
exec 4<.
mkdir -- "./$t" && cd -P -- "./$t" && [ -O . ] && [ .. -ef /proc/self/fd/4 ] || exit 1
case $(stat -c %a .) in *700) ;; *) echo "$d/$t was exchanged" >&2; exit 1 ;; esac
"""
"""Shell text that makes the directory C(t) in this one, which only root can enter, and enters it."""

# In a directory that is not safe: a hard link in one that only root can enter stays the same file, even if its name is
# exchanged.
_ALTER = (
    ENTER
    + _WHOLE
    + r"""
alter() {
    case $c in
    -) cat >>"$1" ;;
    ?*) whole <"$c" && cat <"$c" >>"$1" ;;
    esac && { [ ! "$o" ] || chown -- "$o" "$1"; } && chmod -- "$m" "$1"
}
linked() {
    ln -- "../$n" f || return 1
    [ -f f ] && [ ! -L f ] || { echo "$d/$n is not a regular file" >&2; return 1; }
    if [ "$k" ]; then cp -p -- f g && ln -- g "../$k" || return 1; fi
    alter f
}
if [ "$b" ]; then
    { [ ! "$k" ] || cp -p -- "./$n" "./$k"; } && alter "./$n"
    s=$?
else
"""
    + PRIVATE
    + r"""
    linked
    s=$?
    rm -f -- f g
    cd -P .. && rmdir -- "./$t"
fi
case $c in ?*/*) rm -f -- "$c" ;; esac
exit "$s"
"""
)


class Attributes(NamedTuple):
    """Attributes to set: ``owner`` as C(OWNER:GROUP), ``mode``; empty: the file keeps them, or is root's alone.

    ``backup`` is the name under which the old content is kept. ``restore_label``: whether to set the SELinux label.
    """

    owner: str = ""
    mode: str = ""
    backup: str = ""
    restore_label: bool = False


AS_IT_IS = Attributes()

# How long a program that the agent has started may take to create a file.
_START_SECONDS = 1


class Staged(NamedTuple):
    """A file that root alone can access, written by name. ``beside``: it is in its destination's directory.

    ``size`` is that of what was written to it.
    """

    path: str
    beside: bool
    size: int = 0


def variables(path: str, **more: str) -> str:
    """Return shell text that assigns C(d) and C(n), directory and name of ``path``, and ``more``."""
    directory, name = _directory_and_name(path)
    given = {"d": directory, "n": name, **more}
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items())


def _directory_and_name(path: str) -> tuple[str, str]:
    directory, name = os.path.split(path)
    if ".." not in directory.split("/"):
        directory = os.path.normpath(directory).replace("//", "/")
    return directory, name


def _new_name(path: str) -> str:
    # A name has at most 255 bytes, not characters.
    start = os.path.basename(path).encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")
    return f".{start}.{secrets.token_hex(8)}"


def place_command(
    path: str,
    attributes: Attributes = AS_IT_IS,
    *,
    content: str = "-",
    sha256: str = "",
    new: str = "",
    size: int = 0,
    safe: bool = False,
) -> ShellCommand:
    """Return the command that puts a file in place and prints its SHA-256, if that was compared.

    ``content`` says where the content is: C(-) for standard input, a path, or empty if ``new`` holds it already.
    ``new`` is the temporary name of the new file, and ``size`` that of a staged one. Changing attributes takes a shell.
    """
    new = new or _new_name(path)
    more = {"b": "1" if safe else "", "x": "1" if attributes.restore_label else ""}
    assigned = variables(
        path,
        t=new,
        z=str(size),
        w=sha256,
        c=content,
        o=attributes.owner,
        m=attributes.mode,
        k=attributes.backup,
        **more,
    )
    function = ""
    arguments: list[str | int] = [*_directory_and_name(path), new]
    if attributes == AS_IT_IS and content == "-" and sha256 and not safe:
        function, arguments = "placed", [*arguments, sha256]
    elif attributes == AS_IT_IS and not content and not sha256 and safe:
        function, arguments = "placed_beside", [*arguments, size]
    return ShellCommand.of(f"{assigned}{'' if content == '-' else _WHOLE}{_PLACE}", function, *arguments)


def replace_file(
    executor: Executor,
    content: bytes | Staged,
    path: str,
    attributes: Attributes = AS_IT_IS,
    *,
    sha256: str = "",
    safe: bool = False,
) -> str:
    """Put ``content`` at ``path``, whole or not at all; an existing link is replaced.

    Return the SHA-256 of the new file; empty if the guest cannot compute it or none was given to compare with.

    :raise OperationError: if that fails, with the guest's message.
    """
    if isinstance(content, bytes):
        command, stdin = place_command(path, attributes, sha256=sha256, safe=safe), content
    else:
        given = {"content": "", "new": os.path.basename(content.path)} if content.beside else {"content": content.path}
        sha256 = "" if content.beside else sha256
        command = place_command(path, attributes, sha256=sha256, size=content.size, safe=content.beside, **given)
        stdin = b""
    return run_change(executor, command, f"write {path}", stdin).decode("ascii", "replace")


def stage_command(path: str, new: str) -> ShellCommand:
    """Return the command that creates the file for `stage` and prints its path."""
    return ShellCommand.of(f"{variables(path, t=new)}{_STAGE}", "stage", *_directory_and_name(path), new)


@contextmanager
def stage(executor: Executor, path: str) -> Iterator[Staged]:
    """Create an empty file that only root can write or exchange: beside ``path``, else in /var/tmp. See `replace_file`.

    If the block fails, the file is removed; if that fails too, the error names it.

    :raise OperationError: if it cannot be created.
    :raise ProtocolError: if what the guest says was created is not that file.
    """
    new = _new_name(path)
    try:
        there = check_shell(executor, stage_command(path, new), f"create {path}").decode("utf-8", "surrogateescape")
        if not re.fullmatch(rf"/([^\0]*/)?{re.escape(new)}", there, re.DOTALL):
            raise ProtocolError(f"a program was to create {new}, and says that it created {there[:300]!r}")
    except (OutcomeUnknownError, ProtocolError) as exc:  # it may be there, in either place
        _remove(executor, [f"{os.path.dirname(path)}/{new}", f"{_ELSEWHERE}/{new}"], exc, comes_late=True)
        raise
    try:
        yield Staged(there, os.path.dirname(there) != _ELSEWHERE or os.path.dirname(path) == _ELSEWHERE)
    except BaseException as exc:
        _remove(executor, [there], exc)
        raise


def unlink(executor: Executor, path: str) -> None:
    """Remove a file, or a link.

    :raise OperationError: if that fails, with the guest's message.
    """
    run_change(executor, f'{variables(path)}{ENTER}rm -f -- "./$n"', f"remove {path}")


def _remove(executor: Executor, paths: Sequence[str], because: BaseException, *, comes_late: bool = False) -> None:
    """Remove our file, at one of ``paths``, after an operation failed.

    ``comes_late``: the program that makes it may have been started, and not have made it yet. If the removal fails too,
    add a hint to the error ``because``.
    """
    command, path = f"rm -f -- {' '.join(map(shlex.quote, paths))}", " or ".join(paths)
    if comes_late:
        command = f"{command}; sleep {_START_SECONDS}; {command}"
    try:
        when_thawed(executor.agent, lambda: check_shell(executor, command, f"remove {path}"))
    except QgaError as exc:
        if isinstance(exc, CommandUnavailable) and isinstance(because, CommandUnavailable):
            because.was_waited_for = exc.was_waited_for
        if isinstance(because, QgaError):
            because.hint = f"{because.hint} {path} may be left in the guest: remove it.".strip()


def change_in_place(
    executor: Executor, path: str, attributes: Attributes, content: bytes | Staged | None = None, *, safe: bool = False
) -> None:
    """Set the attributes of a file, and append ``content`` to it. ``safe``: its directory is root's alone.

    :raise OperationError: if that fails, with the guest's message.
    """
    where, size = (content.path, content.size) if isinstance(content, Staged) else ("" if content is None else "-", 0)
    given = {"o": attributes.owner, "m": attributes.mode, "k": attributes.backup, "b": "1" if safe else ""}
    command = variables(path, t=_new_name(path), c=where, z=str(size), **given) + _ALTER
    stdin = content if isinstance(content, bytes) else b""
    run_change(executor, command, f"change {path}", stdin)


def run_change(executor: Executor, command: str | ShellCommand, purpose: str, stdin: bytes = b"") -> bytes:
    """Do as ``check_shell`` with a command that changes the guest, and note that: errors of what follows tell it."""
    output = check_shell(executor, command, purpose, stdin)
    executor.agent.changed_by = "guest-exec"
    return output
