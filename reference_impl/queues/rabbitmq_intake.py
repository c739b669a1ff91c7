"""How a connection to RabbitMQ comes by tasks: it has them delivered, or gets one after the other.

Deliveries are fast, and more than is wanted: the broker bounds them by consumer, so by class, and sends so many of each. Where
tasks are short the rest is wanted a moment later. Where they take long it would wait here while others are idle, and would have
to go back, which a quorum queue counts towards its delivery limit. There the connection gets as many as it wants, of the classes
whose turn it is, and has the next delivered only where nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from reference_impl.queues.counts import Counts
from reference_impl.queues.inbox import Inbox
from reference_impl.queues.rabbitmq_receiver import RabbitMQReceiver, Receipt
from reference_impl.queues.rabbitmq_session import RabbitMQSession
from reference_impl.queues.weighted_round import WeightedRound

__all__ = ["RabbitMQIntake"]

# A task that is held no longer is short: of ten classes the rest of what is delivered is wanted within a second.
_SHORT_S: Final = 0.1
# Who asks for so many at once wants throughput, whatever each takes.
_MANY: Final = 50


class RabbitMQIntake:
    """Has tasks put into `inbox`; what is no task is buried.

    Args:
        counts: where redeliveries and burials are noted. clock: of the instants of burials.

    Attributes:
        prefetch: how many of a class are delivered and not yet settled at most; 0: none are delivered.
        asked: for how many tasks calls wait now.
    """

    def __init__(
        self, inbox: Inbox[Receipt], counts: Counts, clock: Callable[[], float], levels: int
    ) -> None:
        self.prefetch = 0
        self.asked = 0
        self._inbox = inbox
        self._counts = counts
        self._clock = clock
        self._turns = WeightedRound(levels)
        self._levels = levels
        self._are_short = False
        self._consumers = 0

    def note_held(self, held_s: float) -> None:
        """A task was held for so long until its work was done."""
        self._are_short = held_s < _SHORT_S

    def suffices(self) -> bool:
        """Whether all that is asked for comes by itself, if it is there."""
        return self._delivered_and_held() + self.asked <= self.prefetch

    async def fetch(self, session: RabbitMQSession, max_tasks: int) -> None:
        """Have up to `max_tasks` in the inbox, now or as soon as they come. One at a time, and not to be cut off half-way."""
        if self._are_short or max_tasks >= _MANY:
            wanted = self._delivered_and_held() + self.asked
            await self._consume(session, max(wanted, 2 * self.prefetch))
        elif not self._inbox.waiting() and not await self._get(session, max_tasks):
            await self._consume(session, max(1, self.asked))

    async def resume(self, session: RabbitMQSession) -> None:
        """Through another session, as much as before."""
        if self.prefetch:
            await self._consume(session, self.prefetch)

    async def stop(self, session: RabbitMQSession) -> None:
        """Nothing more is delivered until it is asked for."""
        self.prefetch = 0
        await session.stop_consuming()

    def _delivered_and_held(self) -> int:
        """Tasks handed out that count towards the present prefetch: what former consumers brought does not."""
        return sum(
            copy.receipt.consumers == self._consumers
            for copies in self._inbox.all_held()
            for copy in copies
        )

    async def _consume(self, session: RabbitMQSession, prefetch: int) -> None:
        self.prefetch = prefetch
        self._consumers += 1
        await session.consume(prefetch, self._receiver(session, self._consumers).receive)

    async def _get(self, session: RabbitMQSession, max_tasks: int) -> bool:
        """Up to `max_tasks`, in turns; whether there was one."""
        receiver = self._receiver(session, 0)
        may_wait = [True] * self._levels
        got = 0
        while got < max_tasks and (level := self._turns.next_of(may_wait)) is not None:
            message = await session.get(level)
            if message is None:
                may_wait[level] = False
                continue
            self._turns.choose(may_wait)
            await receiver.receive(level, message)
            got += 1
        return got > 0

    def _receiver(self, session: RabbitMQSession, consumers: int) -> RabbitMQReceiver:
        return RabbitMQReceiver(session, self._inbox, self._counts, self._clock, consumers)
