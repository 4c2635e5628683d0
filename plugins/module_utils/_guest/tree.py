# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a directory of the guest: kinds, checksums, where links lead.

One program tells it of all files. It is made of find, stat, sha256sum and readlink, as busybox has them, too. Names are
bytes, of any kind. What the guest says is checked: it decides which names a copy of the directory has here.
"""

from __future__ import annotations

import re
import shlex
from typing import Iterator, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, TransferError
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line, printable
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import EXEC_COMMANDS, Executor, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import ENTER, variables
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import checked, new_prefix, run_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import when_thawed

__all__ = ("Found", "find_below", "find_paths", "need", "text")

# More than this is not copied at once: each takes an inode here, whatever its size, and the guest says how many.
_MOST = 200_000
# In the output, a file has its name and a link's target; a batch of them has three words more, and one file at least.
_MOST_WORDS = 5 * _MOST + 1

# find runs one of these for each kind, with as many names as a command may have. Each prints its kind, the names, an
# empty name, and then what there is to say about all of them, so that a name may have any byte. A: also attributes.
_FIND = r"""
export A="$a"
export W='printf "%s\0" "$0" "$@" ""; [ ! "$A" ] || { stat -c "%f %u %g %d" -- "$@"; printf "\0"; }'
export S='eval "$W"; sha256sum -- "$@"; printf "\0"'
export L='eval "$W"; for f; do if [ -d "$f" ]; then printf D; else printf l; fi; readlink -- "$f"; printf "\0"; done'
"""
# Without brackets: busybox runs nothing in brackets that ends with "+".
_EACH = (
    r'-type d -exec sh -c "$W" d {} + -o -type f -exec sh -c "$S" f {} + -o '
    r'-type l -exec sh -c "$L" l {} + -o -exec sh -c "$W" o {} +'
)
_BELOW = f"{ENTER}{_FIND}find . {_EACH}\nexit 0\n"
# chown resolves names of users as nothing else does that all guests have.
_PATHS = rf"""
if [ "$o" ]; then
    (umask 077; set -C; : >"$t") && chown -- "$o" "$t" && stat -c '%u %g' -- "$t"
    s=$?
    rm -f -- "$t"
    [ "$s" = 0 ] || exit 1
fi
printf '\0'
{_FIND}
xargs -0 sh -c 'find "$@" -maxdepth 0 {_EACH}' sh
exit 0
"""


class Found(NamedTuple):
    """A file in the guest.

    ``kind`` is C(d) (directory), C(f) (file), C(l) (link), C(D) (link to a directory) or C(o) (another). ``sha256`` is
    empty if it is unknown. ``device`` is the number of its filesystem.
    """

    path: bytes
    kind: str
    sha256: str = ""
    target: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    device: str = ""


def text(path: bytes) -> str:
    """Return a path for messages and results."""
    return path.decode("utf-8", "surrogateescape")


def need(executor: Executor, what: str) -> None:
    """Make sure that the agent can run programs.

    :raise QgaError: if it cannot.
    """
    if not executor.is_available():
        executor.agent.require(*EXEC_COMMANDS)
        raise OperationError(f"{what} takes programs in the guest, and its agent cannot run any")


def find_below(executor: Executor, path: str) -> Sequence[Found]:
    """Return what is in a directory, itself first, with paths such as C(./a/b). All of them are below it.

    :raise OperationError: if it cannot be entered, or there is too much in it.
    :raise TransferError: if the guest's answer is nonsense.
    """
    command = f"{variables(f'{path}/.', a='')}{_BELOW}"
    purpose = f"look at {path}"
    result = when_thawed(executor.agent, lambda: run_shell(executor, ShellCommand.of(command)))
    output = checked(result, purpose)
    if output.count(b"\0") > _MOST_WORDS:  # each takes more of the memory than it takes here
        raise _too_much(path)
    found = _parse(output, attributes=False)
    if not any(one.path == b"." for one in found):
        raise OperationError(f"cannot {purpose} in the guest: {last_line(result.stderr) or 'nothing was found'}")
    if len(found) > _MOST:
        raise _too_much(path)
    return _ordered(found)


def _too_much(path: str) -> OperationError:
    return OperationError(f"{path} has more than {_MOST} files and directories: copy parts of it, one by one.")


def find_paths(
    executor: Executor, paths: Sequence[bytes], owner: str = ""
) -> tuple[dict[bytes, Found], tuple[int, int] | None]:
    """Return those absolute ``paths`` that exist, with their attributes, and the numbers of C(OWNER:GROUP), if given.

    :raise OperationError: if the guest does not know that owner.
    """
    command = f"o={shlex.quote(owner)} a=1 t={new_prefix()}{_PATHS}"
    names = b"".join(path + b"\0" for path in paths)
    result = when_thawed(executor.agent, lambda: run_shell(executor, ShellCommand.of(command), names))
    numbers, _nul, rest = checked(result, f"find the owner {owner}" if owner else "look at files").partition(b"\0")
    wanted = set(paths)
    found = {one.path: one for one in _parse(rest, attributes=True) if one.path in wanted}
    if b"/" not in found:
        raise OperationError(f"cannot look at files in the guest: {last_line(result.stderr) or 'nothing was found'}")
    if not owner:
        return found, None
    match = re.fullmatch(rb"(\d{1,10}) (\d{1,10})\n", numbers)
    if not match:
        raise _nonsense()
    return found, (int(match[1]), int(match[2]))


def _nonsense() -> TransferError:
    return TransferError("what the guest's programs say of its files makes no sense, or they changed meanwhile")


def _parse(output: bytes, *, attributes: bool) -> list[Found]:
    """Return what the programs printed: for each batch its kind, its names, and what is said of them."""
    parts = iter(output.split(b"\0"))
    found: list[Found] = []
    for kind in parts:
        if not kind:
            break
        names = list(iter(lambda: next(parts, b""), b""))
        stats = next(parts, b"").splitlines() if attributes else []
        if kind not in (b"d", b"f", b"l", b"o") or (attributes and len(stats) != len(names)):
            raise _nonsense()
        batch = [Found(name, kind.decode("ascii")) for name in names]
        if attributes:
            batch = [_with_attributes(one, stat) for one, stat in zip(batch, stats)]
        if kind == b"f":
            sums = _sums(next(parts, b""), names)
            batch = [one._replace(sha256=sha256) for one, sha256 in zip(batch, sums)]
        if kind == b"l":
            said = [next(parts, b"") for _one in batch]
            batch = [one._replace(kind=_kind(link), target=link[1:-1]) for one, link in zip(batch, said)]
        found += batch
    return found


def _kind(link: bytes) -> str:
    if link[:1] not in (b"l", b"D"):
        raise _nonsense()
    return link[:1].decode("ascii")


_STAT = re.compile(rb"([0-9a-f]{1,8}) (\d{1,10}) (\d{1,10}) (\d{1,20})")


def _with_attributes(one: Found, stat: bytes) -> Found:
    match = _STAT.fullmatch(stat)
    if not match:
        raise _nonsense()
    return one._replace(
        mode=int(match[1], 16) & 0o7777, uid=int(match[2]), gid=int(match[3]), device=match[4].decode("ascii")
    )


def _sums(output: bytes, names: Sequence[bytes]) -> list[str]:
    """Return the checksum of each name, empty if there is none: the file is gone, or cannot be read.

    sha256sum escapes some names, and which ones depends on whose it is; uutils' replaces what is not UTF-8. The names
    are known here, so none is unescaped.
    """
    sums: list[str] = []
    start = 0
    for name in names:
        line = _SUM.match(output, start)
        shown = next((one for one in _shown(name) if line and output.startswith(one + b"\n", line.end())), None)
        sums.append(line[1].decode("ascii") if line and shown is not None else "")
        start += len(line[0]) + len(shown) + 1 if line and shown is not None else 0
    return sums


_SUM = re.compile(rb"\\?([0-9a-f]{64}) [ *]")


def _shown(name: bytes) -> Iterator[bytes]:
    """Yield the forms in which some sha256sum shows a name."""
    yield name
    name = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    yield name
    name = name.replace(b"\r", b"\\r")
    yield name
    yield name.decode("utf-8", "replace").encode("utf-8")


def _ordered(found: Sequence[Found]) -> list[Found]:
    """Return ``found`` with each directory before what is in it.

    :raise TransferError: if a name leads out of the directory, is there twice, or is in what is not a directory.
    """
    directories = {one.path for one in found if one.kind == "d"}
    seen = set()
    for one in found:
        parent, _slash, name = one.path.rpartition(b"/")
        well = one.path == b"." or (name not in (b"", b".", b"..") and parent in directories)
        if not well or one.path in seen:
            shown = printable(text(one.path))
            raise TransferError(f"the guest names a file that is not in the directory, or names it twice: {shown}")
        seen.add(one.path)
    return sorted(found, key=lambda one: one.path.count(b"/"))
