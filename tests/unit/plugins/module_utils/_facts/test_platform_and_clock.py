# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of machines and kernels, time and load."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest
from ansible.module_utils.facts.system.date_time import DateTimeFactCollector

from ansible_collections.qemu.guest.plugins.module_utils._facts.clock import date_time_facts, load_facts
from ansible_collections.qemu.guest.plugins.module_utils._facts.platform import platform_facts
from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Replies


def replies(system: str = "debian", osinfo: Any = None, **commands: Any) -> Replies:
    named = {f"guest-get-{name.replace('_', '-')}": reply for name, reply in commands.items()}
    return Replies({"guest-get-osinfo": {"id": system, **(osinfo or {})}, **named}, {})


LINUX = {"kernel-release": "6.1.0-40-cloud-amd64", "kernel-version": "#1 SMP Debian 6.1.153-1", "machine": "x86_64"}


def test_linux() -> None:
    assert platform_facts(replies(osinfo=LINUX, host_name={"host-name": "vm1.example.com"})) == {
        "system": "Linux",
        "kernel": "6.1.0-40-cloud-amd64",
        "kernel_version": "#1 SMP Debian 6.1.153-1",
        "machine": "x86_64",
        "architecture": "x86_64",
        "hostname": "vm1",
        "nodename": "vm1.example.com",
    }


@pytest.mark.parametrize(
    ("machine", "architecture"), [("i686", "i386"), ("aarch64", "aarch64"), ("amd64", "amd64"), ("i86pc", "i386")]
)
def test_architecture(machine: str, architecture: str) -> None:
    assert platform_facts(replies(osinfo={"machine": machine}))["architecture"] == architecture


def test_freebsd() -> None:
    osinfo = {"kernel-release": "14.1-RELEASE", "kernel-version": "FreeBSD 14.1-RELEASE", "machine": "amd64"}
    facts = platform_facts(replies("freebsd", osinfo))
    assert (facts["system"], facts["kernel"], facts["architecture"]) == ("FreeBSD", "14.1-RELEASE", "amd64")


@pytest.mark.parametrize(("machine", "more"), [("x86_64", "x86_64"), ("x86", "i386"), ("unknown", None)])
def test_windows(machine: str, more: str | None) -> None:
    osinfo = {"kernel-release": "17763", "kernel-version": "10.0", "machine": machine}
    assert platform_facts(replies("mswindows", osinfo, host_name={"host-name": "VM1"})) == {
        "system": "Win32NT",
        "kernel": "10.0.17763.0",
        "netbios_name": "VM1",
        **({"architecture2": more} if more else {}),
    }


@pytest.mark.parametrize("reply", [None, 5, "vm1", {}, {"host-name": 5}, {"host-name": ""}])
def test_name_that_is_not_told(reply: Any) -> None:
    assert platform_facts(replies(host_name=reply)) == {"system": "Linux"}


def test_system_that_is_not_told() -> None:
    assert platform_facts(Replies({"guest-get-host-name": {"host-name": "vm1"}}, {})) == {
        "hostname": "vm1",
        "nodename": "vm1",
    }


# Time

NOW = 1_741_478_399_987_654_321
"""A second before midnight of a Saturday in UTC."""


@pytest.mark.parametrize(("zone", "offset"), [("UTC", 0), ("CET", 3600), ("NST", -12600), ("NPT", 20700)])
def test_date_and_time(zone: str, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sign = "-" if offset > 0 else "+"  # POSIX counts westwards
    monkeypatch.setenv("TZ", f"{zone}{sign}{abs(offset) // 3600}:{abs(offset) % 3600 // 60:02}")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: NOW / 1e9)
    expected = DateTimeFactCollector().collect()["date_time"]
    monkeypatch.undo()
    time.tzset()
    facts = date_time_facts(replies(time=NOW, timezone={"zone": zone, "offset": offset}))["date_time"]
    assert set(expected) - set(facts) == {"tz_dst"}
    for name, value in facts.items():  # what has microseconds is of another accuracy there
        kept = 19 if name == "iso8601_micro" else 15 if name == "iso8601_basic" else None
        assert value[:kept] == expected[name][:kept], name
    assert facts["iso8601_micro"].endswith(".987654Z")


def test_windows_has_another_shape() -> None:
    zone = {"zone": "Nepal Standard Time", "offset": -20700}
    facts = date_time_facts(replies("mswindows", time=NOW, timezone=zone))["date_time"]
    assert facts["tz_offset"] == "-05:45"
    assert facts["epoch_int"] == NOW // 10**9
    assert not {"tz", "epoch", "weeknumber"} & set(facts)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"time": NOW},
        {"time": NOW, "timezone": {"zone": "UTC"}},
        {"time": NOW, "timezone": {"zone": "UTC", "offset": 86400}},
        {"time": NOW, "timezone": {"zone": "UTC", "offset": True}},
        {"time": -1, "timezone": {"offset": 0}},
        {"time": 10**40, "timezone": {"offset": 0}},
        {"time": 253402300798 * 10**9, "timezone": {"offset": 86399}},
        {"time": "now", "timezone": {"offset": 0}},
    ],
)
def test_time_that_is_not_told(told: dict[str, Any]) -> None:
    assert date_time_facts(replies(**told)) == {}


def test_time_without_the_name_of_the_zone() -> None:
    facts = date_time_facts(replies(time=NOW, timezone={"offset": 0}))["date_time"]
    assert "tz" not in facts and facts["tz_offset"] == "+0000"
    assert datetime.datetime.fromisoformat(facts["date"]).year == 2025


@pytest.mark.parametrize(
    ("system", "load", "facts"),
    [
        ("debian", {"load1m": 0.5, "load5m": 1.5, "load15m": 2.0}, {"loadavg": {"1m": 0.5, "5m": 1.5, "15m": 2.0}}),
        ("mswindows", {"load1m": 0.5, "load5m": 1.5, "load15m": 2.0}, {}),
        ("debian", {"load1m": 0.5}, {}),
        ("debian", {"load1m": "x", "load5m": 1.5, "load15m": 2.0}, {}),
        ("debian", None, {}),
    ],
)
def test_load(system: str, load: Any, facts: dict[str, Any]) -> None:
    assert load_facts(replies(system, load=load)) == facts
