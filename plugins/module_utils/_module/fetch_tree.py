# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch a directory of the guest: what differs comes in one archive.

The guest is not trusted. The names of its files were checked (_guest/tree.py); no link here is on the way to where they
are written; and links are made at the end, so that nothing is written through them.
"""

from __future__ import annotations

import os
import stat
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import sha256_of
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import chunks
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree import Found, find_below, need, text
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree_fetch import at, fetch_tree
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Params, Plan

__all__ = ("Current", "apply", "plan", "read")


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
        here = {one.path: _here(at(root, one.path), one) for one in there if _is_taken(one)}
    except OSError as exc:
        raise OperationError(f"cannot read {dest} here: {exc.strerror}") from exc
    return Current(src, root, there, here)


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


def _left_out(current: Current) -> Iterator[tuple[str, str]]:
    """Yield the name and the reason of what is not fetched."""
    for one in current.there:
        if not _is_taken(one):
            why = "no file, directory or link" if one.kind == "o" else f"a link that leads out, to {text(one.target)}"
            yield _name(one), why


def _name(one: Found) -> str:
    return text(one.path[2:] or b".")


def plan(current: Current, params: Params) -> Plan:
    different = [one for one in current.there if one.path in current.here and _differs(current, one)]
    left_out = dict(_left_out(current))
    return Plan(
        before={"files": {_name(one): _shown(current.here[one.path]) for one in different}},
        after={"files": {_name(one): _shown(_wanted(one)) for one in different}},
        changed=bool(different),
        todo=(current, different, params["max_size"]),
        result={
            "src": params["src"],
            "dest": text(current.dest),
            "files": [_name(one) for one in different if one.kind != "d"],
            "left_out": list(left_out),
        },
        subject=text(current.dest),
        warnings=[f"{name} was not fetched: it is {why}" for name, why in left_out.items()],
    )


def _shown(what: Any) -> Any:
    return "directory" if what is True else text(b"-> " + what) if isinstance(what, bytes) else what or None


def apply(executor: Executor, plan: Plan) -> Mapping[str, Any]:
    current, different, largest = plan.todo
    dest: bytes = current.dest
    files = [one for one in different if one.kind == "f"]
    size: int = 0
    came: dict[bytes, str] = {}
    try:
        os.makedirs(os.path.dirname(dest.rstrip(b"/")) or b".", exist_ok=True)
        for one in different:
            if one.kind == "d":
                os.mkdir(at(dest, one.path), 0o700)
        if files:
            size, came = fetch_tree(executor, current.src, [one.path for one in files], dest, largest)
        for one in different:
            if one.kind in ("l", "D"):
                _link(one.target, at(dest, one.path))
    except OSError as exc:
        raise OperationError(f"cannot write {text(dest)} here: {exc.strerror}") from exc
    missing = [_name(one) for one in files if one.path not in came]
    changed = [_name(one) for one in files if one.sha256 and came.get(one.path, one.sha256) != one.sha256]
    return {
        "size": size,
        "files": [name for name in plan.result["files"] if name not in missing],
        "warnings": [
            *(f"{name} was not fetched: it is gone, or cannot be read" for name in missing),
            *(f"{name} was written to meanwhile: what came may be parts of two versions" for name in changed),
        ],
    }


def _link(target: bytes, path: bytes) -> None:
    new = os.path.join(os.path.dirname(path), b".qga." + os.urandom(8).hex().encode("ascii"))
    os.symlink(target, new)
    os.replace(new, path)
