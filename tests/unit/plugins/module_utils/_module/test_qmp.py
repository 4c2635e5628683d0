# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.qemu.guest.plugins.module_utils._agent import protocol
from ansible_collections.qemu.guest.plugins.module_utils._agent.deadline import Deadline
from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import (
    AddressError,
    QgaError,
    QmpCommandError,
    QmpError,
    QmpLostError,
)
from ansible_collections.qemu.guest.plugins.module_utils._agent.protocol import decode_reply
from ansible_collections.qemu.guest.plugins.module_utils._module.qmp import Qmp
from ansible_collections.qemu.guest.tests.unit.scripted_qmp import NOTHING, Refusal, ScriptedQmp, line

Start = Callable[..., ScriptedQmp]
SHORT = 0.3


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start scripted monitors; they end with the test."""
    with ExitStack() as stack:
        yield lambda *args, **how: stack.enter_context(ScriptedQmp(tmp_path / "qmp.sock", *args, **how))


def connect(server: ScriptedQmp, seconds: float = 10) -> Qmp:
    return Qmp(str(server.path), seconds)


def test_command(start: Start) -> None:
    server = start({"query-name": {"name": "vm1"}})
    with connect(server) as qmp:
        assert qmp.execute("query-name") == {"name": "vm1"}
        assert qmp.status() == "running"
    assert server.commands == ["qmp_capabilities", "query-name", "query-status"]


def test_error_names_the_monitor(start: Start) -> None:
    server = start({"system_wakeup": lambda: refuse("Unable to wake up")})
    with connect(server) as qmp, pytest.raises(QmpCommandError) as caught:
        qmp.execute("system_wakeup")
    assert str(caught.value) == f"QMP at unix:{server.path}: system_wakeup failed: Unable to wake up"
    assert caught.value.as_result()["error"] == {
        "type": "QmpCommandError",
        "command": "system_wakeup",
        "executed": "yes",
    }


def refuse(text: str) -> Any:
    raise Refusal(text)


@pytest.mark.parametrize("address", ["", "vm1", "unix:vm1", "http://x"])
def test_address_that_is_none(address: str) -> None:
    with pytest.raises(AddressError, match=r"qmp_address: .* is no address. It should be /path"):
        Qmp(address)


def test_forms_of_an_address(start: Start) -> None:
    server = start()
    with Qmp(f"unix:{server.path}") as qmp:
        assert qmp.status() == "running"


def test_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(QmpError, match=rf"QMP at tcp:127.0.0.1:{port}: no greeting within 0.3 s"):
            Qmp(f"tcp:127.0.0.1:{port}", SHORT)


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match=r"^QMP at unix:.*: there is no such socket") as caught:
        Qmp(str(tmp_path / "none"))
    assert caught.value.executed == "no"


def test_nobody_serves(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "dead"))
    with pytest.raises(QmpError, match="nothing listens on this socket"):
        Qmp(str(tmp_path / "dead"))


def test_seat_taken_by_another_client(start: Start) -> None:
    server = start()
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(server.path))
        other.recv(4096)
        with pytest.raises(QmpError, match=r"another client \(.*python.*\) has it .* one client per socket") as caught:
            connect(server, SHORT)
    assert caught.value.executed == "no"
    with connect(server):
        pass
    assert server.commands == ["qmp_capabilities"], "who waited in vain had sent nothing"


def test_seat_taken_by_ourselves(start: Start) -> None:
    server = start()
    with connect(server), pytest.raises(QmpError, match=r"another task uses the channel .* QMP serves one client"):
        connect(server, SHORT)
    with connect(server) as qmp:
        assert qmp.status() == "running"


@pytest.mark.parametrize("greeting", [b"QEMU 7.2.22 monitor - type 'help'\r\n", b'{"return": {}}\n', b'{"QMP": 1}\n'])
def test_something_else_greets(start: Start, greeting: bytes) -> None:
    server = start(greeting=greeting)
    with pytest.raises(QmpError, match="QMP at") as caught:
        connect(server)
    assert "not QMP" in str(caught.value) or "Is this a QMP socket?" in str(caught.value)
    assert caught.value.executed == "no"
    assert server.commands == []


def test_nobody_greets(start: Start) -> None:
    with pytest.raises(QmpError, match=r"no greeting within 0.3 s. Is it a QMP socket"):
        connect(start(greeting=b""), SHORT)


def test_seat_is_given_up_whatever_happens(start: Start, locks: Path) -> None:
    server = start({"qmp_capabilities": lambda: refuse("no")})
    for _attempt in range(2):
        with pytest.raises(QmpCommandError):
            connect(server, SHORT)


# Replies


@pytest.mark.parametrize(
    "reply",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"return": ' + b"[" * 100 + b"]" * 100 + b', "id": "qga-2"}\n',
        b'{"return": "' + b"x" * (1024 * 1024) + b'", "id": "qga-2"}\n',
        b'{"id": "qga-2"}\n',
        b'{"error": 1, "id": "qga-2"}\n',
        b'{"return": [], "id": "qga-2"}\n',
        b'{"return": {}, "id": "qga-2"}\n',
        b'{"return": {"status": 1}, "id": "qga-2"}\n',
    ],
)
def test_reply_is_checked(start: Start, reply: bytes) -> None:
    with connect(start({"query-status": reply})) as qmp, pytest.raises(QmpLostError, match=r"QMP at .*query-status"):
        qmp.status()


def test_no_reply(start: Start) -> None:
    server = start({"query-status": NOTHING})
    with connect(server, SHORT) as qmp:
        with pytest.raises(QmpLostError, match=r"query-status may have run: no reply within 0.3 s") as caught:
            qmp.status()
        assert (caught.value.executed, caught.value.closed) == ("unknown", False)


def test_late_reply_is_not_the_next_ones(start: Start) -> None:
    server = start({"query-status": NOTHING})
    with connect(server, SHORT) as qmp:
        with pytest.raises(QmpLostError):
            qmp.status()
        late = line({"return": {"status": "late"}, "id": "qga-2"})
        server.answers["query-status"] = late + line({"return": {"status": "paused"}, "id": "qga-3"})
        assert qmp.status() == "paused"


def test_qemu_ends(start: Start) -> None:
    server = start()
    with connect(server) as qmp:
        server.end()
        with pytest.raises(QmpLostError) as caught:
            qmp.status()
        assert caught.value.closed
        with pytest.raises(QmpLostError) as caught:
            qmp.wait(["SHUTDOWN"], Deadline(10))
        assert caught.value.closed


# Events


def test_events(start: Start) -> None:
    server = start()
    with connect(server) as qmp:
        for event in ("RTC_CHANGE", "RESET", "SHUTDOWN", "STOP"):
            server.emit(event, guest=True)
        assert qmp.status() == "running", "a reply among events"
        assert qmp.wait(["SHUTDOWN"], Deadline(10)) == "SHUTDOWN"
        assert qmp.wait(["RESET", "STOP"], Deadline(0.1)) == "", "what came before it is forgotten"


def test_event_that_comes_while_waiting(start: Start) -> None:
    def later() -> object:
        server.emit("SUSPEND")
        return NOTHING

    server: ScriptedQmp = start({"later": later})
    with connect(server, SHORT) as qmp:
        with pytest.raises(QmpLostError):
            qmp.execute("later")
        assert qmp.wait(["SUSPEND", "SUSPEND_DISK"], Deadline(10)) == "SUSPEND"


def test_last_event_of_a_qemu_that_ends(start: Start) -> None:
    server = start()
    with connect(server) as qmp:
        server.emit("SHUTDOWN")
        server.end()
        assert qmp.wait(["SHUTDOWN"], Deadline(10)) == "SHUTDOWN"


def test_lines_that_come_at_once_do_not_prolong_a_deadline(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start({"query-block": b"{}\n" * 20_000})
    decoded = []

    def decode(text: bytes) -> Any:
        decoded.append(text)
        time.sleep(0.001)
        return decode_reply(text)

    with connect(server, SHORT) as qmp:
        monkeypatch.setattr(protocol, "decode_reply", decode)
        with pytest.raises(QmpLostError, match=r"no reply within 0\.3 s"):
            qmp.execute("query-block")
    assert len(decoded) < 1000


def test_events_do_not_prolong_a_deadline_or_fill_memory(start: Start) -> None:
    server: ScriptedQmp = start({"flood": lambda: flood(server)})
    with connect(server) as qmp:
        assert qmp.execute("flood") == {}
        assert len(qmp._events) == 100
        assert qmp.wait(["WAKEUP"], Deadline(0.1)) == ""


def flood(server: ScriptedQmp) -> Any:
    for _number in range(500):
        server.emit("RESET")
        server.emit("RTC_CHANGE")
    return {}


# Whether it can wake


@pytest.mark.parametrize(
    ("commands", "machine", "reason"),
    [
        (["system_wakeup"], None, ""),
        (["system_wakeup", "query-current-machine"], {"wakeup-suspend-support": True}, ""),
        (["system_wakeup", "query-current-machine"], {}, ""),
        (["system_wakeup", "query-current-machine"], {"wakeup-suspend-support": False}, "wakeup-suspend"),
        (["query-status"], None, "no command system_wakeup"),
    ],
)
def test_whether_it_can_wake(start: Start, commands: list[str], machine: Any, reason: str) -> None:
    server = start({"query-commands": [{"name": name} for name in commands], "query-current-machine": machine})
    with connect(server) as qmp:
        assert reason in qmp.why_not_wake()
        assert bool(reason) == bool(qmp.why_not_wake())


@pytest.mark.parametrize("listed", [{}, [1], [{}], [{"name": 1}]])
def test_list_of_commands_is_checked(start: Start, listed: Any) -> None:
    with connect(start({"query-commands": listed})) as qmp, pytest.raises(QgaError, match="by the schema"):
        qmp.why_not_wake()
