# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Zstandard through libzstd, which most systems have because their package managers need it.

Python itself has Zstandard only since 3.14. Used here, and in the guest by _warm/guest/shell_runner.py.
"""

from __future__ import annotations

import functools

TYPE_CHECKING = False  # type checkers know the name; importing typing takes time
if TYPE_CHECKING:
    from typing import Any

__all__ = ("Compressor", "Decompressor", "zstd", "zstd_decompress")

_ROOM = 1 << 17  # bytes that are unpacked at once: the library's own block size


@functools.lru_cache(maxsize=None)
def zstd() -> Any:
    """Return the loaded library.

    :raise ImportError: if there is none.
    """
    import ctypes

    size, content, context = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p
    try:
        library = ctypes.CDLL("libzstd.so.1")
        for function, result, arguments in (
            (library.ZSTD_createCCtx, context, ()),
            (library.ZSTD_freeCCtx, size, (context,)),
            (library.ZSTD_compressBound, size, (size,)),
            (library.ZSTD_compressCCtx, size, (context, content, size, content, size, ctypes.c_int)),
            (library.ZSTD_decompress, size, (content, size, content, size)),
            (library.ZSTD_createDStream, context, ()),
            (library.ZSTD_freeDStream, size, (context,)),
            (library.ZSTD_decompressStream, size, (context, content, content)),
            (library.ZSTD_getFrameContentSize, ctypes.c_ulonglong, (content, size)),
            (library.ZSTD_isError, ctypes.c_uint, (size,)),
        ):
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:  # there is none, or a very old one
        raise ImportError(str(error)) from error
    return library


class Compressor:
    """Compresses pieces, each as a frame, in the same buffer: a new buffer for each takes a third of the time.

    :raise ImportError: if there is no Zstandard.
    """

    def __init__(self, level: int) -> None:
        self._level = level
        self._library = zstd()
        self._context = self._library.ZSTD_createCCtx()
        self._there = bytearray()

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._library.ZSTD_freeCCtx(self._context)

    def compress(self, content: bytes | memoryview) -> bytes:
        """Return ``content`` compressed. A memoryview must be writable.

        :raise ValueError: if the library fails.
        """
        most = self._library.ZSTD_compressBound(len(content))
        if most > len(self._there):
            self._there = bytearray(most)
        here = _memory(content) if isinstance(content, memoryview) else content
        size = self._library.ZSTD_compressCCtx(
            self._context, _memory(self._there), len(self._there), here, len(content), self._level
        )
        return _result(self._there, size)


def zstd_decompress(packed: bytes, largest: int) -> bytes:
    """Return the content of a frame, at most ``largest`` bytes.

    :raise ImportError: if there is no Zstandard.
    :raise ValueError: if it has more, or is damaged.
    """
    most = min(largest, zstd().ZSTD_getFrameContentSize(packed, len(packed)))  # a huge number if unknown
    there = bytearray(max(1, most))
    return _result(there, zstd().ZSTD_decompress(_memory(there), most, packed, len(packed)))


class Decompressor:
    """Decompresses data as it arrives, of one frame or several. Each byte is read once.

    :raise ImportError: if there is no Zstandard.
    """

    def __init__(self) -> None:
        self._library = zstd()
        self._context = self._library.ZSTD_createDStream()
        self._there = bytearray(_ROOM)

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._library.ZSTD_freeDStream(self._context)

    def decompress(self, packed: bytes, largest: int) -> bytes:
        """Return the content that ``packed`` adds, at most ``largest`` bytes.

        :raise ValueError: if it is more, or damaged.
        """
        import ctypes

        buffer = _buffer()
        taken = buffer(ctypes.cast(ctypes.c_char_p(packed), ctypes.c_void_p), len(packed), 0)
        content, given = bytearray(), _ROOM
        while taken.position < taken.size or given == _ROOM:
            made = buffer(ctypes.addressof(_memory(self._there)), _ROOM, 0)
            left = self._library.ZSTD_decompressStream(self._context, ctypes.byref(made), ctypes.byref(taken))
            given = made.position
            content += memoryview(self._there)[:given]
            if self._library.ZSTD_isError(left):
                raise ValueError("libzstd failed")
            if len(content) > largest:
                raise ValueError("more than there should be")
        return bytes(content)


@functools.lru_cache(maxsize=None)
def _buffer() -> Any:
    """Return the type of ZSTD_inBuffer and ZSTD_outBuffer."""
    import ctypes

    members = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t)]
    return type("Buffer", (ctypes.Structure,), {"_fields_": members})


def _memory(content: bytearray | memoryview) -> Any:
    from ctypes import c_char

    return (c_char * len(content)).from_buffer(content)


def _result(there: bytearray, size: int) -> bytes:
    if zstd().ZSTD_isError(size):
        raise ValueError("libzstd failed")
    return bytes(memoryview(there)[:size])
