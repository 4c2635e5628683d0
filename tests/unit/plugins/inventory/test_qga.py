# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin as ansible-core uses it, with agents that follow a script."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import constants
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins import inventory as inventory_plugins
from ansible.plugins.loader import inventory_loader
from ansible.template import Templar
from ansible.utils.display import Display
from ansible.vars.manager import VariableManager

from ansible_collections.qemu.guest.plugins.inventory import qga
from ansible_collections.qemu.guest.tests.unit.scripted import Scripted

TRICK = "{{ lookup('pipe', 'touch %s') }}{%% set x = 1 %%}{# gone #}"


class Place:
    """A directory with sockets of agents, and inventories for them."""

    def __init__(self, directory: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self._stack = stack
        self.warnings: list[str] = []
        self.agents: dict[str, Scripted] = {}
        monkeypatch.setattr(Display, "warning", lambda _self, text, *_rest, **_more: self.warnings.append(text))

    def add_agent(self, name: str, osinfo: Any = None, hostname: str = "", addresses: tuple[str, ...] = ()) -> None:
        answers = {
            "guest-get-osinfo": osinfo or {"id": "debian"},
            "guest-get-host-name": {"host-name": hostname or name},
            "guest-network-get-interfaces": [{"name": "e", "ip-addresses": [{"ip-address": a} for a in addresses]}],
        }
        self.agents[name] = self._stack.enter_context(Scripted(self.directory / f"{name}.qga", answers))

    def add_silent(self, name: str) -> None:
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(self.directory / f"{name}.qga"))
        listener.listen(8)

    @contextmanager
    def process(self, program: str, *arguments: str) -> Iterator[None]:
        """Run a program of this name that calls itself QEMU."""
        there = self.directory / program
        shutil.copy("/bin/dash", there)
        argv = ["qemu-system-x86_64", "-c", "read -r x", *arguments]
        with subprocess.Popen(argv, executable=there, stdin=subprocess.PIPE):
            yield

    def inventory(self, before: dict[str, Any] | None = None, extra: Any = None, **options: Any) -> InventoryManager:
        """Return the inventory of a file with these options, after one with the hosts and groups ``before``."""
        config = {
            "plugin": "qemu.guest.qga",
            "sources": ["sockets"],
            "sockets": [f"{self.directory}/*.qga"],
            "timeout": 2,
            "strict": False,
            **options,
        }
        sources = []
        if before is not None:
            sources.append(str(self.directory / "before.yml"))
            Path(sources[0]).write_text(yaml.safe_dump(before))
        sources.append(str(self.directory / "guests.qga.yml"))
        Path(sources[-1]).write_text(yaml.safe_dump(config))
        self.loader = DataLoader()
        return InventoryManager(self.loader, sources)

    def variables(self, inventory: InventoryManager, host: str) -> dict[str, Any]:
        return dict(VariableManager(self.loader, inventory).get_vars(host=inventory.get_host(host)))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED", "true")
    with ExitStack() as stack:
        yield Place(tmp_path, stack, monkeypatch)


def names(inventory: InventoryManager) -> list[str]:
    return sorted(host.name for host in inventory.get_hosts())


def members(inventory: InventoryManager, group: str) -> list[str]:
    return sorted(host.name for host in inventory.groups[group].get_hosts())


def templated(place: Place, variables: dict[str, Any], text: str) -> Any:
    """Return what a play makes of a template of the user's."""
    template = text
    try:
        from ansible.template import trust_as_template
    except ImportError:  # before ansible-core 2.19
        pass
    else:
        template = trust_as_template(text)
    return Templar(place.loader, variables=variables).template(template)


# What is found


def test_plain(place: Place) -> None:
    place.add_agent("web")
    place.add_silent("mute")
    inventory = place.inventory(timeout=0.5)
    assert names(inventory) == ["mute", "web"]
    web = inventory.get_host("web").vars
    expected = {
        "ansible_connection": "qemu.guest.qga",
        "ansible_qga_address": f"{place.directory}/web.qga",
        "qga_hypervisor": "localhost",
        "qga_name": "web",
        "qga_qmp_address": "",
        "qga_reason": "",
        "qga_source": "sockets",
        "qga_state": "answers",
        "qga_tags": [],
        "qga_user": "",
        "qga_uuid": "",
        "qga_vmid": "",
    }
    assert {name: value for name, value in web.items() if not name.startswith("inventory_")} == expected
    assert inventory.get_host("mute").vars["qga_state"] == "silent"
    (warning,) = place.warnings
    assert "no answer from 1 guest: mute on localhost: no answer to a sync within 0.5 s" in warning


def test_constructed(place: Place) -> None:
    place.add_agent("web", {"id": "debian"})
    place.add_agent("db", {"id": "fedora"}, addresses=("127.0.0.1", "192.0.2.7"))
    inventory = place.inventory(
        gather=["osinfo", "addresses"],
        compose={"first": "qga_addresses | first | default('none')"},
        groups={"reached": "qga_addresses | length > 0"},
        keyed_groups=[
            {"key": "qga_osinfo.id", "prefix": "os", "parent_group": "systems"},
            {"key": "qga_osinfo", "separator": ""},
        ],
        leading_separator=False,
    )
    assert members(inventory, "os_debian") == ["web"] and members(inventory, "systems") == ["db", "web"]
    assert members(inventory, "idfedora") == ["db"] and members(inventory, "reached") == ["db"]
    assert [inventory.get_host(name).vars["first"] for name in ("db", "web")] == ["192.0.2.7", "none"]
    assert not place.warnings


def test_strict_makes_errors_fatal(place: Place) -> None:
    place.add_agent("web")
    for options in ({"compose": {"x": "nope"}}, {"filters": ["nope"]}, {"hostnames": ["nope"]}):
        assert names(place.inventory(**options)) == ([] if "filters" in options else ["web"])
        with pytest.raises(AnsibleError, match="nope"):
            parse(place, strict=True, **options)


def parse(place: Place, **options: Any) -> None:
    """Let the plugin itself parse, so that its own errors show."""
    place.inventory(**options)
    plugin = inventory_loader.get("qemu.guest.qga")
    manager = InventoryManager(place.loader, [])
    plugin.parse(manager._inventory, place.loader, str(place.directory / "guests.qga.yml"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout should be"),
        ({"hypervisor_timeout": -1}, "hypervisor_timeout should be"),
        ({"sockets": ["run/*.qga"]}, "'run/\\*.qga' should be an absolute path"),
        ({"hypervisors": ["-oProxyCommand=touch x"]}, "neither a host nor a destination"),
        ({"gather": ["everything"]}, "everything"),
        ({"sources": ["clouds"]}, "clouds"),
        ({"hypervisors": ["localhost", 5]}, "hypervisors: 5 should be a text"),
        ({"exclude": [True]}, "exclude: True should be a text"),
        ({"hostnames": [None]}, "hostnames: None should be a text"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str, place: Place) -> None:
    with pytest.raises(AnsibleError, match=message):
        parse(place, **options)


def test_misspelt_option_is_told(place: Place) -> None:
    place.add_agent("web")
    assert names(place.inventory(exclud=["true"])) == ["web"]
    assert place.warnings == ["qemu.guest.qga: there is no option exclud"]


def test_files(tmp_path: Path) -> None:
    plugin = inventory_loader.get("qemu.guest.qga")
    for name, expected in (("a.qga.yml", True), ("a.qga.yaml", True), ("qga.yml", True), ("a.yml", False)):
        (tmp_path / name).touch()
        assert plugin.verify_file(str(tmp_path / name)) is expected
    assert not plugin.verify_file(str(tmp_path / "none.qga.yml"))


def test_examples_have_options_that_exist(place: Place) -> None:
    example = Path(qga.__file__).parents[2] / "playbooks" / "inventory" / "guests.qga.yml"
    texts = [*yaml.safe_load_all(qga.EXAMPLES), yaml.safe_load(example.read_text())]
    assert len(texts) > 4
    for text in texts:
        parse(place, **{**text, "hypervisors": [], "sources": ["sockets"], "cache": False})
        plugin = inventory_loader.get("qemu.guest.qga")
        assert set(text) <= set(constants.config.get_configuration_definitions("inventory", plugin._load_name))


# Choosing


def test_filters_and_exclude(place: Place) -> None:
    for name in ("web", "db", "old"):
        place.add_agent(name, {"id": name})
    inventory = place.inventory(
        gather=["osinfo"], filters=["qga_state == 'answers'", "qga_name != 'db'"], exclude=["qga_osinfo.id == 'old'"]
    )
    assert names(inventory) == ["web"]
    assert not place.agents["db"].requests, "who is out by name is not asked"
    assert place.agents["old"].requests


def test_filter_on_what_is_absent_until_a_guest_was_asked(place: Place) -> None:
    place.add_agent("web")
    assert names(place.inventory(gather=["hostname"], exclude=["qga_hostname is not defined"])) == ["web"]


def test_filter_that_fails_warns_once(place: Place) -> None:
    place.add_agent("web")
    place.add_agent("db")
    assert names(place.inventory(exclude=["nope.x == 1"])) == ["db", "web"]
    (warning,) = place.warnings
    assert "exclude: nope.x == 1 is false for some guests" in warning


def test_without_the_silent(place: Place) -> None:
    place.add_agent("web")
    place.add_silent("mute")
    assert names(place.inventory(include_silent=False, timeout=0.5)) == ["web"]


# Names


def test_host_name_and_address(place: Place) -> None:
    place.add_agent("a", hostname="web.example.com")
    place.add_agent("b", hostname="-bad", addresses=("2001:db8::1", "192.0.2.7"))
    inventory = place.inventory(hostnames=["hostname", "address", "name"])
    assert names(inventory) == ["192.0.2.7", "web.example.com"]
    assert any("b on localhost: not named '-bad'" in warning for warning in place.warnings)


def test_expression(place: Place) -> None:
    place.add_agent("a")
    assert names(place.inventory(hostnames=["nope.nope", "qga_name ~ '.vms'"])) == ["a.vms"]


BEFORE = {"all": {"hosts": {"db1": {"precious": 1}, "web": {"mine": 2}}, "children": {"webservers": {}}}}


@pytest.mark.parametrize("hostnames", [["hostname", "name"], ["qga_hostname", "qga_name"]])
def test_guest_cannot_take_the_name_of_another_host(hostnames: list[str], place: Place) -> None:
    place.add_agent("evil", hostname="db1")
    inventory = place.inventory(before=BEFORE, gather=["hostname"], hostnames=hostnames)
    assert names(inventory) == ["db1", "evil", "web"]
    assert "ansible_connection" not in inventory.get_host("db1").vars


@pytest.mark.parametrize("hostnames", [["name"], ["qga_name"]])
def test_hypervisors_name_adds_to_a_host(hostnames: list[str], place: Place) -> None:
    place.add_agent("web")
    inventory = place.inventory(before=BEFORE, hostnames=hostnames)
    web = inventory.get_host("web").vars
    assert (web["mine"], web["ansible_connection"]) == (2, "qemu.guest.qga")


def test_process_of_a_stranger_takes_no_name_of_another_host(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qga, "QEMU_USERS", ())
    name = f"inv{os.getpid()}"
    before = {"all": {"hosts": {name: {"precious": 1}}}}
    options: dict[str, Any] = {"before": before, "sources": ["process"], "filters": [f"qga_name == '{name}'"]}
    with place.process("qemu-system-x86_64", "-name", name):
        mine = place.inventory(**options)
        monkeypatch.setattr(qga, "_me", lambda: "another")
        theirs = place.inventory(**options)
    assert names(mine) == [name] and "ansible_connection" in mine.get_host(name).vars
    assert len(names(theirs)) == 2 and "ansible_connection" not in theirs.get_host(name).vars


def test_program_that_only_calls_itself_qemu(place: Place) -> None:
    name = f"inv{os.getpid()}"
    with place.process("another", "-name", name):
        assert names(place.inventory(sources=["process"], filters=[f"qga_name == '{name}'"])) == []


def test_two_files_that_find_one_guest(place: Place) -> None:
    place.add_agent("web")
    place.inventory()
    (place.directory / "guests.qga.yml").rename(place.directory / "first.qga.yml")
    place.inventory(gather=["hostname"])
    sources = [str(place.directory / name) for name in ("first.qga.yml", "guests.qga.yml")]
    inventory = InventoryManager(place.loader, sources)
    assert names(inventory) == ["web"] and inventory.get_host("web").vars["qga_hostname"] == "web"
    assert not place.warnings


def test_guest_cannot_take_the_name_of_a_group(place: Place) -> None:
    place.add_agent("webservers")
    place.add_agent("composed")
    inventory = place.inventory(before=BEFORE, groups={"composed": "true"}, hostnames=["name"])
    assert not {"webservers", "composed"} & set(names(inventory))
    assert not inventory.groups["webservers"].vars and len(members(inventory, "composed")) == 2


def test_two_of_one_name(place: Place) -> None:
    place.add_agent("a", hostname="same")
    place.add_agent("b", hostname="same")
    inventory = place.inventory(hostnames=["hostname"])
    assert len(names(inventory)) == 2 and all(name.startswith("same-") for name in names(inventory))
    assert any("2 guests are called same" in warning for warning in place.warnings)


# What guests say is text


# Every option that takes names or values from what guests say.
TAKES_WHAT_GUESTS_SAY: dict[str, Any] = {
    "gather": ["osinfo", "hostname"],
    "hostnames": ["qga_osinfo.id", "hostname", "name"],
    "compose": {"composed": "qga_osinfo.id", "longer": "'x' ~ qga_hostname", "nested": "{'a': [qga_hostname]}"},
    "groups": {"same": "qga_hostname == qga_osinfo.id"},
    "keyed_groups": [
        {"key": "qga_osinfo.id", "prefix": "os", "parent_group": "{{ qga_osinfo.id }}"},
        {"key": "qga_osinfo", "prefix": "x"},
        {"key": "[qga_hostname]", "prefix": "", "separator": ""},
    ],
    "filters": ["qga_hostname"],
}


@pytest.mark.parametrize("use_extra_vars", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_nothing_is_templated(cached: bool, use_extra_vars: bool, place: Place) -> None:
    proof = place.directory / "proof"
    trick = TRICK % proof
    place.add_agent("web", {"id": trick, "pretty-name": trick, trick: trick}, hostname=trick)
    options: dict[str, Any] = {**TAKES_WHAT_GUESTS_SAY, "use_extra_vars": use_extra_vars}
    if cached:
        options |= {
            "cache": True,
            "cache_plugin": "ansible.builtin.jsonfile",
            "cache_connection": str(place.directory / "cache"),
        }
        place.inventory(**options)
        assert len(list((place.directory / "cache").iterdir())) == 1
        before = len(place.agents["web"].requests)
    inventory = place.inventory(**options)
    if cached:
        assert len(place.agents["web"].requests) == before, "the second time it was in the cache"
    assert names(inventory) == ["web"]
    variables = place.variables(inventory, "web")
    for expression in ("qga_hostname", "qga_osinfo.id", "composed", "nested.a[0]", "hostvars_like.a"):
        values = {**variables, "hostvars_like": {"a": variables["qga_hostname"]}}
        assert templated(place, values, f"{{{{ {expression} }}}}") == trick
    assert templated(place, variables, "{{ longer }}") == f"x{trick}"
    # A second look, as set_fact and vars do, changes nothing.
    variables["again"] = variables["composed"]
    assert templated(place, variables, "{{ again }}") == trick
    safe = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
    assert all(set(group) <= safe for group in inventory.groups)
    assert members(inventory, "same") == ["web"]
    assert not proof.exists()


def test_names_of_processes_and_configurations_are_text(place: Place) -> None:
    proof = place.directory / "proof"
    trick = f"{TRICK % proof}$(touch {proof})"
    (place.directory / "pve" / "qemu-server").mkdir(parents=True)
    (place.directory / "pve" / "qemu-server" / "100.conf").write_text(f"agent: 1\nname: {trick}\ntags: a;{trick}\n")
    argv = ["-name"]
    argv += [
        f"guest={trick.replace(',', ',,')}",
        "-chardev",
        f"socket,id=c,path={trick.replace(',', ',,')},server=on",
        "-device",
    ]
    argv += ["virtserialport,chardev=c,name=org.qemu.guest_agent.0"]
    with place.process("qemu-system-x86_64", *argv):
        inventory = place.inventory(
            sources=["process", "proxmox"],
            proxmox_config_dir=str(place.directory / "pve"),
            filters=[f"'{proof}' in qga_name"],
            keyed_groups=[{"key": "qga_tags", "prefix": "tag"}, {"key": "qga_name", "prefix": "name"}],
            compose={"composed": "qga_name"},
        )
    assert len(names(inventory)) == 2 and all(name.startswith("guest-") for name in names(inventory))
    for name in names(inventory):
        variables = place.variables(inventory, name)
        for expression in ("qga_name", "composed"):
            assert templated(place, variables, f"{{{{ {expression} }}}}") == trick
    assert {host.vars["qga_state"] for host in inventory.get_hosts()} == {"off", "silent"}
    assert not proof.exists()


def test_control_characters_become_visible(place: Place) -> None:
    place.add_agent("web", {"id": "a\x1b[2J\nb\u202e"}, hostname="x" * 5000)
    inventory = place.inventory(gather=["osinfo", "hostname"])
    web = inventory.get_host("web").vars
    assert web["qga_osinfo"]["id"] == "a\\x1b[2J b\\u202e" and len(web["qga_hostname"]) < 1100


@pytest.mark.parametrize("value", ["all", "ungrouped", "web", "self"])
def test_groups_that_would_do_harm(value: str, place: Place) -> None:
    place.add_agent("web", {"id": value})
    place.add_agent("db", {"id": "self"})
    inventory = place.inventory(
        gather=["osinfo"],
        keyed_groups=[{"key": "qga_osinfo.id", "prefix": "", "separator": "", "parent_group": "self"}],
    )
    assert names(inventory) == ["db", "web"]
    assert "web" not in inventory.groups or value != "web"
    assert [host.name for host in inventory.groups["all"].hosts] == []
    assert inventory.get_host("web").vars["qga_state"] == "answers"


def test_group_key_of_a_wrong_type_spoils_nothing(place: Place) -> None:
    place.add_agent("a", {"id": 5})
    place.add_agent("b", {"id": "debian"})
    inventory = place.inventory(gather=["osinfo"], keyed_groups=[{"key": "qga_osinfo.id", "prefix": "os"}])
    assert names(inventory) == ["a", "b"] and members(inventory, "os_debian") == ["b"]


# The cache


def test_cache_is_not_used_for_other_options_or_what_is_broken(place: Place) -> None:
    place.add_agent("web")
    directory = place.directory / "cache"
    options: dict[str, Any] = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile"}
    options["cache_connection"] = str(directory)
    place.inventory(**options)
    (file,) = directory.iterdir()
    assert "hostname" not in place.agents["web"].work
    place.inventory(gather=["hostname"], **options)
    assert len(list(directory.iterdir())) == 2
    for broken in ('{"format": 1}', '{"format": 1, "guests": [{"name": 5}]}', '{"format": 0, "guests": []}', "[]", "{"):
        file.write_text(broken)
        assert names(place.inventory(**options)) == ["web"]


def test_cache_is_not_used_for_other_extra_variables(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("web", "db"):
        place.add_agent(name)
    options: dict[str, Any] = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "use_extra_vars": True}
    options["cache_connection"] = str(place.directory / "cache")
    for left in ("web", "db"):
        monkeypatch.setattr(inventory_plugins, "load_extra_vars", lambda loader, left=left: {"left": left})
        assert names(place.inventory(filters=["qga_name == left"], **options)) == [left]


# Hypervisors


def test_machines_that_are_this_one(place: Place) -> None:
    place.add_agent("web")
    group = {"hosts": {"one": {}}, "vars": {"ansible_connection": "{{ kind }}"}}
    before = {"all": {"children": {"hypervisors": group}, "vars": {"kind": "local"}}}
    for hypervisors in (["one"], ["hypervisors"], ["localhost", "one"]):
        inventory = place.inventory(before=before, hypervisors=hypervisors)
        assert names(inventory) == ["one", "web"]
        assert inventory.get_host("web").vars["qga_hypervisor"] == "localhost"
        assert "ansible_qga_hypervisor" not in inventory.get_host("web").vars


def test_extra_variables_count_for_the_login(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add_agent("web")
    extra = {"ansible_connection": "local"}
    monkeypatch.setattr(inventory_plugins, "load_extra_vars", lambda loader: extra)
    before = {"all": {"hosts": {"one": {"ansible_connection": "ssh", "ansible_ssh_executable": "/nonexistent"}}}}
    assert names(place.inventory(before=before, hypervisors=["one"])) == ["one", "web"]


def test_guest_with_the_name_of_a_hypervisor(place: Place) -> None:
    place.add_agent("one")
    inventory = place.inventory(
        before={"all": {"hosts": {"one": {"ansible_connection": "local"}}}}, hypervisors=["one"]
    )
    assert inventory.get_host("one").vars["ansible_connection"] == "local"
    assert len(names(inventory)) == 2


def test_hypervisor_that_is_down_is_named_and_the_cache_left_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.add_agent("web")
    program = place.directory / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'ssh: connect to host hv1 port 22: Connection refused' >&2\nexit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    cache = place.directory / "cache"
    inventory = place.inventory(
        hypervisors=["localhost", "hv1"], cache=True, cache_plugin="jsonfile", cache_connection=str(cache)
    )
    assert names(inventory) == ["web"]
    assert any("the guests of hv1 are missing" in each and "Connection refused" in each for each in place.warnings)
    assert not list(cache.iterdir()) if cache.exists() else True


def test_processes_of_tasks_inherit_the_connection(tmp_path: Path) -> None:
    """To load it takes a third of a quick task, and each task has a process of its own."""
    source = tmp_path / "guests.qga.yml"
    source.write_text("plugin: qemu.guest.qga\nsources: [sockets]\n", encoding="utf-8")
    program = """
import sys
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader(sys.argv[1:2])
name = "ansible_collections.qemu.guest.plugins.connection.qga"
assert name not in sys.modules
InventoryManager(DataLoader(), sys.argv[2])
print(name in sys.modules)
"""
    collections = Path(qga.__file__).parents[5]
    argv = [sys.executable, "-c", program, str(collections), str(source)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
