# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run modules in warm interpreters: the controller's side of _warm_server.py.

A module that ansible-core pipes to Python is a short program around an archive of its libraries. The archive is sent
once, by its digest, and so is the list of what is in it, by which an interpreter in the guest knows what it has
imported already. Whatever is in doubt is left to the plain path, by returning None.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import inspect
import io
import json
import re
import shlex
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from ansible_collections.qemu.guest.plugins.module_utils._agent import Agent
from ansible_collections.qemu.guest.plugins.module_utils._errors import OutcomeUnknownError
from ansible_collections.qemu.guest.plugins.module_utils._exec import ExecResult, finish, pauses
from ansible_collections.qemu.guest.plugins.module_utils._files import exists
from ansible_collections.qemu.guest.plugins.module_utils._runner import HOME
from ansible_collections.qemu.guest.plugins.module_utils._shell import PATH, login_program, start_shell
from ansible_collections.qemu.guest.plugins.module_utils._spool import Spool, new_number, patiently
from ansible_collections.qemu.guest.plugins.plugin_utils import _warm_server, _warm_zygote

__all__ = ("WarmPython",)

_PROGRAMS = {
    "server.py": inspect.getsource(_warm_server).encode("utf-8"),
    "zygote.py": inspect.getsource(_warm_zygote).encode("utf-8"),
}
# Another version of them has a spool of its own.
_SPOOL = f"{HOME}/warm-{hashlib.sha256(b''.join(_PROGRAMS.values())).hexdigest()[:16]}"

# The line with the archive, in what ansible-core 2.16 to 2.21 send.
_ARCHIVE = re.compile(rb"^ *(?:ZIPDATA = |zip_data=)'([A-Za-z0-9+/=]+)',?$", re.MULTILINE)
# The interpreter at the end of a command line, whatever become puts around it.
_PYTHON = re.compile(r"(?<![\w/.-])(/[\w./+-]*python[\w.]*)['\"\s]*$")
_MARKER = re.compile(r"BECOME-SUCCESS-[a-z]{16,64}")

# One server at a time, and one that starts; one that was killed is replaced. The spool appears whole, by renaming:
# guest-file-open would make a plain file of a ring that is missing. A server that cannot run at all, whose directory
# has kept its first name, is not tried again until a reboot.
_START = """
umask 077
mkdir {spool}.new 2>/dev/null || exit 0
if [ -e {spool}.failed ] || {{ read -r p <{spool}/pid && kill -0 "$p"; }} 2>/dev/null; then
    rmdir {spool}.new
    exit
fi
rm -rf {spool}
cd {spool}.new || exit
cat >all || exit
for part in {parts}; do
    head -c "${{part#*:}}" all >"${{part%%:*}}"
    tail -c "+$((${{part#*:}} + 1))" all >rest
    mv rest all
done
rm all
{{
    {python} server.py {spool}
    case $(pwd -P) in *.new) mv {spool}.new {spool}.failed ;; esac
}} </dev/null >/dev/null 2>log &
"""
_FAILED = f"{_SPOOL}.failed"

# How often somebody who waits makes sure that the server lives.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class _Archive:
    """The archive of a module: ``digest`` of the ``blob`` that is sent for it."""

    digest: str
    blob: bytes


class WarmPython:
    """Warm interpreters in the guest of ``agent``, which is one that runs programs by a runner."""

    def __init__(self, agent: Agent, log: Callable[[str], None]) -> None:
        self._agent = agent
        self._log = log
        self._spool = Spool(agent, _SPOOL)
        self._starter = 0  # the program that starts a server, if there is one

    def run(self, command: str, stdin: bytes) -> ExecResult | None:
        """Run the module ``stdin`` in a warm interpreter that stands in for ``command``; None if it was not run.

        :raise OutcomeUnknownError: if the interpreter or its server ended while the module ran.
        """
        python, payload = _PYTHON.search(command), _ARCHIVE.search(stdin)
        archive = _archive(payload.group(1)) if python and payload else None
        if not python or not payload or not archive:
            return None
        before, after = stdin[: payload.start(1)], stdin[payload.end(1) :]
        header = _header(command, archive, before)
        request = header + before + after
        start = functools.partial(self._start, python.group(1), header, archive)
        line = self._handled(request, start)
        if line == "blob":
            # Whole under its name or not: the server looks whether its digest is right.
            self._spool.write(f"{archive.digest}.blob", archive.blob)
            line = self._handled(request, start)
        return line if isinstance(line, ExecResult) else None

    def settle(self) -> None:
        """Take the result of what was started beside the last command."""
        starter, self._starter = self._starter, 0
        if starter:
            finish(self._agent, starter)

    def end(self) -> None:
        """End all warm interpreters, if there are any."""
        self._spool.ring("quit")

    def _handled(self, request: bytes, start: Callable[[], None]) -> ExecResult | str:
        """Return the result of a request, or the word that tells why it has none; it was not run then."""
        number = new_number()
        if not self._spool.write(f"{number}.in", request) or not self._spool.ring(str(number)):
            start()
            return "plain"
        looked = time.monotonic()
        for pause in pauses():
            content = self._spool.ended(number)
            if content == b"lost\n":
                break
            if content in (b"blob\n", b"plain\n"):
                self._spool.ring(f"-{number}")
                return content.decode("ascii").strip()
            if content:
                rc, out, err = self._spool.result(number, content)
                return ExecResult(rc, None, out, err)
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                if not patiently(lambda: self._spool.ring("")) and not self._spool.has(f"{number}.rc"):
                    if self._spool.has(f"{number}.in"):
                        return "plain"
                    break
            time.sleep(pause)
        raise OutcomeUnknownError(
            "the interpreter in the guest ended while the module ran (was the guest rebooted?)",
            command="guest-exec",
            hint="Look at the guest before you repeat it.",
        )

    def _start(self, python: str, request: bytes, archive: _Archive) -> None:
        """Start a server that gets ready for requests such as this, and do not wait for it."""
        if exists(self._agent, _FAILED):
            return
        self._log("starting warm Python in the guest")
        self._starter = start_shell(self._agent, *_starting(_SPOOL, python, request, archive))


def _starting(spool: str, python: str, request: bytes, archive: _Archive) -> tuple[bytes, bytes]:
    """Return the shell command that starts a server, and its standard input."""
    parts = {
        **_PROGRAMS,
        "prologue": login_program().encode("utf-8"),
        # What is to be got ready at once.
        f"{archive.digest}.blob": archive.blob,
        "first": request,
    }
    sizes = " ".join(f"{name}:{len(content)}" for name, content in parts.items())
    command = _START.format(spool=spool, python=shlex.quote(python), parts=sizes)
    return command.encode("utf-8"), b"".join(parts.values())


def _header(command: str, archive: _Archive, before: bytes) -> bytes:
    marker = _MARKER.search(command)
    key = _MARKER.sub("BECOME-SUCCESS-", command)
    header = {
        "key": hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest(),
        "command": command,
        "marker": marker.group() if marker else "",
        "path": PATH,
        "blob": archive.digest,
        "before": len(before),
    }
    return json.dumps(header).encode("ascii") + b"\n"


@functools.lru_cache(maxsize=16)
def _archive(encoded: bytes) -> _Archive | None:
    """Return what is in a module's archive (base64); None if that is not as it should be."""
    table = {}
    try:
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(encoded, validate=True))) as archive:
            for entry in archive.namelist():
                if entry.endswith(".py"):
                    package = entry.endswith("/__init__.py")
                    name = entry[: -len("/__init__.py" if package else ".py")].replace("/", ".")
                    table[name] = (_warm_zygote.digest_of(archive.read(entry)), package)
    except (ValueError, zipfile.BadZipFile):
        return None
    blob = json.dumps(table, sort_keys=True).encode("ascii") + b"\n" + encoded
    return _Archive(hashlib.sha256(blob).hexdigest(), blob)
