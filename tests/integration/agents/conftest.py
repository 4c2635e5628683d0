# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real agent of each Debian release, without a guest around it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab import image
from lab.agent import LooseAgent


@pytest.hookimpl(trylast=True)  # when it is known which are selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that it does not end when all else has.

    Each process of xdist has two tests to begin with, so one of the others comes between.
    """
    long = [item for item in items if item.get_closest_marker("long")]
    others = [item for item in items if item not in long]
    pairs = itertools.chain.from_iterable(zip(long, others, strict=False))
    items[:] = [*pairs, *long[len(others) :], *others[len(long) :]]


@pytest.fixture(scope="session")
def agents() -> Iterator[dict[str, LooseAgent]]:
    """An agent of each release, by release, for tests that leave them as they were."""
    with ExitStack() as stack:
        yield {release: stack.enter_context(LooseAgent(release)) for release in image.RELEASES}


OLDEST, *OTHERS, NEWEST = image.RELEASES


@pytest.fixture(
    scope="session", params=[OLDEST, *(pytest.param(other, marks=pytest.mark.whole) for other in OTHERS), NEWEST]
)
def release(request: pytest.FixtureRequest) -> str:
    """The names of the oldest and the newest release; for the whole, those between them as well."""
    return str(request.param)


@pytest.fixture
def agent(agents: dict[str, LooseAgent], release: str) -> LooseAgent:
    """The agent of each release."""
    return agents[release]
