# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a connection imports of this collection is compiled once, as Python does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ansible_collections.qemu.guest.plugins.plugin_utils import _bytecode

ROOT = Path(_bytecode.__file__).resolve().parents[2]
PROGRAM = """
import sys
from ansible.plugins.loader import connection_loader, init_plugin_loader
init_plugin_loader([{collections!r}])
from ansible.playbook.play_context import PlayContext
assert connection_loader.get("qemu.guest.qga", PlayContext())
for name in ("module_utils._agent.base", "plugin_utils._warm.client"):
    print(sys.modules["ansible_collections.qemu.guest.plugins." + name].__cached__)
"""


def test_bytecode_is_kept(tmp_path: Path) -> None:
    collections = str(ROOT / ".dev" / "collections")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(collections=collections)],
        env={"PYTHONPYCACHEPREFIX": str(tmp_path), "ANSIBLE_HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    kept = [Path(line) for line in done.stdout.split()]
    assert [path.name.partition(".")[0] for path in kept] == ["base", "client"]
    assert all(path.is_relative_to(tmp_path) and path.exists() for path in kept)
