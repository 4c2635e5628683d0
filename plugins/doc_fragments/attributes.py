# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Attributes: what holds for all modules, and what for those that only read."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and return what would change, without changing the guest.
  diff_mode:
    description: Returns what changed, or would change, in diff mode.
  idempotent:
    description: When run twice in a row with the same options, the second run reports no change.
  action_group:
    description: Options that are the same for all modules can be set once, with C(module_defaults).
    support: full
    membership:
      - qemu.guest.qga
  become:
    description: Can become another user by C(become).
    support: partial
    details:
      - With O(address), the task becomes a user of the machine where it runs, one that may use the agent's socket.
      - On a host whose connection is P(qemu.guest.qga#connection), it is not used. The agent does the work as the user
        that it runs as, which is root almost everywhere.
"""

    # For modules that only read.
    READS = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - It changes nothing, so check mode is no different.
  diff_mode:
    support: N/A
    details:
      - It changes nothing.
  idempotent:
    support: full
    details:
      - It changes nothing.
"""
