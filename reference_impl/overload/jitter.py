"""Waits between attempts, and the luck that spreads them.

Clients that fail together retry together unless something sets them apart. Full jitter does so best for the work that it
causes (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). The draw is counter-based, a function
of (purpose, request id, attempt), so that it does not depend on the order in which requests happen to fail: both worlds,
and two policies under comparison, draw the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from reference_impl.deployment import RetrySpec

__all__ = ["Uniform", "full_jitter_s", "hashed_uniform"]

# (purpose, request id, attempt) -> a number in the open interval (0, 1)
Uniform = Callable[[str, int, int], float]


def hashed_uniform(seed: int) -> Uniform:
    """Uniforms in (0, 1) by blake2b of (purpose, request id, attempt) under the key `seed` (any 128-bit integer)."""
    key = seed.to_bytes(16, "little", signed=True)
    blake2b = hashlib.blake2b

    def uniform(purpose: str, request_id: int, attempt: int) -> float:
        name = f"{purpose}\0{request_id}\0{attempt}".encode()
        bits = int.from_bytes(blake2b(name, digest_size=8, key=key).digest(), "little") >> 11
        return (bits + 0.5) * 2.0**-53

    return uniform


def full_jitter_s(retry: RetrySpec, retries: int, u: float) -> float:
    """The wait before retry number `retries` (from 0), in seconds: `u * min(backoff_max_s, backoff_s * 2^retries)`."""
    return u * min(retry.backoff_max_s, retry.backoff_s * 2.0**retries)
