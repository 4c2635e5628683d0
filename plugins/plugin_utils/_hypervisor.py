# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypervisor: another machine, which has the sockets of guests' agents, and needs nothing but sshd and sh.

The login is that of ansible.builtin.ssh: this loads that plugin, with the variables of the machine's inventory host,
and has it leave one connection behind (ControlPersist), which all guests of that machine and all tasks then use. Where
those variables ask for become, a relay of that user (_relay) is started there through the same connection.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import become_loader, connection_loader

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import AddressError, ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import FORWARD, lock_file, private_path
from ansible_collections.qemu.guest.plugins.plugin_utils._relay.client import (
    NO_PYTHON,
    Login,
    RelayGone,
    forget,
    python_command,
    started_path,
)
from ansible_collections.qemu.guest.plugins.plugin_utils._ssh_forward import ControlSocket

__all__ = ("THIS_MACHINE", "Hypervisor", "find_hypervisor", "host_variables")

T = TypeVar("T")

THIS_MACHINE = "localhost"

# Seconds for which the connection stays when nothing goes through it any more: what Ansible's ssh_args say, too.
_PERSIST_SECONDS = 60
_RETRY_SECONDS = 0.02
_SERIAL = itertools.count()  # tells the forwards of one process apart
_OPTIONS = (
    "-oControlMaster=auto",
    f"-oControlPersist={_PERSIST_SECONDS}",
    "-oStreamLocalBindMask=0177",
    "-oServerAliveInterval=15",  # notice a hypervisor that has gone
)
_NOBODY_TO_ASK = "-oBatchMode=yes"

# The variables of an inventory host that say how to log in there, and as whom.
_LOGIN = re.compile(
    r"ansible_(host|port|user|password|pass|private_key_file|private_key|pkcs11_provider|host_key_checking|timeout"
    r"|ssh_\w+|sshpass_\w+|(become|sudo|su|doas)(_\w+)?)"
)
_BECOME = "ansible_become"
_METHOD = "ansible_become_method"
_PYTHON = "ansible_python_interpreter"
_SECRETS = re.compile(r"ansible_\w*(pass|password|passphrase)")
# What decides about the login besides: the configuration, the environment and the command line.
_ENVIRONMENT = re.compile(r"ANSIBLE_(SSH_\w+|HOST_KEY_CHECKING|REMOTE_\w+|PRIVATE_KEY_FILE|BECOME\w*|PIPELINING)")
_COMMAND_LINE = ("remote_user", "private_key_file", "ssh_common_args", "ssh_extra_args")
# What ansible.builtin.ssh says if become wants another password, or none was given.
_PASSWORD = re.compile(r"(Incorrect|Missing) .*password")
_NO_ANSWER = re.compile(r"Timeout \(\d+s\) waiting for privilege escalation prompt")
_LINES_OF_BECOME = 3  # that are shown if it fails; sudo's last one is not the one that tells
# ssh's own messages at -vvvv and above.
_CHATTER = re.compile(r"(debug\d|Transferred|Bytes per second|Warning): |OpenSSH_|Authenticated to ")
_SSH = ("ssh", "smart", "paramiko", "paramiko_ssh", "ansible.builtin.ssh", "ansible.builtin.paramiko_ssh")


def find_hypervisor(
    name: str, variables: Mapping[str, Any] | None, options: Mapping[str, Any] | None = None
) -> Hypervisor | None:
    """Return the hypervisor ``name``; None if it is this machine.

    ``variables`` are those of the inventory host of that name, templated; None if there is none. The name is a
    destination of ssh's then, and ``options`` are variables such as C(ansible_ssh_common_args).

    :raise AddressError: if it is neither, or its connection is not ssh.
    """
    if variables is None:
        if name == THIS_MACHINE:
            return None
        _check_destination(name)
        return Hypervisor(name, {**(options or {}), "ansible_host": name}, is_host=False)
    connection = variables.get("ansible_connection") or _SSH[0]
    if connection in ("local", "ansible.builtin.local"):
        return None
    if connection not in _SSH:
        raise AddressError(
            f"{name} has the connection {connection}. The sockets of a hypervisor are reached by ssh, or by local if "
            "it is this machine."
        )
    login = {key: variables[key] for key in variables if _LOGIN.fullmatch(key)}
    if boolean(login.get(_BECOME), strict=False):
        own = f"ansible_{_short_name(login)}_"
        login |= {key: variables[key] for key in variables if key.startswith(own) or key == _PYTHON}
    login.setdefault("ansible_host", name)
    _check_destination(str(login["ansible_host"]))
    return Hypervisor(name, login, is_host=True)


def host_variables(name: str, hostvars: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the variables of the inventory host ``name``; None if there is none.

    ``hostvars`` is the variable of that name. A connection plugin is not given it by every core: without it, the
    variables of the task that this process was started for are looked at.
    """
    if hostvars is None:
        hostvars = getattr(multiprocessing.current_process(), "_task_vars", {}).get("hostvars")
    return hostvars[name] if hostvars is not None and name in hostvars else None


class Hypervisor:
    """A machine that is reached by ssh. Several threads may use it. ``name`` is what the user calls it.

    ``login`` has the variables that say how to log in, as ansible.builtin.ssh knows them. C(ansible_host) is the
    destination. ``is_host``: the machine is an inventory host.
    """

    def __init__(self, name: str, login: Mapping[str, Any], *, is_host: bool) -> None:
        self.name = name
        self._login = login
        self._is_host = is_host

    @property
    def identity(self) -> str:
        """A name that is the same for the same login: only those share a connection."""
        told = [
            {k: value for k, value in self._login.items() if not _SECRETS.fullmatch(k) and k != _PYTHON},
            {key: value for key, value in os.environ.items() if _ENVIRONMENT.fullmatch(key)},
            {key: context.CLIARGS.get(key) for key in _COMMAND_LINE if self._is_host},
            C.CONFIG_FILE,
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode("utf-8")).hexdigest()[:32]

    def address(self, path: str) -> Address:
        """Return the address of the UNIX socket ``path`` there."""
        return Address("ssh", path=path, host=self.name, login=self.identity)

    def connect(self, path: str, deadline: Deadline) -> socket.socket:
        """Return a socket that leads to the UNIX socket ``path`` there.

        :raise ConnectError: with ssh's own message. If only ``path`` cannot be reached, the socket is closed by ssh, or
            the relay says why.
        """
        local = private_path(self.address(path).identity, FORWARD)
        if self._needs_become(deadline):
            return self._at_relay(local, deadline, lambda login, sock: login.lead(sock, path, deadline))[0]
        return self._forwarded(path, local, deadline)

    def _at_relay(
        self, local: str, deadline: Deadline, ask: Callable[[Login, socket.socket], T]
    ) -> tuple[socket.socket, T]:
        """Return a socket that leads to the relay there, and what it replied to ``ask``.

        :raise ConnectError: with the relay's words, or become's, or ssh's.
        """
        gone = ""
        for _attempt in range(2):  # one that was used before may have ended
            login = self._login_there(deadline, relay=True, gone=gone)
            sock = self._forwarded(login.path, local, deadline)
            try:
                return sock, ask(login, sock)
            except RelayGone:
                sock.close()
                gone = login.path
            except ConnectError as exc:
                sock.close()
                raise ConnectError(f"{self._become_there}: {exc.message}") from exc
        raise ConnectError(
            f"{self._become_there}: the relay that was started cannot be reached through ssh. Does sshd allow forwards "
            "(AllowStreamLocalForwarding), and do processes go on there when their session has ended?"
        )

    def _forwarded(self, path: str, local: str, deadline: Deadline) -> socket.socket:
        control = self._connected(deadline)
        try:
            return control.connect(path, local, deadline)
        except ConnectError:
            if control.listens() or deadline.expired:
                raise
        return self._connected(deadline).connect(path, local, deadline)  # it had just ended

    def connector(self, address: Address, deadline: Deadline) -> socket.socket:
        """Connect to an ``address`` there, for open_agent; see ``connect``."""
        return self.connect(address.path, deadline)

    @contextmanager
    def forward(self, path: str, deadline: Deadline) -> Iterator[str]:
        """Give the path of a socket here that leads to the UNIX socket ``path`` there, for who can only name one.

        :raise ConnectError: as ``connect`` does.
        """
        local = private_path(f"{self.address(path).identity} {os.getpid()} {next(_SERIAL)}", FORWARD)
        with ExitStack() as stack:
            if self._needs_become(deadline):
                sock, path = self._at_relay(local, deadline, lambda login, sock: login.listen(sock, path, deadline))
                stack.callback(sock.close)
            stack.enter_context(self._connected(deadline).forward(path, local, deadline))
            yield local

    def run(self, command: str, stdin: bytes, seconds: float) -> tuple[int, bytes, bytes]:
        """Run a shell command there and return C((rc, stdout, stderr)).

        :raise ConnectError: if that machine cannot be reached, or the command does not end within ``seconds``.
        """
        deadline = Deadline(seconds)
        if not self._needs_become(deadline):
            self._connected(deadline)
            return self._executed(command, stdin, deadline)
        if not stdin:  # the input is never empty, since become's password may be before it
            command = f"exec </dev/null; {command}"
        return self._executed(command, stdin or b"\n", deadline, self._become())

    @property
    def _becomes(self) -> bool:
        return bool(boolean(self._login.get(_BECOME), strict=False))

    @property
    def _become_there(self) -> str:
        """The beginning of a message."""
        user = self._become().get_option("become_user") or "the other user"
        return f"become on {self.name} ({_short_name(self._login)}, {user})"

    def _become(self) -> Any:
        """Return the become plugin, with this machine's variables.

        :raise ConnectError: if there is no such plugin.
        """
        method = self._login.get(_METHOD) or C.DEFAULT_BECOME_METHOD
        plugin = become_loader.get(method)
        if not plugin:
            raise ConnectError(
                f"become on {self.name}: there is no become plugin {method}. Set {_METHOD} of {self.name}, or install "
                "the plugin's collection."
            )
        plugin.set_options(var_options=dict(self._login))
        return plugin

    def _needs_become(self, deadline: Deadline) -> bool:
        """Return whether the login there is to become another user, as ansible-core sees it."""
        if not self._becomes:
            return False
        login = self._login_there(deadline)
        if login.path or C.BECOME_ALLOW_SAME_USER:
            return True
        return bool(self._become().get_option("become_user") != login.user)

    def _login_there(self, deadline: Deadline, *, relay: bool = False, gone: str = "") -> Login:
        """Return who the login is there. ``relay``: with a relay, at another path than that of one that has ended."""
        self._connected(deadline)

        def noted() -> Login | None:
            login = Login.load(self._note)
            return login if login and (not relay or login.path not in ("", gone)) else None

        login = noted()
        if login:
            return login
        with self._locked(deadline):
            login = noted()
            if not login:
                login = Login.load(self._note) or self._ask_who(deadline)
                if relay:
                    login = self._start_relay(login.with_secrets(), deadline)
                login.save(self._note)
            return login

    @property
    def _note(self) -> str:
        return private_path(self.identity, "relay")

    def _ask_who(self, deadline: Deadline) -> Login:
        _status, stdout, stderr = self._executed("id -u; id -un", b"", deadline)
        login = Login.parse(stdout)
        if not login:
            raise ConnectError(f"become on {self.name}: id there does not say who the login is: {_last_words(stderr)}")
        return login

    def _start_relay(self, login: Login, deadline: Deadline) -> Login:
        python = self._login.get(_PYTHON)
        status, stdout, stderr = self._executed(python_command(python), login.program(), deadline, self._become())
        path = started_path(stdout)
        if path:
            return login._replace(path=path)
        words = _last_words(stderr, _LINES_OF_BECOME) or _last_words(stdout) or f"exit status {status}"
        if words.endswith(NO_PYTHON):
            raise ConnectError(
                f"{self._become_there}: become on a hypervisor needs Python 3 there, 3.6 or later. There is none; "
                f"{_PYTHON} of {self.name} (now {python or 'not set'}) can name it."
            )
        raise ConnectError(f"{self._become_there}: no relay could be started: {words}")

    @contextmanager
    def _locked(self, deadline: Deadline) -> Iterator[None]:
        """Hold the lock under which ssh and the relay are started."""
        while True:
            with lock_file(self._lock) as lock:
                if lock:
                    yield
                    return
            self._wait_for_lock(deadline)

    def _wait_for_lock(self, deadline: Deadline) -> None:
        if deadline.expired:
            raise ConnectError(f"another task is connecting to {self.name}, since {deadline.seconds:g} s")
        time.sleep(_RETRY_SECONDS)

    @property
    def _lock(self) -> str:
        return f"{private_path(self.identity, 'ctl')}.lock"

    def _connected(self, deadline: Deadline) -> ControlSocket:
        """Return the control socket of the ssh that is connected, and connect it if there is none."""
        path = private_path(self.identity, "ctl")
        control = ControlSocket(path, str(self._login.get("ansible_ssh_executable") or "ssh"))
        while not control.listens():
            with lock_file(self._lock) as lock:
                if lock:
                    if not control.listens():
                        forget(self._note)  # the machine may have been started anew
                        self._log_in(control, deadline)
                    return control
            self._wait_for_lock(deadline)
        return control

    def _log_in(self, control: ControlSocket, deadline: Deadline) -> None:
        status, _stdout, stderr = self._executed("true", b"", deadline)
        if not control.listens():
            words = _last_words(stderr) or f"true ended with {status}"
            raise ConnectError(
                f"ssh to {self.name} leaves no connection behind: {words}. Does ansible_ssh_executable name OpenSSH's "
                "ssh?"
            )

    def _executed(self, command: str, stdin: bytes, deadline: Deadline, become: Any = None) -> tuple[int, bytes, bytes]:
        path = private_path(self.identity, "ctl")
        plugin = self._plugin(path, deadline)

        def execute() -> tuple[int, bytes, bytes]:
            text = command
            if become:
                plugin.set_become_plugin(become)
                plugin.set_option("reconnection_retries", 0)  # a wrong password counts once
                text = become.build_become_command(command, plugin._shell)
            status, stdout, stderr = plugin.exec_command(text, stdin or None, sudoable=bool(become))
            return status, stdout, stderr

        try:
            return _within(deadline, path, execute)
        except AnsibleError as exc:
            words = _last_words(str(exc).encode("utf-8", "replace"))
            if become:
                self._explain_become(words, exc)
            words = words.removeprefix("Failed to connect to the host via ssh: ")
            raise ConnectError(f"cannot connect to {self.name} by ssh: {words}") from exc
        except TimeoutError:
            what = f"{self._become_there}: " if become else ""
            raise ConnectError(
                f"{what}ssh to {self.name} did not come to an end within {deadline.seconds:g} s."
            ) from None

    def _explain_become(self, words: str, exc: AnsibleError) -> None:
        """Raise an error if become has failed, and not ssh."""
        set_password = f"Set ansible_become_password of {self.name}."
        if _PASSWORD.match(words):
            raise ConnectError(f"{self._become_there}: {words}. {set_password}") from exc
        if _NO_ANSWER.match(words):
            raise ConnectError(
                f"{self._become_there}: it has neither begun nor asked for a password in a way that its plugin knows. "
                f"If it needs one: {set_password}"
            ) from exc

    def _plugin(self, control_path: str, deadline: Deadline) -> Any:
        """Return ansible.builtin.ssh, ready to connect to this machine."""
        play = PlayContext()
        play.remote_addr = self._login["ansible_host"]
        plugin = connection_loader.get("ansible.builtin.ssh", play, os.devnull)
        # Who names a destination of ssh's means ssh's own user for it, not the one for the guests.
        direct = {} if self._is_host else {"remote_user": ""}
        plugin.set_options(var_options=dict(self._login), direct=direct)
        own = [*_OPTIONS, f"-oControlPath={control_path}"]
        if not plugin.get_option("password"):
            own.append(_NOBODY_TO_ASK)
        # ssh takes the first value of each option that it is given.
        plugin.set_option("ssh_args", f"{shlex.join(own)} {plugin.get_option('ssh_args') or ''}")
        plugin.set_option("timeout", max(1, math.ceil(min(deadline.left(), plugin.get_option("timeout")))))
        return plugin


def _short_name(login: Mapping[str, Any]) -> str:
    """Return the name of the become method without that of its collection."""
    return str(login.get(_METHOD) or C.DEFAULT_BECOME_METHOD).rpartition(".")[2]


def _last_words(output: bytes, lines: int = 1) -> str:
    """Return the last lines that are not ssh's own talk, as one."""
    said = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if not _CHATTER.match(line)]
    return "; ".join(list(filter(None, said))[-lines:])


def _check_destination(name: str) -> None:
    if name.startswith("-") or not name.strip() or not name.isprintable():
        raise AddressError(
            f"{name!r} is not a hypervisor: neither an inventory host nor a destination of ssh's ([USER@]HOST or "
            "ssh://[USER@]HOST[:PORT])."
        )


def _within(deadline: Deadline, control_path: str, call: Callable[[], T]) -> T:
    """Return the result of ``call``, which starts an ssh with that control path. At the deadline, the ssh is ended.

    :raise TimeoutError: at the deadline.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except BaseException as exc:  # raised in the caller's thread
            outcome["error"] = exc

    thread = threading.Thread(target=run, name="ssh", daemon=True)
    thread.start()
    thread.join(deadline.left())
    if not outcome:
        _end_below(control_path)
        raise TimeoutError
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]  # type: ignore[no-any-return]


def _end_below(control_path: str) -> None:
    """End the processes below this one that have the argument ``control_path``: ssh, and sshpass around it."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
            parents[int(name)] = int(stat.read().rpartition(b")")[2].split()[1])
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    for pid in below - {os.getpid()}:
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as command:
            if os.fsencode(control_path) in command.read():
                os.kill(pid, signal.SIGKILL)
