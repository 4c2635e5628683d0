# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure this collection's connection beside others, on one guest and on many agents: `make bench`.

contenders.py says who runs, plays.py what; guest.py, growth.py and fleet.py measure; report.py writes.
"""
