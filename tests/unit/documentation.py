# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules' documentation says, as data."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

COLLECTION = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (COLLECTION / "plugins" / "modules").glob("[!_]*.py"))


def module(name: str) -> ModuleType:
    return import_module(f"ansible_collections.qemu.guest.plugins.modules.{name}")


def fragment(name: str) -> Any:
    """Return the fragment that modules name ``qemu.guest.NAME`` or ``qemu.guest.NAME.PART``."""
    _namespace, _collection, file, *part = name.split(".")
    plugin = import_module(f"ansible_collections.qemu.guest.plugins.doc_fragments.{file}")
    return yaml.safe_load(getattr(plugin.ModuleDocFragment, part[0].upper() if part else "DOCUMENTATION"))


@cache
def documentation(name: str) -> Any:
    """Return the module's DOCUMENTATION, with the options of its fragments."""
    text = yaml.safe_load(module(name).DOCUMENTATION)
    for used in text.get("extends_documentation_fragment", ()):
        text["options"] = {**fragment(used).get("options", {}), **text["options"]}
    return text


def examples(name: str) -> Any:
    return yaml.safe_load(module(name).EXAMPLES)


@cache
def returned(name: str) -> frozenset[str]:
    """Return the names of the module's return values, and of those that every module may have."""
    return frozenset(yaml.safe_load(module(name).RETURN)) | {"warnings"}
