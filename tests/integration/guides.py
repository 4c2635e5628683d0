# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the guides of the docs site, write the files that they show, and run the commands.

A code block of a guide is one of these, or the test fails:

- a file, if it has a ``:caption:``: it is written under that name, beside the others of its guide;
- commands, if it is of ``console``: lines that begin with ``$`` are run there, in turn, and what follows each is what
  it prints, where ``…`` stands for any text, and a line of ``…`` alone for any lines;
- not run, if a comment before it says so and why: ``.. not run: needs a Proxmox VE node``.

``python guides.py DIRECTORY`` writes the files of all guides, for what reads them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[2] / "docs" / "docsite" / "rst"
GUIDES = sorted(path.stem for path in DIRECTORY.glob("*.rst"))

_DIRECTIVE = re.compile(r"( *)\.\. code-block:: (\S+)$")
_CAPTION = re.compile(r" +:caption: (.+)$")
_NOT_RUN = re.compile(r" *\.\. not run: (.+)$")
_FAILURE = re.compile(r"FAILED!|UNREACHABLE!|^\[?ERROR", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block of a guide."""

    guide: str
    line: int
    language: str
    caption: str
    reason: str
    body: str

    def __str__(self) -> str:
        return f"{self.guide}.rst, line {self.line}"


def text(guide: str) -> str:
    """Return the source of a guide."""
    return (DIRECTORY / f"{guide}.rst").read_text(encoding="utf-8")


def blocks(guide: str) -> Iterator[Block]:
    """Yield the code blocks of a guide."""
    lines = text(guide).splitlines()
    reason = ""
    for number, line in enumerate(lines):
        if found := _NOT_RUN.match(line):
            reason = found[1]
        elif found := _DIRECTIVE.match(line):
            inside = list(_inside(lines[number + 1 :], len(found[1])))
            caption = _CAPTION.match(inside[0]) if inside else None
            body = inside[1:] if caption else inside
            yield Block(guide, number + 1, found[2], caption[1] if caption else "", reason, _dedent(body))
            reason = ""
        elif line.strip() and not line.startswith(" "):
            reason = ""


def _inside(lines: Sequence[str], indent: int) -> Iterator[str]:
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            return
        yield line


def _dedent(lines: Sequence[str]) -> str:
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines).strip("\n") + "\n"


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield the commands of a block, and what each prints."""
    assert block.body.startswith("$ "), f"{block}: it begins with no command"
    for piece in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
        command = re.match(r"(?:.*\\\n)*.*\n", piece)
        assert command is not None
        yield command[0].strip(), piece[command.end() :]


def pattern(expected: str) -> re.Pattern[str]:
    """Return what matches an output that a guide shows."""
    lines = [
        r"(?:.*\n)*?" if line.strip() == "…" else ".*?".join(map(re.escape, line.split("…"))) + r"\n"
        for line in squeezed(expected).splitlines()
    ]
    return re.compile("".join(lines))


def squeezed(output: str) -> str:
    """Return an output without the spaces that put things into columns, and the empty lines around it."""
    lines = [re.sub(r"(?<=\S) +", " ", line).rstrip() for line in output.strip("\n").splitlines()]
    return "\n".join(lines) + "\n"


class Runner:
    """Runs a guide in a directory, by shell commands that ``argv`` makes a command line of."""

    def __init__(self, directory: Path, argv: Sequence[str]) -> None:
        self.directory = directory
        self._argv = argv

    def run(self, guide: str) -> None:
        """Write the files and run the commands of a guide, from its beginning to its end."""
        for block in blocks(guide):
            if block.reason:
                continue
            if block.caption:
                self.write(block)
                continue
            assert block.language == "console", f"{block}: it is neither run nor has a reason why not"
            for command, expected in commands(block):
                self._execute(block, command, expected)

    def write(self, block: Block) -> None:
        """Write the file that a block shows."""
        path = self.directory / block.caption
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.body, encoding="utf-8")

    def _execute(self, block: Block, command: str, expected: str) -> None:
        done = subprocess.run(
            [*self._argv, command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
        )
        failed = bool(_FAILURE.search(expected))
        # Ansible writes to standard error what fails, in some versions of it.
        output = done.stderr + done.stdout if failed else done.stdout
        said = f"{block}: {command}\nexit status {done.returncode}\n{done.stderr}{done.stdout}"
        print(said)
        assert bool(done.returncode) is failed, said
        assert "WARNING]" not in done.stderr, said
        if expected:
            assert pattern(expected).fullmatch(squeezed(output)), f"{said}\nThe guide says:\n{expected}"


def write_files(directory: Path) -> None:
    """Write the files of all guides, each guide's in a directory of its own."""
    for guide in GUIDES:
        runner = Runner(directory / guide, ())
        for block in blocks(guide):
            if block.caption:
                runner.write(block)


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
