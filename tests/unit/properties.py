# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How hypothesis looks for an input that breaks a property; and what the tests that state properties share.

These tests are in the files test_properties.py. They find the same in each run. `make fuzz` looks on, as long as one
likes, for inputs that run code which none has run before (tests/fuzz).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

_CACHE = os.environ.get("QEMU_GUEST_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "qemu-guest"


def load_profile() -> None:
    """Have hypothesis find the same in each run, however slow the machine is, and leave nothing in the tree."""
    set_hypothesis_home_dir(Path(_CACHE).expanduser() / "hypothesis")
    slow = [HealthCheck.too_slow]  # of the clock, and not of what is found
    settings.register_profile(
        "tests", max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=slow
    )
    settings.load_profile("tests")


def bytes_of(*words: bytes) -> st.SearchStrategy[bytes]:
    """Return bytes that have these words in them, among others."""
    return st.lists(st.sampled_from(words) | st.binary(max_size=8), max_size=24).map(b"".join)


def text_of(*words: str) -> st.SearchStrategy[str]:
    """Return text that has these words in it, among other characters; bytes that are no text are among them."""
    return st.lists(st.sampled_from(words) | st.text(max_size=4) | surrogates, max_size=16).map("".join)


surrogates = st.characters(categories=["Cs"])

names = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name).map(os.fsdecode)
"""Names as the system allows them: of any bytes but NUL."""

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", "__ansible_type", "\ud800\0", "{{ x }}", "YQ==", 0, -1, 2**31, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.just("__ansible_type"), inner, max_size=4)
    ),
    max_leaves=12,
)
"""Anything that the agent's JSON can say."""
