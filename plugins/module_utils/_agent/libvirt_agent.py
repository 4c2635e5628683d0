# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LibvirtAgent: an Agent through libvirt, whose daemon keeps its domains' agent sockets to itself.

The daemon is the socket's only client and shares it, so there is no lock here. It takes a request as text and returns
the reply as text. It turns the agent's errors into libvirt exceptions, which are turned back into the agent's words.
"""

from __future__ import annotations

import difflib
import errno
import math
import os
import re
import time
from contextlib import suppress
from typing import Any, Callable, ContextManager, Mapping, TypeVar
from urllib.parse import parse_qs, urlsplit

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import DEFAULT_TIMEOUT, Agent, Log
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline, Stuck, within
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    AgentSilentError,
    ChannelBusyError,
    ConnectError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    QmpCommandError,
    QmpError,
    QmpLostError,
    TransferError,
)

try:
    import libvirt
    import libvirt_qemu
except ImportError as _exc:
    libvirt = libvirt_qemu = None
    _WHY_MISSING = str(_exc)
else:
    _WHY_MISSING = ""

__all__ = ("AT_SOCKET", "DEFAULT_URI", "SOCKETS", "THREADS", "LibvirtAgent")

T = TypeVar("T")

DEFAULT_URI = "qemu:///system"

Forward = Callable[[str, Deadline], ContextManager[str]]
"""Gives the path of a socket here that leads to a UNIX socket of the domain's machine, or raises QgaError."""

# Where libvirt's daemon listens, on its own machine: that for everything, or the one for QEMU alone.
SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
AT_SOCKET = "qemu+unix:///system?socket={}"

THREADS = "libvirt"
"""The name of threads that wait for libvirt."""

# libvirt (9.0) writes a request to the agent's socket at once. If it does not fit in the socket's buffer (208 KiB
# almost everywhere), libvirt starts over with it, and the agent gets garbage.
_LONGEST_REQUEST = 160 * 1024
# A reply beyond 4 MiB is lost, and after one beyond 10 MiB libvirt abandons the agent. This many bytes fit, with base64
# and JSON around them.
_LARGEST_READ = 3 * 1000 * 1000

_PING = protocol.encode_request("guest-ping", None, "").decode("ascii")
# The agent may have stopped while idle; a ping takes a few milliseconds and shows it.
_IDLE_SECONDS = 0.5
# Seconds that a call may exceed the timeout given to libvirt before its daemon counts as hanging.
_GRACE = 1.0
# libvirt gives a connected agent 5 seconds to answer its sync: a faster error means that there is no agent.
_SOON = 1.0
_PAUSE = 0.5
# Seconds to wait for a domain that is paused or saved during an operation.
_AWAY_SECONDS = 120.0

_CANDIDATES = 10
_UUID = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")

# libvirt's error codes, as numbers: an older library lacks the names of newer codes.
_INTERNAL_ERROR = 1
_OPERATION_DENIED = 29
_RPC = 39
_NO_DOMAIN = 42
_AUTH_FAILED = 45
_OPERATION_INVALID = 55
_OPERATION_TIMEOUT = 68
_ARGUMENT_UNSUPPORTED = 74
_AUTH_CANCELLED = 79
_AGENT_UNRESPONSIVE = 86
_ACCESS_DENIED = 88
_AUTH_UNAVAILABLE = 94
_AGENT_UNSYNCED = 97
_AGENT_COMMAND_TIMEOUT = 112
_AGENT_COMMAND_FAILED = 113
# libvirt's error domains: the part of libvirt that an error comes from.
_FROM_RPC = 7
_FROM_QEMU = 10
# States of a domain.
_PAUSED = 3
_SHUT_OFF = 5

_NOT_ALLOWED = (_OPERATION_DENIED, _AUTH_FAILED, _AUTH_CANCELLED, _ACCESS_DENIED, _AUTH_UNAVAILABLE)
_NO_ANSWER = (_AGENT_UNRESPONSIVE, _AGENT_UNSYNCED, _AGENT_COMMAND_TIMEOUT)

# The agents' texts for the class CommandNotFound: libvirt passes on the text, not the class.
_NOT_FOUND = re.compile(r"(The c|C)ommand \S+ has (not been found|been disabled)\b")

_IS_IT_THERE = "Is the guest booted, and does qemu-guest-agent run in it?"
_NO_CHANNEL = "The domain needs a virtio channel whose target name is org.qemu.guest_agent.0: add one, start it anew."
_NO_PERMISSION = (
    "libvirt lets root and usually the members of the group libvirt manage domains. For modules, become on the "
    "hypervisor helps; the connection needs the right for the user that runs Ansible."
)
_TOO_LONG = "Have the output written to a file in the guest, and fetch that."
_RESTART = f"libvirt does not talk to this agent until that is restarted (in the guest). {_TOO_LONG}"


class LibvirtAgent(Agent):
    """The agent of a libvirt domain. ``uri`` selects the libvirt; the default is from the environment.

    With ``forward``, that is the URI on another machine, and the default is DEFAULT_URI. An agent that was idle for
    ``idle_seconds`` is pinged before a request.

    :raise AddressError: if libvirt's Python library is missing, or another machine's URI is not a system's.
    """

    largest_content = 96 * 1024
    largest_output = _LARGEST_READ // 2

    def __init__(
        self,
        address: Address,
        uri: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        log: Log | None = None,
        forward: Forward | None = None,
        *,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        if libvirt is None:
            reason = f"for the address {address} ({_WHY_MISSING})"
            raise AddressError(
                missing_required_lib("libvirt-python", reason=reason),
                hint="Most distributions have it as the package python3-libvirt.",
            )
        super().__init__(str(address), timeout, log)
        self._address = address
        self._uri = uri or (not forward and os.environ.get("LIBVIRT_DEFAULT_URI")) or DEFAULT_URI
        self._forward = forward
        self._idle_seconds = idle_seconds
        self._sockets = _sockets_of(self._uri) if forward else []
        self._connection: Any = None
        self._domain: Any = None
        self._process = os.getpid()
        self._met = False  # whether the agent has ever answered
        self._in_step_since = 0.0  # time of the agent's last reply; 0: unknown whether it would reply
        self._away: Deadline | None = None  # for a domain that has been paused or saved since the agent's last reply

    @property
    def identity(self) -> str:
        # A domain's UUID is the same for all its names.
        deadline = Deadline(self.timeout)
        try:
            return f"libvirt:{self._found(deadline).UUIDString()}"
        except Stuck:
            raise self._hangs(deadline) from None
        except libvirt.libvirtError as exc:
            raise self._failure(exc) from exc

    def again(self) -> Agent:
        return LibvirtAgent(self._address, self._uri, self.timeout, forward=self._forward)

    @property
    def is_here(self) -> bool:
        """Whether libvirt is on this machine."""
        return not self._forward and not urlsplit(self._uri).hostname

    def ask_domain(self, command: str, call: Callable[[Any], T], seconds: float) -> T:
        """Return ``call(domain)``, which asks libvirt and not the agent. ``command`` names it in errors.

        :raise QmpCommandError: if libvirt refuses.
        :raise QmpLostError: if it does not return within ``seconds``, or contact is lost.
        """
        if self._process != os.getpid():
            self._leave()
        error: QmpError
        try:
            domain = self._found(Deadline(seconds))
            return _within(seconds, lambda: call(domain))
        except Stuck:
            self._leave()
            error = QmpLostError(f"it did not return within {seconds:g} s.", command=command)
        except libvirt.libvirtError as exc:
            kind = QmpLostError if exc.get_error_domain() == _FROM_RPC else QmpCommandError
            error = kind(exc.get_error_message(), command=command)
        error.party, error.address = "libvirt", self._uri
        raise error

    def close(self) -> None:
        if self._process != os.getpid():
            self._leave()
        connection = self._connection
        self._forget()
        if connection is not None:
            with suppress(libvirt.libvirtError, Stuck):
                _within(_GRACE, connection.close)

    def _request(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        text = protocol.encode_request(command, arguments, "").decode("ascii")
        _check_length(command, arguments or {}, text)
        domain, deadline = self._in_step(deadline)
        try:
            return self._sent(domain, command, text, deadline)
        except ConnectError:
            # Nothing was sent: since the agent's last reply, the domain was paused, saved or made anew. That was too
            # soon for a ping; now one goes ahead, and waits for the domain.
            domain, deadline = self._in_step(deadline)
            return self._sent(domain, command, text, deadline)

    def _sent(self, domain: Any, command: str, text: str, deadline: Deadline) -> dict[str, Any]:
        """Send the request ``text`` once and return the reply; raise as ``_request`` does."""
        # Reset first: an interrupted request leaves the agent's state unknown.
        self._in_step_since = 0.0
        started = time.monotonic()
        try:
            reply = _ask(domain, command, text, deadline)
        except Stuck:
            self._leave()
            raise OutcomeUnknownError(f"libvirt did not return within {deadline.seconds:g} s") from None
        except libvirt.libvirtError as exc:
            raise self._failure(exc, sent=True) from exc
        self._in_step_since = time.monotonic()
        # Only file content makes a reply long.
        received = len(str(reply.get("return"))) if command == "guest-file-read" else 0
        self.pace.note(len(text) + received, self._in_step_since - started)
        return reply

    def _in_step(self, deadline: Deadline) -> tuple[Any, Deadline]:
        """Return the domain, whose agent has just answered, and the deadline for the next request.

        libvirt syncs with the agent too, but its error is the same for an unanswered sync and an unanswered command. An
        unanswered ping leaves no doubt: only the ping was sent.

        An agent that has answered before has until ``deadline`` to come back, as has libvirt's daemon. The time during
        which its domain is paused or saved does not count.
        """
        if self._process != os.getpid():
            self._leave()
        if self._in_step_since and time.monotonic() - self._in_step_since < self._idle_seconds:
            return self._domain, deadline
        reused = self._domain is not None
        while True:
            started = time.monotonic()
            error, cause = self._ping(deadline)
            if error is None:
                return self._domain, deadline
            if self._met and self._is_away():
                self._away = self._away or Deadline(_AWAY_SECONDS)
                if self._away.expired:
                    raise error
                deadline = Deadline(deadline.seconds)
            elif reused and not isinstance(error, (AgentSilentError, ChannelBusyError)):
                # The daemon was restarted, or there is a new domain of that name: connect again.
                self.close()
                reused = False
                continue
            else:
                waits = time.monotonic() - started >= _SOON or (self._met and _passes(error, cause))
                if not waits or deadline.left() < _SOON:
                    raise error
            time.sleep(_PAUSE if self._met else 0)

    def _ping(self, deadline: Deadline) -> tuple[QgaError | None, Any]:
        """Ping the agent; return the error if it does not answer, and libvirt's own error.

        :raise AgentSilentError: if libvirt hangs.
        """
        try:
            _ask(self._found(deadline), "guest-ping", _PING, deadline)
        except Stuck:
            raise self._hangs(deadline) from None
        except libvirt.libvirtError as exc:
            return self._failure(exc), exc
        except ConnectError as exc:  # there is no libvirt, or no such domain
            return exc, exc.__cause__
        self._met, self._away = True, None
        return None, None

    def _is_away(self) -> bool:
        """Return whether the domain is paused or saved: it will resume with its memory intact."""
        try:
            if self._domain is None:
                return False
            state = _within(_GRACE, self._domain.state)[0]
            return bool(state == _PAUSED or (state == _SHUT_OFF and _within(_GRACE, self._domain.hasManagedSaveImage)))
        except (libvirt.libvirtError, Stuck):
            return False

    def _found(self, deadline: Deadline) -> Any:
        """Return the domain."""
        if self._domain is None:
            seconds = max(deadline.left(), _GRACE)
            if self._connection is None:
                # By default libvirt prints each error to stderr, into Ansible's output.
                libvirt.registerErrorHandler(lambda context, error: None, None)
                try:
                    self._connection = _within(seconds, lambda: self._opened(deadline))
                except libvirt.libvirtError as exc:
                    raise _no_libvirt(self._uri, exc) from exc
            self._domain = _within(seconds, lambda: _look_up(self._connection, self._address.domain, self._uri))
        return self._domain

    def _opened(self, deadline: Deadline) -> Any:
        """Return a connection to libvirt's daemon."""
        if not self._forward:
            return libvirt.open(self._uri)
        *others, last = self._sockets
        for path in others:
            with suppress(libvirt.libvirtError), self._forward(path, deadline) as local:
                return libvirt.open(AT_SOCKET.format(local))
        with self._forward(last, deadline) as local:
            return libvirt.open(AT_SOCKET.format(local))

    def _failure(self, exc: Any, sent: bool = False) -> QgaError:
        """Return the QgaError for ``exc``; ``sent``: the command may have been sent to the agent."""
        code, text = exc.get_error_code(), exc.get_error_message()
        if code == _OPERATION_TIMEOUT:
            return ChannelBusyError(f"libvirt is busy with the domain for another client: {text}.")
        if code == _OPERATION_INVALID:
            hint = f"See in which state the domain is (virsh -c '{self._uri}' list --all), and start or resume it."
            return ConnectError(f"{text}.", hint=hint)
        if code == _ARGUMENT_UNSUPPORTED:
            return ConnectError(f"{text}.", hint=_NO_CHANNEL)
        if code in _NOT_ALLOWED:
            return ConnectError(f"{text}.", hint=_NO_PERMISSION)
        if sent and code == _RPC:
            return ProtocolError(f"its reply is longer than libvirt carries, which is 4 MiB: {text}", hint=_TOO_LONG)
        if sent and exc.get_int1() == errno.ERANGE:
            return ProtocolError(f"its reply is longer than libvirt reads: {text}", hint=_RESTART)
        if sent and code not in (_NO_DOMAIN, _AGENT_UNSYNCED):
            return OutcomeUnknownError(text)
        if code in _NO_ANSWER:
            return AgentSilentError(f"{text}.", hint=_IS_IT_THERE)
        return ConnectError(f"{text}.")

    def _hangs(self, deadline: Deadline) -> AgentSilentError:
        self._leave()
        return AgentSilentError(
            f"libvirt at {self._uri} did not answer within {deadline.seconds:g} s.",
            hint="Another client may be waiting for this agent's answer, or libvirt's daemon hangs.",
        )

    def _leave(self) -> None:
        """Drop the connection without telling the daemon: it hangs, or the connection is the parent process's."""
        if self._connection is not None:
            self._connection._o = None  # the library would close this with the object
        self._forget()

    def _forget(self) -> None:
        self._in_step_since = 0.0
        self._domain = self._connection = None
        self._process = os.getpid()


def _sockets_of(uri: str) -> list[str]:
    """Return where the daemon of ``uri`` may listen, on its own machine.

    :raise AddressError: if that is not a system's daemon for QEMU.
    """
    parts = urlsplit(uri)
    if (parts.scheme, parts.netloc, parts.path) != ("qemu", "", "/system"):
        raise AddressError(f"the libvirt {uri} is not one that a hypervisor has for itself, as {DEFAULT_URI} is.")
    return parse_qs(parts.query).get("socket") or list(SOCKETS)


def _passes(error: QgaError, cause: Any) -> bool:
    """Return whether ``error``, caused by libvirt's ``cause``, is temporary: the agent or the daemon was restarted.

    Errors of libvirt's own protocol mean that the daemon is gone, unless it refused the connection.
    """
    if isinstance(error, (AgentSilentError, ChannelBusyError)):
        return True
    if cause is None or cause.get_error_domain() != _FROM_RPC or cause.get_error_code() in _NOT_ALLOWED:
        return False
    return bool(cause.get_int1() not in (errno.EACCES, errno.EPERM))


def _check_length(command: str, arguments: Mapping[str, Any], text: str) -> None:
    """Refuse a request that libvirt cannot carry.

    :raise TransferError: if its text, or the content it asks for, is too long.
    """
    count = arguments.get("count")
    if command == "guest-file-read" and isinstance(count, int) and count > _LARGEST_READ:
        what = f"{count} bytes are more than libvirt carries at once; ask for {_LARGEST_READ} at most."
    elif len(text) > _LONGEST_REQUEST:
        what = f"the request has {len(text)} bytes, and libvirt carries {_LONGEST_REQUEST} at most."
    else:
        return
    error = TransferError(what)
    error.executed, error.fate = "no", "was not run"
    raise error


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of ``call``: libvirt waits without limit for a daemon that hangs.

    :raise Stuck: if it takes longer than ``seconds``.
    """
    return within(seconds, call, THREADS)


def _ask(domain: Any, command: str, text: str, deadline: Deadline) -> dict[str, Any]:
    """Send the request ``text`` for ``command`` through libvirt, and return the agent's reply."""
    seconds = max(1, math.ceil(deadline.left()))
    try:
        answer = _within(seconds + _GRACE, lambda: libvirt_qemu.qemuAgentCommand(domain, text, seconds, 0))
    except libvirt.libvirtError as exc:
        return _error_reply(exc, command)
    except UnicodeError as exc:
        raise ProtocolError(f"the agent sent something that is not UTF-8: {exc}") from exc
    return protocol.decode_reply(answer.encode("utf-8", "surrogatepass"))


def _error_reply(exc: Any, command: str) -> dict[str, Any]:
    """Return the agent's error reply that libvirt turned into ``exc``; raise any other ``exc`` again.

    The message is `unable to execute QEMU agent command 'COMMAND': DESC`, in the daemon's language.
    """
    if exc.get_error_domain() == _FROM_QEMU and exc.get_error_code() in (_INTERNAL_ERROR, _AGENT_COMMAND_FAILED):
        match = re.search(rf"{re.escape(command)}\b[^:\uff1a]*[:\uff1a]\s*(.+)", exc.get_error_message(), re.DOTALL)
        if match:
            desc = match.group(1)
            return {"error": {"class": "CommandNotFound" if _NOT_FOUND.match(desc) else "GenericError", "desc": desc}}
    raise exc


def _look_up(connection: Any, name: str, uri: str) -> Any:
    """Return the domain called ``name``, which may be a UUID.

    :raise ConnectError: if there is none, with the names of the running domains.
    """
    finders = [connection.lookupByName]
    if _UUID.fullmatch(name):
        finders.insert(0, connection.lookupByUUIDString)
    for find in finders:
        try:
            return find(name)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != _NO_DOMAIN:
                raise
    running = sorted(domain.name() for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))
    hint = f"See which there are: virsh -c '{uri}' list --all. Or is it one of another libvirt_uri?"
    raise ConnectError(f"{uri} has no domain {name!r}. {_candidates(name, running)}", hint=hint)


def _candidates(name: str, running: list[str]) -> str:
    """Return a sentence that lists the domains ``running``, or the few whose names are most like ``name``."""
    if not running:
        return "No domain is running there."
    shown = running
    if len(running) > _CANDIDATES:
        shown = difflib.get_close_matches(name, running, _CANDIDATES, 0)
    more = f" and {len(running) - len(shown)} more" if len(shown) < len(running) else ""
    return f"Running there: {', '.join(shown)}{more}."


def _no_libvirt(uri: str, exc: Any) -> ConnectError:
    text, code = exc.get_error_message(), exc.get_error_code()
    if code in _NOT_ALLOWED or exc.get_int1() in (errno.EACCES, errno.EPERM):
        hint = _NO_PERMISSION
    elif exc.get_int1() in (errno.ENOENT, errno.ECONNREFUSED):
        hint = "Does libvirt's daemon (libvirtd or virtqemud) run on this machine?"
    else:
        hint = ""
    return ConnectError(f"cannot connect to libvirt at {uri}: {text}.", hint=hint)
