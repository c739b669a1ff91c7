"""One AMQP connection with a channel to publish and one to consume, and the queues that a `RabbitMQQueue` stands on.

- `{name}.{level}`: a quorum queue a class, because quorum queues refuse `x-max-priority`, and in classic ones priorities
  invert by the prefetch.
- `{name}.delay.{ms}`: quorum queues whose messages expire into the default exchange, by the routing key that they came with
  through the fanout exchange of the same name. Made when first needed, in powers of two.
- `{name}.dead`: what nobody could finish.

This speaks to aiormq, on which aio-pika stands: what aio-pika adds (objects for messages, a mended connection) is done otherwise
here, and its way costs half as much again.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.common import FieldTable
from yarl import URL

from reference_impl.queues.errors import AccessRefused, QueueFull, QueueMismatch, QueueUnavailable
from reference_impl.queues.starting import without_password

__all__ = ["CONFIRMS_IN_FLIGHT", "Publication", "RabbitMQSession", "delay_tier_ms", "translated"]

CONFIRMS_IN_FLIGHT: Final = 200
_SHORTEST_DELAY_MS: Final = 125
_LONGEST_TIER: Final = 24
_MOST_LOOKED_AT: Final = 10_000
# A quorum queue without a delivery limit puts what is given back at its end.
_DEAD: Final[FieldTable] = {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}

# Every error that aiormq and the sockets below it raise for a broker that is away, or went.
AMQP_ERRORS: Final = (
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,
    OSError,
    TimeoutError,
)


class Publication(NamedTuple):
    """A message on its way to a queue: of this name, or by way of an exchange."""

    body: bytes
    queue: str
    exchange: str = ""
    headers: dict[str, Any] | None = None


def delay_tier_ms(delay_s: float) -> int:
    """The shortest delay queue that is long enough: a power of two of 125 ms."""
    wanted = max(1.0, delay_s * 1000 / _SHORTEST_DELAY_MS)
    tier = math.ceil(math.log2(wanted))
    if tier > _LONGEST_TIER:
        raise ValueError(f"delay_s is {delay_s:g}: expected at most 24 days")
    return _SHORTEST_DELAY_MS << tier


def delay_tiers_ms() -> list[int]:
    return [_SHORTEST_DELAY_MS << tier for tier in range(_LONGEST_TIER + 1)]


class RabbitMQSession:
    """A connection from its opening to its end; it is not mended but replaced.

    Attributes:
        ended: set when the connection or one of its channels is gone.
    """

    def __init__(self, name: str, levels: int, arguments: FieldTable) -> None:
        self.name = name
        self.queues = [f"{name}.{level}" for level in range(levels)]
        self.dead = f"{name}.dead"
        self.ended = asyncio.Event()
        self._arguments = arguments
        self._tiers: set[int] = set()
        self._tags: list[str] = []
        self._numbers = itertools.count()
        self._connection: Any = None
        self._publisher: Any = None
        self._consumer: Any = None

    async def open(self, url: str, heartbeat_s: float, timeout_s: float) -> None:
        """Connect and declare. Raises QueueUnavailable, AccessRefused or QueueMismatch."""
        where = URL(url)
        if "heartbeat" not in where.query:
            where = where.update_query(heartbeat=str(max(1, round(heartbeat_s))))
        try:
            async with asyncio.timeout(timeout_s):
                self._connection = await aiormq.connect(where)
                self._connection.closing.add_done_callback(self._on_close)
                self._publisher = await self._channel(confirms=True)
                self._consumer = await self._channel(confirms=False)
                for queue in self.queues:
                    await self._publisher.queue_declare(
                        queue, durable=True, arguments=self._arguments
                    )
                await self._publisher.queue_declare(self.dead, durable=True, arguments=_DEAD)
        except AMQP_ERRORS as error:
            await self.close()
            raise translated(error, without_password(url)) from error

    async def close(self) -> None:
        self.ended.set()
        if self._connection is not None and not self._connection.is_closed:
            try:
                if self._consumer is not None:
                    await (
                        self._consumer.close()
                    )  # which waits, so that the last acknowledgements arrive
                await self._connection.close()
            except AMQP_ERRORS:
                return  # it is gone either way

    @property
    def is_open(self) -> bool:
        return not self.ended.is_set()

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, publication: Publication) -> None:
        """Returns when the broker has confirmed it. Raises QueueFull, or one of AMQP_ERRORS."""
        answer = await self._publisher.basic_publish(
            publication.body,
            exchange=publication.exchange,
            routing_key=publication.queue,
            properties=Basic.Properties(
                content_type="application/json",
                delivery_mode=2,
                # Its own, for a message that is returned is found by it.
                message_id=str(next(self._numbers)),
                headers=publication.headers,
            ),
            mandatory=True,
            wait=False,
        )
        if isinstance(answer, DeliveredMessage):
            self.ended.set()
            raise aiormq.exceptions.PublishError(answer, answer.delivery)
        if not isinstance(answer, Basic.Ack):
            raise QueueFull(f"{publication.queue} takes no more tasks; try again later")

    async def publish_all(self, publications: Sequence[Publication]) -> None:
        """Publish in their order, with `CONFIRMS_IN_FLIGHT` unconfirmed at once; raises what the first failure raised."""
        left = iter(publications)
        workers = min(CONFIRMS_IN_FLIGHT, len(publications))
        results = await asyncio.gather(
            *(self._publish_from(left) for _ in range(workers)), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _publish_from(self, left: Iterator[Publication]) -> None:
        for publication in left:
            await self.publish(publication)

    async def delay_exchange(self, tier_ms: int) -> str:
        """The exchange of a delay queue, which is made if need be."""
        name = f"{self.name}.delay.{tier_ms}"
        if tier_ms not in self._tiers:
            await self._publisher.exchange_declare(name, exchange_type="fanout", durable=True)
            await self._publisher.queue_declare(name, durable=True, arguments=_delay(tier_ms))
            await self._publisher.queue_bind(name, name)
            self._tiers.add(tier_ms)
        return name

    # -- consuming ----------------------------------------------------------------------------------------------------

    async def consume(
        self, prefetch: int, receive: Callable[[int, DeliveredMessage], Awaitable[None]]
    ) -> None:
        """Have every class delivered, at most `prefetch` unacknowledged of each; replaces what was consumed before."""
        former, self._tags = self._tags, []
        for tag in former:
            await self._consumer.basic_cancel(tag)
        await self._consumer.basic_qos(prefetch_count=min(prefetch, 65_535))
        # The most urgent first: what is delivered before the others is handed out before them.
        for level, queue in reversed(list(enumerate(self.queues))):
            ok = await self._consumer.basic_consume(queue, _receiver(receive, level))
            self._tags.append(ok.consumer_tag)

    async def stop_consuming(self) -> None:
        former, self._tags = self._tags, []
        for tag in former:
            await self._consumer.basic_cancel(tag)

    def consumers_are_there(self) -> bool:
        """Whether the broker still knows every consumer: it cancels those of a queue that is deleted or moved."""
        return all(tag in self._consumer.consumers for tag in self._tags)

    async def ack(self, tag: int) -> None:
        await self._consumer.basic_ack(tag, wait=False)

    async def requeue(self, tag: int) -> None:
        """Back to its place in its queue; the broker counts a delivery."""
        await self._consumer.basic_nack(tag, requeue=True, wait=False)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def message_counts(self, queues: Sequence[str]) -> list[int]:
        """Messages that wait in each queue; 0 for one that does not exist."""
        counts = []
        channel = await self._channel(confirms=False, essential=False)
        for queue in queues:
            try:
                declared = await channel.queue_declare(queue, passive=True)
                counts.append(declared.message_count or 0)
            except aiormq.exceptions.ChannelNotFoundEntity:
                counts.append(0)
                channel = await self._channel(confirms=False, essential=False)
        await channel.close()
        return counts

    @asynccontextmanager
    async def looking_at(self, queue: str) -> AsyncIterator[Look]:
        """The messages of a queue; those not taken away stay where they are."""
        channel = await self._channel(confirms=False, essential=False)
        look = Look(channel, queue)
        try:
            yield look
        finally:
            await look.give_back()
            await channel.close()

    async def _channel(self, *, confirms: bool, essential: bool = True) -> Any:
        channel = await self._connection.channel(publisher_confirms=confirms)
        if essential:
            channel.closing.add_done_callback(self._on_close)
        return channel

    def _on_close(self, closing: asyncio.Future[Any]) -> None:
        if not closing.cancelled():
            closing.exception()  # what ended it is told to whoever waits for an answer
        self.ended.set()


class Look:
    """Messages of a queue, taken and given back unless they are removed."""

    def __init__(self, channel: Any, queue: str) -> None:
        self._channel = channel
        self._queue = queue
        self._taken: dict[int, DeliveredMessage] = {}

    async def messages(self) -> list[tuple[int, DeliveredMessage]]:
        """All of them, at most ten thousand, with what they are known by here.

        A quorum queue puts what is given back behind what was given back before, so looking at a part would turn the order.
        """
        while len(self._taken) < _MOST_LOOKED_AT:
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


def _delay(tier_ms: int) -> FieldTable:
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": tier_ms,
        "x-dead-letter-exchange": "",
        # The expired message leaves only when the other queue has confirmed it.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _receiver(
    receive: Callable[[int, DeliveredMessage], Awaitable[None]], level: int
) -> Callable[[DeliveredMessage], Awaitable[None]]:
    async def receiver(message: DeliveredMessage) -> None:
        await receive(level, message)

    return receiver


def translated(error: BaseException, where: str) -> Exception:
    """What an AMQP error means to a user of the port."""
    text = str(error) or type(error).__name__
    if isinstance(
        error,
        aiormq.exceptions.AuthenticationError
        | aiormq.exceptions.ProbableAuthenticationError
        | aiormq.exceptions.ChannelAccessRefused,
    ):
        return AccessRefused(
            f"{where} refuses these credentials ({text}): correct user and password in the URL, or the permissions"
        )
    if isinstance(error, aiormq.exceptions.ChannelPreconditionFailed):
        return QueueMismatch(
            f"{where} has a queue of this name that was declared otherwise ({text}): use the same settings or another name, "
            "or delete the queue when it is empty"
        )
    if isinstance(error, TimeoutError):
        text = "no answer in time"
    return QueueUnavailable(f"{where}: {text}")
