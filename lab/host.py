# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab takes from the machine it runs on: programs, root, and a place to keep things."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Programs the lab runs, and the Debian package of each.
PACKAGES = {
    "debootstrap": "debootstrap",
    "libvirtd": "libvirt-daemon",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "virsh": "libvirt-clients",
}
# Packages without which one of those programs starts but does not work. They are only recommended there, and
# recommended packages are not installed.
COMPANIONS = {
    "debootstrap": ["debian-archive-keyring"],
    "libvirt-daemon": ["libvirt-daemon-driver-qemu"],
    "qemu-system-x86": ["seabios"],
}
# Debian's ordinary users have no sbin directory in their PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

LONGEST_SOCKET = "console.sock"
MAX_SOCKET_PATH = 107


class LabError(Exception):
    """Something the lab needs is missing or did not work; the text says what to do."""


def find(program: str) -> str | None:
    """Return the path of `program`, or None."""
    return shutil.which(program, path=SEARCH_PATH)


def need(*programs: str) -> None:
    """Make sure that `programs` are installed; raise LabError with the line to type where that is not possible."""
    packages = sorted({PACKAGES[program] for program in programs if find(program) is None})
    if not packages:
        return
    packages += [companion for package in packages for companion in COMPANIONS.get(package, [])]
    _install(packages)
    missing = [program for program in programs if find(program) is None]
    if missing:
        raise LabError(f"installed {' '.join(packages)}, but these programs are still missing: {' '.join(missing)}")


def _install(packages: Sequence[str]) -> None:
    line = f"sudo apt-get install --no-install-recommends {' '.join(packages)}"
    if find("apt-get") is None:
        raise LabError(f"programs are missing and there is no apt-get here. On Debian or Ubuntu: {line}")
    if not can_be_root():
        raise LabError(f"programs are missing. Type: {line}")
    print(f"lab: installing {' '.join(packages)}", flush=True)
    apt = as_root(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y"])
    install = [*apt, "install", "--no-install-recommends", *packages]
    # A fresh machine has no package lists, or lists older than its mirror: then update, once.
    if _succeeds(install):
        return
    _succeeds([*apt, "update"])
    if not _succeeds(install):
        raise LabError(f"apt-get could not install what is missing. See why with: {line}")


def _succeeds(argv: Sequence[str]) -> bool:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode == 0


def output(
    argv: Sequence[str], failed: str, directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command, without input, and return what it printed on both streams.

    :raise LabError: if it fails; ``failed`` begins the text.
    """
    done = subprocess.run(
        argv,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"{failed}: {done.stdout[-5000:]}")
    return done.stdout


@functools.lru_cache(maxsize=None)  # noqa: UP033  functools.cache is newer than Python 3.8
def can_be_root() -> bool:
    """Say whether as_root() would work."""
    return os.geteuid() == 0 or (find("sudo") is not None and _succeeds(["sudo", "-n", "true"]))


def as_root(argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` as root; raise LabError where this user cannot become root."""
    if os.geteuid() == 0:
        return list(argv)
    if can_be_root():
        return ["sudo", "-n", *argv]
    raise LabError(
        f"{argv[0]} needs root. Run this as root, or type `sudo -v` first, or let this user run sudo without a password"
    )


def cache_root() -> Path:
    """Return the directory that keeps images, keys and the state of named guests; QEMU_GUEST_CACHE overrides it."""
    chosen = os.environ.get("QEMU_GUEST_CACHE")
    if chosen:
        return Path(chosen).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "qemu-guest"


def private_directory() -> Path:
    """Make a directory that only this user can enter, for sockets and what is thrown away with them."""
    directory = Path(tempfile.mkdtemp(prefix="lab-"))
    if len(os.fsencode(directory / LONGEST_SOCKET)) > MAX_SOCKET_PATH:
        directory.rmdir()
        raise LabError(f"{directory} is too long for a UNIX socket; set TMPDIR to a shorter directory")
    return directory


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`. It ends with the process, so no stale lock is possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"lab: waiting for another process that holds {path}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
