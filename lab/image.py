# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the disk images of the test guests, once, into a cache.

A guest boots straight from a kernel and an initrd, so an image needs no boot loader and no partitions: its disk is one
ext4 filesystem, filled from an unpacked Debian tree by mke2fs, with no mount and no loop device.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab import host

# Debian releases and the major version of the agent that each ships.
RELEASES = {"bullseye": 5, "bookworm": 7, "trixie": 10, "sid": 11}
# Guests as other distributions ship them, by the release that each begins as. A variant has a recipe of its name.
VARIANTS = {"sid-uutils": "sid", "sid-busybox": "sid", "sid-mksh": "sid", "bookworm-sysv": "bookworm"}
RECIPES_OF_VARIANTS = Path(__file__).with_name("variants")
RECIPE = Path(__file__).with_name("recipe.sh")
DISK_SIZE = "2G"
# A mount and a pid namespace around each step: an interrupted build leaves neither mounts nor processes behind.
APART = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
IN_TREE = 'mount -t proc proc "$1/proc" && exec chroot "$1" /usr/bin/env -i RELEASE="$2" SSH_KEY="$3" /bin/sh -s'
PROGRESS_EVERY = 25


@dataclass(frozen=True)
class Image:
    """A release that is ready to boot. Nothing below its directory is ever written again."""

    release: str
    agent_version: str
    disk: Path
    kernel: Path
    initrd: Path
    tree: Path


def build(release: str) -> Image:
    """Return the image of a Debian release or of a variant, building it first where the cache does not have it."""
    if release not in {**RELEASES, **VARIANTS}:
        raise host.LabError(f"no such release: {release}; there are {', '.join([*RELEASES, *VARIANTS])}")
    images = host.cache_root() / "images"
    directory = images / f"{release}-{_key(release)}"
    if not directory.exists():
        with host.lock(images / f".{release}.lock"):
            if not directory.exists():
                _build_into(directory, release)
    return _load(directory)


def ssh_key() -> Path:
    """Return the private key that root in every guest accepts, generated once per cache."""
    key = host.cache_root() / "ssh" / "id_ed25519"
    public = key.with_suffix(".pub")  # written last
    if not public.exists():
        host.need("ssh-keygen")
        with host.lock(key.parent / ".lock"):
            if not public.exists():
                key.unlink(missing_ok=True)
                argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(key)]
                subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return key


def _public_key() -> str:
    return ssh_key().with_suffix(".pub").read_text(encoding="ascii").strip()


def _key(release: str) -> str:
    """Return a hash of all that decides what is in the image."""
    parts = [release, DISK_SIZE, IN_TREE, _public_key(), RECIPE.read_text(encoding="utf-8")]
    if release in VARIANTS:
        parts += [_key(VARIANTS[release]), _recipe_of(release).read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _recipe_of(variant: str) -> Path:
    return RECIPES_OF_VARIANTS / f"{variant}.sh"


def _load(directory: Path) -> Image:
    about = json.loads((directory / "image.json").read_text(encoding="ascii"))
    return Image(
        release=about["release"],
        agent_version=about["agent_version"],
        disk=directory / "disk.raw",
        kernel=directory / "kernel",
        initrd=directory / "initrd",
        tree=directory / "tree",
    )


def _build_into(directory: Path, release: str) -> None:
    """Build beside `directory` and rename when complete: what has the final name is whole."""
    host.need("debootstrap", "mke2fs", "unshare")
    images = directory.parent
    # We hold the release's lock, so whatever has such a name was left by a build that was interrupted.
    _remove(images.glob(f".{release}-partial-*"))
    partial = Path(tempfile.mkdtemp(prefix=f".{release}-partial-", dir=images))
    partial.chmod(0o755)
    _fill(partial, release, images / f"{release}.log")
    partial.rename(directory)
    _remove(path for path in images.glob(f"{release}-{'[0-9a-f]' * 12}") if path != directory)
    print(f"lab: {release}: complete: {directory}", flush=True)


def _remove(directories: Iterable[Path]) -> None:
    for directory in directories:
        subprocess.run(host.as_root(["rm", "-rf", "--one-file-system", str(directory)]), check=False)


def _fill(partial: Path, release: str, log_path: Path) -> None:
    tree, disk = partial / "tree", partial / "disk.raw"
    with open(log_path, "w", encoding="utf-8") as log:
        step = _Steps(release, log)
        in_tree = [*APART, "sh", "-c", IN_TREE, "sh", str(tree), release, _public_key()]
        if release in VARIANTS:
            step("copy", ["cp", "-a", "--reflink=auto", str(build(VARIANTS[release]).tree), str(tree)])
            step("what is different", in_tree, script=_recipe_of(release))
        else:
            # No mirror is named: debootstrap and the tree's apt then use the release's own default.
            step("bare system", [*APART, "debootstrap", "--variant=minbase", release, str(tree)])
            step("kernel, agent, settings", in_tree, script=RECIPE)
        for pattern, name in (("vmlinuz-*", "kernel"), ("initrd.img-*", "initrd")):
            newest = max((tree / "boot").glob(pattern))
            step(name, ["install", "-m", "0644", str(newest), str(partial / name)])
        # Initialise inode tables now, or each guest's kernel does it in the background of its first minutes.
        now = "lazy_itable_init=0,lazy_journal_init=0"
        step("disk", ["mke2fs", "-q", "-t", "ext4", "-L", "root", "-E", now, "-d", str(tree), str(disk), DISK_SIZE])
    about = {"release": release, "agent_version": _agent_version(tree)}
    (partial / "image.json").write_text(json.dumps(about), encoding="ascii")


def _agent_version(tree: Path) -> str:
    argv = host.as_root(["chroot", str(tree), "/usr/sbin/qemu-ga", "--version"])
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()[-1]


class _Steps:
    """Run the steps of a build as root: all output to a log, a line now and then to stdout."""

    def __init__(self, release: str, log: IO[str]) -> None:
        self._release = release
        self._log = log

    def __call__(self, name: str, argv: Sequence[str], script: Path = Path("/dev/null")) -> None:
        print(f"lab: {self._release}: {name}", flush=True)
        started = time.monotonic()
        with open(script, encoding="utf-8") as stdin:
            process = subprocess.Popen(
                host.as_root(argv),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": host.SEARCH_PATH},
                universal_newlines=True,
                errors="replace",
            )
        last = self._follow(process)
        if process.wait() != 0:
            text = "\n".join(last)
            raise host.LabError(f"{self._release}: {name} failed; all of it is in {self._log.name}; its end:\n{text}")
        print(f"lab: {self._release}: {name}: {time.monotonic() - started:.0f} s", flush=True)

    def _follow(self, process: subprocess.Popen[str]) -> deque[str]:
        last: deque[str] = deque(maxlen=15)
        assert process.stdout is not None
        for number, line in enumerate(process.stdout, 1):
            self._log.write(line)
            last.append(line.rstrip())
            if number % PROGRESS_EVERY == 0:
                print(f"lab: {self._release}:   {number}: {line.rstrip()[:100]}", flush=True)
        return last
