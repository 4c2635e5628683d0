#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-core 2.16.14 and 2.19.4: a collection's Python files are compiled anew in the process of each task.
#
# Python keeps what it has compiled in __pycache__, and ansible-core prefetches connection plugins "to be inherited by
# forks"; so one would think that a plugin costs its compilation once. That holds for plugins beside a playbook and for
# ansible-core's own. Those of collections are imported by a loader of ansible-core's that writes no __pycache__ and
# reads none, and the prefetch does not reach them: each task has a process of its own, in which the connection plugin
# and all that it imports from its collection is compiled from its source.
#
# Shown by a collection whose connection plugin imports a library, which writes down in which process it is run, and by
# the __pycache__ that is not there afterwards. A plugin of the same collection that runs in the main process, here one
# for inventories, can end that: what it loads is inherited.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
plugins=collections/ansible_collections/a/b/plugins
mkdir -p "$plugins"/{connection,inventory,plugin_utils}
cat >"$plugins/plugin_utils/library.py" <<'END'
import os

with open(os.environ["SEEN"], "a") as seen:
    print(os.getpid(), file=seen)
END
cat >"$plugins/connection/here.py" <<'END'
DOCUMENTATION = """
name: here
short_description: Runs tasks here
options: {}
"""
from ansible.plugins.connection.local import Connection as Local

from ansible_collections.a.b.plugins.plugin_utils import library


class Connection(Local):
    transport = "a.b.here"
END
cat >"$plugins/inventory/one.py" <<'END'
DOCUMENTATION = """
name: one
short_description: One host
options:
  plugin: {required: true, choices: [a.b.one]}
"""
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.plugins.loader import connection_loader


class InventoryModule(BaseInventoryPlugin):
    NAME = "a.b.one"

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        inventory.add_host("vm")
        inventory.set_variable("vm", "ansible_connection", "a.b.here")
        connection_loader.get("a.b.here", class_only=True)
END
echo 'plugin: a.b.one' >one.yml
echo 'vm ansible_connection=a.b.here' >hosts
cat >play.yml <<'END'
- hosts: all
  gather_facts: false
  tasks:
    - {name: One, ansible.builtin.raw: "true"}
    - {name: Two, ansible.builtin.raw: "true"}
    - {name: Three, ansible.builtin.raw: "true"}
END
export ANSIBLE_COLLECTIONS_PATH=$work/collections ANSIBLE_HOME=$work/home
for version in 2.16.14 2.19.4; do
    python3 -m venv "venv-$version"
    "venv-$version/bin/pip" -q --disable-pip-version-check install "ansible-core==$version"
    for inventory in hosts one.yml; do
        : >seen
        SEEN=$work/seen "venv-$version/bin/ansible-playbook" -i "$inventory" play.yml >output || { cat output; exit 1; }
        times=$(wc -l <seen) processes=$(sort -u seen | wc -l)
        kept=$(find collections -name __pycache__ | wc -l)
        echo "ansible-core $version, $inventory: 3 tasks ran the library $times times, in $processes processes;" \
            "__pycache__ directories: $kept"
        case $inventory in hosts) expected=3 ;; *) expected=1 ;; esac
        [[ $times == "$expected" && $processes == "$expected" && $kept == 0 ]]
    done
done
