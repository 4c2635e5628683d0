# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warm Python against plain Python: the interpreter of this machine, by a runner of this machine's shell."""

from __future__ import annotations

import base64
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandError,
    CommandUnavailable,
    GuestFileError,
    HandleLostError,
    NoRunnerError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import run_shell
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.spool import Spool, new_number
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import call, client
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import payload as _payload
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.call import Call
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import bytecode, compiler
from ansible_collections.qemu.guest.tests.unit.guest import Guest, without_room
from ansible_collections.qemu.guest.tests.unit.plugins.plugin_utils._runner.test_runner import unheard
from ansible_collections.qemu.guest.tests.unit.scripted import Clock, Scripted
from ansible_collections.qemu.guest.tests.unit.warm import (
    COMMAND,
    LIBRARIES,
    SPOOL,
    STAYS,
    module,
    plain,
    server_pid,
    shell_warmed,
    until,
    warmed,
)

# What programs put in place of their output.
TEE = """import sys
class Tee:
    def __init__(self, file): self.write = file.write
"""

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
    "descriptors": "import subprocess; print(subprocess.run(['ls', '/proc/self/fd'], stdout=subprocess.PIPE).stdout)",
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
    "own group": "import os; os.setpgrp(); os.setpgid(0, 0); print(os.getpgrp() == os.getpid())",
    "own session": "import os; os.setsid(); print(os.getsid(0) == os.getpid())",
    "child's group and session": "import os\nif not os.fork():\n    own = os.getpid()\n"
    "    seen = [os.getpgrp() == own, os.setpgrp(), os.getpgrp() == own, os.getsid(0) == own]\n"
    "    print(seen, flush=True)\n    os._exit(0)\nos.wait()\nif not os.fork():\n"
    "    os.setsid()\n    print(os.getsid(0) == os.getpid(), flush=True)\n    os._exit(0)\nos.wait()",
    "output that is not flushed": f"{TEE}    def flush(self): pass\n\nsys.stdout = Tee(sys.stdout)\nprint('x')",
    "output that cannot be flushed": f"{TEE}\nsys.stdout = Tee(sys.stdout)\nprint('x')",
    "output that nobody has": "import sys\nprint('x')\nsys.stdout = None",
    "files that stay open": "import builtins, os\nbuiltins.text = open(os.dup(1), 'w'); builtins.text.write('x')\n"
    "builtins.raw = open(os.dup(2), 'wb'); builtins.raw.write(b'y')",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_same_as_plain(agent: Runner, warm: WarmPython, program: str) -> None:
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


FAILS = {
    **LIBRARIES,
    "ansible/module_utils/fails.py": "import json\nimport sys\n\n\ndef fail():\n"
    "    assert not sys.flags.optimize, 'compiled for another kind of interpreter'\n    return json.nothing + 1\n",
}


@pytest.mark.parametrize("other", ["", "quick", "name", "kind"])
def test_what_the_controller_has_compiled(
    agent: Runner,
    warm_with: Callable[..., WarmPython],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:
    """Of the same kind or not, a traceback names the same lines, of files in an archive whose place is its own."""
    warm = warm_with(quick_seconds=60 if other == "quick" else -1)
    command = COMMAND
    if other == "name":
        command = str(tmp_path / "python3.1")
        os.symlink(sys.executable, command)
    elif other == "kind":
        command = f"PYTHONOPTIMIZE=1 {COMMAND}"
    codes: list[int] = []

    def packed(code: compiler.Codes) -> bytes:
        codes.append(len(code))
        return bytecode.packed(code)

    monkeypatch.setattr(_payload, "packed", packed)
    for program in ("from ansible.module_utils import fails\nfails.fail()", "def f():\n    library.nothing\nf()"):
        payload = module(program, FAILS)
        result, expected = warm.run(command, payload), plain(agent, payload, command)
        assert result
        assert b"AttributeError: " in result.stderr
        assert without_archive(result.stderr) == without_archive(expected.stderr)
    # Of the second one, what is new. What is empty is not a part. A quick guest has compiled by itself as soon.
    whole = [] if other == "quick" else [len(set(FAILS.values()) - {""})]
    assert codes == ([] if other == "name" else [*whole, 1])


def without_archive(text: bytes) -> bytes:
    return re.sub(rb"[^\"]*_payload\.zip/", b"", text)


def without_paths(text: bytes) -> bytes:
    """Leave out what differs from run to run: the name of the temporary directory, and where an object is."""
    return re.sub(rb"\bat 0x[0-9a-f]+", b"at ADDRESS", re.sub(rb"/tmp/tmp\w+/", b"/TMP/", text))


def assert_given_up(warm: WarmPython) -> None:
    with pytest.raises(OutcomeUnknownError):
        warm.run(COMMAND, module("import time; time.sleep(0.5); print('first')"))


def test_input_that_does_not_fit_on_the_ring(agent: Runner, warm: WarmPython) -> None:
    shell_warmed(warm)
    for size in [9_000, 50_000, 1_000_000] * 4:
        stdin = os.urandom(size)
        result = warm.run("cat", stdin)
        assert result and (result.rc, result.stdout) == (0, stdin)


def test_agent_that_is_restarted_between_and_during_tasks(agent: Runner, warm: WarmPython, guest: Guest) -> None:
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


def test_error_before_a_task_is_rung_for_says_that_nothing_was_run(
    agent: Runner, warm: WarmPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed(warm)
    monkeypatch.setattr(agent.agent, "execute", unheard(agent.agent, ".rc"))
    with pytest.raises(OutcomeUnknownError, match=r"^guest-exec was not run: no reply") as caught:
        warm.run(COMMAND, module(f"open({str(tmp_path / 'ran')!r}, 'w')"))
    assert caught.value.executed == "no"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("error", [OutcomeUnknownError, ProtocolError, TransferError, CommandError, GuestFileError])
@pytest.mark.parametrize("command", ["guest-file-write", "guest-file-close"])
def test_task_is_waited_for_if_it_is_unknown_whether_it_was_rung_for(
    agent: Runner,
    warm: WarmPython,
    guest: Guest,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    error: type[QgaError],
) -> None:
    """The answer tells; an error about the question would say nothing of the task, which runs."""
    warmed(warm)
    execute = agent.agent.execute
    lost: list[str] = []

    def executed(name: str, *arguments: Any, **how: Any) -> Any:
        value = execute(name, *arguments, **how)
        if name == command and not lost:
            lost.append(name)
            raise error("no right reply", command=name)
        return value

    monkeypatch.setattr(agent.agent, "execute", executed)
    result = warm.run(COMMAND, module("print('ran')"))
    assert result and result.stdout == b"ran\n"
    assert lost and not guest.files, "and no handle stays open"


def test_what_a_task_opens(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    """The server's ring and a file for the answer: no handle is used for a second request."""
    warmed(warm)
    task = WarmPython(agent, lambda line: None)
    opened = guest.handle
    assert task.run(COMMAND, module(""))
    assert guest.handle - opened == 2
    assert not guest.files, "and none stays open"


def test_guest_that_is_put_back_between_tasks(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    """The agent does not know any handle, nor has the server any answer: the next task is run, silently."""
    warmed(warm)
    guest.files.clear()
    for path in (guest.runner / SPOOL).glob("*.rc"):
        path.unlink()
    result = warm.run(COMMAND, module("print('next')"))
    assert result and result.stdout == b"next\n"


@pytest.mark.parametrize("handles", ["known", "unknown", "another's", "another's, of nothing"])
def test_guest_that_is_put_back_during_a_task(
    agent: Runner, warm: WarmPython, guest: Guest, tmp_path: Path, handles: str
) -> None:
    """What the guest knows nothing of any more is lost, and that is said within seconds."""
    warmed(warm)
    others = tmp_path / "others"
    others.write_text("" if handles.endswith("nothing") else "4711 answer 4\n0 - -\n")
    are_others: set[int] = set()

    def put_back() -> None:
        for path in (guest.runner / SPOOL).glob("*.rc"):
            path.unlink()
        if handles == "unknown":
            guest.files.clear()
        elif handles != "known":
            are_others.update(guest.files)
            for number in guest.files:
                guest.files[number] = os.open(others, os.O_RDONLY)

    threading.Timer(0.5, put_back).start()
    began = time.monotonic()
    with pytest.raises(OutcomeUnknownError, match=r"put back to a snapshot.*Look at the guest before you repeat it"):
        warm.run(COMMAND, module("import time; time.sleep(30); print('of another time')"))
    assert time.monotonic() - began < 15
    assert are_others <= set(guest.files), "they are closed by nobody else"
    result = warm.run(COMMAND, module("print('next')"))
    assert result and result.stdout == b"next\n"


def test_task_that_the_guest_has_never_taken(
    agent: Runner, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the client says it was rung for: the guest is as it was just before."""
    warmed(warm)
    execute = agent.agent.execute

    def swallowed(command: str, arguments: Any = None, **how: Any) -> Any:
        data = base64.b64decode((arguments or {}).get("buf-b64", ""))
        return {"count": len(data), "eof": False} if data.startswith(b"=") else execute(command, arguments, **how)

    monkeypatch.setattr(agent.agent, "execute", swallowed)
    with pytest.raises(OutcomeUnknownError, match="has not taken the task"):
        warm.run(COMMAND, module(""))


@pytest.mark.parametrize("command", ["guest-file-open", "guest-file-write"])
def test_agent_that_answers_nothing_while_a_task_runs(
    agent: Runner, warm: WarmPython, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The error is about the task, which may have run, and not about the question that has no answer."""
    warmed(warm)
    execute = agent.agent.execute
    read: list[str] = []

    def executed(name: str, *arguments: Any, **how: Any) -> Any:
        if name == "guest-file-read" or read:
            read.append(name)
            raise OutcomeUnknownError("no reply", command=command)
        return execute(name, *arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(agent.agent, "execute", executed)
        patch.setattr(call, "patiently", lambda agent, action: action())
        with pytest.raises(OutcomeUnknownError, match=r"^guest-exec may have run: contact was lost while the task ran"):
            warm.run(COMMAND, module(""))


def have_said(agent: Runner, monkeypatch: pytest.MonkeyPatch, say: Callable[[bytes, int], bytes]) -> None:
    """Have the guest say something else of each task: ``say`` is given the task's number, and how much may be read."""
    execute = agent.agent.execute
    tasks: dict[int, bytes] = {}

    def executed(command: str, arguments: Any = None, **how: Any) -> Any:
        if command == "guest-file-read" and arguments["handle"] in tasks:
            data = say(tasks[arguments["handle"]], arguments["count"])
            return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": False}
        reply = execute(command, arguments, **how)
        if command == "guest-file-open" and arguments["path"].endswith(".rc"):
            tasks[reply] = Path(arguments["path"]).stem.encode()
        return reply

    monkeypatch.setattr(agent.agent, "execute", executed)


def test_guest_that_says_no_end_of_things_in_place_of_an_answer(
    agent: Runner, warm: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not fill this machine's memory, even if whoever looks by the file's name is told what is usual."""
    warmed(warm)
    said = []

    def say(number: bytes, most: int) -> bytes:
        if most != call._PER_READ:
            return number + b" taken\n"
        said.append(most)
        return (number + b" taken\n") * (most // 24)

    have_said(agent, monkeypatch, say)
    with pytest.raises(OutcomeUnknownError, match="makes no sense"):
        warm.run(COMMAND, module("import time; time.sleep(30)"))
    assert sum(said) < 1 << 20


def test_answer_that_is_shorter_than_it_says_is_not_waited_for(warm: WarmPython, guest: Guest) -> None:
    warmed(warm)

    def answered() -> None:
        for path in (guest.runner / SPOOL).glob("*.rc"):
            with path.open("a") as file:
                file.write(f"{path.stem} answer 100\n0 - - .\n")

    threading.Timer(0.5, answered).start()
    began = time.monotonic()
    with pytest.raises(OutcomeUnknownError, match="the task's answer is damaged"):
        warm.run(COMMAND, module("import time; time.sleep(30)"))
    assert time.monotonic() - began < 15


def test_nonsense_in_place_of_what_is_missing(agent: Runner, warm: WarmPython, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was run, then, and the plain path is taken."""
    warmed(warm)
    have_said(agent, monkeypatch, lambda number, most: number + b" answer 11\nmissing \xff\xfe\n")
    assert warm.run(COMMAND, module("")) is None
    assert warm.run("true", b"") is None


def test_request_that_was_given_up_is_not_answered_to_the_next(
    agent: Runner, warm: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed(warm)
    with monkeypatch.context() as patch:
        patch.setattr(client, "pauses", lambda *_first: iter([0.05]))  # and no further
        assert_given_up(warm)
    time.sleep(0.7)
    result = warm.run(COMMAND, module("print('second')"))
    assert result and result.stdout == b"second\n"


@pytest.mark.parametrize("plain", [True, False])
def test_who_is_removed_has_no_interpreter(agent: Runner, warm: WarmPython, plain: bool) -> None:
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
        assert client._shell_request(ShellCommand(before), after).users is may


def test_archive_that_was_packed_anew_is_not_sent_again(
    agent: Runner, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch
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
    assert [name.partition(".")[2] for name in sent] == ["parts"], "what is new in it"


def test_each_brings_its_own_archive(
    agent: Runner, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch
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
    assert len({name.partition(".")[0] for name in names}) == 2


def test_environment_of_the_command(agent: Runner, warm: WarmPython) -> None:
    command = f"A='1 2' {COMMAND}"
    program = module("import os; print(os.environ['A'])")
    warmed(warm, command)
    result = warm.run(command, program)
    assert result and result.stdout == b"1 2\n"
    result = warm.run(COMMAND, program)
    assert result and b"KeyError: 'A'" in result.stderr, "another command line has another interpreter"


def test_marker_of_become(agent: Runner, warm: WarmPython) -> None:
    def command(letter: str) -> str:
        return f"/bin/sh -c 'echo BECOME-SUCCESS-{letter * 32} ; echo warn >&2; {COMMAND}'"

    warmed(warm, command("a"))
    result = warm.run(command("b"), module("print('out')"))
    assert result is not None
    assert result.stdout == b"BECOME-SUCCESS-" + b"b" * 32 + b"\nout\n"
    assert result.stderr == b"warn\n"


def test_changed_library_is_the_one_that_runs(agent: Runner, warm: WarmPython) -> None:
    warmed(warm)
    changed = {**LIBRARIES, "ansible/module_utils/library.py": "VALUE = 'second'\n"}
    one, two = (LIBRARIES, b"first FIRST\n"), (changed, b"second SECOND\n")
    for libraries, value in (two, one, two):
        result = warm.run(COMMAND, module("print(library.VALUE, other.OTHER)", libraries))
        assert result and result.stdout == value


def test_library_that_a_module_does_not_bring(agent: Runner, warm: WarmPython) -> None:
    warmed(warm)
    fewer = {name: source for name, source in LIBRARIES.items() if not name.endswith("other.py")}
    fewer["ansible/modules/work.py"] = "from ansible.module_utils import library\n"
    program = module("try:\n    from ansible.module_utils import other\nexcept ImportError:\n    print('none')", fewer)
    result = warm.run(COMMAND, program)
    assert result and result.stdout == b"none\n"


def test_module_that_alters_its_process_harms_no_other(agent: Runner, warm: WarmPython) -> None:
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


def test_interpreter_that_cannot_is_not_tried_again(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    broken = guest.tools / "python3"
    broken.write_text(f"#!/bin/sh\necho ran >>{guest.tools}/count\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    for _attempt in range(5):
        assert warm.run(str(broken), module("")) is None
    assert (guest.tools / "count").read_text() == "ran\n"


@pytest.mark.parametrize("command", ["guest-file-open", "guest-file-write"])
@pytest.mark.parametrize("there", [False, True])
def test_guest_without_room_is_left_to_the_plain_path(
    agent: Runner, warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch, there: bool, command: str
) -> None:
    """And nothing was run by then."""
    if there:
        shell_warmed(warm)
    touch = f"open({str(guest.tools / 'ran')!r}, 'w')"
    with monkeypatch.context() as full:
        full.setattr(agent.agent, "execute", without_room(agent.agent.execute, command))
        for given in (module(touch), os.urandom(100_000)):
            with suppress(NoRunnerError):  # which leads there, too
                assert warm.run(COMMAND, given) is None
    warmed(warm)
    assert not (guest.tools / "ran").exists()


def test_guest_whose_room_ends_during_a_task(agent: Runner, warm: WarmPython, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent opens nothing more; what it has open it still reads."""
    warmed(warm)

    def fill() -> None:
        monkeypatch.setattr(agent.agent, "execute", without_room(agent.agent.execute, "guest-file-open"))

    threading.Timer(0.3, fill).start()
    began = time.monotonic()
    result = warm.run(COMMAND, module("import time; time.sleep(2.5); print('there')"))
    monkeypatch.undo()
    assert result and result.stdout == b"there\n"
    assert time.monotonic() - began < 15


def frozen_at(monkeypatch: pytest.MonkeyPatch, agent: Runner, server: Scripted, request: int) -> None:
    """Freeze the guest for seven seconds before this request from now on."""
    execute, number = agent.agent.execute, itertools.count()

    def executed(*what: Any, **how: Any) -> Any:
        if next(number) == request:
            server.freeze(7)
        return execute(*what, **how)

    monkeypatch.setattr(agent.agent, "execute", executed)


@pytest.mark.parametrize("size", [1, 9000], ids=["short", "long"])
def test_guest_that_is_frozen_while_a_task_is_handed_over(
    agent: Runner,
    warm: WarmPython,
    guest: Guest,
    server: Scripted,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    """What has begun waits; only the very first request is refused. The task is run once."""
    warmed(warm)
    payload = module(f"open('{guest.tools}/count', 'a').write('x')") + b"# " + os.urandom(size).hex().encode()
    assert warm.run(COMMAND, payload) is not None
    for request in range(1, 9):
        with monkeypatch.context() as patched:
            frozen_at(patched, agent, server, request)
            result = warm.run(COMMAND, payload)
            assert result is not None and result.rc == 0
        clock.advance(7)
    assert (guest.tools / "count").read_text() == "x" * 9


@pytest.mark.parametrize("command", ["guest-file-open", "guest-file-write", "guest-file-close"])
def test_task_that_has_ended_in_a_frozen_guest_is_not_run_again(
    agent: Runner, warm: WarmPython, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Where the guest is thawed too late, no error may say that nothing was run."""
    warmed(warm)
    payload = module("print('o' * 100000)")
    assert warm.run(COMMAND, payload) is not None
    answer = Call.answer

    def answered(self: Call, *waits: Any) -> bytes:
        content = answer(self, *waits)
        execute = agent.agent.execute

        def refused(name: str, *what: Any, **how: Any) -> Any:
            if name == command:
                error = CommandUnavailable("it is frozen", command=name, reason="frozen")
                error.was_waited_for = True
                raise error
            return execute(name, *what, **how)

        monkeypatch.setattr(agent.agent, "execute", refused)
        return content

    monkeypatch.setattr(Call, "answer", answered)
    if command == "guest-file-write":  # the output was fetched; that its files may be removed could not be told
        result = warm.run(COMMAND, payload)
        assert result is not None and len(result.stdout) == 100_001
    else:
        with pytest.raises(OutcomeUnknownError, match="the task has ended"):
            warm.run(COMMAND, payload)
    monkeypatch.undo()


def test_server_that_was_killed_is_replaced(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    warmed(warm)
    assert warm.run("true", b"")  # what the server starts beside is there: as it begins, it has the ring open, too
    pid = server_pid(guest)
    starter = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    result = warm.run(COMMAND, module("print('another')"))
    assert result and result.stdout == b"another\n"
    until(lambda: not os.path.exists(f"/proc/{starter}"))
    assert not list(guest.runner.glob(f"{SPOOL}*.failed")), "it would be taken for the end of the new one"


def test_server_that_is_killed_as_soon_as_it_serves_is_not_waited_for(
    warm_with: Callable[..., WarmPython], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells that the start failed, because it did not."""
    warm = warm_with(start_seconds=3600)
    served = warm._spool.is_served

    def killed() -> bool:
        if served():
            os.kill(server_pid(guest), signal.SIGKILL)
            until(lambda: not served())
        return False

    monkeypatch.setattr(warm._spool, "is_served", killed)
    assert warm.run(COMMAND, module("")) is None
    assert not list(guest.runner.glob(f"{SPOOL}.*.parts"))


def children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


def test_task_waits_for_an_interpreter_that_starts(agent: Runner, warm: WarmPython) -> None:
    warmed(warm)
    command = f"sleep 0.7; {COMMAND}"
    result = warm.run(command, module("print('warm')"))
    assert result and result.stdout == b"warm\n"


@pytest.mark.parametrize("at_work", [False, True])
def test_server_that_is_killed_while_a_task_waits_for_it(
    agent: Runner, warm: WarmPython, guest: Guest, at_work: bool
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


CALLBACKS = """
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
held = [kind(lambda value, number=number: value + number) for number in range(1000)]
print(sum(function(0) for function in held))
"""


def test_many_callbacks_of_a_library_that_was_imported_in_advance(warm: WarmPython) -> None:
    """For these, libffi maps its own file again, by a descriptor that it opened at the import."""
    libraries = {**LIBRARIES, "ansible/module_utils/library.py": "import ctypes\n"}
    program = module(f"import ctypes{CALLBACKS}", {**libraries, "ansible/module_utils/other.py": ""})
    warmed(warm, program=program)
    for _time in range(3):
        result = warm.run(COMMAND, program)
        assert result and result.stdout == b"499500\n"


def test_quick_item_of_a_loop_after_a_slow_one_is_not_waited_for(warm: WarmPython, tmp_path: Path) -> None:
    """They have the same module, and how long that takes is in its arguments."""
    warmed(warm)
    slow = tmp_path / "slow"
    program = module(f"import os, time; time.sleep(3 if os.path.exists({str(slow)!r}) else 0)")
    for there, longest in ((False, 3), (True, 6), (False, 1.5), (False, 1.5)):
        slow.touch() if there else slow.unlink(missing_ok=True)
        began = time.monotonic()
        assert warm.run(COMMAND, program)
        assert time.monotonic() - began < longest


def test_task_waits_in_vain_for_an_interpreter_that_fails(agent: Runner, warm: WarmPython) -> None:
    warmed(warm)
    command = f"sleep 0.7; exit 1; {COMMAND}"
    for _time in range(3):
        assert warm.run(command, module("")) is None


def test_nothing_is_left_of_starts_that_fail(warm: WarmPython, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each brings the module's parts, after the shell that waits has found that there is no such interpreter."""
    write = Spool.write

    def late(spool: Spool, name: str, data: bytes) -> bool:
        if name.endswith(".parts"):
            until(lambda: list(guest.runner.glob(f"{SPOOL}.*.failed")))
            until(lambda: not list(guest.runner.glob(f"{SPOOL}.*.pid")))
            time.sleep(0.1)
        return write(spool, name, data)

    monkeypatch.setattr(Spool, "write", late)
    assert warm.run("/usr/bin/no-python", module("")) is None
    until(lambda: not list(guest.runner.glob(f"{SPOOL}.*.parts")))


END_IT = "import os; os.kill(os.getppid(), 9); import time; time.sleep(0.5); "


def test_interpreter_that_is_killed_with_its_task(warm: WarmPython) -> None:
    warmed(warm)
    said = r"the interpreter in the guest ended while the task ran \((was it killed\?|.*Killed.*)\)"
    with pytest.raises(OutcomeUnknownError, match=said):
        warm.run(COMMAND, module(END_IT + "os.kill(os.getpid(), 9)"))
    warmed(warm)


def test_interpreter_that_is_killed_costs_its_tasks_alone(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    """What serves goes on, and so does the task of another interpreter."""
    shell_warmed(warm)
    pid = server_pid(guest)
    command = Call(agent.agent, warm._spool, new_number())
    assert command.ask(client._shell_request(ShellCommand(b"sleep 1; echo fine"), b""))
    with pytest.raises(OutcomeUnknownError, match="the interpreter in the guest ended while the task ran"):
        warm.run(COMMAND, module(END_IT + "time.sleep(1)"))
    fine = warm._answer_of(command).result
    assert fine and fine.stdout == b"fine\n"
    result = warm.run(COMMAND, module("print('next')"))
    assert result and result.stdout == b"next\n"
    assert server_pid(guest) == pid


def test_agent_that_is_restarted_again_and_again_is_given_up(
    agent: Runner, warm: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell_warmed(warm)
    execute, rung = agent.agent.execute, []

    def restarted(command: str, *arguments: Any, **options: Any) -> Any:
        if command == "guest-file-write":
            rung.append(command)
            raise HandleLostError("handle '1000' has not been found")
        return execute(command, *arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(HandleLostError):
        patched.setattr(agent.agent, "execute", restarted)
        Call(agent.agent, warm._spool, new_number()).ask(client._shell_request(ShellCommand(b"true"), b""))
    assert len(rung) == call._ATTEMPTS


def test_interpreter_that_its_user_stops_is_replaced(
    agent: Runner, warm: WarmPython, guest: Guest, tmp_path: Path
) -> None:
    """What it has not read is not run, not even when it goes on; the plain path is left for that."""
    count = tmp_path / "count"
    payload = module(f"open({str(count)!r}, 'a').write('x')")
    warmed(warm, program=payload)
    ran = count.read_text()
    zygote = int(children(server_pid(guest)).split()[0])  # it was started first
    os.kill(zygote, signal.SIGSTOP)
    began = time.monotonic()
    assert warm.run(COMMAND, payload) is None
    assert time.monotonic() - began < 20
    with suppress(ProcessLookupError):
        os.kill(zygote, signal.SIGCONT)
    until(lambda: not os.path.exists(f"/proc/{zygote}"))
    assert count.read_text() == ran
    warmed(warm, program=payload)
    assert count.read_text() == ran + "x"


def test_why_an_interpreter_ended_is_told(warm: WarmPython) -> None:
    warmed(warm)
    zygote = "import os; error = os.open(f'/proc/{os.getppid()}/fd/2', os.O_WRONLY | os.O_APPEND); "
    with pytest.raises(OutcomeUnknownError, match=r"while the task ran \(ValueError: for a test\)"):
        program = zygote + "os.write(error, b'Traceback\\nValueError: for a test\\n'); "
        warm.run(COMMAND, module(program + END_IT + "os.kill(os.getpid(), 9)"))


def test_end(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    warmed(warm)
    pid = server_pid(guest)
    warm.end()
    for _attempt in range(200):
        if not (guest.runner / SPOOL).exists() and not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.02)
    raise AssertionError("it goes on")


def test_end_waits_for_the_task_of_another(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    shell_warmed(warm)
    another = Call(agent.agent, warm._spool, new_number())
    command = f"touch {guest.tools}/on; sleep 0.7; echo x"
    assert another.ask(client._shell_request(ShellCommand(command.encode()), b""))
    while not (guest.tools / "on").exists():
        time.sleep(0.01)
    warm.end()
    assert warm.run(COMMAND, module("")) is None, "it takes nothing on any more"
    assert warm._spool.result(another.number, another.answer(itertools.repeat(0.01))) == (0, b"x\n", b"")
    until(lambda: not (guest.runner / SPOOL).exists())


def test_nothing_of_a_task_stays(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    """But its answer, for a while; and what is long, not even that."""
    shell_warmed(warm)
    for _time in range(2):
        assert warm.run(COMMAND, module("SECRET = 'hunter2'"))
    assert warm.run("head -c 300000 /dev/zero", bytes(100_000))
    assert not guest.files
    until(lambda: {path.name for path in (guest.runner / SPOOL).iterdir() if path.suffix != ".rc"} == STAYS)
    assert not any(b"hunter2" in path.read_bytes() for path in (guest.runner / SPOOL).glob("*.rc"))


def test_nothing_stays_of_output_that_is_too_long(warm_with: Callable[..., WarmPython], guest: Guest) -> None:
    warm = warm_with(largest_output=200_000)
    shell_warmed(warm)
    with pytest.raises(TransferError, match="did not fit"):
        warm.run("head -c 300000 /dev/zero; head -c 100000 /dev/zero >&2", b"")
    until(lambda: {path.name for path in (guest.runner / SPOOL).iterdir() if path.suffix != ".rc"} == STAYS)


def test_each_task_has_its_own_status(warm: WarmPython) -> None:
    warmed(warm)
    programs = [module(f"raise SystemExit({status})") for status in (0, 5)]
    for program in programs:
        warmed(warm, program=program)
    for _time in range(20):
        for status, program in zip((0, 5), programs, strict=True):
            result = warm.run(COMMAND, program)
            assert result and result.rc == status
