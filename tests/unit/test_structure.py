# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of the code, as docs/architecture.md has it: what imports what, and how long functions are."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from ansible_collections.qemu.guest.tests.unit.documentation import COLLECTION

PREFIX = "ansible_collections.qemu.guest."
LONGEST_FUNCTION = 40
SOURCES = {
    ".".join(path.relative_to(COLLECTION).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for top in ("plugins", "lab", "tests")
    for path in sorted((COLLECTION / top).rglob("*.py"))
}
UTILS = "plugins.module_utils."
GUEST = "plugins.plugin_utils._warm.guest."
# What a package may import of this collection besides itself.
BELOW = {
    f"{UTILS}_agent.": (),
    f"{UTILS}_facts.": (),
    f"{UTILS}_guest.": (f"{UTILS}_agent.",),
    f"{UTILS}_module.": (f"{UTILS}_agent.", f"{UTILS}_guest."),
    "plugins.modules.": (UTILS,),
    GUEST: (),
}


def imported(name: str) -> Iterator[str]:
    """Yield the modules that a module imports, those for type checkers included; ours without PREFIX."""
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix(PREFIX) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*package, *filter(None, [node.module])]).removeprefix(PREFIX)
            found = [one for one in (f"{module}.{alias.name}" for alias in node.names) if one in SOURCES]
            yield from found or [module]


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: {one for one in imported(name) if one in SOURCES} for name in SOURCES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", BELOW)
def test_package_imports_only_what_is_below_it(package: str) -> None:
    above = [
        f"{name} imports {one}"
        for name in SOURCES
        if name.startswith(package)
        for one in imported(name)
        if one.startswith(("plugins.", "tests.", "lab.")) and not one.startswith((package, *BELOW[package]))
    ]
    assert above == []


def test_what_runs_in_the_guest_needs_nothing_else_there() -> None:
    strangers = {one for name in SOURCES if name.startswith(GUEST) for one in imported(name)}
    allowed = {*sys.stdlib_module_names, "_sha2", "_sha256"}
    assert {one for one in strangers if one.split(".")[0] not in allowed and not one.startswith(GUEST)} == set()


def test_functions_fit_on_a_screen() -> None:
    too_long = [
        f"{name}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert too_long == []
