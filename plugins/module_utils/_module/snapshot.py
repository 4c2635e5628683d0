# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""External snapshots of a running guest's disks: which disks, in which new files, and what takes them.

A snapshot gives each disk a new file, the overlay, to which the guest writes from then on. The image that it had before
stays as it is.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError

__all__ = ("Disk", "Image", "Overlay", "Snapshots", "choose", "overlays")

# What is no path of a file: a name of one of QEMU's protocols (json:, nbd://, rbd:, ...), or a device.
_NO_FILE = re.compile(r"[a-z][a-z0-9+.-]*:|/dev/")


class Image(NamedTuple):
    """An image and its format, in QEMU's words."""

    file: str
    format: str


class Disk(NamedTuple):
    """A disk of a running guest.

    ``names`` are those by which a user may choose it; the first one is shown. ``chain``: its images, that to which the
    guest writes before those that it is based on. ``usual``: it is chosen where the user names none. ``node`` is what
    QEMU calls the top of the chain, ``size`` the number of bytes that the guest sees. An overlay would not be
    ``encrypted``.
    """

    names: Sequence[str]
    chain: Sequence[Image]
    usual: bool
    encrypted: bool = False
    node: str = ""
    size: int = 0

    @property
    def name(self) -> str:
        return self.names[0]


class Overlay(NamedTuple):
    """A file in which ``disk`` goes on after the snapshot; or went on, if it is in the disk's chain already."""

    disk: Disk
    file: str

    @property
    def exists(self) -> bool:
        return any(image.file == self.file for image in self.disk.chain[:-1])

    def as_result(self) -> dict[str, Any]:
        """Return the disk for a task's result: ``image`` is what has the disk's content as of the snapshot."""
        files = [image.file for image in self.disk.chain]
        image = self.disk.chain[files.index(self.file) + 1 if self.exists else 0]
        return {"name": self.disk.name, "image": image.file, "format": image.format, "overlay": self.file}


class Snapshots(ABC):
    """Takes snapshots of one guest: QEMU's monitor, or libvirt. A context manager, for one snapshot."""

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        return

    @abstractmethod
    def disks(self) -> list[Disk]:
        """Return the guest's disks."""

    @abstractmethod
    def exists(self, file: str) -> bool:
        """Return whether ``file`` exists, as far as this can be told."""

    def refuse_existing(self, new: Sequence[Overlay]) -> None:
        """Check that no file would be written over.

        :raise OperationError: if one would.
        """
        for overlay in new:
            if self.exists(overlay.file):
                raise OperationError(
                    f"{overlay.file} exists already and is not in use as a snapshot of {overlay.disk.name}. Nothing "
                    "was done: choose another name, or remove that file if a task that was killed has left it."
                )

    def prepare(self, new: Sequence[Overlay]) -> None:
        """Do what can be done before the guest is frozen."""
        return

    @abstractmethod
    def take(self, new: Sequence[Overlay], seconds: float) -> None:
        """Take the snapshot of all disks at the same moment, or of none.

        :raise QmpCommandError: if it was not taken.
        :raise QmpLostError: if that is not known, ``seconds`` later or as contact was lost.
        """

    def discard(self) -> Sequence[str]:
        """Remove files that were made and are not in use; return those that cannot be removed from here."""
        return ()


def choose(disks: Sequence[Disk], wanted: Sequence[str] | None) -> list[Disk]:
    """Return the disks that have the names ``wanted``; without, the usual ones.

    :raise OperationError: if there is none, or no such one.
    """
    if wanted is None:
        chosen = [disk for disk in disks if disk.usual]
    else:
        chosen = [disk for disk in disks if set(wanted) & set(disk.names)]
    unknown = set(wanted or ()) - {name for disk in disks for name in disk.names}
    if unknown or not chosen:
        what = f"no disk is called {', '.join(sorted(unknown))}" if unknown else "there is no disk to snapshot"
        there = ", ".join(disk.name for disk in disks) or "none"
        raise OperationError(f"{what}; the guest's disks are: {there}. Nothing was done.")
    return chosen


def overlays(disks: Sequence[Disk], name: str, files: Mapping[str, str]) -> list[Overlay]:
    """Return the overlays of the snapshot ``name``; ``files``: those that the user has named, by disk.

    :raise OperationError: if a disk has none, or two have the same.
    """
    if not name or "/" in name:
        raise OperationError(f"name: {name!r} cannot be a part of a file's name.")
    unknown = set(files) - {known for disk in disks for known in disk.names}
    if unknown:
        raise OperationError(f"files: {', '.join(sorted(unknown))} is none of the disks to snapshot. Nothing was done.")
    found = [Overlay(disk, _file(disk, name, files)) for disk in disks]
    twice = {overlay.file for overlay in found if [other.file for other in found].count(overlay.file) > 1}
    if twice:
        raise OperationError(f"two disks would get the same file, {', '.join(sorted(twice))}: name others in files.")
    return found


def _file(disk: Disk, name: str, files: Mapping[str, str]) -> str:
    """Return the name of the disk's overlay; as libvirt chooses it, unless the user does."""
    if disk.encrypted:
        raise OperationError(f"the disk {disk.name} is encrypted, and its new file would not be. Nothing was done.")
    for known in disk.names:
        if known in files:
            if not os.path.isabs(files[known]):
                raise OperationError(f"files: {files[known]!r} of {known} is not an absolute path.")
            return files[known]
    image = disk.chain[0].file
    if _NO_FILE.match(image):
        raise OperationError(f"the disk {disk.name} is on {image}: name a new file for it in files. Nothing was done.")
    return f"{os.path.splitext(image)[0]}.{name}"
