# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent protocol as bytes: requests out, reply lines in. No I/O.

A request is one JSON object; the agent runs it as soon as the object is complete. A reply is one JSON object on a line.
The byte 0xFF is in no UTF-8 text: before a request it makes the agent forget what a previous client left half-sent
(the agent answers each such byte with a parse-error line), before a reply it marks the answer to guest-sync-delimited.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, NoReturn, Tuple, Union

from ansible_collections.qemu.guest.plugins.module_utils._errors import ProtocolError

__all__ = (
    "MAX_REPLY",
    "SENTINEL",
    "Base64",
    "ReplyParser",
    "decode_reply",
    "encode_request",
    "expect",
)

SENTINEL = b"\xff"
MAX_REPLY = 64 * 1024 * 1024
"""Largest reply line accepted by default, in bytes: two full 16 MiB captures in base64 take 43 MiB."""

# Agents nest their replies four deep (guest-get-fsinfo); a reply far deeper is an attack on the parser.
_MAX_DEPTH = 64

# Longer replies are looked through for content before they are parsed.
_LONG = 64 * 1024
_CONTENT = "buf-b64"
_BEFORE_CONTENT = b'"buf-b64": "'  # as agents write it

Reply = Dict[str, Any]
Kind = Union[type, Tuple[type, ...]]


class Base64(str):
    """Text that JSON has nothing to escape in, so that nobody needs to look through it."""


def encode_request(command: str, arguments: Mapping[str, Any] | None, request_id: str) -> bytes:
    """Return the request as the agent reads it, newline included.

    Non-ASCII text is escaped, so that a line is plain ASCII whatever a name contains. No id is sent if it is empty.
    Arguments that are Base64 come last.

    :raise ProtocolError: for what JSON cannot carry (bytes that are not UTF-8, NaN, …). Nothing was sent.
    """
    request: dict[str, Any] = {"execute": command, **({"id": request_id} if request_id else {})}
    content = {name: value for name, value in (arguments or {}).items() if isinstance(value, Base64)}
    if arguments:
        request["arguments"] = {name: value for name, value in arguments.items() if name not in content}
    try:
        line = json.dumps(request, allow_nan=False, separators=(",", ":"))
        # A lone surrogate is how Python carries a byte that is not UTF-8; json.dumps would escape it, the agent would
        # refuse the whole request, and no reply with our id would ever come.
        if "\\ud" in line:
            json.dumps(request, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as exc:
        error = ProtocolError(f"the arguments cannot be sent as JSON: {exc}", command=command)
        error.executed, error.fate = "no", "was not sent"
        raise error from exc
    if not content:
        return line.encode("ascii") + b"\n"
    comma = "," if request["arguments"] else ""
    inserted = ",".join(f'"{name}":"{value}"' for name, value in content.items())
    return f"{line[: -len('}}')]}{comma}{inserted}}}}}\n".encode("ascii")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def decode_reply(line: bytes) -> Reply:
    """Return the JSON object on ``line``.

    :raise ProtocolError: if it is not one, or nested too deeply.
    """
    content, rest = _parted(line) if len(line) > _LONG else (b"", line)
    reply = _parsed(rest)
    if content:
        holder = reply.get("return")
        if not isinstance(holder, dict) or holder.get(_CONTENT) != "":
            return _parsed(line)
        holder[_CONTENT] = content.decode("latin-1")
    return reply


def _parted(line: bytes) -> tuple[bytes, bytes]:
    """Part a reply into a file's content, which is then not looked through for what JSON escapes, and the rest."""
    start = line.find(_BEFORE_CONTENT) + len(_BEFORE_CONTENT)
    end = line.find(b'"', start)
    content = line[start:end]
    if start < len(_BEFORE_CONTENT) or end < 0 or b"\\" in content:
        return b"", line
    return content, line[:start] + line[end:]


def _parsed(line: bytes) -> Reply:
    try:
        reply = json.loads(line.decode("utf-8"), parse_constant=_reject_constant)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"the other side sent something that is not JSON ({line[:80]!r}): {exc}") from exc
    if not isinstance(reply, dict):
        raise ProtocolError(f"the other side sent {type(reply).__name__} where an object was expected: {line[:80]!r}")
    _check_depth(reply, _MAX_DEPTH)
    return reply


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise ProtocolError(f"the reply is nested more than {_MAX_DEPTH} deep")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        if isinstance(child, (dict, list)):
            _check_depth(child, left - 1)


class ReplyParser:
    """Cuts what the channel delivers into lines.

    ``feed`` returns the complete lines, each as ``(line, flushed)``; ``flushed`` tells that a sentinel came directly
    before the line, i.e. that nothing of it is left over from somebody else's reply.
    """

    def __init__(self, limit: int = MAX_REPLY) -> None:
        self._limit = limit
        self._pending: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Take received bytes, return ``[(line, flushed), …]``.

        :raise ProtocolError: when a line grows beyond the limit; the parser has forgotten it then.
        """
        lines: list[tuple[bytes, bool]] = []
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._append(piece)
            line = b"".join(self._pending)
            self.reset()
            _before, sentinel, after = line.rpartition(SENTINEL)
            if after.strip():
                lines.append((after, bool(sentinel)))
        if rest:
            self._append(rest)
        return lines

    def reset(self) -> None:
        """Forget an incomplete line."""
        self._pending = []
        self._size = 0

    def _append(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            self.reset()
            raise ProtocolError(f"the reply is larger than {self._limit} bytes")
        self._pending.append(piece)


def expect(value: Any, kind: Kind, what: str) -> Any:
    """Return ``value`` if it is of the type that the schema names (object: of any); bool does not pass as int.

    :raise ProtocolError: otherwise, and for an integer that has more than the 64 bits of the schema's.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds or object in kinds):
        if isinstance(value, int) and value.bit_length() > 64:
            raise ProtocolError(f"{what} should have at most 64 bits by the schema; the other side sent more")
        return value
    wanted = " or ".join(k.__name__ for k in kinds)
    raise ProtocolError(f"{what} should be {wanted} by the schema; the other side sent {type(value).__name__}")
