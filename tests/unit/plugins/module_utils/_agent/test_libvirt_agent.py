# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent behind a libvirt that follows a script. Its errors are those of libvirt 9.0, but for the translations."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils import _agent
from ansible_collections.qemu.guest.plugins.module_utils._agent import libvirt_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.address import Address
from ansible_collections.qemu.guest.plugins.module_utils._agent.base import DEFAULT_TIMEOUT
from ansible_collections.qemu.guest.plugins.module_utils._agent.connect import open_agent
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    AgentSilentError,
    ChannelBusyError,
    CommandError,
    CommandUnavailable,
    ConnectError,
    GuestFileError,
    HandleLostError,
    OutcomeUnknownError,
    ProtocolError,
    QgaError,
    QmpCommandError,
    QmpError,
    QmpLostError,
    TransferError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.libvirt_agent import LibvirtAgent
from ansible_collections.qemu.guest.plugins.module_utils._agent.socket_agent import SocketAgent
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import GuestExec
from ansible_collections.qemu.guest.plugins.module_utils._guest.files import copy_in
from ansible_collections.qemu.guest.plugins.module_utils._guest.login_shell import run_shell
from ansible_collections.qemu.guest.plugins.module_utils._guest.transfer import put
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_exec
from ansible_collections.qemu.guest.tests.unit.guest import Guest
from ansible_collections.qemu.guest.tests.unit.scripted import AgentError, Clock

UUID = "cb4e2d50-bc97-4946-8390-00fa521c9fa0"
QEMU, RPC, NOBODY = 10, 7, 0
INFO = {
    "version": "7.2.22",
    "supported_commands": [
        {"name": "guest-ping", "enabled": True},
        {"name": "guest-file-open", "enabled": True},
        {"name": "guest-exec", "enabled": False},
        {"name": "guest-fsfreeze-status", "enabled": True},
    ],
}


class LibvirtError(Exception):
    def __init__(self, code: int, text: str, origin: int = QEMU, number: int = -1) -> None:
        super().__init__(text)
        self.code, self.origin, self.number = code, origin, number

    def get_error_code(self) -> int:
        return self.code

    def get_error_domain(self) -> int:
        return self.origin

    def get_error_message(self) -> str:
        return str(self)

    def get_int1(self) -> int:
        return self.number


def agent_said(command: str, desc: str) -> LibvirtError:
    return LibvirtError(1, f"internal error: unable to execute QEMU agent command '{command}': {desc}")


NOT_CONNECTED = LibvirtError(86, "Guest agent is not responding: QEMU guest agent is not connected")
NOT_NOW = LibvirtError(86, "Guest agent is not responding: Guest agent not available for now")
DISAPPEARED = LibvirtError(86, "Guest agent is not responding: Guest agent disappeared while executing command")
NOT_RUNNING = LibvirtError(55, "Requested operation is not valid: domain is not running")
BROKEN = LibvirtError(38, "Cannot write data: Broken pipe", RPC, 32)
TOO_LONG = LibvirtError(39, "Unable to encode message payload", RPC)
FAR_TOO_LONG = LibvirtError(38, "No complete agent response found in 10485760 bytes", QEMU, 34)


class Domain:
    """A domain that runs (state 1). ``saved`` tells that its memory is kept, if it is shut off (5)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.number = 1
        self.saved = False

    def state(self) -> list[int]:
        return [self.number, 0]

    def hasManagedSaveImage(self) -> int:
        return int(self.saved)

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:
        return UUID


class Libvirt:
    """The modules libvirt and libvirt_qemu in one. ``answers`` is what the agent answers, ``then`` what is next."""

    libvirtError = LibvirtError
    VIR_CONNECT_LIST_DOMAINS_ACTIVE = 1

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answers: dict[str, Any] = {"guest-ping": {}, "guest-info": INFO}
        self.next: dict[str, list[Any]] = {}
        self.domains = {"web": Domain("web")}
        self.uuids = {UUID: self.domains["web"]}
        self.requests: list[tuple[dict[str, Any], int]] = []
        self.opened: list[str] = []
        self.closed = 0
        self.refusal: LibvirtError | None = None

    @property
    def commands(self) -> list[str]:
        return [request["execute"] for request, _seconds in self.requests]

    def then(self, command: str, *events: Any) -> None:
        self.next.setdefault(command, []).extend(events)

    # libvirt

    def registerErrorHandler(self, handler: Callable[[object, object], None], context: object) -> None:
        """It prints errors by itself unless it is told what else to do with them."""
        handler(context, "an error")

    def open(self, uri: str) -> Libvirt:
        self.opened.append(uri)
        if self.refusal is not None:
            raise self.refusal
        return self

    def close(self) -> int:
        self.closed += 1
        return 0

    def lookupByName(self, name: str) -> Domain:
        return self._look_up(self.domains, name)

    def lookupByUUIDString(self, uuid: str) -> Domain:
        return self._look_up(self.uuids, uuid)

    def _look_up(self, table: dict[str, Domain], key: str) -> Domain:
        if key not in table:
            raise LibvirtError(42, f"Domain not found: no domain with matching name '{key}'")
        return table[key]

    def listAllDomains(self, flags: int) -> list[Domain]:
        assert flags == 1
        return list(self.domains.values())

    # libvirt_qemu

    def qemuAgentCommand(self, domain: Domain, text: str, seconds: int, flags: int) -> str:
        assert isinstance(seconds, int) and seconds >= 1 and flags == 0
        request = json.loads(text)
        assert set(request) <= {"execute", "arguments"}
        self.requests.append((request, seconds))
        command = request["execute"]
        event = self.next[command].pop(0) if self.next.get(command) else None
        if callable(event):
            event = event()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, str):
            return event
        if command not in self.answers:
            raise agent_said(command, f"The command {command} has not been found")
        answer = self.answers[command]
        try:
            value = answer(request.get("arguments", {})) if callable(answer) else answer
        except AgentError as exc:
            raise agent_said(command, exc.error["desc"]) from exc
        return json.dumps({"return": value})


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Libvirt:
    fake = Libvirt(clock)
    monkeypatch.setattr(libvirt_agent, "libvirt", fake)
    monkeypatch.setattr(libvirt_agent, "libvirt_qemu", fake)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    return fake


def agent_for(name: str = "web", timeout: float = 20, **how: Any) -> Any:
    return open_agent(f"libvirt:{name}", timeout, **how)


@pytest.fixture
def agent(daemon: Libvirt) -> Any:
    return agent_for()


# Where it is


def test_uri(daemon: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_for().execute("guest-ping")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///session")
    agent_for().execute("guest-ping")
    agent_for(libvirt_uri="qemu+ssh://h/system").execute("guest-ping")
    assert daemon.opened == ["qemu:///system", "qemu:///session", "qemu+ssh://h/system"]


def test_libvirt_of_another_machine(daemon: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its daemon listens at one of two places; the environment's URI is that of this machine."""
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///session")
    asked: list[str] = []

    @contextmanager
    def forward(path: str, deadline: object) -> Iterator[str]:
        asked.append(path)
        daemon.refusal = LibvirtError(38, "End of file while reading data", RPC) if "libvirt-sock" in path else None
        yield f"/here{path}"

    agent_for(forward=forward).execute("guest-ping")
    assert asked == ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"]
    assert daemon.opened == [f"qemu+unix:///system?socket=/here{path}" for path in asked]
    agent_for(forward=forward, libvirt_uri="qemu:///system?socket=/elsewhere").execute("guest-ping")
    assert asked[2:] == ["/elsewhere"]
    for uri in ("qemu+ssh://h/system", "qemu:///session", "xen:///"):
        with pytest.raises(AddressError, match="not one that a hypervisor has for itself"):
            agent_for(forward=forward, libvirt_uri=uri)


def test_other_addresses_need_no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_agent, "libvirt", None)
    assert isinstance(open_agent("/run/vm1.qga", libvirt_uri="qemu:///system"), SocketAgent)


def test_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_agent, "libvirt_agent", libvirt_agent)  # to have it back afterwards
    monkeypatch.delitem(sys.modules, libvirt_agent.__name__)
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(AddressError) as caught:
        agent_for()
    assert "libvirt-python" in str(caught.value) and "libvirt:web" in str(caught.value)
    assert "import of libvirt halted" in str(caught.value) and "python3-libvirt" in str(caught.value)


def test_nothing_is_opened_before_the_first_command(daemon: Libvirt) -> None:
    agent_for()
    assert daemon.opened == []


@pytest.mark.parametrize("name", ["web", UUID, UUID.upper().lower(), UUID.replace("-", "")])
def test_domain_by_name_and_uuid(daemon: Libvirt, name: str) -> None:
    daemon.uuids[UUID.replace("-", "")] = daemon.uuids[UUID]
    agent = agent_for(name)
    assert agent.execute("guest-ping") == {}
    assert agent.name == f"libvirt:{name}"
    assert agent.identity == f"libvirt:{UUID}"


def test_domain_whose_name_looks_like_a_uuid(daemon: Libvirt) -> None:
    other = UUID[:-1] + "1"
    daemon.domains[other] = Domain(other)
    assert agent_for(other).execute("guest-ping") == {}


def test_no_such_domain(daemon: Libvirt) -> None:
    daemon.domains["db"] = Domain("db")
    with pytest.raises(ConnectError) as caught:
        agent_for("wbe").execute("guest-ping")
    assert "qemu:///system has no domain 'wbe'. Running there: db, web." in str(caught.value)
    assert "list --all" in str(caught.value) and caught.value.executed == "no"


def test_no_such_domain_among_many(daemon: Libvirt) -> None:
    daemon.domains.update({f"node-{number}": Domain(f"node-{number}") for number in range(500)})
    daemon.domains["webserver"] = Domain("webserver")
    with pytest.raises(ConnectError) as caught:
        agent_for("webserve").execute("guest-ping")
    assert "webserver, web" in str(caught.value) and "and 492 more" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_no_such_domain_where_none_runs(daemon: Libvirt) -> None:
    daemon.domains.clear()
    with pytest.raises(ConnectError, match="No domain is running there"):
        agent_for().execute("guest-ping")


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (LibvirtError(38, "Failed to connect socket: No such file or directory", RPC, 2), "libvirtd or virtqemud"),
        (LibvirtError(38, "Failed to connect socket to '/x': Permission denied", RPC, 13), "become"),
        (LibvirtError(94, "authentication unavailable: no polkit agent available", RPC), "group libvirt"),
        (LibvirtError(45, "authentication failed: access denied by policy", RPC), "group libvirt"),
        (LibvirtError(5, "no connection driver available for foo:///", NOBODY), "no connection driver"),
    ],
)
def test_no_libvirt(daemon: Libvirt, agent: Any, refusal: LibvirtError, text: str) -> None:
    daemon.refusal = refusal
    with pytest.raises(ConnectError) as caught:
        agent.execute("guest-ping")
    assert "cannot connect to libvirt at qemu:///system" in str(caught.value) and text in str(caught.value)
    assert str(refusal) in str(caught.value)


# Commands


def test_command(daemon: Libvirt, agent: Any) -> None:
    daemon.answers["guest-file-open"] = lambda arguments: int(arguments["path"])
    assert agent.execute("guest-file-open", {"path": "17"}) == 17
    assert agent.execute("guest-file-open", {"path": "18"}) == 18
    assert daemon.commands == ["guest-ping", "guest-file-open", "guest-file-open"]
    assert daemon.opened == ["qemu:///system"]


def test_ping_goes_ahead_after_a_pause_and_after_a_failure(daemon: Libvirt, agent: Any, clock: Clock) -> None:
    agent.execute("guest-info")
    clock.advance(1)
    daemon.then("guest-info", NOT_NOW)
    agent.execute("guest-info")  # only reads: asked twice
    agent.execute("guest-info")
    assert daemon.commands == ["guest-ping", "guest-info"] * 3 + ["guest-info"]


@pytest.mark.parametrize(("timeout", "seconds"), [(20, 20), (7.2, 8), (0.1, 1)])
def test_timeout_in_whole_seconds(daemon: Libvirt, timeout: float, seconds: int) -> None:
    agent_for(timeout=timeout).execute("guest-info")
    assert [given for _request, given in daemon.requests] == [seconds, seconds]


def test_agent_that_has_no_ping_is_there_all_the_same(daemon: Libvirt, agent: Any) -> None:
    del daemon.answers["guest-ping"]
    assert agent.execute("guest-info") == INFO


@pytest.mark.parametrize("answer", ["[1]", "{", '{"nope": 1}', '{"return": 1}'])
def test_answer_that_is_none(daemon: Libvirt, agent: Any, answer: str) -> None:
    daemon.then("guest-info", answer)
    with pytest.raises(ProtocolError):
        agent.execute("guest-info")


def test_answer_that_is_no_text(daemon: Libvirt, agent: Any) -> None:
    daemon.then("guest-info", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    with pytest.raises(ProtocolError, match="not UTF-8"):
        agent.execute("guest-info")


# What the agent said


@pytest.mark.parametrize(
    "message",
    [
        "internal error: unable to execute QEMU agent command 'guest-file-open': {}",
        "Interner Fehler: QEMU-Agentenbefehl »guest-file-open« konnte nicht ausgeführt werden: {}",
        "erreur interne : impossible d'exécuter la commande de l'agent QEMU « guest-file-open » : {}",
        "内部错误\uff1a无法执行 QEMU 代理命令 'guest-file-open'\uff1a{}",
    ],
)
@pytest.mark.parametrize("code", [1, 113])
def test_error_of_the_agent(daemon: Libvirt, agent: Any, message: str, code: int) -> None:
    desc = "failed to open file '/nope' (mode: 'r'): No such file or directory"
    daemon.then("guest-file-open", LibvirtError(code, message.format(desc)))
    with pytest.raises(GuestFileError) as caught:
        agent.execute("guest-file-open", {"path": "/nope"})
    assert (caught.value.errno, caught.value.message) == (2, desc)
    agent.execute("guest-info")
    assert daemon.commands == ["guest-ping", "guest-file-open", "guest-info"], "the agent has answered"


def test_other_errors_of_the_agent(daemon: Libvirt, agent: Any) -> None:
    daemon.then("guest-file-read", agent_said("guest-file-read", "handle '9' has not been found"))
    with pytest.raises(HandleLostError):
        agent.execute("guest-file-read", {"handle": 9})
    text = "Failed to execute child process \u201c/x\u201d (No such file or directory)"
    text = f"Guest agent command failed, error was '{text}'"
    daemon.then("guest-exec", agent_said("guest-exec", text))
    with pytest.raises(CommandError) as caught:
        agent.execute("guest-exec", {"path": "/x"})
    assert caught.value.message == text and not isinstance(caught.value, (CommandUnavailable, GuestFileError))


@pytest.mark.parametrize(
    ("desc", "reason"),
    [
        ("The command {} has not been found", "unknown"),
        ("Command {} has been disabled", "disabled"),
        ("Command {} has been disabled: the command is not allowed", "disabled"),
        ("The command {} has been disabled for this instance", "disabled"),
    ],
)
def test_command_that_is_unavailable(daemon: Libvirt, agent: Any, desc: str, reason: str) -> None:
    command = "guest-exec" if reason == "disabled" else "guest-nope"
    daemon.answers["guest-fsfreeze-status"] = "thawed"
    daemon.then(command, agent_said(command, desc.format(command)))
    with pytest.raises(CommandUnavailable) as caught:
        agent.execute(command)
    assert caught.value.reason == reason and caught.value.executed == "no"


def test_error_that_names_another_command_is_not_the_agents(daemon: Libvirt, agent: Any) -> None:
    daemon.then("guest-file-open", LibvirtError(1, "internal error: guest-file-opener: nope"))
    with pytest.raises(OutcomeUnknownError):
        agent.execute("guest-file-open", {"path": "/x"})


# Did it run?


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (NOT_CONNECTED, AgentSilentError, "does qemu-guest-agent run"),
        (LibvirtError(97, "guest agent replied with wrong id to guest-sync command"), AgentSilentError, "wrong id"),
        (NOT_RUNNING, ConnectError, "start or resume it"),
        (LibvirtError(74, "argument unsupported: QEMU guest agent is not configured"), ConnectError, "guest_agent.0"),
        (LibvirtError(68, "Timed out: cannot acquire state change lock (held by x)"), ChannelBusyError, "held by x"),
        (LibvirtError(29, "operation forbidden: read only access", NOBODY), ConnectError, "group libvirt"),
        (LibvirtError(88, "access denied", NOBODY), ConnectError, "group libvirt"),
        (LibvirtError(42, "Domain not found: no domain with matching uuid"), ConnectError, "no domain"),
        (LibvirtError(1, "internal error: whatever"), ConnectError, "whatever"),
    ],
)
def test_nothing_was_sent(daemon: Libvirt, agent: Any, error: LibvirtError, kind: type[QgaError], text: str) -> None:
    daemon.then("guest-ping", error)
    with pytest.raises(kind) as caught:
        agent.execute("guest-exec", {"path": "/x"})
    assert caught.value.as_result()["error"] == {"type": kind.__name__, "command": "guest-exec", "executed": "no"}
    assert text in str(caught.value)
    assert "libvirt:web: nothing was sent: " in str(caught.value)
    assert daemon.commands == ["guest-ping"]


@pytest.mark.parametrize(
    ("error", "executed"),
    [
        (NOT_CONNECTED, "unknown"),  # its text is not looked at, as it may be in any language
        (NOT_NOW, "unknown"),
        (DISAPPEARED, "unknown"),
        (LibvirtError(112, "Guest agent command timed out"), "unknown"),
        (LibvirtError(1, "internal error: Missing agent reply object"), "unknown"),
        (BROKEN, "unknown"),
        (TOO_LONG, "unknown"),
        (FAR_TOO_LONG, "unknown"),
        (NOT_RUNNING, "no"),
        (LibvirtError(97, "guest agent replied with wrong id to guest-sync command"), "no"),
        (LibvirtError(68, "Timed out: cannot acquire state change lock"), "no"),
        (LibvirtError(42, "Domain not found"), "no"),
    ],
)
def test_it_may_have_run(daemon: Libvirt, agent: Any, error: LibvirtError, executed: str) -> None:
    daemon.then("guest-exec", error, error)
    with pytest.raises(QgaError) as caught:
        agent.execute("guest-exec", {"path": "/x"})
    assert caught.value.executed == executed
    assert daemon.commands == ["guest-ping", "guest-exec"] * (1 if executed == "unknown" else 2), "repeated if unsent"


@pytest.mark.parametrize(
    ("error", "text"), [(TOO_LONG, "fetch that"), (FAR_TOO_LONG, "until that is restarted")], ids=["4 MiB", "10 MiB"]
)
def test_reply_that_is_too_long(daemon: Libvirt, agent: Any, error: LibvirtError, text: str) -> None:
    daemon.then("guest-exec-status", error)
    with pytest.raises(ProtocolError, match=text):
        agent.execute("guest-exec-status", {"pid": 1})


def test_request_that_is_too_long(daemon: Libvirt, agent: Any) -> None:
    with pytest.raises(TransferError) as caught:
        agent.execute("guest-file-write", {"handle": 1, "buf-b64": "x" * 170_000})
    assert caught.value.executed == "no" and daemon.commands == []
    with pytest.raises(TransferError, match="at most"):
        agent.execute("guest-file-read", {"handle": 1, "count": 48 * 1024 * 1024})
    assert daemon.commands == []


def test_more_input_than_libvirt_carries(daemon: Libvirt, agent: Any) -> None:
    daemon.answers["guest-exec"] = {"pid": 3}
    with pytest.raises(TransferError) as caught:
        GuestExec(agent).start("/bin/cat", stdin=bytes(agent.largest_content + 1))
    assert caught.value.executed == "no" and daemon.commands == []
    assert GuestExec(agent).start("/bin/cat", stdin=bytes(agent.largest_content)) == 3


def test_slow_agent_has_the_whole_timeout(daemon: Libvirt, agent: Any, clock: Clock) -> None:
    def five_seconds() -> LibvirtError:
        clock.advance(5)
        return NOT_NOW

    daemon.then("guest-ping", five_seconds, five_seconds)
    assert agent.execute("guest-info") == INFO
    clock.advance(1)
    daemon.then("guest-ping", *[five_seconds] * 9)
    with pytest.raises(AgentSilentError):
        agent.execute("guest-info")
    assert len(daemon.next["guest-ping"]) == 5, "four of five seconds each"


@pytest.mark.parametrize("event", [DISAPPEARED, NOT_NOW, LibvirtError(112, "timed out"), BROKEN])
@pytest.mark.parametrize("command", ["guest-shutdown", "guest-suspend-ram"])
def test_commands_that_answer_only_when_they_fail(
    daemon: Libvirt, agent: Any, command: str, event: LibvirtError
) -> None:
    daemon.then(command, event)
    assert agent.execute(command) is None
    assert daemon.requests[-1][1] == 5
    daemon.then(command, agent_said(command, "mode is invalid (valid values are: halt|powerdown|reboot"))
    with pytest.raises(CommandError, match="mode is invalid"):
        agent.execute(command)


def test_command_without_an_answer_is_not_sent_to_an_agent_that_is_away(daemon: Libvirt, agent: Any) -> None:
    daemon.then("guest-ping", NOT_CONNECTED)
    with pytest.raises(AgentSilentError):
        agent.execute("guest-shutdown")
    assert daemon.commands == ["guest-ping"]


# The daemon


@pytest.mark.parametrize("error", [BROKEN, LibvirtError(1, "internal error: client socket is closed", RPC)])
def test_daemon_was_restarted(daemon: Libvirt, agent: Any, clock: Clock, error: LibvirtError) -> None:
    agent.execute("guest-info")
    clock.advance(1)
    daemon.then("guest-ping", error)
    assert agent.execute("guest-info") == INFO
    assert len(daemon.opened) == 2 and daemon.closed == 1
    daemon.refusal = LibvirtError(38, "Failed to connect socket", RPC, 111)
    daemon.then("guest-ping", error)
    clock.advance(1)
    with pytest.raises(ConnectError, match="libvirtd or virtqemud"):
        agent.execute("guest-info")


def test_domain_was_made_anew(daemon: Libvirt, agent: Any, clock: Clock) -> None:
    agent.execute("guest-info")
    clock.advance(1)
    daemon.then("guest-ping", LibvirtError(42, "Domain not found: no domain with matching uuid"))
    assert agent.execute("guest-info") == INFO


def after(clock: Clock, seconds: float, change: Callable[[], object]) -> None:
    """Have ``change`` happen when so much time has passed, at the next pause of whoever waits."""
    end = clock.now + seconds

    def look() -> None:
        if clock.now >= end:
            change()
            clock.on_sleep = lambda: None

    clock.on_sleep = look


@pytest.mark.parametrize(("number", "saved"), [(3, False), (5, True)], ids=["paused", "saved"])
def test_domain_that_is_away_in_the_middle_is_waited_for(
    daemon: Libvirt, agent: Any, clock: Clock, number: int, saved: bool
) -> None:
    agent.execute("guest-info")
    domain = daemon.domains["web"]
    domain.number, domain.saved = number, saved
    daemon.then("guest-ping", *[NOT_RUNNING] * 500)
    daemon.answers["guest-file-flush"] = {}

    def resumed() -> None:
        # Its agent is not there at once, and has its time from now on.
        domain.number = 1
        daemon.next["guest-ping"] = [NOT_CONNECTED] * 20

    began = clock.now
    clock.advance(1)
    after(clock, 100, resumed)
    assert agent.execute("guest-file-flush", {"handle": 1}) == {}
    assert 110 < clock.now - began < 116
    clock.advance(1)
    domain.number, began = number, clock.now
    daemon.then("guest-ping", *[NOT_RUNNING] * 500)
    with pytest.raises(ConnectError, match="domain is not running"):
        agent.execute("guest-file-flush", {"handle": 1})
    assert 120 <= clock.now - began < 125
    daemon.then("guest-ping", *[NOT_RUNNING] * 500)
    with pytest.raises(ConnectError, match="domain is not running"):
        agent.execute("guest-file-close", {"handle": 1})
    assert clock.now - began < 125, "it is not waited for anew to clean up"


@pytest.mark.parametrize(("number", "saved"), [(3, False), (5, True)], ids=["paused", "saved"])
def test_domain_that_goes_away_right_after_a_reply_is_waited_for(
    daemon: Libvirt, agent: Any, clock: Clock, number: int, saved: bool
) -> None:
    """Too soon for a ping to go ahead of the next command."""
    agent.execute("guest-info")
    domain = daemon.domains["web"]
    domain.number, domain.saved = number, saved
    daemon.then("guest-ping", *[NOT_RUNNING] * 500)
    daemon.then("guest-file-flush", NOT_RUNNING)
    daemon.answers["guest-file-flush"] = {}

    def resumed() -> None:
        domain.number = 1
        daemon.next["guest-ping"] = []

    began = clock.now
    after(clock, 40, resumed)
    assert agent.execute("guest-file-flush", {"handle": 1}) == {}
    assert 40 <= clock.now - began < 45
    assert daemon.commands.count("guest-file-flush") == 2


@pytest.mark.parametrize(("number", "met"), [(5, True), (3, False), (7, True)], ids=["shut off", "new", "suspended"])
def test_domain_that_is_not_running_is_told_at_once(
    daemon: Libvirt, agent: Any, clock: Clock, number: int, met: bool
) -> None:
    if met:
        agent.execute("guest-info")
        clock.advance(1)
    daemon.domains["web"].number = number
    daemon.then("guest-ping", *[NOT_RUNNING] * 9)
    began = clock.now
    with pytest.raises(ConnectError, match="start or resume it"):
        agent.execute("guest-exec", {"path": "/x"})
    assert clock.now == began


def test_daemon_that_is_restarted_in_the_middle_is_waited_for(daemon: Libvirt, agent: Any, clock: Clock) -> None:
    agent.execute("guest-info")
    clock.advance(1)
    daemon.then("guest-ping", BROKEN)
    daemon.refusal = LibvirtError(38, "Failed to connect socket", RPC, 111)
    after(clock, 15, lambda: setattr(daemon, "refusal", None))
    assert agent.execute("guest-info") == INFO
    clock.advance(1)
    daemon.then("guest-ping", BROKEN)
    daemon.refusal = LibvirtError(38, "Failed to connect socket: Permission denied", RPC, 13)
    began = clock.now
    with pytest.raises(ConnectError, match="Permission denied"):
        agent.execute("guest-info")
    assert clock.now == began, "that does not pass"


def test_daemon_is_restarted_while_a_file_is_written(
    daemon: Libvirt, agent: Any, guest: Guest, clock: Clock, tmp_path: Path
) -> None:
    daemon.answers.update(guest.answers())
    content = os.urandom(500_000)

    def breaks(after: bool) -> Callable[[], LibvirtError]:
        def event() -> LibvirtError:
            if after:
                guest.write(daemon.requests[-1][0]["arguments"])
            return BROKEN

        return event

    daemon.then("guest-file-write", None, breaks(after=True), None, breaks(after=False))
    daemon.then("guest-file-read", breaks(after=False))
    copy_in(agent, io.BytesIO(content), str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == content


def test_domain_is_paused_while_a_program_runs(daemon: Libvirt, agent: Any, clock: Clock) -> None:
    daemon.answers["guest-exec-status"] = {"exited": True, "exitcode": 0}
    agent.execute("guest-info")
    domain = daemon.domains["web"]

    def pauses() -> LibvirtError:
        domain.number = 3
        daemon.next["guest-ping"] = [NOT_RUNNING] * 500
        clock.advance(20)
        return LibvirtError(112, "Guest agent command timed out")

    def resumes() -> None:
        domain.number = 1
        daemon.next["guest-ping"] = []

    daemon.then("guest-exec-status", pauses)
    after(clock, 60, resumes)
    result = GuestExec(agent).wait(7, 5)
    assert result is not None and result.rc == 0


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a daemon that hangs waits for."""
    event = threading.Event()
    yield event
    event.set()


def test_daemon_that_hangs(daemon: Libvirt, release: threading.Event) -> None:
    def hang() -> None:
        release.wait(30)

    agent = agent_for(timeout=0.1)
    daemon.then("guest-ping", hang)
    with pytest.raises(AgentSilentError, match=r"did not answer within 0\.1 s"):
        agent.execute("guest-exec", {"path": "/x"})
    daemon.then("guest-exec", hang)
    with pytest.raises(OutcomeUnknownError, match=r"did not return within 0\.1 s"):
        agent.execute("guest-exec", {"path": "/x"})
    assert len(daemon.opened) == 2, "a connection with a call in it is not used again"
    assert daemon.closed == 0, "nor closed, which would wait too"


def test_close_and_open_again(daemon: Libvirt, agent: Any) -> None:
    agent.close()
    agent.execute("guest-ping")
    agent.close()
    agent.close()
    assert daemon.closed == 1
    with agent:
        agent.execute("guest-ping")
    assert len(daemon.opened) == daemon.closed == 2


def test_after_a_fork(daemon: Libvirt, agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.execute("guest-ping")
    monkeypatch.setattr(libvirt_agent, "os", SimpleNamespace(getpid=lambda: os.getpid() + 1))
    agent.execute("guest-ping")
    assert len(daemon.opened) == 2 and daemon.closed == 0, "the other one is the parent's"


def test_close_after_a_fork(daemon: Libvirt, agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.execute("guest-ping")
    monkeypatch.setattr(libvirt_agent, "os", SimpleNamespace(getpid=lambda: os.getpid() + 1))
    agent.close()
    assert daemon.closed == 0


def test_again(daemon: Libvirt) -> None:
    agent = agent_for(timeout=7, libvirt_uri="qemu:///session")
    agent.execute("guest-ping")
    other = agent.again()
    assert isinstance(other, LibvirtAgent) and (other.name, other.timeout) == ("libvirt:web", 7)
    assert daemon.opened == ["qemu:///session"]
    other.execute("guest-ping")
    assert daemon.opened == ["qemu:///session"] * 2


def test_again_over_a_socket() -> None:
    other = SocketAgent(Address("unix", path="/x"), DEFAULT_TIMEOUT).again()
    assert isinstance(other, SocketAgent) and other.name == "unix:/x"


# Long output


def test_long_output_of_qga_exec(daemon: Libvirt, agent: Any, guest: Guest, run: Callable[..., dict[str, Any]]) -> None:
    daemon.answers.update(guest.answers())
    result = run(agent, shell="head -c 3000000 /dev/zero | tr '\\0' x; echo e >&2")
    assert result["stdout"] == "x" * 3_000_000 and result["stderr"] == "e"
    assert result["rc"] == 0 and result["stdout_truncated"] is False


def test_long_input(daemon: Libvirt, agent: Any, guest: Guest, tmp_path: Path) -> None:
    daemon.answers.update(guest.answers())
    stdin = os.urandom(1_000_000)
    result = run_shell(GuestExec(agent), b"cat; echo e >&2; exit 3", stdin)
    assert (result.rc, result.stdout, result.stderr) == (3, stdin, b"e\n")
    with (tmp_path / "file").open("w+b") as file:
        file.write(stdin)
        file.seek(0)
        put(GuestExec(agent), file, str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == stdin
    longest = max(len(json.dumps(request)) for request, _seconds in daemon.requests)
    assert longest < 140_000, "what fits in the buffer of a socket"
    assert not list(tmp_path.glob("kept.*"))


def test_long_input_of_a_program_that_cannot_be_started(
    daemon: Libvirt, agent: Any, guest: Guest, tmp_path: Path
) -> None:
    answers = guest.answers()
    daemon.answers.update(answers)
    execute = answers["guest-exec"]

    def once_too_often(arguments: Any) -> Any:
        if any("QEMU_GUEST_INPUT=" in variable for variable in arguments["env"]):
            raise AgentError("Failed to execute child process")
        return execute(arguments)

    daemon.answers["guest-exec"] = once_too_often
    with pytest.raises(CommandError, match="Failed to execute"):
        run_shell(GuestExec(agent), b"cat", bytes(200_000))
    assert not list(tmp_path.glob("kept.*"))


@pytest.fixture
def run() -> Callable[..., dict[str, Any]]:
    """Run qga_exec over an agent."""

    def over(agent: Any, **params: Any) -> dict[str, Any]:
        defaults = {name: about.get("default") for name, about in qga_exec.SPEC.items()}
        return run_operation(qga_exec.OPERATION, agent, {**defaults, **params})

    return over


# What libvirt is asked, and not the agent


def test_domain_is_asked(daemon: Libvirt, agent: Any) -> None:
    assert agent.ask_domain("virDomainGetName", lambda domain: domain.name(), 5) == "web"
    assert daemon.commands == [] and daemon.opened == ["qemu:///system"]


@pytest.mark.parametrize(
    ("error", "kind", "fate"),
    [
        (LibvirtError(1, "internal error: no"), QmpCommandError, "failed"),
        (BROKEN, QmpLostError, "may have run"),
    ],
)
def test_domain_that_refuses(agent: Any, error: LibvirtError, kind: type[QmpError], fate: str) -> None:
    def refuse(domain: Any) -> None:
        raise error

    with pytest.raises(kind) as caught:
        agent.ask_domain("virDomainSnapshotCreateXML", refuse, 5)
    assert str(caught.value) == f"libvirt at qemu:///system: virDomainSnapshotCreateXML {fate}: {error}"


def test_domain_that_does_not_return(daemon: Libvirt, agent: Any) -> None:
    release = threading.Event()
    with pytest.raises(QmpLostError, match=r"virDomainGetName may have run: it did not return within 0\.1 s"):
        agent.ask_domain("virDomainGetName", lambda domain: release.wait(30), 0.1)
    release.set()
    agent.execute("guest-ping")
    assert daemon.opened == ["qemu:///system"] * 2, "by another connection: that one hangs"


@pytest.mark.parametrize(
    ("uri", "here"),
    [(None, True), ("qemu:///session", True), ("qemu+ssh://h/system", False), ("qemu+tls://h/system", False)],
)
def test_where_libvirt_is(daemon: Libvirt, uri: str | None, here: bool) -> None:
    assert agent_for(libvirt_uri=uri).is_here is here
    assert not agent_for(forward=lambda path, deadline: None).is_here
