# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What must name every module does, and names nothing else."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from ansible.plugins.loader import action_loader, connection_loader, module_loader

from ansible_collections.qemu.guest.plugins.plugin_utils._action import ActionModule
from ansible_collections.qemu.guest.tests.unit.documentation import COLLECTION, MODULES, fragment

RUNTIME = yaml.safe_load((COLLECTION / "meta" / "runtime.yml").read_text())
GALAXY = yaml.safe_load((COLLECTION / "galaxy.yml").read_text())
README = COLLECTION / "README.md"
DOCUMENTS = sorted(
    path for path in (COLLECTION / "docs").glob("*.md") if f"docs/{path.name}" not in GALAXY["build_ignore"]
)


def test_action_group_has_every_module() -> None:
    assert sorted(RUNTIME["action_groups"]) == ["qga"]
    assert RUNTIME["action_groups"]["qga"] == MODULES
    assert fragment("qemu.guest.attributes")["attributes"]["action_group"]["membership"] == ["qemu.guest.qga"]


def test_every_module_has_its_action() -> None:
    assert sorted(path.stem for path in (COLLECTION / "plugins" / "action").glob("*.py")) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_ansible_finds_the_module_and_its_action(name: str) -> None:
    module = module_loader.find_plugin_with_context(f"qemu.guest.{name}")
    assert module.resolved and module.plugin_resolved_path.endswith(f"/plugins/modules/{name}.py")
    assert action_loader.get(f"qemu.guest.{name}", class_only=True) is not None
    assert issubclass(action_loader.get(f"qemu.guest.{name}", class_only=True), ActionModule)


def test_ansible_finds_the_connection() -> None:
    assert connection_loader.get("qemu.guest.qga", class_only=True).transport == "qemu.guest.qga"


def test_checkout_offers_the_plugins_by_their_short_names_too() -> None:
    config = ConfigParser()
    config.read(COLLECTION / "ansible.cfg")
    assert config["defaults"]["library"] == "plugins/modules"
    assert config["defaults"]["action_plugins"] == "plugins/action"
    assert config["defaults"]["collections_path"].split(":")[0] == ".dev/collections"
    link = COLLECTION / ".dev" / "collections" / "ansible_collections" / "qemu" / "guest"
    assert link.is_symlink() and link.resolve() == COLLECTION.resolve()


def test_oldest_core_is_the_same_everywhere() -> None:
    assert RUNTIME["requires_ansible"] == ">=2.16.0"


def test_addresses_are_in_galaxy_yml_only() -> None:
    addresses = [GALAXY[name] for name in ("repository", "issues", "documentation", "homepage")]
    for path in (README, *DOCUMENTS):
        text = path.read_text(encoding="utf-8")
        assert not [address for address in addresses if address in text], path


def test_readme_has_the_sections_of_certified_collections_and_no_relative_link() -> None:
    text = README.read_text(encoding="utf-8")
    assert [
        section for section in re.findall(r"^## (.*)$", text, re.MULTILINE) if section not in ("Limits", "Trust")
    ] == [
        "Description",
        "Requirements",
        "Installation",
        "Use Cases",
        "Testing",
        "Contributing",
        "Support",
        "Release Notes and Roadmap",
        "Related Information",
        "License Information",
    ]
    assert all(link.startswith("https://") for link in re.findall(r"\]\((.*?)\)", text))


def test_commands_of_a_checkout_are_told_to_contributors_only() -> None:
    told = r"\bmake [a-z]+\b|\btests/|\blab\b"
    before = README.read_text(encoding="utf-8").partition("## Contributing")[0]
    assert not re.findall(rf"`[^`]*(?:{told})[^`]*`", before)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_document_links_to_what_the_artifact_has(path: Path) -> None:
    links = re.findall(r"\]\((?!https://)([^)#]+)", path.read_text(encoding="utf-8"))
    assert {path.parent / link for link in links} <= {*DOCUMENTS, path.parent / "benchmarks.svg"}
