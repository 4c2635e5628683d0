# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the guest: import the modules of this package from memory.

An interpreter runs this module first, as text; it then imports others under the name of PACKAGE. A module is compiled
when it is imported, unless its code was sent.
"""

from __future__ import annotations

import sys
from _frozen_importlib import ModuleSpec  # importlib.machinery takes long to import

TYPE_CHECKING = False  # true to type checkers; importing typing would take time
if TYPE_CHECKING:
    import types
    from collections.abc import Sequence

PACKAGE = "qemu_guest"


class Loader:
    """Finds and loads the modules of PACKAGE, by their names in it: from ``codes``, else from ``sources``."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources
        self.codes: dict[str, types.CodeType] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _dot, module = name.rpartition(".")
        if name != PACKAGE and (package != PACKAGE or module not in self.sources):
            return None
        return ModuleSpec(name, self, origin=f"{name}.py", is_package=name == PACKAGE)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__.rpartition(".")[2]
        if name in self.sources:
            code = self.codes.pop(name) if name in self.codes else compiled(name, self.sources[name])
            exec(code, module.__dict__)

    def get_source(self, name: str) -> str:
        """Return a module's source, for tracebacks."""
        return self.sources[name.rpartition(".")[2]]

    def program(self, names: Sequence[str], function: str) -> str:
        """Return a program for another interpreter, which calls ``function`` of the first of these modules."""
        sources = {name: self.sources[name] for name in names}
        return f"{self.sources['loader']}\n\nbegin({sources!r}, {names[0]!r})[1].{function}()\n"


def compiled(name: str, source: str) -> types.CodeType:
    """Return the code of a module, as both ends compile it."""
    code: types.CodeType = compile(source, f"{PACKAGE}.{name}.py", "exec", dont_inherit=True)
    return code


def begin(sources: dict[str, str], name: str) -> tuple[Loader, types.ModuleType]:
    """Make the modules importable; return their loader, and the module ``name``."""
    loader = Loader(sources)
    sys.meta_path.insert(0, loader)
    __import__(f"{PACKAGE}.{name}")
    return loader, sys.modules[f"{PACKAGE}.{name}"]
