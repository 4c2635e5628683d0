# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of the output of tasks."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.qemu.guest.plugins.plugin_utils import _warm_tasks


def test_output_that_there_is_no_room_for_is_told_of(tmp_path: Path) -> None:
    with open(os.devnull, "rb") as stdin:
        task = _warm_tasks.Task(1, f"{tmp_path}/no such directory/1", b"", b"", os.dup(stdin.fileno()))
    for output in task.outputs:
        output.write(bytes(_warm_tasks.MOST_KEPT))
    task.rc = 0
    task.outputs[1].write(b"one more")
    assert task.result().partition(b"\n")[0] == b"0 =65536 - lost"
    for descriptor in (*task.streams, *task.theirs):
        os.close(descriptor)
