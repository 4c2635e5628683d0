# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the runner (runner.sh) in a guest that has nothing of this collection yet.

Where the agent may run programs, it starts the runner. Otherwise it can only write files: so a program that runs as
root anyway is given a line to run. That line makes a directory that only root can enter, and waits for the runner's
program to be there. No other user can change any of it at any moment: the line is appended to a file that exists and
keeps its mode (guest-file-open creates files with mode 0666), and the program is written into that directory. The line
removes itself.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from ansible_collections.qemu.guest.plugins.module_utils._agent.base import Agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    CommandUnavailable,
    GuestFileError,
    NoRunnerError,
    OperationError,
    QgaError,
)
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import EXEC_COMMANDS, GuestExec, pauses
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import GuestFile, exists
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import PATH
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.executor import HOME, IDLE_SECONDS, SPOOL, program
from ansible_collections.qemu.guest.plugins.plugin_utils._runner.spool import Spool

__all__ = ("DEFAULT_ROUTES", "ROUTES", "start_runner")

Log = Callable[[str], None]

_MARK = "qemu-guest-runner"
# bash may miss a signal that comes just before it reads (5 of 300 times, within 6 ms of a request).
_STOP = "--property=KillMode=process --property=TimeoutStopSec=5"
# Programs start as in a login: no signal ignored, and no limit of their own on processes.
_STATE = "--property=IgnoreSIGPIPE=no --property=TasksMax=infinity"
_UNIT = f"--quiet --no-block --collect {_STOP} {_STATE} --description={_MARK}"
# Since systemd 243, a service ends when the kernel has killed one of its programs for memory, unless it says otherwise;
# older ones refuse the property.
_OUTLIVES = f"{_UNIT} --property=OOMPolicy=continue"

# {new} is a path in HOME for this start only: the program is {new}.sh.
_RUN = f"/usr/bin/env -i PATH={PATH} /bin/sh {{new}}.sh {SPOOL} {IDLE_SECONDS}"

# With guest-exec, the program arrives on standard input. A unit of its own outlives a restart of the agent.
_STARTER = f"""
umask 077
mkdir -p {HOME} && chmod 0700 {HOME} && cat >{{new}}.sh || {{{{ rm -f {{new}}.sh; exit 1; }}}}
if [ -d /run/systemd/system ]; then
    systemd-run {_OUTLIVES} {_RUN} 2>/dev/null && exit
    systemd-run {_UNIT} {_RUN} && exit
fi
own=$(command -v setsid)
# No background job: what a shell starts as one ignores SIGINT and SIGQUIT for good, and so would all that it runs.
(
    read -r me f </proc/self/stat
    {{{{ exec $own {_RUN}; }}}} </dev/null >/dev/null 2>&1 | kill -KILL "$me"
) 2>/dev/null
exit 0
"""

# The line for udev or cron. It has neither $, % nor quotes, which are special to one of them, and less than the 1000
# characters that cron takes. {clean} removes the line. {new} says that it runs and waits, for 30 seconds; {new}.go says
# that the program is complete, which {new}.run starts.
_LINE = (
    f"umask 077; mkdir -p {HOME}; chmod 0700 {HOME}; {{clean}}; : >{{new}}; "
    f"for i in {' '.join(map(str, range(30)))}; do test -e {{new}}.go && break; sleep 1; done; "
    f"test -e {{new}}.go && exec /bin/sh {{new}}.run; rm -f {{new}} {{new}}.sh {{new}}.run"
)
_START = f"systemd-run {_OUTLIVES} {_RUN} && exit\nexec {_RUN}\n"

# Rules that every distribution with udev has, by age of the directory's name. The directory is changed too, so that
# each version of udev reads its rules again, whether it looks at files or directories.
_RULES = ("/usr/lib/udev/rules.d/50-udev-default.rules", "/lib/udev/rules.d/50-udev-default.rules")
_NEW_RULES = f"/etc/udev/rules.d/99-{_MARK}.rules"
_UEVENT = "/sys/class/mem/null/uevent"
_UDEVD = "/run/udev/control"
_SYSTEMD = "/run/systemd/system"  # exists if systemd is the guest's init, not if it is merely installed
_SYSTEMD_RUN = "/usr/bin/systemd-run"
_CRONTAB = "/etc/crontab"
# What stays where a line was of no use. The next line that works removes it.
_COMMENT = f"# {_MARK}: this line may be removed".encode("ascii")
_LARGEST_TABLE = 1 << 20  # bytes of that, or of a file of rules: the guest may say that there is no end of it
_CROND = "/run/crond.pid"

_EXEC_SECONDS = 30.0
_UDEV_SECONDS = 30.0
# udev looks for changed rules every three seconds at most.
_AGAIN_SECONDS = 3.0
_CRON_SECONDS = 75.0
_READY_SECONDS = 20.0


def start_runner(agent: Agent, routes: Sequence[str], log: Log) -> None:
    """Start a runner in the guest: with guest-exec where that is allowed, else by the first of ``routes`` that works.

    :raise CommandUnavailable: for guest-exec, if none does; its hint says how each failed.
    :raise NoRunnerError: if the agent may run programs, but that starts none.
    """
    by_exec = GuestExec(agent).is_available()
    failures = []
    for name in ["guest-exec"] if by_exec else routes:
        log(f"starting a runner in the guest by {name}")
        try:
            _ROUTES[name](agent)
            _until(Spool(agent, SPOOL).is_served, _READY_SECONDS, "it was started and does not answer")
            return
        except (GuestFileError, OperationError) as exc:
            failures.append(f"{name}: {exc.message}")
            log(f"no runner by {failures[-1]}")
    told = f"No runner could be started in the guest ({'; '.join(failures) or 'no way to do so is allowed'})."
    if by_exec:
        raise NoRunnerError(told)
    try:
        agent.require(*EXEC_COMMANDS)
    except CommandUnavailable as exc:
        exc.hint = f"{told} {exc.hint}"
        raise


def _until(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = Deadline(seconds)
    for pause in pauses():
        if condition():
            return
        if deadline.expired:
            raise OperationError(f"{complaint} (waited {seconds:g} s)")
        time.sleep(pause)


def _new() -> str:
    """Return the common prefix of the files of one start."""
    return f"{HOME}/{secrets.token_hex(8)}"


def _by_guest_exec(agent: Agent) -> None:
    env = [f"PATH={PATH}", f"QEMU_GUEST={_STARTER.format(new=_new())}"]
    executor = GuestExec(agent)
    pid = executor.start("/bin/sh", ["-c", 'eval "$QEMU_GUEST"'], env=env, stdin=program().encode("ascii"))
    result = executor.wait(pid, _EXEC_SECONDS)
    if result is None or result.shell_rc:
        reason = "it did not end" if result is None else result.stderr.decode("utf-8", "replace").strip()
        raise OperationError(f"cannot start it: {reason}")


def _by_udev(agent: Agent) -> None:
    for path in _RULES:
        if exists(agent, path):
            _by_rules(agent, path)
            return
    raise OperationError(f"there is no {_RULES[0]}")


def _by_new_udev_rules(agent: Agent) -> None:
    if exists(agent, _NEW_RULES):
        raise OperationError(f"{_NEW_RULES} is there already; remove it")
    _by_rules(agent, _NEW_RULES, clean=f"rm -f {_NEW_RULES}")


def _by_rules(agent: Agent, path: str, clean: str = "") -> None:
    _insist(agent, _UDEVD, _SYSTEMD, _SYSTEMD_RUN)
    touched = f"{path.rpartition('/')[0]}/{_MARK}"
    new = _new()
    line = _LINE.format(new=new, clean=f"{clean or _removal(path)}; rm -f {touched}")
    # systemd-run, because udev kills processes that its rules leave running.
    rule = f"""RUN+="{_SYSTEMD_RUN} {_UNIT} /bin/sh -c '{line}'"\n"""
    triggered = 0.0

    def trigger() -> bool:
        nonlocal triggered
        if time.monotonic() - triggered > _AGAIN_SECONDS:
            triggered = time.monotonic()
            with GuestFile(agent, _UEVENT, "w") as uevent:
                uevent.write(b"change")
        return exists(agent, new)

    # The agent cannot remove files that it creates.
    left = f"udev did not act on it; remove {touched if path != _NEW_RULES else f'{touched} and {path}'} in the guest"
    with _Line(agent, path, f'ACTION=="change", SUBSYSTEM=="mem", KERNEL=="null", {rule}'):
        GuestFile(agent, touched, "w").close()
        _until(trigger, _UDEV_SECONDS, left)
    _hand_over_program(agent, new)


def _insist(agent: Agent, *paths: str) -> None:
    for path in paths:
        if not exists(agent, path):
            raise OperationError(f"there is no {path}")


def _content(agent: Agent, path: str) -> bytes:
    """Return the first bytes of a small file."""
    with GuestFile(agent, path) as file:
        return file.read(100)


def _by_cron(agent: Agent) -> None:
    _insist(agent, _CROND, _CRONTAB)
    pid = _content(agent, _CROND).strip().decode("ascii", "replace")
    name = f"/proc/{pid}/comm"
    if not (pid.isdigit() and exists(agent, name) and _content(agent, name).startswith(b"cron")):
        raise OperationError(f"{_CROND} is of a cron that does not run any more")
    new = _new()
    with _Line(agent, _CRONTAB, f"* * * * * root {_cron_command(new)}\n"):
        _until(lambda: exists(agent, new), _CRON_SECONDS, "cron did not act on it")
    _hand_over_program(agent, new)


def _cron_command(new: str) -> str:
    line = _LINE.format(new=new, clean=_removal(_CRONTAB))
    return f"/bin/sh -c '{line}' >/dev/null 2>&1"


def _removal(path: str) -> str:
    return f"sed -i /{_MARK}/d {path}"


class _Line:
    """A line in a file, which removes itself when it runs. If the block fails, a comment is written over it from here.

    The next one takes the comment's place. The file is never truncated, not for a moment: if this process or the agent
    is killed, the file's content stays.
    """

    def __init__(self, agent: Agent, path: str, line: str) -> None:
        self._agent = agent
        self._path = path
        self._line = line.encode("ascii")

    def __enter__(self) -> None:
        with suppress(QgaError):  # there is no such file yet, or it is too long to look for one
            if self._put_over(_COMMENT, self._line):
                return
        with GuestFile(self._agent, self._path, "a+") as file:
            if file.seek(0, 2):
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(self._line)

    def __exit__(self, kind: object, *exc_info: object) -> None:
        if kind is None:
            return
        with suppress(QgaError):  # the error of the block is the one to report
            self._put_over(self._line[:-1], _COMMENT + b"\n")

    def _put_over(self, old: bytes, new: bytes) -> bool:
        """Write ``new`` over the last line that begins with ``old``; return whether there is one with room for it."""
        with GuestFile(self._agent, self._path, "r+") as file:
            content = b"\n" + file.read_all(_LARGEST_TABLE)
            position = content.rfind(b"\n" + old)
            size = content.find(b"\n", position + 1) - position
            if position < 0 or size < len(new):
                return False
            file.seek(position)
            file.write(new[:-1].ljust(size - 1) + b"\n")
        return True


def _hand_over_program(agent: Agent, new: str) -> None:
    """Write the program into the directory that only root can enter, then say that it is complete."""
    with GuestFile(agent, f"{new}.sh", "w") as file:
        file.write(program().encode("ascii"))
    with GuestFile(agent, f"{new}.run", "w") as file:
        file.write(_START.format(new=new).encode("ascii"))
    GuestFile(agent, f"{new}.go", "w").close()


_ROUTES: dict[str, Callable[[Agent], None]] = {
    "guest-exec": _by_guest_exec,
    "udev": _by_udev,
    "cron": _by_cron,
    "udev-new": _by_new_udev_rules,
}
ROUTES = ("udev", "cron", "udev-new")
"""The routes without guest-exec. With C(udev-new), a guest's user can change for a moment what root will run."""
DEFAULT_ROUTES = ("udev", "cron")
