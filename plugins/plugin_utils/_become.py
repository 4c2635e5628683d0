# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give sudo, su and the like a password only when they ask for one, and separate their output from the task's.

The input of a command is prepared before it starts, so the controller cannot wait for a prompt. A shell of the agent's
user waits for it in the guest (_ASK), as ansible-core's ssh connection does on the controller.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple

from ansible_collections.qemu.guest.plugins.module_utils._agent.printable import last_line
from ansible_collections.qemu.guest.plugins.module_utils._guest.executor import ExecResult

__all__ = ("Asking", "asking", "last_words", "refused", "without_marker")

# This reads the program's standard error until the shell that the program starts has written a mark there. dd returns
# a partial line, which `read` would not: a prompt has no newline at its end. The password goes into the pipe that is
# the program's standard input only after a prompt. At a second prompt that pipe is closed, so that a wrong password
# counts once. The task's own input follows the mark. The password is in a here-document, because printf is not built
# into mksh: its arguments, which all users can see, would have the password.
_ASK = r"""for c in mkfifo timeout dd grep; do
    command -v "$c" >/dev/null || { echo "a password for become needs $c in the guest; nothing was run" >&2; exit 1; }
done
f=/run/%(fifo)s
mkfifo -m 600 "$f" 2>/dev/null || { f=/tmp/%(fifo)s; mkfifo -m 600 "$f"; } || exit 1
{
    rm -f "$f"
    IFS= read -r p <&3
    s= a=
    while [ "${#s}" -lt 65536 ] && c=$(timeout %(silence)d dd bs=4096 count=1 2>/dev/null; echo .) && [ "$c" != . ]; do
        c=${c%%.}
        printf %%s "$c" >&2
        s=$s$c
        case $s in *%(mark)s*)
            cat <&3 2>/dev/null &
            break
        ;;
        esac
        printf '%%s\n' "$s" | grep -qiE -e %(prompt)s || continue
        echo '%(mark)s?' >&2
        [ ! "$a" ] || break
        a=1 s=
        cat <<QEMU_GUEST
$p
QEMU_GUEST
    done
    unset p
    exec cat >&2 3<&-
} 3<&0 <"$f" | (
%(command)s
) 2>"$f"
"""
# A program that has neither asked nor started the task gets the end of its input after this many silent seconds.
_SILENCE = 60
# The end of any prompt, where a plugin names none.
_WORDS = ("Password",)
# Messages of sudo-rs and su-rs without a password, with -n and at the end of input. ansible-core does not know them.
_REFUSED = (b"interactive authentication is required", b"Authentication required but not attempted")


class Asking(NamedTuple):
    """A command line of a become plugin for which there is a password.

    ``line`` identifies the command line, whatever the task. ``plain`` is the shell command that is given no password;
    ``is_silent``: it fails where a password is needed, and reads none of its input before. ``text`` is the shell
    command whose input begins with the password, on a line of its own; ``mark`` is its mark on stderr.
    """

    line: str
    plain: str
    is_silent: bool
    text: str
    mark: str

    @property
    def name(self) -> str:
        """A short name for ``line``, for notes in the mux."""
        return hashlib.sha256(self.line.encode("utf-8", "surrogateescape")).hexdigest()

    def read(self, result: ExecResult) -> tuple[ExecResult, int]:
        """Return the result of ``text`` without prompts, and how many prompts there were."""
        mark = self.mark.encode("ascii")
        ours, _newline, theirs = result.stderr.partition(b"%b\n" % mark)
        *prompts, rest = ours.split(b"%b?\n" % mark)
        for number, said in enumerate(prompts):
            prompts[number] = said[: said.rfind(b"\n") + 1]
        # Some programs write a newline after a password, since the typed one is not shown.
        ours = b"".join([*prompts, rest.removeprefix(b"\n") if prompts else rest])
        return result._replace(stderr=ours + theirs), len(prompts)


def asking(plugin: Any, text: str) -> Asking | None:
    """Return how to give ``text`` of the become plugin a password; None if that is not its shell command."""
    said = f"echo {plugin.success} ; "
    if said not in text:
        return None
    mark = secrets.token_hex(16)
    # With a password, sudo's plugin puts a prompt in the place of -n.
    prompt = f'-p "{plugin.prompt}"'
    plain = text.replace(prompt, "-n", 1)
    ask = {
        "command": text.replace(said, f"{said}echo {mark} >&2 ; ", 1),
        "fifo": f"qemu-guest.{secrets.token_hex(16)}.ask",
        "mark": mark,
        "prompt": shlex.quote(_pattern(plugin)),
        "silence": _SILENCE,
    }
    return Asking(plain.partition(said)[0], plain, prompt in text, _ASK % ask, mark)


def without_marker(plugin: Any, output: bytes) -> bytes:
    """Return a command's standard output without the line that tells the plugin that the task has begun."""
    # A command that is not wrapped, as for root becoming root, has no such line.
    at = output.find(plugin.success.encode("ascii")) if plugin.success else -1
    if at < 0:
        return output
    _line, _newline, after = output[at:].partition(b"\n")
    return output[: output.rfind(b"\n", 0, at) + 1] + after


def refused(output: bytes) -> bool:
    """Return whether a program wants a password, by messages that become plugins may not know."""
    return any(words in output for words in _REFUSED)


def last_words(result: ExecResult) -> str:
    """Return the last line of a failed program's output, for a message."""
    return last_line(result.stderr) or last_line(result.stdout) or f"exit status {result.shell_rc}"


def _pattern(plugin: Any) -> str:
    """Return a regular expression of grep -E for the prompts of a become plugin."""
    if isinstance(plugin.prompt, str):
        return _escaped(plugin.prompt)
    words: Iterable[str] = plugin.get_option("prompt_l10n") or getattr(plugin, "SU_PROMPT_LOCALIZATIONS", _WORDS)
    # Before the colon, French has a space, which may be two bytes.
    return f"({'|'.join(map(_escaped, words))}).?.?(:|\uff1a)"


def _escaped(text: str) -> str:
    return re.sub(r"([][\\.*^$+?(){}|])", r"\\\1", text)
