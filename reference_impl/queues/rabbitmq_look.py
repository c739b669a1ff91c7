"""Looking at the messages of a queue on RabbitMQ, which can only be done by taking them out.

While one connection looks, no other can: it would see what is left. A queue that is exclusive to the looking connection, and
ends with it, is the sign by which the others know that they must wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from reference_impl.queues.errors import QueueUnavailable

__all__ = ["Look", "looking_at"]

_PAUSE_S: Final = 0.05
# The longest look that the others wait for: ten thousand messages take some five seconds.
_LONGEST_LOOK_S: Final = 60.0


class Look:
    """Messages of a queue, taken and given back unless they are removed."""

    def __init__(self, channel: Any, queue: str) -> None:
        self._channel = channel
        self._queue = queue
        self._taken: dict[int, DeliveredMessage] = {}

    async def messages(self, most: int) -> list[tuple[int, DeliveredMessage]]:
        """All of them, at most so many, with what they are known by here.

        A quorum queue puts what is given back behind what was given back before, so looking at a part would turn the order.
        """
        while len(self._taken) < most:
            message: DeliveredMessage = await self._channel.basic_get(self._queue)
            if not isinstance(message.delivery, Basic.GetOk):
                break
            self._taken[message.delivery.delivery_tag or 0] = message
        return list(self._taken.items())

    async def remove(self, tag: int) -> None:
        """Take this one away."""
        del self._taken[tag]
        await self._channel.basic_ack(tag)

    async def give_back(self) -> None:
        """Before the channel closes: its end would reach the queue after the next look at it."""
        for tag in self._taken:
            await self._channel.basic_nack(tag, requeue=True, wait=False)


@asynccontextmanager
async def looking_at(open_channel: Callable[[], Awaitable[Any]], queue: str) -> AsyncIterator[Look]:
    """The messages of a queue, once nobody else looks; those not removed stay where they are.

    Raises QueueUnavailable when somebody else looks for too long.
    """
    sign = f"{queue}.look"
    channel = await _alone(open_channel, sign, queue)
    look = Look(channel, queue)
    try:
        yield look
    finally:
        if not channel.is_closed:
            await look.give_back()
            await channel.queue_delete(sign)
            await channel.close()


async def _alone(open_channel: Callable[[], Awaitable[Any]], sign: str, queue: str) -> Any:
    """A channel of the only connection that holds the sign."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + _LONGEST_LOOK_S
    while True:
        channel = await open_channel()
        try:
            await channel.queue_declare(sign, exclusive=True)
        except aiormq.exceptions.ChannelLockedResource as error:  # which closed the channel
            if loop.time() >= until_s:
                raise QueueUnavailable(
                    f"another connection has been looking at {queue!r} for {_LONGEST_LOOK_S:g} s: try again when it has ended"
                ) from error
            await asyncio.sleep(_PAUSE_S)
        else:
            return channel
