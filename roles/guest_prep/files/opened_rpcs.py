# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Allow commands in the configuration of a guest agent: opened_rpcs.py CONFIGURATION COMMAND...

CONFIGURATION is the file's content in Base64, and so is what is printed, so that no byte of it changes on the way.

The commands are taken out of every list of what is blocked, and added to every list of what is allowed, except to an
empty one, which allows everything. All else stays as it is. Known are /etc/qemu/qemu-ga.conf with its block-rpcs,
blacklist and allow-rpcs, and /etc/sysconfig/qemu-ga with its BLACKLIST_RPC, BLOCK_RPCS, and options of the agent such
as --allow-rpcs in the value of any variable.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Sequence

# Blanks within a line; systemd lets a value go on in the next line.
_GAP = r"(?:[ \t]|\\\n)*"
_BLANKS = " \t\\\n"
_NAME = r"[\w-]*"

# Comments come first, so that nothing else matches in them. `head` is all before a list's first name.
_LISTS = re.compile(
    rf"""
    ^[ \t]*[#;].*$
    |
    (?P<head>
        ^[ \t]* (?:blacklist|block-rpcs|allow-rpcs) [ \t]*=[ \t]*
        | ^[ \t]* (?:BLACKLIST_RPC|BLOCK_RPCS) [ \t]*=[ \t]* ["']?
        | (?<=["'=\s]) --(?:blacklist|block-rpcs|allow-rpcs) (?: = | {_GAP}[ \t\n] )
        | (?<=["'=\s]) -[ab] {_GAP} (?=guest-)
    )
    (?P<names> {_NAME} (?: {_GAP},{_GAP} {_NAME} )* )
    """,
    re.MULTILINE | re.VERBOSE,
)
_ALLOWS = re.compile(r"allow-rpcs|(?:^|\s)-a")


def opened_rpcs(text: str, commands: Sequence[str]) -> str:
    """Return the configuration ``text`` with ``commands`` allowed."""

    def opened(match: re.Match[str]) -> str:
        head, names = match["head"], match["names"]
        if not names:  # a comment, or an empty list
            return match[0]
        listed = names.split(",")
        if _ALLOWS.search(head):
            # The agent takes blanks for a part of the name, so " guest-exec" does not allow guest-exec.
            missing = [command for command in commands if command not in listed]
            return ",".join([match[0].rstrip(","), *missing]) if missing else match[0]
        kept = [name for name in listed if name.strip(_BLANKS) not in commands]
        return match[0] if kept == listed else head + ",".join(kept).lstrip(_BLANKS)

    return _LISTS.sub(opened, text)


if __name__ == "__main__":
    given = base64.b64decode(sys.argv[1]).decode("utf-8", "surrogateescape")
    print(base64.b64encode(opened_rpcs(given, sys.argv[2:]).encode("utf-8", "surrogateescape")).decode("ascii"))
