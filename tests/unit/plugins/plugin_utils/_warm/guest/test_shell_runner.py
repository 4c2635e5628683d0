# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shell commands by a warm interpreter, against the plain way."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import resource
import signal
import stat
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._guest.checksum import (
    file_command,
    part_command,
    sha256_command,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.compression import GZIP, ZSTD
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ExecResult, ShellCommand
from ansible_collections.qemu.guest.plugins.module_utils._guest.fetch_packed import pack_command
from ansible_collections.qemu.guest.plugins.module_utils._guest.file_ops import Attributes, place_command, stage_command
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import remove_rest_command, run_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import room_command, unpack_command
from ansible_collections.qemu.guest.plugins.module_utils._guest.zstd import Compressor, zstd_decompress
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._warm import client
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import shell_runner
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.warm import COMMAND, SPOOL, called_here, shell_warmed

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
def test_shell_command_is_as_plain(agent: Runner, warm: WarmPython, command: str) -> None:
    shell_warmed(warm)
    for stdin in (b"a line\n\xff and more", b""):
        result, expected = warm.run(command, stdin), run_shell(agent, command.encode(), stdin)
        if "kill" in command:  # see test_same_as_plain
            expected = expected._replace(stderr=b"")
        assert result == expected


def test_shell_commands_beside_each_other(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    shell_warmed(warm)
    before = len(guest.files)
    begun = [warm.begin_shell(ShellCommand(command), b"") for command in (b"sleep 0.3; echo slow", b"exit 3")]
    result = warm.run("echo other", b"")
    assert result and result.stdout == b"other\n"
    ended = [one() for one in begun if one]
    assert [(one.rc, one.stdout) for one in ended if one] == [(0, b"slow\n"), (3, b"")]
    assert len(guest.files) == before, "there is one line for the next again"


NAME = "ansible-tmp-1700000000.5-12-345"
MAKE = (
    f'( umask 77 && mkdir -p "` echo {{0}} `"&& mkdir "` echo {{0}}/{NAME} `" && echo {NAME}="` echo {{0}}/{NAME} `" )'
)
REMOVE = f"rm -f -r {{0}}/{NAME}/ > /dev/null 2>&1"


INPUT = b"its \xff input\n"
INPUT_SUM = hashlib.sha256(INPUT).hexdigest()


LIST = r"find . -printf '%p %m %U %y %l\n' | sort; find . -type f -printf '%p %s\n' | sort"


def around_modules(base: Path) -> Iterator[str | ShellCommand]:
    """What is done by shells around modules, here below a directory, and what shows what was done.

    Each part begins with what the one before has left.
    """
    yield from of_core(base)
    yield from of_file_ops(base)
    yield from of_unprivileged_users(base)
    yield from of_modes_and_checksums(base)
    yield from of_unpacking(base)
    yield from of_packing(base)


def of_core(base: Path) -> Iterator[str | ShellCommand]:
    """Directories for modules, as ansible-core makes and removes them."""
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


def of_file_ops(base: Path) -> Iterator[str | ShellCommand]:
    yield f"cd {base}; ln -s file to-file; ln -s nowhere to-nothing; chmod 640 file"
    yield f"cd {base}; mkdir directory; mkfifo fifo; : >empty"
    for name in ("new", "new", "file", "to-file", "to-nothing", "directory", "no/directory", "with space", "kept/x"):
        yield place_command(f"{base}/{name}", sha256=INPUT_SUM, new=".new")
        yield place_command(f"{base}/{name}", sha256="0" * 64, new=".new")
        yield stage_command(f"{base}/{name}", ".staged")
        yield place_command(f"{base}/{name}", content="", new=".staged", safe=True)
        yield place_command(f"{base}/{name}", content="", new=".staged", size=1, safe=True)
        yield f"cd {base}; {LIST}"
        yield f"cd {base}; mkdir -p kept/x; rm -f .staged kept/.staged"
        yield f"cd {base}; ln -sfn file to-file; ln -sfn nowhere to-nothing"
        yield f"cd {base}; echo more >>file; chown 54321:54321 file"


def of_unprivileged_users(base: Path) -> Iterator[str | ShellCommand]:
    """Directories that are theirs, and devices."""
    yield f"cd {base}; mkdir theirs; chown 54321 theirs; ln -s theirs to-theirs; ln -s kept theirs/to-kept"
    yield f"cd {base}; chown -h 54321 theirs/to-kept; touch theirs/old; chown 54321 theirs/old"
    for name in ("theirs/new", "theirs/old", "to-theirs/new", "theirs/to-kept/new"):
        yield place_command(f"{base}/{name}", sha256=INPUT_SUM, new=".new")
    yield stage_command(f"{base}/theirs/new", ".staged.by-a-test")
    yield f"rm -f /var/tmp/.staged.by-a-test; cd {base}; {LIST}"
    yield place_command("/dev/null", sha256=INPUT_SUM, new=".new")
    yield place_command("/dev/full", sha256=INPUT_SUM, new=".new")


def of_modes_and_checksums(base: Path) -> Iterator[str | ShellCommand]:
    yield f"cd {base}; rm -f to-nothing to-file; ln -s nowhere to-nothing; ln -s file to-file; : >file"
    yield f"cd {base}; mkdir shared; chmod 2051 shared; chmod 4604 new"
    for names in (["shared/", "new"], ["to-file"], ["none"], ["to-nothing", "empty"], ["empty", "none", "part"]):
        yield " ".join(["chmod u+rwx", *(f"{base}/{name}" for name in names)])
    yield f"chmod u+rwx {base}/e*"
    yield f"cd {base}; find . -printf '%p %m %U %y\\n' | sort"
    for name in ("new", "to-file", "empty", "to-nothing", "directory", "fifo", "with space"):
        yield file_command(f"{base}/{name}")
        yield sha256_command(f"{base}/{name}")
        yield sha256_command(f"{base}/{name}", 3)
        yield sha256_command(f"{base}/{name}", None, 2)
        yield sha256_command(f"{base}/{name}", None, 1 << 20)
        yield part_command(f"{base}/{name}", 3, 5) if name != "fifo" else "true"
    yield part_command(f"{base}/new", 100, 5)


def of_unpacking(base: Path) -> Iterator[str | ShellCommand]:
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


def of_packing(base: Path) -> Iterator[str | ShellCommand]:
    yield room_command(f"{base}/prefix")
    yield room_command(f"{base}/no/prefix")
    for name in ("new", "to-file", "empty", "to-nothing", "directory", "no", "with space"):
        yield pack_command(ZSTD, f"{base}/{name}", range(3, 11), f"{base}/spool.5", f"{base}/spool.0")
        yield f"zstd -dc <{base}/spool.5"
    yield pack_command(ZSTD, f"{base}/new", range(100), f"{base}/no/prefix", f"{base}/none")
    yield pack_command(ZSTD, f"{base}/new", range(100), "/dev/full", f"{base}/none")
    yield f"cd {base}; echo packed | zstd -c1 >part; head -c 12 part >damaged"
    for name in ("part", "damaged", "text", "no"):
        yield unpack_command(ZSTD, f"{base}/{name}", f"{base}/out", 7, append=True)
    yield f"cat {base}/out"
    yield f"cd {base}; touch spool spoolx .spool.1; mkdir -p spool.d/x; find . | sort"
    yield remove_rest_command(f"{base}/prefix")
    yield f"rm -r {base}/spool.d; rm -f {base}/none.*"
    yield f"cd {base}; touch spool.5 spool.6"
    yield remove_rest_command(f"{base}/prefix")
    yield f"cd {base}; find . -printf '%p %m %U %y\\n' | sort; cat new file kept/x"


def test_commands_around_modules_are_as_plain(agent: Runner, warm: WarmPython, tmp_path: Path) -> None:
    """Those that are calls are as their shell text."""
    shell_warmed(warm)

    def by_warm(command: ShellCommand) -> ExecResult | None:
        begun = warm.begin_shell(command, INPUT)
        return begun() if begun else None

    results = []
    for name, run in (("warm", by_warm), ("plain", lambda command: run_shell(agent, command.text, INPUT))):
        base = tmp_path / name
        base.mkdir()
        (base / "file").touch()
        (base / "link").symlink_to(base)
        lines = []
        for given in around_modules(base):
            command = given if isinstance(given, ShellCommand) else ShellCommand.of(given)
            result = run(command)
            assert result is not None
            texts = [
                text.decode("utf-8", "replace").replace(str(base), "BASE") for text in (result.stdout, result.stderr)
            ]
            text = command.text.decode().replace(str(base), "BASE")
            lines.append([command.function, text, result.rc, *texts])
        results.append(lines)
    for warm_line, plain_line in zip(*results, strict=True):
        function, _text, rc, printed, _errors = warm_line
        if function in ("sum_of", "sum_of_file", "unpack", "pack") and rc == 0:
            assert re.fullmatch(r"[0-9a-f]{8}  -\n", printed) or warm_line == plain_line
            warm_line[3] = plain_line[3] = "a checksum"
        elif function == "make_room" and rc == 0:  # a shell prints where that is
            assert printed
            warm_line[3] = plain_line[3] = "something"
        assert warm_line == plain_line


def test_commands_of_ansible_core_need_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    done_here = shell_runner.done_here
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
    path.touch(0o600)
    assert done_here(f"chmod u+rwx {parent}/ {path}".encode()) == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for command in (
        f"rm -f -r {parent} > /dev/null 2>&1",
        "echo ~; id",
        MAKE.format("/a$(id)"),
        REMOVE.format("a"),
    ):
        assert done_here(command.encode()) is None


@pytest.mark.parametrize("name", ["file", "a 'file' \udcff"])
def test_calls_need_no_shell(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    checksum = hashlib.sha256(b"its input").hexdigest()
    assert called_here(place_command(str(path), sha256=checksum), b"its input") == checksum.encode()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"its input", 0o600)
    assert called_here(stage_command(str(path), ".new")) == f"{tmp_path}/.new".encode()
    assert stat.S_IMODE((tmp_path / ".new").stat().st_mode) == 0o600
    (tmp_path / ".new").write_bytes(b"its input")
    path.chmod(0o640)
    with pytest.raises(OSError, match="not all there"):
        called_here(place_command(str(path), content="", new=".new", size=10, safe=True))
    assert called_here(place_command(str(path), content="", new=".new", size=9, safe=True)) == b""
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"its input", 0o640)
    printed = [f"{zlib.crc32(data):08x}  -\n".encode() for data in (b"its input", b"inpu", b"more")]
    assert called_here(file_command(str(path))) == printed[0]
    assert called_here(part_command(str(path), 4, 4)) == printed[1]
    for size, data in ((None, b"its input"), (4, b"its "), (99, b"its input")):
        summed = called_here(sha256_command(str(path), size))
        assert summed == hashlib.sha256(data).hexdigest().encode() + b"  -\n"
    (tmp_path / "part").write_bytes(gzip.compress(b"more"))
    assert called_here(unpack_command(GZIP, f"{tmp_path}/part", str(path), 4, append=True)) == printed[2]
    (tmp_path / "part").write_bytes(Compressor(1).compress(b"more"))
    assert called_here(unpack_command(ZSTD, f"{tmp_path}/part", str(path), 4, append=True)) == printed[2]
    assert path.read_bytes() == b"its inputmoremore"
    prefix = tmp_path / "kept"
    assert called_here(room_command(str(prefix)))
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("kept.0", "kept.1")] == [0o600] * 2
    packed = pack_command(ZSTD, str(path), range(4, 8), f"{prefix}.2", f"{prefix}.1")
    assert called_here(packed) == printed[1]
    assert zstd_decompress((tmp_path / "kept.2").read_bytes(), 4) == b"inpu"
    assert stat.S_IMODE((tmp_path / "kept.2").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.glob("kept.*")) == ["kept.0", "kept.2"]
    assert called_here(remove_rest_command(str(prefix))) == b""
    assert not list(tmp_path.glob("kept.*"))


@pytest.mark.parametrize(
    "command",
    [
        place_command("/a", Attributes(mode="644"), sha256="0" * 64),
        place_command("/a", Attributes(restore_label=True), sha256="0" * 64),
        place_command("/a", sha256="0" * 64, safe=True),
        place_command("/a", content="/b", sha256="0" * 64),
        place_command("/a"),
        pack_command(GZIP, "/a", range(4), "/b", "/c"),
    ],
)
def test_what_only_a_shell_does_is_no_call(command: ShellCommand) -> None:
    assert not command.function


def test_command_that_may_have_to_be_ended_is_not_left_to_a_shell(
    agent: Runner, warm: WarmPython, tmp_path: Path
) -> None:
    """A shell that an interpreter has become can be ended by nobody."""
    shell_warmed(warm)
    begun = warm.begin_shell(ShellCommand(f"touch {tmp_path}/done".encode(), in_time=True), b"")
    assert begun and begun() is None
    assert not (tmp_path / "done").exists()
    (tmp_path / "file").write_bytes(b"content")
    begun = warm.begin_shell(sha256_command(f"{tmp_path}/file")._replace(in_time=True), b"")
    result = begun() if begun else None
    assert result and result.stdout == hashlib.sha256(b"content").hexdigest().encode() + b"  -\n"


@pytest.mark.parametrize("held", [True, False])
def test_nobody_waits_at_a_fifo_in_the_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """It was put there when it had been looked at."""
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os.path, "isfile", lambda path: True)
    monkeypatch.setattr(os.path, "getsize", lambda path: 1 << 20)
    path = f"{tmp_path}/fifo"
    holder = os.open(path, os.O_RDWR) if held else os.open("/dev/null", os.O_RDONLY)
    try:
        for command in (
            file_command(path),
            sha256_command(path),
            part_command(path, 3, 5),
            pack_command(ZSTD, path, range(100), f"{tmp_path}/new", f"{tmp_path}/old"),
        ):
            with pytest.raises(OSError, match="not a regular file"):
                called_here(command)
    finally:
        os.close(holder)


def test_longer_command_is_left_to_the_plain_path(agent: Runner, warm: WarmPython) -> None:
    shell_warmed(warm)
    assert warm.run(":" + " " * client._LONGEST_COMMAND, b"") is None


def test_shell_command_starts_no_server(agent: Runner, warm: WarmPython, guest: Guest) -> None:
    assert warm.run("echo", b"") is None
    assert run_shell(agent, b"echo").stdout == b"\n"
    time.sleep(0.5)
    assert not list(guest.runner.glob(f"{SPOOL}*"))


SHRINKS = """
import os, sys, zlib
sys.path.insert(0, sys.argv[1])
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import shell_runner
whole = zlib.crc32
def crc32(*arguments):
    os.truncate(sys.argv[2], 0)
    return whole(*arguments)
zlib.crc32 = crc32
shell_runner.sum_of(os.fsencode(sys.argv[2]), 4, 100000)
"""


def test_file_that_shrinks_while_it_is_summed_up(tmp_path: Path) -> None:
    """Nobody is told a checksum, and the guest's administrator not of a crash."""
    (tmp_path / "file").write_bytes(bytes(200_000))
    collections = Path(shell_runner.__file__).parents[7]

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
def test_parts_of_a_file_are_summed_up(tmp_path: Path, start: int, size: int) -> None:
    """In windows, which begin where a page does."""
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    printed = shell_runner.sum_of(os.fsencode(tmp_path / "file"), start, size, window=70_000)
    assert printed == b"%08x  -\n" % zlib.crc32(content[start : start + size])


def test_names_are_those_of_the_command_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell takes them as they are."""
    there = tmp_path / "in"
    there.mkdir()
    monkeypatch.setattr(os, "fsencode", lambda name: str(name).encode("latin-1", "surrogateescape"))
    assert called_here(place_command(f"{there}/\u00e4\udcff", sha256=INPUT_SUM), INPUT) == INPUT_SUM.encode()
    assert os.listdir(bytes(there)) == ["\u00e4".encode() + b"\xff"]
