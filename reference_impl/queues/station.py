"""A queue as a station in the samples: what waits in it and what is held, from the statistics that its broker gives.

A broker is asked now and then; asking it at every change would cost more than the tasks. So lengths are those at the two ends of
an interval, averaged, and an interval in which the broker did not answer has no sample.
"""

from __future__ import annotations

import asyncio
import math

from reference_impl.queues.errors import QueueError
from reference_impl.queues.port import MessageQueue, QueueStatistics
from reference_impl.telemetry import StationSample

__all__ = ["QueueStation"]


class QueueStation:
    """Samples of kind `broker`. Must be made on the running loop.

    Arrivals are the tasks that this connection enqueued, completions those that have left since (where the broker cannot tell
    what is held: that were handed out).
    """

    def __init__(self, name: str = "broker") -> None:
        self._name = name
        self._time = asyncio.get_running_loop().time
        self._seen: QueueStatistics | None = None
        self._seen_s = self._sampled_s = self._time()
        # At the last sample: waiting, held, dead, enqueued.
        self._marked = (0, 0, 0, 0)

    def note(self, statistics: QueueStatistics) -> None:
        """The queue as it is now."""
        self._seen = statistics
        self._seen_s = self._time()

    async def watch(self, queue: MessageQueue, interval_s: float) -> None:
        """Look every `interval_s`, for at most as long, until cancelled. A broker that is away is looked at again later."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                async with asyncio.timeout(interval_s):
                    self.note(await queue.statistics())
            except (QueueError, TimeoutError):
                pass  # no sample says it; what fails for it is logged where it fails

    def sample(self, *, origin_s: float = 0.0) -> list[StationSample]:
        """The interval between the last two looks that were sampled; none unless there was a look since the last sample."""
        seen, interval_s = self._seen, self._seen_s - self._sampled_s
        if seen is None or interval_s <= 0.0:
            return []
        waiting, held, dead, enqueued = self._marked
        self._marked = (seen.depth, seen.held or 0, seen.dead, seen.enqueued)
        self._sampled_s = self._seen_s
        # Another connection counts from 0 again.
        arrivals = seen.enqueued - enqueued if seen.enqueued >= enqueued else seen.enqueued
        growth = sum(self._marked[:3]) - waiting - held - dead
        in_service = (held + self._marked[1]) / 2
        return [
            StationSample(
                t_s=self._seen_s - origin_s,
                interval_s=interval_s,
                station=self._name,
                kind="broker",
                arrivals=arrivals,
                completions=max(0, arrivals - growth),
                busy_s=in_service * interval_s,
                queue_length=(waiting + self._marked[0]) / 2,
                in_service=in_service,
                capacity=math.inf,
            )
        ]
