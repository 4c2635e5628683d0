# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a QEMU command line says: the guest's name and UUID, and where its agent and its monitor listen.

Pure functions: nothing is opened or looked up. The command line may be anybody's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

__all__ = ("Found", "is_qemu", "parse", "split_options")

AGENT_PORT = "org.qemu.guest_agent.0"
UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")

# NixOS wraps programs: .qemu-system-x86_64-wrapped.
_PROGRAM = re.compile(r"\.?(qemu-system-[\w.+-]+|qemu-kvm|kvm)")  # look.sh looks for them, too
_VMID = re.compile(r"[0-9]{1,9}")  # -id is an option of Proxmox's QEMU
_ON = ("", "on", "yes", "y", "true", "1")
_RUNS_WITH_ROOT = re.compile(r"([^,]+,)?chroot=")
_SAYS_AGENT = re.compile(r"qga|guest[_-]?agent|agent\.sock", re.IGNORECASE)
_IMPLIED = {"name": "guest", "device": "driver", "chardev": "backend", "mon": "chardev", "smbios": "type"}
_TAKEN = {*_IMPLIED, "uuid", "qmp", "qmp-pretty", "serial", "id"}
_SERIAL_DEVICES = ("isa-serial", "pci-serial", "usb-serial")
_MOST_ARGUMENTS = 4096
_ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}

Options = dict[str, str]


class Place(NamedTuple):
    """The directory of relative paths, empty if unknown, and that of absolute ones, empty if it is ours."""

    directory: str
    root: str = ""


class Found(NamedTuple):
    """What a command line says. ``libvirts``: libvirt has the agent's socket and serves it to nobody else."""

    name: str = ""
    uuid: str = ""
    vmid: str = ""
    agent: str = ""
    qmp: str = ""
    has_agent: bool = False
    libvirts: bool = False


def is_qemu(arguments: Sequence[str]) -> bool:
    """Return whether this is the command line of a QEMU that runs a guest."""
    return bool(arguments) and bool(_PROGRAM.fullmatch(os.path.basename(arguments[0]).removesuffix("-wrapped")))


def parse(arguments: Sequence[str], directory: str, root: str = "") -> Found:
    """Return what the command line ``arguments`` says.

    ``directory`` is that of its relative paths, if it is known, and ``root`` that of the absolute ones, if it is a
    container's.
    """
    given = list(_options(arguments[1:_MOST_ARGUMENTS]))
    place = _place(arguments, directory, root)
    chardevs = {options.get("id", ""): options for name, options in given if name == "chardev"}
    # What libvirt starts has a monitor of this name, and gets its sockets as descriptors or in libvirt's directory.
    libvirts = "charmonitor" in chardevs
    agent = _agent_chardev(given, chardevs)
    names = [options["guest"] for name, options in given if name == "name" and options.get("guest")]
    return Found(
        name=names[-1] if names else "",
        uuid=_uuid(given),
        vmid=next((o[""] for name, o in given if name == "id" and _VMID.fullmatch(o[""])), ""),
        agent="" if agent is None or libvirts else _address(agent, place),
        qmp="" if libvirts else _qmp(given, chardevs, place),
        has_agent=agent is not None,
        libvirts=libvirts,
    )


def _place(arguments: Sequence[str], directory: str, root: str) -> Place:
    """Return where the paths of a QEMU were when it opened its sockets: it has left these directories since."""
    is_daemon = {"-daemonize", "--daemonize"} & {*arguments}
    # -chroot DIR, or -runwith chroot=DIR.
    has_moved = {"-chroot", "--chroot"} & {*arguments} or any(map(_RUNS_WITH_ROOT.match, arguments))
    return Place("" if is_daemon else directory, "" if has_moved else root)


def split_options(text: str, implied: str = "") -> Options:
    """Return the options of ``a,b=c,,d``: a doubled comma is one in the value, ``implied`` names a first bare word."""
    if text.startswith("{"):
        with suppress(ValueError, RecursionError):
            return _flat(json.loads(text))
    options: Options = {}
    for index, part in enumerate(re.findall(r"(?:[^,]|,,)+", text)):
        word, equals, value = part.replace(",,", ",").partition("=")
        if equals:
            options[word] = value
        elif index == 0 and implied:
            options[implied] = word
        else:
            options[word] = ""
    return options


def _flat(value: dict[str, Any]) -> Options:
    """Return the options of a JSON argument, with those of nested objects under their own names."""
    options: Options = {}
    stack: list[tuple[str, Any]] = list(reversed(value.items()))
    while stack:
        name, item = stack.pop()
        if isinstance(item, dict):
            stack.extend(reversed(item.items()))
        elif isinstance(item, bool):
            options.setdefault(name, "on" if item else "off")
        elif isinstance(item, (str, int)):
            options.setdefault(name, str(item))
    if isinstance(value.get("backend"), dict):
        options["backend"] = str(value["backend"].get("type", ""))
        options.setdefault("server", "on")  # the default of this form, and of no other
    return options


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, Options]]:
    """Yield the options that matter, with their arguments taken apart."""
    index = 0
    while index < len(arguments):
        name = arguments[index].removeprefix("-").removeprefix("-")
        index += 1
        if name in _TAKEN and arguments[index - 1].startswith("-") and index < len(arguments):
            text = arguments[index]
            index += 1
            yield name, split_options(text, _IMPLIED[name]) if name in _IMPLIED else {"": text}


def _uuid(given: Sequence[tuple[str, Options]]) -> str:
    """Return the guest's UUID: that of -uuid, or that of the SMBIOS system, which is how Proxmox gives it."""
    said = [options[""] for name, options in reversed(given) if name == "uuid"]
    said += [o.get("uuid", "") for name, o in given if name == "smbios" and o.get("type") == "1"]
    return next((text.lower() for text in said if UUID.fullmatch(text)), "")


def _agent_chardev(given: Sequence[tuple[str, Options]], chardevs: dict[str, Options]) -> Options | None:
    """Return the options of the chardev behind the agent's port, or of a serial port that is said to be one."""
    devices = [options for name, options in given if name == "device"]
    for device in devices:
        if device.get("driver") == "virtserialport" and device.get("name") == AGENT_PORT:
            return chardevs.get(device.get("chardev", ""), {})
    serial = [chardevs.get(d.get("chardev", ""), {}) for d in devices if d.get("driver") in _SERIAL_DEVICES]
    for text in (options[""] for name, options in given if name == "serial"):
        serial.append(_legacy(text, chardevs))
    return next((c for c in serial if _SAYS_AGENT.search(f"{c.get('id', '')} {c.get('path', '')}")), None)


def _legacy(text: str, chardevs: Mapping[str, Options]) -> Options:
    """Return the chardev of ``unix:/path,server=on``, ``tcp:host:port,server=on`` or ``chardev:ID``."""
    kind, colon, rest = text.partition(":")
    if kind == "chardev":
        return chardevs.get(rest, {})
    if not colon or kind not in ("unix", "tcp"):
        return {}
    options = split_options(rest, "path")
    if kind == "tcp":
        host, _colon, port = options.pop("path", "").rpartition(":")
        options.update(host=host.strip("[]"), port=port)
    return {"backend": "socket", **options}


def _address(chardev: Options, place: Place) -> str:
    """Return the agent's address at ``chardev``; empty if nobody can connect there."""
    serves = chardev.get("server", "off").lower() in _ON
    if chardev.get("backend", "socket") != "socket" or not serves:
        return ""
    path = chardev.get("path", "")
    is_abstract = chardev.get("abstract", "off").lower() in _ON
    if place.root and (is_abstract or not path):
        return ""  # a container has a network of its own
    if path and is_abstract:
        return f"unix:@{path}" if chardev.get("tight", "on").lower() in _ON else ""
    if path:
        path = f"{place.root}{path}" if path.startswith("/") else os.path.join(place.directory, path)
        path = os.path.normpath(path)
        return f"unix:{path}" if path.startswith("/") else ""
    port = chardev.get("port", "")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        return ""
    host = _ANYWHERE.get(chardev.get("host", ""), chardev.get("host", ""))
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def _qmp(given: Sequence[tuple[str, Options]], chardevs: Mapping[str, Options], place: Place) -> str:
    """Return the address of the first QMP monitor that serves."""
    monitors = [_legacy(options[""], chardevs) for name, options in given if name in ("qmp", "qmp-pretty")]
    for name, options in given:
        if name == "mon" and options.get("mode") == "control":
            monitors.append(chardevs.get(options.get("chardev", ""), {}))
    return next(filter(None, (_address(monitor, place) for monitor in monitors if monitor)), "")
