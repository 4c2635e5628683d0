# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scripts of tests/tools, on a machine that has one version of Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Notes what is asked of it, and makes environments of nothing.
UV = """#!/bin/sh
echo "$@" >>"$LOG"
[ "$1" = venv ] || exit 0
for target; do :; done
mkdir -p "$target/bin"
for name in python ansible-galaxy; do
    printf '#!/bin/sh\\n' >"$target/bin/$name"
    chmod +x "$target/bin/$name"
done
"""


class Machine:
    """A machine with the programs of this one, but with one version of Python and with that uv."""

    def __init__(self, directory: Path, python: str) -> None:
        self.python = directory / "bin" / f"python{python}"
        self.cache = directory / "cache"
        self._uv_log = directory / "uv.log"
        self._uv_log.touch()
        (directory / "bin").mkdir()
        for name in ("/usr/bin", "/bin"):
            for program in Path(name).iterdir():
                here = directory / "bin" / program.name
                if not program.name.startswith("python") and not here.exists():
                    here.symlink_to(program)
        answer = f'case "$2" in *executable*) echo {self.python} ;; *version*) echo {python} ;; esac'
        write(self.python, f"#!/bin/sh\n{answer}\n")
        (directory / "bin" / "python3").symlink_to(self.python)
        write(self.cache / "bootstrap" / "bin" / "uv", UV)
        self._environment = {
            "PATH": str(directory / "bin"),
            "HOME": str(directory),
            "QEMU_GUEST_CACHE": str(self.cache),
            "QEMU_GUEST_RESULTS": str(directory / "results"),
            "LOG": str(self._uv_log),
        }

    def run(self, *command: str) -> str:
        bash = shutil.which("bash") or "bash"
        argv = [bash, "-c", 'source tests/tools/common.sh; "$@"', "test", *command]
        run = subprocess.run(argv, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        return run.stdout + run.stderr

    @property
    def asked(self) -> str:
        return self._uv_log.read_text()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_artifact_is_built_with_the_python_that_is_here(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "3.11")
    output = machine.run("tests/tools/stages/build")
    assert "python install" not in machine.asked, "that downloads"
    assert f"venv --quiet --python {machine.python} {machine.cache}/venvs/lint-" in machine.asked
    assert "asking uv" not in output
    assert "not installed with core 2.19, which has no environment: tests/tools/venv core-2.19" in output


def test_no_python_that_builds(tmp_path: Path) -> None:
    output = Machine(tmp_path, "3.8").run("tests/tools/stages/build")
    assert "this environment needs one of Python 3.13 3.12 3.11 and none is here; install it" in output


def test_steps_beside_each_other(tmp_path: Path) -> None:
    """A check of several commands fails with the first that does, and the stage knows."""
    machine = Machine(tmp_path, "3.11")
    check = "halves() { false; echo went on; }; whole() { echo fine; }"
    functions = "one() { step first halves; step second whole; }; other() { step third whole; }"
    output = machine.run("eval", f'{check}; {functions}; all_at_once other one; echo "failed: $failed_steps"')
    assert "first " in output and "failed: 1" in output and "went on" not in output
    assert sorted((tmp_path / "results" / "steps.tsv").read_text().splitlines()) == [
        "failed\tfirst",
        "passed\tsecond",
        "passed\tthird",
    ]
