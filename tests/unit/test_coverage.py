# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of commands: each has a module that uses it, and a target.

That the target does make an agent run it is seen when it runs (run_target in tests/integration/harness.py).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import schema
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandError
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.tests.integration.commands import (
    COVERED,
    DOCUMENT,
    TABLE,
    TARGETS,
    document,
    seed_commands,
)
from ansible_collections.qemu.guest.tests.integration.harness import worked
from ansible_collections.qemu.guest.tests.unit.documentation import COLLECTION
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails, swallows
from lab.tally import Tally

PLUGINS = COLLECTION / "plugins"
# Names every command, whoever uses it.
SCHEMA = PLUGINS / "module_utils" / "_agent" / "schema.py"


def sources(path: Path, seen: set[Path]) -> Iterator[ast.Module]:
    """Yield the module at `path` and all of the collection's that it imports, but for the schema."""
    if path in seen or path == SCHEMA or not path.is_file():
        return
    seen.add(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and ".plugins.module_utils" in node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                yield from sources(PLUGINS / f"{name.rpartition('.plugins.')[2].replace('.', '/')}.py", seen)


def texts(module: str) -> set[str]:
    trees = sources(PLUGINS / "modules" / f"{module}.py", set())
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("command", TABLE)
def test_command_has_a_module_that_uses_it_and_a_target(command: str) -> None:
    covered = TABLE[command]
    # qga_command runs what it is told to.
    assert covered.module == "qga_command" or command in texts(covered.module)
    assert (TARGETS / covered.target / "tasks" / "main.yml").is_file()


def test_texts_are_those_that_a_module_uses() -> None:
    assert "guest-file-seek" in texts("qga_file")
    assert "guest-exec" not in texts("qga_ping")
    assert texts("qga_no_such_module") == set()


def test_table() -> None:
    assert len(TABLE) == sum(1 for covered in COVERED for _command in covered), "no command is there twice"
    assert len(seed_commands()) == 23
    assert seed_commands() <= set(TABLE)
    # Known to agents on Windows only.
    assert set(schema.COMMANDS) - set(TABLE) == {"guest-get-devices"}


def test_document_is_what_the_table_says() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run tests/tools/commands"


def test_what_is_seen_of_a_command(tmp_path: Path, scripted: Callable[..., Scripted]) -> None:
    """A relay tells what the agent did from what it refused, and some commands answer only when they fail."""
    big = {"keys": ['"error": {"return": '] * 100_000}
    server = scripted({"guest-ssh-get-authorized-keys": big})
    server.then("guest-fstrim", fails("no"))
    server.then("guest-shutdown", swallows)
    server.then("guest-suspend-ram", fails("no"))
    relay = tmp_path / "relay"
    with Tally(relay, server.path) as tally, SocketAgent(Address("unix", path=str(relay)), 20) as agent:
        agent.execute("guest-ping")
        assert agent.execute("guest-ssh-get-authorized-keys", {"username": "root"}) == big
        for command in ("guest-fstrim", "guest-suspend-ram"):
            with pytest.raises(CommandError, match="no"):
                agent.execute(command)
        agent.execute("guest-shutdown")
    counts = dict(tally.counts)
    assert {command for command, count in counts.items() if worked(command, count)} == {
        "guest-sync-delimited",
        "guest-ping",
        "guest-ssh-get-authorized-keys",
        "guest-shutdown",
    }
    assert {"guest-fstrim", "guest-suspend-ram"} <= set(counts)
    assert (counts["guest-ssh-get-authorized-keys"].returned, counts["guest-ssh-get-authorized-keys"].refused) == (1, 0)
