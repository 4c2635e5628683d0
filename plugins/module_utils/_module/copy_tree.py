# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy a directory into the guest: what differs goes in one archive for each of the guest's filesystems."""

from __future__ import annotations

import os
import stat
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import sha256_of
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import chunks
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree import Found, find_paths, need, text
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree_put import New, put_trees
from ansible_collections.qemu.guest.plugins.module_utils._module.modes import DIRECTORY_MODE, FILE_MODE, mode_of
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Params, Plan

__all__ = ("PRESERVE", "Current", "apply", "plan", "read")

PRESERVE = "preserve"
"""The mode that means that of the file here."""


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
    modes = {
        "mode": _mode(params["mode"], FILE_MODE),
        "directory_mode": _mode(params["directory_mode"], DIRECTORY_MODE),
    }
    changes = list(_changes(current, {**params, **modes}))
    return Plan(
        before={"files": {text(one.path): _before(current.there.get(one.path)) for _sha256, one in changes}},
        after={"files": {text(one.path): _after(sha256, one) for sha256, one in changes}},
        changed=bool(changes),
        todo=(current, [one for _sha256, one in changes]),
        result={
            "path": params["path"],
            "state": "directory",
            "files": [text(one.path) for _sha256, one in changes if one.kind != "d"],
        },
        subject=params["path"],
    )


def _mode(mode: Any, usual: int) -> Any:
    """Return the mode as a number, PRESERVE or None. Symbols change the usual one."""
    return mode if mode in (None, PRESERVE) else mode_of(mode, usual)


def _changes(current: Current, params: Params) -> Iterator[tuple[str, New]]:
    """Yield what is to be made or replaced, with the SHA-256 of its content."""
    roots: dict[bytes, bytes] = {}  # new directories, and where they are moved to
    for one in current.wanted:
        there = current.there.get(one.path)
        if there:
            _refuse(one, there)
        parent = os.path.dirname(one.path)
        mode, uid, gid = _attributes(one, there, current.ids, params)
        new = New(one.path, one.kind, mode, uid, gid, roots.get(parent, parent), one.source, one.target)
        if one.kind == "d" and not there:
            roots[one.path] = new.into
        if not there or (one.kind != "d" and _differs(one, new, there)):
            yield one.sha256, new


def _refuse(one: Wanted, there: Found) -> None:
    if there.kind == "o" or (there.kind == "d" and one.kind != "d") or (one.kind == "d" and there.kind not in "dD"):
        what = "a directory" if there.kind == "d" else "not a directory" if one.kind == "d" else "not a file"
        raise OperationError(f"{text(one.path)} exists in the guest and is {what}. It is not replaced; nothing was.")


def _attributes(one: Wanted, there: Found | None, ids: tuple[int, int] | None, params: Params) -> tuple[int, int, int]:
    """Return mode, owner and group: those asked for, else those of an existing file, else the usual ones."""
    existing = there if there and there.kind == "f" and one.kind == "f" else None
    uid, gid = (existing.uid, existing.gid) if existing else (0, 0)
    if ids and one.kind != "l":  # busybox's tar gives links no owner
        uid = ids[0] if params["owner"] else uid
        gid = ids[1] if params["group"] else gid
    mode, usual = params["mode"], existing.mode if existing else FILE_MODE
    if one.kind == "d":
        usual = DIRECTORY_MODE
        mode = PRESERVE if mode == PRESERVE and params["directory_mode"] is None else params["directory_mode"]
    if mode == PRESERVE:
        mode = one.mode
    return usual if mode is None else mode, uid, gid


def _differs(one: Wanted, new: New, there: Found) -> bool:
    if (one.kind == "l") != (there.kind in "lD"):
        return True
    if one.kind == "l":
        return one.target != there.target
    return (one.sha256, new.mode, new.uid, new.gid) != (there.sha256, there.mode, there.uid, there.gid)


def _before(there: Found | None) -> Any:
    if there is None:
        return None
    if there.kind != "f":
        return {"link": text(there.target)}
    return {"sha256": there.sha256, "mode": f"{there.mode:04o}", "uid": there.uid, "gid": there.gid}


def _after(sha256: str, new: New) -> Any:
    if new.kind == "l":
        return {"link": text(new.target)}
    attributes = {"mode": f"{new.mode:04o}", "uid": new.uid, "gid": new.gid}
    return {"sha256": sha256, **attributes} if new.kind == "f" else attributes


# apply


def apply(executor: Executor, plan: Plan) -> Mapping[str, Any]:
    current, changes = plan.todo
    groups: dict[Any, list[New]] = {}
    for one in changes:
        into = current.there[one.into]
        # A link may lead to another filesystem.
        groups.setdefault(into.device if into.kind == "d" else into.path, []).append(one)
    put_trees(executor, list(groups.values()))
    return {}
