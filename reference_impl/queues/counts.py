"""What a connection did, counted."""

from __future__ import annotations

from reference_impl.queues.port import QueueStatistics

__all__ = ["Counts"]


class Counts:
    """What this connection did since it was made; see `QueueStatistics`."""

    __slots__ = (
        "acknowledged",
        "dead_lettered",
        "delivered",
        "enqueued",
        "redelivered",
        "retried",
    )

    def __init__(self) -> None:
        self.enqueued = self.delivered = self.acknowledged = 0
        self.retried = self.redelivered = self.dead_lettered = 0

    def statistics(
        self,
        ready: tuple[int, ...],
        delayed: int | None,
        held: int | None,
        dead: int,
        oldest_s: float | None,
    ) -> QueueStatistics:
        """Beside the queue as it is."""
        return QueueStatistics(
            ready=ready,
            delayed=delayed,
            held=held,
            dead=dead,
            oldest_s=oldest_s,
            enqueued=self.enqueued,
            delivered=self.delivered,
            acknowledged=self.acknowledged,
            retried=self.retried,
            redelivered=self.redelivered,
            dead_lettered=self.dead_lettered,
        )
