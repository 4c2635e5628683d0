# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's command line: python3 -m lab --help."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
from pathlib import Path

from lab import host, image
from lab.accel import accelerator
from lab.agent import LooseAgent
from lab.host import LabError
from lab.vm import NICS, Guest


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m lab", description="Real guests and real agents to test with.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("image", help="build images, and say where they are")
    command.add_argument("release", nargs="+", choices=[*image.RELEASES, *image.VARIANTS])
    command.set_defaults(run=_image)

    command = commands.add_parser("up", help="start a guest that stays until `down`")
    command.add_argument("name")
    command.add_argument("--release", default="bookworm", choices=[*image.RELEASES, *image.VARIANTS])
    command.add_argument("--nic", default="none", choices=NICS)
    command.add_argument("--memory", type=int, default=512, metavar="MIB")
    command.set_defaults(run=_up)

    command = commands.add_parser("down", help="end guests that `up` started")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?")
    which.add_argument("--all", action="store_true")
    command.set_defaults(run=_down)

    command = commands.add_parser("list", help="list the guests that `up` started")
    command.set_defaults(run=_list)

    command = commands.add_parser("console", help="run a shell command as root, through the serial console")
    command.add_argument("name")
    command.add_argument("command", nargs="+", metavar="-- COMMAND")
    command.set_defaults(run=_console)

    command = commands.add_parser("agent", help="run an agent without a guest until Ctrl-C")
    command.add_argument("--release", default="bookworm", choices=[*image.RELEASES, *image.VARIANTS])
    command.set_defaults(run=_agent)
    return parser


def _image(options: argparse.Namespace) -> int:
    for release in options.release:
        built = image.build(release)
        print(f"{release}: agent {built.agent_version}: {built.disk}")
    return 0


def _up(options: argparse.Namespace) -> int:
    state = _state(options.name)
    with host.lock(state.parent.with_name(f".{options.name}.lock")):
        if state.exists() and _attach(state).alive():
            raise LabError(f"{options.name} is up already")
        guest = Guest(options.release, nic=options.nic, memory_mib=options.memory)
        guest.start(outlive=True)
        state.parent.mkdir(exist_ok=True)
        state.write_text(json.dumps(guest.record()), encoding="utf-8")
    print(f"lab: {options.name}: booting {options.release} ({accelerator()})", flush=True)
    guest.wait_agent()
    guest.wait_booted()
    _describe(options.name, guest)
    return 0


def _describe(name: str, guest: Guest) -> None:
    print(f"{name} is up: {guest.release}, process {guest.pid}")
    print(f"  agent    address: {guest.agent_socket}")
    print(f"  monitor  {guest.qmp_socket}")
    print(f"  console  python3 -m lab console {name} -- COMMAND")
    if guest.ssh_port is not None:
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        print(f"  ssh      ssh -i {guest.ssh_key} -p {guest.ssh_port} {options} root@127.0.0.1")
    print(f"  end it   python3 -m lab down {name}")


def _down(options: argparse.Namespace) -> int:
    names = [state.parent.name for state in _states()] if options.all else [options.name]
    for name in names:
        _existing(name).stop()
        shutil.rmtree(_state(name).parent)
        print(f"{name} is down")
    return 0


def _list(_options: argparse.Namespace) -> int:
    for state in _states():
        guest = _attach(state)
        what = f"process {guest.pid}" if guest.alive() else "ended; `down` forgets it"
        print(f"{state.parent.name}\t{guest.release}\t{guest.agent_socket}\t{what}")
    return 0


def _console(options: argparse.Namespace) -> int:
    status, output = _existing(options.name).run(" ".join(options.command), check=False)
    sys.stdout.buffer.write(output.encode("utf-8", "surrogateescape"))
    return status


def _agent(options: argparse.Namespace) -> int:
    # A signal to end is the normal way to end, so turn it into the same exception as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with LooseAgent(options.release) as agent:
        print(f"address: {agent.agent_socket}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print()
    return 0


def _state(name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise LabError(f"not a name for a guest: {name!r}; letters, digits, - and _ will do")
    return host.cache_root() / "guests" / name / "guest.json"


def _states() -> list[Path]:
    return sorted((host.cache_root() / "guests").glob("*/guest.json"))


def _attach(state: Path) -> Guest:
    return Guest.attach(json.loads(state.read_text(encoding="utf-8")))


def _existing(name: str) -> Guest:
    state = _state(name)
    if not state.exists():
        raise LabError(f"no guest is called {name}; start it: python3 -m lab up {name}")
    return _attach(state)


if __name__ == "__main__":
    sys.exit(main())
