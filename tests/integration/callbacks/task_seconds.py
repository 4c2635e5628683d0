# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_seconds
type: aggregate
short_description: Write how many seconds each task took, as JSON, into the file that TASK_SECONDS names
description: From the start of the task to its result, as a user sees it.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_seconds"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._seconds: list[tuple[str, float]] = []
        self._started = 0.0

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._started = time.monotonic()

    def v2_runner_on_ok(self, result: Any) -> None:
        task = getattr(result, "task", None) or result._task  # the name of cores before 2.19
        self._seconds.append((task.name, time.monotonic() - self._started))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        Path(os.environ["TASK_SECONDS"]).write_text(json.dumps(self._seconds), encoding="utf-8")
