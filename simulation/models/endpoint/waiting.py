"""Waiting for an instant, on either loop."""

from __future__ import annotations

import asyncio

__all__ = ["sleep_until"]


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def sleep_until(loop: asyncio.AbstractEventLoop, instant_s: float) -> None:
    """Return at `instant_s` of the loop's clock; at once if it has passed.

    An absolute deadline: repeated relative sleeps would add up their lateness.
    """
    if instant_s <= loop.time():
        return
    waiter = loop.create_future()
    timer = loop.call_at(instant_s, _wake, waiter)
    try:
        await waiter
    finally:
        timer.cancel()
