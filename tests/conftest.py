# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make `ansible_collections.qemu.guest` importable, by the loader that ansible itself uses."""

from __future__ import annotations

from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

# The committed link of the checkout (ansible.cfg uses it too): tests run what is in the tree, not an installed copy.
_COLLECTIONS = Path(__file__).resolve().parents[1] / ".dev" / "collections"

init_plugin_loader([str(_COLLECTIONS)])
