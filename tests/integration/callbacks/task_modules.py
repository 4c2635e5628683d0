# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ansible.executor.process.worker import WorkerProcess
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_modules
type: aggregate
short_description: Append to the file that TASK_MODULES names, for each task, the modules that its process loaded
description: As a line of JSON. The process of a task is a fork of Ansible's own, and inherits what that has loaded.
"""


def _run(self: Any, run: Any = WorkerProcess._run) -> Any:
    inherited = set(sys.modules)
    try:
        return run(self)
    finally:
        with Path(os.environ["TASK_MODULES"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(sorted(set(sys.modules) - inherited)) + "\n")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_modules"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        WorkerProcess._run = _run
