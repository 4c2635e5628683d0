# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one ssh to a machine: connected when it is needed, and used by all tasks of the user."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline, Stuck
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ConnectError
from ansible_collections.qemu.guest.plugins.module_utils._agent.lock import lock_file, private_path
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.control_socket import ControlSocket
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.ended_in_time import ended_in_time
from ansible_collections.qemu.guest.plugins.plugin_utils._hypervisor.login import Login

__all__ = ("Ssh", "last_words")

_RETRY_SECONDS = 0.02

# What ansible.builtin.ssh says if become wants another password, or none was given.
_PASSWORD = re.compile(r"(Incorrect|Missing) .*password")
_NO_ANSWER = re.compile(r"Timeout \(\d+s\) waiting for privilege escalation prompt")
# ssh's own messages at -vvvv and above.
_CHATTER = re.compile(r"(debug\d|Transferred|Bytes per second|Warning): |OpenSSH_|Authenticated to ")


class Ssh:
    """The connection of ``login``. ``at_login`` is called before a new one is made."""

    def __init__(self, login: Login, at_login: Callable[[], None]) -> None:
        self._login = login
        self._at_login = at_login
        self._path = private_path(login.identity, "ctl")

    @contextmanager
    def locked(self, deadline: Deadline) -> Iterator[None]:
        """Hold the lock under which this is connected, and what belongs to it is started.

        :raise ConnectError: if another process has it until the deadline.
        """
        while True:
            with lock_file(f"{self._path}.lock") as lock:
                if lock:
                    yield
                    return
            self._wait_for_lock(deadline)

    def _wait_for_lock(self, deadline: Deadline) -> None:
        if deadline.expired:
            raise ConnectError(f"another task is connecting to {self._login.name}, since {deadline.seconds:g} s")
        time.sleep(_RETRY_SECONDS)

    def connected(self, deadline: Deadline) -> ControlSocket:
        """Return the control socket of the ssh that is connected, and connect it if there is none.

        :raise ConnectError: with ssh's own message.
        """
        control = ControlSocket(self._path, self._login.program)
        while not control.listens():
            with lock_file(f"{self._path}.lock") as lock:
                if lock:
                    if not control.listens():
                        self._at_login()
                        self._log_in(control, deadline)
                    return control
            self._wait_for_lock(deadline)
        return control

    def _log_in(self, control: ControlSocket, deadline: Deadline) -> None:
        status, _stdout, stderr = self.execute("true", b"", deadline)
        if not control.listens():
            words = last_words(stderr) or f"true ended with {status}"
            raise ConnectError(
                f"ssh to {self._login.name} leaves no connection behind: {words}. Does ansible_ssh_executable name "
                "OpenSSH's ssh?"
            )

    def execute(self, command: str, stdin: bytes, deadline: Deadline, become: Any = None) -> tuple[int, bytes, bytes]:
        """Run a shell command there, as the user of the plugin ``become`` if that is given; see Hypervisor.run."""
        plugin = self._login.ssh(self._path, deadline)

        def execute() -> tuple[int, bytes, bytes]:
            text = command
            if become:
                plugin.set_become_plugin(become)
                plugin.set_option("reconnection_retries", 0)  # a wrong password counts once
                text = become.build_become_command(command, plugin._shell)
            status, stdout, stderr = plugin.exec_command(text, stdin or None, sudoable=bool(become))
            return status, stdout, stderr

        try:
            return ended_in_time(deadline, self._path, execute)
        except AnsibleError as exc:
            words = last_words(str(exc).encode("utf-8", "replace"))
            if become:
                self._explain_become(words, exc)
            words = words.removeprefix("Failed to connect to the host via ssh: ")
            raise ConnectError(f"cannot connect to {self._login.name} by ssh: {words}") from exc
        except Stuck:
            what = f"{self._login.become_there}: " if become else ""
            raise ConnectError(
                f"{what}ssh to {self._login.name} did not come to an end within {deadline.seconds:g} s."
            ) from None

    def _explain_become(self, words: str, exc: AnsibleError) -> None:
        """Raise an error if become has failed, and not ssh."""
        set_password = f"Set ansible_become_password of {self._login.name}."
        if _PASSWORD.match(words):
            raise ConnectError(f"{self._login.become_there}: {words}. {set_password}") from exc
        if _NO_ANSWER.match(words):
            raise ConnectError(
                f"{self._login.become_there}: it has neither begun nor asked for a password in a way that its plugin "
                f"knows. If it needs one: {set_password}"
            ) from exc


def last_words(output: bytes, lines: int = 1) -> str:
    """Return the last lines that are not ssh's own talk, as one."""
    said = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if not _CHATTER.match(line)]
    return "; ".join(list(filter(None, said))[-lines:])
