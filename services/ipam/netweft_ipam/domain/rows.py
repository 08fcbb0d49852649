"""Rows of bytes of one size, cut and put together many at a time: a call for each costs more than all of the work."""

from __future__ import annotations

import array
import functools
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Rows that one call of struct cuts.
_ROWS = 256


def cut(packed: bytes, row: str) -> list[bytes]:
    """Return the fields of all rows, one row after the other.

    Args:
        packed: The rows.
        row: What a row has, in struct's letters: `s` and `x` alone.
    """
    size = struct.calcsize(f">{row}")
    whole, rest = divmod(len(packed) // size, _ROWS)
    fields: list[bytes] = []
    for at in range(0, whole * _ROWS * size, _ROWS * size):
        fields += _cutter(row, _ROWS)(packed, at)
    if rest:
        fields += _cutter(row, rest)(packed, whole * _ROWS * size)
    return fields


@functools.lru_cache(maxsize=64)
def _cutter(row: str, count: int) -> Callable[[bytes, int], tuple[Any, ...]]:
    return struct.Struct(">" + row * count).unpack_from


def numbers(packed: bytes, *, size: int, at: int, width: int) -> array.array[int]:
    """Return the number that each row holds.

    Args:
        packed: The rows.
        size: Bytes of a row.
        at: Where the number is in it.
        width: Bytes of the number, up to 8, the highest first.
    """
    found = bytearray(len(packed) // size * 8)
    for place in range(width):
        found[place::8] = packed[at + width - 1 - place :: size]
    return _native(array.array("Q", found))


def planes(values: Sequence[int]) -> list[bytes]:
    """Return the lowest bytes of all numbers, of up to 64 bits, then the second ones, and so on to the eighth."""
    packed = _native(array.array("Q", values)).tobytes()
    return [packed[place::8] for place in range(8)]


def either(first: bytes, second: bytes) -> bytes:
    """Return both, bit by bit or'ed."""
    both = int.from_bytes(first, "little") | int.from_bytes(second, "little")
    return both.to_bytes(len(first), "little")


def interleave(columns: Sequence[Iterable[bytes]], count: int) -> list[bytes]:
    """Return the first of each column, then the second of each, and so on; all have `count`.

    Raises:
        ValueError: One has not.
    """
    flat = [b""] * (len(columns) * count)
    for at, column in enumerate(columns):
        flat[at :: len(columns)] = column
    return flat


def _native(words: array.array[int]) -> array.array[int]:
    """Turn words with the lowest byte first into this machine's, or back."""
    if sys.byteorder == "big":
        words.byteswap()
    return words
