# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the fuzzer has found worth keeping (tests/fuzz/corpus) breaks nothing."""

from __future__ import annotations

import pytest

from ansible_collections.qemu.guest.tests.fuzz.__main__ import CORPUS, inputs, names
from ansible_collections.qemu.guest.tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str) -> None:
    for one in (b"", b"\0" * 64, b"\xff" * 64, *inputs(target)):
        TARGETS[target](one)


def test_targets_have_names_and_a_corpus_is_of_a_target() -> None:
    assert names() == [*TARGETS]
    assert {path.stem for path in CORPUS.iterdir()} <= {*TARGETS}
