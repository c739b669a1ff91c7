"""How many messages wait in the queues that a `RabbitMQQueue` stands on."""

from __future__ import annotations

from typing import Final, NamedTuple

from reference_impl.queues.rabbitmq_layout import Layout
from reference_impl.queues.rabbitmq_session import RabbitMQSession

__all__ = ["Census", "RabbitMQCensus"]

# How often delay queues are looked for that other connections may have made. One that is not there costs a channel.
_LOOK_FOR_DELAYS_S: Final = 30.0


class Census(NamedTuple):
    """`ready` is by class."""

    ready: tuple[int, ...]
    delayed: int
    dead: int


class RabbitMQCensus:
    """Counts the queues of `layout`. It asks for the delay queues that it knows, and now and then for the others."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._delays: set[str] = set()
        self._looked_s: float | None = None

    async def take(self, session: RabbitMQSession, now_s: float) -> Census:
        """At `now_s` of the loop's clock. What another connection delays for the first time may be seen a while later."""
        layout = self._layout
        self._delays |= session.delay_queues()
        delays = sorted(self._delays)
        look = self._looked_s is None or now_s - self._looked_s >= _LOOK_FOR_DELAYS_S
        if look:
            delays = layout.delays
        counts = await session.message_counts([*layout.classes, layout.dead, *delays])
        if look:
            self._looked_s = now_s
        self._delays = {queue for queue in delays if queue in counts}
        return Census(
            tuple(counts.get(queue, 0) for queue in layout.classes),
            sum(counts[queue] for queue in self._delays),
            counts.get(layout.dead, 0),
        )
