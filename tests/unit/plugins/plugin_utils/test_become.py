# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from the output of a become program."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._become import without_marker


@pytest.mark.parametrize(
    ("success", "output", "expected"),
    [
        ("BECOME-SUCCESS-x", b"profile\nBECOME-SUCCESS-x\none\ntwo\n", b"profile\none\ntwo\n"),
        ("BECOME-SUCCESS-x", b"one\ntwo\n", b"one\ntwo\n"),
        ("", b"one\ntwo\n", b"one\ntwo\n"),
    ],
    ids=["marker", "no marker", "command that is not wrapped"],
)
def test_marker_alone_is_taken_out(success: str, output: bytes, expected: bytes) -> None:
    assert without_marker(SimpleNamespace(success=success), output) == expected
