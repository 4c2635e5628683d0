# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/security.md: each claim names its test, and what it says of the agent's commands is so."""

from __future__ import annotations

import re

import pytest

from ansible_collections.qemu.guest.tests.unit.documentation import COLLECTION
from ansible_collections.qemu.guest.tests.unit.test_coverage import texts

SECURITY = (COLLECTION / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("claimed", sorted(set(re.findall(r"`([^`]+[.]py::[^`]+)`", SECURITY))))
def test_test_that_is_named_beside_a_claim_exists(claimed: str) -> None:
    assert count_of_tests(claimed) == 1


def count_of_tests(claimed: str) -> int:
    """Return how many tests FILE::TEST, or DIRECTORY/FILE::TEST, names."""
    file, _colons, name = claimed.partition("::")
    paths = [path for path in (COLLECTION / "tests").rglob("test_*.py") if f"{path}".endswith(f"/{file}")]
    return sum(len(re.findall(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE)) for path in paths)


def test_test_that_does_not_exist_is_seen() -> None:
    assert count_of_tests("test_security.py::test_test_that_does_not_exist_is_seen") == 1
    assert count_of_tests("test_security.py::test_test_that_does_not_exist") == 0
    assert count_of_tests("security.py::test_test_that_does_not_exist_is_seen") == 0
    assert count_of_tests("test_qga.py::test_documentation_names_the_variables_of_the_options") == 1
    assert count_of_tests("test_hardware.py::test_example") == 1


def test_every_claim_of_a_table_has_its_test() -> None:
    """In tables that have a column for it; what is said before is true without."""
    rows = re.findall(r"^\|(.*)\|$", SECURITY, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    has_column, claims = False, 0
    for number, row in enumerate(cells):
        if number + 1 < len(cells) and set("".join(cells[number + 1])) <= set("-:"):
            has_column = row[-1] == "test"
        elif has_column and set("".join(row)) - set("-:"):
            claims += 1
            assert "::" in row[-1] or row[-1] == "by definition" or row[-1] == "see above", row
    assert claims > 40


NEEDS = dict(re.findall(r"^\| `(qga_\w+)` \| ([^|]*) \| (?:yes|no) \|", SECURITY, re.MULTILINE))


@pytest.mark.parametrize("module", NEEDS)
def test_commands_that_a_module_is_said_to_need_are_those_that_it_uses(module: str) -> None:
    assert set(re.findall(r"guest-[a-z-]+", NEEDS[module])) <= texts(module)


def test_modules_of_which_commands_are_said() -> None:
    assert len(NEEDS) > 10
