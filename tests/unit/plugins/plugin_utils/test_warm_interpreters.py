# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interpreters, as their server sees them."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

from ansible_collections.qemu.guest.plugins.plugin_utils import _warm_interpreters
from ansible_collections.qemu.guest.tests.unit.warm import HEADER, an_interpreter


def test_late_end_of_a_process_is_not_that_of_the_next_task(tmp_path: Path) -> None:
    """A task tells its status before its process ends, and the next one may have begun when that is heard of."""
    one, zygote = an_interpreter()
    told = []
    with closing(one.socket), zygote, open(tmp_path / "in", "w+b") as file, open(tmp_path / "err", "w+b") as one.errors:
        for _task in range(2):
            one.hand_over(7, _warm_interpreters.Request(HEADER, file, 0), str(tmp_path / "7"))
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
        assert not one.hand_over(7, _warm_interpreters.Request(HEADER, file, 0), str(tmp_path / "7"))
        assert not one.tasks
    assert len(os.listdir("/proc/self/fd")) == before - 1, "nothing stays open"
