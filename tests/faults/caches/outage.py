"""One outage of the cache's store under load, as a script that both worlds play.

200 look-ups a second over 40 keys that level 1 does not hold. The store goes away at `AWAY_AT_S` and is back at
`BACK_AT_S`. A computation takes no time, so what a look-up takes beyond its usual share is what the outage adds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.port import CacheStore
from reference_impl.caches.shared_level import SharedLevel
from reference_impl.overload.breaker import BreakerState, CircuitBreaker

RATE_PER_S = 200
AWAY_AT_S = 0.5
BACK_AT_S = 1.5
END_S = 3.0
TIMEOUT_S = 0.05
KEYS = 40


@dataclass
class Outcome:
    """What the load saw: (instant, seconds taken, source) of each look-up, what failed, and the breaker's changes."""

    look_ups: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    changes: list[tuple[float, str, str]] = field(default_factory=list)
    lateness_s: list[float] = field(default_factory=list)

    @property
    def transitions(self) -> list[tuple[str, str]]:
        return [(old, new) for _, old, new in self.changes]

    def p99_s(self, from_s: float, to_s: float) -> float:
        taken = sorted(took for at, took, _ in self.look_ups if from_s <= at < to_s)
        return taken[int(0.99 * len(taken))]

    def sources(self, from_s: float, to_s: float) -> set[str]:
        return {source for at, _, source in self.look_ups if from_s <= at < to_s}


async def play(
    store: CacheStore,
    go_away: Callable[[], Awaitable[None]],
    come_back: Callable[[], Awaitable[None]],
) -> Outcome:
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    start_s = loop.time()

    def make_breaker(
        on_change: Callable[[float, BreakerState, BreakerState], None],
    ) -> CircuitBreaker:
        return CircuitBreaker(
            max_failures_in_row=5, open_s=0.3, open_max_s=0.8, probes=2, on_change=on_change
        )

    shared: SharedLevel[str] = SharedLevel(
        store,
        name="gateway",
        timeout_s=TIMEOUT_S,
        make_breaker=make_breaker,
        on_breaker_change=lambda now_s, old, new: outcome.changes.append(
            (now_s - start_s, old.value, new.value)
        ),
    )
    layer: CacheLayer[str] = CacheLayer(shared=shared, l1_ttl_seconds=0)

    async def look_up(number: int) -> None:
        began_s = loop.time()
        try:
            value, source = await layer.fetch(f"k{number % KEYS}", lambda: f"v{number % KEYS}")
            assert value == f"v{number % KEYS}"
            outcome.look_ups.append((began_s - start_s, loop.time() - began_s, source))
        except Exception as error:  # noqa: BLE001 - the test asks that there is none, whatever it is
            outcome.failures.append(error)

    async def outage() -> None:
        await asyncio.sleep(start_s + AWAY_AT_S - loop.time())
        await go_away()
        await asyncio.sleep(start_s + BACK_AT_S - loop.time())
        await come_back()

    async with asyncio.TaskGroup() as group:
        group.create_task(outage())
        for number in range(int(END_S * RATE_PER_S)):
            due_s = start_s + number / RATE_PER_S
            await asyncio.sleep(due_s - loop.time())
            outcome.lateness_s.append(loop.time() - due_s)
            group.create_task(look_up(number))
    await layer.aclose()
    return outcome


def check(outcome: Outcome) -> None:
    """What must hold in either world."""
    assert outcome.failures == []
    assert len(outcome.look_ups) == int(END_S * RATE_PER_S)
    usual_s = outcome.p99_s(0.1, AWAY_AT_S)
    added_s = outcome.p99_s(AWAY_AT_S, END_S) - usual_s
    # A busy machine wakes every sleeper late, time-outs too: the load's own lateness is not the cache's.
    lateness_s = sorted(outcome.lateness_s)[int(0.99 * len(outcome.lateness_s))]
    assert added_s <= TIMEOUT_S + max(0.0, lateness_s)
    assert outcome.sources(0.3, AWAY_AT_S - 0.05) == {"l2"}
    assert outcome.sources(END_S - 0.2, END_S) <= {"l2", "coalesced"}
    assert outcome.transitions[0] == ("closed", "open")
    assert outcome.transitions[-1] == ("half_open", "closed")
    assert outcome.changes[0][0] < AWAY_AT_S + 0.3
