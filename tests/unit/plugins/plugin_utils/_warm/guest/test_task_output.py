# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of the output of tasks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._guest import executor
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.guest import task_output, wire
from ansible_collections.qemu.guest.tests.unit.warm import a_request


def test_output_that_there_is_no_room_for_is_told_of(tmp_path: Path) -> None:
    task = task_output.Task(1, a_request(), f"{tmp_path}/1", b"", b"")
    for output in task.outputs:
        output.path = f"{tmp_path}/no such directory/1"
        output.write(bytes(wire.MOST_OUTPUT))
    task.rc = 0
    task.outputs[1].write(b"one more")
    assert task.result().partition(b"\n")[0] == b"0 =65536 - lost"
    before = len(os.listdir("/proc/self/fd"))
    task.drop()
    assert len(os.listdir("/proc/self/fd")) == before - 4


def test_output_leaves_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent and all else in the guest need some of /run, whatever a task writes."""
    task = task_output.Task(1, a_request(), f"{tmp_path}/1", b"", b"")
    task.outputs[0].room.left = 200_000
    for _time in range(4):
        task.outputs[0].write(bytes(50_000))
    assert (tmp_path / "1.out").stat().st_size == 200_000
    for _time in range(6):
        task.outputs[0].write(bytes(50_000))
    task.rc = 0
    assert task.result() == b"0 o - lost\n"
    task.drop()
    assert (tmp_path / "1.out").stat().st_size == 0, "nobody reads a part"


def test_output_of_a_program_that_goes_on_for_ever(tmp_path: Path) -> None:
    """It may have much room: the client takes no more than this of it."""
    assert wire.LARGEST_OUTPUT == executor.LARGEST_OUTPUT
    task = task_output.Task(1, a_request(), f"{tmp_path}/1", b"", b"", 200_000)
    for output, size in zip(task.outputs, (50_000, 50_001), strict=True):
        for _time in range(4):
            output.write(bytes(size))
    task.rc = 0
    assert task.result() == b"0 o e lost\n"
    assert [output.lost for output in task.outputs] == [False, True]
    task.drop()
