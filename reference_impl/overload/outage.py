"""Waiting for something that is away, a broker or a database, without everybody asking for it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from reference_impl.deployment import RetrySpec
from reference_impl.overload.jitter import Uniform, full_jitter_s

__all__ = ["outlast"]

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

# Beyond so many doublings any backoff has come to its bound.
_MOST_DOUBLINGS: Final = 10


async def outlast(
    ask: Callable[[], Awaitable[T]],
    away: type[E],
    *,
    purpose: str,
    retry: RetrySpec,
    uniform: Uniform,
    on_away: Callable[[E], None],
) -> T:
    """What `ask` gives once it raises `away` no more; asked after the waits of `retry`, however often, until cancelled.

    Args:
        purpose: names the luck that is drawn of `uniform`.
        on_away: told of the first error.
    """
    attempt = 0
    while True:
        try:
            return await ask()
        except away as error:
            if attempt == 0:
                on_away(error)
            u = uniform(purpose, 0, attempt)
            await asyncio.sleep(full_jitter_s(retry, min(attempt, _MOST_DOUBLINGS), u))
            attempt += 1
