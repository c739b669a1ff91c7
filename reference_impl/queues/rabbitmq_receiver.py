"""Tasks that RabbitMQ delivers through one session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from aiormq.abc import DeliveredMessage

from reference_impl.queues.codec import decode_task
from reference_impl.queues.counts import Counts
from reference_impl.queues.errors import InvalidTask, QueueFull
from reference_impl.queues.inbox import Delivery, Inbox
from reference_impl.queues.rabbitmq_errors import AMQP_ERRORS
from reference_impl.queues.rabbitmq_letters import headers_of, letter_to
from reference_impl.queues.rabbitmq_session import RabbitMQSession

__all__ = ["RabbitMQReceiver", "Receipt"]

logger = logging.getLogger(__name__)


class Receipt(NamedTuple):
    """A delivery is known by its tag to the session that it came through, and to no other.

    `consumers` numbers those of a connection, by which it came; 0: it was got.
    """

    session: RabbitMQSession
    tag: int
    consumers: int


class RabbitMQReceiver:
    """Puts what arrives through `session` into `inbox`; what is no task is buried.

    Args:
        counts: where redeliveries and burials are noted. clock: of the instants of burials.
        consumers: the number of those that it serves; 0: none.
    """

    def __init__(
        self,
        session: RabbitMQSession,
        inbox: Inbox[Receipt],
        counts: Counts,
        clock: Callable[[], float],
        consumers: int,
    ) -> None:
        self._session = session
        self._inbox = inbox
        self._counts = counts
        self._clock = clock
        self._consumers = consumers

    async def receive(self, level: int, message: DeliveredMessage) -> None:
        """Where an error that nobody foresaw stops it, the session ends, and the broker delivers again what came through it."""
        try:
            await self._receive(level, message)
        except Exception:
            logger.exception("RabbitMQ: an error that nobody foresaw, beginning anew")
            self._session.ended.set()

    async def _receive(self, level: int, message: DeliveredMessage) -> None:
        tag = int(getattr(message.delivery, "delivery_tag", 0))
        try:
            task = decode_task(message.body)
        except InvalidTask as error:
            await self._bury(tag, message.body, str(error))
            return
        except Exception as error:
            logger.exception("a message that could not be read is buried")
            await self._bury(tag, message.body, f"{type(error).__name__} while it was read")
            return
        redeliveries = headers_of(message).get("x-delivery-count", 0)
        if isinstance(redeliveries, int) and redeliveries:
            task = msgspec.structs.replace(task, redeliveries=redeliveries)
            self._counts.redelivered += 1
        self._inbox.put(Delivery(task, level, Receipt(self._session, tag, self._consumers)))

    async def _bury(self, tag: int, body: bytes, reason: str) -> None:
        """Where that fails the broker has it still, and delivers it again to another session."""
        session = self._session
        try:
            await session.publish(letter_to(session.layout.dead, body, reason, self._clock()))
            await session.ack(tag)
        except (QueueFull, *AMQP_ERRORS) as error:
            logger.warning("a message that is no task could not be buried, trying on: %s", error)
            session.ended.set()
        else:
            self._counts.dead_lettered += 1
