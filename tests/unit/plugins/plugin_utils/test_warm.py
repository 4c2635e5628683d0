# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warm Python against plain Python: the interpreter of this machine, by a runner of this machine's shell."""

from __future__ import annotations

import _posixsubprocess
import base64
import ctypes
import errno
import functools
import gzip
import hashlib
import io
import itertools
import json
import mmap
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.qemu.guest.plugins.module_utils._agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._bootstrap import start_runner
from ansible_collections.qemu.guest.plugins.module_utils._errors import OutcomeUnknownError, TransferError
from ansible_collections.qemu.guest.plugins.module_utils._exec import ExecResult
from ansible_collections.qemu.guest.plugins.module_utils._packed import pack_command
from ansible_collections.qemu.guest.plugins.module_utils._packers import GZIP, ZSTD
from ansible_collections.qemu.guest.plugins.module_utils._runner import RunnerAgent
from ansible_collections.qemu.guest.plugins.module_utils._shell import run_shell
from ansible_collections.qemu.guest.plugins.module_utils._spool import Line, Spool
from ansible_collections.qemu.guest.plugins.module_utils._sums import file_command, part_command
from ansible_collections.qemu.guest.plugins.module_utils._transfer import (
    create_command,
    spool_command,
    unpack_command,
    write_command,
)
from ansible_collections.qemu.guest.plugins.module_utils._zstd import Compressor, zstd_decompress
from ansible_collections.qemu.guest.plugins.plugin_utils import (
    _archive,
    _compiled,
    _kind,
    _warm,
    _warm_commands,
    _warm_modules,
    _warm_server,
    _warm_zygote,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._archive import Archive, read_archive
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import WarmPython
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted

SPOOL = Path(_warm._SPOOL).name
# What is there as long as the server is.
STAYS = {"ring", "pid", "modules.py", "commands.py", "prologue"}

LIBRARIES = {
    "ansible/__init__.py": "",
    "ansible/module_utils/__init__.py": "",
    "ansible/module_utils/library.py": "VALUE = 'first'\nSTATE = []\n",
    "ansible/module_utils/other.py": "from ansible.module_utils.library import VALUE\nOTHER = VALUE.upper()\n",
    "ansible/modules/__init__.py": "",
    "ansible/modules/work.py": "from ansible.module_utils import library, other\n",
}

# As ansible-core's own does it: the archive is written to a file that comes first in sys.path.
WRAPPER = """
import base64, os, runpy, shutil, sys, tempfile
def main(zip_data):
    sys.path = [entry for entry in sys.path if entry not in ('', '.')]
    directory = tempfile.mkdtemp()
    path = os.path.join(directory, "ansible_work_payload.zip")
    try:
        with open(path, "wb") as file:
            file.write(base64.b64decode(zip_data))
        sys.path.insert(0, path)
        from ansible.module_utils import library
        runpy.run_module("ansible.modules.work", run_name="__main__", alter_sys=True)
    finally:
        shutil.rmtree(directory)
if __name__ == "__main__":
    main(
zip_data='{}',
)
"""


def module(
    work: str,
    libraries: Mapping[str, str] | None = None,
    when: tuple[int, int, int, int, int, int] = (2026, 1, 2, 3, 4, 6),
) -> bytes:
    """Return what ansible-core would pipe to Python for a module with this program."""
    libraries = libraries or LIBRARIES
    content = {**libraries, "ansible/modules/work.py": libraries["ansible/modules/work.py"] + work}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, source in content.items():
            file.writestr(zipfile.ZipInfo(name, when), source)
    return WRAPPER.format(base64.b64encode(archive.getvalue()).decode()).encode()


@pytest.fixture
def agent(
    guest: Guest, clock: Clock, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> RunnerAgent:
    # Where this machine has systemd, it is not to start anything; and all of this needs real time.
    (guest.tools / "systemd-run").write_text("#!/bin/sh\nexit 1\n")
    (guest.tools / "systemd-run").chmod(0o755)
    clock.on_sleep = lambda: time.sleep(0.005)
    below = connect(scripted(guest.answers()))
    return RunnerAgent(below, functools.partial(start_runner, routes=(), log=lambda line: None))


@pytest.fixture
def warm(agent: RunnerAgent) -> Iterator[WarmPython]:
    made = WarmPython(agent, lambda line: None)
    yield made
    made.end()


COMMAND = sys.executable


def warmed(warm: WarmPython, command: str = COMMAND, program: bytes = b"") -> None:
    """Have an interpreter for the command."""
    until(lambda: warm.run(command, program or module("")))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "that is not so after 60 s"
        time.sleep(0.05)


def plain(agent: RunnerAgent, program: bytes, command: str = COMMAND) -> ExecResult:
    return run_shell(agent, command.encode(), program)


PROGRAMS = {
    "output": "import os\nprint('o'); os.write(1, b'\\xff\\0'); os.write(2, b'e\\n')",
    "exit": "import sys; sys.exit(7)",
    "exit with text": "import sys; sys.exit('no')",
    "exit of nothing": "raise SystemExit",
    "large exit": "raise SystemExit(259)",
    "error": "1 / 0",
    "own excepthook": "import sys\ndef hook(*error):\n    print('caught', *error[:2], bool(error[2])); sys.exit(4)\n"
    "sys.excepthook = hook\n1 / 0",
    "own excepthook that goes on": "import sys\nsys.excepthook = lambda *_: print('caught')\n1 / 0",
    "own excepthook that fails": "import sys\nsys.excepthook = lambda *_: {}[3]\n1 / 0",
    "error in a function": "def f():\n    raise ValueError('x')\nf()",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "os._exit": "import os; print('lost'); os._exit(3)",
    "atexit": "import atexit; atexit.register(print, 'bye')",
    "thread": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    "input": "import sys; print(repr(sys.stdin.read()), sys.stdin.isatty(), sys.stdin.encoding)",
    "arguments": "import sys; print(sys.argv, sys.flags, sys.executable)",
    "path": "import sys; print([entry for entry in sys.path if not entry.endswith('.zip')])",
    "main": "import sys; print(__name__, __package__, sys.modules['__main__'].__name__)",
    "place": "import os; print(os.path.basename(os.path.dirname(os.path.dirname(os.path.dirname(__file__)))))",
    "directory and mask": "import os; print(os.getcwd(), os.umask(0))",
    "environment": "import os; print(sorted(name for name in os.environ if name not in ('_', 'SHLVL')))",
    "descriptors": "import os; print(sorted(int(n) < 4 for n in os.listdir('/proc/self/fd')))",
    "no socket that would close what is not its own": "import gc, socket; gc.unfreeze()\n"
    "print([s for s in gc.get_objects() if isinstance(s, socket.socket) and s.fileno() >= 0])",
    "limits and signals": "import resource, signal; print(resource.getrlimit(resource.RLIMIT_NOFILE), "
    "[signal.getsignal(n) for n in (2, 13, 15, 17)])",
    "library": "print(library.VALUE, other.OTHER)",
    "no such library": "import ansible.module_utils.nothing",
    "child": "import subprocess; print(subprocess.run(['sh', '-c', 'echo $PPID >/dev/null; echo c'], "
    "stdout=subprocess.PIPE).stdout)",
    "program that is not there": "import subprocess; subprocess.run(['/nothing'], preexec_fn=print)",
    "buffered output": "import sys\nfor n in range(3000): print(n)\nprint('e', file=sys.stderr)",
    "long output": "import sys; sys.stdout.write('o' * 200000); sys.stderr.write('e' * 70000)",
    "as much as is kept": "import os; os.write(1, b'o' * 65536); os.write(2, b'e' * 65536)",
    "one more": "import os; os.write(1, b'o' * 65536); os.write(1, b'O'); os.write(2, b'e')",
    "syntax error": "def f(:",
    "standard library": "import plistlib, glob\nimport sndhdr_is_none_such",
    "closed output": "import sys, os\nprint('x'); sys.stdout.flush(); os.close(1); sys.stdout.write('y')",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_same_as_plain(agent: RunnerAgent, warm: WarmPython, program: str) -> None:
    warmed(warm)
    payload = module(program)
    for _time in range(2):  # before and after its code is known
        result = warm.run(COMMAND, payload)
        expected = plain(agent, payload)
        assert result is not None
        assert (result.rc, without_paths(result.stdout)) == (expected.rc, without_paths(expected.stdout))
        # A shell that waits for a program says by which signal it ended; here no shell waits.
        said = without_paths(expected.stderr) if expected.rc != 128 + signal.SIGKILL else b""
        assert without_paths(result.stderr) == said


FAILS = {**LIBRARIES, "ansible/module_utils/fails.py": "import json\n\n\ndef fail():\n    return json.nothing + 1\n"}


@pytest.mark.parametrize("other", ["", "quick", "name", "kind"])
def test_what_the_controller_has_compiled(
    agent: RunnerAgent, warm: WarmPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Of the same kind or not, a traceback names the same lines, of files in an archive whose place is its own."""
    monkeypatch.setattr(_warm, "_QUICK_START_SECONDS", 60 if other == "quick" else -1)
    command = COMMAND
    if other == "name":
        command = str(tmp_path / "python3.1")
        os.symlink(sys.executable, command)
    elif other == "kind":
        monkeypatch.setattr(_kind, "KIND", _kind.KIND[::-1])
    codes: list[int] = []

    def packed(code: _compiled.Codes) -> bytes:
        codes.append(len(code))
        return _kind.packed(code)

    monkeypatch.setattr(_archive, "packed", packed)
    for program in ("from ansible.module_utils import fails\nfails.fail()", "def f():\n    library.nothing\nf()"):
        payload = module(program, FAILS)
        result, expected = warm.run(command, payload), plain(agent, payload)
        assert result
        assert b"AttributeError: " in result.stderr
        assert without_archive(result.stderr) == without_archive(expected.stderr)
    # Of the second one, what is new. What is empty is not a part. A quick guest has compiled by itself as soon.
    whole = [] if other == "quick" else [len(set(FAILS.values()) - {""})]
    assert codes == ([] if other == "name" else [*whole, 1])


def without_archive(text: bytes) -> bytes:
    return re.sub(rb"[^\"]*_payload\.zip/", b"", text)


def without_paths(text: bytes) -> bytes:
    """Leave out what differs from run to run: the name of the temporary directory."""
    return re.sub(rb"/tmp/tmp\w+/", b"/TMP/", text)


def assert_given_up(warm: WarmPython) -> None:
    with pytest.raises(OutcomeUnknownError):
        warm.run(COMMAND, module("import time; time.sleep(0.5); print('first')"))


def shell_warmed(warm: WarmPython) -> None:
    """Wait until shell commands are run beside the interpreters."""
    warmed(warm)
    end = time.monotonic() + 60
    while not warm.run(":", b""):
        assert time.monotonic() < end, "no shell command was run after 60 s"
        time.sleep(0.05)


COMMANDS = {
    "output": r"printf 'o\377\0'; printf 'e\n' >&2",
    "exit": "exit 7",
    "last status": "false",
    "signal": "kill -9 $$",
    "terminated": "kill $$",
    "broken pipe": "yes | head -n 1",
    "not found": "no_such_program_there",
    "syntax error": "if true; then (",
    "syntax error in a later line": "echo a\nfi",
    "several lines": "echo a\n\necho 'b\nc'\n",
    "here document": "cat <<E\n$HOME\nE",
    "variables": "set | grep -v -E '^(PPID|OPTIND|PS.|IFS|_|BASH.*|EPOCH.*|RANDOM|SECONDS|SRANDOM)='",
    "environment": "env | sort",
    "arguments": 'echo "$0" "$#" "$-"; tr "\\0" " " </proc/$$/cmdline',
    "session": "set -- $(cat /proc/$$/stat); [ $6 = $$ ] && echo leads",
    "directory and mask": "pwd; umask",
    "descriptors": "ls /proc/self/fd",
    "limits and signals": "ulimit -n; grep -E 'Sig(Ign|Blk)' /proc/self/status",
    "input": 'read -r l; echo "$l"; cat',
    "quotes": "echo 'it'\\''s' \"a  b\" ä",
    "background": "(sleep 0.3; echo late) & echo early",
    "daemon": "(exec setsid sleep 5 >/dev/null 2>&1 </dev/null &) ; echo on",
    "long output": "head -c 300000 /dev/zero; head -c 70000 /dev/zero >&2",
    "writes to /dev/stderr": "echo a >/dev/stderr; echo b >/dev/stderr; echo c >/dev/stdout",
    "unset": 'echo "${c-none} ${QEMU_GUEST-none} ${QEMU_GUEST_COMMAND-none} ${n-none} ${OLDPWD-none}"',
    "long command": "x=" + "y" * 60_000 + "; echo ${#x}",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_shell_command_is_as_plain(agent: RunnerAgent, warm: WarmPython, command: str) -> None:
    shell_warmed(warm)
    for stdin in (b"a line\n\xff and more", b""):
        result, expected = warm.run(command, stdin), run_shell(agent, command.encode(), stdin)
        if "kill" in command:  # see test_same_as_plain
            expected = expected._replace(stderr=b"")
        assert result == expected


def test_shell_commands_beside_each_other(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    shell_warmed(warm)
    before = len(guest.files)
    begun = [warm.begin_shell(command, b"") for command in (b"sleep 0.3; echo slow", b"exit 3")]
    result = warm.run("echo other", b"")
    assert result and result.stdout == b"other\n"
    ended = [one() for one in begun if one]
    assert [(one.rc, one.stdout) for one in ended if one] == [(0, b"slow\n"), (3, b"")]
    assert len(guest.files) == before, "there is one line for the next again"


def test_input_that_does_not_fit_on_the_ring(agent: RunnerAgent, warm: WarmPython) -> None:
    shell_warmed(warm)
    for size in [9_000, 50_000, 1_000_000] * 4:
        stdin = os.urandom(size)
        result = warm.run("cat", stdin)
        assert result and (result.rc, result.stdout) == (0, stdin)


def test_answers_fill_more_than_one_file(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    shell_warmed(warm)
    for number in range(12):
        result = warm.run(f"echo {number}; head -c 60000 /dev/zero", b"")
        assert result and result.stdout == b"%d\n" % number + bytes(60000)
    time.sleep(0.2)
    assert len(list((guest.runner / SPOOL).glob("*.rc"))) == 1


def test_agent_that_is_restarted_between_and_during_tasks(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    """Its handles are gone, and the answers are read from where they were."""
    warmed(warm)
    lost = guest.files.clear
    for _time in range(2):
        result = warm.run(COMMAND, module("print('same', end='')"))
        assert result and result.stdout == b"same"
        lost()
    threading.Timer(0.3, lost).start()
    result = warm.run(COMMAND, module("import time; time.sleep(1); print('late')"))
    assert result and result.stdout == b"late\n"


def test_what_a_task_opens_that_finds_nothing_of_another(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    """The server's ring and a file for answers, once."""
    warmed(warm)
    task = WarmPython(agent, lambda line: None)
    opened = guest.handle
    assert task.run(COMMAND, module(""))
    assert guest.handle - opened == 2
    task.forget()


def test_task_goes_on_where_another_stopped(
    agent: RunnerAgent, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: dict[str, Any] = {}
    monkeypatch.setattr(agent, "leave", lambda name, what, farewell: left.update({name: what}) is None)
    monkeypatch.setattr(agent, "find", lambda name, before: left.pop(name, None))
    warmed(warm)
    warm.rest()
    opened = guest.handle
    for number in range(3):
        task = WarmPython(agent, lambda line: None)
        assert len(left) == 1
        result = task.run(COMMAND, module(f"print({number})"))
        assert result and result.stdout == b"%d\n" % number
        assert not left, "nobody else has it meanwhile"
        task.rest()
    # Each archive that is new here takes a file; the next task of the kind opens none.
    assert guest.handle - opened == 3
    task = WarmPython(agent, lambda line: None)
    assert task.run(COMMAND, module("print(2)"))
    assert guest.handle - opened == 3
    task.rest()

    guest.files.clear()  # the agent is restarted
    task = WarmPython(agent, lambda line: None)
    result = task.run(COMMAND, module("print(2)"))
    assert result and result.stdout == b"2\n"
    task.rest()

    warm.end()  # and its interpreters too
    end = time.monotonic() + 10
    while (guest.runner / SPOOL).exists():
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.02)
    task = WarmPython(agent, lambda line: None)
    result = task.run(COMMAND, module("print(2)"))
    assert result and result.stdout == b"2\n", "another server is started"
    task.end()
    assert not left


def test_guest_that_is_as_it_was_before(agent: RunnerAgent, warm: WarmPython, guest: Guest, tmp_path: Path) -> None:
    """A snapshot was reverted, say: the agent does not know the handles, nor has the server the answers."""
    warmed(warm)
    guest.files.clear()
    for path in (guest.runner / SPOOL).glob("*.rc"):
        path.unlink()
    began = tmp_path / "began"
    with pytest.raises(OutcomeUnknownError, match="Look at the guest before you repeat it"):
        warm.run(COMMAND, module(f"open({str(began)!r}, 'w')"))
    assert not began.exists(), "nobody could be told how that ended"
    warmed(warm)


def test_request_that_was_given_up_is_not_answered_to_the_next(
    agent: RunnerAgent, warm: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed(warm)
    with monkeypatch.context() as patch:
        patch.setattr(_warm, "pauses", lambda: iter([0.05]))  # and no further
        assert_given_up(warm)
    time.sleep(0.7)
    result = warm.run(COMMAND, module("print('second')"))
    assert result and result.stdout == b"second\n"


NAME = "ansible-tmp-1700000000.5-12-345"
MAKE = (
    f'( umask 77 && mkdir -p "` echo {{0}} `"&& mkdir "` echo {{0}}/{NAME} `" && echo {NAME}="` echo {{0}}/{NAME} `" )'
)
REMOVE = f"rm -f -r {{0}}/{NAME}/ > /dev/null 2>&1"


def around_modules(base: Path) -> Iterator[str]:
    """What ansible-core has a shell do around its modules, here below a directory, and what shows what was done."""
    yield from ["echo ~", "echo ~root", "echo ~nobody_of_this_name"]
    for parent in (f"{base}/a/b", f"{base}/file", f"{base}/link/c", f"{base}/with space", f"{base}/it's"):
        yield MAKE.format(parent)
        yield MAKE.format(parent)  # which finds it there
        yield f"touch {parent}/{NAME}/x"
        yield f"cd {base}; find . -printf '%p %m %U %y\\n' | sort"
        yield REMOVE.format(parent)
        yield REMOVE.format(parent)
    yield f"mkdir {base}/kept; touch {base}/kept/x; ln -s {base}/kept {base}/{NAME}"
    yield REMOVE.format(base)
    yield f"cd {base}; find . | sort"
    yield f"rm -f -r {base}/{NAME} > /dev/null 2>&1"
    yield f"cd {base}; find . | sort"
    yield f"cd {base}; ln -s file to-file; ln -s nowhere to-nothing; chmod 640 file"
    yield f"cd {base}; mkdir directory; mkfifo fifo; : >empty"
    for name in ("new", "new", "file", "to-file", "to-nothing", "directory", "no/directory", "with space", "kept/x"):
        yield write_command(f"{base}/{name}")
        yield create_command(f"{base}/{name}.created")
    yield create_command(f"{base}/file")
    yield create_command(f"{base}/to-nothing")
    yield f"cd {base}; find . -printf '%p %m %U %y\\n' | sort"
    yield f"cd {base}; rm -f -- *.created */*.created"
    yield write_command("/dev/null")
    yield write_command("/dev/full")
    yield f"cd {base}; mkdir shared; chmod 2051 shared; chmod 4604 new"
    for names in (["shared/", "new"], ["to-file"], ["none"], ["to-nothing", "empty"], ["empty", "none", "part"]):
        yield " ".join(["chmod u+rwx", *(f"{base}/{name}" for name in names)])
    yield f"chmod u+rwx {base}/e*"
    yield f"cd {base}; find . -printf '%p %m %U %y\\n' | sort"
    for name in ("new", "to-file", "empty", "to-nothing", "directory", "fifo", "with space"):
        yield file_command(f"{base}/{name}")
        yield part_command(f"{base}/{name}", 3, 5) if name != "fifo" else "true"
    yield part_command(f"{base}/new", 100, 5)
    yield f"cd {base}; echo packed | gzip >part; head -c 20 part >damaged; echo plain >text"
    for name, append in (
        ("part", False),
        ("part", True),
        ("part", True),
        ("damaged", True),
        ("text", True),
        ("no", True),
    ):
        yield unpack_command(GZIP, f"{base}/{name}", f"{base}/out", 7, append=append)
    yield unpack_command(GZIP, f"{base}/part", "/dev/full", 7, append=True)
    yield unpack_command(GZIP, f"{base}/part", f"{base}/directory", 7, append=False)
    yield f"cat {base}/out"
    yield spool_command(f"{base}/spool")
    yield spool_command(f"{base}/no/spool")
    for name in ("new", "to-file", "empty", "to-nothing", "directory", "no", "with space"):
        yield pack_command(ZSTD, f"{base}/{name}", range(3, 11), f"{base}/spool.5", f"{base}/spool.0")
        yield f"zstd -dc <{base}/spool.5"
    yield pack_command(ZSTD, f"{base}/new", range(100), f"{base}/no/spool", f"{base}/none")
    yield pack_command(ZSTD, f"{base}/new", range(100), "/dev/full", f"{base}/none")
    yield f"cd {base}; echo packed | zstd -c1 >part; head -c 12 part >damaged"
    for name in ("part", "damaged", "text", "no"):
        yield unpack_command(ZSTD, f"{base}/{name}", f"{base}/out", 7, append=True)
    yield f"cat {base}/out"
    yield f"cd {base}; touch spool spoolx .spool.1; mkdir -p spool.d/x; find . | sort"
    yield f"rm -f {base}/spool.*"
    yield f"rm -r {base}/spool.d; rm -f {base}/none.*"
    yield f"cd {base}; touch spool.5 spool.6"
    yield f"rm -f {base}/spool.*"
    yield f"cd {base}; find . -printf '%p %m %U %y\\n' | sort; cat new file kept/x"


def test_commands_around_modules_are_as_plain(agent: RunnerAgent, warm: WarmPython, tmp_path: Path) -> None:
    shell_warmed(warm)
    results = []
    for name, run in (("warm", warm.run), ("plain", lambda command, stdin: run_shell(agent, command.encode(), stdin))):
        base = tmp_path / name
        base.mkdir()
        (base / "file").touch()
        (base / "link").symlink_to(base)
        lines = []
        for command in around_modules(base):
            result = run(command, b"its \xff input\n")
            assert result is not None
            texts = [
                text.decode("utf-8", "replace").replace(str(base), "BASE") for text in (result.stdout, result.stderr)
            ]
            lines.append([command.replace(str(base), "BASE"), result.rc, *texts])
        results.append(lines)
    for warm_line, plain_line in zip(*results, strict=True):
        if ": or CRC-32;" in warm_line[0] and warm_line[1] == 0:
            assert re.fullmatch(r"[0-9a-f]{8}  -\n", warm_line[2]) or warm_line == plain_line
            warm_line[2] = plain_line[2] = "a checksum"
        elif "command -v zstd" in warm_line[0] and warm_line[1] == 0:  # a shell prints where that is
            assert warm_line[2]
            warm_line[2] = plain_line[2] = "something"
        assert warm_line == plain_line


def test_commands_around_modules_need_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    done_here = functools.partial(_warm_commands.done_here, read=lambda: b"its input")
    assert done_here(b"echo ~") == b"/home/one\n"
    assert done_here(b"echo ~root") == b"/root\n"
    parent = tmp_path / "a" / "b"
    made = parent / NAME
    assert done_here(MAKE.format(parent).encode()) == f"{NAME}={made}\n".encode()
    assert stat.S_IMODE(made.stat().st_mode) == stat.S_IMODE(parent.stat().st_mode) == 0o700
    (made / "file").touch()
    assert done_here(REMOVE.format(parent).encode()) == b""
    assert not made.exists()
    path = tmp_path / "file"
    assert done_here(write_command(str(path)).encode()) == hashlib.sha256(b"its input").hexdigest().encode() + b"  -\n"
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"its input", 0o600)
    for _time in range(2):
        assert done_here(create_command(f"{path}.new").encode()) == b""
        assert stat.S_IMODE(Path(f"{path}.new").stat().st_mode) == 0o600
    assert done_here(f"chmod u+rwx {parent}/ {path}".encode()) == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    printed = [f"{zlib.crc32(data):08x}  -\n".encode() for data in (b"its input", b"inpu", b"more")]
    assert done_here(file_command(str(path)).encode()) == printed[0]
    assert done_here(part_command(str(path), 4, 4).encode()) == printed[1]
    (tmp_path / "part").write_bytes(gzip.compress(b"more"))
    assert done_here(unpack_command(GZIP, f"{tmp_path}/part", str(path), 4, append=True).encode()) == printed[2]
    (tmp_path / "part").write_bytes(Compressor(1).compress(b"more"))
    assert done_here(unpack_command(ZSTD, f"{tmp_path}/part", str(path), 4, append=True).encode()) == printed[2]
    assert path.read_bytes() == b"its inputmoremore"
    spool = tmp_path / "spool"
    assert done_here(spool_command(str(spool)).encode())
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("spool.0", "spool.1")] == [0o600] * 2
    packed = pack_command(ZSTD, str(path), range(4, 8), f"{spool}.2", f"{spool}.1").encode()
    assert done_here(packed) == printed[1]
    assert zstd_decompress((tmp_path / "spool.2").read_bytes(), 4) == b"inpu"
    assert stat.S_IMODE((tmp_path / "spool.2").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.glob("spool.*")) == ["spool.0", "spool.2"]
    assert done_here(f"rm -f {spool}.*".encode()) == b""
    assert not list(tmp_path.glob("spool.*"))
    for command in (
        f"rm -f -r {parent} > /dev/null 2>&1",
        "echo ~; id",
        MAKE.format("/a$(id)"),
        REMOVE.format("a"),
        write_command("/a b"),
    ):
        assert done_here(command.encode()) is None


@pytest.mark.parametrize(("umask", "nothing"), [(None, True), (0, True), (0o77, False)])
def test_function_that_sets_no_umask_is_known(
    umask: int | None, nothing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function is that of the core at hand."""
    given = []
    popen = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        given.append(kwargs["preexec_fn"])
        return popen(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", start)
    module = AnsibleModule.__new__(AnsibleModule)
    module.run_command_environ_update, module._debug, module.no_log_values = {}, False, set()
    rc, out, _err = module.run_command(["sh", "-c", "umask"], umask=umask)
    assert (rc, out) == (0, "0077\n" if umask else f"{current_umask():04o}\n")
    assert [_warm_modules.does_nothing(function) for function in given] == [nothing]


def test_programs_are_started_without_what_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    for where, name in ((_posixsubprocess, "fork_exec"), (subprocess, "_fork_exec")):
        monkeypatch.setattr(where, name, lambda *arguments: given.extend(arguments[-2:]), raising=False)
    _warm_modules.start_programs_at_once()
    monkeypatch.setattr(_warm_modules, "BETWEEN", preexec(None).__qualname__)
    start: Any = _posixsubprocess.fork_exec
    for umask in (0, 0o77):
        function = preexec(umask)
        start(function, True)
        assert given == [function if umask else None, True]
        given.clear()


def test_modules_start_programs_so(warm: WarmPython) -> None:
    warmed(warm)
    result = warm.run(COMMAND, module("import _posixsubprocess; print(_posixsubprocess.fork_exec.__qualname__)"))
    assert result is not None
    assert result.stdout == b"start_programs_at_once.<locals>.start\n"


def preexec(umask: int | None) -> Callable[[], None]:
    def between() -> None:
        if umask:
            os.umask(umask)

    return between


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_longer_command_is_left_to_the_plain_path(agent: RunnerAgent, warm: WarmPython) -> None:
    shell_warmed(warm)
    assert warm.run(":" + " " * _warm._LONGEST_COMMAND, b"") is None


@pytest.mark.parametrize("plain", [True, False])
def test_who_is_removed_has_no_interpreter(agent: RunnerAgent, warm: WarmPython, plain: bool) -> None:
    """userdel would refuse: the user is in use."""
    command = f"/bin/sh -c 'echo BECOME-SUCCESS-{'a' * 32} ; {COMMAND}'"
    warmed(warm, command)
    if not plain:
        shell_warmed(warm)
    seen = warm.run(command, module("import os; print(os.getppid())"))
    assert seen
    process = seen.stdout.split()[-1].decode()
    for what, there in (("touch", True), ("userdel", False)):
        look = f": {what}; if kill -0 {process} 2>/dev/null; then echo there; fi"
        result = warm.run(look, b"") or run_shell(agent, look.encode())
        assert (result.stdout == b"there\n") == there
    assert warm.run(command, module("")), "the next task has another one started"


@pytest.mark.parametrize(
    ("text", "may"),
    [
        (b"    module_fqn='ansible.modules.user',", True),
        (b"runpy.run_module(mod_name='ansible.modules.user', init_globals", True),
        (b"/usr/bin/python3 /root/.ansible/tmp/x/AnsiballZ_user.py", True),
        (b'{"_raw_params": "userdel -r one"}', True),
        (b"module_fqn='ansible.modules.user_things', # and userdeleted", False),
    ],
)
def test_what_may_remove_a_user(text: bytes, may: bool) -> None:
    for before, after in ((text, b""), (b"", text)):
        header = _warm._request("", "", before, after).partition(b"\n")[0]
        assert json.loads(header)["users"] is may


def test_shell_command_starts_no_server(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    assert warm.run("echo", b"") is None
    assert run_shell(agent, b"echo").stdout == b"\n"
    time.sleep(0.5)
    assert not list(guest.runner.glob(f"{SPOOL}*"))


def test_input_of_a_module_behind_a_password_is_not_taken_for_a_module(warm: WarmPython, guest: Guest) -> None:
    """It has no interpreter, and none is started for it."""
    shell_warmed(warm)
    interpreters = children(server_pid(guest))
    result = warm.run(f"read -r password; {COMMAND}", b"word\n" + module("print('ran')"), password=True)
    assert result and result.stdout == b"ran\n"
    assert children(server_pid(guest)) == interpreters


def test_archive_that_was_packed_anew_is_not_sent_again(
    agent: RunnerAgent, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ansible-core writes the time into it."""
    sent: list[str] = []
    write = warm._spool.write

    def note(name: str, data: bytes) -> bool:
        sent.append(name)
        return write(name, data)

    monkeypatch.setattr(warm._spool, "write", note)
    warmed(warm, program=module("", when=(2025, 1, 1, 0, 0, 0)))
    sent.clear()
    other = module("", when=(2026, 2, 2, 2, 2, 2))
    assert other != module("", when=(2025, 1, 1, 0, 0, 0))
    assert warm.run(COMMAND, other)
    assert warm.run(COMMAND, module("pass", when=(2026, 2, 2, 2, 2, 2)))
    assert [name.partition(".")[2] for name in sent] == ["archive"], "what is new in it"


def test_each_brings_its_own_archive(
    agent: RunnerAgent, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who is told that it is missing may open the file when another's is checked; to write begins with nothing."""
    warmed(warm)
    names: set[str] = set()
    another = WarmPython(agent, lambda line: None)
    first, second = warm._spool.write, another._spool.write

    def written(name: str, data: bytes) -> bool:
        names.add(name)
        return first(name, data)

    def written_late(name: str, data: bytes) -> bool:
        names.add(name)
        assert warm.run(COMMAND, module("import json"))
        return second(name, data)

    monkeypatch.setattr(warm._spool, "write", written)
    with monkeypatch.context() as late:
        late.setattr(another._spool, "write", written_late)
        assert another.run(COMMAND, module("import json")), "it runs with what the first has brought"
    result = another.run(COMMAND, module("print('other')"))
    assert result, "and not with what is left of that"
    assert b"other" in result.stdout
    another.forget()
    warm.forget()
    time.sleep(0.3)
    assert len({name.partition(".")[0] for name in names}) == 2
    assert not list((guest.runner / SPOOL).glob("*.archive"))


def test_environment_of_the_command(agent: RunnerAgent, warm: WarmPython) -> None:
    command = f"A='1 2' {COMMAND}"
    program = module("import os; print(os.environ['A'])")
    warmed(warm, command)
    result = warm.run(command, program)
    assert result and result.stdout == b"1 2\n"
    result = warm.run(COMMAND, program)
    assert result and b"KeyError: 'A'" in result.stderr, "another command line has another interpreter"


def test_marker_of_become(agent: RunnerAgent, warm: WarmPython) -> None:
    def command(letter: str) -> str:
        return f"/bin/sh -c 'echo BECOME-SUCCESS-{letter * 32} ; echo warn >&2; {COMMAND}'"

    warmed(warm, command("a"))
    result = warm.run(command("b"), module("print('out')"))
    assert result is not None
    assert result.stdout == b"BECOME-SUCCESS-" + b"b" * 32 + b"\nout\n"
    assert result.stderr == b"warn\n"


def test_changed_library_is_the_one_that_runs(agent: RunnerAgent, warm: WarmPython) -> None:
    warmed(warm)
    changed = {**LIBRARIES, "ansible/module_utils/library.py": "VALUE = 'second'\n"}
    one, two = (LIBRARIES, b"first FIRST\n"), (changed, b"second SECOND\n")
    for libraries, value in (two, one, two):
        result = warm.run(COMMAND, module("print(library.VALUE, other.OTHER)", libraries))
        assert result and result.stdout == value


def test_library_that_a_module_does_not_bring(agent: RunnerAgent, warm: WarmPython) -> None:
    warmed(warm)
    fewer = {name: source for name, source in LIBRARIES.items() if not name.endswith("other.py")}
    fewer["ansible/modules/work.py"] = "from ansible.module_utils import library\n"
    program = module("try:\n    from ansible.module_utils import other\nexcept ImportError:\n    print('none')", fewer)
    result = warm.run(COMMAND, program)
    assert result and result.stdout == b"none\n"


def test_module_that_alters_its_process_harms_no_other(agent: RunnerAgent, warm: WarmPython) -> None:
    warmed(warm)
    harm = (
        "import os, sys, signal\nlibrary.STATE.append(1); library.VALUE = 'broken'; os.environ.clear(); os.chdir('/')\n"
        "signal.signal(15, signal.SIG_IGN); sys.path[:] = []; del sys.modules['os']; os.umask(0o777)\n"
        "print(len(library.STATE)); sys.stdout.flush(); os.kill(os.getpid(), 9)"
    )
    for _time in range(2):
        result = warm.run(COMMAND, module(harm))
        assert result and (result.rc, result.stdout) == (137, b"1\n")
    fine = warm.run(COMMAND, module("import os; print(library.VALUE, 'HOME' in os.environ)"))
    assert fine and fine.stdout == b"first True\n"


# Doubt


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("/bin/sh", b"echo a"),
        (COMMAND, b"print('no archive')"),
        (COMMAND, b"zip_data='bm8gYXJjaGl2ZQ==',\n"),
        (f"{COMMAND} -u", module("")),
        ("python3", module("")),
    ],
)
def test_what_is_not_understood_is_left_to_the_plain_path(
    warm: WarmPython, guest: Guest, command: str, program: bytes
) -> None:
    assert warm.run(command, program) is None
    time.sleep(0.2)
    assert not list(guest.runner.glob(f"{SPOOL}*"))


def test_interpreter_that_cannot_is_not_tried_again(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    broken = guest.tools / "python3"
    broken.write_text(f"#!/bin/sh\necho ran >>{guest.tools}/count\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    for _attempt in range(5):
        assert warm.run(str(broken), module("")) is None
    assert (guest.tools / "count").read_text() == "ran\n"


def test_server_that_cannot_is_not_tried_again(
    agent: RunnerAgent, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_warm, "_START_SECONDS", 60)  # it is not waited for
    began = time.monotonic()
    with monkeypatch.context() as broken:
        broken.setitem(_warm._PROGRAMS, "server.py", b"import no_such_module")
        assert warm.run(COMMAND, module("")) is None
    for _attempt in range(5):
        assert warm.run(COMMAND, module("")) is None
    assert time.monotonic() - began < 30
    failed = guest.runner / f"{SPOOL}.failed"
    assert "No module named 'no_such_module'" in failed.read_text()
    assert stat.S_IMODE(failed.stat().st_mode) == 0o600
    assert not (guest.runner / SPOOL).exists()


@pytest.mark.parametrize("end", ["raise OSError(28, 'no room')", "import os, signal; os.kill(os.getpid(), 9)"])
def test_server_without_room_is_tried_again(
    agent: RunnerAgent, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """So is one that was killed as it started. The task is run at once, though, the plain way."""
    monkeypatch.setattr(_warm, "_START_SECONDS", 60)
    began = time.monotonic()
    with monkeypatch.context() as broken:
        broken.setitem(_warm._PROGRAMS, "server.py", end.encode())
        assert warm.run(COMMAND, module("")) is None
    failed = guest.runner / f"{SPOOL}.failed"
    until(failed.exists)  # it may have had a ring for a moment, and then it is not looked for
    assert failed.read_text() == ""
    for place in guest.runner.glob(f"{SPOOL}.new"):  # of the killed one
        os.utime(place, (1, 1))
    assert warm.run(COMMAND, module(""))
    assert time.monotonic() - began < 30


def test_server_that_does_not_come_is_not_waited_for_long(
    warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_warm, "_START_SECONDS", 0.3)
    monkeypatch.setattr(_warm, "_START_PROGRAM", b"import time; time.sleep(2)")
    began = time.monotonic()
    assert warm.run(COMMAND, module("")) is None
    assert 0.3 < time.monotonic() - began < 2


def test_server_that_was_killed_is_replaced(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    warmed(warm)
    assert warm.run("true", b"")  # what the server starts beside is there: as it begins, it has the ring open, too
    pid = server_pid(guest)
    os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)
    result = warm.run(COMMAND, module("print('another')"))
    assert result and result.stdout == b"another\n"


def with_archive(program: bytes) -> tuple[re.Match[bytes], Archive]:
    """Return where a module's program has its archive, and that."""
    payload = _warm._ARCHIVE.search(program)
    assert payload
    archive = read_archive(payload.group(1))
    assert archive
    return payload, archive


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
        request = _warm._request(COMMAND, "a" * 64, b"", b"")
        starters = []
        for another in range(60):  # from before the first has begun until after its server has
            command, data = _warm._starter(str(spool), request, sys.executable, f"{spool}.{another}")
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
        until(lambda: {path.name for path in tmp_path.glob("warm*")} == {spool.name})  # noqa: B023 - called at once
        (spool / "ring").write_text("quit\n")
        while spool.exists():
            assert time.monotonic() < end
            time.sleep(0.01)


SHRINKS = """
import os, sys, zlib
sys.path.insert(0, sys.argv[1])
from ansible_collections.qemu.guest.plugins.plugin_utils import _warm_commands
whole = zlib.crc32
def crc32(*arguments):
    os.truncate(sys.argv[2], 0)
    return whole(*arguments)
zlib.crc32 = crc32
_warm_commands.sum_of_part(b"5", os.fsencode(sys.argv[2]), b"100000")
"""


def test_file_that_shrinks_while_it_is_summed_up(tmp_path: Path) -> None:
    """Nobody is told a checksum, and the guest's administrator not of a crash."""
    (tmp_path / "file").write_bytes(bytes(200_000))
    collections = Path(_warm_commands.__file__).parents[5]

    def allow_core() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)

    arguments = [COMMAND, "-c", SHRINKS, str(collections), str(tmp_path / "file")]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, preexec_fn=allow_core) as process:
        status = os.waitpid(process.pid, 0)[1]
        assert process.stdout
        assert process.stdout.read() == b""
    assert os.WTERMSIG(status) == signal.SIGBUS
    assert not os.WCOREDUMP(status)


@pytest.mark.parametrize(
    ("start", "size"), [(0, 300_000), (1, 1), (4096, 10), (65_537, 100_000), (299_999, 5), (300_000, 5)]
)
def test_parts_of_a_file_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, size: int) -> None:
    """In windows, which begin where a page does."""
    monkeypatch.setattr(_warm_commands, "WINDOW", 70_000)
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    printed = _warm_commands.sum_of_part(b"%d" % (start + 1), os.fsencode(tmp_path / "file"), b"%d" % size)
    assert printed == b"%08x  -\n" % zlib.crc32(content[start : start + size])


def server_pid(guest: Guest) -> int:
    return int((guest.runner / SPOOL / "pid").read_text())


def children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


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
    assert there == {*STAYS, f"{warm._line.number}.rc"}
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
    brought = archive.brought(archive.remembered(), code=True, programs=_warm._code_of_programs())
    command, data = _warm._starter(str(spool), _warm._request(COMMAND, archive.digest, b"", b""), COMMAND, f"{spool}.1")
    (place / "input").write_bytes(data)
    with open(place / "input", "rb") as stdin:
        subprocess.run(["sh", "-c", command], stdin=stdin, env={**os.environ, "SEEN": str(seen)}, check=True)
    Path(f"{spool}.1.archive").write_bytes(brought)
    until(seen.exists)
    until(spool.exists)
    (spool / "ring").write_text("quit\n")
    until(lambda: not spool.exists())
    assert seen.read_text().count("\n") == 1


@pytest.mark.parametrize("late", ["nothing", "cut off", "of another kind"])
def test_start_does_not_depend_on_what_a_client_brings(
    agent: RunnerAgent, warm: WarmPython, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    monkeypatch.setattr(_warm, "_QUICK_START_SECONDS", -1)
    write = Spool.write

    def written(spool: Spool, name: str, data: bytes) -> bool:
        if name.startswith("warm"):
            if late == "nothing":
                return True
            if late == "cut off":
                data = data[:1000]
        return write(spool, name, data)

    monkeypatch.setattr(Spool, "write", written)
    if late == "of another kind":
        monkeypatch.setattr(_kind, "KIND", _kind.KIND[::-1])
    result = warm.run(COMMAND, module("print(library.VALUE)"))
    assert result and result.stdout == b"first\n"


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have interpreters tell whether they are copies of what starts them."""
    begin = b"        exec(code, globals())\n"
    assert begin in _warm._START_PROGRAM
    marked = _warm._START_PROGRAM.replace(begin, b"        os.environ['COPY'] = 'yes'\n" + begin)
    monkeypatch.setattr(_warm, "_START_PROGRAM", marked)


@pytest.mark.parametrize(
    ("command", "copied"),
    [
        (COMMAND, True),
        (f"A='1 2' {COMMAND}", True),
        (f"true; {COMMAND}", False),
        (f"PYTHONWARNINGS=none {COMMAND}", False),
    ],
    ids=["alone", "with an environment", "with something before it", "that says something"],
)
@pytest.mark.usefixtures("copies")
def test_first_interpreter_is_a_copy(
    agent: RunnerAgent, warm: WarmPython, guest: Guest, command: str, copied: bool
) -> None:
    """Unless what it says at its start is to be said by each task, or it may be another's."""
    program = module(
        "import os; print(os.environ.pop('COPY', 'no'), sorted(os.environ), os.getcwd(), os.umask(0));"
        "print(sorted(os.listdir('/proc/self/fd')))"
    )
    result, expected = warm.run(command, program), plain(agent, program, command)
    assert result
    assert (result.rc, result.stderr) == (expected.rc, expected.stderr)
    assert result.stdout == (expected.stdout.replace(b"no", b"yes", 1) if copied else expected.stdout)
    assert {path.name for path in guest.runner.glob("warm*")} == {SPOOL}


def test_first_interpreter_without_memory(warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none."""
    program = _warm._START_PROGRAM.replace(b"LEAST_FREE = 96 << 20", b"LEAST_FREE = 1 << 60")
    assert program != _warm._START_PROGRAM
    monkeypatch.setattr(_warm, "_START_PROGRAM", program)
    assert warm.run(COMMAND, module("")) is None
    assert not list(guest.runner.glob("*.err"))


def test_task_waits_for_an_interpreter_that_starts(agent: RunnerAgent, warm: WarmPython) -> None:
    warmed(warm)
    command = f"sleep 0.7; {COMMAND}"
    result = warm.run(command, module("print('warm')"))
    assert result and result.stdout == b"warm\n"


@pytest.mark.parametrize("at_work", [False, True])
def test_server_that_is_killed_while_a_task_waits_for_it(
    agent: RunnerAgent, warm: WarmPython, guest: Guest, at_work: bool
) -> None:
    """What was not begun is not run: the plain way is left."""
    warmed(warm)
    command = COMMAND if at_work else f"sleep 5; {COMMAND}"
    threading.Timer(0.5, os.kill, (server_pid(guest), signal.SIGKILL)).start()
    if at_work:
        with pytest.raises(OutcomeUnknownError, match="what serves the interpreters in the guest ended while the task"):
            warm.run(command, module("import time; time.sleep(4)"))
    else:
        assert warm.run(command, module("")) is None


def test_task_waits_in_vain_for_an_interpreter_that_fails(agent: RunnerAgent, warm: WarmPython) -> None:
    warmed(warm)
    command = f"sleep 0.7; exit 1; {COMMAND}"
    for _time in range(3):
        assert warm.run(command, module("")) is None


def test_task_does_not_wait_for_an_interpreter_that_takes_long(tmp_path: Path) -> None:
    """Somebody may have put a question before it that nobody answers."""
    one, zygote = an_interpreter()
    one.ready = False
    server = a_server(tmp_path)
    server.interpreters["k"] = one
    one.surroundings = _warm_server.Surroundings([])
    answers = tmp_path / "7.rc"
    answers.touch()
    with closing(one.socket), zygote:
        for started, answer in ((0.0, b""), (_warm_server.START_SECONDS, b"6\nplain\n")):
            one.began = time.monotonic() - started
            with open(tmp_path / "in", "w+b") as file:
                server.take(7, _warm_server.Request(HEADER, file, 0))
                assert file.closed == bool(answer)
            assert answers.read_bytes() == answer
            assert len(server.waiting) == 1


def a_server(home: Path) -> _warm_server.Server:
    server = _warm_server.Server.__new__(_warm_server.Server)
    server.home, server.ending, server.rung = str(home), 0.0, b""
    server.interpreters, server.leaving, server.waiting, server.login = {}, [], [], None
    server.archives = _warm_server.Archives(str(home))
    return server


END_IT = "import os; os.kill(os.getppid(), 9); import time; time.sleep(0.5); "


def test_interpreter_that_is_killed_with_its_task(warm: WarmPython) -> None:
    warmed(warm)
    said = r"the interpreter in the guest ended while the task ran \((was the guest rebooted\?|.*Killed.*)\)"
    with pytest.raises(OutcomeUnknownError, match=said):
        warm.run(COMMAND, module(END_IT + "os.kill(os.getpid(), 9)"))
    warmed(warm)


def test_task_outlives_its_interpreter(agent: RunnerAgent, warm: WarmPython) -> None:
    """It tells its status itself, whatever comes for the next interpreter meanwhile."""
    warmed(warm)
    another = Line(agent, warm._spool)
    program = module(END_IT + "print('done'); raise SystemExit(3)")
    payload, archive = with_archive(program)
    assert warm._spool.write(f"{another.number}.archive", archive.brought(archive.remembered()))
    around = program[: payload.start(1)], program[payload.end(1) :]
    assert warm._asked(another, _warm._request(COMMAND, archive.digest, *around))
    time.sleep(0.25)
    result = warm.run(COMMAND, module("print('next')"))
    assert result and result.stdout == b"next\n"
    end = time.monotonic() + 10
    while not (content := another.answer()):
        assert time.monotonic() < end, "there is no answer"
        time.sleep(0.02)
    rc, out, err = warm._spool.result(another.number, content)
    assert (rc, out.split(), err) == (3, [b"done"], b"")
    another.close()


def test_why_an_interpreter_ended_is_told(warm: WarmPython) -> None:
    warmed(warm)
    zygote = "import os; error = os.open(f'/proc/{os.getppid()}/fd/2', os.O_WRONLY | os.O_APPEND); "
    with pytest.raises(OutcomeUnknownError, match=r"while the task ran \(ValueError: for a test\)"):
        program = zygote + "os.write(error, b'Traceback\\nValueError: for a test\\n'); "
        warm.run(COMMAND, module(program + END_IT + "os.kill(os.getpid(), 9)"))


def test_end(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    warmed(warm)
    pid = server_pid(guest)
    warm.end()
    for _attempt in range(200):
        if not (guest.runner / SPOOL).exists() and not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.02)
    raise AssertionError("it goes on")


def test_end_waits_for_the_task_of_another(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    shell_warmed(warm)
    another = Line(agent, warm._spool)
    command = f"touch {guest.tools}/on; sleep 0.7; echo x"
    assert warm._asked(another, _warm._request("", "", command.encode(), b""))
    while not (guest.tools / "on").exists():
        time.sleep(0.01)
    warm.end()
    assert warm.run(COMMAND, module("")) is None, "it takes nothing on any more"
    assert not another.answer()
    end = time.monotonic() + 10
    while not (content := another.answer()):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert warm._spool.result(another.number, content) == (0, b"x\n", b"")
    warm.forget()
    another.close()
    while (guest.runner / SPOOL).exists():
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.02)


def test_who_rings_when_an_idle_server_ends_is_heard(tmp_path: Path) -> None:
    server = _warm_server.Server.__new__(_warm_server.Server)
    server.home = str(tmp_path / "home")
    os.mkdir(server.home)
    os.mkfifo(f"{server.home}/ring")
    server.ring = os.open(f"{server.home}/ring", os.O_RDWR)
    os.write(server.ring, b"=1 x\n")
    assert not server.vanish()
    assert os.path.exists(f"{server.home}/ring")
    os.read(server.ring, 100)
    holder = os.open(f"{server.home}/ring", os.O_WRONLY)
    assert server.vanish()
    assert list(tmp_path.glob("home*")) == []
    with pytest.raises(BrokenPipeError):
        os.write(holder, b"=2 x\n")
    os.close(holder)


def test_starter_that_was_killed_is_in_the_way_for_a_while_only(warm: WarmPython, guest: Guest) -> None:
    place = guest.runner / f"{SPOOL}.new"
    place.mkdir(parents=True)
    assert warm.run(COMMAND, module("")) is None
    time.sleep(0.3)
    assert list(place.iterdir()) == []
    old = time.time() - 200
    os.utime(place, (old, old))
    warmed(warm)


def test_nothing_of_a_task_stays(agent: RunnerAgent, warm: WarmPython, guest: Guest) -> None:
    warmed(warm)
    for _time in range(2):
        assert warm.run(COMMAND, module("SECRET = 'hunter2'"))
    handles = len(guest.files)
    warm.forget()
    assert len(guest.files) == handles - 2, "the ring and the answers"
    time.sleep(0.3)
    left = {path.name for path in (guest.runner / SPOOL).iterdir()}
    assert left == STAYS


SAID = {"key": "k", "command": "", "marker": "", "path": "", "archive": "", "before": 0, "users": False}
HEADER = json.dumps(SAID).encode()


def an_interpreter() -> tuple[_warm_server.Interpreter, socket.socket]:
    """Return one that is ready and at work at nothing, and the zygote's end of its socket."""
    one = _warm_server.Interpreter.__new__(_warm_server.Interpreter)
    one.socket, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.ready, one.dead, one.marker, one.preamble, one.known = True, False, "", b"", []
    one.tasks, one.serials, one.leaves = {}, itertools.count(1), 0.0
    return one, zygote


def test_late_end_of_a_process_is_not_that_of_the_next_task(tmp_path: Path) -> None:
    """A task tells its status before its process ends, and the next one may have begun when that is heard of."""
    one, zygote = an_interpreter()
    told = []
    with closing(one.socket), zygote, open(tmp_path / "in", "w+b") as file, open(tmp_path / "err", "w+b") as one.errors:
        for _task in range(2):
            one.hand_over(7, _warm_server.Request(HEADER, file, 0), str(tmp_path / "7"))
            told.append(json.loads(zygote.recv(4096))["number"])
            assert [task.number for task in one.tasks.values()] == [7]
            if len(told) == 1:
                one.tasks.clear()  # it has told its status
        zygote.send(json.dumps({"number": told[0], "rc": 3}).encode())
        one.listen()
        assert one.tasks[told[1]].rc is None
        zygote.send(json.dumps({"number": told[1], "rc": 4}).encode())
        one.listen()
        assert one.tasks[told[1]].rc == 4


def test_interpreter_that_has_ended_unheard_of_is_given_nothing(tmp_path: Path) -> None:
    one, zygote = an_interpreter()
    zygote.close()
    before = len(os.listdir("/proc/self/fd"))
    with closing(one.socket), open(tmp_path / "in", "w+b") as file, open(tmp_path / "err", "w+b") as one.errors:
        assert not one.hand_over(7, _warm_server.Request(HEADER, file, 0), str(tmp_path / "7"))
        assert not one.tasks
    assert len(os.listdir("/proc/self/fd")) == before - 1, "nothing stays open"


def test_interpreter_that_is_of_use_is_ended_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a play with one command line too many would start one anew for each task, and none would be ready."""

    def started(*_arguments: object) -> Any:
        same = _warm_server.Surroundings([])
        return SimpleNamespace(used=time.monotonic(), ready=True, dead=False, failed=False, surroundings=same)

    monkeypatch.setattr(_warm_server, "Interpreter", started)
    monkeypatch.setattr(_warm_server, "spawn", started)
    server = _warm_server.Server.__new__(_warm_server.Server)
    server.home, server.interpreters, server.leaving = "", {}, []

    def use(key: str) -> bool:
        request: Any = SimpleNamespace(key=key, command="python3", marker="", path="")
        return server.interpreter(request) is not None

    most = [f"A={number}" for number in range(_warm_server.MOST_INTERPRETERS)]
    assert all(use(key) for key in most)
    assert not use("one more") and not server.leaving
    server.interpreters[most[2]].used -= _warm_server.LEAST_SECONDS
    assert use("one more")
    assert most[2] not in server.interpreters and len(server.leaving) == 1


def full(*_arguments: object) -> int:
    raise OSError(errno.ENOSPC, "there is no room")


def test_request_that_there_is_no_room_for_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = a_server(tmp_path)
    server.ring, ring = os.pipe()
    request = _warm._request("", "", b"true", b"")
    answers = tmp_path / "7.rc"
    answers.touch()
    (tmp_path / "7.in").write_bytes(request)
    os.write(ring, b"7\n=7 " + base64.b64encode(zlib.compress(request)) + b"\n7\n")
    monkeypatch.setattr(_warm_server, "Interpreter", full)
    server.answer_ring()
    assert answers.read_bytes() == b"6\nplain\n" * 2, "the third was taken already"
    os.close(ring)
    os.close(server.ring)


def test_what_is_to_be_learnt_goes_before_the_next_child() -> None:
    """One that was forked before would not have it, and be in vain."""
    one, theirs = an_interpreter()
    work = _warm_zygote.Work()
    zygote = _warm_zygote.Zygote(theirs, work)
    with closing(one.socket), theirs:
        zygote.asked = zygote.prepared = zygote.beside = True
        work.lessons = 1
        assert zygote.chore() == (0, work.take_lesson)
        work.lessons = 0
        assert zygote.chore() == (0, zygote.fork_spare)


def test_interpreter_without_room_for_a_child_lives_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, theirs = an_interpreter()
    zygote = _warm_zygote.Zygote(theirs, _warm_zygote.Work())
    with closing(one.socket), theirs, open(tmp_path / "in", "w+b") as file, open(tmp_path / "err", "w+b") as one.errors:
        assert one.hand_over(7, _warm_server.Request(HEADER, file, 0), str(tmp_path / "7"))
        request = _warm_zygote.receive(theirs)
        assert request
        monkeypatch.setattr(os, "fork", full)
        assert zygote.fork_spare() is None
        assert zygote.hand_over(request) is None
        assert zygote.chore()[0] is None, "it does not try again and again"
        one.listen()
        task = next(iter(one.tasks.values()))
        for stream in list(task.streams):
            task.copy(stream)
        assert task.ended
        assert task.result() == b"plain\n"
    os.close(zygote.ended)
    os.close(zygote.wake)


def test_each_task_has_its_own_status(warm: WarmPython) -> None:
    warmed(warm)
    programs = [module(f"raise SystemExit({status})") for status in (0, 5)]
    for program in programs:
        warmed(warm, program=program)
    for _time in range(20):
        for status, program in zip((0, 5), programs, strict=True):
            result = warm.run(COMMAND, program)
            assert result and result.rc == status


def test_results_that_nobody_fetches_are_swept_away(tmp_path: Path) -> None:
    server = _warm_server.Server.__new__(_warm_server.Server)
    home = tmp_path / "home"
    home.mkdir()
    server.home = str(home)
    server.interpreters, server.leaving = {}, [SimpleNamespace(tasks={1: SimpleNamespace(number=3)})]  # type: ignore[list-item]
    old = time.time() - _warm_server.IDLE_SECONDS - 1
    for name in ("1.rc", "1.out", "2.rc", "2.err", "3.rc", "pid"):
        (home / name).touch()
    for name in ("1.rc", "3.rc", "pid"):
        os.utime(home / name, (old, old))
    server.sweep()
    assert {path.name for path in home.iterdir()} == {"2.rc", "2.err", "3.rc", "pid"}, "3 is at work"


def test_what_a_new_process_would_see_is_watched(tmp_path: Path) -> None:
    path, none = tmp_path / "path", tmp_path / "none"
    path.write_text("a")
    there = _warm_server.Surroundings([str(path), str(none)])
    assert there.same()
    path.write_text("ab")
    assert not there.same()
    there = _warm_server.Surroundings([str(path), str(none)])
    none.touch()
    assert not there.same()


def test_what_is_watched_later_does_not_hide_what_has_changed(tmp_path: Path) -> None:
    path, other = tmp_path / "path", tmp_path / "other"
    path.write_text("a")
    there = _warm_server.Surroundings([str(path)])
    path.write_text("ab")
    there.watch([str(path), str(other)])
    assert not there.same()


def test_no_room_for_the_interpreter_of_commands_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started when a module has ended; what serves goes on."""
    monkeypatch.setattr(_warm_server, "spawn", full)
    server = a_server(tmp_path)
    (tmp_path / "7.rc").touch()
    one, zygote = an_interpreter()
    one.path = "/bin"
    one.tasks = {1: SimpleNamespace(ended=True, number=7, result=lambda: b"0 - - .\n")}  # type: ignore[dict-item]
    with closing(one.socket), zygote:
        server.settle([one])
    assert (tmp_path / "7.rc").read_bytes() == b"8\n0 - - .\n"
    assert not server.interpreters


@pytest.mark.parametrize("changed", [False, True])
def test_first_interpreter_is_dropped_if_something_changed_as_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """Nobody had looked at that before."""
    (tmp_path / "first").write_bytes(HEADER)
    (tmp_path / "watched").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_warm_server, "WATCHED", [str(tmp_path / "none"), str(tmp_path / "watched")])
    server = a_server(tmp_path)
    ours, zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with zygote, ours, open(os.devnull, "rb") as errors:
        server.adopt((ours, errors), (tmp_path / "watched").stat().st_ctime + (0.05 if changed else 1))
        assert bool(server.interpreters) != changed
        server.settle([])
        assert bool(server.leaving) == changed
        zygote.settimeout(0.1)
        if changed:
            assert zygote.recv(100) == b"", "it is told to end"
        else:
            with pytest.raises(TimeoutError):
                zygote.recv(100)


TABLE = "root:x:0:\none:x:1:one,two\n"


@pytest.mark.parametrize(
    ("now", "same"),
    [
        (TABLE + "three:x:3:\n", True),
        (TABLE + "three:x:3:0:three:/home/three:/bin/sh\nfour:x:4:0::/:/bin/sh\n", True),
        (TABLE + "three:x:3:one\n", False),
        (TABLE + "three:x:3:\nfour:x:4:one\n", False),
        ("three:x:3:\n" + TABLE, False),
        (TABLE.replace("two", "two,three"), False),
        (TABLE.replace("one,two", "one,to"), False),
        ("root:x:0:\n", False),
        ("", False),
    ],
)
def test_who_is_added_concerns_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str, same: bool) -> None:
    """But who becomes the member of a group that is there, or of a new one, may be somebody who has an interpreter."""
    path = tmp_path / "group"
    monkeypatch.setattr(_warm_server, "TABLES", (str(path),))

    def replace(content: str) -> None:
        (tmp_path / "new").write_text(content)
        (tmp_path / "new").rename(path)

    replace(TABLE)
    there = _warm_server.Surroundings([str(path)])
    replace(now)
    assert there.same() == same
    if same:
        replace(now + "five:x:5:\n")
        assert there.same()
        replace(TABLE)
        assert not there.same(), "who was added is gone"


def test_line_without_an_end_is_not_the_one_that_it_becomes() -> None:
    assert not _warm_server.adds_others(b"root:x:0:", b"root:x:0:one\n")
    assert not _warm_server.adds_others(b"root:x:0", b"root:x:0:\n")


def test_output_that_there_is_no_room_for_is_told_of(tmp_path: Path) -> None:
    with open(os.devnull, "rb") as stdin:
        task = _warm_server.Task(1, f"{tmp_path}/no such directory/1", b"", b"", os.dup(stdin.fileno()))
    for output in task.outputs:
        output.write(bytes(_warm_server.MOST_KEPT))
    task.rc = 0
    task.outputs[1].write(b"one more")
    assert task.result().partition(b"\n")[0] == b"0 =65536 - lost"
    for descriptor in (*task.streams, *task.theirs):
        os.close(descriptor)


def test_answer_that_there_is_no_room_for_is_told_of(agent: RunnerAgent, tmp_path: Path) -> None:
    server = _warm_server.Server.__new__(_warm_server.Server)
    server.home = str(tmp_path)
    answers = tmp_path / "1.rc"
    answers.write_bytes(b"5\nfirst")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # Python ignores the signal of that
    try:
        server.say(1, b"0 =2000 - .\n" + bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answers.read_bytes() == b"5\nfirst5\nfull\n"
    with pytest.raises(TransferError, match="did not fit"):
        WarmPython(agent, lambda line: None)._spool.result(1, b"full\n")


def many(name: str) -> dict[str, str]:
    """Return libraries of which each one imports the one before."""
    chain = {
        f"ansible/module_utils/{name}{number}.py": f"VALUE = {number}\n" for number in range(3 * _warm_modules.MANY)
    }
    return {**LIBRARIES, **chain, "ansible/module_utils/broken.py": "(\n"}


def test_libraries_that_are_compiled_on_two_processors(agent: RunnerAgent, warm: WarmPython) -> None:
    libraries = many("n")
    names = [name.rpartition("/")[2][:-3] for name in libraries if "/n" in name]
    program = "".join(f"from ansible.module_utils import {name}\nprint({name}.VALUE)\n" for name in names)
    result = warm.run(COMMAND, module(program, libraries))
    assert result and result.stdout.split() == [b"%d" % number for number in range(len(names))]


@pytest.mark.parametrize("beside", ["killed", "no room"])
def test_compiler_beside_that_does_not_end_well(monkeypatch: pytest.MonkeyPatch, beside: str) -> None:
    work = _warm_modules.Modules()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, source in many("k").items():
            file.writestr(name, source)
            module_name = name[: -len(".py")].replace("/", ".").removesuffix(".__init__")
            work.importer.table[module_name] = (source, name.endswith("/__init__.py"))
    if beside == "killed":
        monkeypatch.setattr(_warm_modules, "start_beside", lambda work: lambda: work()[:-100])
    else:
        monkeypatch.setattr(os, "fork", full)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    archive = _warm_modules.Archive(work.importer.table, base64.b64encode(content.getvalue()).decode())
    work.importer.learn(archive)
    assert set(work.importer.code) == set(many("k").values()) - {"(\n"}


WARNS = "VALUE = 1 is 1\n"


@pytest.mark.parametrize("kind", [_kind.KIND, b"another's\n"])
def test_code_that_comes_with_an_archive(monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    """It is taken by an interpreter of its kind; others compile, and what does not compile silently is in neither."""
    sources = {**many("c"), "ansible/module_utils/warns.py": WARNS}
    text = base64.b64decode(module("", sources).split(b"'")[-2])
    there = read_archive(base64.b64encode(text))
    assert there
    code = _kind.packed(_compiled.compiled(dict(there.sources.values())))
    work = _warm_modules.Modules()
    with zipfile.ZipFile(io.BytesIO(text)) as file:
        for name in file.namelist():
            module_name = name[: -len(".py")].replace("/", ".").removesuffix(".__init__")
            digest = hashlib.sha256(file.read(name)).hexdigest()[:32]
            work.importer.table[module_name] = digest, name.endswith("/__init__.py")
    compiled_here: list[int] = []

    def compiled(sources: _compiled.Sources) -> _compiled.Codes:
        compiled_here.append(len(sources))
        return _compiled.compiled(sources)

    monkeypatch.setattr(_warm_modules, "compiled", compiled)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    encoded = base64.b64encode(text).decode()
    archive = _warm_modules.Archive(work.importer.table, encoded, code.replace(_kind.KIND, kind))
    work.importer.learn(archive)
    new = {digest for digest, _package in work.importer.table.values()}
    assert len(new - set(work.importer.code)) == 2
    # What does not compile is tried here, and what is empty is no part.
    assert compiled_here == [3 if kind == _kind.KIND else len(new)]
    place = f"{_warm_modules.ARCHIVE}/ansible/module_utils/library.py"
    assert work.importer.get_code("ansible.module_utils.library").co_filename == place
    assert place in [path for _digest, (_text, path) in there.sources.values()], "it need not be put in again"


def test_module_whose_libraries_are_there_is_learnt_when_it_comes_again() -> None:
    """No task waits for that, and nothing is learnt twice."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("ansible/modules/quick.py", "print('quick')\n")
    work = _warm_modules.Modules()
    work.learnt.add("another")
    text = base64.b64encode(content.getvalue()).decode()
    work.archives["digest"] = _warm_modules.Archive({"ansible.modules.quick": ("source", False)}, text)
    request: Any = SimpleNamespace(archive="digest", before=0, content=3, program=lambda: WRAPPER.format("").encode())
    assert [work.learns(request), work.lessons] == [False, 0]
    request.content = None
    assert [work.learns(request), work.learns(request), work.lessons] == [False, False, 2]
    assert not work.importer.code
    work.take_lesson()
    assert [work.learns(request), work.lessons, *work.importer.code] == [False, 1, "source"]
    work.importer.code.clear()
    work.take_lesson()
    assert [work.lessons, *work.importer.code] == [0]


def test_modules_of_the_same_source_keep_their_paths() -> None:
    code = compile("def function():\n    return [lambda: 1]\n", "archive/first.py", "exec")
    assert _warm_modules.placed(code, "archive/first.py") is code
    other = _warm_modules.placed(code, "archive/other.py")
    for where, whole in (("archive/first.py", code), ("archive/other.py", other)):
        paths = []
        inner = [whole]
        while inner:
            one = inner.pop()
            paths.append(one.co_filename)
            inner += [constant for constant in one.co_consts if isinstance(constant, CodeType)]
        assert set(paths) == {where}
        assert len(paths) > 2


def child_that_writes(pages: mmap.mmap, numbers: range) -> int:
    """Start a child that writes to these pages, and return its process when it has."""
    ours, theirs = os.pipe()
    process = os.fork()
    if not process:
        for number in numbers:
            pages[number * mmap.PAGESIZE] = 1
        os.write(theirs, b".")
        signal.pause()
    os.close(theirs)
    assert os.read(ours, 1) == b"."
    os.close(ours)
    return process


def test_pages_that_two_children_write_to_are_had_ready() -> None:
    """Not those of one alone, however often that is looked at. The parent's own pages are no child's."""
    memory = _warm_modules.Memory()
    memory.begin()
    if [int(number) for number in os.uname().release.split(".")[:2]] < [5, 14]:
        pytest.skip("the kernel has no MADV_POPULATE_WRITE")
    assert memory.looks
    with mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for number in range(64):
            pages[number * mmap.PAGESIZE] = 2
        buffer = ctypes.c_char.from_buffer(pages)
        first = ctypes.addressof(buffer) // mmap.PAGESIZE
        del buffer

        def ready() -> set[int]:
            spans = [range(start // mmap.PAGESIZE, end // mmap.PAGESIZE) for start, end in memory.written]
            return {number - first for span in spans for number in span} & set(range(64))

        children = [child_that_writes(pages, numbers) for numbers in (range(32), range(16, 48), range(40, 64))]
        try:
            pauses, seen = [], []
            for child in children:
                for _time in range(2):
                    pauses.append(memory.look_after(child))
                    memory.look(child)
                    seen.append(ready())
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        assert pauses == [memory.FIRST_LOOK, 2 * memory.FIRST_LOOK] * 3
        two, three = set(range(16, 32)), {*range(16, 32), *range(40, 48)}
        assert seen == [set(), set(), two, two, three, three]
        memory.look(children[-1])  # which has gone
        assert ready() == three
        assert [memory.look_after(child) is None for child in children] == [True, True, False], "each at a stretch"
        memory.looks = 0
        assert memory.look_after(children[-1]) is None
        child = os.fork()
        if not child:
            memory.get_ready()
            with open("/proc/self/pagemap", "rb") as pagemap:
                said = os.pread(pagemap.fileno(), 64 * 8, first * 8)[7::8].translate(memory.OWN)
            os._exit(0 if {number for number in range(64) if said[number]} == ready() else 1)
        assert os.waitpid(child, 0)[1] == 0
