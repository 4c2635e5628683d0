# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program of root's in namespaces of its own, which ends with who started it, however that ends."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

from lab import host
from lab.host import LabError

# Standard input is a pipe that only this process holds. When it ends, however that comes, the program ends, and then
# what it left behind is removed. Closing standard output tells at once that the program ended early; reading on keeps
# its log for the error message.
LEASH = '"$@"; exec >&-; while read -r _; do :; done; rm -rf "$0"'

L = TypeVar("L", bound="Leashed")


class Leashed:
    """What a script runs in namespaces. It says `ready` on standard output, and again after what it is told to do."""

    WHAT: ClassVar[str]
    """What runs, for messages."""
    SCRIPT: ClassVar[Path]
    NAMESPACES: ClassVar[Sequence[str]]
    """Options of unshare."""
    START_SECONDS: ClassVar[float]

    def __init__(self) -> None:
        self.directory = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def _launch(self, *arguments: str) -> None:
        """Start the script with these arguments, root's; return when it is ready."""
        argv = ["sh", "-c", LEASH, str(self.directory), "unshare", *self.NAMESPACES, "sh", str(self.SCRIPT), *arguments]
        with open(self.directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                host.as_root(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env={**os.environ, "PATH": host.SEARCH_PATH},
                start_new_session=True,
            )
        self._wait_ready()

    def stop(self) -> None:
        """End it, and all that it started, and forget its files. Does nothing if it does not run."""
        if self._process is None:
            return
        with self._process:  # closes the pipes and waits
            pass
        self._process = None

    def start(self: L) -> L:
        """Start it; return when it can be used. It ends with this process at the latest."""
        raise NotImplementedError

    def __enter__(self: L) -> L:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LabError(f"{self.WHAT} is not started")
        return self._process

    def _tell(self, word: str) -> None:
        process = self._running()
        assert process.stdin is not None
        process.stdin.write(f"{word}\n".encode("ascii"))
        self._wait_ready()

    def _wait_ready(self) -> None:
        stdout = self._running().stdout
        assert stdout is not None
        ready = select.select([stdout], [], [], self.START_SECONDS)[0]
        if not ready or stdout.readline() != b"ready\n":
            text = self._log()
            self.stop()
            raise LabError(f"{self.WHAT} did not start: {text}")

    def _log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
