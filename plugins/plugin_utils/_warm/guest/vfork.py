# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: start the programs of modules by vfork() (module_runner.py).

A fork copies each page that either process writes to. In an emulated guest, that takes a fifth of the time of a module
that starts a program. Nothing depends on this file: without ``start_programs_at_once``, modules work alike.
"""

from __future__ import annotations

import _posixsubprocess
import subprocess
import types

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from typing import Any

# The function that a module has Python call between fork() and exec().
BETWEEN = "AnsibleModule.run_command.<locals>.preexec"


def start_programs_at_once() -> None:
    """Have Python use vfork() where AnsibleModule.run_command prevents that for nothing.

    It gives Python a function to call before exec(), which sets the umask, if there is one to set. With such a
    function, Python uses fork().
    """
    fork_exec: Any = _posixsubprocess.fork_exec

    def start(*arguments: Any) -> Any:
        return fork_exec(*[None if does_nothing(one) else one for one in arguments])

    _posixsubprocess.fork_exec = start
    if hasattr(subprocess, "_fork_exec"):  # Python 3.11
        subprocess._fork_exec = start


def does_nothing(function: object) -> bool:
    """Return whether this is run_command's function, in ansible-core 2.16 to 2.21, without a umask to set."""
    if not isinstance(function, types.FunctionType) or function.__qualname__ != BETWEEN:
        return False
    code = function.__code__
    kept = dict(zip(code.co_freevars, function.__closure__ or ()))
    # _restore_signal_handlers acts in Python 2 only.
    known = code.co_names in (("os", "umask"), ("_restore_signal_handlers", "os", "umask"))
    return known and "umask" in kept and not kept["umask"].cell_contents
