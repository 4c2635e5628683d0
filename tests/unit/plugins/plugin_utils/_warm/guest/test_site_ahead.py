# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Site runs while the next task is awaited, if nobody can tell the difference."""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import fingerprint, site_ahead
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.site_ahead import Site
from ansible_collections.qemu.guest.tests.unit.warm import module, warmed

# How many seconds before the module site has run, by its customization.
AGE = "import os, time; print(time.monotonic() - float(os.environ['SITE_RAN_AT']), flush=True)"
RAN = "import os, time\nos.environ['SITE_RAN_AT'] = str(time.monotonic())\n"
PAUSE = 0.3

pytestmark = pytest.mark.skipif(not hasattr(sys, "addaudithook"), reason="Python 3.7 has no audit events")


class Environment:
    """A virtual environment of Python, whose site can be customized."""

    def __init__(self, directory: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], check=True)
        self.python = f"{directory}/venv/bin/python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = directory / "venv/lib" / version / "site-packages"

    def customize(self, code: str) -> None:
        (self.packages / "sitecustomize.py").write_text(RAN + code)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def ages(warm: WarmPython, command: str, tasks: int = 4) -> list[float]:
    """Return how long before its module site has run, for each of so many tasks, with a pause before each."""
    found = []
    for _task in range(tasks):
        time.sleep(PAUSE)
        result = warm.run(command, module(AGE))
        assert result and result.rc == 0, result
        found.append(float(result.stdout.splitlines()[-1]))
    return found


# Sends scouts until one has found out something, and prints that.
SCOUTS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.fresh import SiteRun
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.site_ahead import Site
del sys.path[0]
site = Site(SiteRun)
while not site.state and site.scouts:
    site.send_scout(lambda: None)
    while site.reports >= 0:
        site.listen()
    time.sleep(0.1)
print(site.may_run_ahead)
"""
DEBIAN = "try:\n    import apport_python_hook\nexcept ImportError:\n    pass\nelse:\n    apport_python_hook.install()\n"


@pytest.mark.parametrize(
    ("file", "content", "ahead"),
    [
        ("", "", True),
        ("more.pth", "/somewhere\n# a comment\n", True),
        ("more.pth", "import os\n", False),
        ("sitecustomize.py", "", False),
        ("sitecustomize.py", DEBIAN, False),  # where Debian has none
    ],
)
def test_site_without_code_of_others_runs_in_advance(
    file: str, content: str, ahead: bool, environment: Environment
) -> None:
    if file:
        (environment.packages / file).write_text(content)
    collections = Path(site_ahead.__file__).parents[7]
    command = [environment.python, "-S", "-c", SCOUTS, str(collections)]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="ascii", check=True)
    assert done.stdout == f"{ahead}\n"


@pytest.mark.parametrize(
    ("file", "source", "known"),
    [
        ("sitecustomize.py", DEBIAN, True),
        ("sitecustomize.py", "import os\n", False),
        ("sitecustomize.py", DEBIAN + "def install():\n    pass\n", False),
        ("json/decoder.py", "import os\n", True),
        ("site-packages/json.py", "", False),
        ("../json.py", "", False),
    ],
)
def test_code_of_the_standard_library_is_known(file: str, source: str, known: bool) -> None:
    path = os.path.normpath(os.path.dirname(os.__file__) + "/" + file)
    assert site_ahead.is_known(compile(source, path, "exec")) == known


@pytest.mark.parametrize(
    "code",
    [
        "open({effect!r}, 'a').write('.')",
        "os.mkdir({effect!r} + str(os.getpid()))",
        "os.mkfifo({effect!r} + str(os.getpid()))",
        "__import__('signal').alarm(2)",
        "import builtins; builtins.KEPT = open(__file__)",
        "os.system('echo . >>' + {effect!r})",
        "import subprocess; subprocess.run('echo . >>' + {effect!r}, shell=True)",
        "import threading; t = threading.Thread(target=print); t.start(); t.join(); del t",
        "print('said')",
        "import sys; sys.stderr.write('said')",
        "os.getcwd()",
        "os.chdir('/tmp')",
        "os.stat('relative')if os.path.exists('relative') else 0",
        "import socket; socket.socket(); del socket",
        "os.listdir()",
        "os.stat(0)",
    ],
)
def test_site_with_code_of_others_runs_with_the_task(
    code: str, warm: WarmPython, environment: Environment, tmp_path: Path
) -> None:
    """And only then: what it does is not done for a task that does not come."""
    effect = tmp_path / "effect"
    environment.customize(code.format(effect=str(effect)))
    warmed(warm, environment.python, module(AGE))
    for file in tmp_path.glob("effect*"):
        file.rmdir() if file.is_dir() else file.unlink()
    assert statistics.median(ages(warm, environment.python)) < PAUSE / 2
    time.sleep(PAUSE)
    done = len(effect.read_text().strip().replace("\n", "")) if effect.exists() else len([*tmp_path.glob("effect*")])
    assert done in (0, 4)
    assert done or "effect" not in code


@pytest.mark.parametrize("change", ["content", "content of the same size and time", "mode"])
def test_file_that_has_changed_is_seen(change: str, tmp_path: Path) -> None:
    path = tmp_path / "more.pth"
    path.write_text("first")
    os.utime(path, (1, 1))
    time.sleep(PAUSE)
    site = Site(lambda: os.stat(path))
    scout(site)
    assert site.may_run_ahead
    if change == "mode":
        path.chmod(0o600)
    else:
        path.write_text("other" if "same" in change else "second")
        os.utime(path, (1, 1))
    assert not site.may_run_ahead


def test_what_is_on_a_filesystem_that_may_go_is_not_read_in_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task may unmount that meanwhile."""
    there = os.path.realpath(__file__)
    site = Site(lambda: os.stat(there))
    scout(site)
    assert site.only_reads
    site.state.clear()
    monkeypatch.setattr(fingerprint, "mount_points", lambda: iter([f"{os.path.dirname(there)}/"]))
    scout(site)
    assert there in site.state
    assert not site.only_reads


def test_file_that_has_just_changed_is_in_doubt(tmp_path: Path) -> None:
    """Another change, in the same tick of the clock, would not show."""
    path = tmp_path / "more.pth"
    path.write_text("")
    site = Site(lambda: os.stat(path))
    scout(site)
    assert not site.state and not site.only_reads
    due = [site.is_to_be_scouted]
    time.sleep(PAUSE)
    due.append(site.is_to_be_scouted)
    assert due == [False, True], "not at once"
    scout(site)
    assert site.only_reads


def test_scouts_are_not_sent_for_ever() -> None:
    """Here what site reads changes each time."""
    site = Site(lambda: None)
    sent = 0
    while site.is_to_be_scouted:
        scout(site)
        site.state = {"/nothing": [1, 2, 3, 4]}
        assert not site.is_same()
        sent, site.next_at = sent + 1, 0.0
    assert sent == 10


def test_scout_ends_with_its_interpreter() -> None:
    """Its user may be about to be removed."""
    site = Site(lambda: select.select([], [], [], 60))
    site.send_scout(lambda: None)
    process = site.scout
    time.sleep(PAUSE)
    site.end_scout()
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    site.note_end(process)
    site.end_scout()  # the number may be another's now


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, MemoryError])
def test_site_that_fails_does_not_run_in_advance(end: type[BaseException]) -> None:
    def run() -> None:
        raise end

    site = Site(run)
    scout(site)
    assert not site.only_reads


def scout(site: Site) -> None:
    """Send a scout and wait for its report."""
    site.send_scout(lambda: None)
    while site.reports >= 0:
        site.listen()
