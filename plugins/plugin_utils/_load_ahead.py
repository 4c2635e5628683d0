# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load what each task's process would load, once for all: they are forks of the process that this is called in.

ansible-core does so at the start of a playbook with the connections that are its own (PlaybookExecutor.run), not with
those of collections.
"""

from __future__ import annotations

import codecs
from contextlib import suppress

from ansible.plugins.loader import connection_loader, shell_loader

from ansible_collections.qemu.guest.plugins.plugin_utils._bytecode import kept_bytecode

__all__ = ("CONNECTION", "load_ahead")

CONNECTION = "qemu.guest.qga"


def load_ahead() -> None:
    """Load the connection, and what quick tasks over it load of ansible-core. Once it is done, this takes no time."""
    connection_loader.get(CONNECTION, class_only=True)
    shell_loader.get("sh")
    with kept_bytecode():
        from ansible_collections.qemu.guest.plugins.plugin_utils._warm import bundle
    bundle.digest()
    codecs.lookup("cp437")  # of the names in a module's archive
    with suppress(ImportError):  # ansible-core 2.16
        from ansible.module_utils.common.json import Direction, get_module_decoder, get_module_encoder

        for direction in Direction:
            get_module_encoder("legacy", direction)
            get_module_decoder("legacy", direction)
