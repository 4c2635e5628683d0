# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules in a warm interpreter."""

from __future__ import annotations

import _posixsubprocess
import base64
import io
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import basic

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.executor import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import module_runner, payload
from ansible_collections.qemu.guest.tests.unit.warm import COMMAND, WRAPPER, module, warmed


@pytest.mark.parametrize(("umask", "nothing"), [(None, True), (0, True), (0o77, False)])
def test_function_that_sets_no_umask_is_known(
    umask: int | None, nothing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function is that of the core at hand."""
    given = []
    popen = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        given.append(kwargs["preexec_fn"])
        return popen(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", b'{"ANSIBLE_MODULE_ARGS": {}}')
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)  # of core 2.19 and later
    rc, out, _err = basic.AnsibleModule({}).run_command(["sh", "-c", "umask"], umask=umask)
    assert (rc, out) == (0, "0077\n" if umask else f"{current_umask():04o}\n")
    assert [module_runner.does_nothing(function) for function in given] == [nothing]


def test_programs_are_started_without_what_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    for where, name in ((_posixsubprocess, "fork_exec"), (subprocess, "_fork_exec")):
        monkeypatch.setattr(where, name, lambda *arguments: given.extend(arguments[-2:]), raising=False)
    module_runner.start_programs_at_once()
    start: Any = _posixsubprocess.fork_exec
    for umask in (0, 0o77):
        function = preexec(umask)
        start(function, True)
        assert given == [function if umask else None, True]
        given.clear()


def test_modules_start_programs_so(warm: WarmPython) -> None:
    warmed(warm)
    result = warm.run(COMMAND, module("import _posixsubprocess; print(_posixsubprocess.fork_exec.__qualname__)"))
    assert result is not None
    assert result.stdout == b"start_programs_at_once.<locals>.start\n"


def test_site_may_have_a_package_of_the_same_name(warm: WarmPython, tmp_path: Path) -> None:
    """Nor is it among the modules that were imported already."""
    (tmp_path / "qemu_guest.py").write_text("import sys\nWHOSE = 'the site'\n")
    warmed(warm)
    there = "import sys; print([name for name in sys.modules if name.startswith('qemu_guest')]); "
    work = f"{there}sys.path.append({str(tmp_path)!r}); import qemu_guest; print(qemu_guest.WHOSE)"
    result = warm.run(COMMAND, module(work))
    assert result is not None
    assert result.stdout == b"[]\nthe site\n", result.stderr


def preexec(umask: int | None) -> Callable[[], None]:
    """Return a function like that of run_command."""

    def between() -> None:
        if umask:
            os.umask(umask)

    between.__qualname__ = module_runner.BETWEEN
    return between


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_module_whose_libraries_are_there_is_learnt_when_it_comes_again() -> None:
    """No task waits for that, and nothing is learnt twice."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("ansible/modules/quick.py", "print('quick')\n")
    work = module_runner.Modules()
    work.learnt.add("another")
    text = base64.b64encode(content.getvalue()).decode()
    work.archives["digest"] = payload.Archive({"ansible.modules.quick": ("source", False)}, text)
    request: Any = SimpleNamespace(archive="digest", before=0, content=b"3", program=WRAPPER.format("").encode())
    assert [work.learns(request), work.lessons] == [False, 0]
    request.content = b""
    assert [work.learns(request), work.learns(request), work.lessons] == [False, False, 2]
    work.importer.code.clear()
    work.take_lesson()
    assert [work.learns(request), work.lessons, *work.importer.code] == [False, 1, "source"]
    work.importer.code.clear()
    work.take_lesson()
    assert [work.lessons, *work.importer.code] == [0]
