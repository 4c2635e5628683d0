# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options that the modules which freeze have in common."""

    DOCUMENTATION = r"""
options:
  allow_stacked:
    description:
      - Freezes even where the task would refuse to, because a filesystem may lie in a file of another one that is
        frozen before it. Then the guest can hang in its kernel, frozen, for minutes, and O(thaw_after) cannot help.
      - Agents older than 10.0 freeze a filesystem at the mount point that was mounted last. So the file of a loop
        device is on a frozen filesystem, if that was mounted once more (a bind mount) after the loop device's was.
      - The error message names mount points for O(mountpoints) that freeze the same filesystems without that. Set this
        if you know that the file is elsewhere.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that the guest may take to freeze or to thaw, in place of O(agent_timeout). To freeze, it runs the hooks
        of its administrator and writes all unsaved data to its disks, which may take minutes.
    type: float
    default: 300
"""
