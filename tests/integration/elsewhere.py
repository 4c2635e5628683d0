# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks that were not written for this collection: the integration tests of the ansible-core under test, unchanged.

They are in the source distribution of ansible-core, which is downloaded once per version into the cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from ansible.release import __version__ as core_version

from ansible_collections.qemu.guest.tests.integration.harness import Ansible, Run
from lab import host

CONNECTION = [
    f"connection/{name}.yml" for name in ("test_connection", "test_reset_connection", "test_reset_connection_templated")
]
"""What ansible-core runs against each of its own connection plugins, as far as its version has it."""

_PARTS = ("integration/targets/", "support/integration/plugins/")


def targets() -> Path:
    """Return the directory of the integration targets of the ansible-core that runs this, downloading it if need be."""
    return _tests() / _PARTS[0]


def _tests() -> Path:
    home = host.cache_root() / "elsewhere"
    directory = home / f"ansible-core-{core_version}-test"
    with host.lock(home / ".lock"):
        if not directory.exists():
            partial = home / ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _unpack(_download(partial), partial / "unpacked")
            (partial / "unpacked").rename(directory)
            shutil.rmtree(partial)
    return directory


def _download(directory: Path) -> Path:
    # The environment under test has no pip of its own; the one that made it can act for its Python.
    pip = host.cache_root() / "bootstrap" / "bin" / "pip"
    command = [str(pip), "--python", sys.executable] if pip.exists() else [sys.executable, "-m", "pip"]
    what = ["--no-deps", "--no-binary", "ansible-core", f"ansible-core=={core_version}"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "download", *what, "--dest", str(directory)],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, f"cannot download the source of ansible-core:\n{done.stdout}"
    return next(directory.glob("*.tar.gz"))


def _unpack(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            before, _test, inner = member.name.partition("/test/")
            # Links between targets lead to files that are in the archive themselves.
            if inner.startswith(_PARTS) and "/" not in before and (member.isfile() or member.issym()):
                member.name = inner
                tar.extract(member, directory, filter="data")


def run_target(ansible: Ansible, name: str, **options: Any) -> Run:
    """Run the target `name` as ansible-test does, on all hosts of `ansible`; or a playbook of one (target/name.yml)."""
    output = ansible.directory / "output"
    output.mkdir(exist_ok=True)
    playbook = targets() / name
    roles = [str(targets())]
    if playbook.suffix != ".yml":
        # Some make files beside their own, and "changed" would become "ok" the next time.
        own = ansible.directory / "roles"
        shutil.copytree(playbook, own / name, symlinks=True)
        roles.insert(0, str(own))
        playbook = ansible.directory / f"{name}.json"
        play = {"name": "Run a target", "hosts": "all", "gather_facts": True, "roles": [name]}
        playbook.write_text(json.dumps([play]), encoding="utf-8")
    environment = {
        "ANSIBLE_ROLES_PATH": os.pathsep.join(roles),
        "ANSIBLE_LIBRARY": str(_tests() / _PARTS[1] / "modules"),
        "OUTPUT_DIR": str(output),
        **options.pop("environment", {}),
    }
    variables: dict[str, Any] = {"output_dir": str(output)}
    if name in CONNECTION:
        paths = {"local_tmp": str(ansible.directory / "local"), "remote_tmp": "/tmp/ansible-remote"}
        variables = {"target_hosts": "all", "action_prefix": "", **paths}
    return ansible.playbook(playbook, variables=variables, environment=environment, timeout=3600, **options)


def run_connection_tests(ansible: Ansible) -> None:
    """Run what ansible-core runs against each of its own connection plugins."""
    for name in CONNECTION:
        if (targets() / name).exists():
            run_target(ansible, name)
