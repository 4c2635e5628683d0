# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines as people, libvirt, Proxmox VE, Ganeti and clouds write them."""

from __future__ import annotations

import shlex

import pytest

from ansible_collections.qemu.guest.plugins.plugin_utils._inventory.command_line import (
    Found,
    is_qemu,
    parse,
    split_options,
)

UUID = "6f1c4f3e-9d1b-4d54-9a57-0d8a3a1f2b3c"
PORT = "-device virtio-serial -device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"
LIBVIRT_PORT = (
    '{"driver":"virtserialport","bus":"virtio-serial0.0","nr":1,"chardev":"charchannel0","id":"channel0",'
    '"name":"org.qemu.guest_agent.0"}'
)
LIBVIRT = (
    "/usr/bin/qemu-system-x86_64 -name guest=web,debug-threads=on -S "
    '-object \'{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/m.aes"}\' '
    f"-machine pc,usb=off -uuid {UUID.upper()} -display none -no-user-config -nodefaults "
    "-chardev socket,id=charmonitor,fd=35,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control "
    "-rtc base=utc"
)
PROXMOX = (
    "/usr/bin/kvm -id 100 -name 'web,debug-threads=on' -no-shutdown "
    "-chardev socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect-ms=5000 -mon chardev=qmp-event,mode=control "
    "-chardev 'socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control' "
    f"-pidfile /var/run/qemu-server/100.pid -daemonize -smbios 'type=1,uuid={UUID}' -smp '2,sockets=1' "
    "-chardev 'socket,path=/var/run/qemu-server/100.qga,server=on,wait=off,id=qga0' "
    "-device 'virtio-serial,id=qga0,bus=pci.0,addr=0x8' "
    "-device 'virtserialport,chardev=qga0,name=org.qemu.guest_agent.0'"
)
GANETI = (
    "/usr/bin/kvm -name inst.example.com -m 512 -smp 1 -pidfile /var/run/ganeti/kvm-hypervisor/pid/inst.example.com "
    "-daemonize -monitor unix:/var/run/ganeti/kvm-hypervisor/ctrl/inst.example.com.monitor,server,nowait "
    "-serial unix:/var/run/ganeti/kvm-hypervisor/ctrl/inst.example.com.serial,server,nowait "
    "-device virtio-serial,id=serial0 "
    "-chardev socket,path=/var/run/ganeti/kvm-hypervisor/ctrl/inst.example.com.qga,server,nowait,id=qga0 "
    "-device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0 "
    f"-qmp unix:/var/run/ganeti/kvm-hypervisor/ctrl/inst.example.com.qmp,server,nowait -uuid {UUID} -S"
)
JSON_CHARDEV = (
    '{"id":"qga0","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/run/j.qga"}},'
    '"wait":false}}}'
)
RUN = "qemu-system-x86_64 -name guest=vm "

CASES = {
    "on": (RUN + f"-chardev socket,id=qga0,path=/run/a.qga,server=on,wait=off {PORT}", "unix:/run/a.qga"),
    "old": (RUN + f"-chardev socket,path=/run/a.qga,server,nowait,id=qga0 {PORT}", "unix:/run/a.qga"),
    "device first": (RUN + f"{PORT} -chardev socket,path=/run/a.qga,server,nowait,id=qga0", "unix:/run/a.qga"),
    "two dashes": (RUN + f"{PORT} --chardev socket,path=/run/a.qga,server=yes,id=qga0", "unix:/run/a.qga"),
    "relative": (RUN + f"-chardev socket,id=qga0,path=./a.qga,server=on {PORT}", "unix:/srv/vm/a.qga"),
    "comma": (RUN + f"-chardev socket,id=qga0,path=/run/a,,b.qga,server=on {PORT}", "unix:/run/a,b.qga"),
    "abstract": (RUN + f"-chardev socket,id=qga0,path=a.qga,abstract=on,server=on {PORT}", "unix:@a.qga"),
    "not tight": (RUN + f"-chardev socket,id=qga0,path=a,abstract=on,tight=off,server=on {PORT}", ""),
    "tcp": (RUN + f"-chardev socket,id=qga0,host=192.0.2.1,port=4444,server=on {PORT}", "tcp:192.0.2.1:4444"),
    "tcp anywhere": (RUN + f"-chardev socket,id=qga0,host=0.0.0.0,port=4444,server=on {PORT}", "tcp:127.0.0.1:4444"),
    "tcp ipv6": (RUN + f"-chardev socket,id=qga0,host=::,port=4444,server=on {PORT}", "tcp:[::1]:4444"),
    "tcp no port": (RUN + f"-chardev socket,id=qga0,host=a,port=no,server=on {PORT}", ""),
    "client": (RUN + f"-chardev socket,id=qga0,path=/run/a.qga {PORT}", ""),
    "client said so": (RUN + f"-chardev socket,id=qga0,path=/run/a.qga,server=off {PORT}", ""),
    "pty": (RUN + f"-chardev pty,id=qga0 {PORT}", ""),
    "no chardev": (RUN + PORT, ""),
    "json chardev": (RUN + f"-chardev '{JSON_CHARDEV}' {PORT}", "unix:/run/j.qga"),
    "isa by id": (RUN + "-chardev socket,id=qga,path=/run/a,server=on -device isa-serial,chardev=qga", "unix:/run/a"),
    "isa by path": (RUN + "-chardev socket,id=c,path=/a.qga,server=on -device isa-serial,chardev=c", "unix:/a.qga"),
    "serial chardev": (RUN + "-chardev socket,id=qga0,path=/run/a,server=on -serial chardev:qga0", "unix:/run/a"),
    "serial": (RUN + "-serial unix:/run/a.qga,server,nowait", "unix:/run/a.qga"),
    "quickemu": (
        RUN + "-device virtserialport,chardev=agent0,name=org.qemu.guest_agent.0 "
        "-chardev socket,path=vm-agent.sock,server=on,wait=off,id=agent0",
        "unix:/srv/vm/vm-agent.sock",
    ),
}


def found(command_line: str) -> Found:
    return parse(shlex.split(command_line), "/srv/vm")


@pytest.mark.parametrize("case", CASES)
def test_agent_address(case: str) -> None:
    command_line, address = CASES[case]
    it = found(command_line)
    assert (it.name, it.has_agent, it.agent) == ("vm", True, address)


def test_proxmox() -> None:
    assert found(PROXMOX) == Found(
        "web", UUID, "100", "unix:/var/run/qemu-server/100.qga", "unix:/var/run/qemu-server/100.qmp", True
    )


def test_ganeti() -> None:
    directory = "/var/run/ganeti/kvm-hypervisor/ctrl/inst.example.com"
    assert found(GANETI) == Found("inst.example.com", UUID, "", f"unix:{directory}.qga", f"unix:{directory}.qmp", True)


@pytest.mark.parametrize(
    "chardev", ["fd=36,server=on,wait=off", "path=/run/libvirt/qemu/channel/1-web/org.qemu.guest_agent.0,server=on"]
)
def test_libvirt_has_its_agent(chardev: str) -> None:
    it = found(f"{LIBVIRT} -chardev socket,id=charchannel0,{chardev} -device '{LIBVIRT_PORT}'")
    assert it == Found("web", UUID, has_agent=True, libvirts=True)


def test_libvirt_without_agent() -> None:
    assert found(LIBVIRT) == Found("web", UUID, libvirts=True)


@pytest.mark.parametrize(
    "monitor",
    [
        "-qmp unix:/run/m,server,nowait",
        "-qmp-pretty unix:/run/m,server=on,wait=off",
        "-chardev socket,id=m,path=/run/m,server=on -mon m,mode=control",
        "-mon chardev=m,mode=control,pretty=on -chardev socket,id=m,path=/run/m,server=on",
        "-qmp stdio -qmp unix:/run/m,server,nowait",
        "-chardev socket,id=m,path=/run/m,server=on -qmp chardev:m",
    ],
)
def test_qmp(monitor: str) -> None:
    assert found(RUN + monitor).qmp == "unix:/run/m"


@pytest.mark.parametrize(
    "monitor",
    [
        "-monitor unix:/run/m,server,nowait",
        "-chardev socket,id=m,path=/run/m,server=on -mon chardev=m,mode=readline",
        "-qmp unix:/run/m",
        "-qmp none",
        "-qmp chardev:nowhere",
        "-qmp tcp:nowhere,server",
    ],
)
def test_no_qmp(monitor: str) -> None:
    assert found(RUN + monitor).qmp == ""


def test_qmp_tcp() -> None:
    assert found(RUN + "-qmp tcp:[::1]:4445,server=on,wait=off").qmp == "tcp:[::1]:4445"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web", "web"),
        ("web,process=x", "web"),
        ("guest=web,debug-threads=on", "web"),
        ("'web 1'", "web 1"),
        ("guest=a,,b", "a,b"),
        ("debug-threads=on", ""),
        ('\'{"guest":"web","debug-threads":true}\'', "web"),
        ("one -name two", "two"),
        ("one -name debug-threads=on", "one"),
        ("'{{ x }},process=y'", "{{ x }}"),
    ],
)
def test_name(name: str, expected: str) -> None:
    assert found(f"qemu-system-x86_64 -name {name}").name == expected


def test_last_uuid_counts() -> None:
    assert found(f"kvm -uuid {UUID.replace('6', '7')} -uuid {UUID}").uuid == UUID


AGENT = f"{PORT} -chardev socket,id=qga0,server=on"


@pytest.mark.parametrize(
    ("arguments", "agent"),
    [
        ("path=/run/a", "unix:/proc/7/root/run/a"),
        ("path=a", "unix:/proc/7/cwd/a"),
        ("path=/run/a,abstract=on", ""),
        ("host=127.0.0.1,port=5", ""),
        ("path=/run/a -chroot /srv", "unix:/run/a"),
        ("path=/run/a -runwith user=joe,chroot=/srv", "unix:/run/a"),
    ],
)
def test_container(arguments: str, agent: str) -> None:
    it = parse(shlex.split(f"kvm {AGENT},{arguments}"), "/proc/7/cwd", "/proc/7/root")
    assert (it.has_agent, it.agent) == (True, agent)


@pytest.mark.parametrize("option", ["-daemonize", "--daemonize"])
def test_daemon_has_left_its_directory(option: str) -> None:
    assert found(f"kvm {option} {AGENT},path=a").agent == ""
    assert found(f"kvm {option} {AGENT},path=/run/a").agent == "unix:/run/a"


@pytest.mark.parametrize(
    "text",
    ["qemu-system-x86_64 -uuid nonsense", "qemu-system-x86_64 -uuid", "qemu-system-x86_64 -name", "kvm -id ../1"],
)
def test_nonsense_is_nothing(text: str) -> None:
    assert found(text) == Found()


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/usr/bin/qemu-system-x86_64", True),
        ("qemu-system-aarch64", True),
        ("/usr/libexec/qemu-kvm", True),
        ("/usr/bin/kvm", True),
        ("/nix/store/x/bin/.qemu-system-x86_64-wrapped", True),
        ("/usr/bin/qemu-img", False),
        ("/usr/bin/grep", False),
        ("/home/qemu-system-x86_64/vi", False),
        ("", False),
    ],
)
def test_is_qemu(program: str, expected: bool) -> None:
    assert is_qemu([program, "-name", "x"]) is expected


def test_no_command_line() -> None:
    assert not is_qemu([])


@pytest.mark.parametrize("text", ["{", "{]", '{"a": ' * 5000, "{}", "[1]", ",,,,", "=", "a=" * 1000])
def test_split_options_survives(text: str) -> None:
    assert isinstance(split_options(text), dict)
