# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy a directory into the guest: what differs goes in one archive for each of the guest's filesystems.

The guest unpacks it into a directory that only root can enter, on the filesystem where the files are to be, compares
the content of all files, and moves what is new into each directory that exists: a file, or a new directory with all
that is in it. Each of these is entered once, as in file_ops.py, so that its owner cannot divert what is moved there.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import stat
import tarfile
import tempfile
from contextlib import suppress
from typing import IO, Any, BinaryIO, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, QgaError
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import sha256_of
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Command, Executor
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import ENTER, PRIVATE, variables
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import chunks
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import checked, new_spool, run_shell, sweep
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import when_thawed
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import SMALL, put
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree import Found, find_paths, need, text
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Params, Plan

__all__ = ("PRESERVE", "apply", "plan", "read")

PRESERVE = "preserve"
"""The mode that means that of the file here."""

_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755

# c: the archive (empty: standard input); w: the SHA-256 of all content, in the order of the archive's first member.
# Standard output is the private directory where files are moved from: other names of it could be exchanged.
_UNPACK = (
    ENTER
    + r"""
if [ "$c" ]; then
    exec <"$c" || exit 1
    rm -f -- "$c"
fi
"""
    + PRIVATE
    + r"""
unpack() {
    command -v tar >/dev/null || { echo "the guest has no tar; install it there" >&2; return 1; }
    gzip -dc | tar -xpmf - || return 1
    s=$({ [ ! -s names ] || xargs -0 cat <names; } | sha256sum)
    [ "${s%% *}" = "$w" ] || { echo "what arrived is not what was sent" >&2; return 1; }
    rm -f names
}
export M='mv -f -- "$@" ./ || exit
command -v restorecon >/dev/null && [ -e /sys/fs/selinux/enforce ] || exit 0
for f; do
    shift
    set -- "$@" "./${f##*/}"
done
restorecon -R "$@"'
into() (
"""
    + ENTER
    + r"""
exec find "/proc/self/fd/1/$n/" -mindepth 1 -maxdepth 1 -exec sh -c "$M" sh {} +
) 1<.
unpack"""
)
_CLEAN = r""" && rmdir ./*
s=$?
rm -rf ./*
cd -P .. && rmdir -- "./$t"
exit "$s"
"""


class Wanted(NamedTuple):
    """What is to be in the guest at ``path``, and what it is here.

    ``kind`` is C(d), C(f) or C(l) as in tree.Found. ``source`` is its path here, empty for a directory above them all.
    """

    path: bytes
    kind: str
    source: bytes = b""
    mode: int | None = None
    sha256: str = ""
    target: bytes = b""


class Current(NamedTuple):
    """What is wanted, what of it is in the guest, and the numbers of the wanted owner and group."""

    wanted: Sequence[Wanted]
    there: Mapping[bytes, Found]
    ids: tuple[int, int] | None


class Change(NamedTuple):
    """What is new, with its attributes, and the existing directory ``into`` which it is moved."""

    wanted: Wanted
    mode: int
    uid: int
    gid: int
    into: bytes


# read


def read(executor: Executor, params: Params) -> Current:
    src, dest = params["src"], params["path"]
    if not dest.startswith("/"):
        raise OperationError(f"path: {dest} is not an absolute path")
    if ".." in dest.split("/"):
        raise OperationError(f"path: {dest} has .. in it; name the directory itself")
    need(executor, "recurse")
    if not src.endswith("/"):
        dest = os.path.join(dest, os.path.basename(src))
    try:
        wanted = list(_here(os.fsencode(src), os.fsencode(dest), params["local_follow"]))
    except OSError as exc:
        name = text(os.fsencode(exc.filename)) if exc.filename else src
        raise OperationError(f"src: cannot read {name} here: {exc.strerror}") from exc
    owner = f"{params['owner'] or ''}:{params['group']}" if params["group"] else params["owner"] or ""
    there, ids = find_paths(executor, [one.path for one in wanted], owner)
    return Current(wanted, there, ids)


def _here(src: bytes, dest: bytes, follow: bool) -> Iterator[Wanted]:
    """Yield all that is wanted, each directory before what is in it."""
    dest = b"/" + os.path.normpath(dest).strip(b"/")
    parts = dest.split(b"/")[1:]
    if parts != [b""]:
        yield Wanted(b"/", "d")
    for depth in range(1, len(parts)):
        yield Wanted(b"/" + b"/".join(parts[:depth]), "d")
    todo: list[tuple[bytes, bytes, frozenset[tuple[int, int]]]] = [(src, dest, frozenset())]
    while todo:
        source, path, above = todo.pop()
        about = (os.stat if follow or source == src else os.lstat)(source)
        mode = stat.S_IMODE(about.st_mode)
        identity = about.st_dev, about.st_ino
        if stat.S_ISDIR(about.st_mode):
            if identity in above:
                raise OperationError(f"src: the link {text(source)} leads to a directory that it is in")
            yield Wanted(path, "d", source, mode)
            names = sorted(os.listdir(source), reverse=True)
            todo += [(os.path.join(source, name), os.path.join(path, name), above | {identity}) for name in names]
        elif source == src or not (stat.S_ISREG(about.st_mode) or stat.S_ISLNK(about.st_mode)):
            what = "is not a directory" if source == src else "is not a file, a directory or a link"
            raise OperationError(f"src: {text(source)} {what}")
        elif stat.S_ISLNK(about.st_mode):
            yield Wanted(path, "l", source, target=os.readlink(source))
        else:
            with open(source, "rb") as file:
                yield Wanted(path, "f", source, mode, sha256_of(chunks(file)))


# plan


def plan(current: Current, params: Params) -> Plan:
    """``mode`` and ``directory_mode`` of ``params`` are numbers, PRESERVE or None."""
    changes = list(_changes(current, params))
    return Plan(
        before={"files": {text(one.wanted.path): _before(current, one.wanted.path) for one in changes}},
        after={"files": {text(one.wanted.path): _after(one) for one in changes}},
        changed=bool(changes),
        todo=(current, changes),
        result={
            "path": params["path"],
            "state": "directory",
            "files": [text(one.wanted.path) for one in changes if one.wanted.kind != "d"],
        },
        subject=params["path"],
    )


def _changes(current: Current, params: Params) -> Iterator[Change]:
    roots: dict[bytes, bytes] = {}  # new directories, and where they are moved to
    for one in current.wanted:
        there = current.there.get(one.path)
        _refuse(one, there)
        change = _change(one, there, current.ids, params, roots)
        if one.kind == "d" and there is None:
            roots[one.path] = change.into
        if there is None or (one.kind != "d" and _differs(change, there)):
            yield change


def _refuse(one: Wanted, there: Found | None) -> None:
    if there is None:
        return
    if there.kind == "o" or (there.kind == "d" and one.kind != "d") or (one.kind == "d" and there.kind not in "dD"):
        what = "a directory" if there.kind == "d" else "not a directory" if one.kind == "d" else "not a file"
        raise OperationError(f"{text(one.path)} exists in the guest and is {what}. It is not replaced; nothing was.")


def _change(
    one: Wanted, there: Found | None, ids: tuple[int, int] | None, params: Params, roots: Mapping[bytes, bytes]
) -> Change:
    is_file = there is not None and there.kind == "f"
    uid, gid = (there.uid, there.gid) if there and is_file else (0, 0)
    if ids:
        uid = ids[0] if params["owner"] else uid
        gid = ids[1] if params["group"] else gid
    if one.kind == "d":
        mode, usual = params["directory_mode"], _DIRECTORY_MODE
        mode = params["mode"] if mode is None and params["mode"] == PRESERVE else mode
    else:
        mode, usual = params["mode"], there.mode if there and is_file else _FILE_MODE
    if mode == PRESERVE:
        mode = one.mode
    parent = os.path.dirname(one.path)
    return Change(one, usual if mode is None else mode, uid, gid, roots.get(parent, parent))


def _differs(change: Change, there: Found) -> bool:
    if (change.wanted.kind == "l") != (there.kind in "lD"):
        return True
    if change.wanted.kind == "l":
        return change.wanted.target != there.target
    attributes = change.mode, change.uid, change.gid
    return change.wanted.sha256 != there.sha256 or attributes != (there.mode, there.uid, there.gid)


def _before(current: Current, path: bytes) -> Any:
    there = current.there.get(path)
    if there is None:
        return None
    if there.kind != "f":
        return {"link": text(there.target)}
    return {"sha256": there.sha256, "mode": f"{there.mode:04o}", "uid": there.uid, "gid": there.gid}


def _after(change: Change) -> Any:
    attributes = {"mode": f"{change.mode:04o}", "uid": change.uid, "gid": change.gid}
    if change.wanted.kind == "l":
        return {"link": text(change.wanted.target)}
    return {"sha256": change.wanted.sha256, **attributes} if change.wanted.kind == "f" else attributes


# apply


def apply(executor: Executor, plan: Plan) -> Mapping[str, Any]:
    current, changes = plan.todo
    groups: dict[Any, list[Change]] = {}
    for one in changes:
        into = current.there[one.into]
        # A link may lead to another filesystem.
        groups.setdefault(into.device if into.kind == "d" else into.path, []).append(one)
    for group in groups.values():
        _deliver(executor, group)
    return {}


def _deliver(executor: Executor, changes: Sequence[Change]) -> None:
    """Bring what is moved to directories of one filesystem."""
    places = {into: number for number, into in enumerate({one.into: None for one in changes})}
    try:
        with tempfile.TemporaryFile() as archive:
            checksum = _pack(archive, changes, places)
            size = archive.seek(0, os.SEEK_END)
            archive.seek(0)
            content = archive.read() if size < SMALL else b""
            archive.seek(0)
            _send(executor, archive, content, _command(checksum, list(places)))
    except OSError as exc:
        raise OperationError(f"src: cannot read {exc.filename or 'a file'} here: {exc.strerror or exc}") from exc


def _command(checksum: str, places: Sequence[bytes]) -> str:
    """Return the shell text that unpacks an archive, but for the assignment of C(c)."""
    first = variables(os.path.join(text(places[0]), "."), t=f".qga.{secrets.token_hex(8)}", w=checksum)
    moves = (f" && {variables(os.path.join(text(into), str(number)))} into" for number, into in enumerate(places))
    return f"{first}{_UNPACK}{''.join(moves)}{_CLEAN}"


def _send(executor: Executor, archive: BinaryIO, content: bytes, command: str) -> None:
    """Send an archive, as the input of ``command`` if it is small: ``content``; else in a file."""
    spool = new_spool("/var/tmp")
    path = "" if content else f"{spool}.tar"
    try:
        if path:
            put(executor, archive, path)
        unpack = Command.of(f"c={path}\n{command}")
        result = when_thawed(executor.agent, lambda: run_shell(executor, unpack, content, whole=False))
        checked(result, "put the files in place")
    except BaseException:
        if path:
            with suppress(QgaError):
                sweep(executor, spool)
        raise


class _Summed(io.RawIOBase):
    """A file whose content is added to a checksum while it is read."""

    def __init__(self, file: IO[bytes], summed: Any) -> None:
        self._file = file
        self._summed = summed

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._summed.update(data)
        return data


def _pack(archive: IO[bytes], changes: Sequence[Change], places: Mapping[bytes, int]) -> str:
    """Write the archive, and return the SHA-256 of all content."""
    summed = hashlib.sha256()
    named = [(_name(one, places), one) for one in changes]
    names = b"".join(name + b"\0" for name, one in named if one.wanted.kind == "f")
    # The fastest level: higher levels take longer than the channel time that they save.
    with tarfile.open(
        fileobj=archive,
        mode="w:gz",
        compresslevel=1,
        format=tarfile.GNU_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    ) as tar:
        tar.addfile(_member(b"names", tarfile.REGTYPE, 0o600, len(names)), io.BytesIO(names))
        for number in places.values():
            tar.addfile(_member(b"%d" % number, tarfile.DIRTYPE, 0o700))
        for name, one in named:
            kind = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE}[one.wanted.kind]
            member = _member(name, kind, one.mode)
            member.uid, member.gid, member.linkname = one.uid, one.gid, text(one.wanted.target)
            if one.wanted.kind != "f":
                tar.addfile(member)
                continue
            with open(one.wanted.source, "rb") as file:
                member.size = os.fstat(file.fileno()).st_size
                tar.addfile(member, _Summed(file, summed))
    return summed.hexdigest()


def _name(change: Change, places: Mapping[bytes, int]) -> bytes:
    """Return the name in the archive: below the number of the directory that it is moved to."""
    return b"%d/%b" % (places[change.into], change.wanted.path[len(change.into.rstrip(b"/")) + 1 :])


def _member(name: bytes, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(text(name))
    member.type, member.mode, member.size = kind, mode, size
    return member
