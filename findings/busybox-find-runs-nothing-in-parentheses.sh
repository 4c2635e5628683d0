#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# BusyBox 1.35.0 (Debian 12, busybox-static 1:1.35.0-4+deb12u1+b1): find runs nothing that -exec ... + has in parentheses.
#
# POSIX has -exec ... {} + as a primary like any other, so it may be grouped: find . \( -type f -exec X {} + \) -o ... is
# how one program does different things to files and to links. BusyBox takes that without a word, runs X never, and exits
# with 0: what collects checksums of a tree by it gets none, and takes the tree for empty. The same without parentheses
# runs X, and so does -exec ... \; in them.
set -euo pipefail
version=1:1.35.0-4+deb12u1+b1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "busybox-static=$version" 2>/dev/null
dpkg-deb -x busybox-static_*.deb .
busybox=$(find . -path '*bin/busybox')
"$busybox" --help 2>&1 | sed -n 1p
mkdir tree
touch tree/a tree/b

say() {
    printf '%-28s' "$1"
    shift
    "$@" | tr '\n' ' '
    printf ', status %d\n' "${PIPESTATUS[0]}"
}
{
    say 'as it is, +' "$busybox" find tree -type f -exec echo ran '{}' +
    say 'in parentheses, ;' "$busybox" find tree '(' -type f -exec echo ran '{}' ';' ')'
    say 'in parentheses, +' "$busybox" find tree '(' -type f -exec echo ran '{}' + ')'
} | sed 's/ran tree.*, /ran, /' | tee seen
diff seen - <<'END'
as it is, +                 ran, status 0
in parentheses, ;           ran, status 0
in parentheses, +           , status 0
END
echo "find of BusyBox 1.35.0 runs nothing that -exec ... + has in parentheses"
