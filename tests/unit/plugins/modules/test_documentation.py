# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the documentation says of a module is what the module does."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import yaml

from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation
from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec
from ansible_collections.qemu.guest.tests.unit.documentation import (
    COLLECTION,
    MODULES,
    documentation,
    examples,
    fragment,
    module,
)

each_module = pytest.mark.parametrize("name", MODULES)

# What a fragment must say for a module whose operation only reads, and what the others say themselves.
READS = "qemu.guest.attributes.reads"


def spec(name: str) -> dict[str, Any]:
    return argument_spec(module(name).OPERATION)


def test_there_are_modules() -> None:
    assert "qga_info" in MODULES


@each_module
def test_options(name: str) -> None:
    documented = {
        option: {
            "type": about.get("type", "str"),
            "elements": about.get("elements"),
            "required": about.get("required", False),
            "default": about.get("default"),
            "choices": about.get("choices"),
        }
        for option, about in documentation(name)["options"].items()
    }
    implemented = {
        option: {
            "type": about.get("type", "str"),
            "elements": about.get("elements"),
            "required": about.get("required", False),
            "default": about.get("default"),
            "choices": about.get("choices"),
        }
        for option, about in spec(name).items()
    }
    assert documented == implemented


@each_module
def test_every_option_is_described_in_sentences(name: str) -> None:
    for option, about in documentation(name)["options"].items():
        assert about["description"], option
        for sentence in about["description"]:
            assert sentence.endswith("."), (option, sentence)


@each_module
def test_return_values(name: str) -> None:
    for value, about in yaml.safe_load(module(name).RETURN).items():
        assert {"description", "type", "returned", "sample"} - {"sample"} <= set(about), value
        if about["type"] == "list":
            assert "elements" in about, value


@each_module
def test_examples_use_options_that_exist(name: str) -> None:
    tasks = examples(name)
    assert tasks
    for task in tasks:
        (action,) = (key for key in task if key.startswith("qemu.guest."))
        assert action == f"qemu.guest.{name}"
        aliases = {alias for option in spec(name).values() for alias in option.get("aliases", ())}
        assert set(task[action] or ()) <= {*spec(name), *aliases}, task["name"]


@each_module
def test_module_is_an_operation(name: str) -> None:
    """Documentation, SPEC, read, plan, apply, OPERATION, and a main() of one line."""
    source = module(name)
    assert isinstance(source.OPERATION, Operation)
    assert source.OPERATION.spec is source.SPEC
    text = ast.parse((COLLECTION / "plugins" / "modules" / f"{name}.py").read_text())
    (main,) = (node for node in text.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert ast.unparse(main.body[0]) == "run_module(OPERATION)" and len(main.body) == 1


@each_module
def test_module_knows_neither_json_nor_sockets_nor_how_tasks_fail(name: str) -> None:
    text = ast.parse((COLLECTION / "plugins" / "modules" / f"{name}.py").read_text())
    for node in ast.walk(text):
        if isinstance(node, ast.Import):
            assert not {"json", "socket"} & {alias.name for alias in node.names}
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and ast.unparse(node.type) != "Exception"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("fail_json", "exit_json")


@each_module
def test_name_and_version(name: str) -> None:
    about = yaml.safe_load(module(name).DOCUMENTATION)
    assert about["module"] == name
    assert about["version_added"]
    assert not about["short_description"].endswith(".")


@each_module
def test_attributes(name: str) -> None:
    """All of the collection's attributes are answered for, by the module or by the fragment of those that read."""
    about = yaml.safe_load(module(name).DOCUMENTATION)
    used = about["extends_documentation_fragment"]
    assert {"qemu.guest.agent", "qemu.guest.attributes"} <= set(used)
    answered = {**(fragment(READS)["attributes"] if READS in used else {}), **about.get("attributes", {})}
    for attribute, common in fragment("qemu.guest.attributes")["attributes"].items():
        if "support" not in common:  # the same for all modules
            assert answered[attribute]["support"] in ("full", "partial", "none", "N/A")


@each_module
def test_options_named_elsewhere_exist(name: str) -> None:
    operation = module(name).OPERATION
    assert set(operation.quiet) | set(operation.local_files) <= set(operation.spec)
    for kind, groups in operation.constraints.items():
        for group in groups:
            named = {group[0], *group[2]} if kind == "required_if" else set(group)
            assert named <= set(operation.spec)


def test_fragment_of_the_address_has_the_options_of_every_module() -> None:
    empty = Operation({}, lambda agent, params: None, lambda current, params: None)  # type: ignore[arg-type, return-value]
    assert set(fragment("qemu.guest.agent")["options"]) == set(argument_spec(empty))
