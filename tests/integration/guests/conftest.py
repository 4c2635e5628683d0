# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Booted guests without a network, one of each Debian release."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from ansible.release import __version__ as core_version

from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import CommandUnavailable
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables, look, releases
from lab import image
from lab.host import LabError
from lab.vm import Guest

# Every agent with one core, the older two with the older: two guests at a time are what two processors can run.
ALL = list(image.RELEASES)
USUAL = ALL[:2] if core_version.startswith("2.16") else ALL[2:]
RELEASES = releases(*USUAL)
# libvirt is another way to the agent, which no core sees; guides and examples are typed in on the newest core; Molecule
# has a core of its own. Once is enough.
ONCE = ["test_examples.py", "test_guides.py", "test_libvirt.py", "test_molecule.py"]
collect_ignore = ONCE if core_version.startswith("2.16") else []


@pytest.fixture(scope="session")
def guests() -> Iterator[Mapping[str, Guest]]:
    """A guest of each release, by release. They boot side by side."""
    with ExitStack() as stack:
        there = {release: stack.enter_context(Guest(release)) for release in RELEASES}
        for release, guest in there.items():
            guest.wait_booted()
            guest.wait_agent()
            print(f"{release} is up", flush=True)
        yield there


@pytest.fixture
def guest(guests: Mapping[str, Guest]) -> Guest:
    """The guest with the newest agent."""
    return guests[RELEASES[-1]]


@pytest.fixture
def hosts(guests: Mapping[str, Guest]) -> dict[str, dict[str, Any]]:
    """The variables of all guests as hosts."""
    return {name: guest_variables(guest) for name, guest in guests.items()}


AT = "uptime; head -3 /proc/meminfo; ps -eo pcpu,etimes,stat,args --sort=-pcpu | head -8; dmesg | tail -15"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the guests are at: an emulated one may be late for reasons of its own."""
    report = yield
    if report.failed:
        used = getattr(item, "funcargs", {})
        guests = {*used.get("guests", {}).values()} | ({used["guest"]} if "guest" in used else set())
        for guest in guests:
            try:
                text = guest.run(AT)[1]
            except LabError as error:
                text = str(error)
            report.sections.append((f"{guest.release}, after the failure", text))
    return report


@contextmanager
def booted(release: str, **options: Any) -> Iterator[Guest]:
    """A guest of the test's own, with these options of ``Guest``: it is up, and its agent listens."""
    with Guest(release, **options) as guest:
        guest.wait_booted()
        guest.wait_agent()
        yield guest


@contextmanager
def blocked(guest: Guest, commands: str) -> Iterator[None]:
    """The guest's administrator does not allow the agent these commands."""
    key = "blacklist" if guest.release == "bullseye" else "block-rpcs"
    look(guest, f"mkdir -p /etc/qemu; printf '[general]\\n{key}={commands}\\n' >/etc/qemu/qemu-ga.conf")
    look(guest, "service qemu-guest-agent restart")
    try:
        yield
    finally:
        look(guest, "rm /etc/qemu/qemu-ga.conf; service qemu-guest-agent restart")


@contextmanager
def configured(guest: Guest, settings: str) -> Iterator[None]:
    """Restart the agent with ``settings``, lines of its configuration file."""
    look(guest, f"mkdir -p /etc/qemu; printf '[general]\\n{settings}\\n' >/etc/qemu/qemu-ga.conf")
    look(guest, "systemctl restart qemu-guest-agent")
    try:
        yield
    finally:
        # An agent that has frozen ignores the signal to end.
        with suppress(CommandUnavailable), open_agent(str(guest.agent_socket), 60) as agent:
            agent.execute("guest-fsfreeze-thaw")
        look(guest, "rm /etc/qemu/qemu-ga.conf; systemctl restart qemu-guest-agent")


@contextmanager
def with_hook(guest: Guest, script: str) -> Iterator[None]:
    """Have the agent run ``script`` with the argument freeze before it freezes, and thaw after it thawed."""
    look(guest, f"cat >/etc/hook <<'END'\n#!/bin/sh\n{script}\nEND\nchmod +x /etc/hook; rm -f /run/hook-*")
    with configured(guest, "fsfreeze-hook=/etc/hook"):
        yield
