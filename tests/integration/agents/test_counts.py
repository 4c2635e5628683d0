# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one command, one file and one task make travel. Unlike time, this is exact: a change of it is seen here."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader

from ansible_collections.qemu.guest.plugins.module_utils._agent.address import parse_address
from ansible_collections.qemu.guest.plugins.module_utils._agent.mux_client import dismiss
from ansible_collections.qemu.guest.plugins.module_utils._module.operation import Operation, run_operation
from ansible_collections.qemu.guest.plugins.modules import qga_fetch, qga_file
from ansible_collections.qemu.guest.tests.integration.conftest import MakeAnsible
from ansible_collections.qemu.guest.tests.integration.harness import guest_variables
from lab.agent import LooseAgent
from lab.host import private_directory
from lab.tally import Tally

METHODS = ["guest-exec", "runner"]
TASKS = 3
SMALL_FILE = 100  # a thousand of such are the input of one program

Counted = tuple[dict[str, int], int]


@pytest.fixture
def tally(agents: dict[str, LooseAgent]) -> Iterator[Tally]:
    directory = private_directory()
    with Tally(directory / "tally.sock", agents["bookworm"].agent_socket) as tally:
        yield tally
    directory.rmdir()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connection(method: str, tally: Tally) -> Iterator[Any]:
    """The plugin, connected, with its runner if it has one. Warm interpreters are counted below."""
    connection = connection_loader.get("qemu.guest.qga", PlayContext(), os.devnull)
    options = {"address": str(tally.path), "agent_timeout": 60, "exec_method": method, "persist": 0}
    options["warm_python"] = False  # or one that another test has left would take the commands
    connection.set_options(direct=options)
    assert connection.exec_command("true")[0] == 0
    assert connection.agent.info
    yield connection
    connection.close()


def counted(tally: Tally, action: Callable[[], object]) -> Counted:
    """Return how many requests of each command `action` makes, and the bytes in both directions.

    Asking whether a program has ended is left out: how often depends on how long it takes.
    """
    tally.counts.clear()
    action()
    requests = {name: one.requests - one.refused for name, one in tally.counts.items()}
    requests.pop("guest-exec-status", None)
    polls = ("guest-exec-status", "guest-file-open")
    size = sum(one.sent + one.received for name, one in tally.counts.items() if name not in polls)
    return {name: count for name, count in requests.items() if count}, size


def files(count: int, reads: int = 0, writes: int = 0, **more: int) -> dict[str, int]:
    """Return requests for `count` files that are opened and closed."""
    some = {f"guest-file-{name}": n for name, n in {"read": reads, "write": writes, **more}.items() if n}
    return {"guest-file-open": count, "guest-file-close": count, **some}


def test_a_command(connection: Any, method: str, tally: Tally) -> None:
    requests, size = counted(tally, lambda: connection.exec_command("true"))
    # The runner's: the request, the ring, the exit status, the ring again.
    assert requests == ({"guest-exec": 1} if method == "guest-exec" else files(4, reads=1, writes=3))
    assert size < 4000


def test_a_command_with_input_and_output(connection: Any, method: str, tally: Tally) -> None:
    data = os.urandom(100_000)
    assert connection.exec_command("cat", in_data=data)[1] == data  # seen to work before it is counted
    requests, size = counted(tally, lambda: connection.exec_command("cat; echo >&2", in_data=data))
    assert requests == ({"guest-exec": 1} if method == "guest-exec" else files(6, reads=3, writes=3))
    # Base64 makes four of three, and there and back is twice.
    one_way = 100_000 * 4 / 3
    assert size < (one_way if method == "guest-exec" else 2 * one_way) + 6000


def test_a_file(connection: Any, method: str, tally: Tally, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(100_000))
    put, put_size = counted(tally, lambda: connection.put_file(str(source), "/srv/counted"))
    fetched, fetched_size = counted(tally, lambda: connection.fetch_file("/srv/counted", str(back)))
    assert back.read_bytes() == source.read_bytes()
    # One program writes it, and says what is there.
    assert put == ({"guest-exec": 1} if method == "guest-exec" else files(5, reads=2, writes=3))
    assert fetched == files(1, reads=3, seek=1)
    assert put_size < 100_000 * 4 / 3 + 9000
    # Once, and once to compare.
    assert fetched_size < 2 * 100_000 * 4 / 3 + 6000


def test_a_small_file(connection: Any, method: str, tally: Tally, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(3000))
    requests, size = counted(tally, lambda: connection.put_file(str(tmp_path / "source"), "/srv/counted"))
    # One program writes it, and says what is there.
    assert requests == ({"guest-exec": 1} if method == "guest-exec" else files(5, reads=2, writes=3))
    # A third is its content. The program is 320 bytes longer since it looks at each link on the way, and at modes.
    assert size < 11_400


def thousand_files(tree: Path, size: int) -> Path:
    tree.mkdir()
    for number in range(1000):
        (tree / f"{number}").write_bytes(os.urandom(size))
    return tree


@pytest.mark.parametrize("size", [SMALL_FILE, 1000])
def test_a_thousand_files(connection: Any, method: str, tally: Tally, tmp_path: Path, size: int) -> None:
    """They travel in one archive: a program says what is there, another puts all in place or makes the archive."""
    tree = thousand_files(tmp_path / "tree", size)
    place = f"/srv/counted-{method}-{size}"

    def run(operation: Operation, **given: Any) -> dict[str, Any]:
        params = {name: option.get("default") for name, option in operation.spec.items()}
        params.update(given, recurse=True)
        return run_operation(operation, connection.agent, params, executor=connection.executor)

    def count(action: Callable[[], object]) -> Counted:
        requests, size = counted(tally, action)
        requests.pop("guest-sync-delimited", None)  # where the machine is slow
        return requests, size

    put, put_size = count(lambda: run(qga_file.OPERATION, src=f"{tree}/", path=place))
    again, again_size = count(lambda: run(qga_file.OPERATION, src=f"{tree}/", path=place))
    back = tmp_path / "back"
    fetched, fetched_size = count(lambda: run(qga_fetch.OPERATION, src=f"{place}/", dest=str(back)))
    assert all((back / path.name).read_bytes() == path.read_bytes() for path in tree.iterdir())
    if method == "runner":
        assert again == files(5, reads=2, writes=3)
        if size == SMALL_FILE:
            assert put == files(10, reads=4, writes=6)
        assert sum(put.values()) <= 80
        assert sum(fetched.values()) <= 70
        return
    assert again == {"guest-exec": 1}
    # What is more than a program's input is sent in a file: that is made, written, and compared.
    sent = {"guest-exec": 4, **files(1, writes=1, flush=1)}
    assert put == ({"guest-exec": 2} if size == SMALL_FILE else sent)
    # The last one removes the archive. What is at most a chunk is read twice, the rest has its checksum computed.
    twice = {"guest-exec": 3, **files(1, reads=4, seek=3)}
    once = {"guest-exec": 4, **files(1, reads=4, seek=2)}
    assert fetched == (twice if size == SMALL_FILE else once)
    in_archive = 1000 * (512 + -(-size // 512) * 512)
    assert again_size < 60_000
    assert put_size < 1000 * size * 4 / 3 + 120_000
    assert fetched_size < (2 if size == SMALL_FILE else 1) * in_archive * 4 / 3 + 60_000


def test_text_over_a_slow_channel(connection: Any, tally: Tally, tmp_path: Path) -> None:
    """It travels compressed; on its way back, where the channel is seen to be slow."""
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(b"".join(b"line %d of a text, and it is not the last one\n" % n for n in range(200_000)))
    size = source.stat().st_size
    _requests, there = counted(tally, lambda: connection.put_file(str(source), "/srv/text"))
    # How quick it seems depends on what else runs: once in five times, it is as quick as it is.
    quick = max(counted(tally, lambda: connection.fetch_file("/srv/text", str(back)))[1] for _time in range(5))
    tally.rate = 2e6
    _requests, slow = counted(tally, lambda: connection.fetch_file("/srv/text", str(back)))
    assert back.read_bytes() == source.read_bytes()
    assert max(there, slow) < size / 2 < size < quick


def test_text_where_an_interpreter_is_at_work(
    tally: Tally, make_ansible: MakeAnsible, agents: dict[str, LooseAgent], tmp_path: Path
) -> None:
    """It travels compressed both ways, however quick the channel is."""
    size = 8_000_000
    source, back = tmp_path / "source", tmp_path / "back"
    lines = (b"line %d of a text, and it is not the last one: %d\n" % (n, n * n) for n in range(size))
    source.write_bytes(b"".join(itertools.islice(lines, 200_000))[:size])
    variables = {**guest_variables(agents["bookworm"]), "ansible_qga_address": str(tally.path)}
    ansible = make_ansible({"counted": variables})
    command = {"name": "Start it", "ansible.builtin.command": "true"}
    put = {"name": "Put", "ansible.builtin.copy": {"src": str(source), "dest": "/srv/text", "mode": "0600"}}
    fetch = {"name": "Fetch", "ansible.builtin.fetch": {"src": "/srv/text", "dest": str(back), "flat": True}}
    sizes = []
    for tasks in ([command, put], [command, fetch]):
        playbook = ansible.directory / "play.json"
        playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
        _requests, travelled = counted(tally, partial(ansible.playbook, playbook))
        sizes.append(travelled)
    assert back.read_bytes() == source.read_bytes()
    assert max(sizes) < source.stat().st_size / 2, sizes


@pytest.mark.parametrize("loop", [True, False])
def test_a_warm_task(loop: bool, tally: Tally, make_ansible: MakeAnsible, agents: dict[str, LooseAgent]) -> None:
    """Each of them, in a loop or not, is put on the ring, and that is all until its result is read.

    It opens two files, the ring and one for its answer, and closes both: after a guest was put back to a snapshot, the
    agent gives out the same handles again, so none is used for two requests.
    """
    variables = {**guest_variables(agents["bookworm"]), "ansible_qga_address": str(tally.path)}
    # In a loop, there is one connection for all.
    ansible = make_ansible({"counted": {**variables, "ansible_qga_persist": 0 if loop else 60}})

    def run(count: int) -> Counted:
        # Whoever waits longer than a second makes sure that an answer can come; the least of three runs has no such.
        return min((run_once(count) for _time in range(3)), key=lambda counts: counts[0]["guest-file-open"])

    def run_once(count: int) -> Counted:
        playbook = ansible.directory / f"{count}.json"
        task = {"name": "Do nothing", "ansible.builtin.command": "true"}
        tasks = [{**task, "loop": list(range(count))}] if loop else [task] * count
        playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")

        def play() -> None:
            ansible.playbook(playbook)
            dismiss(parse_address(str(tally.path)))  # and what it does at its end

        return counted(tally, play)

    run(15)  # until there is an interpreter
    (few, few_bytes), (many, many_bytes) = run(1), run(1 + TASKS)
    per_task = {name: (many[name] - few.get(name, 0)) / TASKS for name in many}
    del per_task["guest-file-read"]  # until there is a result: how often depends on how long it takes
    assert many["guest-file-read"] >= 1 + TASKS
    if not loop:
        assert per_task.pop("guest-sync-delimited", 0) <= 1, "none, but where the machine is slow"
    assert {name: count for name, count in per_task.items() if count} == {
        "guest-file-open": 2,
        "guest-file-write": 1,
        "guest-file-close": 2,
    }
    assert (many_bytes - few_bytes) / TASKS < 6000, "what the guest has already is not sent again"
    assert many["guest-file-open"] == many["guest-file-close"], "nothing stays open"


def test_a_module_that_is_new_in_the_guest(
    tally: Tally, make_ansible: MakeAnsible, agents: dict[str, LooseAgent]
) -> None:
    """What it has in common with another one, which is most of it, is there already."""
    variables = {**guest_variables(agents["bookworm"]), "ansible_qga_address": str(tally.path)}
    ansible = make_ansible({"counted": {**variables, "ansible_qga_persist": 60}})

    def run(second: dict[str, Any]) -> Counted:
        playbook = ansible.directory / "new.json"
        tasks = [{"ansible.builtin.command": "true"}, second]
        playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")

        def play() -> None:
            ansible.playbook(playbook)
            dismiss(parse_address(str(tally.path)))

        return counted(tally, play)

    run({"ansible.builtin.command": "true"})
    same, few_bytes = run({"ansible.builtin.command": "true"})
    new, many_bytes = run({"ansible.builtin.getent": {"database": "passwd"}})
    # It is asked for twice, and brought once: nothing tells a task what the guest has got from one before it.
    assert new["guest-file-open"] - same["guest-file-open"] == 3
    assert many_bytes - few_bytes < 30_000, "the whole would be more than 150,000"


@pytest.mark.parametrize("persist", [0, 60])
def test_a_task(
    persist: int, method: str, tally: Tally, make_ansible: MakeAnsible, agents: dict[str, LooseAgent]
) -> None:
    variables = {**guest_variables(agents["bookworm"]), "ansible_qga_address": str(tally.path)}
    plain = {"ansible_qga_exec_method": method, "ansible_qga_warm_python": False, "ansible_qga_persist": persist}
    ansible = make_ansible({"counted": {**variables, **plain}})
    runs = []
    for count in (1, 1 + TASKS):
        playbook = ansible.directory / f"{count}.json"
        tasks = [{"name": "Do nothing", "ansible.builtin.command": "true"}] * count
        playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
        runs.append(counted(tally, partial(ansible.playbook, playbook)))
    (few, few_bytes), (many, many_bytes) = runs
    per_task = {name: (many[name] - few.get(name, 0)) / TASKS for name in many}
    # What else there is of the runner's is in the tests above: here, it may be slow.
    syncs = per_task.pop("guest-sync-delimited", 0)
    if persist:
        assert tally.clients == 1
        assert syncs <= 1, "none, but where the machine is slow"
        dismiss(parse_address(str(tally.path)))
    else:
        assert tally.clients == 2 + TASKS
        assert syncs == 1
    if method == "guest-exec":
        assert per_task == {"guest-exec": 1}
    else:
        assert per_task["guest-info"] == 1
        assert "guest-exec" not in per_task or per_task["guest-exec"] == 0
    # It is ansible's module, and what little is around it.
    assert (many_bytes - few_bytes) / TASKS < 260_000


def test_a_task_whose_become_asks_for_a_password(method: str, make_ansible: MakeAnsible) -> None:
    """The first of a play finds that out, and the others try nothing without it."""
    directory = private_directory()
    with LooseAgent("bookworm") as agent, Tally(directory / "tally.sock", agent.agent_socket) as tally:
        agent.run("useradd -m asks; echo asks:secret | chpasswd; echo 'asks ALL=(ALL) ALL' >/etc/sudoers.d/asks")
        plain = {"ansible_qga_exec_method": method, "ansible_qga_warm_python": False, "ansible_qga_persist": 60}
        ansible = make_ansible({"counted": {**guest_variables(agent, tally.path), **plain}})
        sudo = {"ansible_become_exe": "/sbin/runuser -u asks -- sudo", "ansible_become_password": "secret"}
        task = {"ansible.builtin.command": "true", "become": True, "become_user": "nobody", "vars": sudo}

        def play(count: int) -> None:
            playbook = ansible.directory / f"{count}.json"
            playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task] * count}]))
            ansible.playbook(playbook)
            dismiss(parse_address(str(tally.path)))

        play(1)  # until there is a runner
        (few, few_bytes), (many, many_bytes) = (counted(tally, partial(play, count)) for count in (1, 1 + TASKS))
    directory.rmdir()
    # Both tries of the first, and one of each other. A slow machine looks after the runner more often.
    if method == "guest-exec":
        assert (few["guest-exec"], many["guest-exec"]) == (2, 2 + TASKS)
    else:
        assert (many["guest-file-write"] - few["guest-file-write"]) / TASKS <= 3
    assert (many_bytes - few_bytes) / TASKS < 260_000, "the module is brought once"
