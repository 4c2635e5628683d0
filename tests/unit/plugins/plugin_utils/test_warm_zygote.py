# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of which interpreters are forked."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils import _warm_interpreters, _warm_zygote
from ansible_collections.qemu.guest.tests.unit.warm import HEADER, an_interpreter, full


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
        assert one.hand_over(7, _warm_interpreters.Request(HEADER, file, 0), str(tmp_path / "7"))
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
