# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import threading

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._guest.background import Beside


def test_calls_are_made_one_after_the_other_on_another_thread() -> None:
    calls: list[tuple[int, threading.Thread]] = []
    with Beside[None]() as beside:
        for number in range(20):
            beside.do(lambda it=number: calls.append((it, threading.current_thread())))
    assert [number for number, _thread in calls] == [*range(20)]
    assert threading.current_thread() not in [thread for _number, thread in calls]


def test_a_call_is_made_while_the_caller_goes_on() -> None:
    go_on = threading.Event()
    with Beside[bool]() as beside:
        beside.do(lambda: go_on.wait(30))
        go_on.set()
        assert beside.wait() is True
        assert beside.wait() is None, "a result is returned once"


def test_a_failure_is_raised_once_by_who_asks_next() -> None:
    with Beside[float]() as beside:
        beside.do(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            beside.do(lambda: 1.0)
        beside.do(lambda: 2.0)
        assert beside.wait() == 2.0
        beside.do(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            beside.wait()


def test_leaving_waits_and_does_not_hide_why_it_is_left() -> None:
    ended = threading.Event()

    def fail() -> None:
        ended.wait(30)
        raise OSError("no space")

    with pytest.raises(KeyError), Beside[None]() as beside:
        beside.do(fail)
        threading.Timer(0.05, ended.set).start()
        raise KeyError("the reason")
    assert ended.is_set()
