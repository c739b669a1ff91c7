"""One AMQP connection with a channel to publish and one to consume.

This speaks to aiormq, on which aio-pika stands: what aio-pika adds (objects for messages, a mended connection) is done otherwise
here, and its way costs half as much again.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from yarl import URL

from reference_impl.queues.errors import QueueFull, QueueMismatch
from reference_impl.queues.rabbitmq_errors import AMQP_ERRORS, closed_is_an_error, translated
from reference_impl.queues.rabbitmq_layout import Layout
from reference_impl.queues.rabbitmq_look import Look, looking_at
from reference_impl.queues.rabbitmq_lookout import Lookout
from reference_impl.queues.starting import without_password

__all__ = ["CONFIRMS_IN_FLIGHT", "Publication", "RabbitMQSession"]

CONFIRMS_IN_FLIGHT: Final = 200

P = ParamSpec("P")
R = TypeVar("R")


def _asking(
    method: Callable[Concatenate[RabbitMQSession, P], Awaitable[R]],
) -> Callable[Concatenate[RabbitMQSession, P], Coroutine[Any, Any, R]]:
    """A method of the session that waits for answers."""

    @functools.wraps(method)
    async def call(self: RabbitMQSession, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with closed_is_an_error(self.ended):
            return await method(self, *args, **kwargs)

    return call


class Publication(NamedTuple):
    """A message on its way to a queue: of this name, or by way of an exchange."""

    body: bytes
    queue: str
    exchange: str = ""
    headers: dict[str, Any] | None = None


class RabbitMQSession:
    """A connection from its opening to its end; it is not mended but replaced.

    Attributes:
        ended: set when the connection or one of its channels is gone.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.ended = asyncio.Event()
        self._tiers: set[int] = set()
        self._tags: list[str] = []
        self._numbers = itertools.count()
        self._looking = asyncio.Lock()
        self._connection: Any = None
        self._publisher: Any = None
        self._consumer: Any = None
        self._lookout: Lookout | None = None

    async def open(self, url: str, heartbeat_s: float, timeout_s: float) -> None:
        """Connect and declare. Raises QueueUnavailable, AccessRefused or QueueMismatch."""
        where = URL(url)
        if "heartbeat" not in where.query:
            where = where.update_query(heartbeat=str(max(1, round(heartbeat_s))))
        try:
            async with asyncio.timeout(timeout_s):
                await self._set_up(where)
        except AMQP_ERRORS as error:
            await self.close()
            raise translated(error, without_password(url)) from error
        except BaseException:
            await self.close()
            raise

    @_asking
    async def _set_up(self, url: URL) -> None:
        self._lookout = Lookout(url)
        self._connection = await aiormq.connect(url)
        self._connection.closing.add_done_callback(self._on_close)
        self._publisher = await self._channel(confirms=True)
        self._consumer = await self._channel(confirms=False)
        await self._check_levels(without_password(str(url)))
        await self._declare()

    async def _declare(self) -> None:
        """The least urgent class after the others: where it exists, they do.

        The dead letters last of all: a broker that is killed within seconds of a queue's making may bring the youngest back
        without a leader, and nobody waits for that one.
        """
        layout = self.layout
        for queue in reversed(layout.classes):
            await self._publisher.queue_declare(
                queue, durable=True, arguments=layout.class_arguments
            )
        await self._publisher.queue_declare(
            layout.dead, durable=True, arguments=layout.dead_arguments
        )

    async def _check_levels(self, where: str) -> None:
        """Tasks of classes that one side does not know would never be handed out there. Raises QueueMismatch."""
        channel = await self._channel(confirms=False, essential=False)
        there = 0
        try:
            while True:
                await channel.queue_declare(self.layout.class_name(there), passive=True)
                there += 1
        except aiormq.exceptions.ChannelNotFoundEntity:  # which closed the channel
            here = len(self.layout.classes)
        if there not in (0, here):
            raise QueueMismatch(
                f"the queue at {where} was made with levels={there}, here it is {here}: use the same, or another name"
            )

    async def close(self) -> None:
        self.ended.set()
        if self._lookout is not None:
            await self._lookout.close()
        if self._connection is not None and not self._connection.is_closed:
            try:
                await self._say_farewell()
            except AMQP_ERRORS:
                return  # it is gone either way

    @_asking
    async def _say_farewell(self) -> None:
        if self._consumer is not None:
            await self._consumer.close()  # which waits, so that the last acknowledgements arrive
        await self._connection.close()

    @property
    def is_open(self) -> bool:
        return not self.ended.is_set()

    # -- publishing ---------------------------------------------------------------------------------------------------

    @_asking
    async def publish(self, publication: Publication) -> None:
        """Returns when the broker has confirmed it. Raises QueueFull, or one of AMQP_ERRORS."""
        try:
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
        except aiormq.exceptions.DeliveryError as error:  # the broker's Nack
            raise QueueFull(f"{publication.queue} takes no more tasks; try again later") from error
        if isinstance(answer, DeliveredMessage):
            self.ended.set()
            raise aiormq.exceptions.PublishError(answer, answer.delivery)

    async def publish_all(self, publications: Sequence[Publication]) -> list[bool]:
        """Publish in their order, with `CONFIRMS_IN_FLIGHT` unconfirmed at once.

        Returns which the broker took: False for those of a queue that was full by then. Raises what the first failure raised.
        """
        taken = [False] * len(publications)
        left = iter(enumerate(publications))
        full: set[str] = set()
        workers = min(CONFIRMS_IN_FLIGHT, len(publications))
        results = await asyncio.gather(
            *(self._publish_from(left, taken, full) for _ in range(workers)), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return taken

    async def _publish_from(
        self, left: Iterator[tuple[int, Publication]], taken: list[bool], full: set[str]
    ) -> None:
        for number, publication in left:
            if publication.queue not in full:
                try:
                    await self.publish(publication)
                    taken[number] = True
                except QueueFull:
                    full.add(publication.queue)

    @_asking
    async def delay_exchange(self, tier_ms: int) -> str:
        """The exchange of a delay queue, which is made if need be."""
        name = self.layout.delay_name(tier_ms)
        if tier_ms not in self._tiers:
            await self._publisher.exchange_declare(name, exchange_type="fanout", durable=True)
            await self._publisher.queue_declare(
                name, durable=True, arguments=self.layout.delay_arguments(tier_ms)
            )
            await self._publisher.queue_bind(name, name)
            self._tiers.add(tier_ms)
        return name

    def delay_queues(self) -> set[str]:
        """Those that were used through this connection."""
        return {self.layout.delay_name(tier_ms) for tier_ms in self._tiers}

    # -- consuming ----------------------------------------------------------------------------------------------------

    @_asking
    async def consume(
        self, prefetch: int, receive: Callable[[int, DeliveredMessage], Awaitable[None]]
    ) -> None:
        """Have every class delivered, at most `prefetch` unacknowledged of each; replaces what was consumed before."""
        former, self._tags = self._tags, []
        for tag in former:
            await self._consumer.basic_cancel(tag)
        await self._consumer.basic_qos(prefetch_count=min(prefetch, 65_535))
        # The most urgent first: what is delivered before the others is handed out before them.
        for level, queue in reversed(list(enumerate(self.layout.classes))):
            ok = await self._consumer.basic_consume(queue, _receiver(receive, level))
            self._tags.append(ok.consumer_tag)

    @_asking
    async def get(self, level: int) -> DeliveredMessage | None:
        """The next message of a class; None if none waits."""
        message: DeliveredMessage = await self._consumer.basic_get(self.layout.classes[level])
        return message if isinstance(message.delivery, Basic.GetOk) else None

    @_asking
    async def stop_consuming(self) -> None:
        former, self._tags = self._tags, []
        for tag in former:
            await self._consumer.basic_cancel(tag)

    def consumers_are_there(self) -> bool:
        """Whether the broker still knows every consumer: it cancels those of a queue that is deleted or moved."""
        return all(tag in self._consumer.consumers for tag in self._tags)

    @_asking
    async def ack(self, tag: int) -> None:
        await self._consumer.basic_ack(tag, wait=False)

    @_asking
    async def requeue(self, tag: int) -> None:
        """Back to its place in its queue; the broker counts a delivery."""
        await self._consumer.basic_nack(tag, requeue=True, wait=False)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def message_counts(self, queues: Sequence[str]) -> dict[str, int]:
        """Messages that wait in each of the queues that exist."""
        assert self._lookout is not None, "not open"
        return await self._lookout.message_counts(queues)

    @asynccontextmanager
    async def looking_at(self, queue: str) -> AsyncIterator[Look]:
        """The messages of a queue, once nobody else looks at them; those not taken away stay where they are."""
        with closed_is_an_error(self.ended):
            async with self._looking, looking_at(self._look_channel, queue) as look:
                yield look

    async def _look_channel(self) -> Any:
        return await self._channel(confirms=False, essential=False)

    async def _channel(self, *, confirms: bool, essential: bool = True) -> Any:
        channel = await self._connection.channel(publisher_confirms=confirms)
        if essential:
            channel.closing.add_done_callback(self._on_close)
        return channel

    def _on_close(self, closing: asyncio.Future[Any]) -> None:
        if not closing.cancelled():
            closing.exception()  # what ended it is told to whoever waits for an answer
        self.ended.set()


def _receiver(
    receive: Callable[[int, DeliveredMessage], Awaitable[None]], level: int
) -> Callable[[DeliveredMessage], Awaitable[None]]:
    async def receiver(message: DeliveredMessage) -> None:
        await receive(level, message)

    return receiver
