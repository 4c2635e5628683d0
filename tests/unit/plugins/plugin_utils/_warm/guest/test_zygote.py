# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of which interpreters are forked."""

from __future__ import annotations

import _socket
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import frames
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import zygote as _zygote
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.fingerprint import Fingerprint
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest.interpreter import Interpreter
from ansible_collections.qemu.guest.tests.unit.warm import a_request, an_interpreter, full

Pair = tuple[Interpreter, _zygote.Zygote]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """An interpreter, and its zygote, in this process."""
    monkeypatch.chdir("/")
    one, theirs = an_interpreter()
    fingerprint = Fingerprint()
    # Other tests write to where this process finds its modules, and have it map a library that they remove.
    fingerprint.seen.clear()
    fingerprint.lost = False
    zygote = _zygote.Zygote(theirs, _zygote.Work(), fingerprint)
    with closing(one), theirs:
        yield one, zygote
    for descriptor in (zygote.ended, zygote.wake):
        os.close(descriptor)


def test_what_is_to_be_learnt_goes_before_the_next_child(pair: Pair) -> None:
    """One that was forked before would not have it, and be in vain."""
    _one, zygote = pair
    zygote.had_request = zygote.prepared = zygote.has_spare_cpu = True
    zygote.work.lessons = 1
    assert zygote.chore() == (0, zygote.take_lesson)
    zygote.work.lessons = 0
    assert zygote.chore() == (0, zygote.fork_spare)


def test_tasks_are_looked_at_and_not_the_child_that_waits(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What that has written to while it got ready is not what tasks write to."""
    _one, zygote = pair
    looked: list[int] = []
    monkeypatch.setattr(zygote.work, "look_after", lambda process: 0.5)
    monkeypatch.setattr(zygote.work, "look", looked.append)
    zygote.children = {10: _zygote.Child(1, 0), 11: _zygote.Child(2, 1), 12: _zygote.Child(None, 2)}
    patience, look = zygote.chore()
    look()
    assert (patience, looked) == (0.5, [11])
    zygote.children = {12: _zygote.Child(None, 2)}
    assert zygote.chore()[0] is None


def handed_over(pair: Pair, tmp_path: Path) -> frames.InterpreterRequest:
    one, zygote = pair
    one.hand_over(7, a_request(), str(tmp_path / "7"))
    request = frames.receive(zygote.server)
    assert request
    assert request.program == b"program"
    return request


def test_interpreter_without_room_for_a_child_lives_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: Pair
) -> None:
    one, zygote = pair
    request = handed_over(pair, tmp_path)
    monkeypatch.setattr(os, "fork", full)
    assert zygote.fork_spare() is None
    assert zygote.hand_over(request) is None
    assert zygote.chore()[0] is None, "it does not try again and again"
    one.listen()
    task = next(iter(one.tasks.values()))
    assert task.ended
    assert task.result() == b"plain\n"
    task.drop()


def test_interpreter_that_is_stale_says_so_and_runs_nothing(tmp_path: Path, pair: Pair) -> None:
    one, zygote = pair
    library = tmp_path / "library"
    zygote.fingerprint.seen[str(library)] = None
    request = handed_over(pair, tmp_path)
    library.touch()
    assert zygote.hand_over(request) is None
    assert not zygote.children
    one.listen()
    (task,) = one.pop_refused()
    assert task.number == 7 and not one.tasks
    task.drop()


def test_request_is_given_to_one_child(tmp_path: Path, pair: Pair) -> None:
    """Where the one that has waited has read it, and closed its end, before the last is said."""
    _one, zygote = pair
    request = handed_over(pair, tmp_path)
    ours, theirs = _socket.socketpair()

    class Quick:
        """A socket at whose other end all is read at once."""

        def sendmsg(self, *message: object) -> int:
            sent = ours.sendmsg(*message)  # type: ignore[arg-type]
            theirs.close()
            return sent

        def __getattr__(self, name: str) -> object:
            return getattr(ours, name)

    zygote.children[os.getpid()] = _zygote.Child(None, 0)
    zygote.spare = os.getpid(), Quick()  # type: ignore[assignment]
    assert zygote.give_spare(request) == os.getpid()
    request.close()
