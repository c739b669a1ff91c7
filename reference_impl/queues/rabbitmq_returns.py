"""What a connection to RabbitMQ gives back: acknowledged, to its place, or behind what waits."""

from __future__ import annotations

from collections.abc import Callable

from reference_impl.queues.inbox import Delivery
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.rabbitmq_errors import AMQP_ERRORS
from reference_impl.queues.rabbitmq_receiver import Receipt
from reference_impl.queues.rabbitmq_session import Publication, RabbitMQSession

__all__ = ["RabbitMQReturns", "acknowledge", "requeue"]


async def acknowledge(copies: list[Delivery[Receipt]]) -> None:
    """A session that is gone has given the messages to others."""
    for copy in copies:
        session, tag, _ = copy.receipt
        if session.is_open:
            try:
                await session.ack(tag)
            except AMQP_ERRORS:
                session.ended.set()


async def requeue(session: RabbitMQSession, copies: list[Delivery[Receipt]]) -> None:
    """To their places; the broker counts a redelivery."""
    for copy in copies:
        if copy.receipt.session is session:
            await session.requeue(copy.receipt.tag)


class RabbitMQReturns:
    """Hands back what nothing has happened to.

    Args:
        publication: of a task as it goes back. delivery_limit: of the queue.
    """

    def __init__(
        self, publication: Callable[[QueuedTask], Publication], delivery_limit: int
    ) -> None:
        self._publication = publication
        # A quarter of the limit: the rest is for consumers that died.
        self._most_requeued = delivery_limit // 4

    async def hand_back_unwanted(
        self, session: RabbitMQSession, unwanted: list[Delivery[Receipt]]
    ) -> None:
        """To its place, so that the order of its class survives.

        The broker counts that towards the delivery limit, so what has come back a few times already goes behind what waits,
        as new.
        """
        worn: list[list[Delivery[Receipt]]] = []
        for delivery in unwanted:
            if delivery.task.redeliveries < self._most_requeued:
                await requeue(session, [delivery])
            else:
                worn.append([delivery])
        await self.hand_back_held(session, worn)

    async def hand_back_held(
        self, session: RabbitMQSession, held: list[list[Delivery[Receipt]]]
    ) -> None:
        """Behind what waits, in their order; to their place where there is no more room."""
        taken = await session.publish_all([self._publication(copies[0].task) for copies in held])
        for copies, is_taken in zip(held, taken, strict=True):
            await (acknowledge(copies) if is_taken else requeue(session, copies))
