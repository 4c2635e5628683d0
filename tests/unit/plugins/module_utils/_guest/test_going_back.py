# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that goes back to a snapshot from before an operation, at each of its requests.

What the operation has done so far is undone then, and the agent has forgotten its open files and programs. An operation
that says that it has succeeded has done all of its work since; any other has left what was there.
"""

from __future__ import annotations

import functools
import io
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import QgaError
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest import tree_put
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import Sizes
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import new_prefix, run_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch, put
from ansible_collections.qemu.guest.plugins.module_utils._guest.tree_put import New, put_trees
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_file
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted
from ansible_collections.qemu.guest.tests.unit.trees import tree

PROGRAMS = ("guest-exec", "guest-exec-status")
LARGE = b"more than ten bytes"
# A name of its own in /var/tmp, where files for directories of others are made.
NAME = f"file-{os.getpid()}"
KEPT = 1 << 20


class Past:
    """The answers of a ``guest`` that goes back, before the request ``number``, to where it was when this was made.

    Its files are in ``home``.
    """

    def __init__(self, guest: Guest, home: Path, number: int) -> None:
        self.number = number
        self.count = 0
        self._guest = guest
        self._home = home
        self._before = home.with_name("before")
        shutil.rmtree(self._before, ignore_errors=True)
        shutil.copytree(home, self._before)

    def answers(self, *without: str) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {name: functools.partial(self._answer, answer) for name, answer in self._guest.answers(*without).items()}

    def _answer(self, answer: Callable[[Mapping[str, Any]], Any], arguments: Mapping[str, Any]) -> Any:
        self.count += 1
        if self.count == self.number:
            self._go_back()
        if arguments.get("pid") in self._guest.programs:  # one question for each: the same requests each time
            self._guest.programs[arguments["pid"]].thread.join(30)
        return answer(arguments)

    def _go_back(self) -> None:
        guest = self._guest
        for program in guest.programs.values():
            with suppress(ProcessLookupError):
                os.killpg(program.process.pid, signal.SIGKILL)
            program.thread.join(30)
        for descriptor in guest.files.values():
            os.close(descriptor)
        guest.programs, guest.files, guest.handle = {}, {}, 1000  # it gives out the same numbers again
        prefix = Path(guest.prefix)
        for path in (*prefix.parent.glob(f"{prefix.name}*"), *Path("/var/tmp").glob(f".{NAME}.*")):
            path.unlink()
        for path in self._home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self._before, self._home, dirs_exist_ok=True)


class Deed(NamedTuple):
    """An operation in the guest's directory ``home``, what it returns, and what is there when it is done.

    ``there``: what the file has before it; None: there is none. ``owner``: whose the directory is.
    """

    do: Callable[[GuestExec, Path], object]
    after: Mapping[str, object]
    there: bytes | None = None
    returns: object = None
    owner: int = 0
    without: tuple[str, ...] = ()


def _put(content: bytes) -> Callable[[GuestExec, Path], object]:
    return lambda executor, home: put(executor, io.BytesIO(content), str(home / NAME))


def _append(content: bytes, **given: Any) -> Callable[[GuestExec, Path], object]:
    params = {name: option.get("default") for name, option in qga_file.SPEC.items()}
    params.update(content=content.decode(), append=True, mode="0640", **given)
    return lambda executor, home: run_operation(
        qga_file.OPERATION, executor.agent, {**params, "path": str(home / NAME)}, executor=executor
    )["changed"]


def _fetch(executor: GuestExec, home: Path) -> object:
    sink = io.BytesIO()
    fetch(executor, str(home / NAME), sink)
    return sink.getvalue()


def _trees(executor: GuestExec, home: Path) -> None:
    source, into = home.with_name("source"), os.fsencode(home)
    source.write_bytes(LARGE)
    groups = [[New(into + name, "f", 0o640, 0, 0, into, os.fsencode(source))] for name in (b"/a", b"/b")]
    put_trees(executor, groups)


def _output(executor: GuestExec, home: Path) -> object:
    result = run_shell(executor, f"head -c {KEPT + 5} /dev/zero".encode())
    return result.rc, len(result.stdout)


DEEDS = {
    "put": Deed(_put(3 * LARGE), {NAME: ((3 * LARGE).decode(), "600")}, returns=57),
    "put what shrinks": Deed(_put(b"a" * 999), {NAME: ("a" * 999, "644")}, b"old", returns=999),
    "put for others": Deed(_put(3 * LARGE), {NAME: ((3 * LARGE).decode(), "600")}, returns=57, owner=54321),
    "put without programs": Deed(
        _put(3 * LARGE), {NAME: ((3 * LARGE).decode(), "644")}, b"old", returns=57, without=PROGRAMS
    ),
    "append": Deed(_append(LARGE), {NAME: (f"old{LARGE.decode()}", "640")}, b"old", returns=True),
    "append for others": Deed(
        _append(LARGE), {NAME: (f"old{LARGE.decode()}", "640")}, b"old", returns=True, owner=54321
    ),
    "fetch": Deed(_fetch, {NAME: ((3 * LARGE).decode(), "644")}, 3 * LARGE, returns=3 * LARGE),
    "trees": Deed(_trees, {name: (LARGE.decode(), "640") for name in "ab"}),
    "long output": Deed(_output, {}, returns=(0, KEPT + 5)),
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _home_for_archives(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(tree_put, "new_prefix", lambda place="": new_prefix(str(home)) if place else new_prefix())


class Tiny(Sizes):
    """A file of some bytes takes as many requests as one of megabytes."""

    chunk, first, first_piece, piece = 10, 6, 400, 400


@pytest.mark.parametrize("small", [12, 400], ids=["in pieces", "at once"])
@pytest.mark.parametrize("name", DEEDS)
def test_guest_that_goes_back(
    guest: Guest,
    scripted: Callable[..., Scripted],
    connect: Callable[..., SocketAgent],
    home: Path,
    name: str,
    small: int,
) -> None:
    deed = DEEDS[name]
    if deed.owner and os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(home, deed.owner or -1, -1)
    server = scripted(guest.answers(*deed.without))
    sizes = Tiny()
    sizes.small = small
    executor = GuestExec(connect(server), sizes=sizes)
    succeeded = failed = 0
    for number in range(1, 200):
        for path in home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if deed.there is not None:
            (home / NAME).write_bytes(deed.there)
        before = tree(home)
        past = Past(guest, home, number)
        server.answers.update(past.answers(*deed.without))
        try:
            assert deed.do(executor, home) == deed.returns
        except QgaError:
            failed += 1
            assert tree(home) == before, f"before request {number}"
        else:
            succeeded += 1
            assert tree(home) == deed.after, f"before request {number}"
        if past.count < number:
            break
    assert succeeded > 1 and failed > 0
