# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a user writes and an agent replies, a module ends with a result or with an error that says why."""

from __future__ import annotations

import calendar
import json
import os
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from importlib import import_module
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from hypothesis import assume, example, given, reject
from hypothesis import strategies as st

from ansible_collections.qemu.guest.plugins.module_utils._agent import base, deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import OperationError, QgaError
from ansible_collections.qemu.guest.plugins.module_utils._guest import executor, files, patience
from ansible_collections.qemu.guest.plugins.module_utils._module import freeze, power
from ansible_collections.qemu.guest.plugins.module_utils._module.modes import mode_of
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec
from ansible_collections.qemu.guest.plugins.modules import qga_exec, qga_ping, qga_shutdown, qga_suspend, qga_time
from ansible_collections.qemu.guest.tests.unit.filesystems import armed_for_nothing
from ansible_collections.qemu.guest.tests.unit.plugins.modules.test_garbage import INFO, TASKS
from ansible_collections.qemu.guest.tests.unit.properties import names, text_of, values
from ansible_collections.qemu.guest.tests.unit.scripted import Clock


class Replying(Agent):
    """An agent that replies at once: to each command what is in ``replies``, or that there is no such command."""

    def __init__(self, replies: dict[str, Any]) -> None:
        super().__init__("unix:/run/vm1.qga")
        self.replies = {"guest-ping": {}, **replies}

    def _request(self, command: str, arguments: Any, deadline: Deadline) -> dict[str, Any]:
        if command in self.replies:
            return {"return": self.replies[command]}
        if command == "guest-info":
            table = [{"name": name, "enabled": True} for name in [*self.replies, "guest-info"]]
            return {"return": {**INFO, "supported_commands": table}}
        return {"error": {"class": "CommandNotFound", "desc": "no such command"}}

    def close(self) -> None:
        pass


@contextmanager
def no_waiting() -> Iterator[None]:
    """Time passes by itself, and no process is left that waits for an agent which is gone."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        for waits in (base, deadline, executor, files, patience, power, qga_exec, qga_ping, qga_shutdown, qga_suspend):
            patch.setattr(waits, "time", clock)
        patch.setattr(freeze, "arm", armed_for_nothing)
        yield


def replaced(value: Any, draw: st.DrawFn) -> Any:
    """Return ``value`` with other values in some of its places."""
    if draw(st.integers(0, 6)) == 0:
        return draw(values)
    if isinstance(value, dict):
        return {name: replaced(item, draw) for name, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, draw) for item in value * draw(st.integers(1, 2))]
    return value


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return a module, and replies to it of which some make no sense."""
    module = draw(st.sampled_from(sorted(TASKS)))
    replies = TASKS[module][1]
    return module, {command: replaced(reply, draw) for command, reply in replies.items()}


@given(damaged())
def test_replies_that_make_no_sense_end_in_a_result_or_an_error(of: tuple[str, dict[str, Any]]) -> None:
    """test_garbage.py damages one place at a time, and all of them; this damages several, by what is rare."""
    module, replies = of
    operation = import_module(f"ansible_collections.qemu.guest.plugins.modules.{module}").OPERATION
    options = {**{name: option.get("default") for name, option in argument_spec(operation).items()}, **TASKS[module][0]}
    with no_waiting():
        try:
            said: Any = run_operation(operation, Replying(replies), options, diff=True)
        except QgaError as exc:
            assert str(exc).isprintable()
            said = exc.as_result()
    json.dumps(said, ensure_ascii=False, allow_nan=False).encode("utf-8")


MODULES = sorted(TASKS)
some_text = text_of("0644", "u=rw", "2030-01-01T00:00:00Z", "/tmp/x", "x", "\0", " ", "'", "{{ x }}")


def draw_option(option: dict[str, Any], data: st.DataObject) -> Any:
    if "choices" in option:
        return data.draw(st.sampled_from(option["choices"]))
    if option["type"] == "float":
        return data.draw(st.sampled_from([0, 0.5, 3, -1, "nan", "1e400"]))  # what is waited for passes in steps
    return data.draw(some_text | values)


@given(st.sampled_from(MODULES), st.data())
def test_options_of_any_kind_end_in_a_result_or_an_error(module: str, data: st.DataObject) -> None:
    operation = import_module(f"ansible_collections.qemu.guest.plugins.modules.{module}").OPERATION
    spec = argument_spec(operation)
    given_options = {
        name: draw_option(option, data) for name, option in spec.items() if data.draw(st.integers(0, 3)) == 0
    }
    given_options = {**TASKS[module][0], **given_options}
    try:
        checked = ArgumentSpecValidator(spec, **operation.constraints).validate(given_options)
    except UnicodeEncodeError:  # ansible-core itself fails on half a surrogate pair in a secret
        reject()
    assume(not checked.error_messages)
    with no_waiting():
        try:
            said: Any = run_operation(operation, Replying(TASKS[module][1]), checked.validated_parameters, diff=True)
        except QgaError as exc:
            assert str(exc).isprintable()
            said = exc.as_result()
    json.dumps(said, ensure_ascii=False, allow_nan=False).encode("utf-8")


# qga_exec


@given(
    st.lists(names, min_size=1, max_size=4),
    st.dictionaries(st.from_regex(r"[A-Z]_[A-Za-z0-9_]{0,8}", fullmatch=True), names),
)
def test_program_gets_the_words_and_the_environment_that_it_was_given(argv: list[str], env: dict[str, str]) -> None:
    program = [*("sh", "-c", """printf '%s\\0' "$@"; exec env -0"""), *argv]
    text = qga_exec.shell_command({"env": env, "chdir": "/", "shell": None}, [*program[:3], "x", *argv])
    output = subprocess.run(["sh"], input=text, env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE, check=True)
    words = output.stdout.split(b"\0")
    assert words[: len(argv)] == list(map(os.fsencode, argv))
    assert {os.fsencode(f"{name}={value}") for name, value in env.items()} <= {*words[len(argv) :]}


@given(text_of("'", '"', "\\", " ", "#", "\n", "a"))
def test_command_is_split_as_a_shell_splits_it_or_an_error(cmd: str) -> None:
    with suppress(OperationError):
        assert qga_exec.program({"cmd": cmd, "argv": None}) == shlex.split(cmd) != []


# Modes


@given(st.integers(0, 0o7777), st.integers(0, 0o7777))
def test_mode_in_octal_is_that_mode(mode: int, present: int) -> None:
    assert mode_of(f"{mode:o}", present) == mode_of(mode, present) == mode_of(f"0{mode:04o}", present) == mode


@given(
    st.text("ugoa+-=rwxXst,07_ ") | st.text("07") | text_of("u", "=") | values,
    st.integers(0, 0o7777),
)
def test_mode_is_one_that_a_file_can_have_or_an_error(mode: Any, present: int) -> None:
    umask = os.umask(0o077)
    try:
        assert 0 <= mode_of(mode, present) <= 0o7777
    except OperationError as exc:
        assert str(exc).isprintable()
    finally:
        assert os.umask(umask) == 0o077


# Without copied permissions (u=g), of which ansible-core and chmod do not always say the same.
clause = st.from_regex(r"(a|[ugo]{1,2})[-+=]r?w?X?x?s?|[-+=]r?w?x?", fullmatch=True)


@given(st.lists(clause, min_size=1, max_size=3).map(",".join), st.integers(0, 0o777))
def test_mode_in_symbols_is_what_chmod_makes_of_it(symbols: str, present: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, present)
        subprocess.run(["sh", "-c", 'umask 022; chmod -- "$1" "$2"', "sh", symbols, file.name], check=True)
        assert mode_of(symbols, present) == stat.S_IMODE(os.stat(file.name).st_mode)


# Times


@pytest.mark.parametrize("zone", ["+24:00", "-00:60"])
def test_zone_that_there_is_not_is_refused(zone: str) -> None:
    with pytest.raises(OperationError, match="is no time zone"):
        qga_time.instant(f"2030-01-31T12:00:00{zone}")


zones = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(
    lambda d: timezone(timedelta(minutes=d // timedelta(minutes=1)))
)


@given(st.datetimes(datetime(1970, 1, 2), datetime(2262, 1, 1), timezones=zones), st.sampled_from("T "))
def test_instant_is_that_of_its_zone(when: datetime, separator: str) -> None:
    nanoseconds = calendar.timegm(when.utctimetuple()) * 10**9 + when.microsecond * 1000
    assert qga_time.instant(when.isoformat(separator)) == nanoseconds
    assert qga_time.instant(f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09}") == nanoseconds


@given(text_of("2030-01-31", "T", "12:00:00", "24:00", ".5", "Z", "+99:99", "+", "1", "9" * 30, "\u0663"))
@example("9" * 20)
@example("2300-01-01T00:00Z")
@example("0230-01-31 12:00+0220")
def test_instant_is_one_that_the_agent_takes_or_an_error(text: str) -> None:
    with suppress(OperationError):
        assert -(2**63) <= qga_time.instant(text) < 2**63
