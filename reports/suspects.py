"""The suspects: each resource with its part in the delay of slow requests, and what its own stations say to that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import pandas as pd

from reports.resources import RESOURCES, Resource
from reports.stages import SlowDelay
from reports.wording import amount, percent

__all__ = ["BUSY", "Candidate", "Saturation", "is_calm", "saturated", "suspects"]

# A waiting line of one, or this busy for a twentieth of the time, corroborates a bottleneck.
BUSY: Final = 0.8
_QUEUE: Final = 1.0
# This busy on average, with a line that never empties, a pool sets the throughput: whoever waits, waits for it.
_SATURATED: Final = 0.9


@dataclass(frozen=True, slots=True)
class Candidate:
    """One resource as a suspect.

    Attributes:
        excess: its part of what slow requests spend beyond an unhindered one (0..1; `SlowDelay.excess`).
        slow_s: seconds of a slow request in it. share: slow_s as a fraction of the slow requests' latency.
        pool: its busiest pool of stations ("" if none). utilisation_p95, queue_peak: of that pool (NaN if none).
        corroborated: whether that pool is busy or queues (for the endpoint: that none of ours does); None if no station
            could tell.
    """

    key: str
    resource: Resource
    excess: float
    slow_s: float
    share: float
    pool: str
    utilisation_p95: float
    queue_peak: float
    corroborated: bool | None


@dataclass(frozen=True, slots=True)
class Saturation:
    """A pool that is used up and has a line all the time. `utilisation`, `queue`: means."""

    pool: str
    kind: str
    utilisation: float
    queue: float

    @property
    def in_words(self) -> str:
        return f"{percent(self.utilisation)} busy with {amount(self.queue, '')} waiting on average"


def suspects(
    slow: SlowDelay, pools: pd.DataFrame, *, inside_seen: bool = True
) -> tuple[Candidate, ...]:
    """Every resource that can delay, the largest part first. `pools`: as `reports.stations.pool_table` makes it.

    `inside_seen`: whether the rest of a request's time is known to be that of our own processes and network, since all
    else was measured; of a foreign target it is the target's.
    """
    found = []
    for key, resource in RESOURCES.items():
        if not resource.parts or key == ("target" if inside_seen else "cpu"):
            continue
        seconds = sum(slow.seconds[p] for p in resource.parts)
        pool, utilisation, queue = _evidence(resource, pools)
        corroborated: bool | None = None
        if key == "endpoint":
            # Its capacity is not ours to see: what speaks for it is that none of our own stations is in the way.
            corroborated = is_calm(pools) if len(pools) else None
        elif math.isfinite(utilisation):
            corroborated = utilisation >= BUSY or queue >= _QUEUE
        found.append(
            Candidate(
                key=key,
                resource=resource,
                excess=sum(slow.excess[p] for p in resource.parts),
                slow_s=seconds,
                share=max(0.0, seconds) / slow.latency_s if slow.latency_s > 0 else 0.0,
                pool=pool,
                utilisation_p95=utilisation,
                queue_peak=queue,
                corroborated=corroborated,
            )
        )
    return tuple(sorted(found, key=lambda c: (c.excess, c.share), reverse=True))


def is_calm(pools: pd.DataFrame) -> bool:
    """No pool is busy or has a waiting line."""
    return bool(~((pools["utilisation_p95"] >= BUSY) | (pools["queue_peak"] >= _QUEUE)).any())


def saturated(pools: pd.DataFrame) -> Saturation | None:
    """The pool that sets the throughput (of several, that with the longest line); None if none does."""
    full = pools[(pools["utilisation"] >= _SATURATED) & (pools["queue"] >= _QUEUE)]
    if full.empty:
        return None
    longest = full.sort_values("queue", ascending=False, kind="stable").iloc[0]
    return Saturation(
        str(longest.name),
        str(longest["kind"]),
        float(longest["utilisation"]),
        float(longest["queue"]),
    )


def _evidence(resource: Resource, pools: pd.DataFrame) -> tuple[str, float, float]:
    own = pools[pools["kind"].isin(resource.kinds)]
    if own.empty:
        return "", math.nan, math.nan
    busiest = own.iloc[0]
    return str(own.index[0]), float(busiest["utilisation_p95"]), float(busiest["queue_peak"])
