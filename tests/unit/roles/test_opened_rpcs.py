# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each form in which an agent is told what is blocked, or what alone is allowed."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest

from ansible_collections.qemu.guest.roles.guest_prep.files import opened_rpcs as program
from ansible_collections.qemu.guest.roles.guest_prep.files.opened_rpcs import opened_rpcs

OPEN = ["guest-exec", "guest-exec-status", "guest-file-open"]

# What is written, and what becomes of it.
BLOCKED = {
    "qemu-ga.conf": ("[general]\nblock-rpcs=guest-exec,guest-set-time\n", "[general]\nblock-rpcs=guest-set-time\n"),
    "older": ("[general]\nblacklist=guest-set-time,guest-exec\n", "[general]\nblacklist=guest-set-time\n"),
    "all of it": ("block-rpcs=guest-exec,guest-exec-status\nverbose=1\n", "block-rpcs=\nverbose=1\n"),
    "in the middle": ("block-rpcs=guest-a,guest-exec,guest-b", "block-rpcs=guest-a,guest-b"),
    "blanks": ("  block-rpcs = guest-exec , guest-b \n", "  block-rpcs = guest-b \n"),
    "comma at the end": ("block-rpcs=guest-exec,\n", "block-rpcs=\n"),
    "sysconfig": ("BLACKLIST_RPC=guest-file-open,guest-exec-status\nA=b\n", "BLACKLIST_RPC=\nA=b\n"),
    "sysconfig, quoted": ('BLOCK_RPCS="guest-a,guest-exec"\n', 'BLOCK_RPCS="guest-a"\n'),
    "sysconfig, single quotes": ("BLOCK_RPCS='guest-exec,guest-a'\n", "BLOCK_RPCS='guest-a'\n"),
    "sysconfig, over lines": ("BLOCK_RPCS=guest-exec,\\\na,\\\nguest-file-open\nA=b\n", "BLOCK_RPCS=a\nA=b\n"),
    "option": ('FILTER_RPC_ARGS="--block-rpcs=guest-exec,guest-exec-status"\n', 'FILTER_RPC_ARGS="--block-rpcs="\n'),
    "option without quotes": ("RPC_ARGS=--block-rpcs=guest-exec,guest-a\n", "RPC_ARGS=--block-rpcs=guest-a\n"),
    "option after another": ("ARGS='-v --blacklist guest-exec,guest-a -d'\n", "ARGS='-v --blacklist guest-a -d'\n"),
    "short option": ('DAEMON_ARGS="-v -b guest-exec,guest-a"\n', 'DAEMON_ARGS="-v -b guest-a"\n'),
    "short option, joined": ('DAEMON_ARGS="-bguest-a,guest-exec"\n', 'DAEMON_ARGS="-bguest-a"\n'),
    "lines of Windows": ("block-rpcs=guest-exec,guest-a\r\nx=y\r\n", "block-rpcs=guest-a\r\nx=y\r\n"),
}
ALL = ",".join(OPEN)
ALLOWED = {
    "qemu-ga.conf": ("[general]\nallow-rpcs=guest-ping\nx=y\n", f"[general]\nallow-rpcs=guest-ping,{ALL}\nx=y\n"),
    "without a newline": ("allow-rpcs = guest-ping", f"allow-rpcs = guest-ping,{ALL}"),
    "in part": ("allow-rpcs=guest-exec-status,a\n", "allow-rpcs=guest-exec-status,a,guest-exec,guest-file-open\n"),
    "comma at the end": ("allow-rpcs=guest-a,\n", f"allow-rpcs=guest-a,{ALL}\n"),
    "what blanks spoil": ("allow-rpcs=a, guest-exec\n", f"allow-rpcs=a, guest-exec,{ALL}\n"),
    "option": ('FILTER_RPC_ARGS="--allow-rpcs=guest-ping"\n', f'FILTER_RPC_ARGS="--allow-rpcs=guest-ping,{ALL}"\n'),
    "option and another": ('A="--allow-rpcs=guest-a -v"\n', f'A="--allow-rpcs=guest-a,{ALL} -v"\n'),
    "option with a blank": ("A='--allow-rpcs guest-a'\n", f"A='--allow-rpcs guest-a,{ALL}'\n"),
    "over lines": ('A="--allow-rpcs=guest-a,\\\nguest-b"\n', f'A="--allow-rpcs=guest-a,\\\nguest-b,{ALL}"\n'),
    "short option": ('A="-a guest-a"\n', f'A="-a guest-a,{ALL}"\n'),
}
UNTOUCHED = [
    "",
    "[general]\n",
    "[general]\nverbose=true\nmethod=virtio-serial\n",
    "block-rpcs=\nallow-rpcs=\n",
    "allow-rpcs=\nblock-rpcs=guest-a\n",
    'FILTER_RPC_ARGS=""\nBLACKLIST_RPC=\n',
    'FILTER_RPC_ARGS="--allow-rpcs="\n',
    "# BLACKLIST_RPC=guest-exec\n  #FILTER_RPC_ARGS=\"--allow-rpcs=guest-ping\"\n; --allow-rpcs=guest-ping\n",
    "block-rpcs=guest-exec-other,my-guest-exec,guest-set-time, guest-a\n",
    "OTHER=guest-exec,guest-file-open\nOTHER_RPCS=guest-exec\n",
    'OTHER="-a all --not-allow-rpcs=guest-a -ba"\n',
    "path=/dev/virtio-ports/org.qemu.guest_agent.0\nFSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook\n",
]  # fmt: skip


@pytest.mark.parametrize("form", BLOCKED)
def test_blocked(form: str) -> None:
    text, expected = BLOCKED[form]
    assert opened_rpcs(text, OPEN) == expected
    assert opened_rpcs(expected, OPEN) == expected


@pytest.mark.parametrize("form", ALLOWED)
def test_allowed(form: str) -> None:
    text, expected = ALLOWED[form]
    assert opened_rpcs(text, OPEN) == expected
    assert opened_rpcs(expected, OPEN) == expected


@pytest.mark.parametrize("text", UNTOUCHED)
def test_untouched(text: str) -> None:
    assert opened_rpcs(text, OPEN) == text


def test_one_is_not_the_other() -> None:
    assert opened_rpcs("block-rpcs=guest-exec-status,guest-exec\n", ["guest-exec"]) == "block-rpcs=guest-exec-status\n"
    assert opened_rpcs("allow-rpcs=guest-exec-status\n", ["guest-exec"]) == "allow-rpcs=guest-exec-status,guest-exec\n"
    assert opened_rpcs("block-rpcs=guest-exec\nallow-rpcs=a\n", []) == "block-rpcs=guest-exec\nallow-rpcs=a\n"


def test_several_lists() -> None:
    text = "block-rpcs=guest-exec\n# allow-rpcs=a\nallow-rpcs=guest-ping\n"
    assert opened_rpcs(text, ["guest-exec"]) == "block-rpcs=\n# allow-rpcs=a\nallow-rpcs=guest-ping,guest-exec\n"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n \n", b"\n# \xff\n"])
def test_program_keeps_every_other_byte(end: bytes) -> None:
    given = base64.b64encode(b"block-rpcs=guest-exec" + end).decode()
    run = subprocess.run([sys.executable, str(program.__file__), given, *OPEN], capture_output=True, check=True)
    assert base64.b64decode(run.stdout) == b"block-rpcs=" + end
