# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ordinary play of targets/connection_qga: run it, see by another path what it made, run it again."""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.qemu.guest.tests.integration.harness import (
    HERE,
    Ansible,
    Subject,
    guest_variables,
    look,
    until,
)

SIZE = 2_500_001
"""More than one chunk, and no multiple of anything."""

ODD = "-n 'single' \"double\" $HOME `id` $(id) \\\\ * ? [a] & ; | < > # ! ~ %s {a,b} ü"
"""Text that should arrive as it is, whatever shells are on the way."""

# What could be left of what carried the configuration there; the exceptions are what systemd puts into /tmp. What
# watches over an async task looks every five seconds whether it has ended, and then removes the task's files.
LEFT = r"""
find /tmp /root/.ansible/tmp ~qgauser/.ansible/tmp -mindepth 1 2>/dev/null |
    grep -v -e '^/tmp/systemd-private' -e '^/tmp/[.].*-unix'
find /run/qemu-guest* -type f ! -name pid ! -name log ! -name '*.lock' ! -name '*.py' ! -name prologue 2>/dev/null
"""
LOOK = r"""
cd /srv/qga
sha256sum large | cut -c1-64
stat -c '%a %U:%G %s %n' large empty about "../qga dir é/copied 'text'.txt" ~qgauser/mine
stat -c '%a %U:%G %n' '../qga dir é'
cat about lines once theirs "../qga dir é/copied 'text'.txt" ~qgauser/mine
readlink link
id -nG qgauser
"""
LEFT_SECONDS = 90  # answers can be fetched for a minute


def ordinary_variables(directory: Path) -> dict[str, Any]:
    """Return the variables of the play, and put what it copies into a scratch directory of the controller."""
    content = os.urandom(SIZE)
    (directory / "large").write_bytes(content)
    tree = directory / "tree"
    for number, name in enumerate(["bin/run", "plain", "empty", "deep/er/ä ö/'quoted' \"file\"", "deep/.hidden"]):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"%d\n" % number * (name != "empty"))
    (tree / "bin" / "run").chmod(0o755)
    with tarfile.open(directory / "tree.tar.gz", "w:gz") as archive:
        archive.add(tree, "tree")
    return {
        "target": "connection_qga",
        "scratch": str(directory),
        "large_sha1": hashlib.sha1(content).hexdigest(),
        "odd": ODD,
        "odd_name": ODD.replace("$HOME", "$"),
    }


def check_ordinary_play(directory: Path, subjects: Mapping[str, Subject], **variables: Any) -> None:
    """Configure all subjects at once; a second run changes nothing."""
    hosts = {name: guest_variables(subject) for name, subject in subjects.items()}
    ansible = Ansible(directory / "ansible", hosts)
    variables = {**ordinary_variables(directory), **variables}
    content = (directory / "large").read_bytes()
    first = ansible.playbook(HERE / "targets.yml", variables=variables, timeout=900)
    assert all(counts["changed"] > 10 for counts in first.recap.values()), first.output
    for name, subject in subjects.items():
        seen, expected = look(subject, LOOK, check=False).splitlines(), _expected(name, content)
        assert seen == expected, "\n".join(difflib.unified_diff(expected, seen, "expected", "seen", lineterm=""))
        until(functools.partial(clean, subject), LEFT_SECONDS, f"nothing left on {name}")
        fetched = directory / "fetched" / name
        assert (fetched / "large").read_bytes() == content
        assert (fetched / "empty").read_bytes() == b""
        assert (fetched / "copied 'text'.txt").read_text(encoding="utf-8") == "line one\nzwei ü\n"
    second = ansible.playbook(HERE / "targets.yml", variables=variables, timeout=900)
    assert {counts["changed"] for counts in second.recap.values()} == {0}, second.output


def clean(subject: Subject) -> bool:
    """Return whether nothing is left of what carried the configuration there."""
    left = look(subject, LEFT, check=False)
    print(left, end="")
    return not left


def _expected(name: str, content: bytes) -> list[str]:
    about = [f"This is {name}, configured without a network.", "0: ü", "1: ü", "2: ü"]
    return [
        hashlib.sha256(content).hexdigest(),
        f"600 root:root {SIZE} large",
        "644 root:root 0 empty",
        f"644 root:root {sum(len(line.encode()) + 1 for line in about)} about",
        "640 qgauser:qgagroup 17 ../qga dir é/copied 'text'.txt",
        "600 qgauser:qgauser 5 /home/qgauser/mine",
        "750 qgauser:root ../qga dir é",
        *about,
        "setting=ä",
        *("/root", "a b", "ü"),
        *about,
        *("line one", "zwei ü"),
        "mine",
        "about",
        "qgauser qgagroup",
    ]
