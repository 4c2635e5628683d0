# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modes of files, as users write them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError

__all__ = ("DIRECTORY_MODE", "FILE_MODE", "mode_of")

FILE_MODE = 0o644
"""The mode of new files, unless the user says another."""

DIRECTORY_MODE = 0o755
"""The same of directories."""


def mode_of(mode: Any, present: int) -> int:
    """Return a mode as a number; YAML has turned C(0644) into one already. Symbols change ``present``.

    :raise OperationError: if it is no mode.
    """
    with suppress(ValueError):
        value = mode if isinstance(mode, int) else int(str(mode), 8)
        if 0 <= value <= 0o7777:
            return value
    umask = os.umask(0o022)  # of a login in the guest: it applies to symbols without u, g, o or a
    try:
        if not all(re.search("[-+=]", symbols) for symbols in str(mode).split(",")):
            raise ValueError
        return int(AnsibleModule._symbolic_mode_to_octal(_Status(present), str(mode)))
    except ValueError:
        raise OperationError(
            f"mode: {mode!r} should be an octal number in quotes, such as '0644', or in symbols, such as u=rw,g=r,o="
        ) from None
    finally:
        os.umask(umask)


class _Status(NamedTuple):
    """Of os.stat_result what AnsibleModule reads of a plain file."""

    st_mode: int
