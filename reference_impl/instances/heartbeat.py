"""Heartbeats, both ends: an instance that reports itself, and whoever keeps the reports.

The same code in both worlds: what differs is how a report travels and what measures CPU and memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from reference_impl.errors import ServiceError
from reference_impl.instances.port import InstanceMetrics, InstanceStatus

__all__ = ["HeartbeatLog", "HeartbeatSender", "Usage"]

# Reports older than this many intervals are no longer believed.
STALE_INTERVALS = 3.0


class Usage(NamedTuple):
    """CPU and memory of an instance as fractions of 1 (CPU: of one core, as an event loop cannot use more)."""

    cpu: float
    memory: float


class HeartbeatSender:
    """Reports `measure()` every `interval_s` through `post`, at absolute deadlines.

    A report that cannot be delivered within an interval is dropped: the next one is newer. After `orphaned_after` misses
    in a row `on_orphaned` is called, once: nobody listens any more, so the instance should end itself.
    """

    def __init__(
        self,
        measure: Callable[[], InstanceMetrics],
        post: Callable[[InstanceMetrics], Awaitable[None]],
        interval_s: float,
        *,
        on_orphaned: Callable[[], None] | None = None,
        orphaned_after: int = 10,
    ) -> None:
        """`post` raises a ServiceError or an OSError when the report is not delivered."""
        self._measure = measure
        self._post = post
        self._interval_s = interval_s
        self._on_orphaned = on_orphaned
        self._orphaned_after = orphaned_after
        self.sent = 0
        self.missed = 0
        self._missed_in_a_row = 0

    async def run(self) -> None:
        """Send for ever; to be run as a task named "background:heartbeat ..."."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            await self.send()
            due_s = max(due_s + self._interval_s, loop.time())
            await asyncio.sleep(due_s - loop.time())

    async def send(self) -> bool:
        """One report now. False when it was not delivered."""
        try:
            async with asyncio.timeout(self._interval_s):
                await self._post(self._measure())
        except (ServiceError, OSError):  # TimeoutError is an OSError
            self.missed += 1
            self._missed_in_a_row += 1
            if self._missed_in_a_row == self._orphaned_after and self._on_orphaned is not None:
                self._on_orphaned()
            return False
        self.sent += 1
        self._missed_in_a_row = 0
        return True


class HeartbeatLog:
    """The latest report of each instance; silence of three intervals shows as UNHEALTHY.

    Must be made on the running loop.
    """

    def __init__(self, interval_s: float) -> None:
        self._stale_s = STALE_INTERVALS * interval_s
        self._time = asyncio.get_running_loop().time
        self._reports: dict[str, tuple[float, InstanceMetrics]] = {}

    def expect(self, instance_id: str, capacity: int) -> None:
        """An instance is ready: its first report is awaited from now on."""
        self._reports[instance_id] = (
            self._time(),
            InstanceMetrics(instance_id, capacity=capacity),
        )

    def forget(self, instance_id: str) -> None:
        """The instance has ended; late reports of it are ignored."""
        self._reports.pop(instance_id, None)

    def report(self, metrics: InstanceMetrics) -> bool:
        """Keep a report. False when nothing is expected from that instance."""
        if metrics.instance_id not in self._reports:
            return False
        self._reports[metrics.instance_id] = (self._time(), metrics)
        return True

    def metrics(self) -> list[InstanceMetrics]:
        """The latest reports, stale ones marked UNHEALTHY."""
        now_s = self._time()
        return [
            metrics
            if now_s - at_s <= self._stale_s
            else msgspec.structs.replace(metrics, status=InstanceStatus.UNHEALTHY)
            for at_s, metrics in self._reports.values()
        ]
