#!/usr/bin/env bash
# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-core 2.19.14: gather_facts runs the module of a fact module that has an action plugin, and never the action.
#
# A collection's action plugin stands before the module of its name: that is how a device that cannot run Python is
# served from the controller. A task that names the module runs the action. gather_facts, told by ansible_facts_modules
# to gather by that module, sends the module to the host instead, where it needs Python. So a connection to hosts
# without Python cannot have its facts gathered by an action, although each task of that name works there.
set -euo pipefail
version=2.19.14
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check "ansible-core==$version"
plugins=ansible_collections/site/here/plugins
mkdir -p "$plugins/action" "$plugins/modules"
cat >"$plugins/modules/where.py" <<'END'
#!/usr/bin/python
import json

print(json.dumps({"changed": False, "ansible_facts": {"answered": "the module"}}))
END
cat >"$plugins/action/where.py" <<'END'
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return {"changed": False, "ansible_facts": {"answered": "the action"}}
END
cat >play.yml <<'END'
- hosts: localhost
  connection: local
  vars:
    ansible_facts_modules: site.here.where
  tasks:
    - debug: {msg: "gather_facts: {{ ansible_facts['answered'] }}"}
    - site.here.where:
    - debug: {msg: "a task: {{ ansible_facts['answered'] }}"}
END
ANSIBLE_HOME=$work/home ANSIBLE_COLLECTIONS_PATH=$work ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_NOCOLOR=1 \
    venv/bin/ansible-playbook play.yml 2>&1 | grep -o '"msg": .*' | tee seen
diff seen - <<'END'
"msg": "gather_facts: the module"
"msg": "a task: the action"
END
echo "gather_facts of ansible-core $version passes the action by"
