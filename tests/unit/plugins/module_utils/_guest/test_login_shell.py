# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The programs that run in the guest, run by the shells of this machine, with pipes, as an agent runs them."""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    OperationError,
    OutcomeUnknownError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest import login_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import Sum, agrees, begin_sum, sha256, sum_in
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import LARGEST_OUTPUT, GuestExec, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import (
    begin_shell,
    check_shell,
    kill,
    run_shell,
    start_shell,
)
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted, fails

KEPT = 1024 * 1024
EVERY_BYTE = bytes(range(256))

# As /bin/sh is on Debian, on Fedora and its family, on Alpine, and where somebody likes others; those of them that are
# on this machine.
# Not yash, which takes bytes that are no text in its locale for the end of a line.
_COMMANDS = {"sh": [], "bash": ["--posix"], "busybox": ["sh"], "mksh": []}
SHELLS = {name: [name, *options] for name, options in _COMMANDS.items() if shutil.which(name)}


@pytest.fixture(params=SHELLS)
def guest(request: pytest.FixtureRequest, tmp_path: Path, files_of_the_guest: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path, SHELLS[request.param], str(files_of_the_guest))
    if request.param == "busybox":
        # Its own tools too.
        for name in ("cat", "dd", "head", "id", "rm", "sha256sum"):
            (guest.tools / name).symlink_to(SHELLS[request.param][0])
    yield guest
    guest.close()


only_sh = pytest.mark.parametrize("guest", ["sh"], indirect=True)


@pytest.fixture
def files_of_the_guest(tmp_path: Path) -> Path:
    """The guest's /etc, where the prologue looks for an environment."""
    etc = tmp_path / "etc"
    (etc / "default").mkdir(parents=True)
    return etc


@pytest.fixture
def _quick_sleep(guest: Guest) -> None:
    """The guest's second takes a twentieth."""
    tool(guest, "sleep", "exec /bin/sleep 0.05")


@pytest.fixture
def executor(server: Scripted, connect: Callable[..., SocketAgent]) -> GuestExec:
    return GuestExec(connect(server))


@pytest.fixture(params=[True, False], ids=["whole", "replace"])
def whole(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def left_over(guest: Guest) -> list[Path]:
    prefix = Path(guest.prefix)
    return list(prefix.parent.glob(f"{prefix.name}*"))


# Commands arrive as they are


def in_quotes(data: bytes) -> bytes:
    return b"'" + data.replace(b"'", b"'\\''") + b"'"


COMMANDS = [
    pytest.param(b"printf '%s|' a \"b  c\" 'd\"'", b'a|b  c|d"|', id="quotes"),
    pytest.param(b"echo a\n", b"a\n", id="newline at the end"),
    pytest.param(b"echo a\n\n\n", b"a\n", id="newlines at the end"),
    pytest.param(b"\n\necho a\n  echo b  \n\techo c\t", b"a\nb\nc\n", id="lines"),
    pytest.param(b"", b"", id="nothing"),
    pytest.param(b"\n", b"", id="a newline"),
    pytest.param(b"# echo a", b"", id="a comment"),
    pytest.param(b"echo a # b\n# c\necho d", b"a\nd\n", id="comments"),
    pytest.param(b"cat <<'END'\n  $x `y` \\\n\n'\"\nEND\necho z", b"  $x `y` \\\n\n'\"\nz\n", id="here-document"),
    pytest.param(b"echo a\\\nb", b"ab\n", id="line that goes on"),
    pytest.param(b"printf %s 'a\n\n b\n'", b"a\n\n b\n", id="newlines in quotes"),
    pytest.param(b"printf %s 'a\\n%s\\\\ $HOME `id` $(id) \"'", b'a\\n%s\\\\ $HOME `id` $(id) "', id="no expansion"),
    pytest.param(b"x=' a  b '; printf %s \"$x\"", b" a  b ", id="spaces"),
    pytest.param(
        b"printf %s \xff\xfe'\xc3\xbc'\xf0\x9f\x98\x80\x80", b"\xff\xfe\xc3\xbc\xf0\x9f\x98\x80\x80", id="bytes"
    ),
    pytest.param(b"printf %s " + in_quotes(EVERY_BYTE[1:]), EVERY_BYTE[1:], id="every byte"),
    pytest.param(b"printf %s " + in_quotes(EVERY_BYTE[1:] * 8), EVERY_BYTE[1:] * 8, id="every byte, often"),
    pytest.param(b"printf %s -n '-e' '\\c'", b"-n-e\\c", id="what looks like an option"),
    pytest.param(b'f() { echo "$#"; }; f a b', b"2\n", id="function"),
    pytest.param(b"for n in 1 2 3; do echo $n; done", b"1\n2\n3\n", id="loop over a name of ours"),
    pytest.param(b"echo $#", b"0\n", id="no arguments"),
]


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_command_arrives_byte_for_byte(executor: GuestExec, command: bytes, output: bytes) -> None:
    result = run_shell(executor, command)
    assert (result.stdout, result.stderr, result.rc) == (output, b"", 0)


def test_command_that_takes_the_place_of_the_shell_arrives_byte_for_byte(executor: GuestExec) -> None:
    result = run_shell(executor, b"printf %s " + in_quotes(EVERY_BYTE[1:]) + b"\n\n", whole=False)
    assert (result.stdout, result.stderr, result.rc) == (EVERY_BYTE[1:], b"", 0)


def test_long_command_of_many_lines(executor: GuestExec, whole: bool) -> None:
    text = b"\n".join(b"line %d of %s" % (n, b"x" * (n % 97)) for n in range(500))
    result = run_shell(executor, b"cat <<'END'\n" + text + b"\nEND", whole=whole)
    assert result.stdout == text + b"\n"


@pytest.mark.parametrize(
    "stdin",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\n", id="a newline"),
        pytest.param(b"exit 5\n", id="what could be a command"),
        pytest.param(EVERY_BYTE * 5, id="bytes"),
        pytest.param(b"no newline at the end", id="no newline"),
        pytest.param(EVERY_BYTE * 4_000, id="1 MB"),
    ],
)
@pytest.mark.parametrize("command", [b"cat", b"\n# a comment\ncat; exit\n"])
def test_input_is_the_commands_own(executor: GuestExec, command: bytes, stdin: bytes) -> None:
    result = run_shell(executor, command, stdin)
    assert result.stdout == stdin
    assert result.rc == 0


def test_input_read_line_by_line(executor: GuestExec, whole: bool) -> None:
    result = run_shell(executor, b'read a; read b; echo "$b $a"; cat', b"1\n2\n3\n\x00", whole=whole)
    assert result.stdout == b"2 1\n3\n\x00"


def test_input_that_nobody_reads(executor: GuestExec, whole: bool) -> None:
    result = run_shell(executor, b"echo done", b"x" * 1_000_000, whole=whole)
    assert (result.stdout, result.rc) == (b"done\n", 0)


# Not posh itself, which not every machine has that runs this.
LIKE_POSH = """#!/bin/bash
[() { case $2 in -ef) return 2 ;; *) builtin [ "$@" ;; esac; }
eval "$2"
"""


@pytest.mark.parametrize("name", [name for name in ("posh",) if shutil.which(name)] + ["like posh"])
@pytest.mark.parametrize("how", ["run", "begin", "check"])
def test_shell_that_cannot_be_used(
    name: str, how: str, tmp_path: Path, scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent]
) -> None:
    """That is an error of its own, not a result of the command, which was not run."""
    (tmp_path / "like posh").write_text(LIKE_POSH, encoding="ascii")
    (tmp_path / "like posh").chmod(0o755)
    guest = Guest(tmp_path, [shutil.which(name) or str(tmp_path / name)])
    executor = GuestExec(connect(scripted(guest.answers())))
    command = f"touch {tmp_path}/done"
    with pytest.raises(
        OperationError, match=r"the program was not run: the guest's /bin/sh lacks \[ A -ef B \]"
    ) as caught:
        if how == "begin":
            begin_shell(executor, ShellCommand.of(command))()
        elif how == "check":
            check_shell(executor, command, "do it")
        else:
            run_shell(executor, command.encode())
    assert caught.value.executed == "no"
    assert not (tmp_path / "done").exists()
    guest.close()


@pytest.mark.parametrize("whole", [True, False])
def test_command_that_says_what_an_unusable_shell_says_has_run(executor: GuestExec, whole: bool) -> None:
    """As the program of a user whom a task has become may do."""
    command = f'echo "{login_shell._UNUSABLE}" >&2; exit 1'.encode("ascii")
    result = run_shell(executor, command, whole=whole)
    assert (result.rc, result.stderr) == (1, f"{login_shell._UNUSABLE}\n".encode("ascii"))


def test_session_of_its_own_is_asked_for_once(tmp_path: Path) -> None:
    """In a PID namespace with another's /proc, a shell never finds that it leads its group; its name may be odd too."""
    (tmp_path / "setsid").write_text(f'#!/bin/sh\necho once >>{tmp_path}/asked\nexec "$@"\n', encoding="ascii")
    (tmp_path / "setsid").chmod(0o755)
    (tmp_path / "a (shell) of").symlink_to("/bin/sh")
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin", "QEMU_GUEST": f"{login_shell._APART}echo done"}
    command = [str(tmp_path / "a (shell) of"), "-c", 'eval "$QEMU_GUEST"']
    assert subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=10).stdout == b"done\n"
    assert (tmp_path / "asked").read_text(encoding="ascii") == "once\n"
    leader = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, start_new_session=True)
    assert leader.stdout == b"done\n"
    assert (tmp_path / "asked").read_text(encoding="ascii") == "once\n"


# Results come back as they are


@pytest.mark.parametrize(
    ("command", "rc"),
    [
        (b"exit 0", 0),
        (b"exit 3", 3),
        (b"exit 255", 255),
        (b"false", 1),
        (b"true\nfalse", 1),
        (b"(exit 7)", 7),
        (b"set -e; (exit 8); echo not reached", 8),
        (b"exec sh -c 'exit 9'", 9),
        (b"/nonexistent/program 2>/dev/null", 127),
        (b"/etc/passwd 2>/dev/null", 126),
    ],
)
def test_exit_status(executor: GuestExec, whole: bool, command: bytes, rc: int) -> None:
    result = run_shell(executor, command, whole=whole)
    assert (result.rc, result.signal, result.stdout, result.stderr) == (rc, None, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_signal(executor: GuestExec, number: signal.Signals) -> None:
    command = b"ulimit -c 0; exec sh -c 'kill -%d $$'" % number
    result = run_shell(executor, command, whole=False)
    assert (result.rc, result.signal) == (None, number)
    result = run_shell(executor, command)
    assert (result.rc, result.shell_rc) == (128 + number, 128 + number)


def test_command_takes_the_place_of_the_shell(executor: GuestExec) -> None:
    result = run_shell(executor, b"kill -KILL $$", whole=False)
    assert (result.rc, result.signal) == (None, signal.SIGKILL)


def test_syntax_error_is_the_commands(executor: GuestExec, whole: bool) -> None:
    result = run_shell(executor, b"echo 'not closed", whole=whole)
    assert result.rc != 0
    assert result.stdout == b"" and result.stderr != b""


def test_streams_are_kept_apart(executor: GuestExec, whole: bool) -> None:
    command = b"printf o1; printf e1 >&2; printf o2\xff; printf e2\xfe >&2"
    result = run_shell(executor, command, whole=whole)
    assert (result.stdout, result.stderr) == (b"o1o2\xff", b"e1e2\xfe")


def test_no_descriptor_of_ours_is_left_to_the_command(executor: GuestExec, whole: bool) -> None:
    result = run_shell(executor, b"for d in 3 4 5 6 7; do (: >&$d) 2>/dev/null && echo $d; done; true", whole=whole)
    assert result.stdout == b""


def test_program_left_in_the_background_with_output_of_its_own(executor: GuestExec, whole: bool) -> None:
    result = run_shell(executor, b"/bin/sleep 60 >/dev/null 2>&1 </dev/null & echo $!", whole=whole)
    assert result.rc == 0
    os.kill(int(result.stdout), signal.SIGKILL)


# The environment of a login


def environment(output: bytes) -> dict[str, str]:
    variables = dict(entry.split("=", 1) for entry in output.decode().split("\0") if entry)
    for name in ("_", "SHLVL", "PWD"):
        variables.pop(name, None)
    return variables


LOGIN = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER")


def test_environment(executor: GuestExec, guest: Guest, whole: bool) -> None:
    user = subprocess.run(["id", "-un"], capture_output=True, check=True, text=True).stdout.strip()
    result = run_shell(executor, b"env -0; pwd >&2", whole=whole)
    variables = environment(result.stdout)
    assert sorted(variables) == sorted(LOGIN)
    home = os.path.expanduser(f"~{user}")
    assert variables["HOME"] == home
    assert variables["USER"] == variables["LOGNAME"] == user
    assert variables["SHELL"] == "/bin/sh"
    assert variables["LANG"] == "C.UTF-8"
    assert "/sbin" in variables["PATH"].split(":")
    assert result.stderr.decode() == f"{home}\n"


@pytest.mark.parametrize(
    ("passwd", "expected"),
    [
        ("{user}:x:0:0:root,:/root:/bin/cat\nother:x:1:1::/:/bin/ls\n", "/bin/cat"),
        ("other:x:1:1:A B:/:/bin/ls\n{user}:x:0:0::/root:/bin/cat\n", "/bin/cat"),
        ("{user}:x:0:0::/root:\n", "/bin/sh"),
        ("{user}:x:0:0::/root:/usr/sbin/nologin\n", "/bin/sh"),
        ("{user}:x:0:0::/root:/bin/false\n", "/bin/sh"),
        ("{user}:x:0:0::/root:/no/such/shell\n", "/bin/sh"),
        ("other:x:1:1::/:/bin/ls\n", "/bin/sh"),
        ("", "/bin/sh"),
    ],
)
def test_login_shell(executor: GuestExec, files_of_the_guest: Path, passwd: str, expected: str) -> None:
    (files_of_the_guest / "passwd").write_text(passwd.format(user=pwd.getpwuid(os.getuid()).pw_name))
    result = run_shell(executor, b'printf %s "$SHELL"', whole=False)
    assert (result.stdout.decode(), result.stderr) == (expected, b"")


def test_no_variable_of_ours_is_left_to_the_command(executor: GuestExec, whole: bool) -> None:
    result = run_shell(executor, b'printf "[%s]" "$c$f$l$m$n$u$v$t$QEMU_GUEST$QEMU_GUEST_OUTPUT$OLDPWD"', whole=whole)
    assert result.stdout == b"[]"


def test_environment_of_the_guest(executor: GuestExec, files_of_the_guest: Path, whole: bool) -> None:
    (files_of_the_guest / "environment").write_bytes(
        b"# a comment\n\nPLAIN=1\nexport EXPORTED=2\nDOUBLE=\"a b\"\nSINGLE='c d'\nEQUALS=a=b\n"
        b"NOTHING=\nDOLLAR=$HOME `id`\n  INDENTED=1\n1ST=1\nA-B=1\nWORD\nexport\n=1\n"
        b"HTTP_PROXY=http://proxy:3128/\nLC_TIME=C\nBYTES=\xff\nNO_NEWLINE=last"
    )
    (files_of_the_guest / "default" / "locale").write_text("LANG=C\nBOTH=1\n")
    (files_of_the_guest / "locale.conf").write_text('BOTH="2"\n')
    result = run_shell(executor, b"env -0", whole=whole)
    assert result.stderr == b""
    variables = dict(entry.split(b"=", 1) for entry in result.stdout.split(b"\0") if entry)
    found = {
        name.decode(): value for name, value in variables.items() if name.decode() not in (*LOGIN, "_", "SHLVL", "PWD")
    }
    assert found == {
        "PLAIN": b"1",
        "EXPORTED": b"2",
        "DOUBLE": b"a b",
        "SINGLE": b"c d",
        "EQUALS": b"a=b",
        "NOTHING": b"",
        "DOLLAR": b"$HOME `id`",
        "HTTP_PROXY": b"http://proxy:3128/",
        "LC_TIME": b"C",
        "BYTES": b"\xff",
        "NO_NEWLINE": b"last",
        "BOTH": b"2",
    }
    assert variables[b"LANG"] == b"C"


def test_variables_that_would_disturb_the_shell(executor: GuestExec, files_of_the_guest: Path, whole: bool) -> None:
    names = [*"cflmnruvt", "UID", "EUID", "PPID", "SHELLOPTS", "BASHOPTS"]
    lines = ["BEFORE=1", *(f"{name}=echo wrong" for name in names), "AFTER=2"]
    (files_of_the_guest / "environment").write_text("\n".join(lines))
    result = run_shell(executor, b'echo "right $BEFORE $AFTER"', whole=whole)
    assert (result.stdout, result.stderr, result.rc) == (b"right 1 2\n", b"", 0)


def test_home_that_does_not_exist(executor: GuestExec, files_of_the_guest: Path) -> None:
    (files_of_the_guest / "environment").write_text("HOME=/nonexistent\n")
    assert run_shell(executor, b"pwd", whole=False).stdout == b"/\n"


# Secrets


@only_sh
def test_nothing_of_the_command_is_in_what_the_agent_logs(executor: GuestExec, guest: Guest, whole: bool) -> None:
    for command in (b"echo secret1", b"echo secret2 \xff\n"):
        run_shell(executor, command, b"secret3", whole=whole)
    first, second = guest.started
    assert first["path"] == second["path"] == "/bin/sh"
    assert first["arg"] == second["arg"] == ["-c", 'eval "$QEMU_GUEST"']
    assert "secret" not in str([{**request, "input-data": ""} for request in guest.started])


# Output of any size


def pattern(size: int, seed: int) -> bytes:
    block = b"".join(hashlib.sha256(b"%d %d" % (seed, n)).digest() for n in range(2048))
    return (block * (size // len(block) + 1))[:size]


@pytest.mark.parametrize(
    ("out", "err"),
    [
        (KEPT - 1, 0),
        (KEPT, 0),
        (KEPT + 1, 1),
        (0, KEPT + 1),
        (1, KEPT),
        (5 * KEPT + 17, 3 * KEPT + 5),
    ],
)
def test_long_output_is_whole(executor: GuestExec, guest: Guest, tmp_path: Path, out: int, err: int) -> None:
    (tmp_path / "out").write_bytes(pattern(out, 1))
    (tmp_path / "err").write_bytes(pattern(err, 2))
    result = run_shell(executor, b"cat %s/out; cat %s/err >&2; exit 3" % ((str(tmp_path).encode(),) * 2))
    assert result.stdout == pattern(out, 1)
    assert result.stderr == pattern(err, 2)
    assert result.rc == 3
    assert not result.stdout_truncated and not result.stderr_truncated
    assert left_over(guest) == []


def test_long_output_in_small_pieces(executor: GuestExec, guest: Guest) -> None:
    """Pipes deliver what they have: whoever counts reads instead of bytes loses some."""
    script = b"i=0; while [ $i -lt 1500 ]; do printf '%01000d' $i; printf '%0100d' $i >&2; i=$((i+1)); done"
    result = run_shell(executor, script)
    assert result.stdout == b"".join(b"%01000d" % n for n in range(1500))
    assert result.stderr == b"".join(b"%0100d" % n for n in range(1500))
    assert left_over(guest) == []


def test_long_output_is_private(executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> int:
        modes.extend(path.stat().st_mode & 0o777 for path in left_over(guest))
        return guest.open(arguments)

    server.answers["guest-file-open"] = watched
    (tmp_path / "out").write_bytes(pattern(KEPT + 1, 1))
    run_shell(executor, b"cat %s/out" % str(tmp_path).encode())
    assert set(modes) == {0o600}


def test_input_that_one_request_cannot_carry(executor: GuestExec, server: Scripted, guest: Guest, whole: bool) -> None:
    executor.agent.largest_content = 1000
    modes: list[int] = []

    def watched(arguments: Mapping[str, Any]) -> int:
        modes.extend(path.stat().st_mode & 0o777 for path in left_over(guest))
        return guest.open(arguments)

    server.answers["guest-file-open"] = watched
    script = b"read -r a; echo $a; # " + b"x" * 2000 + b"\ncat; echo ${QEMU_GUEST_INPUT-unset}"
    result = run_shell(executor, script, b"first\n" + pattern(5000, 1), whole=whole)
    assert (result.rc, result.stdout) == (0, b"first\n" + pattern(5000, 1) + b"unset\n")
    assert set(modes) == {0o600}
    assert left_over(guest) == []
    assert max(len(base64.b64decode(request.get("input-data", ""))) for request in guest.started) <= 1000


def test_input_in_a_file_that_has_gone(executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path) -> None:
    """A program that is started after it was given up on finds no input, and does nothing."""
    executor.agent.largest_content = 1000

    def too_late(arguments: Mapping[str, Any]) -> dict[str, Any]:
        if any("QEMU_GUEST_INPUT=" in variable for variable in arguments["env"]):
            for path in left_over(guest):
                path.unlink()
        return guest.start(arguments)

    server.answers["guest-exec"] = too_late
    result = run_shell(executor, b"touch %b/done; # " % str(tmp_path).encode() + b"x" * 2000, whole=False)
    assert result.rc != 0 and not (tmp_path / "done").exists()


LONG = pattern(300_000, 1)
WHAT_INPUT = b"[ -p /dev/stdin ] && echo pipe || echo file; echo ${QEMU_GUEST_KEEP-unset} ${QEMU_GUEST_INPUT-unset}; "


@pytest.mark.parametrize("size", [60_000, 300_000])
def test_input_comes_by_a_pipe(executor: GuestExec, guest: Guest, whole: bool, size: int) -> None:
    """Else the user to whom a command becomes reads again what came before: a password."""
    before = os.umask(0o022)
    try:
        result = run_shell(executor, WHAT_INPUT + b"umask -S; cat", LONG[:size], whole=whole)
    finally:
        os.umask(before)
    assert (result.rc, result.stdout) == (0, b"pipe\nunset unset\nu=rwx,g=rx,o=rx\n" + LONG[:size])
    assert left_over(guest) == []


def test_agent_is_rid_of_long_input_before_the_program_is_there(executor: GuestExec, guest: Guest, whole: bool) -> None:
    """It might not want it, and the agent would poll the pipe for ever."""
    prefix = "" if not whole else login_shell.new_prefix()
    pid = start_shell(executor, b"exec sleep 60", LONG, prefix=prefix)
    program = guest.programs[pid].process
    assert program.stdin is not None
    for _attempt in range(500):
        if program.stdin.closed:
            break
        time.sleep(0.01)
    assert program.stdin.closed
    assert program.poll() is None
    assert kill(executor, pid, grace=1) == pid
    assert executor.finish(pid).shell_rc != 0
    assert left_over(guest) == []


@pytest.mark.parametrize("largest", [1000, None])
def test_who_is_killed_when_its_input_is_to_lose_its_name(
    executor: GuestExec, guest: Guest, whole: bool, largest: int | None, tmp_path: Path
) -> None:
    """The file is not left there. The first attempt to remove it takes too long."""
    if largest:
        executor.agent.largest_content = largest
    slow = f'case $1$2 in -f*.in) mkdir {tmp_path}/slow 2>/dev/null && exec /bin/sleep 60 ;; esac; exec /bin/rm "$@"'
    tool(guest, "rm", slow)
    prefix = "" if not whole else login_shell.new_prefix()
    pid = start_shell(executor, b"touch %b/done" % str(tmp_path).encode(), LONG[:70_000], prefix=prefix)
    while not (tmp_path / "slow").exists():
        time.sleep(0.01)
    assert left_over(guest)
    executor.agent.largest_content = 1 << 20
    assert kill(executor, pid, grace=5) == pid
    assert executor.finish(pid).shell_rc != 0
    assert left_over(guest) == [] and not (tmp_path / "done").exists()


def test_input_has_no_name_while_it_arrives(executor: GuestExec, guest: Guest, tmp_path: Path) -> None:
    """So that it is not left there, however its program ends meanwhile."""
    tool(guest, "cat", f"mkdir {tmp_path}/reading 2>/dev/null && exec /bin/sleep 60; exec /bin/cat")
    pid = start_shell(executor, b"exec sleep 60", LONG)
    while not (tmp_path / "reading").exists():
        time.sleep(0.01)
    assert left_over(guest) == []
    assert kill(executor, pid, grace=1) == pid


def test_input_that_was_never_read_is_removed_later(executor: GuestExec, guest: Guest) -> None:
    """Its controller was killed. That of others may still be on its way."""
    executor.agent.largest_content = 1000
    old, piece, new = (Path(f"{guest.prefix}{name}") for name in ("old.in", "old.12", "new.in"))
    for path, minutes in ((old, 61), (piece, 61), (new, 59)):
        path.touch()
        os.utime(path, (time.time() - 60 * minutes,) * 2)
    assert run_shell(executor, b"cat", LONG[:5000]).stdout == LONG[:5000]
    assert left_over(guest) == [new]


def test_signal_with_long_input(executor: GuestExec, whole: bool) -> None:
    result = run_shell(executor, b"kill -KILL $$", LONG, whole=whole)
    assert (result.shell_rc, result.stdout, result.stderr) == (128 + signal.SIGKILL, b"", b"")


def test_umask_of_an_agent_that_daemonised(executor: GuestExec, whole: bool) -> None:
    before = os.umask(0o077)
    try:
        assert run_shell(executor, b"umask -S", whole=whole).stdout == b"u=rwx,g=rx,o=rx\n"
    finally:
        os.umask(before)


def test_there_is_no_place_for_long_input(executor: GuestExec, guest: Guest) -> None:
    guest.prefix = f"{guest.tools}/no such directory/"
    result = run_shell(executor, WHAT_INPUT + b"cat", LONG, whole=False)
    assert (result.rc, result.stdout) == (0, b"pipe\nunset unset\n" + LONG)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_there_is_no_room_for_long_input(
    executor: GuestExec, guest: Guest, tmp_path: Path, whole: bool, elsewhere: bool
) -> None:
    """In /run, or in /dev/shm, which is tried then: the program is run once, or not at all."""
    full = f"{guest.prefix}*" if elsewhere else f"{guest.prefix}* | /dev/shm/qemu-guest.*"
    tool(guest, "cat", f"case $(readlink /proc/$$/fd/1) in {full}) exit 1 ;; esac; exec /bin/cat")
    command = WHAT_INPUT + b"cat; echo . >>%b/done" % str(tmp_path).encode()
    if elsewhere:
        result = run_shell(executor, command, LONG, whole=whole)
        assert (result.rc, result.stdout) == (0, b"pipe\nunset unset\n" + LONG)
        assert (tmp_path / "done").read_text() == ".\n"
    else:
        with pytest.raises(OperationError, match=r"not run: .* fits neither in /run nor in /dev/shm of the") as caught:
            run_shell(executor, command, LONG, whole=whole)
        assert caught.value.executed == "no"
        assert not (tmp_path / "done").exists()
    assert left_over(guest) == []
    variables = [entry.partition("=") for request in guest.started for entry in request.get("env", ())]
    places = [value for name, _equals, value in variables if name == "QEMU_GUEST_KEEP"]
    assert [place.split("/qemu-guest.")[0] for place in places] == ["/run", "/dev/shm"]
    assert not os.path.exists(places[1])


def tool(guest: Guest, name: str, script: str) -> None:
    """Put a program in the place of the guest's own."""
    path = guest.tools / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_long_output_without_a_dd_that_can_count(executor: GuestExec, guest: Guest, tmp_path: Path) -> None:
    tool(guest, "dd", "echo \"dd: unrecognized operand 'iflag=fullblock'\" >&2; exit 1")
    (tmp_path / "out").write_bytes(pattern(3 * KEPT, 1))
    result = run_shell(executor, b"cat %s/out; echo error >&2; exit 4" % str(tmp_path).encode())
    assert (result.stdout, result.stderr, result.rc) == (pattern(3 * KEPT, 1), b"error\n", 4)
    assert not result.stdout_truncated


def test_long_output_that_does_not_fit_in_run(executor: GuestExec, guest: Guest, tmp_path: Path) -> None:
    tool(guest, "cat", "echo 'cat: write error: No space left on device' >&2; exit 1")
    (tmp_path / "out").write_bytes(pattern(2 * KEPT, 1))
    with pytest.raises(TransferError, match="did not fit"):
        run_shell(executor, b"tail -c +1 %s/out" % str(tmp_path).encode())
    assert left_over(guest) == []


def test_long_output_without_an_end(executor: GuestExec, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's shell keeps no more than that; what says that there is more is not believed."""
    monkeypatch.setattr(login_shell, "LARGEST_OUTPUT", KEPT - 1)
    executor.agent.largest_output = KEPT - 2
    with pytest.raises(TransferError, match=r"guest-exec was run: .*did not fit"):
        run_shell(executor, b"head -c %d /dev/zero" % (2 * KEPT))
    assert left_over(guest) == []


@pytest.mark.parametrize(("redirected", "most"), [("", 6 << 20), (" >&2", 1 << 20)])
def test_long_output_has_a_part_of_what_is_free(
    executor: GuestExec, guest: Guest, tmp_path: Path, redirected: str, most: int
) -> None:
    """A program that writes more goes on, and what it wrote takes no room any more."""
    tool(guest, "df", "echo; echo tmpfs 16384 8192 8192 50% /run")
    result = run_shell(executor, f"head -c {KEPT + most} /dev/zero{redirected}; exit 3".encode())
    assert (len(result.stdout) + len(result.stderr), result.rc) == (KEPT + most, 3)
    command = f"head -c {KEPT + most + 1} /dev/zero; until ls {guest.prefix}*.lost; do sleep 0.1; done"
    command = f"{command}; ls -l {guest.prefix}* >'{tmp_path}/left'; head -c 1000000 /dev/zero; touch '{tmp_path}/done'"
    command = f"{{ {command}; }}{redirected} 2>/dev/null"
    with pytest.raises(TransferError, match="did not fit in the guest's /run"):
        run_shell(executor, command.encode())
    assert (tmp_path / "done").exists()
    assert {line.split()[4] for line in (tmp_path / "left").read_text().splitlines()} == {"0"}
    assert left_over(guest) == []


@only_sh
def test_long_output_has_no_more_than_is_read(guest: Guest, tmp_path: Path) -> None:
    tool(guest, "df", "echo; echo tmpfs 99999999 0 99999999 0% /run")
    assert login_shell.REST.startswith(f"m={LARGEST_OUTPUT // 512}\n")
    rest = f"{login_shell.REST}\nm=4096"
    for size, lost in ((4096 * 512, False), (4096 * 512 + 1, True)):
        script = f"{rest}\nhead -c {size} /dev/zero | rest '{tmp_path}/out' '{tmp_path}/lost' 1"
        subprocess.run([*guest.shell, "-c", script], env={"PATH": f"{guest.tools}:{os.environ['PATH']}"}, check=True)
        assert (tmp_path / "lost").exists() is lost
        assert (tmp_path / "out").stat().st_size == (0 if lost else size)
        (tmp_path / "out").unlink()


def test_function_of_ours_is_no_command(executor: GuestExec, guest: Guest) -> None:
    for name in ("keep", "lose", "rest"):
        tool(guest, name, f"echo the guest has {name}")
        assert run_shell(executor, f"{name} a b c".encode()).stdout.decode() == f"the guest has {name}\n"


@only_sh
def test_long_output_that_cannot_be_fetched_is_removed(
    executor: GuestExec, server: Scripted, guest: Guest, tmp_path: Path
) -> None:
    (tmp_path / "out").write_bytes(pattern(2 * KEPT, 1))
    server.then("guest-file-read", fails("failed to read file: Input/output error"))
    with pytest.raises(OutcomeUnknownError, match="its output could not be fetched: failed to read"):
        run_shell(executor, b"cat %s/out" % str(tmp_path).encode())
    assert left_over(guest) == []


@only_sh
def test_output_beyond_what_the_agent_keeps(executor: GuestExec, guest: Guest, tmp_path: Path) -> None:
    guest.capture = 2 * KEPT
    (tmp_path / "out").write_bytes(pattern(3 * KEPT, 1))
    command = b"cat %s/out" % str(tmp_path).encode()
    result = run_shell(executor, command, whole=False)
    assert len(result.stdout) == 2 * KEPT and result.stdout_truncated
    assert run_shell(executor, command).stdout == pattern(3 * KEPT, 1)


# check_shell


def test_check_shell(executor: GuestExec) -> None:
    assert check_shell(executor, "printf '\udcff'; echo warning >&2", "try") == b"\xff"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo first >&2; echo 'rm: it is busy' >&2; exit 1", "cannot try in the guest: rm: it is busy"),
        ("echo output; exit 7", "cannot try in the guest: exit status 7"),
        ("kill -9 $$", "cannot try in the guest: exit status 137"),
        ("printf '\udcff' >&2; false", "cannot try in the guest: \ufffd"),
    ],
)
def test_check_shell_fails(executor: GuestExec, command: str, reason: str) -> None:
    with pytest.raises(OperationError) as caught:
        check_shell(executor, command, "try")
    assert str(caught.value) == reason


# kill


def children(pid: int) -> set[int]:
    """Return the pids of all that ``pid`` has started, itself included."""
    found = {pid}
    parents = {int(path.name): parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    while True:
        more = {child for child, its_parent in parents.items() if its_parent in found} - found
        if not more:
            return found
        found |= more


def parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def runs(pid: int) -> bool:
    """Return whether ``pid`` is there and no zombie, which nobody may have collected here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def count_of(mark: str) -> int:
    """Return how many processes have this in their command lines."""
    return int(subprocess.run(["pgrep", "-c", "-f", mark], stdout=subprocess.PIPE, check=False).stdout)


def started(executor: GuestExec, command: bytes, tmp_path: Path) -> tuple[int, set[int]]:
    """Run a command that writes to the FIFO ``ready`` when all is up; return its pid and those of its family."""
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    pid = start_shell(executor, command.replace(b"READY", b"echo >%s" % str(fifo).encode()))
    fifo.read_bytes()
    return pid, children(pid)


@pytest.mark.usefixtures("_quick_sleep")
def test_kill_ends_the_whole_family(executor: GuestExec, tmp_path: Path) -> None:
    command = b"sh -c '/bin/sleep 60 & sh -c \"/bin/sleep 60 & READY; wait\" & wait' & wait"
    pid, family = started(executor, command, tmp_path)
    assert len(family) >= 5
    kill(executor, pid, grace=5)
    assert not any(map(runs, family))


@pytest.mark.usefixtures("_quick_sleep")
def test_kill_ends_what_is_started_meanwhile(executor: GuestExec, tmp_path: Path) -> None:
    mark = f"60.{tmp_path.stat().st_ino}"
    command = f"READY; i=0; while [ $i -lt 100 ]; do /bin/sleep {mark} & /bin/sleep 0.03; i=$((i+1)); done; wait"
    pid, _family = started(executor, command.encode(), tmp_path)
    kill(executor, pid, grace=5)
    assert count_of(mark) == 0


@only_sh
@pytest.mark.usefixtures("_quick_sleep")
def test_kill_spares_others(executor: GuestExec, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        pid, _family = started(executor, b"READY; exec /bin/sleep 60", tmp_path)
        kill(executor, pid, grace=5)
        assert other.poll() is None
        other.kill()


@pytest.mark.usefixtures("_quick_sleep")
def test_kill_ends_what_ignores_sigterm_though_its_parent_does_not(executor: GuestExec, tmp_path: Path) -> None:
    command = b"sh -c 'trap \"\" TERM; READY; while :; do /bin/sleep 1; done' & wait"
    pid, family = started(executor, command, tmp_path)
    assert len(family) >= 2
    kill(executor, pid, grace=3)
    assert not any(map(runs, family))


@pytest.mark.usefixtures("_quick_sleep")
def test_kill_lets_a_program_end_by_itself(executor: GuestExec, tmp_path: Path) -> None:
    mark = str(tmp_path / "cleaned up").encode()
    command = b"trap 'echo >\"%s\"; exit 5' TERM; READY; while :; do /bin/sleep 0.05; done" % mark
    pid, _family = started(executor, command, tmp_path)
    kill(executor, pid, grace=5)
    result = executor.finish(pid)
    assert (tmp_path / "cleaned up").exists()
    assert result.rc == 5


@only_sh
@pytest.mark.usefixtures("_quick_sleep")
def test_kill_what_is_gone(executor: GuestExec) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    kill(executor, gone.pid, grace=5)


# Checksums: here, because all these shells compute them.


@pytest.mark.parametrize("name", ["file", "a file", 'it\'s $HOME `id` "ü"', "-n"])
def test_sha256(executor: GuestExec, tmp_path: Path, name: str) -> None:
    data = pattern(100_000, 3)
    (tmp_path / name).write_bytes(data)
    assert sha256(executor, str(tmp_path / name)) == hashlib.sha256(data).hexdigest()
    assert sha256(executor, str(tmp_path / name), 70_000) == hashlib.sha256(data[:70_000]).hexdigest()


@pytest.mark.parametrize("data", [b"x", pattern(100_000, 4)])
def test_sum_that_compares(executor: GuestExec, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "it's $HOME"
    path.write_bytes(data)
    there = sum_in(begin_sum(executor, str(path), len(data))())
    assert there in (hashlib.blake2b(data).hexdigest(), hashlib.sha256(data).hexdigest())
    here = Sum(data).hexdigest()
    assert agrees(there, here, [data])
    assert not agrees(there, here, [data, b"y"])
    assert agrees(here, here, []), "as an interpreter in the guest sums up"
    assert not agrees(Sum(data + b"y").hexdigest(), here, [data])
    assert not agrees("", here, [data])


def test_sum_of_what_has_none(executor: GuestExec) -> None:
    assert sum_in(begin_sum(executor, "/proc/version", 1)()) == ""


def test_sha256_of_a_name_that_is_not_utf8(executor: GuestExec, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    Path(os.fsdecode(path)).write_bytes(b"x")
    assert sha256(executor, os.fsdecode(path)) == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("path", ["/proc/version", "/dev/null", "/", "/nonexistent"])
def test_sha256_of_what_has_none(executor: GuestExec, path: str) -> None:
    assert sha256(executor, path) == ""


def test_sha256_without_the_tool(executor: GuestExec, guest: Guest, tmp_path: Path) -> None:
    tool(guest, "sha256sum", "echo 'sha256sum: not found' >&2; exit 127")
    (tmp_path / "file").write_bytes(b"x")
    assert sha256(executor, str(tmp_path / "file")) == ""


def test_sha256_where_programs_are_blocked(
    scripted: Callable[..., Scripted], connect: Callable[..., SocketAgent], tmp_path: Path
) -> None:
    server = scripted(path=tmp_path / "blocked.sock", blocked={"guest-exec": "Command guest-exec has been disabled"})
    assert sha256(GuestExec(connect(server)), "/etc/passwd") == ""
