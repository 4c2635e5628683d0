# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user's authorized_keys, read and written by programs in the guest.

The agent's own commands follow links, and the user can plant one at any moment. So the file is looked at once it is
open, and a new one takes its place (file_ops.py).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    OperationError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import sha256_of
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import Executor, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import (
    ENTER,
    PRIVATE,
    Attributes,
    replace_file,
    run_change,
    variables,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import begin_shell, checked

__all__ = ("LARGEST", "KeyFile", "look", "write")

LARGEST = 1 << 20
"""Most bytes of a file with keys, or of /etc/passwd."""

# What is in the file was the user's, or root put it there. mksh does not pass descriptors above 2 to programs.
_LOOK = (
    r"""
[ -r /proc/version ] || { echo elsewhere; exit; }
e=$({ getent passwd "$w" || cat /etc/passwd; } 2>/dev/null | while IFS=: read -r a x i g x h x; do
    if [ "$a" = "$w" ]; then printf '%s\n' "$i:$g:$h"; break; fi
done)
[ "$e" ] || { echo "failed to look up the user. Is there such a user in the guest?" >&2; exit 1; }
printf '%s\n' "$e"
h=${e#*:*:} n=authorized_keys
d=${h%/}/.ssh
if [ ! -e "$d" ] && [ ! -L "$d" ]; then echo bare; exit; fi
"""
    + ENTER
    + rf"""
[ -e "./$n" ] || {{ echo absent; exit; }}
[ -f "./$n" ] || {{ echo "$d/$n is not a regular file" >&2; exit 1; }}
exec 3<"./$n" || exit 1
case "$([ -f /proc/self/fd/3 ] && stat -L -c '%u %h %d:%i' /proc/self/fd/0 <&3)" in
"${{e%%:*}} "* | "0 1 $(stat -c %d:%i -- "./$n")") ;;
*) echo "$d/$n is a link to what is not that user's" >&2; exit 1 ;;
esac
echo file
head -c {LARGEST + 1} <&3
"""
)

# It is empty: the user could have put another directory of root's here meanwhile.
_MAKE_DIRECTORY = (
    ENTER
    + PRIVATE
    + r"""
[ ! "$(ls -A)" ] || { echo "$d/$t was exchanged" >&2; exit 1; }
chown -- "$o" .
"""
)


class KeyFile(NamedTuple):
    """The file of a user with this ``home`` and C(UID:GID).

    ``text`` is what it has, where bytes that are not UTF-8 are surrogates; None: there is no file. ``bare``: nor is
    there a directory for it.
    """

    user: str
    home: str
    owner: str
    text: str | None = None
    bare: bool = False


def look(executor: Executor, user: str) -> KeyFile | None:
    """Return the user's file; None if the guest is not Linux.

    :raise OperationError: if there is no such user, or the file is not the user's.
    """
    purpose = f"read the keys of {user}"
    command = ShellCommand.of(f"{variables('/', w=user)}{_LOOK}")
    try:  # in time: the user may have put a FIFO there
        result = begin_shell(executor, command, executor.agent.timeout)()
    except CommandUnavailable:
        raise
    except CommandError:  # Windows has no /bin/sh
        return None
    head, _newline, rest = checked(result, purpose).decode("utf-8", "surrogateescape").partition("\n")
    if head == "elsewhere":
        return None
    kind, _newline, text = rest.partition("\n")
    entry = re.fullmatch(r"(\d+:\d+):(|/[^\0]*)", head, re.ASCII)
    if not entry:
        raise OperationError(f"cannot {purpose} in the guest: what its programs say of the user makes no sense: {head}")
    owner, home = entry.groups()
    if len(text) > LARGEST:
        raise OperationError(f"cannot {purpose} in the guest: the file has more than {LARGEST} bytes")
    return KeyFile(user, home.rstrip("/"), owner, text if kind == "file" else None, kind == "bare")


def write(executor: Executor, file: KeyFile, text: str) -> None:
    """Replace the file, if it is still what it was, with the owner and mode that the agent gives it, too.

    :raise OperationError: if that fails; its text is the guest's own.
    """
    path = f"{file.home}/.ssh/authorized_keys"
    if look(executor, file.user) != file:
        raise OperationError(f"{path} was changed meanwhile; nothing was written.")
    if file.bare:
        directory = f"{file.home}/.ssh"
        made = f"{variables(directory, t='.ssh', o=file.owner)}{_MAKE_DIRECTORY}"
        run_change(executor, made, f"make {directory}")
    content = text.encode("utf-8", "surrogateescape")
    replace_file(executor, content, path, Attributes(file.owner, mode="600"), sha256=sha256_of([content]))
