# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots by QEMU's monitor.

The overlays are made before the guest is frozen, by QEMU, which may run elsewhere and as another user. Only the
exchange is left then. That is blockdev-snapshot-sync with the mode C(existing): it opens the overlay with the cache,
discard and aio settings of the disk, which blockdev-snapshot would leave to us, and which no query tells.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from typing import Any, Mapping, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    QmpCommandError,
    QmpError,
    QmpLostError,
)
from ansible_collections.qemu.guest.plugins.module_utils._module.qmp import Qmp
from ansible_collections.qemu.guest.plugins.module_utils._module.snapshot import Disk, Image, Overlay, Snapshots

__all__ = ("QmpSnapshots",)

# Seconds that QEMU may take to make one file. It has to be found slow before the guest is frozen.
_SECONDS_TO_MAKE = 60.0
_PAUSE = 0.01


class QmpSnapshots(Snapshots):
    """Snapshots by the monitor at ``address``.

    Disks are named by their nodes, which those of -drive have as those of -blockdev.
    """

    def __init__(self, address: str) -> None:
        self._qmp = Qmp(address)
        # Files that QEMU made or may have made, and those that were not here before.
        self._made: list[str] = []
        self._absent: set[str] = set()

    def close(self) -> None:
        self._qmp.close()

    def disks(self) -> list[Disk]:
        listed = self._qmp.checked(self._qmp.execute("query-block"), list, "query-block")
        return [self._disk(entry) for entry in listed if "inserted" in self._qmp.checked(entry, dict, "query-block")]

    def _disk(self, entry: Mapping[str, Any]) -> Disk:
        inserted = self._member(entry, "inserted", dict)
        image = self._member(inserted, "image", dict)
        size, node = self._member(image, "virtual-size", int), self._member(inserted, "node-name", str)
        encrypted = bool(inserted.get("encrypted")) or image.get("format") == "luks"
        chain = []
        while image:
            chain.append(Image(self._member(image, "filename", str), self._member(image, "format", str)))
            image = self._qmp.checked(image.get("backing-image", {}), dict, "query-block", "backing-image")
        device, qdev = str(entry.get("device", "")), str(entry.get("qdev", ""))
        given = re.match(r"/machine/peripheral/([^/]+)|([^/]+)$", qdev)
        names = [device, *(given.groups("") if given else ()), node]
        # What has no qdev belongs to no device of the guest. A snapshot of the firmware's variables is of no use.
        usual = not inserted.get("ro") and bool(qdev) and "flash" not in device + qdev
        return Disk([name for name in names if name] or [node], chain, usual, encrypted, node, size)

    def exists(self, file: str) -> bool:
        """Have QEMU open ``file``: what can be seen of it from here may be another machine's."""
        node = _name()
        options = {"driver": "file", "filename": file, "node-name": node, "read-only": True}
        try:
            self._qmp.execute("blockdev-add", options)
        except QmpCommandError as exc:
            if exc.message.endswith("No such file or directory"):
                return False
            raise
        self._qmp.execute("blockdev-del", {"node-name": node})
        return True

    def prepare(self, new: Sequence[Overlay]) -> None:
        for overlay in new:
            self._make(overlay)

    def _make(self, overlay: Overlay) -> None:
        file, node, image = overlay.file, _name(), overlay.disk.chain[0]
        if os.path.isabs(file) and not os.path.lexists(file):
            self._absent.add(file)
        self._made.append(file)
        try:
            self._create({"driver": "file", "filename": file, "size": 0})
        except QmpCommandError:
            self._made.remove(file)
            raise
        self._qmp.execute("blockdev-add", {"driver": "file", "filename": file, "node-name": node})
        try:
            backing = {"backing-file": _relative_to(file, image.file), "backing-fmt": image.format}
            self._create({"driver": "qcow2", "file": node, "size": overlay.disk.size, **backing})
        finally:
            with suppress(QmpError):  # if it still has the file, the snapshot will say so
                self._qmp.execute("blockdev-del", {"node-name": node})

    def _create(self, options: Mapping[str, Any]) -> None:
        """Have QEMU create a file, or a format in one. It does that as a job, which ends by itself."""
        job = _name()
        self._qmp.execute("blockdev-create", {"job-id": job, "options": options})
        deadline = Deadline(_SECONDS_TO_MAKE)
        while True:
            listed = self._qmp.checked(self._qmp.execute("query-jobs"), list, "query-jobs")
            ours = next((entry for entry in listed if isinstance(entry, dict) and entry.get("id") == job), {})
            if ours.get("status") == "concluded":
                break
            if not ours or deadline.expired:
                text = f"QEMU has not made the file within {deadline.seconds:g} s"
                raise self._qmp.told(QmpLostError(text, command="blockdev-create"))
            time.sleep(_PAUSE)
        self._qmp.execute("job-dismiss", {"id": job})
        if "error" in ours:
            raise self._qmp.told(QmpCommandError(str(ours["error"]), command="blockdev-create"))

    def take(self, new: Sequence[Overlay], seconds: float) -> None:
        actions = [
            {
                "type": "blockdev-snapshot-sync",
                "data": {
                    "node-name": overlay.disk.node,
                    "snapshot-file": overlay.file,
                    "snapshot-node-name": _name(),
                    "format": "qcow2",
                    "mode": "existing",
                },
            }
            for overlay in new
        ]
        absent, self._absent = self._absent, set()  # nothing is removed that QEMU may use
        try:
            self._qmp.execute("transaction", {"actions": actions}, seconds)
        except QmpCommandError:
            self._absent = absent
            raise
        self._made = []

    def discard(self) -> Sequence[str]:
        return [file for file in self._made if not self._removed(file)]

    def _removed(self, file: str) -> bool:
        """Remove ``file`` if it can only be ours: it is here, and was not before QEMU made it."""
        if file not in self._absent:
            return False
        try:
            os.unlink(file)
        except (OSError, ValueError):  # QEMU may say anything: a name with a NUL is nobody's
            return False
        return True

    def _member(self, value: Any, name: str, kind: type) -> Any:
        return self._qmp.member(value, name, kind, "query-block")


def _relative_to(file: str, image: str) -> str:
    """Return the name of ``image`` for the header of ``file``: QEMU takes relative ones to be relative to ``file``."""
    beside = os.path.dirname(file) == os.path.dirname(image)
    return os.path.basename(image) if beside and not os.path.isabs(image) else image


def _name() -> str:
    return f"qga-{os.urandom(6).hex()}"
