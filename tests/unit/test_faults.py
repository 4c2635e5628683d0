# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault matrix has a cell for everything, and something that does each fault."""

from __future__ import annotations

import re
from itertools import islice

from ansible_collections.qemu.guest.tests.faults import faulty_channel
from ansible_collections.qemu.guest.tests.faults.document import DOCUMENT, document, without_counts
from ansible_collections.qemu.guest.tests.faults.exactly_once import trials
from ansible_collections.qemu.guest.tests.faults.matrix import AGENT, FAULTS, GUEST, OPERATIONS, SCRIPTED, cells


def test_every_pair_has_a_cell() -> None:
    found = list(cells())
    assert len({cell.name for cell in found}) == len(found) == len(OPERATIONS) * len(FAULTS)
    for cell in found:
        assert cell.why_not or (cell.outcomes and cell.where in (SCRIPTED, AGENT, GUEST)), cell.name


def test_every_reply_that_is_wrong_is_a_fault() -> None:
    replies = {fault.name for fault in FAULTS if fault.group == "reply"}
    assert replies <= set(faulty_channel.REPLIES)
    assert set(faulty_channel.REPLIES) <= {fault.name for fault in FAULTS}


def test_document_has_the_table() -> None:
    assert without_counts(DOCUMENT.read_text(encoding="utf-8")) == without_counts(document({}))


def test_seed_makes_the_same_trials() -> None:
    first, again, other = (list(islice(trials(seed), 50)) for seed in (1, 1, 2))
    assert first == again != other


def test_what_is_tried_elsewhere_is() -> None:
    for fault in FAULTS:
        for path in re.findall(r"tests/\S+\.py", fault.elsewhere):
            assert (DOCUMENT.parents[1] / path).exists(), path
