# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess

from ansible.plugins.loader import lookup_loader

from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import program


def test_program() -> None:
    (text,) = lookup_loader.get("qemu.guest.runner_program").run([], {})
    assert text == program()
    subprocess.run(["sh", "-n"], input=text.encode("ascii"), check=True)
