# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same playbook over ssh and over the agent, on two machines in the same state: it ends alike, task by task."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible.release import __version__ as core_version

from ansible_collections.qemu.guest.tests.integration.elsewhere import run_target, targets
from ansible_collections.qemu.guest.tests.integration.harness import Ansible, Run, Subject, guest_variables
from lab import accel, host, image, ssh
from lab.vm import Guest

WHOLE = os.environ.get("QEMU_GUEST_PARITY") == "all"
"""Whether all targets are run that make sense here, which takes an hour: not in `make test`."""

TARGETS = ["async", "raw", "slurp"]
"""Those of ansible-core's targets that need neither a network nor a kernel of their own; `MORE` take long."""

# fmt: off
MORE = [
    "tempfile", "script", "stat", "command_shell", "become", "become_su", "become_sudo", "async_fail",
    "fetch/run_fetch_tests.yml", "fetch/injection/avoid_slurp_return.yml", "environment/test_environment.yml",
    "remote_tmp/playbook.yml", "interpreter_discovery_python", "wait_for_connection", "template", "unarchive",
    "lineinfile", "file", "copy", "assemble", "blockinfile", "cron", "facts_d", "find", "getent", "group",
    "package_facts", "replace", "service_facts", "user", "wait_for",
]
# fmt: on

UNTIL = {
    "become_su": "become_su : test wrong su prompt expected",  # nobody needs to see the prompt
    "fetch/run_fetch_tests.yml": "fetch_tests : Test unreachable",  # with a wrong ansible_user
    "remote_tmp/playbook.yml": "find",  # for the file of a module that is not piped
    "reboot": "reboot : Reboot with test command that fails",  # within a minute; and then it wants a network
}
"""The first task, by target, of those that say nothing: about what ssh does in another way, or about the machine."""

UNTIL_IF_EMULATED = {
    "async": "async : get async status with custom dir using newer format",  # of a job that has hardly begun
    "wait_for": "wait_for : verify test for absent path",
}
"""The same, for an emulated guest: where a job is to have ended, and who asks over ssh asks seconds later."""

LEFT_BEHIND = "ansible-test-abs-link*"
"""What the target `copy` leaves in the controller's /tmp, where it is not new to the next run."""

HOST = "testhost"
"""What ansible-core's targets call the machine that they configure."""

_TASK = re.compile(r"^(?:TASK|RUNNING HANDLER) \[(.*)\] \**$")
_RESULT = re.compile(r"^(ok|changed|skipping|fatal|failed|unreachable|included|rescued|ignored|\.\.\.ignoring)\b")


@dataclass(frozen=True)
class Way:
    """A way to the machine."""

    name: str
    variables: Mapping[str, Any]


@dataclass(frozen=True)
class Ending:
    """What a run did: what became of each task, in order, and the recap."""

    steps: Sequence[tuple[str, str]]
    recap: Mapping[str, int]
    seconds: float

    @property
    def words(self) -> list[str]:
        """What became of each task."""
        return [word for _task, word in self.steps]

    @property
    def good(self) -> int:
        """How many tasks did what they should."""
        return sum(word in ("ok", "changed") for word in self.words)

    def __str__(self) -> str:
        counts = " ".join(f"{name}={count}" for name, count in self.recap.items() if count)
        last = next((f", fatal in {task!r}" for task, word in reversed(self.steps) if word == "fatal"), "")
        return f"{counts}{last if self.recap.get('failed') else ''} ({self.seconds:.0f} s)"

    def same(self, other: Ending) -> bool:
        return self.words == other.words and self.recap == other.recap

    def until(self, name: str | None) -> Ending:
        """Return the part before the task of this name, without a recap; all of it where there is none."""
        names = [task for task, _word in self.steps]
        return replace(self, steps=self.steps[: names.index(name)], recap={}) if name in names else self


WAYS: dict[str, dict[str, Any]] = {
    "runner": {"ansible_qga_exec_method": "runner"},
    "guest-exec": {"ansible_qga_exec_method": "guest-exec"},
    "files": {"ansible_qga_exec_method": "runner", "ansible_pipelining": False},
}


def compare(target: str, way: str, subject: Subject, over_ssh: Callable[[], Subject], directory: Path) -> None:
    """Run a target by a way (see WAYS), and check that it ends as over ssh, on another machine in the same state.

    How it ends over ssh, on such a machine with the same core, is kept in the cache: it takes an emulated guest many
    minutes. ``over_ssh`` is called where that is not known.
    """
    if not (targets() / (target if target.endswith(".yml") else f"{target}/tasks/main.yml")).exists():
        pytest.skip("this ansible-core does not have it, or not as a play")
    other = Way(way, {**guest_variables(subject), **WAYS[way]})
    until = _until(target, subject)
    seen, output = _run(target, other, until, directory)
    assert seen.good > 1, f"nothing to compare:\n{output}"
    if any(seen.same(ending.until(until)) for ending in _known(subject, target)):
        return
    twin = over_ssh()
    python = {"ansible_python_interpreter": guest_variables(twin)["ansible_python_interpreter"]}
    expected, _output = _run(target, Way("ssh", {**python, **ssh.variables(twin)}), until, directory)
    _keep(twin, target, expected)
    assert seen.same(expected), _difference(target, other, expected, seen, output)


def _until(target: str, subject: Subject) -> str | None:
    emulated = isinstance(subject, Guest) and accel.accelerator() == "tcg"
    return {**UNTIL, **(UNTIL_IF_EMULATED if emulated else {})}.get(target)


def _endings(subject: Subject) -> Path:
    of_image = image.build(subject.release).tree.parent.name
    return host.cache_root() / "parity" / f"ansible-core-{core_version}" / of_image


def _known(subject: Subject, target: str) -> Iterator[Ending]:
    """Yield how the target ended over ssh, in a guest or without one."""
    for path in _endings(subject).glob(f"{target.replace('/', '-')}.*.json"):
        known = json.loads(path.read_text(encoding="utf-8"))
        yield Ending([tuple(step) for step in known["steps"]], known["recap"], known["seconds"])


def _keep(subject: Subject, target: str, ending: Ending) -> None:
    path = _endings(subject) / f"{target.replace('/', '-')}.{type(subject).__name__}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(ending)), encoding="utf-8")
    partial.replace(path)


def _run(target: str, way: Way, until: str | None, directory: Path) -> tuple[Ending, str]:
    for left in Path("/tmp").glob(LEFT_BEHIND):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    scratch = Path(tempfile.mkdtemp(dir=directory))
    run = run_target(Ansible(scratch, {HOST: way.variables}), target, rc=None)
    ending = Ending(list(_steps(run)), run.recap.get(HOST, {}), run.seconds)
    print(f"{target} by {way.name}: {ending}", flush=True)
    return ending.until(until), run.output


def _steps(run: Run) -> Iterator[tuple[str, str]]:
    task = "(none)"
    for line in run.output.splitlines():
        if match := _TASK.match(line):
            task = match.group(1)
        elif match := _RESULT.match(line):
            yield task, match.group(1)


def _difference(target: str, way: Way, expected: Ending, seen: Ending, output: str) -> str:
    pairs = zip([*expected.steps, ("(the end)", "")], [*seen.steps, ("(the end)", "")], strict=False)
    where = next((f"{one} and {other}" for one, other in pairs if one[1] != other[1]), "the recap")
    name = f"{tempfile.gettempdir()}/parity-{target.replace('/', '-')}-{time.time():.0f}.log"
    Path(name).write_text(output, encoding="utf-8", errors="replace")
    return f"{target} by {way.name} ends otherwise than by ssh: {seen}, not {expected}; at {where}; see {name}"
