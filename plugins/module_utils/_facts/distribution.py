# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts on the distribution. What ansible-core takes from files that are not here is left out."""

from __future__ import annotations

import re
from typing import Mapping

from ansible_collections.qemu.guest.plugins.module_utils._facts.platform import windows_version
from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Facts, Replies, text

__all__ = ("DEBIAN_VERSION", "OS_RELEASE", "distribution_facts", "needless_file")

OS_RELEASE = "/etc/os-release"
DEBIAN_VERSION = "/etc/debian_version"

# By ID of os-release. Others are left out: ansible-core looks at many files to name them.
_NAMES = {
    "almalinux": "AlmaLinux",
    "alpine": "Alpine",
    "amzn": "Amazon",
    "arch": "Archlinux",
    "centos": "CentOS",
    "debian": "Debian",
    "fedora": "Fedora",
    "ol": "OracleLinux",
    "opensuse-leap": "openSUSE Leap",
    "opensuse-tumbleweed": "openSUSE Tumbleweed",
    "rhel": "RedHat",
    "rocky": "Rocky",
    "ubuntu": "Ubuntu",
}
# Those that are not their own family. ansible-core's table takes a tenth of a second to import.
_FAMILIES = {
    **dict.fromkeys(("AlmaLinux", "Amazon", "CentOS", "Fedora", "OracleLinux", "Rocky"), "RedHat"),
    **dict.fromkeys(("openSUSE Leap", "openSUSE Tumbleweed"), "Suse"),
    "TrueOS": "FreeBSD",
    "Ubuntu": "Debian",
}
# The members of guest-get-osinfo that are lines of os-release.
_LINES = ("id", "name", "pretty-name", "version", "version-id", "variant-id")

# What is longer is no os-release, and could keep these expressions busy.
_LONGEST = 8192
_ASSIGNMENT = re.compile(r"^([A-Z_]+)=([\"']?)(.*)\2\s*$", re.MULTILINE)
_DEBIAN_CODENAME = re.compile(r"PRETTY_NAME=[^(]+ \(?([^)]+?)\)")
_CODENAME = re.compile(r"\((\D+)\)|,\s*(\D+)")
_FREEBSD = re.compile(r"(\d+)\.(\d+)-(?:RELEASE|STABLE|CURRENT|RC|PRERELEASE)")


def needless_file(replies: Replies) -> str:
    """Return which of the two files tells nothing more: for Debian's releases, the agent tells all else."""
    is_release = text(replies.osinfo, "id") == "debian" and bool(text(replies.osinfo, "version-id"))
    return OS_RELEASE if is_release else DEBIAN_VERSION


def distribution_facts(replies: Replies) -> Facts:
    make = {"Linux": _of_linux, "FreeBSD": _of_freebsd, "Windows": _of_windows}.get(replies.system)
    facts = make(replies) if make else {}
    if "distribution" in facts:
        facts["os_family"] = _FAMILIES.get(facts["distribution"], facts["distribution"])
    return facts


def _of_windows(replies: Replies) -> Facts:
    version = windows_version(replies)
    facts = {"os_family": "Windows"}
    if text(replies.osinfo, "variant-id") == "client":  # a server may be a domain controller
        facts["os_product_type"] = "workstation"
    if version:
        facts.update(distribution_version=version, distribution_major_version=version.split(".")[0])
    return facts


def _of_freebsd(replies: Replies) -> Facts:
    release, version = (text(replies.osinfo, f"kernel-{part}") for part in ("release", "version"))
    if not (release and version):
        return {}
    numbers = _FREEBSD.search(release)
    facts = {
        "distribution": "TrueOS" if "trueos" in version else "FreeBSD",
        "distribution_release": release,
        "distribution_version": version,
    }
    if numbers:
        facts.update(distribution_version=".".join(numbers.groups()), distribution_major_version=numbers.group(1))
    return facts


def _of_linux(replies: Replies) -> Facts:
    content = replies.files.get(OS_RELEASE) or "".join(
        f'{name.replace("-", "_").upper()}="{text(replies.osinfo, name)}"\n'
        for name in _LINES
        if text(replies.osinfo, name)
    )
    if len(content) > _LONGEST:
        return {}
    release = {name: value for name, _quote, value in _ASSIGNMENT.findall(content)}
    identity = release.get("ID", "")
    if identity not in _NAMES:
        return {}
    facts = {
        "distribution": _NAMES[identity],
        # Without the file, nobody knows of a codename beside the one in the version.
        "distribution_release": _codename(release) if OS_RELEASE in replies.files else None,
        "distribution_version": release.get("VERSION_ID") or None,
        "distribution_major_version": release.get("VERSION_ID", "").split(".")[0] or None,
    }
    if identity == "debian":
        if "Debian" not in content:
            return {}
        facts.update(_of_debian(content, release, replies.files.get(DEBIAN_VERSION)))
    elif identity == "centos":
        facts.update(_of_centos(release))
    elif identity.startswith("opensuse"):
        facts.update(_of_suse(release))
    return {name: value for name, value in facts.items() if value is not None}


def _codename(release: Mapping[str, str]) -> str | None:
    for name in ("VERSION_CODENAME", "UBUNTU_CODENAME"):
        if name in release:
            return release[name]
    in_version = _CODENAME.search(release.get("VERSION", ""))
    return (in_version.group(1) or in_version.group(2)) if in_version else None


def _of_debian(content: str, release: Mapping[str, str], debian_version: str | None) -> Facts:
    """The point release is in a file of Debian's own; in testing and unstable, lsb_release may say something else."""
    codename = _DEBIAN_CODENAME.search(content)
    facts: Facts = {"distribution_version": None}
    if codename:
        facts["distribution_release"] = codename.group(1)
    if debian_version is not None:
        version, point = release.get("VERSION_ID", ""), debian_version.strip()
        facts["distribution_version"] = (
            (point if point.count(".") > version.count(".") else version) if version else None
        )
        minor = re.search(r"\d+\.(\d+)", point)
        facts["distribution_minor_version"] = minor.group(1) if minor else None
    return facts


def _of_centos(release: Mapping[str, str]) -> Facts:
    if release.get("NAME") == "CentOS Stream":
        return {"distribution_release": "Stream"}
    return {"distribution_version": None}  # its minor version is in a file of CentOS's own


def _of_suse(release: Mapping[str, str]) -> Facts:
    numbers = re.match(r"(\d+)\.?(\d*)$", release.get("VERSION_ID", ""))
    return {"distribution_release": numbers.group(2) if numbers else None}
