# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task sees what a new process sees, whatever has changed since the interpreter was started."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import client
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import fingerprint, fresh
from ansible_collections.qemu.guest.tests.unit.warm import COMMAND, LIBRARIES, module, plain, warmed

LOOK = """
import builtins, sys, time
try:
    import extra
    found = extra.VALUE
except ImportError:
    found = None
print(found, sys.prefix, time.tzname, getattr(builtins, 'LEFT', None), asks.HAS, uses.HAS)
"""
ASKS = {
    **LIBRARIES,
    "ansible/module_utils/asks.py": "try:\n    import extra\nexcept ImportError:\n    HAS = None\n"
    "else:\n    HAS = extra.VALUE\n",
    "ansible/module_utils/uses.py": "from ansible.module_utils.asks import HAS\n",
    "ansible/modules/work.py": "from ansible.module_utils import library, other, asks, uses\n",
}


class Place:
    """An environment of Python's own, in which things change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], check=True)
        self.python = f"{directory}/venv/bin/python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = directory / "venv/lib" / version / "site-packages"
        self.user = directory / "user"
        self.user_site = self.user / "lib" / version / "site-packages"
        self.zone = directory / "zone"
        self.zone.write_bytes(Path("/usr/share/zoneinfo/Europe/Berlin").read_bytes())

    def module_appears(self) -> None:
        (self.site / "extra.py").write_text("VALUE = 1\n")

    def module_is_changed(self) -> None:
        (self.site / "extra.py").write_text("VALUE = 'another'\n")

    def path_file_appears(self) -> None:
        (self.directory / "elsewhere").mkdir()
        (self.directory / "elsewhere/extra.py").write_text("VALUE = 2\n")
        (self.site / "more.pth").write_text(f"{self.directory}/elsewhere\n")

    def path_file_with_code_appears(self) -> None:
        (self.site / "more.pth").write_text("import builtins; builtins.LEFT = 'by a line of a .pth file'\n")

    def sitecustomize_appears(self) -> None:
        (self.site / "sitecustomize.py").write_text("import builtins\nbuiltins.LEFT = 'by sitecustomize'\n")

    def zone_is_changed(self) -> None:
        new = self.directory / "new zone"
        new.write_bytes(Path("/usr/share/zoneinfo/Asia/Tokyo").read_bytes())
        new.replace(self.zone)

    def settings_are_changed(self) -> None:
        path = self.directory / "venv/pyvenv.cfg"
        path.write_text(path.read_text().replace("system-site-packages = false", "system-site-packages = true"))

    def interpreter_is_replaced(self) -> None:
        """By one that says so."""
        path = Path(self.python)
        real = path.resolve()
        path.unlink()
        path.write_text(f"#!/bin/sh\nA_NEW=one exec {real} -c 'print(\"new\")'\n")
        path.chmod(0o755)


CHANGES = {name: value for name, value in vars(Place).items() if not name.startswith("_")}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_between_two_tasks(
    agent: Runner, warm: WarmPython, place: Place, change: Callable[[Place], None]
) -> None:
    command = f"TZ=:{place.zone} {place.python}"
    program = module(LOOK, ASKS)
    if change is Place.module_is_changed:
        place.module_appears()
    warmed(warm, command, program)
    before = plain(agent, program, command)
    for _time in range(2):
        result = warm.run(command, program)
        assert result and result.stdout == before.stdout
    change(place)
    expected = plain(agent, program, command)
    if change is not Place.settings_are_changed:
        assert expected.stdout != before.stdout, "it is a change"
    for _time in range(2):
        result = warm.run(command, program) or plain(agent, program, command)
        assert (result.rc, result.stdout, result.stderr) == (expected.rc, expected.stdout, expected.stderr)


def test_usercustomize_is_run_by_each_task_and_not_by_what_stays(
    agent: Runner, warm: WarmPython, tmp_path: Path
) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    python = os.path.realpath(sys.executable)  # in an environment of its own, Python has no user's site
    command = f"PYTHONUSERBASE={tmp_path} {python}"
    program = module("import os; print(os.environ.get('CUSTOM'), flush=True)")
    warmed(warm, command, program)
    for value in ("first", "second"):
        (packages / "usercustomize.py").write_text(
            f"import os\nos.environ['CUSTOM'] = {value!r}\n"
            f"open({str(tmp_path / 'ran')!r}, 'a').write(f'{{os.getpid()}} ')\n"
        )
        shutil.rmtree(packages / "__pycache__", ignore_errors=True)
        (tmp_path / "ran").write_text("")
        result = warm.run(command, program)
        assert result and result.stdout == f"{value}\n".encode()
        assert len((tmp_path / "ran").read_text().split()) == 1, "in the task's own process"


@pytest.mark.parametrize("status", [0, 3])
def test_site_that_exits(agent: Runner, warm: WarmPython, place: Place, status: int) -> None:
    """No task of that interpreter is run, and each says why."""
    program = module("print('ran')")
    warmed(warm, place.python, program)
    (place.site / "sitecustomize.py").write_text(f"import sys\nsys.exit({status})\n")
    for result in (plain(agent, program, place.python), warm.run(place.python, program)):
        assert result and (result.rc, result.stdout) == (1, b"")
        for words in (b"Failed to import the site module\n", b"SystemExit: %d\n" % status):
            assert words in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        f"PYTHONPATH=/nothing {COMMAND}",
        f"/bin/sh -c 'PYTHONWARNINGS=ignore::no.such.Warning {COMMAND}'",
    ],
)
def test_interpreter_that_would_run_code_of_others_as_it_starts_does_not_stay(
    agent: Runner, warm: WarmPython, command: str
) -> None:
    warmed(warm)
    for _time in range(2):
        assert warm.run(command, module("")) is None
    assert warm.run(COMMAND, module("")), "others do"


@pytest.mark.parametrize(
    "command",
    [
        "sudo -H -S -i -u one /bin/sh -c 'echo BECOME-SUCCESS-x ; /usr/bin/python3'",
        "sudo -Hi -u one /bin/sh -c 'echo x ; /usr/bin/python3'",
        "sudo --login -u one /bin/sh -c 'echo x ; /usr/bin/python3'",
        """su - one -c '/bin/sh -c '"'"'echo x ; /usr/bin/python3'"'"''""",
        "su -l one -c '/usr/bin/python3'",
        "/bin/sh -c '/bin/sh -lc \"/usr/bin/python3\"'",
    ],
)
def test_login_shells_are_known(command: str) -> None:
    assert client._is_login(command)


@pytest.mark.parametrize(
    "command",
    [
        "/usr/bin/python3",
        "A='-l' B=-i /usr/bin/python3",
        "sudo -H -S -n -u one /bin/sh -c 'echo BECOME-SUCCESS-x ; /usr/bin/python3'",
        "sudo -H -S -p '[sudo via ansible, key=x] password:' -u one /bin/sh -c 'echo x ; /usr/bin/python3'",
        """su  one -c '/bin/sh -c '"'"'echo x ; /usr/bin/python3'"'"''""",
    ],
)
def test_other_shells_are_not_taken_for_login_shells(command: str) -> None:
    assert not client._is_login(command)


def test_what_a_login_shell_reads_is_read_by_each_task(agent: Runner, warm: WarmPython, tmp_path: Path) -> None:
    warmed(warm)
    command = f"HOME={tmp_path} /bin/sh -lc '{COMMAND}'"
    for value in ("first", "second"):
        (tmp_path / ".profile").write_text(f"export SAID={value}\n")
        program = module("import os; print(os.environ['SAID'])")
        result = warm.run(command, program) or plain(agent, program, command)
        assert result.stdout == f"{value}\n".encode()


def test_what_stays_keeps_no_directory(agent: Runner, warm: WarmPython, tmp_path: Path) -> None:
    command = f"cd {tmp_path} && {COMMAND}"
    program = module("import os; print(os.getcwd(), os.readlink(f'/proc/{os.getppid()}/cwd'))")
    warmed(warm, command, program)
    result = warm.run(command, program)
    assert result and result.stdout == f"{tmp_path} /\n".encode()


def test_library_that_was_replaced_is_seen(tmp_path: Path) -> None:
    """As by an upgrade of libc."""
    source = next(Path(sysconfig.get_config_var("DESTSHARED")).glob("_json*.so"))
    library = tmp_path / "library.so"
    shutil.copy(source, library)
    ctypes.CDLL(str(library))
    its = fingerprint.Fingerprint()
    assert str(library) in its.seen
    assert not its.changed()
    shutil.copy(source, tmp_path / "new")
    (tmp_path / "new").replace(library)
    assert its.changed()
    assert fingerprint.Fingerprint().changed(), "of one that begins only then, too: what it has mapped is gone"


@pytest.mark.parametrize("what", ["LOCALES", "CRYPTO"])
def test_what_is_read_once_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    import ssl  # noqa: F401 - what is watched is of it

    path = tmp_path / "file"
    monkeypatch.setattr(fingerprint, what, (str(path),))
    its = fingerprint.Fingerprint()
    if its.changed():  # of a test before
        its.lost = False
    assert not its.changed()
    path.write_text("new")
    assert its.changed()


def test_library_that_goes_before_another_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in /usr/local/lib: the one that is loaded stays as it was. Others that are installed concern nobody."""
    links = tmp_path / "ld.so.cache"
    links.write_bytes(b"glibc-ld.so.cache1.1\0/lib/libc.so.6\0")
    monkeypatch.setattr(fingerprint, "LINKS", str(links))
    its = fingerprint.Fingerprint()
    its.lost = False  # it is, where a test before has replaced a library
    assert not its.changed()
    links.write_bytes(b"glibc-ld.so.cache1.1\0/lib/libqgaother.so.1\0/lib/libc.so.6\0")
    assert not its.changed()
    links.write_bytes(b"glibc-ld.so.cache1.1\0/lib/libqgaother.so.1\0/usr/local/lib/libc.so.6\0/lib/libc.so.6\0")
    assert its.changed()
    assert not its.lost


def test_host_name_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    real = platform.node()
    monkeypatch.setattr(platform, "_uname_cache", platform.uname()._replace(node="old"))
    assert platform.node() == "old"
    monkeypatch.setattr(sys, "path", [*sys.path])
    fresh.renew()
    assert platform.node() == real
