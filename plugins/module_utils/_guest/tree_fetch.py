# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch a directory: what differs comes in one archive, which is made by the guest's tar.

The guest decides what is in the archive, so of it only content is taken, and of those files only that were asked for:
their names were checked before (tree.py), and so was that no link here is on the way to them. Links are made at the
end, so nothing is written through them.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from typing import IO, Any, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, QgaError, TransferError
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import sha256_of
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Command, Executor
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import ENTER, variables
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import CHUNK, chunks
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import (
    REST,
    checked,
    new_spool,
    run_shell,
    sweep,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import when_thawed
from ansible_collections.qemu.guest.plugins.module_utils._guest.tar import members
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree import Found, find_below, need, text
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Params, Plan

__all__ = ("apply", "plan", "read")

# On disk, as it may exceed the memory. `rest` leaves a quarter of what is free there.
_PLACE = "/var/tmp"
_UNLIMITED = 99_999_999  # blocks of 512 bytes, which fit into the 32 bits of some shells
# GNU's tar may have another default; busybox has no such option, and that format.
_ARCHIVE = (
    ENTER
    + REST
    + r"""
m=$b
command -v tar >/dev/null || { echo "the guest has no tar; install it there" >&2; exit 1; }
g=
case $(tar --help 2>&1) in *--format*) g=--format=gnu ;; esac
(umask 077; set -C; : >"$t.tar") || exit 1
xargs -0 sh -c 'tar $0 -cf - "$@"' "$g" | rest "$t.tar" "$t.lost" 6
if [ -e "$t.lost" ]; then echo "the archive needs more than max_size, or than /var/tmp has room for" >&2; exit 1; fi
"""
)


class Current(NamedTuple):
    """What the guest has, in which directory it is to be here, and what of it is here already."""

    src: str
    dest: bytes
    there: Sequence[Found]
    here: Mapping[bytes, Any]
    """By path: the SHA-256 of a file, the target of a link (bytes), True for a directory; None: it is missing."""


def read(executor: Executor, params: Params) -> Current:
    src, dest = params["src"], params["dest"]
    need(executor, "recurse")
    there = find_below(executor, src)
    if not src.endswith("/"):
        dest = os.path.join(dest, os.path.basename(src))
    root = os.fsencode(dest)
    try:
        here = {one.path: _here(_at(root, one.path), one) for one in there if _is_taken(one)}
    except OSError as exc:
        raise OperationError(f"cannot read {dest} here: {exc.strerror}") from exc
    return Current(src, root, there, here)


def _at(dest: bytes, path: bytes) -> bytes:
    """Return where C(./a/b) of the guest is here."""
    return os.path.join(dest, path[2:])


def _is_taken(one: Found) -> bool:
    return one.kind in ("d", "f") or (one.kind in ("l", "D") and _stays_within(one))


def _stays_within(link: Found) -> bool:
    """Return whether a link leads to what is in the directory, whatever other links there are.

    Only at the beginning, where it is relative to a true directory, does C(..) lead to where it seems to lead.
    """
    parts = [part for part in link.target.split(b"/") if part not in (b"", b".")]
    up = 0
    while parts[up : up + 1] == [b".."]:
        up += 1
    depth = link.path.count(b"/") - 1
    return bool(link.target) and not link.target.startswith(b"/") and up <= depth and b".." not in parts[up:]


def _here(path: bytes, there: Found) -> Any:
    """Return what is at ``path`` here, as in ``Current``.

    :raise OperationError: if it is in the way.
    """
    try:
        # The directory itself may be a link: that is the user's, not the guest's.
        kind = stat.S_IFMT((os.stat if there.path == b"." else os.lstat)(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if (kind == stat.S_IFDIR) != (there.kind == "d") or kind not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
        what = "a directory" if there.kind == "d" else "no directory"
        raise OperationError(f"{text(path)} is in the way here: the guest has {what} of that name. Remove it.")
    if kind == stat.S_IFLNK:
        return os.readlink(path)
    if kind == stat.S_IFDIR:
        return True
    if not there.sha256:
        return ""
    with open(path, "rb") as local:
        return sha256_of(chunks(local))


def _wanted(one: Found) -> Any:
    return {"d": True, "f": one.sha256}.get(one.kind, one.target)


def _differs(current: Current, one: Found) -> bool:
    return current.here[one.path] != _wanted(one) or (one.kind == "f" and not one.sha256)


def _skipped(current: Current) -> Iterator[tuple[str, str]]:
    """Yield the name and the reason of what is not fetched."""
    for one in current.there:
        if not _is_taken(one):
            why = "no file, directory or link" if one.kind == "o" else f"a link that leads out, to {text(one.target)}"
            yield _name(one), why


def _name(one: Found) -> str:
    return text(one.path[2:] or b".")


def plan(current: Current, params: Params) -> Plan:
    different = [one for one in current.there if one.path in current.here and _differs(current, one)]
    skipped = dict(_skipped(current))
    return Plan(
        before={"files": {_name(one): _shown(current.here[one.path]) for one in different}},
        after={"files": {_name(one): _shown(_wanted(one)) for one in different}},
        changed=bool(different),
        todo=(current, different, params["max_size"]),
        result={
            "src": params["src"],
            "dest": text(current.dest),
            "files": [_name(one) for one in different if one.kind != "d"],
            "skipped": list(skipped),
        },
        subject=text(current.dest),
        warnings=[f"{name} was not fetched: it is {why}" for name, why in skipped.items()],
    )


def _shown(what: Any) -> Any:
    return "directory" if what is True else text(b"-> " + what) if isinstance(what, bytes) else what or None


def apply(executor: Executor, plan: Plan) -> Mapping[str, Any]:
    current, different, largest = plan.todo
    dest: bytes = current.dest
    files = {one.path: one for one in different if one.kind == "f"}
    size = 0
    missing: list[str] = []
    try:
        os.makedirs(os.path.dirname(dest.rstrip(b"/")) or b".", exist_ok=True)
        for one in different:
            if one.kind == "d":
                os.mkdir(_at(dest, one.path), 0o700)
        if files:
            with tempfile.TemporaryFile(dir=dest) as archive:
                _fetch_archive(executor, current.src, list(files), archive, largest)
                size, missing = _unpack(archive, dest, files)
        for one in different:
            if one.kind in ("l", "D"):
                _link(one.target, _at(dest, one.path))
    except OSError as exc:
        raise OperationError(f"cannot write {text(dest)} here: {exc.strerror}") from exc
    return {
        "size": size,
        "files": [name for name in plan.result["files"] if name not in missing],
        "warnings": [f"{name} was not fetched: it is gone, or cannot be read" for name in missing],
    }


def _fetch_archive(executor: Executor, src: str, names: Sequence[bytes], sink: IO[bytes], largest: int | None) -> None:
    """Have the guest make an archive of these files, and fetch it to ``sink``."""
    spool = new_spool(_PLACE)
    blocks = min(_UNLIMITED, _UNLIMITED if largest is None else largest // 512 + 1)
    command = Command.of(f"{variables(f'{src}/.', t=spool, b=str(blocks))}{_ARCHIVE}")
    stdin = b"".join(name + b"\0" for name in names)
    try:
        made = when_thawed(executor.agent, lambda: run_shell(executor, command, stdin, whole=False))
        checked(made, f"make an archive of {src}")
        try:
            fetch(executor, f"{spool}.tar", sink, largest=largest)
        except TransferError as exc:
            said = last_line(made.stderr)
            exc.hint = f"{exc.hint} The guest's tar said: {said}".strip() if said else exc.hint
            raise
    finally:
        with suppress(QgaError):
            sweep(executor, spool)


def _unpack(archive: IO[bytes], dest: bytes, wanted: Mapping[bytes, Found]) -> tuple[int, list[str]]:
    """Write the wanted files of ``archive`` below ``dest``; return the size of all, and the names of those missing."""
    written: dict[bytes, bytes] = {}
    total = 0
    for member in members(archive):
        if member.name not in wanted or member.name in written:
            continue
        path = _at(dest, member.name)
        if member.kind == "file":
            total += member.size
            _write(archive, member.size, path, bool(member.mode & 0o100))
        elif member.kind == "hardlink" and member.target in written:
            with open(written[member.target], "rb") as other:
                size = os.fstat(other.fileno()).st_size
                total += size
                _write(other, size, path, bool(os.fstat(other.fileno()).st_mode & 0o100))
        else:
            continue
        written[member.name] = path
    return total, [_name(one) for name, one in wanted.items() if name not in written]


def _write(source: IO[bytes], size: int, path: bytes, executable: bool) -> None:
    """Write the next ``size`` bytes of ``source`` to a file that appears at ``path`` whole."""
    directory = os.path.dirname(path)
    descriptor, new = tempfile.mkstemp(dir=directory, prefix=b".qga.")
    try:
        with open(descriptor, "wb") as sink:
            while size > 0:
                piece = source.read(min(size, CHUNK))
                if not piece:
                    raise TransferError("the archive that the guest made is not whole")
                size -= sink.write(piece)
            os.fchmod(descriptor, _mode(path, executable))
        os.replace(new, path)
    except BaseException:  # KeyboardInterrupt included: leave no partial file
        os.unlink(new)
        raise


def _mode(path: bytes, executable: bool) -> int:
    """Return the mode of the file at ``path``, or of a new one, which only its owner can read."""
    with suppress(OSError):
        present = os.lstat(path).st_mode
        if stat.S_ISREG(present):
            return present & 0o7777
    return 0o700 if executable else 0o600


def _link(target: bytes, path: bytes) -> None:
    new = os.path.join(os.path.dirname(path), b".qga." + os.urandom(8).hex().encode("ascii"))
    os.symlink(target, new)
    os.replace(new, path)
