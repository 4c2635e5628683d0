# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather the facts of a play here: ansible-core runs fact modules as modules, which would need Python in the guest."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.qemu.guest.plugins.module_utils._module.run import argument_spec
from ansible_collections.qemu.guest.plugins.modules.qga_facts import OPERATION
from ansible_collections.qemu.guest.plugins.plugin_utils._run_here import Connected, is_own, run_here

__all__ = ("gathered",)

# The module's name and its arguments, in payloads of ansible-core 2.16 to 2.22.
_MODULE = re.compile(rb"\b(?:mod_name|module_fqn)='ansible_collections\.qemu\.guest\.plugins\.modules\.qga_facts',")
_ARGUMENTS = re.compile(rb"^ *(?:ANSIBALLZ_PARAMS = |params=)(['\"].*['\"]),?$", re.MULTILINE)


def gathered(connection: Connected, payload: bytes) -> bytes | None:
    """Return what the module qga_facts prints; None if ``payload`` is another module.

    :raise AnsibleConnectionFailure: if the agent cannot be reached.
    """
    arguments = _ARGUMENTS.search(payload) if _MODULE.search(payload) else None
    if not arguments:
        return None
    given = json.loads(ast.literal_eval(arguments.group(1).decode("utf-8")))["ANSIBLE_MODULE_ARGS"]
    return json.dumps(_result(connection, {k: v for k, v in given.items() if not k.startswith("_")})).encode("utf-8")


def _result(connection: Connected, given: dict[str, Any]) -> dict[str, Any]:
    validated = ArgumentSpecValidator(argument_spec(OPERATION)).validate(given)
    if validated.error_messages:
        return {"failed": True, "msg": " ".join(validated.error_messages)}
    address = given.get("address")
    if address and not is_own(connection, str(address)):
        return {"failed": True, "msg": f"{address} is not the agent of this host's connection: leave address out."}
    return run_here(OPERATION, connection, validated.validated_parameters)
