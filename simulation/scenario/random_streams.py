"""Randomness by key, so that every random attribute of a run can be drawn again, in any order, in any process.

A draw is a pure function of (seed, purpose, request id, attempt): two policies, or the live mock and the virtual
endpoint, see the same luck for the same request (common random numbers). There is no shared generator whose state depends
on who drew first.

Two forms:

- `uniforms`: eight numbers for one request from one blake2b (1 to 3 µs; a generator object per key costs 10 to 20).
- `generator`: a counter-based Philox generator per (seed, purpose), for columns. Columns take exactly one `random()` a row,
  so row k gets the k-th number of its purpose and does not depend on other purposes or on how many rows follow.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import numpy as np

__all__ = ["UNIFORMS_PER_KEY", "generator", "uniforms"]

UNIFORMS_PER_KEY: Final = 8

_unpack_words = struct.Struct("<8Q").unpack
# 52 bits and a half step: strictly inside (0, 1), where every inverse distribution function is finite. 53 bits would
# round the largest value to 1.0.
_STEP: Final = 2.0**-52


def uniforms(
    seed: int, purpose: str, request_id: int, attempt: int = 0
) -> tuple[float, float, float, float, float, float, float, float]:
    """Eight independent uniforms in the open interval (0, 1) for one key."""
    words = _unpack_words(
        hashlib.blake2b(f"{seed}/{purpose}/{request_id}/{attempt}".encode()).digest()
    )
    a, b, c, d, e, f, g, h = words
    return (
        ((a >> 12) + 0.5) * _STEP,
        ((b >> 12) + 0.5) * _STEP,
        ((c >> 12) + 0.5) * _STEP,
        ((d >> 12) + 0.5) * _STEP,
        ((e >> 12) + 0.5) * _STEP,
        ((f >> 12) + 0.5) * _STEP,
        ((g >> 12) + 0.5) * _STEP,
        ((h >> 12) + 0.5) * _STEP,
    )


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A fresh numpy generator for a column of draws: Philox with the 128-bit blake2b of (seed, purpose) as its key."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
