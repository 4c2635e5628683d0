# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out whether KVM really runs guests here.

/dev/kvm proves little: inside a virtual machine it may exist, create a VM and then never run it, or emulate each
instruction at a ten-thousandth of the processor's speed. So run something, and enough of it: a ROM that counts down
from COUNT, which takes a processor less than a tenth of a second, and then writes to the port of QEMU's isa-debug-exit
device and so ends QEMU with an exit status that nothing else produces.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile

from lab import host

PROBE_SECONDS = 5.0
ROM_SIZE = 64 * 1024
RESET_VECTOR = ROM_SIZE - 16  # where an x86 processor starts, as seen from the end of its ROM
COUNT = 50_000_000
# mov ecx, COUNT; again: dec ecx; jnz again; mov al, 0x10; out 0xf4, al; jmp to itself
CODE = bytes.fromhex(f"66b9 {COUNT.to_bytes(4, 'little').hex()} 6649 75fc b010 e6f4 ebfe")
EXIT_STATUS = 0x10 << 1 | 1  # how isa-debug-exit turns a value into an exit status

KVM = ["-accel", "kvm", "-cpu", "host"]
# Without cmpxchg16b: emulated by QEMU 7.2 (Debian 12), it leaves a pointer in the flags register now and then, and a
# Linux 6.12 guest panics before it is up. A kernel that does not see the instruction does without.
EMULATION = ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off"]


@functools.lru_cache(maxsize=None)  # noqa: UP033  functools.cache is newer than Python 3.8
def accelerator() -> str:
    """Return "kvm" where guests run on it, else "tcg". The first call takes up to PROBE_SECONDS."""
    return "kvm" if runs(KVM) else "tcg"


def options() -> list[str]:
    """Return QEMU's options for the best accelerator that works here."""
    return KVM if accelerator() == "kvm" else EMULATION


def runs(accelerator_options: list[str]) -> bool:
    """Say whether a guest runs with these options. Takes at most PROBE_SECONDS."""
    host.need("qemu-system-x86_64")
    with tempfile.NamedTemporaryFile(prefix="lab-probe-") as rom:
        rom.write(bytes(RESET_VECTOR) + CODE)
        rom.flush()
        argv = ["qemu-system-x86_64", *accelerator_options, "-no-user-config", "-nodefaults", "-display", "none"]
        argv += ["-m", "16", "-bios", rom.name, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=PROBE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == EXIT_STATUS
