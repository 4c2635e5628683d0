# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection: ansible-core's interface over a guest's agent. plugins/connection/qga.py has its documentation."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import multiprocessing
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ansible import constants
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import FORMS, Address, parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent, Patience
from ansible_collections.qemu.guest.plugins.module_utils._agent.channel import Channel
from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    CommandUnavailable,
    ConnectError,
    FileChangedError,
    NoRunnerError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import dismiss, note, noted
from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import printable
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import (
    ExecResult,
    Executor,
    GuestExec,
    ShellCommand,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import Progress
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import run_shell, start_shell, usable
from ansible_collections.qemu.guest.plugins.module_utils._guest.patience import is_frozen, when_thawed
from ansible_collections.qemu.guest.plugins.plugin_utils._become import (
    Asking,
    asking,
    last_words,
    refused,
    without_marker,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._bytecode import kept_bytecode
from ansible_collections.qemu.guest.plugins.plugin_utils._facts_as_options import told_by_facts
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import GuestExecOrRunner, Runner
from ansible_collections.qemu.guest.plugins.plugin_utils._warm.client import WarmPython

if TYPE_CHECKING:
    from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.hypervisor import Hypervisor

__all__ = ("Connection",)

display = Display()

T = TypeVar("T")

# A reset is done again and again while a guest reboots, and must not wait for it.
_RESET_SECONDS = 1.0
_PROGRESS_SECONDS = 3.0

# The options for a hypervisor that is no inventory host, and the variables of ansible.builtin.ssh that they stand for.
_SSH_OPTIONS = {
    "ssh_args": "ansible_ssh_args",
    "ssh_common_args": "ansible_ssh_common_args",
    "ssh_extra_args": "ansible_ssh_extra_args",
    "ssh_executable": "ansible_ssh_executable",
    "ssh_host_key_checking": "ansible_host_key_checking",
    "ssh_private_key_file": "ansible_private_key_file",
}


def _spare_collections() -> None:
    """In the process of a task: have garbage collections leave alone what is there, which lives as long as the process.

    One that looks at all that ansible-core has loaded takes as long as a quick task.
    """
    if multiprocessing.parent_process():
        gc.freeze()


class Connection(ConnectionBase):  # type: ignore[misc]  # ansible-core has no types
    """Implements ansible-core's connection interface over the guest's Agent."""

    transport = "qemu.guest.qga"
    has_pipelining = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _spare_collections()
        super().__init__(*args, **kwargs)
        self._agent: Agent | None = None
        self._executor: Executor | None = None
        self._runner: Runner | None = None
        self._warm: WarmPython | None = None
        self._in_task = False  # whether a step of the task has been done in the guest; a loop's items count as one task
        self._trouble = ""  # why contact was lost, until something works again
        self._variables: Mapping[str, Any] | None = None  # all of the host's, where the core gives them
        self._gathers_facts = False  # whether the task is that of gather_facts
        self._asks: dict[str, bool] = {}  # whether a command line of become has been seen to ask for its password

    @property
    def default_user(self) -> str:
        """The user that tasks run as without become; ansible-core reads this attribute."""
        return str(self.get_option("agent_user"))

    @property
    def agent(self) -> Agent:
        """The agent of this connection. Operations run over it, too: see _action.py.

        :raise AnsibleError: if the host has no address, or an option makes no sense.
        """
        if self._agent is None:
            # The log must not refer to this object: a reference cycle would hold the channel until garbage collection.
            name = self._name
            timeout = self._seconds("agent_timeout", "ansible_qga_timeout", "more than 0", lambda value: value > 0)
            persist = self._seconds("persist", "ansible_qga_persist", "0 or more", lambda value: value >= 0)
            frozen_timeout = self._seconds(
                "frozen_timeout", "ansible_qga_frozen_timeout", "0 or more", lambda value: value >= 0
            )
            log = functools.partial(_show, display.vvvvv, name) if display.verbosity >= 5 else None
            try:
                address, hypervisor = self._address_and_hypervisor()
                agent = open_agent(
                    address,
                    timeout,
                    log=log,
                    libvirt_uri=self.get_option("libvirt_uri"),
                    share=functools.partial(_share, seconds=persist) if persist else None,
                    connect=hypervisor.connector if hypervisor else None,
                    forward=hypervisor.forward if hypervisor else None,
                )
            except AddressError as exc:
                raise AnsibleError(f"{name}: {exc}") from exc
            agent.patience = Patience(frozen_timeout, lambda text: display.warning(f"{name}: {text}"))
            self._agent = agent
            # In a loop, ansible-core makes a new connection unless this one says so.
            self._connected = True
        return self._agent

    @property
    def executor(self) -> Executor:
        """The executor by which operations run programs in the guest.

        :raise AnsibleError: as ``agent`` does.
        """
        return self._prepare()

    def set_options(self, task_keys: Any = None, var_options: Any = None, direct: Any = None) -> None:
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        self._gathers_facts = str((task_keys or {}).get("action")).rpartition(".")[2] == "gather_facts"
        if self._remote_is_local:
            self.set_become_plugin(None)  # it has no meaning, and with su, ansible-core would not pipe the module
        if "hostvars" in (var_options or {}):  # for reset_connection, ansible-core before 2.19 gives all variables
            self._variables = var_options

    def _resolve_option_variables(self, variables: Mapping[str, Any], templar: Any) -> dict[str, Any]:
        """Return the variables that options come from. From 2.19 on, ansible-core calls this with all variables."""
        self._variables = variables
        return dict(super()._resolve_option_variables(variables, templar))

    @property
    def _remote_is_local(self) -> bool:
        """Whether the modules of the task run here. Then ansible-core, which reads this, looks for no Python there."""
        only_ours = self._gathers_facts and set(self.get_option("facts_modules")) == {"qemu.guest.qga_facts"}
        return only_ours and self.get_option("pipelining") and not constants.DEFAULT_KEEP_REMOTE_FILES

    def _connect(self) -> Connection:
        # The channel opens with the first command: an action that needs no guest opens none.
        self._connected = True
        wanted, user = self._play_context.remote_user, self.default_user
        if wanted and wanted != user:
            # Each task has its own connection; the display shows the same warning once.
            display.warning(
                f"{self._name}: tasks run as {user}, the user that the guest agent runs as, and not as {wanted} (-u, "
                f"remote_user or ansible_user). Use become for that. Where the agent does run as {wanted}, set "
                "ansible_qga_user."
            )
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run ``cmd`` in the guest and return C((rc, stdout, stderr)), the latter two as bytes."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        stdin = to_bytes(in_data or b"", errors="surrogate_or_strict")
        facts = _gathered(self, stdin) if self._gathers_facts else None
        if facts is not None:
            return 0, facts, b""
        run = self._run_become if sudoable and self.become else self._run
        result = run(_as_over_ssh(cmd), stdin)
        return result.shell_rc, result.stdout, result.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy the controller's file ``in_path`` to the guest's ``out_path``."""
        super().put_file(in_path, out_path)
        local = to_bytes(in_path, errors="surrogate_or_strict")
        if not os.path.exists(local):
            raise AnsibleFileNotFound(f"there is no file {to_text(in_path)} to copy to the guest")
        with kept_bytecode():  # only tasks that copy files import it
            from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import put
        with open(local, "rb") as source:
            started = time.monotonic()
            size = self._guarded(
                lambda: put(self.executor, source, self._guest_path(out_path), self._progress("PUT", out_path)),
                out_path,
            )
        self._show_transfer("PUT", out_path, size, started)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy the guest's file ``in_path`` to the controller's ``out_path``."""
        super().fetch_file(in_path, out_path)
        with kept_bytecode():
            from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import fetch
        with open(to_bytes(out_path, errors="surrogate_or_strict"), "w+b") as sink:
            started = time.monotonic()
            try:
                size = self._guarded(
                    lambda: fetch(
                        self.executor,
                        self._guest_path(in_path),
                        sink,
                        self._progress("FETCH", in_path),
                        self._max_fetch_size(),
                    ),
                    in_path,
                )
            except FileChangedError as exc:  # a warning only: over ssh, this would go unnoticed
                size = exc.size
                display.warning(f"{self._name}: {exc}")
        self._show_transfer("FETCH", in_path, size, started)

    def reset(self) -> None:
        """Close the channel and start anew: the guest may have rebooted, or the agent restarted."""
        with contextlib.suppress(AnsibleError, QgaError):  # if the agent does not answer, there is nothing to end
            self._end_warm()
        self.close()
        self._trouble = ""
        with contextlib.suppress(AnsibleError, QgaError):
            dismiss(self._address_and_hypervisor()[0])
        self._connect()

    def close(self) -> None:
        """Close the channel, so that others can use it."""
        if self._agent is not None:
            self._agent.close()
            self._agent = self._executor = self._runner = self._warm = None
        self._connected = self._in_task = False

    def _prepare(self) -> Executor:
        """Return the executor for operations, made once, with the runner and warm Python that the options ask for."""
        if self._executor is None:
            agent, method = self.agent, self.get_option("exec_method")
            if method == "guest-exec":
                self._executor = GuestExec(agent)
                return self._executor
            log = functools.partial(_show, display.vvv, self._name)
            start = functools.partial(_start_runner, routes=self.get_option("bootstrap"), log=log)
            shell = self._begin_warm_shell if self.get_option("warm_python") else None
            self._runner = Runner(agent, start, shell if method == "runner" else None)
            if shell:
                self._warm = WarmPython(self._runner, log, functools.partial(_show, display.v, self._name))
            # With guest-exec, operations learn the signal that ended a program. Commands take the runner: _run_plain.
            self._executor = GuestExecOrRunner(self._runner, shell) if method == "auto" else self._runner
        return self._executor

    def _run(self, command: str, stdin: bytes, password: bytes = b"") -> ExecResult:
        """Run a shell command whose input is ``password`` and ``stdin``."""
        encoded, given = to_bytes(command, errors="surrogate_or_strict"), password + stdin
        started = time.monotonic()
        result = self._guarded(lambda: self._run_warm(command, given) or self._run_plain(encoded, given))
        display.vvv(
            f"EXEC {len(encoded)} bytes of command, {len(stdin)} of stdin -> rc {result.shell_rc}, "
            f"{len(result.stdout)} of stdout, {len(result.stderr)} of stderr in {time.monotonic() - started:.2f} s",
            host=self._name,
        )
        if result.stdout_truncated or result.stderr_truncated:
            raise AnsibleError(
                f"{self._name}: the command wrote more than the 16 MiB that the agent keeps, and the guest's dd has no "
                "iflag=fullblock, which would keep the rest. Redirect the output to a file in the guest and fetch that."
            )
        return result

    def _run_warm(self, command: str, stdin: bytes) -> ExecResult | None:
        self._prepare()
        if not self._warm:
            return None
        try:
            return self._warm.run(command, stdin)
        except (CommandUnavailable, NoRunnerError) as exc:
            if is_frozen(exc):
                raise
            return None  # nothing was run; the plain path has other means, or reports the error

    def _run_plain(self, command: bytes, stdin: bytes) -> ExecResult:
        executor = self._prepare()
        if self._runner:
            try:
                return usable(self._runner, self._runner.finish(start_shell(self._runner, command, stdin)))
            except (CommandUnavailable, NoRunnerError) as exc:
                if is_frozen(exc) or not executor.is_available() or self.get_option("exec_method") == "runner":
                    raise
                display.vvv(printable(f"{exc} Using guest-exec."), host=self._name)
                self._runner = None
        return run_shell(executor, command, stdin)

    def _begin_warm_shell(self, command: ShellCommand, stdin: bytes) -> Callable[[], ExecResult | None] | None:
        try:
            return self._warm.begin_shell(command, stdin) if self._warm else None
        except (CommandUnavailable, NoRunnerError):
            return None

    def _run_become(self, command: str, stdin: bytes) -> ExecResult:
        """Run a shell command of the become plugin; return its result without the plugin's own output.

        :raise AnsibleError: if the right password would give another result, as the core's connections do.
        """
        ask = asking(self.become, command) if self.become.expect_prompt() else None
        if ask:
            result, asked = self._run_with_password(ask, stdin)
        else:
            result, asked = self._run(command, stdin), 0
        if not self._has_begun(result):
            self._check_password(result, asked)
        return result._replace(stdout=without_marker(self.become, result.stdout))

    def _run_with_password(self, ask: Asking, stdin: bytes) -> tuple[ExecResult, int]:
        """Return the result, and how often a password was asked for. A program that does not ask gets none."""
        if not self._asks_for_it(ask):
            result = self._run(ask.plain, stdin)
            if self._has_begun(result):
                return result, 0
        password = to_bytes(self.become.get_option("become_pass", playcontext=self._play_context))
        result, asked = ask.read(self._run(ask.text, stdin, password + b"\n"))
        if self._asks.get(ask.line) != (asked > 0):
            self._asks[ask.line] = asked > 0
            with contextlib.suppress(QgaError):
                note(self._address_and_hypervisor()[0], ask.name, str(asked > 0))
        return result, asked

    def _asks_for_it(self, ask: Asking) -> bool:
        """Return whether a command line of become asks for its password, as far as is known.

        Each task has its own connection, so that is noted in the mux for the next task, if the channel is kept.
        """
        if ask.line not in self._asks:
            with contextlib.suppress(QgaError):
                said = noted(self._address_and_hypervisor()[0], ask.name)
                if said:
                    self._asks[ask.line] = said == str(True)
        return self._asks.get(ask.line, not ask.is_silent)

    def _has_begun(self, result: ExecResult) -> bool:
        """Return whether the become plugin's program has started the task."""
        return result.shell_rc == 0 or bool(self.become.check_success(result.stdout))

    def _check_password(self, result: ExecResult, asked: int) -> None:
        """Raise AnsibleError if a program that did not start the task wants another password.

        ``asked`` is how often it has asked; it was given the password the first time.
        """
        output, name = result.stdout + result.stderr, self.become.name
        wrong = asked > 1 or self.become.check_incorrect_password(output)
        wants = wrong or self.become.check_missing_password(output) or refused(output)
        if not asked and not wants:
            return  # an unknown user, for example: a result like any other
        if not asked and self.become.get_option("become_pass", playcontext=self._play_context):
            what = f"{name} did not ask for its password on standard input, where it could have been given one"
        elif not asked:
            what = f"Missing {name} password; set ansible_become_password, or use --ask-become-pass"
        elif wrong:
            what = f"Incorrect {name} password"
        else:
            what = f"{name} was given its password and did not start the task"
        raise AnsibleError(f"{self._name}: {what}. It said: {last_words(result)}. Nothing was run.")

    def _end_warm(self) -> None:
        self._prepare()
        if self._runner and self._warm:
            self.agent.timeout = _RESET_SECONDS
            self._warm.end()

    def _seconds(self, option: str, name: str, range_: str, is_valid: Callable[[float], bool]) -> float:
        """Return the value of an option that is a number of seconds.

        :raise AnsibleError: if it is out of range or not finite.
        """
        value = float(self.get_option(option))
        if not (is_valid(value) and math.isfinite(value)):
            raise AnsibleError(f"{self._name}: {name} is {value:g}; it is a number of seconds and must be {range_}.")
        return value

    def _address_and_hypervisor(self) -> tuple[Address, Hypervisor | None]:
        """Return the agent's address, and the machine that it is on; None if that is this machine.

        :raise AnsibleError: if no option has an address, or the guest has set options.
        :raise AddressError: if an option makes no sense.
        """
        told = told_by_facts(self._all_variables)
        if told:
            raise AnsibleError(f"{self._name}: {told}")
        address, hypervisor = self.own_address, self._hypervisor()
        if not hypervisor:
            return address, None
        if address.kind == "libvirt":
            return address._replace(host=hypervisor.name, login=hypervisor.identity), hypervisor
        if address.kind != "unix" or address.is_abstract:
            raise AddressError(
                f"{address} cannot be reached through ssh to {hypervisor.name}: only the path of a socket there, or a "
                "domain of its libvirt can."
            )
        return hypervisor.address(address.path), hypervisor

    @property
    def _all_variables(self) -> Mapping[str, Any]:
        """The host's variables. If the core does not give them, those of the task that this process was started for."""
        if self._variables is not None:
            return self._variables
        return getattr(multiprocessing.current_process(), "_task_vars", {})

    @property
    def own_address(self) -> Address:
        """The agent's address on the machine that it is on.

        :raise AnsibleError: if no option has one.
        :raise AddressError: if the option is not an address.
        """
        text = self.get_option("address")
        if not text:
            text = self.get_option("host") or ""
            try:
                parse_address(text)
            except AddressError:
                raise AnsibleError(
                    f"{self._name}: where is its guest agent? Set ansible_qga_address for the host, to {FORMS}."
                ) from None
        return parse_address(text)

    def _hypervisor(self) -> Hypervisor | None:
        """Return the machine that the agent's socket is on; None if it is this one.

        :raise AddressError: if the option names none.
        """
        name = self.get_option("hypervisor")
        if not name:
            return None
        with kept_bytecode():  # only tasks on guests of other machines import it
            from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.find import (
                find_hypervisor,
                host_variables,
            )
        options = {variable: self.get_option(option) for option, variable in _SSH_OPTIONS.items()}
        given = {variable: value for variable, value in options.items() if value is not None}
        return find_hypervisor(name, host_variables(name, self._all_variables.get("hostvars")), given)

    def _guest_path(self, path: str) -> str:
        """Return ``path`` as an absolute one: the agent's working directory is /, and it knows no ~."""
        text = to_text(path, errors="surrogate_or_strict")
        if text.startswith("/"):
            return str(text)
        user, _slash, rest = text.partition("/")
        if not re.fullmatch(r"~[\w.-]*", user):
            user, rest = "~", text
        output = run_shell(self.executor, b"printf %s " + user.encode("utf-8"), whole=False).stdout
        home = output.decode("utf-8", "surrogateescape")
        if not home.startswith("/"):
            raise AnsibleFileNotFound(f"{self._name}: {text} is nowhere: the guest knows no home directory {user}.")
        return f"{home}/{rest}"

    def _max_fetch_size(self) -> int | None:
        text = self.get_option("max_fetch_size")
        try:
            return human_to_bytes(text) if text else None
        except ValueError as exc:
            raise AnsibleError(f"{self._name}: ansible_qga_max_fetch_size: {exc}") from exc

    def _guarded(self, action: Callable[[], T], path: str = "") -> T:
        """Return what ``action`` returns; convert this collection's errors to ansible-core's. They name ``path``.

        In the middle of a task, a frozen guest is waited for. The agent refuses all that could begin then, so nothing
        of the action has been run.
        """
        try:
            with self.agent.named(to_text(path)):
                value = when_thawed(self.agent, action) if self._in_task else action()
            self._in_task, self._trouble = True, ""
            return value
        except (ConnectError, OutcomeUnknownError, ProtocolError) as exc:
            self.close()
            # ansible-core cleans up after a task that failed, and if that fails too, tells only this. That cleaning up
            # was not sent says nothing of the task.
            is_after = bool(self._trouble) and isinstance(exc, ConnectError)
            self._trouble = self._trouble if is_after else str(exc)
            raise AnsibleConnectionFailure(self._trouble) from (None if is_after else exc)
        except FileChangedError:
            raise
        except QgaError as exc:
            raise AnsibleError(str(exc)) from exc

    def _progress(self, what: str, path: str) -> Progress:
        """Return a function that shows, at -v, the progress of a long transfer."""
        shown = time.monotonic()

        def show(copied: int) -> None:
            nonlocal shown
            if time.monotonic() - shown >= _PROGRESS_SECONDS:
                shown = time.monotonic()
                display.v(f"{what} {printable(to_text(path))}: {copied} bytes so far", host=self._name)

        return show

    def _show_transfer(self, what: str, path: str, size: int, started: float) -> None:
        seconds = time.monotonic() - started
        display.vvv(f"{what} {printable(to_text(path))}: {size} bytes in {seconds:.2f} s", host=self._name)

    @property
    def _name(self) -> str:
        return str(self._play_context.remote_addr or "guest")


# These import what few tasks need: most find a channel that is kept, and a runner.


def _share(address: Address, channel: Channel, seconds: float) -> Channel:
    with kept_bytecode():
        from ansible_collections.qemu.guest.plugins.plugin_utils._mux_server import share
    return share(address, channel, seconds)


def _gathered(connection: Connection, payload: bytes) -> bytes | None:
    with kept_bytecode():
        from ansible_collections.qemu.guest.plugins.plugin_utils._gathering import gathered
    return gathered(connection, payload)


def _start_runner(agent: Agent, **how: Any) -> None:
    with kept_bytecode():
        from ansible_collections.qemu.guest.plugins.plugin_utils._runner.bootstrap import start_runner
    start_runner(agent, **how)


def _show(show: Callable[..., None], host: str, text: str) -> None:
    """Display text that may contain output of the guest."""
    show(printable(text), host=host)


def _as_over_ssh(command: str) -> str:
    """Return the command for /bin/sh that does what ``command`` does over ssh, where the login shell runs it.

    The login shell is /bin/bash, say, for raw. ansible-core wraps all other commands as `/bin/sh -c '… && sleep 0'`,
    for ssh. /bin/sh runs them here anyway, so unwrapping saves a shell and a program per task.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if len(words) == 3 and words[1] == "-c" and words[0].startswith("/"):
        return words[2].removesuffix(" && sleep 0") if words[0] == "/bin/sh" else command
    return f'exec "$SHELL" -c {shlex.quote(command)}'
