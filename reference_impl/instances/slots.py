"""Concurrency slots of an instance: first come, first served, with a bound on who may wait.

asyncio.Semaphore has no bound on its waiters and no account of them. Here a slot passes straight from the one who releases
it to the first who waits, so nobody overtakes; an uncontended acquisition makes no future; and a waiter that is cancelled,
even at the very instant at which it is granted a slot, leaves nothing behind (invariant 6).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

import msgspec

from reference_impl.errors import Rejected
from reference_impl.instances.meter import StationMeter
from reference_impl.telemetry import RequestTrace, StationSample

__all__ = ["Slot", "SlotLease", "Slots", "SlotsStatistics"]


class Slot(Protocol):
    """The hook through which the holder of a slot gives it back while it does not need it (retry waits).

    The time that `acquire` waits is accounted for by the slot itself (`trace.instance_wait_s`), so the holder leaves it
    out of its own stages.
    """

    def release(self) -> None:
        """Give the slot back; without effect when it is not held."""
        ...

    async def acquire(self) -> None:
        """Wait for a slot again. A call that was admitted once is never rejected here."""
        ...


class SlotsStatistics(msgspec.Struct, frozen=True):
    """Slots at one instant. `arrivals` are visits: a call that gave its slot back during a retry wait arrives again.

    arrivals = completions + abandoned + busy + waiting; `rejected` never arrived.
    """

    capacity: int
    queue_limit: int
    busy: int
    waiting: int
    arrivals: int
    completions: int
    abandoned: int
    rejected: int
    busy_s: float
    waiting_s: float


class Slots:
    """`capacity` slots; at most `queue_limit` newcomers wait. Must be made on the running loop."""

    def __init__(self, capacity: int, queue_limit: int, name: str = "slots") -> None:
        if capacity < 1:
            raise ValueError(f"{name}: capacity must be at least 1, not {capacity}")
        if queue_limit < 0:
            raise ValueError(f"{name}: queue_limit must not be negative, is {queue_limit}")
        self.capacity = capacity
        self.queue_limit = queue_limit
        self.name = name
        self._loop = asyncio.get_running_loop()
        self._meter = StationMeter(name, "slots", capacity)
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._abandoned = 0
        self._rejected = 0

    def lease(self, trace: RequestTrace) -> SlotLease:
        """A lease for one call, not acquired yet."""
        return SlotLease(self, trace)

    def try_acquire(self) -> bool:
        """Take a slot if one is free: no future, no switch of tasks."""
        meter = self._meter
        # A free slot implies that nobody waits: released slots pass to waiters directly.
        if meter.busy >= self.capacity:
            return False
        meter.advance()
        meter.arrivals += 1
        meter.busy += 1
        return True

    async def wait(self, *, admitted: bool = False) -> None:
        """Queue for a slot. Raises Rejected when the queue is full, unless the call was `admitted` before."""
        meter = self._meter
        if not admitted and meter.waiting >= self.queue_limit:
            self._rejected += 1
            raise Rejected(
                f"{self.name}: all {self.capacity} slots are busy and {meter.waiting} calls wait already"
            )
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters[waiter] = None
        meter.advance()
        meter.arrivals += 1
        meter.waiting += 1
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                # Granted and cancelled in the same instant: the slot is ours, so hand it on.
                self.release()
            else:
                self._waiters.pop(waiter, None)
                meter.advance()
                meter.waiting -= 1
                self._abandoned += 1
            raise

    def release(self) -> None:
        """Return a slot: the first waiter has it at once."""
        meter = self._meter
        if meter.busy < 1:
            raise RuntimeError(f"{self.name}: a slot was released that was not held")
        meter.advance()
        meter.completions += 1
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            # A cancelled waiter whose task has not run yet settles its own account in `wait`.
            if not waiter.done():
                meter.waiting -= 1
                waiter.set_result(None)
                return
        meter.busy -= 1

    def sample(self, *, origin_s: float = 0.0) -> StationSample:
        """The interval since the last sample; `origin_s` is the run's start on the loop's clock."""
        return self._meter.sample(origin_s=origin_s)

    def statistics(self) -> SlotsStatistics:
        meter = self._meter
        return SlotsStatistics(
            capacity=self.capacity,
            queue_limit=self.queue_limit,
            busy=meter.busy,
            waiting=meter.waiting,
            arrivals=meter.arrivals,
            completions=meter.completions,
            abandoned=self._abandoned,
            rejected=self._rejected,
            busy_s=meter.busy_s,
            waiting_s=meter.waiting_s,
        )


class SlotLease:
    """One call's hold on a slot; implements `Slot`. Waits are added to `trace.instance_wait_s`."""

    __slots__ = ("_admitted", "_held", "_slots", "_trace")

    def __init__(self, slots: Slots, trace: RequestTrace) -> None:
        self._slots = slots
        self._trace = trace
        self._admitted = False
        self._held = False

    async def acquire(self) -> None:
        """Take or wait for a slot; the first time, raises Rejected when the queue is full."""
        if self._held:
            raise RuntimeError(f"{self._slots.name}: the slot is held already")
        if not self._slots.try_acquire():
            time = asyncio.get_running_loop().time
            from_s = time()
            try:
                await self._slots.wait(admitted=self._admitted)
            finally:
                self._trace.instance_wait_s += time() - from_s
        self._held = self._admitted = True

    def release(self) -> None:
        """Give the slot back; without effect when it is not held."""
        if self._held:
            self._held = False
            self._slots.release()
