# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text and data of others, with limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.guest import Guest
from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.text import bounded, line, marked


def nested(depth: int) -> Any:
    value: Any = "x"
    for _level in range(depth):
        value = {"a": [value]}
    return value


def test_depth_and_lengths_have_limits() -> None:
    assert len(json.dumps(bounded(nested(400)))) < 200
    assert len(bounded(list(range(100000)))) == len(bounded({str(n): n for n in range(100000)})) == 512
    assert len(bounded("x" * 100000)) < 1100


@pytest.mark.parametrize("value", [None, True, 5, 1.5, "text", ["a", {"b": [1]}], {}])
def test_ordinary_data_stays(value: Any) -> None:
    assert bounded(value) == value == marked(value)


def test_names_that_mean_something_to_core() -> None:
    data = {"__ansible_unsafe": "x", "__ansible_vault": {"__ansible_type": "y"}, "__": 1, "_a": 2}
    assert bounded(data) == {"ansible_unsafe": "x", "ansible_vault": {"ansible_type": "y"}, "_": 1, "a": 2}


def test_text_is_one_visible_line_and_a_plain_string() -> None:
    class Tagged(str):
        pass

    assert line("a\x1b[0m\n\u202eb\ud800") == "a\\x1b[0m \\u202eb\ufffd"
    assert not isinstance(line(Tagged("x")), Tagged)


def test_record_survives_a_cache() -> None:
    guest = Guest("hv1", "libvirt", True, name="web", tags=["a"], facts={"osinfo": {"id": "debian"}}, listens=True)
    assert Guest.from_plain(json.loads(json.dumps(guest.plain()))) == guest


@pytest.mark.parametrize("change", [{"name": 5}, {"tags": "a"}, {"facts": []}, {"remote": "yes"}, {"more": 1}])
def test_what_is_no_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Guest.from_plain({**Guest("hv1", "x").plain(), **change})
    with pytest.raises(ValueError):
        Guest.from_plain(list(change))
