# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put files and directories into directories of the guest, in one archive.

The guest unpacks it into a directory that only root can enter, on the filesystem where the files are to be, compares
the content of all files, and moves what is new into each directory that exists: a file, or a new directory with all
that is in it. Each of these is entered once, as in file_ops.py, so that its owner cannot divert what is moved there.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shlex
import tarfile
import tempfile
from typing import IO, Any, BinaryIO, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import ENTER, PRIVATE, run_change, variables
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import new_prefix
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import when_thawed
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import sent
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree import text

__all__ = ("New", "put_trees")

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
    for f in tar gzip xargs find; do
        command -v "$f" >/dev/null || { echo "the guest has no $f; install it there" >&2; return 1; }
    done
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


class New(NamedTuple):
    """What is to be at ``path`` in the guest.

    ``kind`` is C(d), C(f) or C(l) as in tree.Found. ``source`` is the path of a file here, ``target`` that of a link.
    ``into`` is the existing directory that it is moved to, by itself or in a new directory.
    """

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    into: bytes
    source: bytes = b""
    target: bytes = b""


# A guest that went back to a snapshot has lost what was put before, and with it the file that says so.
_AFTER = """
rm {mark} || { echo "what was put before is gone (did the guest go back to a snapshot?)" >&2; exit 1; }
"""


def put_trees(executor: Executor, groups: Sequence[Sequence[New]]) -> None:
    """Put all of ``groups`` in place, each on one filesystem; in each, a directory comes before what is in it.

    :raise OperationError: if that fails, with the guest's message. Some of it may be in place.
    """
    marks = [f"{new_prefix()}.0" for _group in groups[1:]]
    for new, mark, mark_before in zip(groups, [*marks, ""], ["", *marks]):
        _put_tree(executor, new, _AFTER.replace("{mark}", mark_before) if mark_before else "", mark)


def _put_tree(executor: Executor, new: Sequence[New], before: str, mark: str) -> None:
    """Put a group in place, after the shell text ``before``; make the file ``mark``, if named, when that is done."""
    places = {into: number for number, into in enumerate({one.into: None for one in new})}
    try:
        with tempfile.TemporaryFile() as archive:
            command = before + _command(_pack(archive, new, places), list(places), mark)
            when_thawed(executor.agent, lambda: _unpack(executor, archive, command))
    except OSError as exc:
        raise OperationError(f"src: cannot read {exc.filename or 'a file'} here: {exc.strerror or exc}") from exc


def _command(checksum: str, places: Sequence[bytes], mark: str) -> str:
    """Return the shell text that unpacks an archive and makes the file ``mark``, but for the assignment of C(c)."""
    first = variables(os.path.join(text(places[0]), "."), t=f".qga.{secrets.token_hex(8)}", w=checksum)
    moves = (f" && {variables(os.path.join(text(into), str(number)))} into" for number, into in enumerate(places))
    marked = f" && (: >{mark})" if mark else ""
    return f"{first}{_UNPACK}{''.join(moves)}{marked}{_CLEAN}"


def _unpack(executor: Executor, archive: BinaryIO, command: str) -> None:
    """Run ``command`` with an archive: its input if that is small, else a file."""
    purpose = "put the files in place"
    small = archive.seek(0, os.SEEK_END) < executor.sizes.small
    archive.seek(0)
    if small:
        run_change(executor, f"c=\n{command}", purpose, archive.read())
        return
    with sent(executor, archive, f"{new_prefix('/var/tmp')}.tar") as staged:
        # The archive is not sent anew because the guest is frozen now.
        unpack = f"c={shlex.quote(staged.path)}\n{command}"
        when_thawed(executor.agent, lambda: run_change(executor, unpack, purpose))


class _Summed(io.RawIOBase):
    """A file whose content is added to a checksum while it is read."""

    def __init__(self, file: IO[bytes], summed: Any) -> None:
        self._file = file
        self._summed = summed

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._summed.update(data)
        return data


def _pack(archive: IO[bytes], new: Sequence[New], places: Mapping[bytes, int]) -> str:
    """Write the archive, and return the SHA-256 of all content."""
    summed = hashlib.sha256()
    named = [(_name(one, places), one) for one in new]
    names = b"".join(name + b"\0" for name, one in named if one.kind == "f")
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
            kind = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE}[one.kind]
            member = _member(name, kind, one.mode)
            member.uid, member.gid, member.linkname = one.uid, one.gid, text(one.target)
            if one.kind != "f":
                tar.addfile(member)
                continue
            with open(one.source, "rb") as file:
                member.size = os.fstat(file.fileno()).st_size
                tar.addfile(member, _Summed(file, summed))
    return summed.hexdigest()


def _name(one: New, places: Mapping[bytes, int]) -> bytes:
    """Return the name in the archive: below the number of the directory that it is moved to."""
    return b"%d/%b" % (places[one.into], one.path[len(one.into.rstrip(b"/")) + 1 :])


def _member(name: bytes, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(text(name))
    member.type, member.mode, member.size = kind, mode, size
    return member
