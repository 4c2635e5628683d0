# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: make a fork of a resident interpreter equal to a new one (zygote.py).

A resident interpreter is started without site (python -S), so it has run no code of users or sites, and holds only the
interpreter, the standard library and modules of payloads. ``SiteRun`` and ``renew`` read everything else that Python
reads at start, in the fork. ``Fingerprint`` covers files that cannot be read again: when one has changed, the resident
process is replaced.
"""

from __future__ import annotations

import os
import signal
import site
import sys
import time
from contextlib import suppress
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

# With one of these set, Python may import other modules than its own while it starts.
UNSAFE = ("PYTHONPATH", "PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONWARNINGS")
NO_SITE = 6  # index of no_site in sys.flags, since Python 3.2


def reset_signals() -> None:
    """Set signal handlers as in a Python that a login shell has just started."""
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):  # some cannot be set
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)


def leave_directory() -> str:
    """Change to the root directory, so that no other filesystem stays busy; return the path of the previous one.

    Stay, and return an empty path, if there is no way back: children then inherit the directory.
    """
    try:
        directory = os.getcwd()
    except OSError:
        return "/"
    if not os.access(f"{directory}/.", os.X_OK):
        return ""
    os.chdir("/")
    return directory


def close_others(kept: Iterable[int]) -> None:
    """Close all descriptors but the standard ones and those ``kept``, which are in order."""
    start = 3
    for descriptor in kept:
        os.closerange(start, descriptor)
        start = max(start, descriptor + 1)
    os.closerange(start, 1 << 10)


class Flags(tuple):  # type: ignore[type-arg]
    """sys.flags as in a Python that was started with site."""

    no_site = 0
    real: Any = sys.flags

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __repr__(self) -> str:
        return repr(self.real).replace("no_site=1", "no_site=0")


class SiteRun:
    """In a fork: what site has added: to ``places``, where Python looks for modules, and to the ``finders``."""

    def __init__(self) -> None:
        """Run site, as a new Python does at start: site directories, .pth files, sitecustomize."""
        sys.flags = Flags([*Flags.real[:NO_SITE], 0, *Flags.real[NO_SITE + 1 :]])  # type: ignore[assignment]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv = [word for word in sys.orig_argv if word != "-S"]
        paths, finders = [*filter(None, sys.path)], [*sys.meta_path]
        sys.path[:] = paths
        try:
            site.main()
        except SystemExit as end:  # of code of the site: a new interpreter reports that, and ends with status 1
            raise ImportError("Failed to import the site module") from end
        # The modules were not in the directories that this process has searched before.
        self.places = [path for path in sys.path if path not in paths]
        self.finders = [finder for finder in sys.meta_path if finder not in finders]

    def found(self, asked: Iterable[str]) -> list[str]:
        """Return those modules, of the ones ``asked`` for in vain before, that can be imported now."""
        return [
            name
            for name in asked
            if PathFinder.find_spec(name, self.places) or any(has_module(finder, name) for finder in self.finders)
        ]


def renew() -> None:
    """In a fork, after site: read what else a new Python reads at start, or later and once."""
    sys.path.insert(0, "")  # as for a program on standard input
    read_zone()
    platform: Any = sys.modules.get("platform")
    for name in ("_uname_cache", "_os_release_cache"):
        if getattr(platform, name, None) is not None:
            setattr(platform, name, None)
    getattr(platform, "_platform_cache", {}).clear()


def lead_once_more() -> None:
    """Let this process ask again for the session and group that it leads: over ssh a shell does, so that works."""
    for name in ("setsid", "setpgrp", "setpgid"):
        setattr(os, name, unless_leading(getattr(os, name)))


def unless_leading(call: Callable[..., None]) -> Callable[..., None]:
    itself = os.getpid()

    def called(*arguments: int) -> None:
        if os.getpid() != itself or not {0, itself}.issuperset(arguments):
            call(*arguments)

    return called


def read_zone() -> None:
    """Make the C library read the time zone's file again, as it does after another zone was set."""
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "UTC0"
    time.tzset()
    if zone is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = zone
    time.tzset()


def has_module(finder: Any, name: str) -> bool:
    try:
        return finder.find_spec(name, None) is not None
    except (AttributeError, ImportError, ValueError):  # the finder is of an old kind, or fails
        return False
