# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role says of itself is what it has, and its runner is the one that the connection looks for."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ansible_collections.qemu.guest.plugins.plugin_utils._runner import bootstrap, executor
from ansible_collections.qemu.guest.tests.unit.documentation import COLLECTION

ROLE = COLLECTION / "roles" / "guest_prep"


def load(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text(encoding="utf-8"))


DEFAULTS = load("defaults/main.yml")
OPTIONS = load("meta/argument_specs.yml")["argument_specs"]["main"]["options"]
VARS = load("vars/main.yml")


def test_options() -> None:
    assert {name: option["default"] for name, option in OPTIONS.items()} == DEFAULTS
    for option in OPTIONS.values():
        assert all(sentence.endswith(".") for sentence in option["description"])


def test_readme_has_every_option() -> None:
    rows = re.findall(r"^\| `(guest_prep_\w+)` \|", (ROLE / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(OPTIONS)


def test_commands_are_those_of_the_connection() -> None:
    assert {"guest-exec", "guest-exec-status", *executor._FILE, "guest-file-seek", "guest-file-flush"} == set(
        DEFAULTS["guest_prep_rpcs"]
    )


def test_runner_is_started_as_on_demand() -> None:
    argv = " ".join(VARS["guest_prep_runner_argv"]).replace("{{ guest_prep_runner_directory }}/runner", "{new}")
    assert f"{argv} {executor.IDLE_SECONDS}" == bootstrap._RUN
    relieve = (ROLE / "tasks" / "relieve.yml").read_text(encoding="utf-8")
    assert f"guest_prep_runner_argv + ['{executor.IDLE_SECONDS}', 'over']" in relieve


def test_programs_of_the_runner_s_unit_have_what_a_login_has() -> None:
    """Whether the role has installed it, or it was started on demand: no signal is ignored, for one."""
    unit = (ROLE / "templates" / "qemu-guest-runner.service.j2").read_text(encoding="utf-8").splitlines()
    for line in ("IgnoreSIGPIPE=no", "OOMPolicy=continue", "TasksMax=infinity", "KillMode=process"):
        assert line in unit and f"--property={line}" in bootstrap._OUTLIVES.split()


def test_runner_that_is_installed_is_that_of_the_connection() -> None:
    source = re.search(r'src: "{{ role_path }}/(.*/runner\.sh)"', (ROLE / "tasks" / "runner.yml").read_text("utf-8"))
    assert source
    assert (ROLE / source[1]).read_text(encoding="ascii") == executor.program()


def test_nothing_but_what_core_and_this_collection_have() -> None:
    """The collection depends on no other."""
    actions = set()
    for path in (*ROLE.glob("tasks/*.yml"), *ROLE.glob("handlers/*.yml")):
        actions |= set(re.findall(r"^ *(\w+\.\w+\.\w+):", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert actions
    assert all(action.startswith("ansible.builtin.") for action in actions - {"qemu.guest.qga_ping"})
