# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent protocol as bytes: requests out, reply lines in. No I/O.

A request is one JSON object; the agent runs it as soon as the object is complete. A reply is one JSON object on a line.
The byte 0xFF is in no UTF-8 text: before a request it makes the agent drop a request that a former client left
half-sent (the agent answers each such byte with a parse-error line), before a reply it marks the answer to
guest-sync-delimited.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Dict, Mapping, NoReturn, Tuple, Union

from ansible_collections.qemu.guest.plugins.module_utils._agent.errors import ProtocolError

__all__ = (
    "MAX_STRUCTURE",
    "SENTINEL",
    "Base64",
    "ReplyParser",
    "decode_reply",
    "encode_request",
    "expect",
)

SENTINEL = b"\xff"
MAX_STRUCTURE = 4 * 1024 * 1024
"""Most bytes of a reply that are parsed. Base64 content does not count.

10,000 disks or interfaces take that many. libvirt carries no longer replies either.
"""

# 10,000 interfaces with their statistics have 210,000 values. Parsed, 300,000 take at most 60 MB of memory.
_MAX_VALUES = 300_000

# Agents nest their replies four deep (guest-get-fsinfo); a reply far deeper is an attack on the parser.
_MAX_DEPTH = 64

# The schema has 64-bit integers, of at most 20 digits. Parsing a million digits takes some Pythons 17 seconds.
_MAX_DIGITS = 40
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1

# In longer replies, content is cut out before parsing.
_LONG = 64 * 1024
_MAX_CONTENTS = 2  # most members with content in a reply
_CONTENT = re.compile(rb'"(buf-b64|out-data|err-data)": ?"')

Reply = Dict[str, Any]
Kind = Union[type, Tuple[type, ...]]


class Base64(str):
    """Text without characters that JSON escapes, so that the encoder need not scan it."""


def encode_request(command: str, arguments: Mapping[str, Any] | None, request_id: str) -> bytes:
    """Return the request as the agent reads it, newline included.

    Non-ASCII text is escaped, so that a line is always plain ASCII. An empty id is not sent. Base64 arguments come
    last.

    :raise ProtocolError: for values that JSON cannot carry (bytes that are not UTF-8, NaN, …). Nothing was sent.
    """
    request: dict[str, Any] = {"execute": command, **({"id": request_id} if request_id else {})}
    content = {name: value for name, value in (arguments or {}).items() if isinstance(value, Base64)}
    if arguments:
        request["arguments"] = {name: value for name, value in arguments.items() if name not in content}
    try:
        line = json.dumps(request, allow_nan=False, separators=(",", ":"))
        # Python represents a byte that is not UTF-8 as a lone surrogate; json.dumps would escape it, the agent would
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


def decode_reply(line: bytes) -> Reply:
    """Return the JSON object on ``line``.

    Content (the members C(buf-b64), C(out-data) and C(err-data) of a return value) is taken out before parsing: base64
    contains nothing that JSON escapes.

    :raise ProtocolError: if it is not an object, nested too deeply, or too large without its content.
    """
    contents, rest = _parted(line) if len(line) > _LONG else ({}, line)
    reply = _parsed(rest)
    holder = reply.get("return")
    for name, content in contents.items():
        if not isinstance(holder, dict) or holder.get(name) != "":
            return _parsed(line)
        holder[name] = content.decode("latin-1")
    return reply


def _parted(line: bytes) -> tuple[dict[str, bytes], bytes]:
    """Split a long reply into its contents, by member name, and the rest, where these members are empty."""
    contents: dict[str, bytes] = {}
    rest, position = [], 0
    for _content in range(_MAX_CONTENTS):
        member = _CONTENT.search(line, position)
        end = line.find(b'"', member.end()) if member else -1
        if not member or end < 0 or line.find(b"\\", member.end(), end) >= 0:
            break
        name = member.group(1).decode("ascii")
        if name in contents:
            return {}, line
        contents[name] = line[member.end() : end]
        rest.append(line[position : member.end()])
        position = end
    rest.append(line[position:])
    return contents, b"".join(rest)


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= _MAX_DIGITS else _LARGEST + 1
    if not _SMALLEST <= number <= _LARGEST:
        raise ValueError(f"a number of {len(digits)} digits is larger than the schema's")
    return number


def _decimal(digits: str) -> float:
    number = float(digits) if len(digits) <= _MAX_DIGITS else math.inf
    if math.isinf(number):
        raise ValueError(f"a number ({digits[:_MAX_DIGITS]}) is larger or longer than the schema's")
    return number


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_decimal, parse_constant=_reject_constant)


def _parsed(line: bytes) -> Reply:
    if len(line) > MAX_STRUCTURE:
        raise ProtocolError(f"the reply is larger than {MAX_STRUCTURE} bytes")
    if sum(map(line.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ProtocolError(f"the reply has more than {_MAX_VALUES} values")
    try:
        reply = _DECODER.decode(line.decode("utf-8"))
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
    """Cuts the channel's bytes into lines of at most ``limit`` bytes."""

    def __init__(self, limit: int = MAX_STRUCTURE) -> None:
        self.limit = limit
        self._pending = bytearray()  # not a list of pieces: a guest can send byte by byte

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes, return the complete lines. What comes before a sentinel is another client's.

        :raise ProtocolError: when a line exceeds the limit; the parser has dropped it then.
        """
        lines: list[bytes] = []
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._append(piece)
            line = bytes(self._pending)
            self.reset()
            after = line.rpartition(SENTINEL)[2]
            if after.strip():
                lines.append(after)
        if rest:
            self._append(rest)
        return lines

    def reset(self) -> None:
        """Forget an incomplete line."""
        self._pending = bytearray()

    def _append(self, piece: bytes) -> None:
        if len(self._pending) + len(piece) > self.limit:
            self.reset()
            raise ProtocolError(f"the reply is larger than {self.limit} bytes")
        self._pending += piece


def expect(value: Any, kind: Kind, what: str) -> Any:
    """Return ``value`` if it is of the type that the schema names (object: any type); bool does not pass as int.

    :raise ProtocolError: otherwise, and for an integer of more than the schema's 64 bits.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds or object in kinds):
        if isinstance(value, int) and value.bit_length() > 64:
            raise ProtocolError(f"{what} should have at most 64 bits by the schema; the other side sent more")
        return value
    wanted = " or ".join(k.__name__ for k in kinds)
    raise ProtocolError(f"{what} should be {wanted} by the schema; the other side sent {type(value).__name__}")
