# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules in a warm interpreter."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import module_runner, payload
from ansible_collections.qemu.guest.tests.unit.warm import COMMAND, WRAPPER, module, warmed


def test_site_may_have_a_package_of_the_same_name(warm: WarmPython, tmp_path: Path) -> None:
    """Nor is it among the modules that were imported already."""
    (tmp_path / "qemu_guest.py").write_text("import sys\nWHOSE = 'the site'\n")
    warmed(warm)
    there = "import sys; print([name for name in sys.modules if name.startswith('qemu_guest')]); "
    work = f"{there}sys.path.append({str(tmp_path)!r}); import qemu_guest; print(qemu_guest.WHOSE)"
    result = warm.run(COMMAND, module(work))
    assert result is not None
    assert result.stdout == b"[]\nthe site\n", result.stderr


def test_module_whose_libraries_are_there_is_learnt_when_it_comes_again() -> None:
    """No task waits for that, and nothing is learnt twice."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("ansible/modules/quick.py", "print('quick')\n")
    work = module_runner.Modules()
    work.learnt.add("another")
    text = base64.b64encode(content.getvalue()).decode()
    work.archives["digest"] = payload.Archive({"ansible.modules.quick": ("source", False)}, text)
    request: Any = SimpleNamespace(archive="digest", split_at=0, content=b"3", program=WRAPPER.format("").encode())
    assert [work.learn_before_fork(request), work.lessons] == [False, 0]
    request.content = b""
    assert [work.learn_before_fork(request), work.learn_before_fork(request), work.lessons] == [False, False, 2]
    work.importer.code.clear()
    work.take_lesson()
    assert [work.learn_before_fork(request), work.lessons, *work.importer.code] == [False, 1, "source"]
    work.importer.code.clear()
    work.take_lesson()
    assert [work.lessons, *work.importer.code] == [0]
