# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Molecule scenario, from the installed artifact, as docs/molecule.md has a user run it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from ansible_collections.qemu.guest.tests.integration.harness import ROOT, until
from lab import host, image
from lab.vm import KERNEL_LINE

GUIDE = (ROOT / "docs" / "molecule.md").read_text(encoding="utf-8")
COPY, TEST, BY_STEPS = (
    "\n".join(re.findall(r"^\$ (.*)", block, re.MULTILINE))
    for block in re.findall(r"^```console\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
)
(TWO_GUESTS,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)

ALL = ["destroy", "syntax", "create", "prepare", "converge", "idempotence", "verify", "destroy"]
KEPT = {"ansible.cfg", "ansible_inventory.yml", "state.yml"}
"""What Molecule itself keeps of a scenario."""


# One process keeps the channels of all of a user's tasks. Here it has a directory, and so a process, of its own: other
# tests at the same time would keep it, and this one would end theirs.
OWN = 'mkdir -p -m 700 /run/qemu-guest; mount -t tmpfs -o mode=700 own /run/qemu-guest; exec sh -ec "$0"'
SHELL = ["unshare", "--mount", "sh", "-ec", OWN] if os.geteuid() == 0 else ["sh", "-ec"]


@dataclass(frozen=True)
class Project:
    """A user's home, in which a role has its copy of the scenario."""

    home: Path
    environment: dict[str, str]

    @property
    def role(self) -> Path:
        return self.home / "my_role"

    @property
    def scenario(self) -> Path:
        return self.role / "molecule" / "default"

    @property
    def guests(self) -> Path:
        return self.scenario / "inventory" / "guests.yml"

    def run(self, script: str, directory: Path | None = None) -> tuple[int, str]:
        """Run a script, in the role unless told otherwise; return its exit status and its output."""
        done = subprocess.run(
            [*SHELL, script],
            cwd=directory or self.role,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        return done.returncode, done.stdout

    def set_guests(self, text: str, **variables: Any) -> None:
        """Write an inventory whose guests boot an image of the lab, with these variables."""
        source = image.build("sid")
        inventory = yaml.safe_load(text)
        for guest in inventory["guests"]["hosts"].values():
            (guest or {}).pop("qemu_image", None)
        inventory["guests"]["vars"] |= {
            "qemu_image": str(source.disk),
            "qemu_kernel": str(source.kernel),
            "qemu_initrd": str(source.initrd),
            "qemu_append": KERNEL_LINE.replace("ttyS1", "ttyS0"),
            "qemu_args": "-cpu max,cx16=off",
            "qemu_boot_seconds": 600,  # emulated, beside other tests
            **variables,
        }
        self.guests.write_text(yaml.safe_dump(inventory), encoding="utf-8")

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes that have this home, by their number."""
        mark = b"HOME=" + os.fsencode(self.home) + b"\0"
        there = {}
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (directory / "environ").read_bytes():
                    there[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return there

    def files(self) -> set[str]:
        """Return the names of what is left of the scenario and its guests."""
        return {path.name for path in (self.home / ".ansible" / "tmp").rglob("*") if not path.is_dir()}

    def check_nothing_left(self) -> None:
        # What keeps a guest's channel open goes after a few seconds.
        until(lambda: not self.processes(), 30, "nothing runs any more")
        assert self.files() <= KEPT


@pytest.fixture
def project() -> Iterator[Project]:
    host.need("qemu-system-x86_64")
    venv = subprocess.check_output([str(ROOT / "tests" / "tools" / "venv"), "molecule"], text=True).strip()
    # A socket's path must be short, which pytest's own directories are not.
    with TemporaryDirectory(prefix="molecule-") as directory:
        home = Path(directory)
        path = os.pathsep.join([f"{venv}/bin", os.environ.get("PATH", os.defpath)])
        environment = {"HOME": directory, "PATH": path, "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
        project = Project(home, {**environment, "XDG_RUNTIME_DIR": directory})
        (project.role / "tasks").mkdir(parents=True)
        assert project.run(f"ansible-galaxy collection build {ROOT}", home)[0] == 0
        status, output = project.run(COPY, home)
        assert status == 0, output
        project.set_guests(project.guests.read_text(encoding="utf-8"))
        try:
            yield project
        finally:
            for pid in project.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def steps(output: str) -> list[str]:
    """Return what Molecule's summary says: the steps, and how they ended unless well."""
    details = output.rpartition("DETAILS")[2]
    found = re.findall(r"^default > (\w+): Executed: (\w+)", details, re.MULTILINE)
    return [step if outcome == "Successful" else f"{step} {outcome}" for step, outcome in found]


def test_guide_tests_the_example(project: Project) -> None:
    status, output = project.run(TEST)
    assert (status, steps(output)) == (0, ALL), output
    assert "[DEPRECATION WARNING]" not in output, output
    # By step, without syntax.
    assert re.findall(r"^vm1 .* changed=(\d+)", output, re.MULTILINE) == ["0", "2", "0", "2", "0", "0", "2"], output
    project.check_nothing_left()


@pytest.mark.whole
def test_guide_keeps_two_guests_until_destroyed(project: Project) -> None:
    project.set_guests(TWO_GUESTS)
    keep, destroy = BY_STEPS.rsplit("\n", 1)
    status, output = project.run(keep)
    assert status == 0, output
    assert "load average" in output
    running = [line for line in project.processes().values() if line.startswith("qemu-system")]
    assert len(running) == 2
    status, output = project.run(destroy)
    assert (status, steps(output)[-1]) == (0, "destroy"), output
    project.check_nothing_left()


@pytest.mark.whole
def test_role_that_fails_leaves_nothing(project: Project) -> None:
    """The role is found beside the scenario's project, by the name that the guide says to write."""
    converge = project.scenario / "converge.yml"
    converge.write_text(converge.read_text(encoding="utf-8").replace("role: hello", "role: my_role"), encoding="utf-8")
    (project.role / "tasks" / "main.yml").write_text("[{ansible.builtin.command: /bin/false}]", encoding="utf-8")
    status, output = project.run(TEST)
    assert status != 0
    assert steps(output) == [*ALL[:4], "converge Failed", "cleanup Missing", "destroy"], output
    project.check_nothing_left()


@pytest.mark.whole
def test_guest_whose_agent_never_answers_leaves_nothing(project: Project) -> None:
    project.set_guests(project.guests.read_text(encoding="utf-8"), qemu_append="root=/dev/none", qemu_boot_seconds=2)
    elsewhere = "export MOLECULE_EPHEMERAL_DIRECTORY=~/.ansible/tmp/mine; "
    status, output = project.run(elsewhere + "molecule create")
    assert status != 0
    assert "no answer to a sync" in output
    assert any(line.startswith("qemu-system") for line in project.processes().values())
    assert (project.home / ".ansible" / "tmp" / "mine" / "vm1" / "qga").is_socket()
    status, output = project.run(elsewhere + "molecule destroy")
    assert status == 0, output
    project.check_nothing_left()
