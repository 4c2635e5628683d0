# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For both ends: what tells code that this interpreter would have compiled from that of others."""

from __future__ import annotations

import os
import sys
from _frozen_importlib_external import MAGIC_NUMBER  # importlib.util takes long to import

_no_ranges = "no_debug_ranges" in sys._xoptions or bool(os.environ.get("PYTHONNODEBUGRANGES"))
KIND = f"{MAGIC_NUMBER.hex()} {sys.flags.optimize} {_no_ranges:d}\n".encode("ascii")
