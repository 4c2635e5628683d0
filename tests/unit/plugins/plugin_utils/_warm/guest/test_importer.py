# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules import, found by what is in it."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from types import CodeType

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import (
    bytecode,
    compiler,
    importer,
    module_runner,
    payload,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.payload import read_archive
from ansible_collections.qemu.guest.tests.unit.warm import COMMAND, LIBRARIES, full, module


def many(name: str) -> dict[str, str]:
    """Return libraries of which each one imports the one before."""
    chain = {f"ansible/module_utils/{name}{number}.py": f"VALUE = {number}\n" for number in range(3 * importer.MANY)}
    return {**LIBRARIES, **chain, "ansible/module_utils/broken.py": "(\n"}


def test_libraries_that_are_compiled_on_two_processors(agent: Runner, warm: WarmPython) -> None:
    libraries = many("n")
    names = [name.rpartition("/")[2][:-3] for name in libraries if "/n" in name]
    program = "".join(f"from ansible.module_utils import {name}\nprint({name}.VALUE)\n" for name in names)
    result = warm.run(COMMAND, module(program, libraries))
    assert result and result.stdout.split() == [b"%d" % number for number in range(len(names))]


@pytest.mark.parametrize("beside", ["killed", "no room"])
def test_compiler_beside_that_does_not_end_well(monkeypatch: pytest.MonkeyPatch, beside: str) -> None:
    work = module_runner.Modules()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, source in many("k").items():
            file.writestr(name, source)
            module_name = name[: -len(".py")].replace("/", ".").removesuffix(".__init__")
            work.importer.table[module_name] = (source, name.endswith("/__init__.py"))
    if beside == "killed":
        monkeypatch.setattr(importer, "start_beside", lambda work: lambda: work()[:-100])
    else:
        monkeypatch.setattr(os, "fork", full)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    archive = payload.Archive(work.importer.table, base64.b64encode(content.getvalue()).decode())
    work.importer.learn(archive)
    assert set(work.importer.code) == {*many("k").values(), importer.EMPTY} - {"(\n"}


WARNS = "VALUE = 1 is 1\n"


@pytest.mark.parametrize("kind", [bytecode.KIND, b"another's\n"])
def test_code_that_comes_with_an_archive(monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    """It is taken by an interpreter of its kind; others compile, and what does not compile silently is in neither."""
    sources = {**many("c"), "ansible/module_utils/warns.py": WARNS}
    text = base64.b64decode(module("", sources).split(b"'")[-2])
    there = read_archive(base64.b64encode(text))
    assert there
    code = bytecode.packed(compiler.compiled(dict(there.sources.values())))
    work = module_runner.Modules()
    with zipfile.ZipFile(io.BytesIO(text)) as file:
        for name in file.namelist():
            module_name = name[: -len(".py")].replace("/", ".").removesuffix(".__init__")
            digest = hashlib.sha256(file.read(name)).hexdigest()[:32]
            work.importer.table[module_name] = digest, name.endswith("/__init__.py")
    compiled_here: list[int] = []

    def compiled(sources: compiler.Sources) -> compiler.Codes:
        compiled_here.append(len(sources))
        return compiler.compiled(sources)

    monkeypatch.setattr(importer, "compiled", compiled)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    encoded = base64.b64encode(text).decode()
    archive = payload.Archive(work.importer.table, encoded, code.replace(bytecode.KIND, kind))
    work.importer.learn(archive)
    new = {digest for digest, _package in work.importer.table.values()}
    assert len(new - set(work.importer.code)) == 2
    # What does not compile is tried here, and what is empty is known.
    assert compiled_here == [2 if kind == bytecode.KIND else len(new) - 1]
    place = f"{compiler.ARCHIVE}/ansible/module_utils/library.py"
    assert work.importer.get_code("ansible.module_utils.library").co_filename == place
    assert place in [path for _digest, (_text, path) in there.sources.values()], "it need not be put in again"


def test_modules_of_the_same_source_keep_their_paths() -> None:
    code = compile("def function():\n    return [lambda: 1]\n", "archive/first.py", "exec")
    assert importer.placed(code, "archive/first.py") is code
    other = importer.placed(code, "archive/other.py")
    for where, whole in (("archive/first.py", code), ("archive/other.py", other)):
        paths = []
        inner = [whole]
        while inner:
            one = inner.pop()
            paths.append(one.co_filename)
            inner += [constant for constant in one.co_consts if isinstance(constant, CodeType)]
        assert set(paths) == {where}
        assert len(paths) > 2
