"""Single flight: of many tasks that miss the same key at once, one computes and the rest await its result.

The leader computes in its own task, so a miss costs no task, and followers cost one future each. A leader that fails or is
cancelled does not take its followers with it: the one that has waited longest takes over. Only an error that is known to be
final, or one that has come `MAX_FAILURES` times in a row, is shared with everyone who waits: otherwise a thousand followers
of a dead endpoint would try it one after the other, and the last would wait a thousand time-outs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final, Generic, TypeVar

__all__ = ["LEAD", "MAX_FAILURES", "Flight", "Lead", "SingleFlight"]

T = TypeVar("T")

MAX_FAILURES: Final = 3


class Lead(Enum):
    """What `SingleFlight.join` returns to the follower that has to compute instead."""

    LEAD = "lead"


LEAD: Final = Lead.LEAD


class Flight(Generic[T]):
    """One computation in progress.

    `doomed` is set when an invalidation names its key meanwhile: those who already wait get the value, nobody stores it.
    """

    __slots__ = ("doomed", "failures", "leader", "tags", "waiters")

    def __init__(self, tags: frozenset[str]) -> None:
        self.tags = tags
        self.doomed = False
        self.failures = 0
        self.leader = asyncio.current_task()
        self.waiters: deque[asyncio.Future[T | Lead]] = deque()


class SingleFlight(Generic[T]):
    """The computations in progress, by key.

    A task that finds no flight under its key calls `lead` and then exactly one of `land`, `fail`, `hand_over`. One that
    finds a flight calls `join`, and leads in its turn if that returns `LEAD`.
    """

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: str) -> Flight[T] | None:
        return self._flights.get(key)

    def lead(self, key: str, tags: frozenset[str] = frozenset()) -> Flight[T]:
        """Start the flight of `key`, which must have none."""
        flight: Flight[T] = Flight(tags)
        self._flights[key] = flight
        return flight

    async def join(self, key: str, flight: Flight[T]) -> T | Lead:
        """Wait for the leader: its value, or `LEAD` when the caller has to compute instead.

        Raises the leader's error if that is final or repeated, and RuntimeError when the caller is the leader itself.
        """
        task = asyncio.current_task()
        if flight.leader is task:
            raise RuntimeError(
                f"the computation of cache key {key!r} asks the cache for the same key: it would wait for itself"
            )
        waiter: asyncio.Future[T | Lead] = asyncio.get_running_loop().create_future()
        flight.waiters.append(waiter)
        try:
            result = await waiter
        except asyncio.CancelledError:
            # Cancelled in the turn of the loop that woke it: the lead that it was given must not get lost.
            woken = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            if woken and waiter.result() is LEAD:
                self.hand_over(key, flight)
            raise
        if result is LEAD:
            flight.leader = task
        return result

    def land(self, key: str, flight: Flight[T], value: T) -> None:
        """The leader has `value`: give it to every follower and end the flight."""
        for waiter in flight.waiters:
            if not waiter.done():
                waiter.set_result(value)
        self._end(key, flight)

    def fail(self, key: str, flight: Flight[T], error: Exception, *, final: bool) -> None:
        """The leader has failed: let a follower try, or share an error that is final or has come too often."""
        flight.failures += 1
        if not final and flight.failures < MAX_FAILURES:
            self.hand_over(key, flight)
            return
        for waiter in flight.waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._end(key, flight)

    def hand_over(self, key: str, flight: Flight[T]) -> None:
        """The leader goes without a result: the follower that has waited longest leads; with none, the flight ends."""
        while flight.waiters:
            waiter = flight.waiters.popleft()
            if not waiter.done():
                waiter.set_result(LEAD)
                return
        self._end(key, flight)

    def doom_key(self, key: str) -> None:
        """An invalidation names `key`: its flight must not be stored, and who misses from now on starts a new one."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.doomed = True

    def doom_where(self, matches: Callable[[str, frozenset[str]], bool]) -> None:
        """As `doom_key`, for every flight for which `matches(key, tags)`."""
        for key in [k for k, flight in self._flights.items() if matches(k, flight.tags)]:
            self.doom_key(key)

    def _end(self, key: str, flight: Flight[T]) -> None:
        flight.waiters.clear()
        if self._flights.get(key) is flight:
            del self._flights[key]
