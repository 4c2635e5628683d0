#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# glibc 2.36 (Debian 12, libc6 2.36-9+deb12u14): tzset does not read a zone's file again that was replaced.
#
# A process that has used its time zone keeps it when the file that TZ names is replaced, and tzset is called: Python's
# time.tzset, which is meant for a zone that changed, changes nothing. It is read again only if TZ names another zone in
# between. So a resident process that is to show what a new one would show has to go by way of another zone; and that
# costs nothing but two calls.
#
# The C library is the package's, run by its own loader under the Python that is here.
set -euo pipefail
version=2.36-9+deb12u14
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "libc6=$version" tzdata 2>/dev/null
dpkg-deb -x libc6_*.deb .
dpkg-deb -x tzdata_*.deb .
cat >zone.py <<'END'
import os, shutil, sys, time


def replace(zone):
    shutil.copy(f"usr/share/zoneinfo/{zone}", "new")
    os.replace("new", "zone")


def read():
    time.tzset()
    return time.tzname[0]


os.environ["TZ"] = f":{os.path.abspath('zone')}"
replace("Asia/Tokyo")
first = read()
replace("America/New_York")
second = read()
mine, os.environ["TZ"] = os.environ["TZ"], "UTC0"
read()
os.environ["TZ"] = mine
third = read()
print(os.confstr("CS_GNU_LIBC_VERSION"))
print(f"at first {first}; the file replaced, and tzset: {second}; by way of another zone: {third}")
sys.exit(0 if (first, second, third) == ("JST", "JST", "EST") else 1)
END
lib64/ld-linux-x86-64.so.2 --library-path "$work/lib/x86_64-linux-gnu" \
    "$(python3 -c 'import sys; print(sys.executable)')" zone.py
