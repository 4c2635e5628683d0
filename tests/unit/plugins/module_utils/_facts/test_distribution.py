# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and versions of distributions, compared with what ansible-core's own code makes of the same files."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.common import sys_info
from ansible.module_utils.distro import LinuxDistribution
from ansible.module_utils.facts.system import distribution as core

from ansible_collections.qemu.guest.plugins.module_utils._facts import distribution
from ansible_collections.qemu.guest.plugins.module_utils._facts.distribution import (
    DEBIAN_VERSION,
    OS_RELEASE,
    distribution_facts,
    needless_file,
)
from ansible_collections.qemu.guest.plugins.module_utils._facts.replies import Replies

# What the distributions have in os-release, and in files that ansible-core looks at.
SYSTEMS: dict[str, tuple[str, dict[str, str]]] = {
    "almalinux 9": (
        'NAME="AlmaLinux"\nVERSION="9.4 (Seafoam Ocelot)"\nID="almalinux"\nID_LIKE="rhel centos fedora"\n'
        'VERSION_ID="9.4"\nPRETTY_NAME="AlmaLinux 9.4 (Seafoam Ocelot)"\n',
        {"redhat-release": "AlmaLinux release 9.4 (Seafoam Ocelot)\n"},
    ),
    "alpine": (
        'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.19.1\nPRETTY_NAME="Alpine Linux v3.19"\n',
        {"alpine-release": "3.19.1\n"},
    ),
    "amazon 2023": (
        'NAME="Amazon Linux"\nVERSION="2023"\nID="amzn"\nID_LIKE="fedora"\nVERSION_ID="2023"\n'
        'PRETTY_NAME="Amazon Linux 2023"\n',
        {"system-release": "Amazon Linux release 2023 (Amazon Linux)\n"},
    ),
    "arch": ('NAME="Arch Linux"\nPRETTY_NAME="Arch Linux"\nID=arch\nBUILD_ID=rolling\n', {"arch-release": ""}),
    "centos 7": (
        'NAME="CentOS Linux"\nVERSION="7 (Core)"\nID="centos"\nID_LIKE="rhel fedora"\nVERSION_ID="7"\n'
        'PRETTY_NAME="CentOS Linux 7 (Core)"\n',
        {name: "CentOS Linux release 7.9.2009 (Core)\n" for name in ("centos-release", "redhat-release")},
    ),
    "centos stream 9": (
        'NAME="CentOS Stream"\nVERSION="9"\nID="centos"\nID_LIKE="rhel fedora"\nVERSION_ID="9"\n'
        'PRETTY_NAME="CentOS Stream 9"\n',
        {name: "CentOS Stream release 9\n" for name in ("centos-release", "redhat-release")},
    ),
    "debian 12": (
        'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\n'
        'VERSION="12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n',
        {"debian_version": "12.11\n"},
    ),
    "debian 10": (
        'PRETTY_NAME="Debian GNU/Linux 10 (buster)"\nNAME="Debian GNU/Linux"\nVERSION_ID="10"\n'
        'VERSION="10 (buster)"\nVERSION_CODENAME=buster\nID=debian\n',
        {"debian_version": "10\n"},
    ),
    "debian sid": (
        'PRETTY_NAME="Debian GNU/Linux forky/sid"\nNAME="Debian GNU/Linux"\nVERSION_CODENAME=forky\nID=debian\n',
        {"debian_version": "forky/sid\n"},
    ),
    "fedora 40": (
        'NAME="Fedora Linux"\nVERSION="40 (Server Edition)"\nID=fedora\nVERSION_ID=40\nVERSION_CODENAME=""\n'
        'PRETTY_NAME="Fedora Linux 40 (Server Edition)"\nVARIANT_ID=server\n',
        {"redhat-release": "Fedora release 40 (Forty)\n"},
    ),
    "openSUSE Leap": (
        'NAME="openSUSE Leap"\nVERSION="15.6"\nID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="15.6"\n'
        'PRETTY_NAME="openSUSE Leap 15.6"\n',
        {},
    ),
    "openSUSE Tumbleweed": (
        'NAME="openSUSE Tumbleweed"\nID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\nVERSION_ID="20261101"\n'
        'PRETTY_NAME="openSUSE Tumbleweed"\n',
        {},
    ),
    "oracle 9": (
        'NAME="Oracle Linux Server"\nVERSION="9.4"\nID="ol"\nID_LIKE="fedora"\nVERSION_ID="9.4"\n'
        'PRETTY_NAME="Oracle Linux Server 9.4"\n',
        {
            "oracle-release": "Oracle Linux Server release 9.4\n",
            "redhat-release": "Red Hat Enterprise Linux release 9.4 (Plow)\n",
        },
    ),
    "rhel 9": (
        'NAME="Red Hat Enterprise Linux"\nVERSION="9.4 (Plow)"\nID="rhel"\nID_LIKE="fedora"\nVERSION_ID="9.4"\n'
        'PRETTY_NAME="Red Hat Enterprise Linux 9.4 (Plow)"\n',
        {"redhat-release": "Red Hat Enterprise Linux release 9.4 (Plow)\n"},
    ),
    "rocky 8": (
        'NAME="Rocky Linux"\nVERSION="8.9 (Green Obsidian)"\nID="rocky"\nID_LIKE="rhel centos fedora"\n'
        'VERSION_ID="8.9"\nPRETTY_NAME="Rocky Linux 8.9 (Green Obsidian)"\n',
        {name: "Rocky Linux release 8.9 (Green Obsidian)\n" for name in ("centos-release", "redhat-release")},
    ),
    "ubuntu 24.04": (
        'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\n'
        'VERSION="24.04.1 LTS (Noble Numbat)"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n'
        "UBUNTU_CODENAME=noble\n",
        {"debian_version": "trixie/sid\n"},
    ),
    "ubuntu 16.04": (
        'NAME="Ubuntu"\nVERSION="16.04.7 LTS (Xenial Xerus)"\nID=ubuntu\nID_LIKE=debian\n'
        'PRETTY_NAME="Ubuntu 16.04.7 LTS"\nVERSION_ID="16.04"\nVERSION_CODENAME=xenial\nUBUNTU_CODENAME=xenial\n',
        {"debian_version": "stretch/sid\n"},
    ),
}

# What there must be, with the files and without; the rest depends on files that the agent does not show.
ALL = {f"distribution{suffix}" for suffix in ("", "_version", "_major_version", "_release")} | {"os_family"}
NAME = {"distribution", "os_family"}
NUMBERED = ALL - {"distribution_release"}
KEYS: dict[str, tuple[set[str], set[str]]] = {
    **dict.fromkeys(SYSTEMS, (ALL, ALL)),
    "alpine": (NUMBERED, NUMBERED),
    "amazon 2023": (NUMBERED, NUMBERED),
    "arch": (NAME, NAME),
    "centos 7": (ALL - {"distribution_version"}, ALL - {"distribution_version"}),
    "debian 10": (ALL, ALL - {"distribution_version"}),
    "debian 12": (ALL | {"distribution_minor_version"}, ALL - {"distribution_version"}),
    "debian sid": (NAME | {"distribution_release"}, NAME),
    "oracle 9": (NUMBERED, NUMBERED),
}
# Without os-release itself, nobody knows whether it has a codename beside the one in its version.
WITHOUT_CODENAMES = ("almalinux 9", "centos 7", "fedora 40", "rhel 9", "rocky 8", "ubuntu 16.04", "ubuntu 24.04")


def osinfo(release: str) -> dict[str, str]:
    """Return what an agent makes of os-release."""
    values = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', release, re.MULTILINE))
    names = ("ID", "NAME", "PRETTY_NAME", "VERSION", "VERSION_ID", "VARIANT_ID")
    return {name.lower().replace("_", "-"): values[name] for name in names if name in values}


def core_facts(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what ansible-core says of a Linux with these files."""

    def content(path: str, default: Any = None, strip: bool = True) -> Any:
        file = root / path[1:]
        return file.read_text().strip() if file.is_file() else default

    monkeypatch.setattr(
        sys_info, "distro", LinuxDistribution(include_lsb=False, include_uname=False, root_dir=str(root))
    )
    monkeypatch.setattr(core, "get_file_content", content)
    monkeypatch.setattr(core, "get_file_lines", lambda path: (content(path) or "").splitlines())
    monkeypatch.setattr(
        core,
        "_file_exists",
        lambda path, allow_empty=False: bool(content(path)) or (allow_empty and (root / path[1:]).is_file()),
    )
    module = SimpleNamespace(debug=lambda text: None, get_bin_path=lambda name: None)
    return dict(core.Distribution(module).get_distribution_facts())


@pytest.mark.parametrize("with_files", [True, False])
@pytest.mark.parametrize("name", SYSTEMS)
def test_linux(name: str, with_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, others = SYSTEMS[name]
    etc = tmp_path / "etc"
    etc.mkdir()
    for file, text in {**others, "os-release": release}.items():
        (etc / file).write_text(text)
    commands = {"guest-get-osinfo": osinfo(release)}
    paths = (OS_RELEASE, DEBIAN_VERSION) if with_files else ()
    wanted = [path for path in paths if path != needless_file(Replies(commands, {}))]
    files = {path: (tmp_path / path[1:]).read_text() for path in wanted if (tmp_path / path[1:]).is_file()}
    facts = distribution_facts(Replies(commands, files))
    expected = core_facts(tmp_path, monkeypatch)
    assert facts == {key: expected[key] for key in facts}
    unknown = {"distribution_release"} if name in WITHOUT_CODENAMES and not with_files else set()
    assert set(facts) == KEYS[name][0 if with_files else 1] - unknown


def test_families_are_those_of_the_core() -> None:
    for name in distribution._NAMES.values():
        assert distribution._FAMILIES.get(name, name) == core.Distribution.OS_FAMILY.get(name, name)
    assert {name: core.Distribution.OS_FAMILY[name] for name in distribution._FAMILIES} == distribution._FAMILIES


@pytest.mark.parametrize(
    "osinfo",
    [
        {},
        {"id": "made-up", "version-id": "1", "name": "Made up"},
        {"id": "debian", "name": "Deb"},
        {"id": "openbsd"},
        {"id": 5},
        {"id": "debian", "pretty-name": "Debian (" + "( " * 10000},
    ],
)
def test_system_that_nothing_is_known_of(osinfo: dict[str, Any]) -> None:
    assert distribution_facts(Replies({"guest-get-osinfo": osinfo}, {})) == {}


@pytest.mark.parametrize(
    ("release", "version", "facts"),
    [
        (
            "14.1-RELEASE-p5",
            "FreeBSD 14.1-RELEASE-p5 GENERIC",
            {
                "distribution": "FreeBSD",
                "distribution_release": "14.1-RELEASE-p5",
                "distribution_version": "14.1",
                "distribution_major_version": "14",
                "os_family": "FreeBSD",
            },
        ),
        (
            "15.0-ALPHA1",
            "FreeBSD 15.0-ALPHA1 trueos",
            {
                "distribution": "TrueOS",
                "distribution_release": "15.0-ALPHA1",
                "distribution_version": "FreeBSD 15.0-ALPHA1 trueos",
                "os_family": "FreeBSD",
            },
        ),
    ],
)
def test_freebsd(release: str, version: str, facts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    osinfo = {"id": "freebsd", "version-id": "14.1", "kernel-release": release, "kernel-version": version}
    assert distribution_facts(Replies({"guest-get-osinfo": osinfo}, {})) == facts
    monkeypatch.setattr(core.platform, "system", lambda: "FreeBSD")
    monkeypatch.setattr(core.platform, "release", lambda: release)
    monkeypatch.setattr(core.platform, "version", lambda: version)
    found = core.Distribution(None).get_distribution_facts()
    assert {name: value for name, value in found.items() if value is not None} == facts


# As ansible.windows.setup has them; its other facts come from sources that the agent does not show.
WINDOWS = {
    "id": "mswindows",
    "name": "Microsoft Windows",
    "pretty-name": "Windows Server 2019 Standard",
    "version": "Microsoft Windows Server 2019",
    "version-id": "2019",
    "variant": "server",
    "variant-id": "server",
    "kernel-release": "17763",
    "kernel-version": "10.0",
    "machine": "x86_64",
}


@pytest.mark.parametrize(("variant", "more"), [("server", {}), ("client", {"os_product_type": "workstation"})])
def test_windows(variant: str, more: dict[str, str]) -> None:
    facts = distribution_facts(Replies({"guest-get-osinfo": {**WINDOWS, "variant-id": variant}}, {}))
    assert facts == {
        "os_family": "Windows",
        "distribution_version": "10.0.17763.0",
        "distribution_major_version": "10",
        **more,
    }
