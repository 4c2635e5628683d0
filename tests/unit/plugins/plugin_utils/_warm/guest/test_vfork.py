# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How modules start programs."""

from __future__ import annotations

import _posixsubprocess
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils import basic

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import vfork
from ansible_collections.qemu.guest.tests.unit.warm import COMMAND, module, warmed


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

    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", b'{"ANSIBLE_MODULE_ARGS": {}}')
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)  # of core 2.19 and later
    module = basic.AnsibleModule({})
    monkeypatch.setattr(subprocess, "Popen", start)
    rc, out, _err = module.run_command(["sh", "-c", "umask"], umask=umask)
    assert (rc, out) == (0, "0077\n" if umask else f"{current_umask():04o}\n")
    assert [vfork.does_nothing(function) for function in given] == [nothing]


def test_programs_are_started_without_what_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    for where, name in ((_posixsubprocess, "fork_exec"), (subprocess, "_fork_exec")):
        monkeypatch.setattr(where, name, lambda *arguments: given.extend(arguments[-2:]), raising=False)
    vfork.start_programs_at_once()
    monkeypatch.setattr(vfork, "BETWEEN", preexec(None).__qualname__)
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


def preexec(umask: int | None) -> Callable[[], None]:
    def between() -> None:
        if umask:
            os.umask(umask)

    return between


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
