"""How many messages wait in queues, some of which may not exist: asked over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

import aiormq
from yarl import URL

from reference_impl.queues.rabbitmq_errors import AMQP_ERRORS, closed_is_an_error

__all__ = ["Lookout"]

_FAREWELL_S: Final = 1.0


class Lookout:
    """Opened at the first look, and again where a look failed.

    To ask for a queue that does not exist costs a channel, and so does a look that is cut off. aiormq can lose the connection
    over that ("expected 'channel.open'": it drops the answer to a close while much is being written, and gives the channel's
    number away too early), and with it what is being published there.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._one_at_a_time = asyncio.Lock()
        self._connection: Any = None

    async def message_counts(self, queues: Sequence[str]) -> dict[str, int]:
        """Those that exist. Raises one of AMQP_ERRORS."""
        async with self._one_at_a_time:
            try:
                with closed_is_an_error(asyncio.Event()):
                    return await self._ask(queues)
            except BaseException:
                await self.close()  # broken, or broken off half-way
                raise

    async def _ask(self, queues: Sequence[str]) -> dict[str, int]:
        if self._connection is None or self._connection.is_closed:
            self._connection = await aiormq.connect(self._url)
        counts = {}
        channel = await self._connection.channel(publisher_confirms=False)
        for queue in queues:
            try:
                declared = await channel.queue_declare(queue, passive=True)
                counts[queue] = declared.message_count or 0
            except aiormq.exceptions.ChannelNotFoundEntity:
                channel = await self._connection.channel(publisher_confirms=False)
        await channel.close()
        return counts

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed:
            with contextlib.suppress(*AMQP_ERRORS):  # it is gone either way
                async with asyncio.timeout(_FAREWELL_S):
                    await connection.close()
