"""Waiting for an instant, on either loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["sleep_until"]


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def sleep_until(loop: asyncio.AbstractEventLoop, instant_s: float) -> Awaitable[None]:
    """Await `instant_s` of the loop's clock; at once if it has passed.

    An absolute deadline: repeated relative sleeps would add up their lateness. The simulation's loop has a way of its own
    (`until`), at a third of the cost.
    """
    until: Callable[[float], Awaitable[None]] | None = getattr(loop, "until", None)
    return _sleep_until(loop, instant_s) if until is None else until(instant_s)


async def _sleep_until(loop: asyncio.AbstractEventLoop, instant_s: float) -> None:
    if instant_s <= loop.time():
        return
    waiter = loop.create_future()
    timer = loop.call_at(instant_s, _wake, waiter)
    try:
        await waiter
    finally:
        timer.cancel()
