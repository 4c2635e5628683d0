# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: opened_rpcs
author: The qemu.guest authors (!UNKNOWN)
short_description: Allow commands in the configuration of a guest agent
version_added: 0.1.0
description:
  - Takes the text of a guest agent's configuration, and returns it with some commands allowed.
  - The commands are taken out of every list of what is blocked, and added to every list of what is allowed, except to
    an empty one, which allows everything. All else stays as it is.
  - Knows C(/etc/qemu/qemu-ga.conf) with its C(block-rpcs), C(blacklist) and C(allow-rpcs), and
    C(/etc/sysconfig/qemu-ga) with its C(BLACKLIST_RPC), C(BLOCK_RPCS), and options of the agent such as
    C(--allow-rpcs) in the value of any variable.
positional: _input, commands
options:
  _input:
    description: The text of the configuration.
    type: str
    required: true
  commands:
    description: The agent's commands to allow.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show what would be written
  ansible.builtin.debug:
    msg: "{{ 'block-rpcs=guest-exec,guest-set-time' | qemu.guest.opened_rpcs(['guest-exec']) }}"
  # block-rpcs=guest-set-time
"""

RETURN = r"""
_value:
  description: The text with these commands allowed; the same text, if they are.
  type: str
"""

import re
from collections.abc import Callable, Sequence

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


class FilterModule:
    def filters(self) -> dict[str, Callable[..., str]]:
        return {"opened_rpcs": opened_rpcs}
