"""How many bytes a cached value takes, closely enough to bound a memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

__all__ = ["size_of_value"]

_MAX_DEPTH: Final = 8


def size_of_value(value: object) -> int:
    """Bytes of `value`: its `size_bytes` where it has one, else CPython's own figure, containers with what they hold.

    Objects of unknown classes count shallowly: hand `size_of` to the cache where that is too coarse.
    """
    return _size(value, _MAX_DEPTH)


def _size(value: object, depth: int) -> int:
    declared = getattr(value, "size_bytes", None)
    if isinstance(declared, int):
        return declared
    size_bytes = sys.getsizeof(value)
    if depth == 0:
        return size_bytes
    if isinstance(value, Mapping):
        return size_bytes + sum(_size(k, depth - 1) + _size(v, depth - 1) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return size_bytes + sum(_size(item, depth - 1) for item in value)
    return size_bytes
