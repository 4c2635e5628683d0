# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a server of warm interpreters starts, and the first of them."""

from __future__ import annotations

import fcntl
import functools
import gc
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import login_program
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.spool import Spool
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import bundle, client
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import launch, loader
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.warm import (
    COMMAND,
    LIBRARIES,
    SPOOL,
    STAYS,
    full,
    module,
    plain,
    server_pid,
    until,
    warmed,
    with_archive,
)


def why_it_failed(guest: Guest) -> Path:
    """Return the file that tells why a start failed. The shell writes it after the server has ended."""

    def written() -> list[Path]:
        return [path for path in guest.runner.glob(f"{SPOOL}.*.failed") if path.read_bytes()]

    until(written)
    (failed,) = written()
    return failed


def test_server_that_cannot_is_not_tried_again(
    agent: Runner, warm_with: Callable[..., WarmPython], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = warm_with(start_seconds=60)  # it is not waited for
    began = time.monotonic()
    with monkeypatch.context() as broken:
        broken.setitem(bundle.sources(), "server", "import no_such_module")
        assert warm.run(COMMAND, module("")) is None
    failed = why_it_failed(guest)
    for _attempt in range(5):
        assert warm.run(COMMAND, module("")) is None
    assert time.monotonic() - began < 30
    assert "No module named 'no_such_module'" in failed.read_text()
    assert stat.S_IMODE(failed.stat().st_mode) == 0o600
    assert not (guest.runner / SPOOL).exists()


@pytest.mark.parametrize("end", ["raise OSError(28, 'no room')", "import os, signal; os.kill(os.getpid(), 9)"])
def test_server_without_room_is_tried_again(
    agent: Runner, warm_with: Callable[..., WarmPython], guest: Guest, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """So is one that was killed as it started. The task is run at once, though, the plain way."""
    warm = warm_with(start_seconds=60)
    began = time.monotonic()
    with monkeypatch.context() as broken:
        broken.setitem(bundle.sources(), "server", end)
        assert warm.run(COMMAND, module("")) is None
    assert why_it_failed(guest).read_text().count("\n") == 1, "no reason that would hold"
    assert warm.run(COMMAND, module(""))
    assert time.monotonic() - began < 30


def test_server_that_does_not_come_is_not_waited_for_long(
    warm_with: Callable[..., WarmPython], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = warm_with(start_seconds=0.3)
    monkeypatch.setitem(bundle.sources(), "loader", "import time; time.sleep(2)")
    began = time.monotonic()
    assert warm.run(COMMAND, module("")) is None
    assert 0.3 < time.monotonic() - began < 2


def test_start_that_is_killed_with_its_shell_is_not_waited_for(
    warm_with: Callable[..., WarmPython], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left that could tell of it, again and again: memory is short in the guest."""
    warm = warm_with(start_seconds=3600)
    monkeypatch.setitem(bundle.sources(), "loader", "import time; time.sleep(3600)")
    served, killed = warm._spool.is_served, []

    def kills() -> bool:
        for path in guest.runner.glob(f"{SPOOL}.*.pid"):
            if path not in killed and path.read_text():
                shell = int(path.read_text())
                started = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
                for pid in (shell, *map(int, started)):
                    os.kill(pid, signal.SIGKILL)
                killed.append(path)
        return served()

    monkeypatch.setattr(warm._spool, "is_served", kills)
    for number in (1, 2):
        began = time.monotonic()
        assert warm.run(COMMAND, module("")) is None
        assert time.monotonic() - began < 10 and len(killed) == number


def at_work_in(spool: Path) -> list[int]:
    """Return the processes whose working directory this is, or was."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "cwd").startswith(str(spool)):
                found.append(int(process.name))
    return found


def test_those_who_start_one_at_once(guest: Guest) -> None:
    """As tasks do that follow each other before it is there."""
    tmp_path = Path(guest.place.name)
    for number in range(5):
        spool = tmp_path / f"warm{number}"
        request = client._module_request(f"{COMMAND} -S", "a" * 64, b"", b"")
        starters = []
        for another in range(60):  # from before the first has begun until after its server has
            command, data = client._starter(str(spool), request, sys.executable, another, f"{spool.name}.failed")
            (tmp_path / f"input{another}").write_bytes(data)
            with open(tmp_path / f"input{another}", "rb") as stdin:
                starters.append(subprocess.Popen(["sh", "-c", command], stdin=stdin))
            time.sleep(0.003)
        for starter in starters:
            starter.wait(30)
        end = time.monotonic() + 30
        while not (spool / "pid").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        until(lambda: len(at_work_in(spool)) == 1)  # noqa: B023 - called at once; others may be about to end
        assert at_work_in(spool) == [int((spool / "pid").read_text())], "the one that is there"
        # Of those who were not needed, the last may still be about to remove what it had.
        until(lambda: {path.name for path in tmp_path.glob(f"{spool.name}*")} == {spool.name, f"{spool.name}.lock"})  # noqa: B023 - called at once
        (spool / "ring").write_text("quit\n")
        while spool.exists():
            assert time.monotonic() < end
            time.sleep(0.01)


def test_first_task_runs_in_the_interpreter_that_is_started_for_it(warm: WarmPython, guest: Guest) -> None:
    """And nothing is left of the start."""
    seen = []
    for number in range(2):
        result = warm.run(COMMAND, module(f"import os; print({number}, os.getppid())"))
        assert result
        shown, parent = result.stdout.split()
        assert int(shown) == number
        seen.append(int(parent))
    assert seen[0] == seen[1]
    until(lambda: not list(guest.runner.glob("1/[0-9]*")))
    there = {path.name for path in (guest.runner / SPOOL).iterdir()}
    assert {name for name in there if not name.endswith(".rc")} == STAYS
    assert os.getsid(server_pid(guest)) == server_pid(guest), "what ends the runner's session ends this too"


SEEN = {
    **LIBRARIES,
    "ansible/module_utils/seen.py": "import os\nopen(os.environ['SEEN'], 'a').write(f'{os.getpid()}\\n')\n",
}


def test_libraries_are_imported_before_a_request_comes(guest: Guest) -> None:
    """If the code of them comes that the controller has compiled."""
    place = Path(guest.place.name)
    spool, seen = place / "warm", place / "seen"
    _payload, archive = with_archive(module("", SEEN))
    brought = archive.brought(archive.remembered(), code=True, programs=bundle.code())
    request = client._module_request(f"{COMMAND} -S", archive.digest, b"", b"")
    command, data = client._starter(str(spool), request, COMMAND, 1, "warm.failed")
    (place / "input").write_bytes(data)
    with open(place / "input", "rb") as stdin:
        subprocess.run(["sh", "-c", command], stdin=stdin, env={**os.environ, "SEEN": str(seen)}, check=True)
    Path(f"{spool}.1.parts").write_bytes(brought)
    until(seen.exists)
    until(spool.exists)
    (spool / "ring").write_text("quit\n")
    until(lambda: not spool.exists())
    assert seen.read_text().count("\n") == 1


@pytest.mark.parametrize("late", ["nothing", "cut off", "of another kind"])
def test_start_does_not_depend_on_what_a_client_brings(
    agent: Runner, warm_with: Callable[..., WarmPython], monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    warm = warm_with(quick_seconds=-1)
    write = Spool.write

    def written(spool: Spool, name: str, data: bytes) -> bool:
        if name.startswith("warm"):
            data = {"nothing": b"", "cut off": data[:1000]}.get(late, data)
        return write(spool, name, data)

    monkeypatch.setattr(Spool, "write", written)
    command = f"PYTHONOPTIMIZE=1 {COMMAND}" if late == "of another kind" else COMMAND
    result = warm.run(command, module("print(library.VALUE)"))
    assert result and result.stdout == b"first\n"


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("command", "copied"),
    [
        (COMMAND, True),
        (f"A='1 2' {COMMAND}", True),
        (f"true; {COMMAND}", False),
        (f"LD_PRELOAD=/none.so {COMMAND}", False),
    ],
    ids=["alone", "with an environment", "with something before it", "that says something"],
)
def test_first_interpreter_is_a_copy(agent: Runner, warm: WarmPython, guest: Guest, command: str, copied: bool) -> None:
    """Unless what it says at its start is to be said by each task, or it may be another's."""
    program = module(
        "import os; print(sorted(os.environ), os.getcwd(), os.umask(0));print(sorted(os.listdir('/proc/self/fd')))"
    )
    result, expected = warm.run(command, program), plain(agent, program, command)
    assert result
    assert (result.rc, result.stdout, result.stderr) == (expected.rc, expected.stdout, expected.stderr)
    started = warm.run(command, module("import os; print(os.getppid())"))
    assert started
    # The server starts any other interpreter by a shell.
    assert (parent_of(int(started.stdout)) == server_pid(guest)) is copied
    assert {path.name for path in guest.runner.glob("warm*")} == {SPOOL, f"{SPOOL}.lock"}


STARTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import bundle
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import launch, loader
launch.free_memory = lambda: int(sys.argv[2])
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import start
given, home = json.loads(sys.argv[3]), sys.argv[4]
start.start(loader.Loader(bundle.sources()), given, home, f"{home}.1", "module_runner")
"""


@pytest.mark.parametrize(("free", "runs"), [(0, False), (1 << 40, True)], ids=["full", "free"])
def test_no_interpreter_is_started_without_memory(warm: WarmPython, guest: Guest, free: int, runs: bool) -> None:
    """Neither the first one nor any other."""
    program = module("print('ran')")
    request = client._module_request(f"{COMMAND} -S", with_archive(program)[1].digest, b"", b"")
    given = {"prologue": login_program(), "command": request.command, "path": request.path, "first": request.header()}
    home = guest.runner / SPOOL
    guest.runner.mkdir()
    errors = Path(f"{home}.1.err")
    arguments = [COMMAND, "-c", STARTS, str(Path(launch.__file__).parents[7]), str(free), json.dumps(given), str(home)]
    with errors.open("wb") as stderr, subprocess.Popen(arguments, stderr=stderr) as process:
        try:
            until(home.exists)
            result = warm.run(COMMAND, program)
            assert (result.stdout if result else None) == (b"ran\n" if runs else None)
            assert server_pid(guest) == process.pid, "it serves"
            assert not errors.exists()
        finally:
            process.terminate()


def test_starter_that_was_killed_is_not_in_the_way(
    warm: WarmPython, warm_with: Callable[..., WarmPython], guest: Guest
) -> None:
    """Whatever the guest's clock says; one that is at work is."""
    place = guest.runner / f"{SPOOL}.new"
    place.mkdir(parents=True)
    (place / "pid").write_text("half")
    with open(guest.runner / f"{SPOOL}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert warm_with(start_seconds=0.5).run(COMMAND, module("")) is None
    assert warm.run(COMMAND, module(""))


def test_nothing_stays_open_without_room_for_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a user's processes take all of it."""
    launcher = launch.Launcher(loader.Loader(bundle.sources()), "", ["module_runner"])
    os.umask(launcher.umask)
    launcher.fingerprint.lost = False
    monkeypatch.setattr(os, "fork", full)
    gc.collect()
    before = os.listdir("/proc/self/fd")
    spawn = functools.partial(launcher.spawn, launch.MODULE_RUNNER, "python3", "")
    for start in (spawn, functools.partial(launcher.fork, launch.MODULE_RUNNER)):
        with pytest.raises(OSError, match="no room"):
            start()
        assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("command", "one"),
    [
        ("A='b c;d' B= /usr/bin/python3 -S", True),
        ("""sudo -H -S -p "[sudo], a password:" -u x /bin/sh -c 'echo BECOME-SUCCESS-x ; python3 -S'""", True),
        ("""su  x -c '/bin/sh -c '"'"'echo y ; python3 -S'"'"''""", True),
        ("cd /srv; python3", False),
        ("A=1 && python3", False),
        ('A="$(cat x)" python3', False),
        ("python3 # it", False),
        ("python3\ntrue", False),
    ],
)
def test_command_line_of_one_program_is_known(command: str, one: bool) -> None:
    """Any other has a shell of its own: its parts work in the background, with the same input."""
    assert bool(re.fullmatch(launch.ONE_PROGRAM, command)) is one


@pytest.mark.parametrize("shell", ["dash", "bash", "mksh", "busybox sh", "yash"])
@pytest.mark.parametrize("command", ["A='b' {} -S", "A=b; {} -S"], ids=["one", "list"])
def test_interpreter_is_started_by_every_shell(shell: str, command: str, tmp_path: Path) -> None:
    """It reads its input, and no shell waits in its directory if it is one program."""
    if not shutil.which(shell.split()[0]):
        pytest.skip(f"there is no {shell}")
    own = tmp_path / "own"
    own.mkdir()
    waits = "import os, time; print('here', flush=True); time.sleep(60)\n"
    text = launch.in_background(command.format(shlex.quote(sys.executable)))
    with subprocess.Popen(
        [*shell.split(), "-c", text], cwd=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as started:
        assert started.stdin and started.stdout
        started.stdin.write(waits.encode())
        started.stdin.close()
        try:
            assert started.stdout.readline() == b"here\n"
            processes = [path for path in Path("/proc").glob("[0-9]*/stat") if _session(path) == started.pid]
            there = [path.parent for path in processes if (path.parent / "cwd").resolve() == own]
            assert len(processes) >= 2
            assert command.startswith("A=b;") or shell == "yash" or len(there) == 1
        finally:
            os.killpg(started.pid, signal.SIGKILL)


def _session(path: Path) -> int:
    with suppress(OSError):
        return int(path.read_text().rpartition(") ")[2].split()[3])
    return 0


def test_interpreter_that_is_missing_turns_nothing_else_off(
    agent: Runner, warm: WarmPython, guest: Guest, tmp_path: Path
) -> None:
    """It may come, and others are there."""
    missing = tmp_path / "python3"
    assert warm.run(str(missing), module("")) is None
    assert warm.run(COMMAND, module("")), "another command line has its interpreter"
    missing.symlink_to(COMMAND)
    warmed(warm, str(missing))


def test_interpreter_that_was_missing_is_started_when_it_has_come(
    agent: Runner, warm: WarmPython, guest: Guest, tmp_path: Path
) -> None:
    """Nor is anything said of it, where no server has begun meanwhile."""
    coming = tmp_path / "python3"
    assert warm.run(str(coming), module("")) is None
    coming.symlink_to(COMMAND)
    warmed(warm, str(coming))


def test_command_line_that_cannot_is_told_of_and_turns_nothing_else_off(
    agent: Runner, guest: Guest, tmp_path: Path
) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho no libpython here >&2\nexit 1\n")
    broken.chmod(0o755)
    told: list[str] = []
    warm = WarmPython(agent, lambda line: None, told.append)
    assert warm.run(str(broken), module("")) is None
    assert warm.run(str(broken), module("")) is None
    assert any("no libpython here" in line for line in told)
    assert warm.run(COMMAND, module(""))
    warm.end()


def test_what_serves_and_what_it_starts_have_no_files_of_the_runner(
    agent: Runner, warm: WarmPython, guest: Guest
) -> None:
    """What started it came in a file that everybody may write to who has a descriptor of it."""
    command = f"true; {COMMAND}"  # by a shell, as become has it
    program = module(
        "import os\nfor process in (os.getpid(), os.getppid()):\n"
        "    print([os.readlink(f'/proc/{process}/fd/{n}') for n in sorted(os.listdir(f'/proc/{process}/fd'))"
        " if os.path.exists(f'/proc/{process}/fd/{n}')])"
    )
    warmed(warm, command, program)
    result = warm.run(command, program)
    server = os.listdir(f"/proc/{server_pid(guest)}/fd")
    there = [os.readlink(f"/proc/{server_pid(guest)}/fd/{number}") for number in server]
    assert result
    for text in (result.stdout.decode(), *there):
        assert ".in" not in text and "input" not in text, text
