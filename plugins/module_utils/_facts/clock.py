# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts on the guest's time and load."""

from __future__ import annotations

import datetime
from typing import Any

from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Facts, Replies, number, text

__all__ = ("date_time_facts", "load_facts")

# Not from the locale, which is the controller's.
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_YEAR_9999 = 253402300799 * 10**9


def date_time_facts(replies: Replies) -> Facts:
    """Return the time in the guest's own time zone; without that, nothing."""
    nanoseconds = replies.commands.get("guest-get-time")
    zone = replies.commands.get("guest-get-timezone")
    offset = number(zone, "offset")
    if type(nanoseconds) is not int or not 0 <= nanoseconds < _YEAR_9999 or offset is None or abs(offset) >= 86400:
        return {}
    there = datetime.timezone(datetime.timedelta(seconds=offset))
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    now = start + datetime.timedelta(microseconds=nanoseconds // 1000)
    try:
        local = now.astimezone(there)
    except OverflowError:
        return {}
    epoch = nanoseconds // 10**9
    if replies.system == "Windows":
        shown = local.strftime("%z")
        return {"date_time": {**_shown(now, local), "epoch_int": epoch, "tz_offset": f"{shown[:3]}:{shown[3:5]}"}}
    facts: Facts = {**_shown(now, local), "epoch": str(epoch), "epoch_int": str(epoch)}
    facts.update(weeknumber=local.strftime("%W"), tz_offset=local.strftime("%z"))
    if isinstance(zone, dict) and text(zone, "zone"):
        facts["tz"] = text(zone, "zone")
    return {"date_time": facts}


def _shown(now: datetime.datetime, local: datetime.datetime) -> dict[str, Any]:
    weekday = local.isoweekday() % 7
    return {
        "year": local.strftime("%Y"),
        "month": local.strftime("%m"),
        "day": local.strftime("%d"),
        "hour": local.strftime("%H"),
        "minute": local.strftime("%M"),
        "second": local.strftime("%S"),
        "weekday": _WEEKDAYS[weekday],
        "weekday_number": str(weekday),
        "date": local.strftime("%Y-%m-%d"),
        "time": local.strftime("%H:%M:%S"),
        "iso8601": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "iso8601_micro": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "iso8601_basic": local.strftime("%Y%m%dT%H%M%S%f"),
        "iso8601_basic_short": local.strftime("%Y%m%dT%H%M%S"),
    }


def load_facts(replies: Replies) -> Facts:
    load = replies.commands.get("guest-get-load")
    values = [load.get(f"load{minutes}m") for minutes in (1, 5, 15)] if isinstance(load, dict) else []
    if replies.system == "Windows" or not values or not all(isinstance(value, float) for value in values):
        return {}
    return {"loadavg": dict(zip(("1m", "5m", "15m"), values))}
